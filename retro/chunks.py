"""indexed tokens -> chunks, and their texts.

In: the datasets of one or several .bin/.idx pairs. Out: `chunks.npy`, (N,) CHUNK (indexed/neighbors.py):
every document cut every `chunk_length` tokens, without its trailing end-of-document token; the last chunk of
a document is short, and an empty document has none. The tokens stay where they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..core import manifest
from ..core.config import UserError
from ..core.manifest import atomic_write
from ..indexed.format import IndexedDataset
from ..indexed.neighbors import CHUNK, Chunks, document_offsets
from ..indexed.splits import ranges
from ..tokenizer.tokenizer import NullTokenizer, Tokenizer
from .row_blocks import write_npy_header

DOCUMENTS_AT_ONCE = 1 << 16
CHUNKS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which chunks of the data go into the database, and how many there are."""

    chunk_length: int  # tokens
    eod: int | None  # the token that ends documents
    share: float  # of the documents of the training part
    ends: tuple[int, ...]  # where each dataset's training part ends, in documents
    documents_in: int
    outside_documents: int  # not in the training part
    empty_documents: int
    chunks_in: int
    documents: int
    chunks: int


def select_chunks(
    data: Sequence[IndexedDataset],
    chunk_length: int,
    eod: int | None,
    max_chunks: int | None,
    split: str = "1",
) -> Selection:
    """Counts the chunks, and where there are more than `max_chunks`, chooses documents evenly over the whole
    corpus.

    split: documents that lie whole in its training share, which is one of sequences as in training, are
    looked at alone. The chosen documents go in whole, but for the last where they are more than max_chunks in
    all.
    """
    ends = tuple(training_documents(dataset, split) for dataset in data)
    seen = chunks_in = empty = 0
    for _, _, lengths in _documents(data, eod, ends):
        seen += len(lengths)
        empty += int((lengths == 0).sum())
        chunks_in += int(_num_chunks(lengths, chunk_length).sum())
    documents_in = sum(dataset.num_documents for dataset in data)
    everything = Selection(
        chunk_length,
        eod,
        1.0,
        ends,
        documents_in,
        documents_in - seen,
        empty,
        chunks_in,
        seen - empty,
        chunks_in,
    )
    if max_chunks is None or chunks_in <= max_chunks:
        return everything
    selection = dataclasses.replace(everything, share=max_chunks / chunks_in, chunks=max_chunks)
    documents = chunks = 0
    for _, _, per_document in _selected(data, selection):
        documents += int((per_document > 0).sum())
        chunks += int(per_document.sum())
    return dataclasses.replace(selection, documents=documents, chunks=chunks)


def training_documents(dataset: IndexedDataset, split: str) -> int:
    """How many documents lie whole in the training share of a dataset's sequences."""
    _, end = ranges(split, len(dataset))[0] or (0, 0)
    return (
        dataset.num_documents
        if end == len(dataset)
        else int(np.searchsorted(dataset.document_indices[1:], end, side="right"))
    )


def write_chunks(
    path: Path,
    data: Sequence[IndexedDataset],
    selection: Selection,
    before: np.ndarray | None = None,
    datasets_before: int = 0,
) -> None:
    """Writes the chunk table of a selection, behind the table `before` of so many other datasets where there
    is one.
    """
    with atomic_write(path) as file:
        write_npy_header(file, CHUNK, ((0 if before is None else len(before)) + selection.chunks,))
        for start in range(0, 0 if before is None else len(before), CHUNKS_AT_ONCE):
            file.write(before[start : start + CHUNKS_AT_ONCE].tobytes())
        for (number, first, lengths), (_, _, per_document) in zip(
            _documents(data, selection.eod, selection.ends), _selected(data, selection), strict=True
        ):
            file.write(
                _cut(datasets_before + number, first, lengths, per_document, selection.chunk_length).tobytes()
            )


def own_ranges(table: np.ndarray, start: int, stop: int) -> np.ndarray:
    """(stop - start, 3) int64 for `index.nearest`: of chunks [start, stop) of a table, the row, the first id
    of its document and the id past its last.
    """
    rows = table[start:stop]
    documents, row_of = np.unique(
        np.column_stack([rows["dataset"], rows["document"]]).astype(np.int64), axis=0, return_inverse=True
    )
    return np.column_stack([np.arange(len(rows)), document_ranges(table, documents)[row_of.ravel()]])


