"""Reads Parquet whose pages are too large to decode: a view of the file without long values of such pages.

A page is compressed as a whole, and pyarrow decodes it as a whole, so that one value of gigabytes takes all
values of its page with it. Here such a page is decompressed piece by piece, and a smaller page takes its
place in the view: it has a short mark instead of each value that is longer than a record may be. If the
others are too many for one page, those after the first ones get another mark, and the file is read once more
with a page that has the next ones. The bytes that are left over become pages of a kind that readers skip, so
that nothing else in the file moves.

Formats: parquet-format, Encodings.md (PLAIN byte arrays, levels) and parquet.thrift.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
from collections.abc import Sequence
from typing import IO, Any

from .page_data import DATA_PAGE_V2, DICTIONARY_PAGE, PIECE, NotInPieces, Page, Stream, plain_pieces

INDEX_PAGE = 1  # a kind of page that readers skip
FILLER = 15  # bytes of the header of a page that fills
NONCE = b"\xff" + os.urandom(15)  # begins a mark; it is not UTF-8
LONG, LATER = 1, 2  # kinds of marks
MARK_BYTES = len(NONCE) + 21
MARK = re.compile(re.escape(NONCE) + rb"(.)(.{4})(.{8})", re.DOTALL)
MARK_OF_LONG = re.compile(re.escape(NONCE) + b"(\\x01)(.{4})(.{8})", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Mark:
    """What stands for a value. number: the bytes of a long value, or the place in its page of a later one."""

    kind: int
    page: int
    number: int

    def __bytes__(self) -> bytes:
        return (
            NONCE + bytes([self.kind]) + self.page.to_bytes(4, "little") + self.number.to_bytes(8, "little")
        )


def find_mark(data: Any) -> Mark | None:
    """The first mark in a buffer of bytes, those of long values before others."""
    found = MARK_OF_LONG.search(data) or MARK.search(data)
    if not found:
        return None
    kind, page, number = found.groups()
    return Mark(kind[0], int.from_bytes(page, "little"), int.from_bytes(number, "little"))


@dataclasses.dataclass(frozen=True)
class _Patch:
    start: int
    length: int
    data: bytes


class PatchedFile(io.RawIOBase):
    """A Parquet file with smaller pages in the place of large ones."""

    def __init__(self, path: str, pages: Sequence[Page], first: Sequence[int], max_bytes: int):
        """first: the number of the first value that each page has; values before it have marks as well.

        longest: the bytes of the longest value of the new pages. Raises NotInPieces.
        """
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this object
        self._size, self._at, self.longest = os.path.getsize(path), 0, 0
        self._patches = []
        for number, (page, start) in enumerate(zip(pages, first)):
            data, longest = _smaller(self._file, page, number, start, max_bytes)
            self.longest = max(self.longest, longest)
            if len(data) > page.length - FILLER:
                raise NotInPieces("the page without its long values is not smaller")
            self._patches.append(_Patch(page.start, page.length, data))
        self._patches.sort(key=lambda patch: patch.start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        parts = []
        while self._at < end:
            part = self._part(end)
            self._at += len(part)
            parts.append(part)
        return b"".join(parts)

    def _part(self, end: int) -> bytes:
        """Some bytes at the current place, at least one."""
        for patch in self._patches:
            if self._at < patch.start:
                end = min(end, patch.start)
                break
            if self._at < patch.start + patch.length:
                inside = self._at - patch.start
                if inside < len(patch.data):
                    return patch.data[inside : inside + end - self._at]
                return _filler(inside - len(patch.data), patch.length - len(patch.data), end - self._at)
        self._file.seek(self._at)
        data = self._file.read(min(end - self._at, PIECE))
        if not data:
            raise OSError("the file is shorter than when it was opened")
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _filler(at: int, total: int, size: int) -> bytes:
    """Up to `size` bytes from place `at` of `total` bytes (FILLER at least) of pages that are skipped."""
    pieces = -(-total // PIECE)
    base, more = divmod(total, pieces)
    number = at // (base + 1) if at < more * (base + 1) else more + (at - more * (base + 1)) // base
    start = number * base + min(number, more)
    body = base + (number < more) - FILLER
    length = _fixed_varint(2 * body)  # zigzag
    header = bytes([0x15, 2 * INDEX_PAGE, 0x15]) + length + b"\x15" + length + b"\x00"
    inside = at - start
    if inside < FILLER:
        return header[inside : inside + size]
    return bytes(min(size, FILLER + body - inside))


def _fixed_varint(value: int) -> bytes:
    return bytes([value >> shift & 127 | 128 for shift in (0, 7, 14, 21)] + [value >> 28])


def _smaller(file: IO[bytes], page: Page, number: int, first: int, max_bytes: int) -> tuple[bytes, int]:
    """(header and data of a page with marks for some values of a page, the longest of the others)."""
    details, kind = page.details, page.kind
    stream = Stream(plain_pieces(file, page))
    levels = _levels(stream, page)
    values, longest, budget = bytearray(), 0, max_bytes
    for index in itertools.count():
        if stream.is_at_end():  # the header counts nulls too, which have no bytes
            break
        size = int.from_bytes(stream.read(4), "little")
        if size > max_bytes:
            mark = Mark(LONG, number, size)
        elif size > MARK_BYTES and (index < first or size > budget):
            mark = Mark(LATER, number, index)
            budget = 0 if index >= first else budget  # no later value before an earlier one
        else:
            value = stream.read(size)
            values += size.to_bytes(4, "little") + value
            budget -= size
            longest = max(longest, size)
            if len(values) > 2 * max_bytes + PIECE:
                raise NotInPieces("the page has too many short values")
            continue
        stream.skip(size)
        # Each is unlike the others: where pyarrow makes a dictionary, it joins equal entries.
        values += MARK_BYTES.to_bytes(4, "little") + bytes(mark) + index.to_bytes(8, "little")
    data = _compress(page, bytes(levels) + bytes(values) if kind != DATA_PAGE_V2 else bytes(values))
    if kind == DATA_PAGE_V2:
        data = bytes(levels) + data
    fields = {1: kind, 2: len(levels) + len(values), 3: len(data), page.place: details}
    return _thrift(fields) + data, longest


def _levels(stream: Stream, page: Page) -> bytearray:
    """The bytes of a data page before its values; they are read from the stream."""
    levels = bytearray()
    if page.kind == DICTIONARY_PAGE:
        return levels
    if page.kind == DATA_PAGE_V2:
        size = page.details.get(5, 0) + page.details.get(6, 0)
        if size > PIECE * 64:
            raise NotInPieces("the page has too many levels")
        return levels + stream.read(size)
    for most in (page.max_repetition, page.max_definition):
        if most:
            head = stream.read(4)
            size = int.from_bytes(head, "little")
            if size > PIECE * 64:
                raise NotInPieces("the page has too many levels")
            levels += head + stream.read(size)
    return levels


def _compress(page: Page, data: bytes) -> bytes:
    import pyarrow

    if not page.is_compressed or page.codec == "UNCOMPRESSED":
        return data
    packed: bytes = pyarrow.Codec(page.codec.lower()).compress(data, asbytes=True)
    return packed


def _thrift(fields: dict[int, Any]) -> bytes:
    """A struct of integers, booleans and structs in thrift's compact protocol."""
    data, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        kind = 12 if isinstance(value, dict) else 5 if not isinstance(value, bool) else 1 if value else 2
        data.append((number - last) << 4 | kind)
        last = number
        if kind == 12:
            data += _thrift(value)
        elif kind == 5:
            rest = value << 1 if value >= 0 else (-value << 1) - 1
            while rest > 127:
                data.append(rest & 127 | 128)
                rest >>= 7
            data.append(rest)
    return bytes(data) + b"\x00"
