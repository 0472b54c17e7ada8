"""Builds a retrieval database from .bin/.idx pairs (`mt retro build-db`).

    chunks.npy       the chunk table; indexed/neighbors.py defines its rows
    index.faiss      the Faiss index of the chunks' embeddings
    neighbors.npy    (chunks, num_neighbors) int64: nearest chunks of every chunk, from other documents only
    tokenizer/       the tokenizer of the data, which decodes chunks
    manifest.json    settings, counts and `database` (DatabaseInfo in indexed/neighbors.py); written last
    parts/           blocks of embeddings and neighbours during the build; a resumed run computes at most one
                     block of each worker again

The bytes depend neither on the number of workers nor on kills in between. With --extend a database begins
with another one: its chunks keep their ids, and only new chunks are embedded if its index returns the old
vectors.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..core import manifest
from ..core.arrays import open_array
from ..core.config import UserError, check, configuration, option
from ..core.executor import Workers, once
from ..indexed.format import IndexedDataset
from ..indexed.gpt_dataset import DataConfig
from ..indexed.neighbors import (
    MAX_CHUNK_LENGTH,
    Chunks,
    DatabaseInfo,
    DataInfo,
    EmbedderInfo,
    open_data,
    open_table,
    read_database,
)
from ..tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from . import row_blocks
from .chunks import (
    Selection,
    check_data,
    chunk_texts,
    document_ranges,
    own_ranges,
    sample_texts,
    select_chunks,
    write_chunks,
)
from .embed import Embedder, open_same
from .index import (
    build_index,
    check_index,
    choose_ef_search,
    choose_index,
    choose_nprobe,
    index_bytes,
    is_lossless,
    nearest,
    search_seconds,
    stored_vectors,
    training_sample,
)
from .megatron_hdf5 import select_hdf5_chunks, write_hdf5_chunks


@configuration()
class BuildDbConfig(Workers):
    """The settings of `mt retro build-db`."""

    data_path: tuple[str, ...] = option(
        help=(
            "prefixes of .bin/.idx pairs, all with a weight before them or none; weights are the shares of"
            " the index's training sample"
        ),
        role="input",
    )
    output: str = option(help="directory for the database", role="output")
    extend: str | None = option(
        None, "a database to extend: --data-path is added to it, and --output gets both", role="input"
    )
    tokenizer: TokenizerConfig
    split: str = option(
        "1",
        "shares of the sequences for training, validation and test, as in training: the database takes only"
        " documents of the first",
    )
    chunk_length: int | None = option(None, "tokens in a chunk (default: 64, or the extended database's)")
    chunks_hdf5: str | None = option(
        None,
        "take the chunks from this db/merged/train.hdf5 of Megatron-LM, made from the same --data-path in the"
        " same order",
        role="input",
    )
    max_chunks: int | None = option(
        None, "take at most so many chunks, from documents spread evenly over the data (default: all)"
    )
    num_neighbors: int | None = option(
        None, "number of neighbours of each chunk (default: 20, or the extended database's)"
    )
    index: str | None = option(
        None,
        "Faiss index_factory string (default: Flat, which is exact, below 50,000 chunks, else IVFn,Flat, from"
        " 20 million on with PQ)",
    )
    index_train_chunks: int | None = option(
        None,
        "chunks that the index is trained on, a random sample (default: 64 for each of its centroids, at"
        " least 65,536)",
    )
    nprobe: int | None = option(
        None,
        "cells of an IVF index that a search visits (default: 6 times their root, at most a quarter of them,"
        " at least 16; of codes fewer)",
    )
    ef_search: int | None = option(
        None, "size of a search's candidate list in an HNSW graph (default: nprobe, at least 256)"
    )
    seed: int = option(1234, "seed of the sample that the index is trained on")
    bert_model: str | None = option(
        None,
        "directory of a Hugging Face BERT that embeds the chunks (default: the installed all-MiniLM-L6-v2)",
        role="input",
    )
    bf16: bool = option(
        False, "embed in bfloat16: up to three times as fast, at a cosine of 0.9998 to the vectors of float32"
    )
    dry_run: bool = option(
        False, "print counts, sizes and estimated times of the database, and write nothing", role="runtime"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = ("chunk_length", "max_chunks", "num_neighbors", "index_train_chunks", "nprobe", "ef_search")
        fixed = {
            n: getattr(self, n)
            for n in ("chunk_length", "index", "bert_model")
            if self.extend is not None and getattr(self, n) is not None
        }
        check(
            (bool(self.data_path), "data_path must name at least one prefix of a .bin/.idx pair"),
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 1,
                    f"{n} = {getattr(self, n)} must be at least 1",
                )
                for n in numbers
            ),
            (
                self.chunk_length is None or self.chunk_length <= MAX_CHUNK_LENGTH,
                f"chunk_length = {self.chunk_length} must be at most {MAX_CHUNK_LENGTH}",
            ),
            (
                not fixed,
                f"{', '.join(f'{n} = {v}' for n, v in fixed.items())}: an extended database keeps its own;"
                " leave them out, or build a new database",
            ),
            (
                self.chunks_hdf5 is None or (self.extend, self.max_chunks, self.split) == (None, None, "1"),
                "chunks_hdf5 determines all chunks; leave out --extend, --max-chunks and --split",
            ),
            (
                self.extend is None or Path(self.extend).resolve() != Path(self.output).resolve(),
                f"output = {self.output} is the database to extend; give another directory: the old one does"
                " not change",
            ),
        )
        if self.data_path:
            DataConfig(data_path=self.data_path, split=self.split).sources("train")


def build_db(config: BuildDbConfig) -> dict[str, Any]:
    """Builds a retrieval database; returns its manifest, or with dry_run the plan."""
    tokenizer = load(config.tokenizer)
    base = _Base.open(config.extend, tokenizer) if config.extend is not None else None
    sources = DataConfig(data_path=config.data_path, split=config.split).sources("train")
    data = [IndexedDataset(prefix) for _, prefix in sources]
    for dataset in data:
        check_data(dataset, tokenizer)
    known = base.database if base else None
    if base is None:
        embedder = Embedder(config.bert_model, config.bf16)
    else:
        embedder = open_same(base.database, None, base.root)
    chunk_length = known["chunk_length"] if known else config.chunk_length or 64
    if config.chunks_hdf5:
        selection = select_hdf5_chunks(config.chunks_hdf5, data, chunk_length)
    else:
        selection = select_chunks(data, chunk_length, tokenizer.eod, config.max_chunks, config.split)
    if not selection.chunks:
        raise UserError(
            f"{', '.join(d.prefix for d in data)}: has no token in {selection.documents_in:,} documents; give"
            " data with text"
        )
    index = known["index"] if known else config.index or choose_index(selection.chunks, embedder.dimension)
    if not known:
        check_index(index, selection.chunks, embedder.dimension)
    nprobe = config.nprobe or (known["nprobe"] if known else choose_nprobe(index))
    database = DatabaseInfo(
        data=[
            DataInfo(prefix=os.path.relpath(d.prefix, config.output), fingerprint=d.fingerprint)
            for d in [*(base.data if base else []), *data]
        ],
        chunk_length=chunk_length,
        pad_id=tokenizer.eod if tokenizer.eod is not None else 0,
        num_neighbors=config.num_neighbors or (known["num_neighbors"] if known else 20),
        index=index,
        nprobe=nprobe,
        ef_search=config.ef_search or (known["ef_search"] if known else choose_ef_search(nprobe)),
        embedder=(
            known["embedder"]
            if known
            else EmbedderInfo(
                directory=config.bert_model and os.path.abspath(config.bert_model),
                digest=embedder.digest,
                bf16=config.bf16,
            )
        ),
    )
    if config.dry_run:
        return _plan(data, tokenizer, selection, database, embedder, base, config.workers)

    inputs = [f"{d.prefix}.{suffix}" for d in data for suffix in ("bin", "idx")] + [
        f for f in (config.extend, config.chunks_hdf5) if f
    ]
    facts = {
        "tokenizer": tokenizer.fingerprint,
        "embedder": embedder.digest,
        "weights": [w for w, _ in sources],
    }
    run = manifest.begin("retro build-db", config, inputs, facts=facts)
    if run.finished:
        row_blocks.discard_parts(run.output)
        return run.manifest
    _build(run, config, database, base, data, tokenizer, selection, [w for w, _ in sources])
    files = [run.output / name for name in ("chunks.npy", "index.faiss", "neighbors.npy")] + sorted(
        (run.output / "tokenizer").iterdir()
    )
    total = selection.chunks + (base.chunks if base else 0)
    missing = row_blocks.count_missing(run.output / "neighbors.npy")
    counts = {
        "documents_in": selection.documents_in,
        "documents_outside_split": selection.outside_documents,
        "empty_documents": selection.empty_documents,
        "documents": selection.documents,
        "chunks_in": selection.chunks_in,
        "chunks_left_out": selection.chunks_in - selection.chunks,
        **({"chunks_extended": base.chunks} if base else {}),
        "chunks": total,
        "neighbors": total * database["num_neighbors"] - missing,
        "neighbors_missing": missing,
    }
    sealed = run.finish([manifest.record(f, run.output) for f in files], counts, database=database)
    row_blocks.discard_parts(run.output)
    return sealed


@dataclasses.dataclass(frozen=True)
class _Base:
    """The database that another one extends."""

    root: Path
    database: DatabaseInfo
    data: list[IndexedDataset]
    chunks: int

    @classmethod
    def open(cls, directory: str, tokenizer: Tokenizer) -> _Base:
        root = Path(directory)
        database = read_database(root)
        if row_blocks.open_tokenizer(directory).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{root}: was built with another tokenizer than the given one; give the files in"
                f" {root / 'tokenizer'}, and data that they made"
            )
        return cls(root, database, open_data(root, database["data"]), len(open_table(root)))


def _plan(
    data: list[IndexedDataset],
    tokenizer: Tokenizer,
    selection: Selection,
    database: DatabaseInfo,
    embedder: Embedder,
    base: _Base | None,
    workers: int,
) -> dict[str, Any]:
    """Counts, sizes and estimated times of a database: what dry_run prints."""
    before = base.chunks if base else 0
    total, neighbors = before + selection.chunks, database["num_neighbors"]
    sizes = {
        "chunks.npy": 16 * total,
        "index.faiss": index_bytes(database["index"], total, embedder.dimension),
        "neighbors.npy": 8 * neighbors * total,
        "parts/ (temporary)": (4 * embedder.dimension + 8 * neighbors) * total,
    }
    embedded = selection.chunks if is_lossless(database["index"]) else total
    texts = sample_texts(data, tokenizer, selection)
    embedder(texts)
    begun = time.perf_counter()
    embedder(texts)
    seconds = {
        "embedding": (time.perf_counter() - begun) / len(texts) * embedded / workers,
        "neighbours": (
            search_seconds(database["index"], database["nprobe"], total, total, embedder.dimension) / workers
        ),
    }
    rows = {
        "documents": (
            f"{selection.documents:,} of {selection.documents_in:,} ({selection.empty_documents:,} are empty,"
            f" {selection.outside_documents:,} outside the split)"
        ),
        "chunks": (
            f"{selection.chunks:,} of {selection.chunks_in:,}"
            + (f", after {before:,} of {base.root}" if base else "")
        ),
        "index": f"{database['index']}, nprobe {database['nprobe']}",
        **{name: f"{size / 1e6:,.1f} MB" for name, size in sizes.items()},
        **{name: f"about {value:,.0f} s on {workers} workers" for name, value in seconds.items()},
    }
    width = max(map(len, rows))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
    return {
        "text": text,
        "selection": dataclasses.asdict(selection),
        "index": database["index"],
        "bytes": sizes,
        "seconds": seconds,
    }


# --- building, block by block


@dataclasses.dataclass(frozen=True)
class _BuildTask:
    """The arguments of a worker: the database that is being built. Hashable, for `cached_in_worker`."""

    root: str
    prefixes: tuple[str, ...]
    base: str | None  # the database that it extends
    base_chunks: int
    database: DatabaseInfo = dataclasses.field(hash=False)
    key: str  # of the run, so that a worker which outlives a build opens the files of the next one


def _build(
    run: manifest.Run,
    config: BuildDbConfig,
    database: DatabaseInfo,
    base: _Base | None,
    data: list[IndexedDataset],
    tokenizer: Tokenizer,
    selection: Selection,
    weights: list[float | None],
) -> None:
    """Writes chunks.npy, index.faiss and neighbors.npy, each unless an earlier process has."""
    root, before = run.output, base.chunks if base else 0
    total = before + selection.chunks

    def write_table() -> None:
        tokenizer.save(root / "tokenizer")
        if config.chunks_hdf5:
            write_hdf5_chunks(root / "chunks.npy", config.chunks_hdf5, data, selection)
        else:
            table = open_table(base.root) if base else None
            write_chunks(root / "chunks.npy", data, selection, table, len(base.data) if base else 0)

    prefixes = tuple(d.prefix for d in [*(base.data if base else []), *data])
    task = _BuildTask(str(root), prefixes, str(base.root) if base else None, before, database, run.key)

    def map_blocks(make: Callable[..., np.ndarray], name: str) -> list[Path]:
        return row_blocks.map_blocks(
            functools.partial(make, task=task),
            total,
            row_blocks.block_size(total),
            root / "parts" / name,
            label=f"retro build-db: {name}",
            where=config.where,
        )

    def write_index() -> None:
        begin = (base.root / "index.faiss", before) if base else None
        sample = None
        if base is None:
            parts = _parts(root, weights)
            sample = training_sample(database["index"], parts, config.index_train_chunks, config.seed)
        build_index(
            root / "index.faiss",
            root / "parts" / "trained.faiss",
            database["index"],
            embeddings,
            sample,
            config.workers,
            base=begin,
        )

    def write_neighbors() -> None:
        row_blocks.join_blocks(blocks, root / "neighbors.npy", (total, database["num_neighbors"]))

    once(write_table, root / "parts", "chunks")
    embeddings = map_blocks(_embed_block, "embeddings")
    once(write_index, root / "parts", "index")
    blocks = map_blocks(_search_block, "neighbors")
    once(write_neighbors, root / "parts", "joined")


def _parts(root: Path, weights: list[float | None]) -> list[tuple[int, float]]:
    """(number of chunks, weight) of every dataset; without weights the size is the weight."""
    table = open_table(root)
    firsts = document_ranges(table, np.array([(number, 0) for number in range(len(weights) + 1)]))[:, 0]
    sizes = np.diff(firsts).tolist()
    return [(size, size if weight is None else weight) for size, weight in zip(sizes, weights)]


def _embed_block(start: int, stop: int, *, task: _BuildTask) -> np.ndarray:
    """The embeddings of chunks [start, stop): (n, dimension) float32."""
    database, parts = task.database, []
    # the end of the chunks in this block whose vectors the extended index returns
    known = min(max(start, task.base_chunks if is_lossless(database["index"]) else 0), stop)
    if start < known:
        assert task.base is not None, "only an extended database has such chunks"
        old = row_blocks.open_search_index(task.base, database["nprobe"], database["ef_search"])
        parts.append(stored_vectors(old, start, known))
    if known < stop:
        embedder = row_blocks.open_embedder(database["embedder"]["directory"], database["embedder"]["bf16"])
        tokenizer = row_blocks.open_tokenizer(task.root)
        parts.append(embedder(chunk_texts(_chunks(task), tokenizer, np.arange(known, stop))))
    return np.concatenate(parts)


def _search_block(start: int, stop: int, *, task: _BuildTask) -> np.ndarray:
    """The neighbours of chunks [start, stop): (n, num_neighbors) int64."""
    block = row_blocks.block_path(Path(task.root) / "parts" / "embeddings", start, stop)
    vectors = open_array(block, "<f4", (stop - start, None))
    own = own_ranges(_chunks(task).table, start, stop)
    database = task.database
    index = row_blocks.open_search_index(
        task.root, database["nprobe"], database["ef_search"], vectors.shape[1]
    )
    return nearest(index, vectors, task.database["num_neighbors"], own)[1]


@row_blocks.cached_in_worker
def _chunks(task: _BuildTask) -> Chunks:
    return Chunks(
        open_table(task.root),
        [IndexedDataset(p) for p in task.prefixes],
        task.database["chunk_length"],
        task.database["pad_id"],
    )
