"""Compares `mt data tokenize`, `mt data merge` and reading samples with their public peers.

    python benchmarks/indexed.py                        # 200 MB made of ../shared/data/corpus/reviews.jsonl
    python benchmarks/indexed.py --input my.jsonl --vocab-file vocab.json --merge-file merges.txt

Contestants run in turn, each in a fresh process; medians are printed as Markdown tables. Wall is the time of
the whole process, start-up and imports included. CPU is the user and system time of the process and all its
descendants, which other work on the machine disturbs less; ratios are of CPU unless a column says otherwise.

- megatron: the algorithm of Megatron-LM's tools/preprocess_data.py, which no package contains. A Pool whose
  `imap` (chunks of 32) parses each line with json and calls a transformers tokenizer, and megatron-core's
  IndexedDatasetBuilder in the parent.
- fast: the algorithm of its preprocess_data_fast.py. gigatoken encodes the whole file into memory, and one
  write stores it.
- datatrove: MegatronDocumentTokenizer, where `--datatrove-python` names an interpreter that has it.
- gigatoken: the backend alone. It reads the JSONL and encodes it into memory on one thread; no output.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared" / "data"
TARGET_BYTES = 200_000_000
END = "<|endoftext|>"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", help="JSONL with a key `text` (default: the reviews, repeated up to 200 MB)"
    )
    parser.add_argument("--vocab-file", default=str(SHARED / "gpt2/vocab.json"))
    parser.add_argument("--merge-file", default=str(SHARED / "gpt2/merges.txt"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--datatrove-python", help="interpreter of an environment with datatrove")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["gigatoken", "megatron", "fast", "datatrove"],
        help="peers of tokenizing (default: all)",
    )
    parser.add_argument(
        "--only",
        nargs="*",
        default=["tokenize", "merge", "samples"],
        help="parts: tokenize, merge, samples (default: all)",
    )
    parser.add_argument(
        "--contestant", nargs=4, metavar=("NAME", "INPUT", "TOKENIZER", "OUTPUT"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.contestant:
        name, *rest = arguments.contestant
        {"megatron": megatron, "fast": fast, "datatrove": datatrove, "gigatoken": bare}[name](
            *rest, arguments.workers
        )
        return
    if not Path(arguments.vocab_file).exists() or not (
        arguments.input or (SHARED / "corpus/reviews.jsonl").exists()
    ):
        print("skipped: ../shared/data is not here; give --input, --vocab-file and --merge-file")
        return
    # This process adopts orphans of a contestant (datatrove's fork server), so that their time is counted.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.only:
            {"tokenize": tokenize, "merge": merge, "samples": samples}[part](arguments, Path(folder))


def tokenize(arguments, folder: Path) -> None:
    path = corpus(arguments, folder)
    run_in_own_process(
        "import sys; from mt.tokenizer.tokenizer import *; load(TokenizerConfig(vocab_file=sys.argv[1],"
        " merge_file=sys.argv[2])).save(sys.argv[3])",
        arguments.vocab_file,
        arguments.merge_file,
        folder / "tokenizer",
    )
    text_mb = split(path, folder / "split", arguments.workers) / 1e6
    parquet = folder / "corpus.parquet"
    write_parquet(path, parquet)

    def ours(source, workers):
        def command(output):
            flags = [
                "--vocab-file",
                arguments.vocab_file,
                "--merge-file",
                arguments.merge_file,
                "--append-eod",
                "--workers",
                str(workers),
            ]
            return [
                sys.executable,
                "-m",
                "mt",
                "data",
                "tokenize",
                "--input",
                str(source),
                "--output-prefix",
                str(output),
                *flags,
            ]

        return command

    def peer(name, interpreter=sys.executable, source=path):
        return lambda output: [
            interpreter,
            __file__,
            "--workers",
            str(arguments.workers),
            "--contestant",
            name,
            str(source),
            str(folder / "tokenizer"),
            str(output),
        ]

    contestants = {
        f"mt, {arguments.workers} workers": ours(path, arguments.workers),
        "mt, 1 worker": ours(path, 1),
        f"mt, Parquet input, {arguments.workers} workers": ours(parquet, arguments.workers),
        "mt, Parquet input, 1 worker": ours(parquet, 1),
    }
    peers = {
        "gigatoken": ("gigatoken alone, in memory, 1 thread", peer("gigatoken")),
        "megatron": (f"Megatron-LM's algorithm, {arguments.workers} workers", peer("megatron")),
        "fast": ("Megatron-LM's gigatoken algorithm, in memory", peer("fast")),
    }
    if arguments.datatrove_python:
        peers["datatrove"] = (
            f"datatrove MegatronDocumentTokenizer, {arguments.workers} tasks",
            peer("datatrove", arguments.datatrove_python, folder / "split"),
        )
    contestants |= dict(peers[name] for name in arguments.peers if name in peers)
    measured = {name: [] for name in contestants}
    digests = {}
    for _ in range(arguments.repeat):
        for name, command in contestants.items():
            output = folder / "out" / "p"
            shutil.rmtree(output.parent, ignore_errors=True)
            output.parent.mkdir()
            measured[name].append(run(command(output)))
            digests[name] = digest(output.parent)
    print(f"\n### JSONL to `.bin/.idx`: {text_mb:.0f} MB of text, GPT-2's vocabulary\n")
    rows, base = [], statistics.median(cpu for _, cpu, _ in measured["mt, 1 worker"])
    reference = digests["mt, 1 worker"]
    for name, runs in measured.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs))
        found = digests[name]
        same = (
            "-"
            if found is None
            else "yes"
            if found == reference
            else "no"
            if len(found) == 2
            else f"{len(found) // 2} pairs"
        )
        rows.append(
            (
                name,
                f"{wall:.2f}",
                f"{text_mb / wall:.1f}",
                f"{cpu:.2f}",
                f"{text_mb / cpu:.1f}",
                f"{memory:.0f}",
                f"{cpu / base:.2f}",
                same,
            )
        )
    table(
        (
            "contestant",
            "wall s",
            "MB/s",
            "CPU s",
            "MB/CPU-s",
            "peak MB of a process",
            "CPU / mt with 1 worker",
            "same bytes",
        ),
        rows,
    )


def merge(arguments, folder: Path) -> None:
    """Merges sixteen pairs of 100 MB; the peer is `cp` of the files. Both end when the data is on disk."""
    import numpy as np

    from mt.indexed.format import IndexedWriter

    parts = folder / "parts"
    parts.mkdir()
    tokens = np.random.default_rng(0).integers(0, 50257, 50_000_000).astype(np.uint16)
    lengths = np.full(50_000, 1000, np.int32)
    for i in range(16):
        writer = IndexedWriter(parts / f"part{i:02d}", np.uint16, folder / "work")
        writer.add(tokens, lengths, np.ones(50_000, np.int64))
        writer.finish()
    size = sum(p.stat().st_size for p in parts.iterdir()) / 1e6
    commands = {
        "mt data merge": [
            sys.executable,
            "-m",
            "mt",
            "data",
            "merge",
            "--input",
            str(parts),
            "--output-prefix",
            str(folder / "merged/p"),
        ],
        "cp, sync": ["sh", "-c", f"cp -r {parts} {folder / 'merged'} && sync {folder / 'merged'}/*"],
    }
    measured = {name: [] for name in commands}
    for _ in range(arguments.repeat):
        for name, command in commands.items():
            shutil.rmtree(folder / "merged", ignore_errors=True)
            os.sync()
            measured[name].append(run(command))
    shutil.rmtree(parts)
    shutil.rmtree(folder / "merged", ignore_errors=True)
    print(f"\n### Merging 16 pairs, {size:.0f} MB\n")
    rows = []
    for name, runs in measured.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs))
        rows.append(
            (
                name,
                f"{wall:.2f}",
                f"{size / wall:.0f}",
                f"{min(w for w, _, _ in runs):.2f}",
                f"{cpu:.2f}",
                f"{memory:.0f}",
            )
        )
    table(("", "wall s", "MB/s", "best wall s", "CPU s", "peak MB"), rows)


def samples(arguments, folder: Path) -> None:
    """Measures index building, random sequences and batches in this process; the best of several runs."""
    import numpy as np
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset as Theirs
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.datasets.helpers import build_sample_idx
    from megatron.core.datasets.indexed_dataset import IndexedDataset as TheirIndexed
    from megatron.core.datasets.utils import Split
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    from mt.indexed.format import IndexedDataset, IndexedWriter
    from mt.indexed.gpt_dataset import GPTDataset, _sample_index, build_indices
    from mt.train.batches import Batches
    from mt.train.model.inputs import PackingConfig
    from mt.train.parallel.mesh import Mesh

    end = 50256
    random = np.random.RandomState(0)
    sizes = random.multinomial(10**9, np.full(10**6, 1e-6)).astype(np.int32)
    order = random.permutation(10**6).astype(np.int32)
    rows = []

    def compare(name, ours, theirs, repeat=5, scale=1.0, unit="ms"):
        times = [[], []]
        for _ in range(repeat):
            for i, function in enumerate((ours, theirs)):
                start = time.process_time()
                function()
                times[i].append((time.process_time() - start) * scale)
        a, b = (min(t) for t in times)
        rows.append((name, f"{a:.3g} {unit}", f"{b:.3g} {unit}", f"{b / a:.2f}"))

    mine = _sample_index(sizes, order, 10**9, 2048, 1, True)
    assert np.array_equal(mine, build_sample_idx(sizes, order, 2048, 1, 10**9, True, True))
    compare(
        "sample index of 10^9 tokens in 10^6 documents, samples of 2048; megatron-core's compiled helper",
        lambda: _sample_index(sizes, order, 10**9, 2048, 1, True),
        lambda: build_sample_idx(sizes, order, 2048, 1, 10**9, True, True),
        scale=1e3,
    )
    start = time.process_time()
    build_indices(sizes, np.arange(10**6, dtype=np.int32), 10**9 // 2048 - 1, 2048, 1234)
    whole = time.process_time() - start

    writer = IndexedWriter(folder / "samples", np.uint16, folder / "work")
    tokens = random.randint(0, end, size=50_000_000).astype(np.uint16)
    lengths = random.multinomial(50_000_000, np.full(70_000, 1 / 70_000)).astype(np.int32)
    tokens[np.cumsum(lengths) - 1] = end
    writer.add(tokens, lengths, np.ones(len(lengths), np.int64))
    writer.finish()
    prefix = str(folder / "samples")
    ours, theirs = IndexedDataset(prefix), TheirIndexed(prefix)
    picks = random.randint(0, len(lengths), size=100_000).tolist()
    assert all(np.array_equal(ours[i], theirs[i]) for i in picks[:1000])
    compare(
        "`dataset[i]`, random sequences; megatron-core IndexedDataset",
        lambda: [ours[i] for i in picks],
        lambda: [theirs[i] for i in picks],
        scale=1e6 / len(picks),
        unit="us",
    )

    our_set = GPTDataset(ours, (0, len(lengths)), 20_000, 2048, 1)

    def their_set(reset: bool) -> Theirs:
        settings = GPTDatasetConfig(
            random_seed=1,
            sequence_length=2048,
            blend=([prefix], None),
            split="1,0,0",
            tokenizer=NullTokenizer(end),
            reset_position_ids=reset,
            reset_attention_mask=False,
            eod_mask_loss=reset,
            create_attention_mask=False,
            path_to_cache=str(folder / "cache"),
            mid_level_dataset_surplus=0.005,
        )
        dataset = Theirs(
            theirs, prefix, np.arange(len(lengths), dtype=np.int32), 20_000, Split.train, settings
        )
        dataset._pad_token_id = -1
        return dataset

    plain, reset = their_set(False), their_set(True)
    batches = random.randint(0, 20_000, size=(200, 8)).tolist()
    stacked = lambda batch: np.stack([plain._query_document_sample_shuffle_indices(i)[0] for i in batch])
    assert np.array_equal(our_set.batch(batches[0]), stacked(batches[0]))
    scale = 1e6 / (len(batches) * 8)
    compare(
        "tokens alone, stacked; GPTDataset's query for them",
        lambda: [our_set.batch(b) for b in batches],
        lambda: [stacked(b) for b in batches],
        scale=scale,
        unit="us",
    )
    positions = torch.arange(2048).expand(
        8, 2048
    )  # mt's models number positions themselves: the field is None
    collate = torch.utils.data.default_collate
    starts = range(0, 1600, 8)
    for name, dataset, packing in (
        ("a training batch: tokens, labels, loss mask, positions", plain, PackingConfig()),
        (
            "the same, --reset-position-ids --eod-mask-loss",
            reset,
            PackingConfig(reset_position_ids=True, eod_mask_loss=True),
        ),
    ):
        made = Batches(
            our_set,
            micro_batch_size=8,
            vocab_size=end + 1,
            mesh=Mesh(0, 1, torch.device("cpu")),
            packing=packing,
            eod=end,
        )
        (mine,), other = made.global_batch(0, 8), collate([dataset[i] for i in range(8)])
        same = {
            "tokens": mine.tokens,
            "labels": mine.labels,
            "loss_mask": mine.loss_mask,
            "position_ids": positions if mine.positions is None else mine.positions,
        }
        assert all(torch.equal(other[key], value) for key, value in same.items())
        compare(
            f"{name}; GPTDataset[i], collated",
            lambda made=made: [made.global_batch(at, 8) for at in starts],
            lambda dataset=dataset: [collate([dataset[i] for i in range(at, at + 8)]) for at in starts],
            scale=scale,
            unit="us",
        )
    print("\n### Indices and samples (CPU time, best of 5)\n")
    table(("what; the peer", "mt", "peer", "peer / mt"), rows)
    print("\nSamples: of 2049 tokens, in batches of 8, the time of one sample.")
    print(f"Document, sample and shuffle index of 10^9 tokens together: {whole:.2f} CPU s, numba loaded.")


def corpus(arguments, folder: Path) -> Path:
    if arguments.input:
        return Path(arguments.input)
    text = (SHARED / "corpus/reviews.jsonl").read_bytes()
    path = folder / "corpus.jsonl"
    with open(path, "wb") as file:
        for _ in range(-(-TARGET_BYTES // len(text))):
            file.write(text)
    return path


def split(source: Path, folder: Path, count: int) -> int:
    """Writes one input file a task, for the peer that splits no files; returns the bytes of the texts."""
    folder.mkdir()
    size, done, text_bytes, file, number = source.stat().st_size, 0, 0, None, -1
    with open(source, "rb") as lines:
        for line in lines:
            if file is None or done * count // size > number:
                number = done * count // size
                if file is not None:
                    file.close()
                file = open(folder / f"{number}.jsonl", "wb")  # noqa: SIM115 - closed before the next one
            file.write(line)
            done += len(line)
            text_bytes += len(json.loads(line)["text"].encode())
    file.close()
    return text_bytes


def write_parquet(source: Path, target: Path) -> None:
    """Writes the same records as Parquet with pyarrow's defaults."""
    run_in_own_process(
        "import sys, orjson, pyarrow, pyarrow.parquet as q;"
        " q.write_table(pyarrow.Table.from_pylist([orjson.loads(line) for line in open(sys.argv[1], 'rb')]),"
        " sys.argv[2], row_group_size=10_000)",
        source,
        target,
    )


