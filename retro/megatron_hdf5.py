"""Exports to and imports from the HDF5 files of Megatron-LM's Retro, in the format until January 2026.

    db/indexed_dataset_infos.json          [{"ratio", "prefix", "n_docs", "n_docs_train", "n_chunks",
        "n_chunks_train", ...}]
    db/merged/train.hdf5                   chunks u32 (n, 5): dataset, document, start, end, BERT tokens
                                           n_written u64 (1,) doc_offsets u64 (documents, 3): dataset,
                                           document, chunks up to its end
    index/faiss-par-add/SPEC/added_1.000_1.000.faissindex
    query/SPLIT_KEY/A-B.hdf5               neighbors i64 (samples * chunks of a sample, k); -1: missing
    config.json                            retro_gpt_chunk_length, retro_neighbor_dirs ...

A document there is a sequence here, so start and end count from the start of the sequence. A chunk whose text
has no BERT token is not in the table.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..core import manifest, paths
from ..core.config import UserError, configuration, option
from ..core.extras import needs_package
from ..core.parsing import SETTINGS_BYTES, check_value, read_json
from ..indexed.format import IndexedDataset
from ..indexed.neighbors import (
    CHUNK,
    Chunks,
    SamplesInfo,
    document_offsets,
    open_chunks,
    open_data,
    open_sample_ids,
    read_database,
    read_samples,
)
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .chunks import Selection, chunk_texts
from .embed import Embedder, open_same
from .row_blocks import write_npy_header

ROWS_AT_ONCE = 1 << 16
TABLE = "a whole merged/train.hdf5 of Megatron-LM's Retro"
MAX_HDF5_CHUNK = 256 << 20  # bytes that HDF5 decompresses at once; h5py and Megatron-LM choose below 1 MB
BLOCK = 100_000  # rows of a file of neighbours, as in Megatron-LM


@configuration()
class ExportHdf5Config:
    """The settings of `mt retro export-hdf5`."""

    db: str = option(help="a database of `mt retro build-db`", role="input")
    neighbors: str | None = option(None, "neighbours of samples, of `mt retro neighbors`", role="input")
    output: str = option(help="directory for Megatron-LM's project", role="output")
    bert_model: str | None = option(
        None, "present directory of the database's BERT, if it has moved", role="input"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")


def export_hdf5(config: ExportHdf5Config) -> dict[str, Any]:
    """Writes a database and neighbours in the format of Megatron-LM's Retro; returns the manifest.

    Raises UserError for data with documents of several or no sequences.
    """
    root = Path(config.db)
    database = read_database(root)
    data = open_data(root, database["data"])
    _h5py()
    samples: SamplesInfo | None = None
    if config.neighbors:
        samples = read_samples(config.neighbors)
    several = next(
        (d for d in data if d.num_documents != len(d) or (np.diff(d.document_indices) != 1).any()), None
    )
    if several is not None:
        raise UserError(
            f"{several.prefix}: has documents of several or no sequences, which Megatron-LM's table cannot"
            " represent; tokenize without --split-sentences and leave empty texts out"
        )
    inputs: list[str | Path] = [root, *([config.neighbors] if config.neighbors else [])]
    run = manifest.begin("retro export-hdf5", config, inputs)
    if run.finished:
        return run.manifest
    chunks = open_chunks(root, database)
    tokenizer, bert = load_directory(root / "tokenizer"), open_same(database, config.bert_model, root)
    written = [_export_chunks(run.output / "db" / "merged" / "train.hdf5", chunks, tokenizer, bert)]
    counts = np.bincount(chunks.table["dataset"], minlength=len(data)).tolist()
    infos = [
        {
            "ratio": 1.0,
            "prefix": Path(d.prefix).name,
            "n_docs": d.num_documents,
            "n_docs_train": d.num_documents,
            "n_chunks": n,
            "n_chunks_train": n,
            "n_chunks_invalid": 0,
            "n_chunks_sampled": 0,
        }
        for d, n in zip(data, counts)
    ]
    written.append(_write_json(run.output / "db" / "indexed_dataset_infos.json", infos))
    index = run.output / "index" / "faiss-par-add" / database["index"] / "added_1.000_1.000.faissindex"
    with manifest.atomic_write(index) as out, open(root / "index.faiss", "rb") as source:
        shutil.copyfileobj(source, out, 1 << 24)
    folders = {}
    if samples is not None and config.neighbors:
        for split, info in samples["splits"].items():
            folders[split] = f"query/{split}_{info['order']}"
            ids = open_sample_ids(config.neighbors, samples, split, database["chunk_length"])
            written += _export_neighbors(run.output / folders[split], ids, chunks)
    settings: dict[str, Any] = {
        "retro_block_size": BLOCK,
        "retro_gpt_chunk_length": database["chunk_length"],
        "retro_neighbor_dirs": {n: folders.get(n) for n in ("train", "valid", "test")},
    }
    if samples is not None:
        settings["retro_gpt_seq_length"] = next(iter(samples["splits"].values()))["seq_length"]
    written.append(_write_json(run.output / "config.json", settings))
    return run.finish(
        [manifest.record(f, run.output) for f in [*written, index]],
        {"chunks": len(chunks), "documents": sum(i["n_docs"] for i in infos)},
    )


def _export_chunks(path: Path, chunks: Chunks, tokenizer: Tokenizer, bert: Embedder) -> Path:
    """Writes merged/train.hdf5."""
    table, total = chunks.table, len(chunks)
    ends = [0, *np.cumsum([d.num_documents for d in chunks.data])]
    with manifest.atomic_write(path) as raw, _h5py().File(raw, "w") as file:
        rows = file.create_dataset("chunks", (total, 5), "u4")
        per_document = np.zeros(ends[-1], np.uint64)
        for start in range(0, total, ROWS_AT_ONCE):
            some = table[start : start + ROWS_AT_ONCE]
            texts = chunk_texts(chunks, tokenizer, np.arange(start, start + len(some)))
            lengths = [len(ids) - 2 for ids in bert.encode(texts)]  # without [CLS] and [SEP]
            rows[start : start + len(some)] = np.column_stack(
                [some["dataset"], some["document"], some["start"], some["end"], lengths]
            )
            np.add.at(per_document, np.array(ends)[some["dataset"]] + some["document"], 1)
        dataset = np.repeat(np.arange(len(chunks.data)), np.diff(ends))
        document = np.concatenate([np.arange(d.num_documents) for d in chunks.data])
        file.create_dataset(
            "doc_offsets",
            data=np.column_stack([dataset, document, np.cumsum(per_document)]).astype(np.uint64),
        )
        file.create_dataset("n_written", data=np.array([total], np.uint64))
    return path


def _export_neighbors(folder: Path, ids: np.ndarray, chunks: Chunks) -> Iterator[Path]:
    """Writes the neighbours of a split in blocks of BLOCK rows; yields their files.

    ids: (samples, chunks of a sample, k).
    """
    ids = ids.reshape(-1, ids.shape[-1])
    digits = len(str(len(ids) - 1)) + 1
    for start in range(0, len(ids), BLOCK):
        stop = min(start + BLOCK, len(ids))
        chunks.check_ids(ids[start:stop])
        path = folder / f"{start:0{digits}d}-{stop:0{digits}d}.hdf5"
        with manifest.atomic_write(path) as raw, _h5py().File(raw, "w") as file:
            file.create_dataset("neighbors", data=ids[start:stop])
        yield path


class RetroProject(TypedDict, total=False):
    """The config.json of a project of Megatron-LM's Retro, as far as mt reads it."""

    retro_neighbor_dirs: dict[str, str | None] | None


