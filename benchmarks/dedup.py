"""Compares `mt data dedup` with its public peers: CPU seconds, recall and precision.

    python benchmarks/dedup.py --peers-python PEERS/bin/python

PEERS is an environment with datatrove, text-dedup, gaoya and rensa. Contestants run in turn, each in a fresh
process from reading the JSONL to survivors written; wall and CPU are those of benchmarks/indexed.py.

The corpus is ../shared/data/corpus/reviews.jsonl nine times (23.8 MB each), the first time as it is. Equal
repeats would be exact copies of each other. So in each other repeat a seeded permutation of the vocabulary
replaces every word of four letters or more by another one of the same length. A repeat then has the
duplicates of the original at the same Jaccard similarities, and none in common with other repeats.

The truth is the exact Jaccard similarity of word 5-grams (`\\w+`, lower-cased). Recall: planted pairs
(reviews_duplicates.jsonl, of every repeat) in one cluster. Precision: removed documents that have a member of
their cluster at a similarity of 0.7 or more. All peers get 14 bands of 8 rows, the setting of datatrove and
FineWeb:

- datatrove: its four MinHash stages, two tasks. 95 % of its time is spaCy's word splitter, so it runs on one
  repeat.
- text-dedup: python -m text_dedup.minhash, xxh3, on one repeat too.
- rensa: RMinHash and RMinHashLSH over 5-grams made in Python with the same regular expression.
- gaoya: MinHashStringIndex with its own word analyzer in Rust, par_bulk_insert_docs and par_bulk_query on all
  processors.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
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

from indexed import SHARED, run, table

REPEATS = 9
BANDS, ROWS, NGRAM, THRESHOLD = 14, 8, 5, 0.7
WORD, LONG_WORD = re.compile(r"\w+"), re.compile(r"[A-Za-z]{4,}")
SMALL = {"datatrove", "text-dedup"}  # measured on one repeat: all repeats would take minutes each
MODULES = {"text-dedup": "text_dedup.minhash", "datatrove": "datatrove.pipeline.dedup"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peers-python", help="interpreter of an environment with the peers")
    parser.add_argument(
        "--datatrove-python",
        help="another interpreter for datatrove, whose libraries conflict with those of text-dedup",
    )
    parser.add_argument("--text-dedup-python", help="another interpreter for text-dedup")
    parser.add_argument(
        "--only",
        nargs="*",
        default=["gaoya", "rensa", "text-dedup", "datatrove"],
        help="peers (default: all)",
    )
    parser.add_argument(
        "--keep", help="folder for the corpora and the last outputs (default: a temporary one)"
    )
    parser.add_argument("--contestant", nargs=3, metavar=("NAME", "INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        name, source, output = arguments.contestant
        PEERS[name](source, Path(output), arguments.workers)
        return
    if not (SHARED / "corpus/reviews.jsonl").exists():
        print("skipped: ../shared/data is not here")
        return
    # This process adopts orphans of a contestant (datatrove's fork server), so that their time is counted.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(exist_ok=True)
        compare(arguments, folder)


def compare(arguments, folder: Path) -> None:
    large, small = corpus(folder / "large.jsonl", REPEATS), corpus(folder / "small.jsonl", 1)

    def ours(source, workers, *flags):
        return lambda output: [
            sys.executable,
            "-m",
            "mt",
            "data",
            "dedup",
            "--input",
            str(source),
            "--output",
            str(output),
            "--workers",
            str(workers),
            *flags,
        ]

    def interpreter(name):
        return getattr(arguments, f"{name.replace('-', '_')}_python", None) or arguments.peers_python

    def peer(name):
        source = small if name in SMALL else large
        return lambda output: [
            interpreter(name),
            __file__,
            "--workers",
            str(arguments.workers),
            "--contestant",
            name,
            str(source),
            str(output),
        ]

    contestants = {
        f"mt, {arguments.workers} workers": (large, ours(large, arguments.workers)),
        "mt, 1 worker": (large, ours(large, 1)),
        f"mt, {arguments.workers} workers, 14 x 8": (
            large,
            ours(large, arguments.workers, "--bands", str(BANDS), "--rows", str(ROWS)),
        ),
        f"mt, {arguments.workers} workers, one repeat": (small, ours(small, arguments.workers)),
    }
    for name in arguments.only:
        if not interpreter(name):
            print(f"{name} skipped: give --peers-python")
        elif subprocess.run(
            [interpreter(name), "-c", f"import {MODULES.get(name, name)}"], capture_output=True
        ).returncode:
            print(f"{name} skipped: {interpreter(name)} cannot import {MODULES.get(name, name)}")
        else:
            contestants[name if name not in SMALL else f"{name}, one repeat"] = (
                small if name in SMALL else large,
                peer(name),
            )
    measured = {name: [] for name in contestants}
    for _ in range(arguments.repeat):
        for name, (_, command) in contestants.items():
            output = folder / f"out {name}"
            shutil.rmtree(output, ignore_errors=True)
            measured[name].append(run(command(output)))
    truth = Truth(large)
    text_mb = {
        source: sum(len(row["text"].encode()) for row in read(source)) / 1e6 for source in (large, small)
    }
    first = f"mt, {arguments.workers} workers"
    base = text_mb[large] / statistics.median(cpu for _, cpu, _ in measured[first])
    rows = []
    for name, runs in measured.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs))
        size = text_mb[contestants[name][0]]
        quality = truth.quality(
            removed(folder / f"out {name}"), REPEATS if contestants[name][0] == large else 1
        )
        rows.append(
            (
                name,
                f"{wall:.1f}",
                f"{size / wall:.1f}",
                f"{cpu:.1f}",
                f"{size / cpu:.2f}",
                f"{memory:.0f}",
                f"{base * cpu / size:.1f}",
                *quality,
            )
        )
    print(f"\n### Near duplicates, {text_mb[large]:.0f} MB of text (one repeat: {text_mb[small]:.0f} MB)\n")
    table(
        (
            "contestant",
            "wall s",
            "MB/s",
            "CPU s",
            "MB/CPU-s",
            "peak MB of a process",
            f"{first} / it",
            "removed",
            "recall: exact",
            ">= 0.8",
            "0.7 to 0.8",
            "precision",
        ),
        rows,
    )


def corpus(path: Path, repeats: int) -> Path:
    if path.exists():
        return path
    rows = read(SHARED / "corpus/reviews.jsonl")
    by_length = collections.defaultdict(set)
    for row in rows:
        for word in WORD.findall(row["text"]):
            if LONG_WORD.fullmatch(word):
                by_length[len(word)].add(word.lower())
    with open(path, "w", encoding="utf-8") as file:
        for number in range(repeats):
            mapping = {}
            for _, words in sorted(by_length.items()):
                words = sorted(words)
                others = words if number == 0 else random.Random(number).sample(words, len(words))
                mapping.update(zip(words, others))
                mapping.update((a.upper(), b.upper()) for a, b in zip(words, others))
                mapping.update((a.capitalize(), b.capitalize()) for a, b in zip(words, others))

            def other(match, mapping=mapping):
                word = match.group()
                return mapping.get(word) or mapping.get(word.lower(), word)

            for row in rows:
                text = WORD.sub(other, row["text"]) if number else row["text"]
                file.write(
                    json.dumps({"id": f"{number}/{row['id']}", "text": text}, ensure_ascii=False) + "\n"
                )
    return path


class Truth:
    """Exact similarities of a corpus, and its planted pairs."""

    def __init__(self, path: Path):
        self.grams = {
            row["id"]: row["text"] for row in read(path)
        }  # texts, replaced by their 5-grams at the first use
        self.planted = read(SHARED / "corpus/reviews_duplicates.jsonl")

    def shingles(self, name: str) -> frozenset:
        if isinstance(self.grams[name], str):
            words = WORD.findall(self.grams[name].lower())
            self.grams[name] = frozenset(
                hash(tuple(words[i : i + NGRAM])) for i in range(max(1, len(words) - NGRAM + 1))
            )
        return self.grams[name]

    def jaccard(self, a: str, b: str) -> float:
        a, b = self.shingles(a), self.shingles(b)
        return len(a & b) / len(a | b)

    def quality(self, survivor: dict[str, str], repeats: int) -> tuple[str, ...]:
        """(removed documents, recall of exact copies, of pairs at 0.8, of pairs between 0.7 and 0.8,
        precision).
        """
        of = lambda name: survivor.get(name, name)
        found = collections.defaultdict(list)
        for number in range(repeats):
            for copy in self.planted:
                a, b = f"{number}/{copy['id']}", f"{number}/{copy['copy_of']}"
                similarity = (
                    1.0
                    if copy["kind"] == "exact"
                    else self.jaccard(f"0/{copy['id']}", f"0/{copy['copy_of']}")
                )
                kind = (
                    copy["kind"]
                    if copy["kind"] == "exact"
                    else "high"
                    if similarity >= 0.8
                    else "middle"
                    if similarity >= THRESHOLD
                    else "low"
                )
                found[kind].append(of(a) == of(b))
        clusters = collections.defaultdict(list)
        for name, kept in survivor.items():
            clusters[kept].append(name)
        right = 0
        for kept, names in clusters.items():
            for name in names:
                right += any(self.jaccard(name, mate) >= THRESHOLD for mate in [kept, *names] if mate != name)
        return (
            f"{len(survivor):,}",
            *(f"{statistics.mean(found[k]):.4f}" for k in ("exact", "high", "middle")),
            f"{right / len(survivor):.4f}",
        )


def removed(output: Path) -> dict[str, str]:
    """Removed document -> survivor of its cluster."""
    return {row["id"]: row["survivor"] for path in (output / "removed").glob("*.jsonl") for row in read(path)}


def read(path: Path | str) -> list[dict]:
    with open(path, "rb") as file:
        return [json.loads(line) for line in file]


# --- contestants, each in its own process; each writes kept documents and removed/*.jsonl as mt does


def write_kept(rows: list[dict], leader: list[int], output: Path) -> None:
    """leader: for each document the row number of its cluster's survivor."""
    (output / "removed").mkdir(parents=True)
    with (
        open(output / "kept.jsonl", "w", encoding="utf-8") as kept,
        open(output / "removed/0.jsonl", "w", encoding="utf-8") as gone,
    ):
        for place, row in enumerate(rows):
            if leader[place] == place:
                kept.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                gone.write(json.dumps({"id": row["id"], "survivor": rows[leader[place]]["id"]}) + "\n")


