"""indexed tokens -> retrieval database: chunks, embeddings, index, neighbours.

    chunks.npy       the chunk table (indexed/neighbors.py says what its rows are)
    index.faiss      the Faiss index of the chunks' vectors
    neighbors.npy    (chunks, num_neighbors) int64: the nearest chunks of every chunk, never from its own document
    tokenizer/       the tokenizer of the data, for turning chunks into text
    manifest.json    settings, counts and the fact `database` (indexed/neighbors.py: Database); written last
    parts/           blocks of embeddings and neighbours while it is built: a killed run redoes one block a worker

Bytes depend neither on the number of workers nor on kills in between.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import numpy as np

from .. import manifest
from ..config import UserError, check, option
from ..executor import Workers
from ..indexed.format import IndexedDataset
from ..indexed.neighbors import Chunks, Database
from ..tokenizer import Tokenizer, TokenizerConfig, load
from .blocks import (
    block_path,
    block_size,
    count_missing,
    join_blocks,
    map_blocks,
    once,
    open_embedder,
    open_searched,
    open_tokenizer,
)
from .chunks import Selection, check_data, chunk_texts, own_ranges, select_chunks, write_chunks
from .embed import Embedder
from .index import build_index, check_index, choose_index, choose_nprobe, index_bytes, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildDbConfig(Workers):
    """The settings of `mt retro build-db`."""

    data_path: tuple[str, ...] = option(help="prefixes of .bin/.idx pairs", role="input")
    output: str = option(help="directory for the database", role="output")
    tokenizer: TokenizerConfig
    chunk_length: int = option(64, "tokens in a chunk")
    max_chunks: int | None = option(None, "take at most so many chunks, from documents spread evenly over the data (default: all)")
    num_neighbors: int = option(20, "neighbours to keep for each chunk")
    index: str | None = option(None, "Faiss index_factory string (default: Flat, which is exact, below 50,000 chunks, else IVFn,Flat)")
    nprobe: int | None = option(None, "cells of an IVF index that a search visits (default: an eighth of them, at least 16)")
    bert_model: str | None = option(None, "directory of a Hugging Face BERT that makes the vectors (default: the installed all-MiniLM-L6-v2)", role="input")
    dry_run: bool = option(False, "print what would be built and its sizes, and write nothing", role="runtime")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        numbers = ("chunk_length", "max_chunks", "num_neighbors", "nprobe")
        check(
            (bool(self.data_path), "data_path must name at least one prefix of a .bin/.idx pair"),
            *((getattr(self, n) is None or getattr(self, n) >= 1, f"{n} = {getattr(self, n)} must be at least 1") for n in numbers),
        )


def build_db(config: BuildDbConfig) -> dict:
    """Builds a retrieval database; returns its manifest, or with dry_run what would be built."""
    tokenizer = load(config.tokenizer)
    data = [IndexedDataset(prefix) for prefix in config.data_path]
    for dataset in data:
        check_data(dataset, tokenizer)
    embedder = Embedder(config.bert_model)
    selection = select_chunks(data, config.chunk_length, tokenizer.eod, config.max_chunks)
    if not selection.chunks:
        raise UserError(f"{', '.join(config.data_path)}: holds no token, in {selection.documents_in:,} documents; give data with text")
    index = config.index or choose_index(selection.chunks)
    check_index(index, selection.chunks, embedder.dimension)
    if config.dry_run:
        return _plan(selection, index, embedder.dimension, config.num_neighbors)

    files = [f"{prefix}.{suffix}" for prefix in config.data_path for suffix in ("bin", "idx")]
    run = manifest.begin("retro build-db", config, files, facts={"tokenizer": tokenizer.fingerprint, "embedder": embedder.digest})
    if run.finished:
        return run.manifest
    database = Database(
        data=[{"prefix": os.path.relpath(d.prefix, run.output), "fingerprint": d.fingerprint} for d in data],
        chunk_length=config.chunk_length,
        pad_id=tokenizer.eod if tokenizer.eod is not None else 0,
        num_neighbors=config.num_neighbors,
        index=index,
        nprobe=config.nprobe or choose_nprobe(index),
        embedder={"directory": config.bert_model and os.path.abspath(config.bert_model), "digest": embedder.digest},
    )
    _build(run, database, data, tokenizer, selection, config.where)
    missing = count_missing(run.output / "neighbors.npy")
    files = [run.output / name for name in ("chunks.npy", "index.faiss", "neighbors.npy")] + sorted((run.output / "tokenizer").iterdir())
    counts = {
        "documents_in": selection.documents_in,
        "empty_documents": selection.empty_documents,
        "documents": selection.documents,
        "chunks_in": selection.chunks_in,
        "chunks_left_out": selection.chunks_in - selection.chunks,
        "chunks": selection.chunks,
        "neighbors": selection.chunks * config.num_neighbors - missing,
        "neighbors_missing": missing,
    }
    return run.finish([manifest.record(f, run.output) for f in files], counts, database=database)


def _plan(selection: Selection, index: str, dimension: int, num_neighbors: int) -> dict:
    sizes = {
        "chunks.npy": 16 * selection.chunks,
        "index.faiss": index_bytes(index, selection.chunks, dimension),
        "neighbors.npy": 8 * num_neighbors * selection.chunks,
        "parts/ (while it is built)": (4 * dimension + 8 * num_neighbors) * selection.chunks,
    }
    rows = {
        "documents": f"{selection.documents:,} of {selection.documents_in:,} ({selection.empty_documents:,} are empty)",
        "chunks": f"{selection.chunks:,} of {selection.chunks_in:,}",
        "index": index,
        **{name: f"{size / 1e6:,.1f} MB" for name, size in sizes.items()},
    }
    width = max(map(len, rows))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
    return {"text": text, "selection": dataclasses.asdict(selection), "index": index, "bytes": sizes}


# --- building, block by block


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a worker needs to open the database that is being built."""

    root: str
    prefixes: tuple[str, ...]
    bert_model: str | None
    chunk_length: int
    pad_id: int
    num_neighbors: int
    nprobe: int
    key: str  # of the run: where a worker outlives a build, the next one opens its own files