class MegatronNeighbors:
    """The neighbours of a split in the query/ of a project; iterating yields blocks (rows, k) int64.

    rows: number of chunks of the requested samples, and of all samples (a blend has some more). k: neighbours
    of each. chunks: of the database. Raises UserError for a folder that is not whole or has another number of
    samples, and for ids that are not chunks of the database.
    """

    def __init__(self, project: Path, split: str, rows: tuple[int, int], k: int, chunks: int):
        self.k, self.chunks = k, chunks
        if not (project / "config.json").exists():
            raise UserError(
                f"{project}: has no config.json; give the project of Megatron-LM's Retro that has query/"
                " and db/"
            )
        file = project / "config.json"
        settings = check_value(read_json(file, SETTINGS_BYTES), RetroProject, file)
        folder = (settings.get("retro_neighbor_dirs") or {}).get(split)
        if not folder:
            raise UserError(
                f"{project / 'config.json'}: has no neighbours of {split} in retro_neighbor_dirs; request no"
                f" {split} samples, or give the project that has them"
            )
        place = f"{project / 'config.json'}, retro_neighbor_dirs"
        self.folder = paths.named(project, folder, place, kind="folder")
        self.files = sorted(
            (p for p in self.folder.glob("*.hdf5") if re.fullmatch(r"\d+-\d+", p.stem)), key=_bounds
        )
        ends = [_bounds(path) for path in self.files]
        gap = next((i for i, (a, b) in enumerate(itertools.pairwise([(0, 0), *ends])) if a[1] != b[0]), None)
        if not ends or gap is not None:
            wrong = (
                "has no block of neighbours"
                if gap is None
                else f"the block before {self.files[gap].name} is missing"
            )
            raise UserError(f"{self.folder}: {wrong}; fetch it again")
        self.rows = ends[-1][1]
        if not rows[0] <= self.rows <= rows[1]:
            raise UserError(
                f"{self.folder}: has the neighbours of {self.rows:,} chunks, and the requested {split}"
                f" samples have {rows[0]:,}; give the data settings and numbers of samples that it"
                " was made with"
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self.files:
            start, stop = _bounds(path)
            with _opened(path, "a whole block of neighbours") as file:
                found = _array(file, "neighbors", (stop - start, None))
                if found.shape[1] < self.k:
                    raise UserError(
                        f"{path}: has {found.shape[1]} neighbours of a chunk; give --num-neighbors"
                        f" {found.shape[1]} or fewer"
                    )
                ids = found[:, : self.k]
            if len(ids) and (ids.min() < -1 or ids.max() >= self.chunks):
                raise UserError(
                    f"{path}: has chunk {ids.max() if ids.max() >= self.chunks else ids.min()}, and the"
                    f" database has {self.chunks:,}; give the database that was made with --chunks-hdf5 of"
                    " this project"
                )
            yield ids.astype("<i8")


def _bounds(path: Path) -> tuple[int, int]:
    """The first row of a block of neighbours and one past its last, from the name of its file."""
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def select_hdf5_chunks(path: str, data: Sequence[IndexedDataset], chunk_length: int) -> Selection:
    """The counts of the chunks in a merged/train.hdf5.

    Raises UserError for another file or one that is not whole, and for chunks longer than chunk_length.
    """
    with _opened(path, TABLE) as file:
        total = len(_array(file, "chunks", (None, 5)))
        whole = int(_array(file, "n_written", (1,))[0]) == total
    if not whole:
        raise UserError(f"{path}: is truncated: writing it was interrupted; make it again")
    if total > (tokens := sum(len(d.tokens) for d in data)):  # a file of some bytes may declare 10^18 rows
        raise UserError(
            f"{path}: has {total:,} chunks, and --data-path has {tokens:,} tokens; give the pairs that it was"
            " made from"
        )
    longest = max((int((rows[:, 3] - rows[:, 2].astype(np.int64)).max()) for rows in _rows(path)), default=0)
    if longest > chunk_length:
        raise UserError(
            f"{path}: has chunks of {longest} tokens, more than chunk_length = {chunk_length}; give"
            f" --chunk-length {longest}"
        )
    documents = sum(d.num_documents for d in data)
    filled = sum(int((np.diff(document_offsets(d, np.arange(d.num_documents + 1))) > 0).sum()) for d in data)
    return Selection(
        chunk_length=chunk_length,
        eod=None,
        share=1.0,
        ends=tuple(d.num_documents for d in data),
        documents_in=documents,
        outside_documents=0,
        empty_documents=documents - filled,
        chunks_in=total,
        documents=filled,
        chunks=total,
    )


def write_hdf5_chunks(path: Path, source: str, data: Sequence[IndexedDataset], selection: Selection) -> None:
    """Writes the chunk table of a merged/train.hdf5.

    Raises UserError if its chunks are not in the data, or not in the order of the documents.
    """
    with manifest.atomic_write(path) as file:
        write_npy_header(file, CHUNK, (selection.chunks,))
        last = -1
        for rows in _rows(source):
            table = np.empty(len(rows), CHUNK)
            for number in np.unique(rows[:, 0]).tolist():
                here = rows[:, 0] == number
                sequence, start, end = (rows[here, i].astype(np.int64) for i in (1, 2, 3))
                if (
                    not 0 <= number < len(data)
                    or min(int(sequence.min()), int(start.min())) < 0
                    or int(sequence.max()) >= len(data[number])
                    or (end > data[number].lengths[sequence]).any()
                    or (start >= end).any()
                ):
                    raise UserError(
                        f"{source}: has chunks that are not in --data-path; give the pairs that it was made"
                        " from, in the order of its indexed_dataset_infos.json"
                    )
                dataset = data[number]
                document = np.searchsorted(dataset.document_indices, sequence, side="right") - 1
                before = dataset.pointers[sequence] // dataset.dtype.itemsize - document_offsets(
                    dataset, document
                )
                table["dataset"][here], table["document"][here] = number, document
                table["start"][here], table["end"][here] = before + start, before + end
            keys = (table["dataset"].astype(np.int64) << 32) + table["document"]
            if keys[0] < last or (np.diff(keys) < 0).any():
                raise UserError(
                    f"{source}: its chunks are not in the order of datasets and documents, as Megatron-LM"
                    " writes them; give the file that it made"
                )
            last = int(keys[-1])
            file.write(table.tobytes())


