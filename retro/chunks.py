"""Cuts documents into chunks, and decodes the texts of chunks.

In: the datasets of one or several .bin/.idx pairs. Out: `chunks.npy`, (N,) CHUNK (indexed/neighbors.py), the
positions of the chunks: every document is cut into chunks of `chunk_length` tokens, without its trailing
end-of-document token. The last chunk of a document may be shorter, and an empty document has none. Tokens are
not copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..core.config import UserError
from ..core.manifest import atomic_write
from ..indexed.check import check_tokenizer
from ..indexed.format import IndexedDataset
from ..indexed.neighbors import CHUNK, Chunks, document_offsets
from ..indexed.splits import ranges
from ..tokenizer.tokenizer import NullTokenizer, Tokenizer
from .row_blocks import write_npy_header

DOCUMENTS_AT_ONCE = 1 << 16
CHUNKS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Selection:
    """The chunks of the data that a database takes, and their counts."""

    chunk_length: int  # tokens
    eod: int | None  # end-of-document token
    share: float  # of the documents of the training split
    ends: tuple[int, ...]  # end of each dataset's training split, in documents
    documents_in: int  # of the data
    outside_documents: int  # not in the training split
    empty_documents: int
    chunks_in: int  # of the training split
    documents: int  # that are taken
    chunks: int  # that are taken


def select_chunks(
    data: Sequence[IndexedDataset],
    chunk_length: int,
    eod: int | None,
    max_chunks: int | None,
    split: str = "1",
) -> Selection:
    """Counts the chunks; if there are more than `max_chunks`, selects documents evenly over the whole data.

    split: only documents that lie entirely in its training share, which is a share of sequences as in
    training, are considered. All chunks of a selected document are taken, except that the last document is
    cut at max_chunks.
    """
    ends = tuple(training_documents(dataset, split) for dataset in data)
    considered = chunks_in = empty = 0
    for _, _, lengths in _documents(data, eod, ends):
        considered += len(lengths)
        empty += int((lengths == 0).sum())
        chunks_in += int(_num_chunks(lengths, chunk_length).sum())
    documents_in = sum(dataset.num_documents for dataset in data)
    everything = Selection(
        chunk_length=chunk_length,
        eod=eod,
        share=1.0,
        ends=ends,
        documents_in=documents_in,
        outside_documents=documents_in - considered,
        empty_documents=empty,
        chunks_in=chunks_in,
        documents=considered - empty,
        chunks=chunks_in,
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
    """The number of documents that lie entirely in the training share of a dataset's sequences."""
    _, end = ranges(split, len(dataset))[0] or (0, 0)
    if end == len(dataset):
        return dataset.num_documents
    return int(np.searchsorted(dataset.document_indices[1:], end, side="right"))


def write_chunks(
    path: Path,
    data: Sequence[IndexedDataset],
    selection: Selection,
    before: np.ndarray | None = None,
    datasets_before: int = 0,
) -> None:
    """Writes the chunk table of a selection, after the table `before` of other datasets, if given.

    datasets_before: how many datasets that table has.
    """
    before = np.empty(0, CHUNK) if before is None else before
    with atomic_write(path) as file:
        write_npy_header(file, CHUNK, (len(before) + selection.chunks,))
        for start in range(0, len(before), CHUNKS_AT_ONCE):
            file.write(before[start : start + CHUNKS_AT_ONCE].tobytes())
        for (number, first, lengths), (_, _, per_document) in zip(
            _documents(data, selection.eod, selection.ends), _selected(data, selection), strict=True
        ):
            file.write(
                _cut(datasets_before + number, first, lengths, per_document, selection.chunk_length).tobytes()
            )


