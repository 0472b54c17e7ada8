"""Retro neighbours of a sample.

Reads what `mt retro build-db` and `mt retro neighbors` made, memory-mapped: no file is opened and no loop
runs per chunk. A database:

    chunks.npy      (N,) CHUNK        which tokens are chunk i; a document's chunks have consecutive ids
    neighbors.npy   (N, k) int64      ids of each chunk's nearest chunks, nearest first, -1 where there are
        fewer
    manifest.json   facts.database    see `Database`

and the neighbours of the samples that a training run draws:

    train.npy, valid.npy, test.npy    (samples, chunks of a sample, k) int64, likewise
    manifest.json   facts.samples     see `Samples`

A neighbour is read with its continuation, the next chunk of the same document (Retro, Borgeaud et al. 2022,
section 2.3). Megatron-LM continues into whatever document comes next and takes chunk N-1 for a missing
neighbour; here both are padding, and masked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import xxhash

from ..core.config import UserError
from ..core.manifest import manifest_of
from .format import IndexedDataset
from .gpt_dataset import BlendedDataset, GPTDataset

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
    ef_search: int  # how far a search looks around in a graph, where the index has one
    # {"directory": of the model that made the vectors, None for the default one, "digest": of its files,
    # "bf16"}
    embedder: dict


class Neighbors:
    """The neighbours of every chunk of a database, as tokens.

    directory: the output of `mt retro build-db`. data_path: where its .bin/.idx pairs lie now, if they have
    moved. Raises UserError when the database is not finished, or when the data are not those that it was
    built from.
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

        chunk_ids: (n,). Returns tokens (n, k, 2 * chunk_length) int64 and a mask of the same shape, True
        where there is a token: a missing neighbour is all False, and so is a continuation past the end of a
        document.
        """
        if not 1 <= k <= self.ids.shape[1]:
            raise UserError(
                f"{k} neighbours are asked for, but the database keeps {self.ids.shape[1]}; rebuild it with"
                f" --num-neighbors {k}"
            )
        return self.chunks.tokens(self.ids[np.asarray(chunk_ids), :k], continued=True)


class Split(TypedDict):
    """What decides the samples of a split, and how many of them have neighbours."""

    samples: int
    data: list[str]  # fingerprints of the .bin/.idx pairs
    sequences: list[list[int]]  # [first, past the last) of each pair
    seq_length: int  # tokens of a sample
    order: str  # digest of the order of the samples, where all the others are equal


class Samples(TypedDict):
    """What a reader must know of samples' neighbours: the fact `samples` in their manifest."""

    database: str  # relative to the directory of the neighbours
    database_key: str  # of the database's manifest
    num_neighbors: int  # kept for each chunk
    splits: dict[str, Split]


