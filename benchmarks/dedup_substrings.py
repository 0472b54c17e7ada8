"""Compares `mt data dedup-substrings` with suffix arrays: CPU seconds, and the same spans.

    python benchmarks/dedup_substrings.py
    python benchmarks/dedup_substrings.py --tool deduplicate-text-datasets/target/release/dedup_dataset

The corpus is that of benchmarks/dedup.py, with passages of some documents copied into others. Contestants
run in turn, each in a fresh process; wall and CPU are those of benchmarks/indexed.py.

- mt: from JSONL to JSONL without the repeated text, all of its steps.
- pydivsufsort: libdivsufsort's suffix array of the texts in one string, in memory, and the array of common
  prefixes; a byte is repeated if it lies in a substring of --bytes bytes that occurs twice. There is no
  output. It is the least that a suffix array costs.
- tool: the program of Lee et al. in Rust, which datatrove and text-dedup run for their exact substrings: its
  commands make, self-similar and collect, without what the peers do before and after in Python. It is left
  out without --tool.

The truth for mt, on --truth-megabytes of the corpus, is brute force over a table of all windows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dedup import corpus, read

from indexed import SHARED, run, table

TOKENS, BYTES = 50, 200  # bytes of about as many tokens
COPIED = 0.05  # documents that get a passage of another one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--copies", type=int, default=4, help="of the reviews, 24 MB each")
    parser.add_argument("--bytes", type=int, default=BYTES, help="shortest substring of the suffix arrays")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--truth-megabytes", type=float, default=2)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with pydivsufsort")
    parser.add_argument("--tool", help="the program dedup_dataset of deduplicate-text-datasets")
    parser.add_argument("--contestant", nargs=2, metavar=("NAME", "INPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        {"pydivsufsort": suffix_array, "tool": rust}[arguments.contestant[0]](arguments)
        return
    if not (SHARED / "corpus/reviews.jsonl").exists():
        print("skipped: ../shared/data is not here")
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments, folder: Path) -> None:
    source = folder / "corpus.jsonl"
    rows = with_copied_passages(read(corpus(folder / "reviews.jsonl", arguments.copies)))
    write(source, rows)
    megabytes = sum(len(row["text"].encode()) for row in rows) / 1e6
    output = folder / "out"
    ours = [sys.executable, "-m", "mt", "data", "dedup-substrings", "--input", str(source)]
    ours += ["--output", str(output), "--workers", str(arguments.workers), "--min-tokens", str(TOKENS)]
    commands = {"mt": ours}
    for name in ("pydivsufsort", "tool"):
        if name == "tool" and not arguments.tool:
            print("tool skipped: give --tool")
        elif (
            name == "pydivsufsort"
            and subprocess.run(
                [arguments.peers_python, "-c", "import pydivsufsort"], capture_output=True
            ).returncode
        ):
            print("pydivsufsort skipped: give --peers-python")
        else:
            peer = [arguments.peers_python, __file__, "--bytes", str(arguments.bytes)]
            peer += ["--tool", arguments.tool] if arguments.tool else []
            commands[name] = [*peer, "--contestant", name, str(source)]
    measured = {name: [] for name in commands}
    for _ in range(arguments.repeat):
        for name, command in commands.items():
            shutil.rmtree(output, ignore_errors=True)
            measured[name].append(run(command))
    print(f"\n### Exact substrings, {megabytes:.0f} MB of text\n")
    median = {n: [statistics.median(column) for column in zip(*runs)] for n, runs in measured.items()}
    table(
        ("contestant", "wall s", "CPU s", "MB/CPU-s", "peak MB of a process", "mt / it"),
        [
            (
                name,
                f"{wall:.1f}",
                f"{cpu:.1f}",
                f"{megabytes / cpu:.1f}",
                f"{memory:.0f}",
                f"{cpu / median['mt'][1]:.1f}",
            )
            for name, (wall, cpu, memory) in median.items()
        ],
    )
    check(rows, arguments.truth_megabytes, folder)


def with_copied_passages(rows: list[dict]) -> list[dict]:
    """The rows; some texts with 60 to 400 words of another one in their middle."""
    draw = random.Random(0)
    for row in rows:
        if draw.random() < COPIED:
            words = re.findall(r"\S+\s*", draw.choice(rows)["text"])
            start, length = draw.randrange(len(words)), draw.randint(60, 400)
            middle = len(row["text"]) // 2
            passage = "".join(words[start : start + length])
            row["text"] = f"{row['text'][:middle]} {passage} {row['text'][middle:]}"
    return rows


def check(rows: list[dict], megabytes: float, folder: Path) -> None:
    """Compares mt's result on the first megabytes with brute force."""
    import regex

    from mt.dataprep.words import WORD

    token = regex.compile(rf"{WORD.pattern}|[^\s\x1c-\x1f][\p{{M}}\u200c\u200d]*")
    some, size = [], 0
    for row in rows:
        if size > megabytes * 1e6:
            break
        some.append(row)
        size += len(row["text"])
    source, output = folder / "truth.jsonl", folder / "truth"
    write(source, some)
    command = [sys.executable, "-m", "mt", "data", "dedup-substrings", "--input", str(source)]
    run([*command, "--output", str(output), "--min-tokens", str(TOKENS)])
    kept = {row["id"]: token.findall(row["text"]) for p in output.glob("*.jsonl") for row in read(p)}
    seen: set = set()
    wrong = repeated = 0
    for row in some:
        tokens = token.findall(row["text"])
        cut: set[int] = set()
        for i in range(len(tokens) - TOKENS + 1):
            window = tuple(tokens[i : i + TOKENS])
            if window in seen:
                cut.update(range(i, i + TOKENS))
            seen.add(window)
        repeated += len(cut)
        wrong += kept.get(row["id"], []) != [t for i, t in enumerate(tokens) if i not in cut]
    print(
        f"\nbrute force on {size / 1e6:.1f} MB: {repeated:,} tokens are repeated; {wrong} of {len(some):,}"
        " documents differ"
    )


def write(path: Path, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- contestants, each in its own process


def suffix_array(arguments) -> None:
    import numpy as np
    import pydivsufsort

    data = b"\0".join(row["text"].encode() for row in read(arguments.contestant[1]))
    suffixes = pydivsufsort.divsufsort(data)
    common = pydivsufsort.kasai(data, suffixes)  # of each suffix with the next one
    starts = np.sort(suffixes[1:][common[:-1] >= arguments.bytes])
    print(len(starts))


def rust(arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.write_bytes(b"\0".join(row["text"].encode() for row in read(arguments.contestant[1])))
        tool = os.path.abspath(arguments.tool)
        cache = Path(folder, "cache")
        cache.mkdir()
        steps = (
            ["make", "--data-file", str(data)],
            ["self-similar", "--data-file", str(data), "--length-threshold", str(arguments.bytes)]
            + ["--cache-dir", str(cache), "--num-threads", "1"],
            ["collect", "--data-file", str(data), "--cache-dir", str(cache)]
            + ["--length-threshold", str(arguments.bytes)],
        )
        for step in steps:
            subprocess.run([tool, *step], check=True, stdout=subprocess.DEVNULL, cwd=folder)


if __name__ == "__main__":
    main()
