"""The README: its commands run unchanged, and the commands, files and folders that it names exist."""

import pydoc_data.topics
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from mt import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language=""):
    """The fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


def layout():
    """The files and folders in the block that shows the layout of the repository."""
    body = next(b for b in blocks() if "one table of commands" in b)
    return re.findall(r"^([a-z]+(?:\.py|/)) ", body, re.MULTILINE)


@pytest.mark.slow  # takes a minute; tests/test_demo.py runs the same stages
def test_the_commands_for_ones_own_text_run_unchanged(tmp_path):
    (tmp_path / "my").mkdir()
    prose = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    pieces = [prose[i : i + 1500] for i in range(0, len(prose), 1500)]
    (tmp_path / "my" / "topics.jsonl").write_bytes(
        b"".join(orjson.dumps({"id": str(i), "text": text}) + b"\n" for i, text in enumerate(pieces))
    )
    script = next(b for b in blocks("bash") if "mt data clean" in b)
    script = f"set -e\nmt() {{ '{sys.executable}' -m mt \"$@\"; }}\n{script}"
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "word_perplexity" in ended.stdout
    assert ended.stdout.count("The first") == 1


def test_every_command_that_the_readme_names_exists():
    named = {
        tuple(m.split())
        for m in re.findall(
            r"\bmt ((?:data|retro|eval|checkpoint) [a-z-]+|run|demo|train|generate|report|doctor)\b", README
        )
    }
    assert named
    assert named <= set(cli.VERBS)


def test_every_file_that_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", layout())
def test_every_file_and_folder_of_the_layout_exists(name):
    assert (ROOT / name).exists()
