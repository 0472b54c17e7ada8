"""How much memory a part of a Parquet or Arrow file takes when it is decoded, found before it is decoded.

The decoders allocate whatever a file asks for: 24 kB of Parquet become 40 GB, by compression and by a
dictionary whose one long entry is repeated in every row. The headers of the pages of a Parquet file, and the
numbers before the compressed buffers of an Arrow stream, give the sizes; the decoders refuse data that has
another size. The footer of a Parquet file gives sizes too, but nothing checks them.

Formats: parquet-format, src/main/thrift/parquet.thrift, in thrift's compact protocol; Arrow,
format/Message.fbs, in flatbuffers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import IO, Any

# A page of Parquet and a record batch of Arrow are decoded as a whole. Some writers put a thousand documents
# in a page, so a large one is refused only if it is also much larger than its compressed bytes.
WHOLE_BYTES = 256 << 20
EXPANSION = 100  # text is compressed to a third or, if it repeats itself much, to a twentieth
HEADER_BYTES = (1 << 9, 1 << 14, 16 << 20)  # read for the header of a page; pyarrow's limit is the last
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
DICTIONARY_ENCODINGS = (2, 8)  # PLAIN_DICTIONARY and RLE_DICTIONARY: values are numbers of a dictionary
DICTIONARY_BATCH = 2  # the kind of an Arrow message
FRONT_CODING = 7  # DELTA_BYTE_ARRAY: a value may repeat all of the value before it
VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
OFFSET_BYTES = 5  # that a text takes besides its bytes


class TooLarge(Exception):
    """A page or record batch of so many rows must not be decoded; the message says why."""

    def __init__(self, reason: str, rows: int = 0):
        super().__init__(reason)
        self.rows = rows


def rows_at_once(
    file: Any, path: str, group: int, columns: Collection[str] | None, max_bytes: int, max_rows: int
) -> int:
    """How many consecutive rows of a row group take at most max_bytes when they are decoded, up to max_rows.

    It is at least 1. The rows of nested columns are taken to have equal numbers of values.

    file: the pyarrow.parquet.ParquetFile of the path. columns: those that are read; None for all. Raises
    TooLarge for a page that must not be decoded, and ValueError if the header of a page cannot be read.
    """
    metadata = file.metadata.row_group(group)
    names = [metadata.column(i).path_in_schema.split(".")[0] for i in range(metadata.num_columns)]
    wanted = [i for i, name in enumerate(names) if columns is None or name in columns]
    with open(path, "rb", buffering=0) as raw:
        leaves = [_Leaf(file, raw, group, i, max_bytes) for i in wanted]
    rows: int = min(max_rows, max(1, metadata.num_rows))
    while rows > 1 and sum(leaf.bytes_of(rows) for leaf in leaves) > max_bytes:
        rows //= 2
    return rows


class _Leaf:
    """The part of a row group that belongs to one leaf of the schema."""

    def __init__(self, file: Any, raw: IO[bytes], group: int, index: int, max_bytes: int):
        self.rows = max(1, file.metadata.row_group(group).num_rows)
        chunk, column = file.metadata.row_group(group).column(index), file.schema.column(index)
        self.name = chunk.path_in_schema
        self.is_nested = column.max_repetition_level > 0
        self.is_text = column.physical_type == "BYTE_ARRAY"
        width = VALUE_BYTES.get(column.physical_type, column.length)
        self.each = OFFSET_BYTES if self.is_text else width + 1  # bytes of a value, besides those of its page
        self.values: list[int] = []  # of each data page
        self.sizes: list[int] = []  # bytes of each data page with texts
        first, limit = chunk.data_page_offset, max(WHOLE_BYTES, 2 * max_bytes)
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < first:
            first = chunk.dictionary_page_offset
        for kind, size, packed, values, encoding in pages(raw, first, first + chunk.total_compressed_size):
            if size > limit and size > EXPANSION * packed:
                raise TooLarge(f"column {self.name!r} has a page of {size:,} bytes, compressed to {packed:,}")
            if kind == DICTIONARY_PAGE or encoding == FRONT_CODING:
                # Every value may be as long as the page.
                self.each = max(self.each, size + OFFSET_BYTES) if self.is_text else self.each
            if kind in (DATA_PAGE, DATA_PAGE_V2):
                self.values.append(values)
                self.sizes.append(size if self.is_text and encoding not in DICTIONARY_ENCODINGS else 0)

    def bytes_of(self, rows: int) -> int:
        """The most bytes that so many consecutive rows can take."""
        if self.is_nested:
            rows *= -(-sum(self.values) // self.rows)
        before = [0, *itertools.accumulate(self.values)]
        size = [0, *itertools.accumulate(self.sizes)]
        most = first = 0
        for last in range(len(self.values)):
            # The rows begin in page `first`, end in page `last`, and have all of the pages between.
            while first < last and before[last] - before[first + 1] > rows - 2:
                first += 1
            most = max(most, size[last + 1] - size[first])
        return most + min(rows, before[-1]) * self.each


def pages(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(kind, bytes, compressed bytes, values, encoding) of the pages in the bytes [start, end) of a file.

    Raises ValueError where there is no page.
    """
    while start < end:
        header, length = _page_header(file, start, end)
        kind, size, packed = header.get(1), header.get(2), header.get(3)
        place = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(kind or 0, 0)
        details = header.get(place) or {}
        values, encoding = details.get(1, 0), details.get(4 if kind == DATA_PAGE_V2 else 2, 0)
        numbers: tuple[Any, ...] = (kind, size, packed, values, encoding)
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError(f"the header of the page at byte {start} is not valid")
        yield numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
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
    if kind in (1, 2):  # true, false
        return None, at
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
    if size > max(WHOLE_BYTES, 2 * max_bytes) and size > EXPANSION * body.size:
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