def _build(run: manifest.Run, database: Database, data: list[IndexedDataset], tokenizer: Tokenizer, selection: Selection, where: dict) -> None:
    """Each step leaves a whole file and is skipped when it is there; `parts` goes when nothing needs it any more."""
    root = run.output
    if not (root / "chunks.npy").exists():
        tokenizer.save(root / "tokenizer")
        write_chunks(root / "chunks.npy", data, selection)
    if not (root / "neighbors.npy").exists():
        work = _Work(
            str(root), tuple(d.prefix for d in data), database["embedder"]["directory"], database["chunk_length"],
            database["pad_id"], database["num_neighbors"], database["nprobe"], run.key,
        )

        def blocks(make, name: str) -> list[Path]:
            make = functools.partial(make, work=work)
            return map_blocks(make, selection.chunks, block_size(selection.chunks), root / "parts" / name, label=f"retro build-db: {name}", where=where)

        embeddings = blocks(_embed_block, "embeddings")
        if not (root / "index.faiss").exists():
            build_index(root / "index.faiss", root / "parts" / "trained.faiss", database["index"], embeddings, selection.chunks, where["workers"])
        join_blocks(blocks(_search_block, "neighbors"), root / "neighbors.npy", (selection.chunks, database["num_neighbors"]))
    shutil.rmtree(root / "parts", ignore_errors=True)


def _embed_block(start: int, stop: int, *, work: _Work) -> np.ndarray:
    """Vectors of chunks [start, stop): (n, dimension) float32."""
    chunks, tokenizer, embedder = _chunks(work), open_tokenizer(work.root), open_embedder(work.bert_model)
    return embedder(chunk_texts(chunks, tokenizer, np.arange(start, stop)))


def _search_block(start: int, stop: int, *, work: _Work) -> np.ndarray:
    """Neighbours of chunks [start, stop): (n, num_neighbors) int64."""
    vectors = np.load(block_path(Path(work.root) / "parts" / "embeddings", start, stop))
    own = own_ranges(_chunks(work).table, start, stop, work.chunk_length)
    return nearest(open_searched(work.root, work.nprobe), vectors, work.num_neighbors, own)[1]


@once
def _chunks(work: _Work) -> Chunks:
    table = np.load(Path(work.root) / "chunks.npy", mmap_mode="r")
    return Chunks(table, [IndexedDataset(p) for p in work.prefixes], work.chunk_length, work.pad_id)
