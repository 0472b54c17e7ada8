"""How much memory a part of a Parquet or Arrow file takes when it is decoded, found before it is decoded.

The decoders allocate whatever a file asks for: 24 kB of Parquet become 40 GB, by compression and by a
dictionary whose one long entry is repeated in every row. The headers of the pages of a Parquet file, and the
numbers before the compressed buffers of an Arrow stream, give the sizes; the decoders refuse data that has
another size. The footer of a Parquet file gives sizes too, but nothing checks them.

Formats: parquet-format, src/main/thrift/parquet.thrift, in thrift's compact protocol; Arrow,
format/Message.fbs, in flatbuffers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator
from typing import IO, Any

import numpy as np

from . import compression, list_lengths, text_lengths
from .page_data import (
    DATA_PAGE,
    DATA_PAGE_V2,
    DICTIONARY_PAGE,
    NotInPieces,
    Page,
    longest_text,
    whole_data,
)

HEADER_BYTES = (1 << 9, 1 << 14, 16 << 20)  # read for the header of a page; pyarrow's limit is the last
DICTIONARY_ENCODINGS = (2, 8)  # PLAIN_DICTIONARY and RLE_DICTIONARY: values are numbers of a dictionary
DICTIONARY_BATCH = 2  # the kind of an Arrow message
# Of pages of texts that large_pages.py reads. A dictionary is PLAIN under either name.
PLAIN_ENCODINGS = {DATA_PAGE: (0,), DATA_PAGE_V2: (0,), DICTIONARY_PAGE: (0, 2)}
RUN_LENGTHS = 3  # the encoding RLE
FRONT_CODING = 7  # DELTA_BYTE_ARRAY: a value may repeat all of the value before it
VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
MEASURED_BYTES = 8 << 20  # of a dictionary; most writers begin no larger one
OFFSET_BYTES = 5  # that a text takes besides its bytes
LEVELS_BYTES = 4  # of the two levels of a value in a list


class TooLarge(Exception):
    """A page or record batch of so many rows must not be decoded; the message says why."""

    def __init__(self, reason: str, rows: int = 0):
        super().__init__(reason)
        self.rows = rows


class LargePages(Exception):
    """Some pages of a row group are too large to decode, and hold texts that can be read in pieces."""

    def __init__(self, pages: list[Page], reason: str, is_bomb: bool, rows: int):
        """is_bomb: whether the row group must not be decoded as it is. rows: as rows_at_once has them."""
        super().__init__(reason)
        self.pages, self.is_bomb, self.rows = pages, is_bomb, rows


def rows_at_once(
    file: Any, path: str, group: int, columns: Collection[str] | None, max_bytes: int, max_rows: int
) -> tuple[int, tuple[str, ...]]:
    """How many consecutive rows of a row group take at most max_bytes when they are decoded, up to max_rows.

    It is at least 1. The second result has the paths of texts in lists to decode as dictionaries, since the
    lists may repeat a long text; the rows take so many bytes besides these texts.

    file: the pyarrow.parquet.ParquetFile of the path. columns: those that are read; None for all. Raises
    TooLarge for a page or row that must not be decoded, LargePages if all such pages can be read in pieces,
    and ValueError if a page cannot be read.
    """
    metadata = file.metadata.row_group(group)
    with open(path, "rb", buffering=0) as raw:
        leaves = _leaves(file, raw, group, columns, max_bytes)
    if (size := sum(leaf.least_bytes_of_longest_row() for leaf in leaves)) > _most(max_bytes):
        longest = max(leaves, key=_Leaf.least_bytes_of_longest_row)
        raise TooLarge(
            f"column {longest.name!r} has a row of {longest.most_of_row:,} values, and a row may take"
            f" {size:,} bytes of memory"
        )
    if sum(leaf.bytes_of(1) for leaf in leaves) > max_bytes:
        with open(path, "rb", buffering=0) as raw:
            for leaf in leaves:
                leaf.measure_dictionary(raw)
                leaf.measure_front_coding(raw, max_bytes)
    packed = sum(metadata.column(i).total_compressed_size for i in range(metadata.num_columns))
    if (size := sum(leaf.bytes_of_a_row() for leaf in leaves)) > max(
        _most(max_bytes), compression.EXPANSION * packed
    ):
        longest = max(leaves, key=_Leaf.bytes_of_a_row)
        raise TooLarge(
            f"a row may take {size:,} bytes of memory, of which column {longest.name!r} takes"
            f" {longest.bytes_of_a_row():,}, and all rows have {packed:,} bytes, compressed"
        )
    rows: int = min(max_rows, max(1, metadata.num_rows))
    if sum(leaf.bytes_of(rows) for leaf in leaves) > max_bytes:
        with open(path, "rb", buffering=0) as raw:
            for leaf in leaves:
                leaf.measure_dictionary(raw)
    if sum(leaf.bytes_of(rows) for leaf in leaves) > max_bytes:
        for leaf in leaves:
            leaf.share_texts()
    while rows > 1 and sum(leaf.bytes_of(rows) for leaf in leaves) > max_bytes:
        rows //= 2
    if large := [page for leaf in leaves for page in leaf.large]:
        reasons = [leaf.reason for leaf in leaves if leaf.reason]
        raise LargePages(large, reasons[0], any(leaf.is_bomb for leaf in leaves), rows)
    return rows, tuple(leaf.name for leaf in leaves if leaf.is_shared)


def most_bytes(file: Any, path: str, group: int, columns: Collection[str] | None, max_bytes: int) -> int:
    """The most bytes that a row group can take when it is decoded. Raises as rows_at_once does."""
    with open(path, "rb", buffering=0) as raw:
        leaves = _leaves(file, raw, group, columns, max_bytes)
        for leaf in leaves:
            leaf.measure_dictionary(raw)
    return sum(leaf.bytes_of(file.metadata.row_group(group).num_rows) for leaf in leaves)


def _leaves(
    file: Any, raw: IO[bytes], group: int, columns: Collection[str] | None, max_bytes: int
) -> list[_Leaf]:
    metadata = file.metadata.row_group(group)
    names = [metadata.column(i).path_in_schema.split(".")[0] for i in range(metadata.num_columns)]
    wanted = [i for i, name in enumerate(names) if columns is None or name in columns]
    leaves = [_Leaf(file, raw, group, i, max_bytes) for i in wanted]
    for leaf in leaves:
        leaf.count_lists(raw, max_bytes)
    return leaves


def _most(max_bytes: int) -> int:
    """Bytes of a page or row of which more are not decoded."""
    return max(compression.WHOLE_BYTES, 2 * max_bytes)


class _Leaf:
    """The part of a row group that belongs to one leaf of the schema."""

    def __init__(self, file: Any, raw: IO[bytes], group: int, index: int, max_bytes: int):
        chunk, column = file.metadata.row_group(group).column(index), file.schema.column(index)
        self.name = chunk.path_in_schema
        self.is_nested = column.max_repetition_level > 0
        self.is_text = column.physical_type == "BYTE_ARRAY"
        width = VALUE_BYTES.get(column.physical_type, column.length)
        self.each = OFFSET_BYTES if self.is_text else width + 1  # bytes of a value, besides those of its page
        self.alone = self.each  # that a value takes besides its text
        self.values: list[int] = []  # of each data page
        self.sizes: list[int] = []  # bytes of each data page with texts
        self.large: list[Page] = []
        self.reason, self.is_bomb = "", False
        self.pages: list[Page] = []  # with data, of a nested column
        self.front_coded: list[Page] = []
        self.before: Any = None  # bytes of the front-coded texts before each, if they were counted
        self.dictionaries: list[Page] = []
        self.is_shared = False
        self.have_run_lengths = True
        first = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < first:
            first = chunk.dictionary_page_offset
        for header in page_headers(raw, first, first + chunk.total_compressed_size):
            kind, size, packed, values, encoding = header.numbers
            has_run_lengths = _has_run_lengths(header, column)
            page = Page(
                column=self.name.split(".")[0],
                start=header.start,
                length=header.header_bytes + packed,
                header_bytes=header.header_bytes,
                size=size,
                kind=kind,
                place=header.place,
                details={k: v for k, v in header.details.items() if isinstance(v, int)},
                codec=chunk.compression,
                max_repetition=column.max_repetition_level,
                max_definition=column.max_definition_level,
            )
            if size > _most(max_bytes):
                self.reason = f"column {self.name!r} has a page of {size:,} bytes, compressed to {packed:,}"
                is_bomb = size > compression.EXPANSION * packed
                self.is_bomb |= is_bomb
                if self.is_text and encoding in PLAIN_ENCODINGS.get(kind, ()) and has_run_lengths:
                    self.large.append(page)
                    size = 0  # large_pages.py bounds its values
                elif is_bomb:
                    raise TooLarge(self.reason)
            if kind == DICTIONARY_PAGE or encoding == FRONT_CODING:
                # Every value may be as long as the page.
                self.each = max(self.each, size + self.alone) if self.is_text else self.each
            if encoding == FRONT_CODING:
                self.front_coded.append(page)
            if kind == DICTIONARY_PAGE:
                self.dictionaries.append(page)
            if kind in (DATA_PAGE, DATA_PAGE_V2):
                self.values.append(values)
                self.sizes.append(size if self.is_text and encoding not in DICTIONARY_ENCODINGS else 0)
                self.have_run_lengths &= has_run_lengths
                if self.is_nested:
                    self.pages.append(page)
        self.most_of_row = 1 if not self.is_nested else sum(self.values)
        self.most_of_rows = sum(self.values)  # of list_lengths.ROWS

    def count_lists(self, raw: IO[bytes], max_bytes: int) -> None:
        """Finds the most values that rows have, if they may be too many. Raises TooLarge if it cannot."""
        if not self.is_nested or self.bytes_of(sum(self.values)) <= max_bytes:
            return
        try:
            if not self.have_run_lengths:
                raise NotInPieces("its levels have an old encoding")
            self.most_of_row, self.most_of_rows = list_lengths.most_values(raw, self.pages)
        except NotInPieces as error:
            if self.least_bytes_of_longest_row() > _most(max_bytes):
                raise TooLarge(
                    f"the values of a row of column {self.name!r} cannot be counted ({error})"
                ) from None

    def measure_dictionary(self, raw: IO[bytes]) -> None:
        """Finds the longest text of the dictionary, which is mostly far shorter than its page."""
        if self.is_text and self.dictionaries and not self.front_coded and not self.large:
            longest = 0
            for page in self.dictionaries:
                if page.size > MEASURED_BYTES:
                    return
                try:
                    longest = max(longest, longest_text(whole_data(raw, page)))
                except NotInPieces:
                    return
            self.each = self.alone + longest

    def measure_front_coding(self, raw: IO[bytes], max_bytes: int) -> None:
        """Finds the lengths of the texts of lists, each of which may repeat all of the text before it."""
        if not self.is_nested or not self.is_text or not self.front_coded or self.dictionaries:
            return
        if not self.have_run_lengths or self.bytes_of(1) <= max_bytes:
            return
        with contextlib.suppress(NotInPieces):  # then each of them may be as long as its page
            lengths = [text_lengths.of_page(raw, page) for page in self.front_coded]
            self.before = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))))
            self.each = self.alone

    def share_texts(self) -> None:
        """Counts the texts of a dictionary once, if lists may repeat them."""
        if self.is_nested and self.is_text and self.dictionaries and not self.large:
            self.is_shared, self.each = True, self.alone

    def least_bytes_of_longest_row(self) -> int:
        """The bytes of as many values as the longest list has, without those of their texts."""
        return self.most_of_row * (self.alone + LEVELS_BYTES) if self.is_nested else 0

    def bytes_of(self, rows: int) -> int:
        """The most bytes that so many consecutive rows can take."""
        if self.is_nested:
            rows = min(rows * self.most_of_row, -(-rows // list_lengths.ROWS) * self.most_of_rows)
        before = [0, *itertools.accumulate(self.values)]
        size = [0, *itertools.accumulate(self.sizes)]
        most = first = 0
        for last in range(len(self.values)):
            # The rows begin in page `first`, end in page `last`, and have all of the pages between.
            while first < last and before[last] - before[first + 1] > rows - 2:
                first += 1
            most = max(most, size[last + 1] - size[first])
        if self.before is not None:
            count = min(rows, len(self.before) - 1)
            most += int((self.before[count:] - self.before[: len(self.before) - count]).max())
        return most + min(rows, before[-1]) * self.each

    def bytes_of_a_row(self) -> int:
        """The most bytes that a row takes, with those of the dictionary of which its texts are entries."""
        if self.is_shared or not self.is_nested or not self.dictionaries:
            return self.bytes_of(1)
        # Texts of lists are read as entries of the dictionary if they may be long.
        return sum(page.size for page in self.dictionaries if page not in self.large) + (
            self.bytes_of(1) - min(self.most_of_row, sum(self.values)) * (self.each - self.alone)
        )


def _has_run_lengths(page: PageHeader, column: Any) -> bool:
    """Whether the levels of a page are encoded as they are today."""
    if page.numbers[0] != DATA_PAGE:
        return True
    definition, repetition = page.details.get(3), page.details.get(4)
    return (not column.max_definition_level or definition == RUN_LENGTHS) and (
        not column.max_repetition_level or repetition == RUN_LENGTHS
    )


@dataclasses.dataclass(frozen=True)
class PageHeader:
    """start: of the header. numbers: as `pages` has them. place, details: the struct for its kind of page."""

    start: int
    header_bytes: int
    numbers: tuple[int, int, int, int, int]
    place: int
    details: dict[int, Any]


def pages(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(kind, bytes, compressed bytes, values, encoding) of the pages in the bytes [start, end) of a file.

    Raises ValueError where there is no page.
    """
    return (page.numbers for page in page_headers(file, start, end))