def leaders(count: int, edges) -> list[int]:
    parent = list(range(count))

    def find(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in edges:
        a, b = find(a), find(b)
        parent[max(a, b)] = min(a, b)
    return [find(i) for i in range(count)]


def gaoya(source: str, output: Path, workers: int) -> None:
    from gaoya.minhash import MinHashStringIndex

    rows = read(source)
    texts = [row["text"] for row in rows]
    index = MinHashStringIndex(32, THRESHOLD, BANDS, ROWS, None, "word", True, (NGRAM, NGRAM), "vec")
    index.par_bulk_insert_docs(list(range(len(rows))), texts)
    found = index.par_bulk_query(texts)
    write_kept(rows, leaders(len(rows), ((i, j) for i, near in enumerate(found) for j in near)), output)


def rensa(source: str, output: Path, workers: int) -> None:
    from rensa import RMinHash, RMinHashLSH

    rows = read(source)
    index = RMinHashLSH(THRESHOLD, BANDS * ROWS, BANDS)
    hashes = []
    for place, row in enumerate(rows):
        words = WORD.findall(row["text"].lower())
        minhash = RMinHash(BANDS * ROWS, 42)
        minhash.update([" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))])
        index.insert(place, minhash)
        hashes.append(minhash)
    write_kept(
        rows,
        leaders(len(rows), ((i, j) for i, minhash in enumerate(hashes) for j in index.query(minhash))),
        output,
    )


def text_dedup(source: str, output: Path, workers: int) -> None:
    """Runs its command, then reads the clusters from the union-find that --debug writes."""
    import pickle

    settings = {
        "path": "json",
        "data_files": source,
        "split": "train",
        "output": output,
        "cache_dir": output / "cache",
        "column": "text",
        "num_proc": workers,
        "ngram": NGRAM,
        "num_perm": BANDS * ROWS,
        "b": BANDS,
        "r": ROWS,
        "hash_func": "xxh3",
        "hash_bits": 64,
        "min_length": 1,
    }
    subprocess.run(
        [
            sys.executable,
            "-m",
            "text_dedup.minhash",
            *(str(part) for name, value in settings.items() for part in (f"--{name}", value)),
            "--debug",
        ],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    rows = read(source)
    with open(output / "uf.pkl", "rb") as file:
        dumped = pickle.load(file)
    parent = dumped if isinstance(dumped, dict) else dumped.parent
    write_kept(rows, leaders(len(rows), parent.items()), output)


def datatrove(source: str, output: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    lines = Path(source).read_bytes().splitlines(keepends=True)
    (output / "in").mkdir(parents=True)
    for number in range(workers):
        (output / "in" / f"{number}.jsonl").write_bytes(b"".join(lines[number::workers]))
    config = minhash.MinhashConfig(
        n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=64)
    )
    work = lambda name: str(output / name)
    reader = lambda: JsonlReader(work("in"))
    stages = [
        ([reader(), minhash.MinhashDedupSignature(work("signatures"), config=config)], workers),
        ([minhash.MinhashDedupBuckets(work("signatures"), work("buckets"), config=config)], BANDS),
        (
            [
                minhash.MinhashDedupCluster(
                    work("buckets"), work("clusters"), config=config, save_cluster_id=True
                )
            ],
            1,
        ),
        (
            [
                reader(),
                minhash.MinhashDedupFilter(
                    work("clusters"),
                    exclusion_writer=JsonlWriter(work("gone"), compression=None),
                    load_cluster_ids=True,
                ),
                JsonlWriter(work("kept"), compression=None),
            ],
            workers,
        ),
    ]
    for number, (steps, tasks) in enumerate(stages):
        LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=work(f"log{number}")).run()
    rows = lambda name: [row for path in sorted((output / name).glob("*.jsonl")) for row in read(path)]
    survivor = {row["metadata"]["minhash_cluster_id"]: row["id"] for row in rows("kept")}
    (output / "removed").mkdir()
    with open(output / "removed/0.jsonl", "w", encoding="utf-8") as file:
        for row in rows("gone"):
            file.write(
                json.dumps({"id": row["id"], "survivor": survivor[row["metadata"]["minhash_cluster_id"]]})
                + "\n"
            )


PEERS = {"gaoya": gaoya, "rensa": rensa, "text-dedup": text_dedup, "datatrove": datatrove}

if __name__ == "__main__":
    main()
