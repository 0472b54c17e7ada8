"""Reads Retro's neighbours of chunks and of training samples as tokens.

The files are those of `mt retro build-db` and `mt retro neighbors`, memory-mapped. No file is opened and no
loop runs for a single chunk. A database:

    chunks.npy      (N,) CHUNK        the tokens of chunk i; the chunks of a document have consecutive ids
    neighbors.npy   (N, k) int64      ids of the nearest chunks of every chunk, nearest first; -1: missing
    manifest.json   `database`        see DatabaseInfo

Neighbours of the samples that a training run draws:

    train.npy, valid.npy, test.npy    (samples, chunks of a sample, k) int64, likewise
    manifest.json   `samples`         see SamplesInfo

A neighbour is read with its continuation, the next chunk of the same document (Retro, Borgeaud et al. 2022,
section 2.3). Megatron-LM continues into the next document, and reads chunk N - 1 for a missing neighbour;
here both are padding, and masked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import xxhash

from ..core import paths
from ..core.arrays import beyond, open_array
from ..core.config import UserError, shown
from ..core.manifest import manifest_of, output_path
from ..core.parsing import MADE_BY_MT, Count, Range, check_value
from .format import IndexedDataset
from .gpt_dataset import BlendedDataset, Dataset, GPTDataset
from .splits import SPLIT_NAMES

# Tokens [start, end) of a document of a dataset (its number in the order of --data-path).
CHUNK = np.dtype([("dataset", "<u4"), ("document", "<u4"), ("start", "<u4"), ("end", "<u4")])


Length = Annotated[int, Range(1, 1 << 24)]
# Tokens of a chunk; a neighbour is read into two chunks of memory, however short its text is. Retro has 64.
MAX_CHUNK_LENGTH = 1 << 16


class DataInfo(TypedDict):
    """A .bin/.idx pair that a database or an index of blocks was built from."""

    prefix: str  # relative to the directory of the database
    fingerprint: str


class EmbedderInfo(TypedDict):
    """The model that embedded a database."""

    directory: str | None  # None: the default model
    digest: str  # of its files
    bf16: bool


class DatabaseInfo(TypedDict):
    """`database` in the manifest of a retrieval database."""

    data: list[DataInfo]
    chunk_length: Annotated[int, Range(1, MAX_CHUNK_LENGTH)]  # tokens
    pad_id: Annotated[int, Range(0, (1 << 31) - 1)]  # token of padding
    num_neighbors: Length  # of every chunk
    index: str  # Faiss factory string
    nprobe: Length  # cells that a search visits, for an index with cells
    ef_search: Length  # size of the candidate list of a search, for an index with a graph
    embedder: EmbedderInfo


class Neighbors:
    """The neighbours of every chunk of a database, as tokens.

    directory: the output of `mt retro build-db`. data_path: the present prefixes of its .bin/.idx pairs, if
    they have moved. Raises UserError if the database is not finished, or was built from other data.
    """

    def __init__(self, directory: str | Path, data_path: Sequence[str] = ()):
        directory = Path(directory)
        self.database = read_database(directory)
        self.chunks = open_chunks(directory, self.database, data_path)
        shape = (len(self.chunks), self.database["num_neighbors"])
        self.ids = open_array(directory / "neighbors.npy", "<i8", shape)

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, chunk_ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest neighbours of chunks, each followed by its continuation.

        chunk_ids: (n,). Returns tokens (n, k, 2 * chunk_length) int64 and a mask of the same shape, True at
        tokens. It is False for a missing neighbour, and for a continuation past the end of a document.
        """
        if not 1 <= k <= self.ids.shape[1]:
            raise UserError(
                f"{k} neighbours are requested, but the database has {self.ids.shape[1]}; build it again with"
                f" --num-neighbors {k}"
            )
        return self.chunks.tokens(self.ids[np.asarray(chunk_ids), :k], continued=True)