def _rows(path: str) -> Iterator[np.ndarray]:
    with _opened(path, TABLE) as file:
        chunks = _array(file, "chunks", (None, 5))
        for start in range(0, len(chunks), ROWS_AT_ONCE):
            yield chunks[start : start + ROWS_AT_ONCE]


@contextlib.contextmanager
def _opened(path: str | Path, what: str) -> Iterator[Any]:
    """An h5py.File for reading; raises UserError where HDF5 finds it broken. what: it should be."""
    h5py = _h5py()
    try:
        with h5py.File(paths.regular(path)) as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: is not {what} ({reason}); fetch it again") from None


def _array(file: Any, name: str, shape: Sequence[int | None]) -> Any:
    """The h5py.Dataset of integers under a name, not read yet; raises ValueError for anything else.

    HDF5 can link to other files, take the bytes of an array from them, and compress gigabytes of zeros into
    a kilobyte: none of these is read. shape: None where any length will do.
    """
    h5py = _h5py()
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is missing or a link")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} is no array, or lies in another file")
    if found.dtype.kind not in "iu" or found.dtype.itemsize > 8:
        raise ValueError(f"{name} has values of type {found.dtype}, not integers")
    if found.ndim != len(shape) or any(m not in (None, n) for n, m in zip(found.shape, shape)):
        wanted = ", ".join("any" if m is None else str(m) for m in shape)
        raise ValueError(f"{name} has the shape {found.shape}, not ({wanted})")
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > MAX_HDF5_CHUNK:
        raise ValueError(f"{name} is compressed in pieces of more than {MAX_HDF5_CHUNK:,} bytes")
    return found


def _write_json(path: Path, value: object) -> Path:
    with manifest.atomic_write(path, "w") as file:
        json.dump(value, file, sort_keys=True, indent=4)
    return path


def _h5py() -> Any:
    """The package h5py; raises UserError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise UserError(needs_package("a file of HDF5", "h5py")) from None
    return h5py
