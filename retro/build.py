"""indexed tokens -> retrieval database: chunks, embeddings, index, neighbours; and queries to it.

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
from ..executor import default_workers, map_shards
from ..indexed.format import IndexedDataset
from ..indexed.neighbors import Chunks, Database, open_data, read_database
from ..tokenizer import Tokenizer, TokenizerConfig, load, load_directory
from .chunks import Selection, own_ranges, select_chunks, write_chunks, write_npy_header
from .embed import Embedder
from .index import build_index, check_index, choose_index, choose_nprobe, index_bytes, nearest, open_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildDbConfig:
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
    workers: int = option(default_workers(), "processes", role="runtime")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        numbers = ("chunk_length", "max_chunks", "num_neighbors", "nprobe", "workers")
        check(
            (bool(self.data_path), "data_path must name at least one prefix of a .bin/.idx pair"),
            *((getattr(self, n) is None or getattr(self, n) >= 1, f"{n} = {getattr(self, n)} must be at least 1") for n in numbers),
        )


def build_db(config: BuildDbConfig) -> dict:
    """Builds a retrieval database; returns its manifest, or with dry_run what would be built."""
    tokenizer = load(config.tokenizer)
    data = _open_data(config.data_path, tokenizer)
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
    _build(run.output, database, data, tokenizer, selection, config.workers)
    missing = sum(int((part < 0).sum()) for part in _pieces(np.load(run.output / "neighbors.npy", mmap_mode="r")))
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


def _open_data(prefixes: tuple[str, ...], tokenizer: Tokenizer) -> list[IndexedDataset]:
    """The datasets; raises UserError where a manifest, or a token among the first million, says that another tokenizer made one.

    Every other token is looked at when its chunk is embedded.
    """
    data = [IndexedDataset(prefix) for prefix in prefixes]
    for dataset in data:
        _check_tokens(dataset.tokens[: 1 << 20], tokenizer, dataset.prefix)
        made = (manifest.manifest_of(f"{dataset.prefix}.bin") or {}).get("tokenizer")
        if isinstance(made, dict) and made.get("fingerprint") != tokenizer.fingerprint:
            raise UserError(f"{dataset.prefix}: was tokenised with another tokenizer than the one given; give the same tokenizer files")
    return data


def _check_tokens(tokens: np.ndarray, tokenizer: Tokenizer, place: str) -> None:
    largest = int(tokens.max(initial=0))
    if largest >= tokenizer.vocab_size:
        raise UserError(f"{place}: has the token {largest}, but the tokenizer has only {tokenizer.vocab_size:,}; give the tokenizer that made the data")


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
    block_size: int  # chunks


def _build(root: Path, database: Database, data: list[IndexedDataset], tokenizer: Tokenizer, selection: Selection, workers: int) -> None:
    """Each step leaves a whole file and is skipped when it is there; `parts` goes when nothing needs it any more."""
    if not (root / "chunks.npy").exists():
        tokenizer.save(root / "tokenizer")
        write_chunks(root / "chunks.npy", data, selection)
    work = _Work(
        str(root), tuple(d.prefix for d in data), database["embedder"]["directory"], database["chunk_length"],
        database["pad_id"], database["num_neighbors"], database["nprobe"], _block_size(selection.chunks),
    )
    if not (root / "neighbors.npy").exists():
        embeddings = _map_blocks(_embed_block, work, "embeddings", selection.chunks, workers)
        if not (root / "index.faiss").exists():
            build_index(root / "index.faiss", root / "parts" / "trained.faiss", database["index"], embeddings, selection.chunks, workers)
        neighbors = _map_blocks(_search_block, work, "neighbors", selection.chunks, workers)
        with manifest.atomic_write(root / "neighbors.npy") as file:
            write_npy_header(file, np.dtype("<i8"), (selection.chunks, database["num_neighbors"]))
            for block in neighbors:
                file.write(np.load(block).tobytes())
    shutil.rmtree(root / "parts", ignore_errors=True)


def _block_size(num_chunks: int) -> int:
    """Chunks in a block: a power of two that makes some 64 blocks, from 128 (a second or two of work) to 16,384."""
    return min(max(128, 1 << (num_chunks // 64).bit_length()), 16384)


def _map_blocks(function, work: _Work, name: str, num_chunks: int, workers: int) -> list[Path]:
    """Runs `function(first chunk, past the last, work)` -> array over the blocks; returns their files in order."""
    folder = Path(work.root) / "parts" / name
    for marker in (folder / "done").glob("*.json"):
        made = manifest.read_json(marker)
        path = folder / made["name"]
        if not path.exists() or path.stat().st_size != made["bytes"]:
            marker.unlink()  # a block that was cut short since: it is made again
    bounds = [(start, min(start + work.block_size, num_chunks)) for start in range(0, num_chunks, work.block_size)]
    make = functools.partial(_make_block, function=function, folder=str(folder), work=work)
    try:
        made = map_shards(make, bounds, done=folder / "done", workers=workers, label=f"retro build-db: {name}")
    finally:
        for opened in (_chunks, _tokenizer, _embedder, _index):
            opened.cache_clear()  # one worker is this process: a later build in it must not find this one's files
    return [folder / m["name"] for m in made]


def _make_block(bounds: tuple[int, int], *, function, folder: str, work: _Work) -> dict:
    path = Path(folder) / f"{bounds[0]:012d}-{bounds[1]:012d}.npy"
    with manifest.atomic_write(path) as file:
        np.save(file, function(*bounds, work))
    return {"name": path.name, "bytes": path.stat().st_size}


def _embed_block(start: int, stop: int, work: _Work) -> np.ndarray:
    """Vectors of chunks [start, stop): (n, dimension) float32."""
    chunks, tokenizer, embedder = _chunks(work), _tokenizer(work.root), _embedder(work.bert_model)
    return embedder(chunk_texts(chunks, tokenizer, np.arange(start, stop)))


def _search_block(start: int, stop: int, work: _Work) -> np.ndarray:
    """Neighbours of chunks [start, stop): (n, num_neighbors) int64."""
    vectors = np.load(Path(work.root) / "parts" / "embeddings" / f"{start:012d}-{stop:012d}.npy")
    own = own_ranges(_chunks(work).table, start, stop, work.chunk_length)
    return nearest(_index(work.root, work.nprobe), vectors, work.num_neighbors, own)[1]


# What a worker process opens once for all its blocks.


@functools.cache
def _chunks(work: _Work) -> Chunks:
    table = np.load(Path(work.root) / "chunks.npy", mmap_mode="r")
    return Chunks(table, [IndexedDataset(p) for p in work.prefixes], work.chunk_length, work.pad_id)


@functools.cache
def _tokenizer(root: str) -> Tokenizer:
    return load_directory(Path(root) / "tokenizer")


@functools.cache
def _embedder(directory: str | None) -> Embedder:
    return Embedder(directory)


@functools.cache
def _index(root: str, nprobe: int):
    return open_index(Path(root) / "index.faiss", nprobe)


def chunk_texts(chunks: Chunks, tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The texts of chunks, without end-of-document tokens; raises UserError for a token that the tokenizer does not know."""
    tokens, mask = chunks.tokens(ids)
    _check_tokens(tokens, tokenizer, ", ".join(d.prefix for d in chunks.data))
    if tokenizer.eod is not None:
        mask &= tokens != tokenizer.eod
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, mask)]