def run_in_own_process(code: str, *arguments) -> None:
    """Runs Python code in its own process: peak memory of this process would count for its children."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def run(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds of the process and all its descendants, peak MB of the largest)."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return wall, cpu, memory
        cpu, memory = cpu + usage.ru_utime + usage.ru_stime, max(memory, usage.ru_maxrss / 1000)


def digest(folder: Path) -> tuple | None:
    """Digests of the files that a contestant wrote, under any name."""
    import xxhash

    found = [sorted(folder.rglob(f"*.{suffix}")) for suffix in ("bin", "idx")]
    return tuple(xxhash.xxh3_64_hexdigest(p.read_bytes()) for paths in found for p in paths) or None


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


# --- the contestants, each in its own process


def megatron(path: str, tokenizer: str, output: str, workers: int) -> None:
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{output}.bin", dtype=np.uint16)
    with (
        multiprocessing.Pool(workers, initializer=_load, initargs=(tokenizer,)) as pool,
        open(path, encoding="utf-8") as file,
    ):
        for ids, lengths in pool.imap(_encode, file, 32):
            builder.add_document(ids, lengths)
        pool.close()
        pool.join()
    builder.finalize(f"{output}.idx")


def _load(tokenizer: str) -> None:
    global _tokenizer, _end
    from transformers import AutoTokenizer

    _tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    _end = _tokenizer.convert_tokens_to_ids(END)


def _encode(line: str) -> tuple[list[int], list[int]]:
    ids = _tokenizer(json.loads(line)["text"]).input_ids
    return ([*ids, _end], [len(ids) + 1]) if ids else ([], [])


def fast(path: str, tokenizer: str, output: str, workers: int) -> None:
    import gigatoken
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    backend = gigatoken.Tokenizer(tokenizer)
    end = json.loads((Path(tokenizer) / "tokenizer.json").read_text())["model"]["vocab"][END]
    encoded = backend.encode_files(gigatoken.JsonlFileSource([path]))
    offsets, flat = np.asarray(encoded.layout.offsets.data), np.asarray(encoded.layout.content.data)
    builder = IndexedDatasetBuilder(f"{output}.bin", dtype=np.uint16)
    tokens = np.insert(flat.astype(np.uint16), offsets[1:], end)
    builder.data_file.write(tokens.tobytes())
    builder.sequence_lengths = (np.diff(offsets) + 1).tolist()
    builder.document_indices = list(range(len(offsets)))
    builder.finalize(f"{output}.idx")


def datatrove(path: str, tokenizer: str, output: str, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    steps = [
        JsonlReader(path),
        MegatronDocumentTokenizer(
            str(Path(output).parent / "out"),
            tokenizer_name_or_path=f"{tokenizer}/tokenizer.json",
            eos_token=END,
        ),
    ]
    LocalPipelineExecutor(
        pipeline=steps, tasks=workers, workers=workers, logging_dir=str(Path(output).parent / "logs")
    ).run()


def bare(path: str, tokenizer: str, output: str, workers: int) -> None:
    import gigatoken

    gigatoken.Tokenizer(tokenizer).encode_files(gigatoken.JsonlFileSource([path]), parallel=False)


if __name__ == "__main__":
    main()