class SplitInfo(TypedDict):
    """The samples of a split that have neighbours; a training run must have the same, or fewer of them."""

    samples: Count
    data: list[str]  # fingerprints of the .bin/.idx pairs
    sequences: list[list[int]]  # [first, one past the last] of every pair
    seq_length: Length  # tokens of a sample
    order: str  # digest of the order of the samples


class SamplesInfo(TypedDict):
    """`samples` in the manifest of the neighbours of samples."""

    database: str  # relative to the directory of the neighbours
    database_key: str  # key in the database's manifest
    num_neighbors: Length  # of every chunk
    splits: dict[str, SplitInfo]


class SampleNeighbors:
    """The neighbours of every sample of a dataset of `gpt_dataset.build_datasets`, as tokens.

    directory: the output of `mt retro neighbors`. Raises UserError if it is not finished, if its database or
    the database's data have changed since, or if `dataset` has other samples or more of them.
    """

    def __init__(self, directory: str | Path, dataset: Dataset):
        directory = Path(directory)
        self.info = read_samples(directory)
        self.split = _find_split(directory, self.info["splits"], describe_samples(dataset))
        root, database = database_of(directory, self.info)
        self.chunk_length = database["chunk_length"]
        self.chunks = open_chunks(root, database)
        self.ids = open_sample_ids(directory, self.info, self.split, self.chunk_length)

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, index: int | np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest neighbours of the l chunks of a sample, each followed by its continuation.

        index: an item of the dataset, or (B,) items. Returns tokens ([B,] l, k, 2 * chunk_length) int64 and a
        mask of the same shape, True at tokens. It is False for a missing neighbour, and for a continuation
        past the end of a document.
        """
        if not 1 <= k <= self.ids.shape[2]:
            raise UserError(
                f"{k} neighbours are requested, but every chunk has {self.ids.shape[2]}; run `mt retro"
                f" neighbors` again with --num-neighbors {k}"
            )
        return self.chunks.tokens(self.ids[index, :, :k], continued=True)


def read_samples(directory: str | Path) -> SamplesInfo:
    """`samples` in the manifest of the neighbours of samples; raises UserError if they are not finished."""
    directory = Path(directory)
    info: SamplesInfo = read_fact(
        directory,
        "samples",
        f"not the finished neighbours of samples; make them with `mt retro neighbors --output {directory}`",
        SamplesInfo,
    )
    place = f"{directory / 'manifest.json'}: samples.splits"
    if not info["splits"] or not info["splits"].keys() <= set(SPLIT_NAMES):  # they become names of files
        raise UserError(
            f"{place} = {shown(list(info['splits']))}: must be some of {', '.join(SPLIT_NAMES)}; {MADE_BY_MT}"
        )
    for name, split in info["splits"].items():
        if not re.fullmatch(r"[0-9a-f]{32}", split["order"]):
            raise UserError(f"{place}.{name}.order = {shown(split['order'])}: must be a digest; {MADE_BY_MT}")
    return info


def database_of(directory: Path, info: SamplesInfo) -> tuple[Path, DatabaseInfo]:
    """The database that neighbours were found in; raises UserError if it is another one now."""
    # It may lie beside this directory: its key is compared.
    place = f"{directory / 'manifest.json'}, samples.database"
    root = paths.named(directory, info["database"], place, kind="folder", outside=True)
    root = Path(os.path.normpath(root))
    database = read_database(root)
    if (manifest_of(root) or {}).get("key") != info["database_key"]:
        raise UserError(
            f"{root}: is not the database that the neighbours in {directory} were found in: it was built"
            " again or extended; run `mt retro neighbors` again"
        )
    return root, database


def open_sample_ids(directory: str | Path, info: SamplesInfo, split: str, chunk_length: int) -> np.ndarray:
    """The ids of the neighbours of a split: (samples, chunks of a sample, k) int64, memory-mapped.

    Raises UserError if the file does not have these.
    """
    found, path = info["splits"][split], Path(directory) / f"{split}.npy"
    if found["seq_length"] % chunk_length:
        raise UserError(
            f"{directory}: samples of {found['seq_length']} tokens are not whole chunks of {chunk_length};"
            " run `mt retro neighbors` again"
        )
    shape = (found["samples"], found["seq_length"] // chunk_length, info["num_neighbors"])
    return open_array(path, "<i8", shape)


def describe_samples(dataset: Dataset) -> SplitInfo:
    """What determines the samples of a dataset.

    `order` is a digest of the indices, not of settings: a run of another length draws the same samples if it
    needs as many epochs. Raises UserError for a dataset whose samples are not the plain tokens of its data.
    """
    if isinstance(dataset, BlendedDataset):
        parts = [describe_samples(d) for d in dataset.datasets]
        return SplitInfo(
            samples=len(dataset),
            data=[fingerprint for part in parts for fingerprint in part["data"]],
            sequences=[sequences for part in parts for sequences in part["sequences"]],
            seq_length=parts[0]["seq_length"],
            order=_hash([dataset.weights, *(part["order"] for part in parts)]),
        )
    if isinstance(dataset, GPTDataset):
        indices = (dataset.document_index, dataset.sample_index, dataset.shuffle_index)
        return SplitInfo(
            samples=dataset.num_samples,
            data=[dataset.indexed.fingerprint],
            sequences=[[int(n) for n in dataset.range]],
            seq_length=dataset.seq_length,
            order=_hash([dataset.extra, *map(_digest, indices)]),
        )
    raise UserError(
        f"neighbours are found for the plain samples of GPT, not for those of a {type(dataset).__name__};"
        " train without retrieval, or without the setting that changes the samples"
    )


def _hash(value: object) -> str:
    return xxhash.xxh3_128(repr(value).encode()).hexdigest()


def sample_documents(dataset: Dataset, k: int) -> tuple[IndexedDataset, np.ndarray]:
    """The pair of item k, and the documents (n,) int64 that it has tokens of, its last label included."""
    if isinstance(dataset, BlendedDataset):
        return sample_documents(dataset.datasets[dataset.dataset_index[k]], int(dataset.sample_index[k]))
    assert isinstance(dataset, GPTDataset), "describe_samples refuses any other dataset"
    j = int(dataset.shuffle_index[k])
    first, last = dataset.sample_index[j, 0], dataset.sample_index[j + 1, 0]
    sequences = dataset.document_index[first : last + 1]
    # Of documents that begin at the same sequence only the last one has sequences.
    return dataset.indexed, np.unique(
        np.searchsorted(dataset.indexed.document_indices, sequences, side="right") - 1
    )


def _digest(index: np.ndarray) -> str:
    """Digest of an index: its shape, and 4,096 entries spread over it.

    They suffice: the indices are shuffled, so that another seed or another input changes most entries.
    """
    return _hash((index.shape, index[np.linspace(0, len(index) - 1, 4096).astype(np.int64)].tolist()))


def _find_split(directory: Path, splits: dict[str, SplitInfo], wanted: SplitInfo) -> str:
    """The split with these samples; raises UserError that says how the most similar one differs."""

    def differences(found: SplitInfo) -> list[str]:
        return [
            reason
            for same, reason in (
                (found["data"] == wanted["data"], "of other data; give the same --data-path"),
                (
                    found["sequences"] == wanted["sequences"],
                    "of another part of the data; give the same --split",
                ),
                (
                    found["seq_length"] == wanted["seq_length"],
                    f"of samples of {found['seq_length']} tokens, not {wanted['seq_length']}; give the same"
                    " --seq-length",
                ),
                (
                    found["order"] == wanted["order"],
                    "of the samples in another order; give the same --seed, the same weights, and a number of"
                    " samples that needs as many epochs",
                ),
            )
            if not same
        ]

    split = min(splits, key=lambda name: len(differences(splits[name])))
    for reason in differences(splits[split]):
        raise UserError(
            f"{directory}: its neighbours ({split}) are {reason}, or run `mt retro neighbors` for these"
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
    """The tokens of a database's chunks.

    table: (N,) CHUNK. data: the datasets that the table numbers. place: names the table in messages. A
    stranger may have made the table, and the files of neighbours: every row is compared with the data before
    it is used.
    """

    def __init__(
        self,
        table: np.ndarray,
        data: Sequence[IndexedDataset],
        chunk_length: int,
        pad_id: int,
        place: str | Path = "chunks.npy",
    ):
        self.table, self.data, self.chunk_length, self.pad_id = table, data, chunk_length, pad_id
        self.place = place

    def __len__(self) -> int:
        return len(self.table)

    def check_ids(self, ids: np.ndarray) -> None:
        """Raises UserError for ids that are neither -1 nor chunks."""
        refuse_ids(ids, len(self), self.place)

    def check_rows(self, rows: np.ndarray) -> np.ndarray:
        """The offsets (n,) int64 in the .bin, in tokens, of the documents of rows (n,) CHUNK.

        Raises UserError for a row that is no chunk of the data.
        """
        first = np.zeros(len(rows), np.int64)
        starts, ends = rows["start"].astype(np.int64), rows["end"].astype(np.int64)
        right = (rows["dataset"] < len(self.data)) & (starts < ends) & (ends - starts <= self.chunk_length)
        for number, dataset in enumerate(self.data):
            own = np.flatnonzero(right & (rows["dataset"] == number))
            own = own[rows["document"][own] < dataset.num_documents]
            documents = rows["document"][own].astype(np.int64)
            first[own] = document_offsets(dataset, documents)
            inside = ends[own] <= document_offsets(dataset, documents + 1) - first[own]
            right[rows["dataset"] == number] = False
            right[own[inside]] = True
        if not right.all():
            row = rows[np.flatnonzero(~right)[0]]
            raise UserError(
                f"{self.place}: has a chunk of tokens {row['start']:,} to {row['end']:,} of document"
                f" {row['document']:,} of dataset {row['dataset']:,}, which the database's data do not have;"
                " build the database again"
            )
        return first

    def tokens(self, ids: np.ndarray, continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (*ids.shape, chunk_length) int64 and their mask, False at padding; id -1 is all padding.

        continued: append the next chunk of the same document, so that the last axis is twice as long; in the
        .bin it follows directly. Raises UserError for ids that are no chunks, and for chunks that are not in
        the data.
        """
        shape, ids = np.shape(ids), np.ravel(ids)
        self.check_ids(ids)
        rows = self.table[np.maximum(ids, 0)]
        first = self.check_rows(rows)
        ends = rows["end"].astype(np.int64)
        if continued:
            following = self.table[np.minimum(ids + 1, len(self) - 1)]
            self.check_rows(following)
            same = (following["dataset"] == rows["dataset"]) & (following["document"] == rows["document"])
            ends = np.where(same & (following["start"] == rows["end"]), following["end"], ends)
        lengths = np.where(ids < 0, 0, ends - rows["start"])
        width = self.chunk_length * (2 if continued else 1)
        columns = np.arange(width)
        mask = columns < lengths[:, None]
        tokens = np.full(mask.shape, self.pad_id, np.int64)
        for number, dataset in enumerate(self.data):
            own = np.flatnonzero((rows["dataset"] == number) & (lengths > 0))
            if len(own):
                begin = first[own] + rows["start"][own]
                there = mask[own]
                tokens[own] = np.where(
                    there,
                    dataset.tokens[np.where(there, begin[:, None] + columns, begin[:, None])],
                    self.pad_id,
                )
        return tokens.reshape(*shape, width), mask.reshape(*shape, width)