def document_ranges(table: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(n, 2) int64: the first id of each document's chunks in a table, and the id past its last; equal where
    it has none.

    documents: (n, 2) int64, rows (dataset, document). A binary search: the table is read in log2(N) places
    for each.
    """
    keys = (documents[:, 0] << 32) + documents[:, 1]
    wanted = np.concatenate([keys, keys + 1])  # a document ends where the next one would begin
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(table), np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        rows = table[np.minimum(middle, len(table) - 1)]
        before = (rows["dataset"].astype(np.int64) << 32) + rows["document"] < wanted
        low, high = np.where(open_ & before, middle + 1, low), np.where(open_ & ~before, middle, high)
    return low.reshape(2, -1).T


def chunk_texts(chunks: Chunks, tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The texts of chunks of a database; raises UserError for a token that the tokenizer does not know."""
    return texts_of(*chunks.tokens(ids), tokenizer, ", ".join(d.prefix for d in chunks.data))


def sample_texts(data: Sequence[IndexedDataset], tokenizer: Tokenizer, selection: Selection) -> list[str]:
    """Some 64 texts of full chunks from the first tokens of the data, to time what is done with texts."""
    length = selection.chunk_length
    tokens = max((d.tokens[: 64 * length] for d in data), key=len)
    rows = (
        tokens[: max(1, len(tokens) // length) * length]
        .reshape(-1, min(length, len(tokens)))
        .astype(np.int64)
    )
    return texts_of(rows, np.ones(rows.shape, bool), tokenizer, data[0].prefix)


def texts_of(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer, place: str) -> list[str]:
    """The texts of chunks without end-of-document tokens; `place` names their data in a message.

    tokens, mask: (n, chunk_length). Raises UserError for a token that the tokenizer does not know.
    """
    check_tokens(tokens, tokenizer, place)
    if tokenizer.eod is not None:
        mask = mask & (tokens != tokenizer.eod)
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, mask)]


def check_data(dataset: IndexedDataset, tokenizer: Tokenizer) -> None:
    """Raises UserError where a manifest, or a token among the first million, says that another tokenizer made
    the data.

    Every other token is looked at when its chunk is embedded.
    """
    check_tokens(dataset.tokens[: 1 << 20], tokenizer, dataset.prefix)
    if isinstance(tokenizer, NullTokenizer):
        raise UserError(
            f"{dataset.prefix}: retrieval works on texts, and NullTokenizer cannot turn tokens into any; give"
            " the tokenizer that made the data"
        )
    made = (manifest.manifest_of(f"{dataset.prefix}.bin") or {}).get("tokenizer")
    if isinstance(made, dict) and made.get("fingerprint") != tokenizer.fingerprint:
        raise UserError(
            f"{dataset.prefix}: was tokenised with another tokenizer than the one given; give the same"
            " tokenizer files"
        )


def check_tokens(tokens: np.ndarray, tokenizer: Tokenizer, place: str) -> None:
    largest = int(tokens.max(initial=0))
    if largest >= tokenizer.vocab_size:
        raise UserError(
            f"{place}: has the token {largest}, but the tokenizer has only {tokenizer.vocab_size:,}; give the"
            " tokenizer that made the data"
        )


def _documents(
    data: Sequence[IndexedDataset], eod: int | None, ends: Sequence[int]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(dataset, first document, lengths in tokens without the trailing EOD (n,) int64), some documents at a
    time.
    """
    for number, dataset in enumerate(data):
        for first in range(0, ends[number], DOCUMENTS_AT_ONCE):
            bounds = document_offsets(
                dataset, np.arange(first, min(first + DOCUMENTS_AT_ONCE, ends[number]) + 1)
            )
            lengths = np.diff(bounds)
            filled = np.flatnonzero(lengths)
            if eod is not None:
                lengths[filled] -= dataset.tokens[bounds[1:][filled] - 1] == eod
            yield number, first, lengths


def _selected(data: Sequence[IndexedDataset], selection: Selection) -> Iterator[tuple[int, int, np.ndarray]]:
    """(dataset, first document, chunks taken of each document (n,) int64), in step with `_documents`."""
    seen, left = 0, selection.chunks
    for number, first, lengths in _documents(data, selection.eod, selection.ends):
        # Document i is chosen where the running share reaches a new whole number: share 0.4 takes 0, 2, 5, 7,
        # 10 ...
        reached = np.ceil(np.arange(seen, seen + len(lengths) + 1) * selection.share)
        seen += len(lengths)
        wanted = np.where(np.diff(reached) > 0, _num_chunks(lengths, selection.chunk_length), 0)
        per_document = np.diff(np.minimum(np.cumsum(wanted), left), prepend=0)
        left -= int(per_document.sum())
        yield number, first, per_document


def _num_chunks(lengths: np.ndarray, chunk_length: int) -> np.ndarray:
    return -(-lengths // chunk_length)


def _cut(
    dataset: int, first_document: int, lengths: np.ndarray, per_document: np.ndarray, chunk_length: int
) -> np.ndarray:
    """(n,) CHUNK: the first `per_document` chunks of consecutive documents of these lengths.

    lengths [130, 0, 64] in chunks of 64, all taken: documents 0 0 0 2, starts 0 64 128 0, ends 64 128 130 64.
    """
    document = np.repeat(np.arange(len(lengths)), per_document)
    before = np.repeat(np.cumsum(per_document) - per_document, per_document)
    rows = np.empty(len(document), CHUNK)
    rows["dataset"], rows["document"] = dataset, first_document + document
    rows["start"] = (np.arange(len(document)) - before) * chunk_length
    rows["end"] = np.minimum(rows["start"].astype(np.int64) + chunk_length, lengths[document])
    return rows
