"""Compares `mt data extract --source wikipedia` with WikiExtractor on one dump: words kept, and CPU seconds.

    git clone https://github.com/attardi/wikiextractor
    python benchmarks/wikipedia.py DUMP.xml.bz2 --wikiextractor wikiextractor
    python benchmarks/wikipedia.py DUMP.xml.bz2 --wikiextractor wikiextractor --python python3.10

WikiExtractor 3.0.7 does not start under Python 3.11 and later; --python names another interpreter. Both get
one process. Templates are expanded by WikiExtractor only where the dump has the pages of the templates, which
`--templates` makes it look for; without it they are dropped (`--no-templates`).

A word is a run of letters and digits. Of each article the words of one are counted in those of the other, as
often as both have them.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from indexed import table

WORD = re.compile(r"\w+")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", type=Path)
    parser.add_argument("--wikiextractor", type=Path, required=True, help="a checkout of its repository")
    parser.add_argument("--python", default=sys.executable, help="the interpreter for WikiExtractor")
    parser.add_argument("--templates", action="store_true", help="let WikiExtractor expand templates")
    arguments = parser.parse_args()
    dump = arguments.dump.resolve()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "mt", Path(folder) / "wikiextractor"
        seconds = {
            "mt": cpu_seconds(
                [sys.executable, "-m", "mt", "data", "extract", "--source", "wikipedia", "--workers", "1"]
                + ["--input", str(dump), "--output", str(ours)]
            ),
            "WikiExtractor": cpu_seconds(
                [arguments.python, "-m", "wikiextractor.WikiExtractor", str(dump), "--json", "-q"]
                + ["--processes", "1", "-o", str(theirs)]
                + ([] if arguments.templates else ["--no-templates"]),
                folder=arguments.wikiextractor,
            ),
        }
        texts = {
            "mt": articles(ours.glob("[0-9]*.jsonl")),
            "WikiExtractor": articles(theirs.glob("*/wiki_*")),
        }
    compare(texts, seconds)


def cpu_seconds(command: list[str], folder: Path | None = None) -> float:
    """Runs a command; returns the CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def articles(paths) -> dict[str, Counter[str]]:
    """{id of an article: its words} of files of JSON lines."""
    found = {}
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                found[document["id"]] = Counter(WORD.findall(document["text"]))
    return found


def compare(texts: dict[str, dict[str, Counter[str]]], seconds: dict[str, float]) -> None:
    """Prints the articles, words and seconds of both, and the share of the other's words that each has."""
    both = set.intersection(*(set(found) for found in texts.values()))
    rows = []
    for name, other in (("mt", "WikiExtractor"), ("WikiExtractor", "mt")):
        words = sum(found.total() for found in texts[name].values())
        common = sum((texts[name][i] & texts[other][i]).total() for i in both)
        of_other = sum(texts[other][i].total() for i in both)
        share = f"{common / max(1, of_other):.3f}"
        rows.append((name, f"{len(texts[name]):,}", f"{words:,}", share, f"{seconds[name]:.2f}"))
    table(("", "articles", "words", "share of the other's words", "CPU s"), rows)


if __name__ == "__main__":
    main()