def refuse_ids(ids: np.ndarray, num_chunks: int, place: str | Path) -> None:
    """Raises UserError for ids that are neither -1 nor one of so many chunks. place: begins the message."""
    if (wrong := beyond(ids, num_chunks, -1)) is not None:
        raise UserError(
            f"{place}: chunk {wrong} is a neighbour, but the database has the chunks 0 to {num_chunks - 1:,};"
            " the index or the neighbours are damaged: make them again"
        )


def open_chunks(directory: str | Path, database: DatabaseInfo, data_path: Sequence[str] = ()) -> Chunks:
    """The chunks of a database, memory-mapped.

    data_path: the present prefixes of its data, if they have moved.
    Raises UserError if the table is no table of chunks, and where `open_data` does.
    """
    table, data = open_table(directory), open_data(Path(directory), database["data"], data_path)
    place = Path(directory) / "chunks.npy"
    return Chunks(table, data, database["chunk_length"], database["pad_id"], place)


def open_table(directory: str | Path) -> np.ndarray:
    """The table of a database's chunks, memory-mapped: (N,) CHUNK; raises UserError if it is another file."""
    path = Path(directory) / "chunks.npy"
    table = open_array(path, CHUNK, (None,))
    if not len(table):
        raise UserError(f"{path}: has no chunk; build the database again")
    return table


