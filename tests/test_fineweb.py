"""The pipeline of examples/fineweb.yaml: from a folder of WARC files to tokens, and again after a kill."""

import html
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mt.core.manifest import file_digest
from mt.indexed.format import IndexedDataset
from mt.tests.dataprep.extract.test_warc import record

EXAMPLE = Path(__file__).parents[1] / "examples" / "fineweb.yaml"
STOP_WORDS = ["the", "of", "and", "to", "that", "with", "have", "be"]
NOUNS = [
    "river",
    "mill",
    "stone",
    "garden",
    "winter",
    "light",
    "road",
    "village",
    "morning",
    "bread",
    "market",
]
OTHERS = ["old", "quiet", "carried", "slowly", "between", "children", "toward", "letter", "answer", "summer"]
WORDS = STOP_WORDS + NOUNS + OTHERS


def sentences(seed, count=40):
    """Random English words in sentences that no quality rule removes."""
    choose = random.Random(seed)
    made = (choose.choices(WORDS, k=choose.randint(8, 16)) for _ in range(count))
    return [" ".join(["The", *words]) + "." for words in made]


def crawled(identity, lines, host="example.org"):
    paragraphs = "".join(f"<p>{html.escape(' '.join(lines[n : n + 5]))}</p>" for n in range(0, len(lines), 5))
    page = (
        "<html><head><title>A page</title></head><body><nav><ul><li><a href=/>Home</a></li></ul></nav>"
        f"<main><h1>A page about mills</h1>{paragraphs}</main><footer>Copyright</footer></body></html>"
    )
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{page}"
    return record("response", answer.encode(), identity, f"https://{host}/{identity}")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A copy of the example in a folder with warc/, with a smaller vocabulary."""
    folder = tmp_path_factory.mktemp("crawl")
    (folder / "warc").mkdir()
    pages = [crawled(f"page{n}", sentences(n)) for n in range(12)]
    twin = sentences(3)
    twin[-1] = "Please write to somebody@company.com or to 8.8.8.8 about the mill."
    pages += [
        crawled("twin", [*twin, "And it is longer than the other one."]),
        crawled("short", sentences(99, 2)),
        crawled("video", sentences(98), "www.youtube.com"),
    ]
    for number in range(3):
        (folder / "warc" / f"{number}.warc.gz").write_bytes(b"".join(pages[number::3]))
    tree = yaml.safe_load(EXAMPLE.read_text())
    tree["stages"]["tokenizer"]["vocab_size"] = 400
    (folder / "fineweb.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder


def command(run_dir):
    return [sys.executable, "-m", "mt", "run", "fineweb.yaml", "--run-dir", run_dir, "--json"]


def documents(folder):
    return {
        d["id"]: d["text"] for path in sorted(folder.glob("*.jsonl")) for d in map(json.loads, path.open())
    }


@pytest.fixture(scope="module")
def whole(example):
    ended = subprocess.run(command("whole"), cwd=example, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return example / "whole"


def test_every_stage_of_the_recipe_removes_what_it_is_there_for(whole):
    removed = {
        stage: json.loads((whole / stage / "manifest.json").read_text())["counts"]["removed"]
        for stage in ("extract", "clean", "dedup")
    }
    assert removed["extract"] == {"url_domain": 1}
    assert sum(removed["clean"].values()) == 1
    assert sum(removed["dedup"].values()) == 1
    kept = documents(whole / "redact")
    assert set(kept) == {"twin", *(f"page{n}" for n in range(12) if n != 3)}
    assert "company.com" not in kept["twin"]
    assert "8.8.8.8" not in kept["twin"]
    assert len(IndexedDataset(str(whole / "tokens/tokens_text_document")).document_indices) == len(kept) + 1


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(example, whole):
    resumed = example / "resumed"
    with subprocess.Popen(
        command("resumed"), cwd=example, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (resumed / "clean" / "run.json").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (resumed / "report").exists()
    assert subprocess.run(command("resumed"), cwd=example, capture_output=True).returncode == 0
    for path in [*whole.glob("*/*.jsonl"), *whole.glob("tokens/*.bin")]:
        assert file_digest(path) == file_digest(resumed / path.relative_to(whole)), path