def own_ranges(table: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The own documents of chunks [start, stop), as `index.nearest` takes them: (stop - start, 3) int64.

    A row is the number of the chunk from `start` on, the first id of its document and one past the last.
    """
    rows = table[start:stop]
    documents, row_of = np.unique(
        np.column_stack([rows["dataset"], rows["document"]]).astype(np.int64), axis=0, return_inverse=True
    )
    return np.column_stack([np.arange(len(rows)), document_ranges(table, documents)[row_of.ravel()]])


def document_ranges(table: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(n, 2) int64: the first id and one past the last of each document's chunks; equal if it has none.

    documents: (n, 2) int64, rows (dataset, document). A binary search, which reads log2(N) rows of the table
    for each.
    """
    keys = (documents[:, 0] << 32) + documents[:, 1]
    wanted = np.concatenate([keys, keys + 1])  # a document ends at the place of the next one
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(table), np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        rows = table[np.minimum(middle, len(table) - 1)]
        before = (rows["dataset"].astype(np.int64) << 32) + rows["document"] < wanted
        low, high = np.where(open_ & before, middle + 1, low), np.where(open_ & ~before, middle, high)
    return low.reshape(2, -1).T


def chunk_texts(chunks: Chunks, tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The texts of chunks of a database; raises UserError for a token outside the tokenizer's vocabulary."""
    return texts_of(*chunks.tokens(ids), tokenizer, ", ".join(d.prefix for d in chunks.data))


def sample_texts(data: Sequence[IndexedDataset], tokenizer: Tokenizer, selection: Selection) -> list[str]:
    """At most 64 texts of full chunks from the start of the data, to measure the speed of embedding."""
    length = selection.chunk_length
    tokens = max((d.tokens[: 64 * length] for d in data), key=len)
    whole = tokens[: max(1, len(tokens) // length) * length]
    rows = whole.reshape(-1, min(length, len(tokens))).astype(np.int64)
    return texts_of(rows, np.ones(rows.shape, bool), tokenizer, data[0].prefix)


def texts_of(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer, place: str) -> list[str]:
    """The texts of chunks without end-of-document tokens.

    tokens, mask: (n, chunk_length). place: their data, for error messages. Raises UserError for a token
    outside the tokenizer's vocabulary.
    """
    check_tokens(tokens, tokenizer, place)
    if tokenizer.eod is not None:
        mask = mask & (tokens != tokenizer.eod)
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, mask)]


def check_data(dataset: IndexedDataset, tokenizer: Tokenizer) -> None:
    """Raises UserError if the manifest or one of the first million tokens shows another tokenizer.

    The other tokens are checked when their chunk is embedded.
    """
    check_tokens(dataset.tokens[: 1 << 20], tokenizer, dataset.prefix)
    if isinstance(tokenizer, NullTokenizer):
        raise UserError(
            f"{dataset.prefix}: retrieval needs texts, and NullTokenizer cannot decode tokens; give the"
            " tokenizer that made the data"
        )
    check_tokenizer(dataset.prefix, tokenizer)


def check_tokens(tokens: np.ndarray, tokenizer: Tokenizer, place: str) -> None:
    """Raises UserError for a token outside the tokenizer's vocabulary. place: where the tokens are from."""
    largest = int(tokens.max(initial=0))
    if largest >= tokenizer.vocab_size:
        raise UserError(
            f"{place}: has the token {largest}, but the tokenizer has only {tokenizer.vocab_size:,}; give the"
            " tokenizer that made the data"
        )


def _documents(
    data: Sequence[IndexedDataset], eod: int | None, ends: Sequence[int]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of documents: (dataset, first document, (n,) int64 tokens without the trailing EOD)."""
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
    """For each block of `_documents`: (dataset, first document, (n,) int64 chunks taken of each document)."""
    before, left = 0, selection.chunks
    for number, first, lengths in _documents(data, selection.eod, selection.ends):
        # Document i is selected if the running share reaches a new whole number at it: share 0.4 selects 0,
        # 2, 5, 7, 10 ...
        reached = np.ceil(np.arange(before, before + len(lengths) + 1) * selection.share)
        before += len(lengths)
        wanted = np.where(np.diff(reached) > 0, _num_chunks(lengths, selection.chunk_length), 0)
        per_document = np.diff(np.minimum(np.cumsum(wanted), left), prepend=0)
        left -= int(per_document.sum())
        yield number, first, per_document


def _num_chunks(lengths: np.ndarray, chunk_length: int) -> np.ndarray:
    return -(-lengths // chunk_length)


def _cut(
    dataset: int, first_document: int, lengths: np.ndarray, per_document: np.ndarray, chunk_length: int
) -> np.ndarray:
    """(n,) CHUNK: the first `per_document` chunks of consecutive documents with these lengths.

    Lengths [130, 0, 64] with chunks of 64, all taken: documents 0 0 0 2, starts 0 64 128 0, ends 64 128 130
    64.
    """
    document = np.repeat(np.arange(len(lengths)), per_document)
    before = np.repeat(np.cumsum(per_document) - per_document, per_document)
    rows = np.empty(len(document), CHUNK)
    rows["dataset"], rows["document"] = dataset, first_document + document
    rows["start"] = (np.arange(len(document)) - before) * chunk_length
    rows["end"] = np.minimum(rows["start"].astype(np.int64) + chunk_length, lengths[document])
    return rows