def document_offsets(dataset: IndexedDataset, documents: np.ndarray) -> np.ndarray:
    """The offsets of documents in a .bin, in tokens: (n,) int64.

    documents: (n,) numbers; the number of documents gives the end of the last one.
    """
    sequences = dataset.document_indices[documents]
    offsets = np.full(len(sequences), len(dataset.tokens), np.int64)
    inside = sequences < len(dataset)
    offsets[inside] = dataset.pointers[sequences[inside]] // dataset.dtype.itemsize
    return offsets


def read_database(directory: Path) -> DatabaseInfo:
    """`database` of a database's manifest; raises UserError if it is not finished, or a file is truncated."""
    info: DatabaseInfo = read_fact(
        directory,
        "database",
        f"not a finished retrieval database; make one with `mt retro build-db --output {directory}`",
        DatabaseInfo,
    )
    return info


def read_fact(directory: Path, name: str, otherwise: str, kind: Any = Any) -> Any:
    """The value of a name in a directory's manifest, of the type `kind` (parsing.check_value).

    Raises UserError (`otherwise`) if there is none, and for a file whose size is not the recorded one.
    """
    manifest = manifest_of(directory) if directory.is_dir() else None
    if manifest is None or name not in manifest:
        raise UserError(f"{directory}: is {otherwise}")
    for output in manifest["outputs"]:
        path = output_path(directory / "manifest.json", output["name"])
        size = path.stat().st_size if path.exists() else 0
        if size != output["bytes"]:
            raise UserError(
                f"{path}: has {size:,} bytes where the manifest records {output['bytes']:,}; run the command"
                " that made it again"
            )
    paths.regular_files(directory)
    return check_value(manifest[name], kind, f"{directory / 'manifest.json'}: {name}", MADE_BY_MT)


