"""Compares the retrieval database with its peers: embedding, search, the chunk table and lookups.

    python benchmarks/retro.py --text any.txt
    python benchmarks/retro.py --text any.txt --only embed --peers /folder/with/sentence-transformers

Contestants run in turn, on one thread (those of `embed` each in its own process). Medians over the rounds of
CPU and wall seconds are printed.

- embed: chunks of about 64 tokens by all-MiniLM-L6-v2. sentence-transformers' `encode` (batches of 32), mt in
  float32 and bfloat16, and onnxruntime where the packages onnxruntime, onnx and sympy are installed (the
  model as its optimizer fuses it, batches of 8 of similar length, the best of 8, 16, 32 and 64). "products"
  are the encoder's matrix products alone, without attention's, with their GELU, as mt computes them: a bound
  for every ratio. "least cosine" is the smallest cosine to the peer's vectors.
- search: 10 neighbours of 1,000 queries among 50,000 vectors of 384 numbers, exact and approximate. Faiss's
  `search` alone against `nearest`, which excludes the query's own document; recall is relative to numpy's
  exact search.
- chunks: the chunk table of random documents, in tokens a second.
- lookup: neighbours of a sample of 2,048 tokens, 2 for each chunk of 64, with their continuations.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="a text file for chunks")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--chunks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers", help="a folder where sentence-transformers is installed (pip install --target)"
    )
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(arguments)


def timed(work: Callable) -> tuple[float, float]:
    """(CPU, wall) seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(
    contestants: dict[str, Callable], rounds: int, measure: Callable[[Callable], tuple[float, float]] = timed
) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of each contestant; all run in every round, after two warm-up rounds."""
    seconds: dict[str, list] = {name: [] for name in contestants}
    for _ in range(rounds + 2):
        for name, work in contestants.items():
            seconds[name].append(measure(work))
    return {
        name: tuple(statistics.median(s[i] for s in list_[2:]) for i in (0, 1))
        for name, list_ in seconds.items()
    }


def table(
    title: str, found: dict[str, tuple[float, float]], units: int, unit: str, notes: dict[str, str]
) -> None:
    first = next(iter(found.values()))
    print(
        f"\n## {title}\n\n| contestant | CPU s | wall s | {unit}/CPU-s | times the first, by CPU | by wall |"
        " |\n|---|---|---|---|---|---|---|"
    )
    for name, (cpu, wall) in found.items():
        print(
            f"| {name} | {cpu:.4g} | {wall:.4g} | {units / cpu:,.0f} | {first[0] / cpu:.2f} |"
            f" {first[1] / wall:.2f} | {notes.get(name, '')} |",
            flush=True,
        )


def embed(arguments) -> None:
    words = Path(arguments.text).read_text(encoding="utf-8").split()
    texts = [" ".join(words[i : i + 48]) for i in range(0, 48 * arguments.chunks, 48)]
    names = [
        "sentence-transformers",
        "mt, float32",
        "mt, bfloat16",
        "products, float32",
        "products, bfloat16",
    ]
    if all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx", "sympy")):
        names.append("onnxruntime")
    contestants, vectors = {}, {}
    for name in names:
        here, there = multiprocessing.Pipe()
        multiprocessing.get_context("spawn").Process(
            target=encode_when_asked, args=(name, texts, there, sys.path), daemon=True
        ).start()
        there.close()  # so that reading from an ended process ends too
        contestants[name] = functools.partial(ask, name, here, vectors)
    found = compare(contestants, arguments.rounds, measure=lambda contestant: contestant())
    cosine = {
        n: f"least cosine {(v * vectors['sentence-transformers']).sum(1).min():.7f}"
        for n, v in vectors.items()
        if v is not None
    }
    table(f"Embedding {len(texts)} chunks", found, len(texts), "chunks", cosine)


def ask(name: str, worker: Connection, vectors: dict) -> tuple[float, float]:
    """The seconds that a worker measured; its embeddings are stored in vectors."""
    worker.send(None)
    try:
        spent, vectors[name] = worker.recv()
    except EOFError:
        sys.exit(f"{name} has ended; see its message above")
    return spent


def encode_when_asked(name: str, texts: list[str], pipe: Connection, path: list[str]) -> None:
    """Runs one contestant in its own process: settings of the allocator and oneDNN are per process."""
    sys.path[:] = path
    import torch

    from mt.retro.embed import Embedder
    from mt.train.checkpoint.huggingface import minilm_directory

    torch.set_num_threads(1)
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        encode = functools.partial(
            SentenceTransformer(str(minilm_directory()), device="cpu").encode,
            batch_size=32,
            normalize_embeddings=True,
        )
    else:
        encode = (
            onnx_runtime(minilm_directory())
            if name == "onnxruntime"
            else Embedder(bf16=name.endswith("bfloat16"))
        )
        encode = products(encode) if name.startswith("products") else encode
    while True:
        pipe.recv()
        made = []
        pipe.send((timed(lambda made=made: made.append(encode(texts))), made[0]))


def products(embedder) -> Callable[[list[str]], None]:
    """A function that computes only the matrix products of embedding texts."""
    import torch

    from mt.retro.embed import TOKENS_PER_BATCH
    from mt.train.model.layers import Linear

    linears = [module for module in embedder.model.modules() if isinstance(module, Linear)]
    inputs = {
        m.weight.shape[1]: torch.randn(1, TOKENS_PER_BATCH, m.weight.shape[1], dtype=m.weight.dtype)
        for m in linears
    }

    @torch.inference_mode()
    def run(texts: list[str]) -> None:
        left = sum(map(len, embedder.encode(texts)))
        while left > 0:
            for linear in linears:
                linear(inputs[linear.weight.shape[1]][:, : min(left, TOKENS_PER_BATCH)])
            left -= TOKENS_PER_BATCH

    return run


def onnx_runtime(directory: Path) -> Callable[[list[str]], np.ndarray]:
    """texts -> (texts, D), by onnxruntime on one thread."""
    import onnxruntime
    import torch
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModel, AutoTokenizer

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = AutoModel.from_pretrained(directory).eval()

        def forward(self, ids, present):
            mask = (1.0 - present[:, None, None, :].float()) * -10000.0  # in the form that can be exported
            return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state

    tokenizer, options = AutoTokenizer.from_pretrained(directory), onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path, axes = f"{folder}/bert.onnx", {0: "batch", 1: "tokens"}
        torch.onnx.export(
            Hidden(),
            (torch.ones(2, 8, dtype=torch.int64),) * 2,
            path,
            dynamo=False,
            opset_version=17,
            input_names=["ids", "present"],
            output_names=["hidden"],
            dynamic_axes={name: axes for name in ("ids", "present", "hidden")},
        )
        optimize_model(path, model_type="bert", num_heads=12, hidden_size=384).save_model_to_file(path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(texts: list[str]) -> np.ndarray:
        tokens, vectors = tokenizer(texts)["input_ids"], np.zeros((len(texts), 384), np.float32)
        lengths = np.array([len(row) for row in tokens])
        order = np.argsort(-lengths, kind="stable")
        for rows in (order[i : i + 8] for i in range(0, len(order), 8)):
            ids, present = (np.zeros((len(rows), lengths[rows].max()), np.int64) for _ in range(2))
            for i, row in enumerate(rows):
                ids[i, : lengths[row]], present[i, : lengths[row]] = tokens[row], 1
            hidden = session.run(["hidden"], {"ids": ids, "present": present})[0]
            sums = (hidden * present[:, :, None]).sum(1)
            vectors[rows] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors

    return run


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
            build_index(
                path,
                Path(f"{path}.trained"),
                spec,
                [Path(folder) / "block.npy"],
                training_sample(spec, [(len(vectors), 1)], None, 0),
                1,
            )
            index = open_index(path, nprobe, choose_ef_search(nprobe))
            contestants = {
                "Faiss, 20 neighbours": lambda index=index: faiss_threads(1)(index.search)(queries, 20),
                "mt, 10 outside the own document": lambda index=index: nearest(index, queries, 10, own),
            }
            ids = nearest(index, queries, 10, np.empty((0, 3), np.int64))[1]
            recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, exact)]) / 10
            table(
                f"Search, {spec}, nprobe {nprobe}: recall@10 {recall:.4f}",
                compare(contestants, arguments.rounds),
                1000,
                "queries",
                {},
            )


def _random_data(folder: str, documents: int, name: str = "data"):
    from mt.indexed.format import IndexedDataset, IndexedWriter

    random = np.random.default_rng(0)
    lengths = random.integers(50, 1000, documents)
    writer = IndexedWriter(Path(folder) / name, np.uint16, Path(folder) / "writing")
    writer.add(
        random.integers(1, 50000, int(lengths.sum())).astype(np.uint16), lengths, np.ones(documents, np.int64)
    )
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
        table(
            "Neighbours of 1,000 samples of 2,048 tokens",
            compare({"mt": work}, arguments.rounds),
            1000,
            "samples",
            {},
        )


PARTS = {"embed": embed, "search": search, "chunks": chunks, "lookup": lookup}


if __name__ == "__main__":
    main()
