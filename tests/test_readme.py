"""README and CONTRIBUTING: commands run unchanged; the commands, files and names that they tell exist."""

import pydoc_data.topics
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from mt.commands.table import COMMANDS

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = (
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md")
)


def blocks(language="", page=README):
    """The fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


def layout():
    """The files and folders in the block that shows the layout of the repository."""
    body = next(b for b in blocks() if b.startswith("cli.py "))
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
    assert named <= set(COMMANDS)


def test_every_file_that_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", layout())
def test_every_file_and_folder_of_the_layout_exists(name):
    assert (ROOT / name).exists()


def texts_of_the_repository():
    """Every file that contributors read, with its text."""
    folders = [
        p for p in ROOT.iterdir() if p.is_dir() and (p.name == ".ci" or not p.name.startswith((".", "__")))
    ]
    files = [p for p in ROOT.iterdir() if p.is_file()] + [
        p for f in folders for p in f.rglob("*") if p.is_file()
    ]
    known = (".py", ".md", ".toml", ".txt", ".yaml", "")
    return {p: p.read_text(encoding="utf-8", errors="replace") for p in files if p.suffix in known}


# the recipes' placeholders for a name of one's own
PLACEHOLDERS = re.compile(r"NAME|\bX/Y|\btest_Y|\bout/|\bmy\b|^my_|\bhf$")


def test_every_file_and_every_name_in_the_code_that_contributing_mentions_exists():
    texts = texts_of_the_repository()
    paths = [f"/{path.relative_to(ROOT).as_posix()}" for path in texts]
    words = {
        word for path, text in texts.items() if path.suffix != ".md" for word in re.findall(r"\w+", text)
    }
    prose = re.sub(r"^```.*?^```$", "", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE)
    mentioned = [m for m in re.findall(r"`([^`\n]+)`", prose) if not PLACEHOLDERS.search(m)]
    files = [m for m in mentioned if re.fullmatch(r"[\w./]+(/|\.(py|md|txt|toml))", m)]
    names = [m for m in mentioned if re.fullmatch(r"[A-Za-z_]\w*(\.[a-z_]\w*)*", m) and m not in files]
    assert len(files) > 40
    assert len(names) > 60
    assert [f for f in files if not any(p.endswith(f"/{f}") or f"/{f}" in p for p in paths)] == []
    assert [n for n in names if n.rpartition(".")[2] not in words] == []


@pytest.mark.slow  # 10 s of a CPU: two commands, and torch is imported twice
def test_the_small_run_of_contributing_runs_unchanged(tmp_path):
    script = next(b for b in blocks(page=CONTRIBUTING) if "mt data tokenize" in b)
    script = f"set -e\nmt() {{ '{sys.executable}' -m mt \"$@\"; }}\n{script}"
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "model" / "step_00000003").exists()