def open_data(
    directory: Path, known: Sequence[DataInfo], data_path: Sequence[str] = ()
) -> list[IndexedDataset]:
    """The datasets of a database; data_path: their present prefixes, if they have moved.

    Raises UserError if one is missing or is not the one that the database was built from.
    """
    if data_path and len(data_path) != len(known):
        raise UserError(
            f"{directory}: was built from --data-path of length {len(known)}, not {len(data_path)}; name the"
            " same data in the same order"
        )
    prefixes = data_path or [_data_prefix(directory, d["prefix"]) for d in known]
    data = []
    for prefix, expected in zip(prefixes, known, strict=True):
        if not Path(f"{prefix}.idx").exists():
            raise UserError(
                f"{prefix}.idx: no such file, but the database {directory} was built from it; give the"
                " present prefixes of the data with --data-path"
            )
        dataset = IndexedDataset(prefix)
        if dataset.fingerprint != expected["fingerprint"]:
            raise UserError(
                f"{prefix}: is not the data that the database {directory} was built from; name those with"
                " --data-path, or build the database again"
            )
        data.append(dataset)
    return data


def _data_prefix(directory: Path, prefix: str) -> str:
    """The prefix of data that a database names. It may lie beside the database: fingerprints are compared."""
    place = f"{directory / 'manifest.json'}, data.prefix"
    index = paths.named(directory, f"{prefix}.idx", place, outside=True)
    return os.path.normpath(index.with_name(index.name.removesuffix(".idx")))
