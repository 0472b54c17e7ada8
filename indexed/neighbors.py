"""Retro neighbours of a sample.

Reads what `mt retro build-db` made, memory-mapped: no file is opened and no loop runs per chunk.

    chunks.npy      (N,) CHUNK        which tokens are chunk i; a document's chunks have consecutive ids
    neighbors.npy   (N, k) int64      ids of each chunk's nearest chunks, nearest first, -1 where there are fewer
    manifest.json   facts.database    see `Database`

A neighbour is read with its continuation, the next chunk of the same document (Retro, Borgeaud et al. 2022, section
2.3). Megatron-LM continues into whatever document comes next and takes chunk N-1 for a missing neighbour; here both
are padding, and masked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..config import UserError
from ..manifest import manifest_of
from .format import IndexedDataset

# Tokens [start, end) of a document of a dataset (its number in the order of --data-path).
CHUNK = np.dtype([("dataset", "<u4"), ("document", "<u4"), ("start", "<u4"), ("end", "<u4")])


class Database(TypedDict):
    """What a reader must know of a retrieval database: the fact `database` in its manifest."""

    data: list[dict]  # {"prefix": relative to the database's directory, "fingerprint"} of every dataset
    chunk_length: int  # tokens
    pad_id: int  # what fills short chunks and missing neighbours
    num_neighbors: int  # kept for each chunk
    index: str  # Faiss factory string
    nprobe: int  # cells that a search visits, where the index has cells
    embedder: dict  # {"directory": of the model that made the vectors, None for the default one, "digest": of its files}


class Neighbors:
    """The neighbours of every chunk of a database, as tokens.

    directory: the output of `mt retro build-db`. data_path: where its .bin/.idx pairs lie now, if they have moved.
    Raises UserError when the database is not finished, or when the data are not those that it was built from.
    """

    def __init__(self, directory: str | Path, data_path: Sequence[str] = ()):
        directory = Path(directory)
        self.database = read_database(directory)
        self.chunks = Chunks(
            np.load(directory / "chunks.npy", mmap_mode="r"),
            open_data(directory, self.database, data_path),
            self.database["chunk_length"],
            self.database["pad_id"],
        )
        self.ids = np.load(directory / "neighbors.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, chunk_ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest neighbours of chunks, each followed by its continuation.

        chunk_ids: (n,). Returns tokens (n, k, 2 * chunk_length) int64 and a mask of the same shape, True where
        there is a token: a missing neighbour is all False, and so is a continuation past the end of a document.
        """
        if not 1 <= k <= self.ids.shape[1]:
            raise UserError(f"{k} neighbours are asked for, but the database keeps {self.ids.shape[1]}; rebuild it with --num-neighbors {k}")
        return self.chunks.tokens(self.ids[np.asarray(chunk_ids), :k], continued=True)


class Chunks:
    """The token ids of a database's chunks.

    table: (N,) CHUNK. data: the datasets in the table's order.
    """

    def __init__(self, table: np.ndarray, data: Sequence[IndexedDataset], chunk_length: int, pad_id: int):
        self.table, self.data, self.chunk_length, self.pad_id = table, data, chunk_length, pad_id

    def __len__(self) -> int:
        return len(self.table)

    def tokens(self, ids: np.ndarray, continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (*ids.shape, chunk_length) int64 and their mask, False for padding; an id of -1 is all padding.

        continued: the next chunk of the same document follows (twice the width); it lies right behind in the .bin.
        """
        shape, ids = np.shape(ids), np.ravel(ids)
        rows = self.table[np.maximum(ids, 0)]
        ends = rows["end"].astype(np.int64)
        if continued:
            following = self.table[np.minimum(ids + 1, len(self) - 1)]
            # Another document begins at 0, and no chunk ends there.
            ends = np.where(following["start"] == rows["end"], following["end"], ends)
        lengths = np.where(ids < 0, 0, ends - rows["start"])
        width = self.chunk_length * (2 if continued else 1)
        columns = np.arange(width)
        mask = columns < lengths[:, None]
        tokens = np.full(mask.shape, self.pad_id, np.int64)
        for number, dataset in enumerate(self.data):
            own = np.flatnonzero((rows["dataset"] == number) & (lengths > 0))
            if len(own):
                first = document_offsets(dataset, rows["document"][own].astype(np.int64)) + rows["start"][own]
                there = mask[own]
                tokens[own] = np.where(there, dataset.tokens[np.where(there, first[:, None] + columns, first[:, None])], self.pad_id)
        return tokens.reshape(*shape, width), mask.reshape(*shape, width)


def document_offsets(dataset: IndexedDataset, documents: np.ndarray) -> np.ndarray:
    """Where documents begin in a .bin, in tokens; the number of documents itself gives the end of the last. (n,) int64."""
    sequences = dataset.document_indices[documents]
    offsets = np.full(len(sequences), len(dataset.tokens), np.int64)
    inside = sequences < len(dataset)
    offsets[inside] = dataset.pointers[sequences[inside]] // dataset.dtype.itemsize
    return offsets


def read_database(directory: Path) -> Database:
    """What the manifest says of a finished database; raises UserError when there is none, or a file of it is not whole."""
    manifest = manifest_of(directory) if directory.is_dir() else None
    if manifest is None or "database" not in manifest:
        raise UserError(f"{directory}: is not a finished retrieval database; make one with `mt retro build-db --output {directory}`")
    for output in manifest["outputs"]:
        path = directory / output["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != output["bytes"]:
            raise UserError(f"{path}: has {size:,} bytes where the manifest promises {output['bytes']:,}; run the command that built the database again")
    return manifest["database"]


def open_data(directory: Path, database: Database, data_path: Sequence[str] = ()) -> list[IndexedDataset]:
    """A database's datasets, checked to be the ones that it was built from."""
    known = database["data"]
    if data_path and len(data_path) != len(known):
        raise UserError(f"{directory}: was built from --data-path of length {len(known)}, not {len(data_path)}; name the same data in the same order")
    prefixes = data_path or [os.path.normpath(directory / d["prefix"]) for d in known]
    data = []
    for prefix, expected in zip(prefixes, known, strict=True):
        if not Path(f"{prefix}.idx").exists():
            raise UserError(f"{prefix}.idx: no such file, but the database {directory} was built from it; say where the data are now with --data-path")
        dataset = IndexedDataset(prefix)
        if dataset.fingerprint != expected["fingerprint"]:
            raise UserError(f"{prefix}: is not the data that the database {directory} was built from; name those with --data-path, or build the database again")
        data.append(dataset)
    return data
