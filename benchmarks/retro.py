"""The retrieval database: embedding, exact and approximate search, the chunk table, and looking neighbours up, each beside its peer.

    python benchmarks/retro.py --text any.txt
    python benchmarks/retro.py --text any.txt --only embed --peers /folder/with/sentence-transformers

Contestants take turns in one process, on one thread, and the medians over the rounds of CPU and wall seconds are printed.

embed    chunks of some 64 tokens by all-MiniLM-L6-v2: sentence-transformers' `encode` (batches of 32), ours in float32 and bfloat16;
         "least cosine" is to the peer's vectors
search   10 neighbours of 1,000 queries among 50,000 vectors of 384 numbers, exactly and in cells: Faiss's `search` alone, and our
         `nearest`, which leaves out what is of the query's own document; recall is against numpy's exact search
chunks   the chunk table of random documents: tokens a second
lookup   the neighbours of a sample of 2,048 tokens, 2 for each chunk of 64 with its continuation
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="a text file for chunks")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--chunks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="a folder where sentence-transformers is installed (pip install --target)")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(arguments)


def compare(contestants: dict[str, Callable], rounds: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of each, one after the other in every round, after a round that does not count."""
    seconds: dict[str, list] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, work in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: tuple(statistics.median(s[i] for s in list_[1:]) for i in (0, 1)) for name, list_ in seconds.items()}


def table(title: str, found: dict[str, tuple[float, float]], units: int, unit: str, notes: dict[str, str]) -> None:
    first = next(iter(found.values()))
    print(f"\n## {title}\n\n| contestant | CPU s | wall s | {unit}/CPU-s | times the first, by CPU | by wall | |\n|---|---|---|---|---|---|---|")
    for name, (cpu, wall) in found.items():
        print(f"| {name} | {cpu:.4g} | {wall:.4g} | {units / cpu:,.0f} | {first[0] / cpu:.2f} | {first[1] / wall:.2f} | {notes.get(name, '')} |", flush=True)


def embed(arguments) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from mt.retro.embed import Embedder
    from mt.train.convert.hf import minilm_directory

    torch.set_num_threads(1)
    words = Path(arguments.text).read_text(encoding="utf-8").split()
    texts = [" ".join(words[i : i + 48]) for i in range(0, 48 * arguments.chunks, 48)]
    torch_default = torch.backends.mkldnn.matmul.fp32_precision
    exact, narrow, peer = Embedder(), Embedder(bf16=True), SentenceTransformer(str(minilm_directory()), device="cpu")
    ours = torch.backends.mkldnn.matmul.fp32_precision
    vectors = {}

    def encode() -> None:
        torch.backends.mkldnn.matmul.fp32_precision = torch_default  # ours is a setting of the whole process
        vectors["sentence-transformers"] = peer.encode(texts, batch_size=32, normalize_embeddings=True)
        torch.backends.mkldnn.matmul.fp32_precision = ours

    contestants = {
        "sentence-transformers": encode,
        "mt, float32": lambda: vectors.update({"mt, float32": exact(texts)}),
        "mt, bfloat16": lambda: vectors.update({"mt, bfloat16": narrow(texts)}),
    }
    found = compare(contestants, arguments.rounds)
    cosine = {n: f"least cosine {(v * vectors['sentence-transformers']).sum(1).min():.7f}" for n, v in vectors.items()}
    table(f"Embedding {len(texts)} chunks", found, len(texts), "chunks", cosine)


def search(arguments) -> None:
    from mt.retro.index import (
        build_index,
        choose_ef_search,
        choose_nprobe,
        faiss_threads,
        nearest,
        open_index,
        training_sample,
    )

    random = np.random.default_rng(0)
    centers = random.standard_normal((3000, 48))
    latent = centers[random.integers(0, 3000, 50_000)] + 0.5 * random.standard_normal((50_000, 48))
    vectors = latent @ random.standard_normal((48, 384)) + 0.5 * random.standard_normal((50_000, 384))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[:: len(vectors) // 1000][:1000]
    own = np.column_stack([np.arange(1000), np.arange(1000) * 50, np.arange(1000) * 50 + 8])
    scores = (vectors**2).sum(1) - 2 * queries @ vectors.T
    exact = np.sort(np.argpartition(scores, 10, axis=1)[:, :10], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "block.npy", vectors)
        for spec in ("Flat", "IVF1024,Flat"):
            path, nprobe = Path(folder) / f"{spec}.faiss", choose_nprobe(spec)
            build_index(path, Path(f"{path}.trained"), spec, [Path(folder) / "block.npy"], training_sample(spec, [(len(vectors), 1)], None, 0), 1)
            index = open_index(path, nprobe, choose_ef_search(nprobe))
            contestants = {
                "Faiss, 20 neighbours": lambda index=index: faiss_threads(1)(index.search)(queries, 20),
                "mt, 10 outside the own document": lambda index=index: nearest(index, queries, 10, own),
            }
            ids = nearest(index, queries, 10, np.empty((0, 3), np.int64))[1]
            recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, exact)]) / 10
            table(f"Search, {spec}, nprobe {nprobe}: recall@10 {recall:.4f}", compare(contestants, arguments.rounds), 1000, "queries", {})


def _random_data(folder: str, documents: int, name: str = "data"):
    from mt.indexed.format import IndexedDataset, IndexedWriter

    random = np.random.default_rng(0)
    lengths = random.integers(50, 1000, documents)
    writer = IndexedWriter(Path(folder) / name, np.uint16, Path(folder) / "writing")
    writer.add(random.integers(1, 50000, int(lengths.sum())).astype(np.uint16), lengths, np.ones(documents, np.int64))
    writer.finish()
    return IndexedDataset(Path(folder) / name)


def chunks(arguments) -> None:
    from mt.retro.chunks import select_chunks, write_chunks

    with tempfile.TemporaryDirectory() as folder:
        data = [_random_data(folder, 100_000)]
        work = lambda: write_chunks(Path(folder) / "chunks.npy", data, select_chunks(data, 64, 0, None))
        table("The chunk table", compare({"mt": work}, arguments.rounds), len(data[0].tokens), "tokens", {})


def lookup(arguments) -> None:
    from mt.indexed.neighbors import Chunks
    from mt.retro.chunks import select_chunks, write_chunks

    with tempfile.TemporaryDirectory() as folder:
        data = [_random_data(folder, 100_000)]
        write_chunks(Path(folder) / "chunks.npy", data, select_chunks(data, 64, 0, None))
        read = Chunks(np.load(Path(folder) / "chunks.npy", mmap_mode="r"), data, 64, 0)
        ids = np.random.default_rng(1).integers(0, len(read), (1000, 32, 2))
        work = lambda: [read.tokens(i, continued=True) for i in ids]
        table("Neighbours of 1,000 samples of 2,048 tokens", compare({"mt": work}, arguments.rounds), 1000, "samples", {})


PARTS = {"embed": embed, "search": search, "chunks": chunks, "lookup": lookup}


if __name__ == "__main__":
    main()