def page_headers(file: IO[bytes], start: int, end: int) -> Iterator[PageHeader]:
    """The headers of the pages in the bytes [start, end) of a file; raises ValueError where there is none."""
    while start < end:
        header, length = _page_header(file, start, end)
        kind, size, packed = header.get(1), header.get(2), header.get(3)
        place = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(kind or 0, 0)
        details = header.get(place) or {}
        values, encoding = details.get(1, 0), details.get(4 if kind == DATA_PAGE_V2 else 2, 0)
        numbers: tuple[Any, ...] = (kind, size, packed, values, encoding)
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError(f"the header of the page at byte {start} is not valid")
        known = (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4])
        yield PageHeader(start, length, known, place, details)
        start += length + numbers[2]


def _page_header(file: IO[bytes], start: int, end: int) -> tuple[dict[int, Any], int]:
    """(the header at a place as {field: value}, its length)."""
    for size in HEADER_BYTES:
        file.seek(start)
        data = file.read(min(size, end - start))
        try:
            return _struct(data, 0)
        except (IndexError, RecursionError):  # it is longer than what was read, or nested without an end
            if len(data) < size:
                break
    raise ValueError(f"the header of the page at byte {start} is not valid")


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """(a struct of thrift as {field: value}, the place of its end). Values that nobody needs are None."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 12:
        return _struct(data, at)
    if kind in (3, 7):  # a byte, a floating-point number
        at += 1 if kind == 3 else 8
    elif kind == 8:  # bytes
        length, at = _varint(data, at)
        at += length
    elif kind in (9, 10):  # a list, a set
        head, at = data[at], at + 1
        count, at = (head >> 4, at) if head >> 4 < 15 else _varint(data, at)
        for _ in range(count):
            _, at = (None, at + 1) if head & 15 in (1, 2) else _value(data, at, head & 15)
            data[at - 1]  # ends the loop where the data ends
    else:
        raise IndexError
    data[at - 1]
    return None, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def check_batch(message: Any, max_bytes: int) -> None:
    """Raises TooLarge for a message of Arrow that must not be decoded, and ValueError for a broken one.

    message: the pyarrow.ipc.Message of a record batch or a dictionary.
    """
    body, size = message.body, 0
    rows, buffers = _record_batch(bytes(message.metadata))
    for start, length in buffers:
        if start < 0 or length < 0 or start + length > body.size:
            raise ValueError("a buffer lies outside of its message")
        if length >= 8:  # the size comes before the compressed bytes; -1: they are not compressed
            size += max(0, int.from_bytes(body[start : start + 8], "little", signed=True))
    if size > _most(max_bytes) and size > compression.EXPANSION * body.size:
        raise TooLarge(f"it has {size:,} bytes, compressed to {body.size:,}", rows)


def _record_batch(metadata: bytes) -> tuple[int, list[tuple[int, int]]]:
    """(rows, [(start, length) of each compressed buffer in the body]) of a message."""
    root = _number(metadata, 0, 4)
    batch = _follow(metadata, _field(metadata, root, 2))
    if metadata[_field(metadata, root, 1)] == DICTIONARY_BATCH:
        batch = _follow(metadata, _field(metadata, batch, 1))
    rows = _number(metadata, at, 8) if (at := _field(metadata, batch, 0)) else 0
    place = _field(metadata, batch, 2)
    if not place or not _field(metadata, batch, 3):  # the field `compression`
        return rows, []
    vector = _follow(metadata, place)
    places = range(vector + 4, vector + 4 + 16 * _number(metadata, vector, 4), 16)
    return rows, [(_number(metadata, at, 8), _number(metadata, at + 8, 8)) for at in places]


def _number(data: bytes, at: int, size: int, signed: bool = True) -> int:
    if not 0 <= at <= len(data) - size:
        raise ValueError("the metadata of a message is not valid")
    return int.from_bytes(data[at : at + size], "little", signed=signed)


def _field(data: bytes, table: int, index: int) -> int:
    """The place of a field of a table of flatbuffers, 0 if it is absent."""
    entries = table - _number(data, table, 4)
    at = 4 + 2 * index
    if at + 2 > _number(data, entries, 2, signed=False):
        return 0
    offset = _number(data, entries + at, 2, signed=False)
    return table + offset if offset else 0


def _follow(data: bytes, place: int) -> int:
    return place + _number(data, place, 4, signed=False)