def _pieces(array: np.ndarray, rows: int = 1 << 16):
    return (array[i : i + rows] for i in range(0, len(array), rows))


# --- queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """The settings of `mt retro query`."""

    POSITIONAL = "text"

    db: str = option(help="a database that `mt retro build-db` made", role="input")
    text: tuple[str, ...] = option((), "texts to look up")
    chunk: tuple[int, ...] = option((), "numbers of chunks to look up; their own documents are left out")
    num_neighbors: int = option(5, "neighbours to show")
    data_path: tuple[str, ...] = option((), "where the data of the database lie now, if they have moved", role="input")
    bert_model: str | None = option(None, "where the BERT of the database lies now, if it has moved", role="input")

    def __post_init__(self):
        check(
            (bool(self.text or self.chunk), "there is nothing to look up; give --text or --chunk"),
            (self.num_neighbors >= 1, f"num_neighbors = {self.num_neighbors} must be at least 1"),
        )


def query(config: QueryConfig) -> dict:
    """The nearest chunks of texts and of chunks: `queries`, each with its text and neighbours, and a table as `text`."""
    root = Path(config.db)
    database = read_database(root)
    table = np.load(root / "chunks.npy", mmap_mode="r")
    chunks = Chunks(table, open_data(root, database, config.data_path), database["chunk_length"], database["pad_id"])
    wrong = [n for n in config.chunk if not 0 <= n < len(table)]
    if wrong:
        raise UserError(f"chunk {wrong[0]}: {root} has the chunks 0 to {len(table) - 1:,}")
    embedder = Embedder(config.bert_model or database["embedder"]["directory"])
    if embedder.digest != database["embedder"]["digest"]:
        raise UserError(f"{embedder.directory}: is not the model that made the vectors of {root}; name that one with --bert-model")
    tokenizer = load_directory(root / "tokenizer")
    texts = [*config.text, *chunk_texts(chunks, tokenizer, np.array(config.chunk, np.int64))]
    ranges = [(0, 0)] * len(config.text) + [tuple(own_ranges(table, n, n + 1, chunks.chunk_length)[0]) for n in config.chunk]
    index = open_index(root / "index.faiss", database["nprobe"])
    distances, ids = nearest(index, embedder(texts), config.num_neighbors, np.array(ranges, np.int64))
    found = chunk_texts(chunks, tokenizer, ids.ravel())
    queries = [
        {
            **({"chunk": config.chunk[i - len(config.text)]} if i >= len(config.text) else {}),
            "text": text,
            "neighbors": [
                {
                    "chunk": int(ids[i, j]), "distance": round(float(distances[i, j]), 6),
                    "data": chunks.data[row["dataset"]].prefix, "document": int(row["document"]),
                    "start": int(row["start"]), "end": int(row["end"]), "text": found[i * ids.shape[1] + j],
                }
                for j in range(ids.shape[1]) if ids[i, j] >= 0
                for row in [table[ids[i, j]]]
            ],
        }
        for i, text in enumerate(texts)
    ]
    return {"text": "\n\n".join(map(_table, queries)), "queries": queries}


def _table(found: dict) -> str:
    columns = shutil.get_terminal_size((120, 24)).columns
    name = f"chunk {found['chunk']}: " if "chunk" in found else ""
    lines = [f"{name}{_line(found['text'])}"[:columns], f"{'distance':>9} {'chunk':>9} {'document':>9}  text"]
    for n in found["neighbors"]:
        lines.append(f"{n['distance']:>9.4f} {n['chunk']:>9} {n['document']:>9}  {_line(n['text'])}"[:columns])
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())