class SampleNeighbors:
    """The neighbours of every sample of a dataset that `build_datasets` made, as tokens.

    directory: the output of `mt retro neighbors`. Raises UserError when that is not finished, when the
    database behind it or the database's data are others than it was made with, and when `dataset` has other
    samples than it was made for, or more of them.
    """

    def __init__(self, directory: str | Path, dataset: GPTDataset | BlendedDataset):
        directory = Path(directory)
        self.made: Samples = read_fact(
            directory,
            "samples",
            "not the finished neighbours of samples; make them with `mt retro neighbors --output"
            f" {directory}`",
        )
        self.split = _find_split(directory, self.made["splits"], describe_samples(dataset))
        root = Path(os.path.normpath(directory / self.made["database"]))
        database = read_database(root)
        if manifest_of(root)["key"] != self.made["database_key"]:
            raise UserError(
                f"{root}: is not the database that the neighbours in {directory} are of: it has been built"
                " anew or extended; run `mt retro neighbors` again"
            )
        self.chunk_length = database["chunk_length"]
        table = np.asarray(np.load(root / "chunks.npy", mmap_mode="r"))
        self.chunks = Chunks(table, open_data(root, database), self.chunk_length, database["pad_id"])
        self.ids = np.asarray(np.load(directory / f"{self.split}.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, index: int | np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest neighbours of the l chunks of a sample, each followed by its continuation.

        index: which item of the dataset, or (B,) of them. Returns tokens (l, k, 2 * chunk_length) int64 and a
        mask of the same shape, both behind B where index has it; True where there is a token: a missing
        neighbour is all False, and so is a continuation past the end of a document.
        """
        if not 1 <= k <= self.ids.shape[2]:
            raise UserError(
                f"{k} neighbours are asked for, but {self.ids.shape[2]} are kept for every chunk; run `mt"
                f" retro neighbors` again with --num-neighbors {k}"
            )
        return self.chunks.tokens(self.ids[index, :, :k], continued=True)


def describe_samples(dataset: GPTDataset | BlendedDataset) -> Split:
    """What decides the samples of a dataset.

    Raises UserError for one whose samples are not its data's tokens as they are.

    The order is told by the indices themselves rather than by settings: a run of another length draws the
    same samples as long as it needs as many epochs.
    """
    if isinstance(dataset, BlendedDataset):
        parts = [describe_samples(d) for d in dataset.datasets]
        order = [dataset.weights, *(p["order"] for p in parts)]
        samples, seq_length = len(dataset), parts[0]["seq_length"]
    elif isinstance(dataset, GPTDataset):
        parts = [Split(data=[dataset.indexed.fingerprint], sequences=[[int(n) for n in dataset.range]])]
        order = [
            dataset.extra,
            *map(_digest, (dataset.document_index, dataset.sample_index, dataset.shuffle_index)),
        ]
        samples, seq_length = dataset.num_samples, dataset.seq_length
    else:
        raise UserError(
            f"neighbours are found for the plain samples of GPT, not for those of a {type(dataset).__name__};"
            " train without retrieval, or without what rearranges the samples"
        )
    return Split(
        samples=samples,
        data=[f for p in parts for f in p["data"]],
        sequences=[r for p in parts for r in p["sequences"]],
        seq_length=seq_length,
        order=xxhash.xxh3_128(repr(order).encode()).hexdigest(),
    )


def sample_documents(dataset: GPTDataset | BlendedDataset, k: int) -> tuple[IndexedDataset, np.ndarray]:
    """The pair that item k of a dataset is from, and the documents (n,) int64 that it has tokens of, its last
    label included.
    """
    if isinstance(dataset, BlendedDataset):
        return sample_documents(dataset.datasets[dataset.dataset_index[k]], int(dataset.sample_index[k]))
    j = int(dataset.shuffle_index[k])
    first, last = dataset.sample_index[j, 0], dataset.sample_index[j + 1, 0]
    sequences = dataset.document_index[first : last + 1]
    # Of documents that begin at the same sequence only the last has any.
    return dataset.indexed, np.unique(
        np.searchsorted(dataset.indexed.document_indices, sequences, side="right") - 1
    )


def _digest(index: np.ndarray) -> str:
    """Of the length of an index and of 4,096 places spread over it: it is a shuffle, where a change in one
    place changes most.
    """
    return xxhash.xxh3_128(
        repr((index.shape, index[np.linspace(0, len(index) - 1, 4096).astype(np.int64)].tolist())).encode()
    ).hexdigest()


def _find_split(directory: Path, splits: dict[str, Split], wanted: Split) -> str:
    """The split with these samples; raises UserError that says what the nearest one has else."""
    reasons = {
        "data": "of other data; give the same --data-path",
        "sequences": "of another part of the data; give the same --split",
        "seq_length": "of samples of {made} tokens, not {here}; give the same --seq-length",
        "order": (
            "of the samples in another order; give the same --seed, the same weights, and a number of samples"
            " that needs as many epochs"
        ),
    }
    agreed = {split: [made[name] == wanted[name] for name in reasons] for split, made in splits.items()}
    split = max(agreed, key=lambda s: sum(agreed[s]))
    for (name, reason), same in zip(reasons.items(), agreed[split]):
        if not same:
            text = reason.format(made=splits[split][name], here=wanted[name])
            raise UserError(
                f"{directory}: its neighbours ({split}) are {text}, or run `mt retro neighbors` for these"
                " samples"
            )
    if splits[split]["samples"] < wanted["samples"]:
        raise UserError(
            f"{directory}: has neighbours of {splits[split]['samples']:,} {split} samples, fewer than the"
            f" {wanted['samples']:,} of this run; run `mt retro neighbors` with --{split}-samples"
            f" {wanted['samples']}"
        )
    return split


class Chunks:
    """The token ids of a database's chunks.

    table: (N,) CHUNK. data: the datasets in the table's order.
    """

    def __init__(self, table: np.ndarray, data: Sequence[IndexedDataset], chunk_length: int, pad_id: int):
        self.table, self.data, self.chunk_length, self.pad_id = table, data, chunk_length, pad_id

    def __len__(self) -> int:
        return len(self.table)

    def tokens(self, ids: np.ndarray, continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (*ids.shape, chunk_length) int64 and their mask, False for padding; an id of -1 is all
        padding.

        continued: the next chunk of the same document follows (twice the width); it lies right behind in the
        .bin.
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
                tokens[own] = np.where(
                    there,
                    dataset.tokens[np.where(there, first[:, None] + columns, first[:, None])],
                    self.pad_id,
                )
        return tokens.reshape(*shape, width), mask.reshape(*shape, width)


def document_offsets(dataset: IndexedDataset, documents: np.ndarray) -> np.ndarray:
    """Where documents begin in a .bin, in tokens; the number of documents itself gives the end of the last.

    (n,) int64.
    """
    sequences = dataset.document_indices[documents]
    offsets = np.full(len(sequences), len(dataset.tokens), np.int64)
    inside = sequences < len(dataset)
    offsets[inside] = dataset.pointers[sequences[inside]] // dataset.dtype.itemsize
    return offsets


def read_database(directory: Path) -> Database:
    """What the manifest says of a finished database; raises UserError when there is none, or a file of it is
    not whole.
    """
    return read_fact(
        directory,
        "database",
        f"not a finished retrieval database; make one with `mt retro build-db --output {directory}`",
    )


def read_fact(directory: Path, name: str, otherwise: str) -> dict:
    """The fact `name` in a directory's manifest; raises UserError (`otherwise`) when there is none, or a file
    is not whole.
    """
    manifest = manifest_of(directory) if directory.is_dir() else None
    if manifest is None or name not in manifest:
        raise UserError(f"{directory}: is {otherwise}")
    for output in manifest["outputs"]:
        path = directory / output["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != output["bytes"]:
            raise UserError(
                f"{path}: has {size:,} bytes where the manifest promises {output['bytes']:,}; run the command"
                " that made it again"
            )
    return manifest[name]


def open_data(directory: Path, database: Database, data_path: Sequence[str] = ()) -> list[IndexedDataset]:
    """A database's datasets, checked to be the ones that it was built from."""
    known = database["data"]
    if data_path and len(data_path) != len(known):
        raise UserError(
            f"{directory}: was built from --data-path of length {len(known)}, not {len(data_path)}; name the"
            " same data in the same order"
        )
    prefixes = data_path or [os.path.normpath(directory / d["prefix"]) for d in known]
    data = []
    for prefix, expected in zip(prefixes, known, strict=True):
        if not Path(f"{prefix}.idx").exists():
            raise UserError(
                f"{prefix}.idx: no such file, but the database {directory} was built from it; say where the"
                " data are now with --data-path"
            )
        dataset = IndexedDataset(prefix)
        if dataset.fingerprint != expected["fingerprint"]:
            raise UserError(
                f"{prefix}: is not the data that the database {directory} was built from; name those with"
                " --data-path, or build the database again"
            )
        data.append(dataset)
    return data
