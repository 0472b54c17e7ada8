"""The decompressed data of a page of Parquet, in pieces.

pyarrow decompresses a page as a whole. Here its beginning can be read without the rest, and all of it in the
memory of one piece.

Formats: parquet-format, parquet.thrift; snappy, format_description.txt.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import zstandard

from ..core.numba_loops import compile_loop
from . import compression

PIECE = 1 << 20
LENGTH = struct.Struct("<I")  # before a PLAIN text
WINDOW = 1 << 16  # to which a copy of snappy reaches back
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3


class NotInPieces(Exception):
    """A page that cannot be read in pieces; the message says why."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of a column of Parquet.

    start, length: the bytes of header and data in the file. size: of the decompressed data. place, details:
    field and content of the header's struct for this kind of page, without statistics. codec: as pyarrow
    names it.
    """

    column: str
    start: int
    length: int
    header_bytes: int
    size: int
    kind: int
    place: int
    details: dict[int, Any]
    codec: str
    max_repetition: int
    max_definition: int

    @property
    def is_compressed(self) -> bool:
        return bool(self.details.get(7, True)) or self.kind != DATA_PAGE_V2


class Stream:
    """Reads from pieces of bytes. Raises ValueError where they end too early."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._piece, self._at = pieces, b"", 0

    def read(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._piece):
            data = self._piece[self._at : end]
            self._at = end
            return data
        parts = []
        while size:
            part = self._piece[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
            if size:
                self._next()
        return b"".join(parts)

    def is_at_end(self) -> bool:
        while self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, b""), 0
            if not self._piece:
                return True
        return False

    def skip(self, size: int) -> None:
        while size > (left := len(self._piece) - self._at):
            size -= left
            self._next()
        self._at += size

    def _next(self) -> None:
        self._piece, self._at = next(self._pieces, b""), 0
        if not self._piece:
            raise ValueError("a page is shorter than its values")


def plain_pieces(file: IO[bytes], page: Page) -> Iterator[bytes]:
    """The decompressed data of a page, in pieces that are not empty."""
    at, end = page.start + page.header_bytes, page.start + page.length
    if page.kind == DATA_PAGE_V2 and (levels := page.details.get(5, 0) + page.details.get(6, 0)):
        yield from _raw_pieces(file, at, at + levels)
        at += levels
    raw = _raw_pieces(file, at, end)
    codec = page.codec if page.is_compressed else "UNCOMPRESSED"
    if codec == "UNCOMPRESSED":
        yield from raw
    elif codec == "SNAPPY":
        yield from snappy_pieces(raw)
    elif codec == "GZIP":
        unpack = zlib.decompressobj(wbits=47)
        for packed in raw:
            while packed and (piece := unpack.decompress(packed, PIECE)):
                yield piece
                packed = unpack.unconsumed_tail
    elif codec == "ZSTD":
        frame = zstandard.ZstdDecompressor().decompressobj()
        for packed in raw:
            for i in range(0, len(packed), compression.ZSTD_BYTES):
                if piece := frame.decompress(packed[i : i + compression.ZSTD_BYTES]):
                    yield piece
    elif page.size <= compression.WHOLE_BYTES and page.kind != DATA_PAGE_V2:
        yield whole_data(file, page)
    else:
        raise NotInPieces(f"{codec} is not decompressed in pieces")


def whole_data(file: IO[bytes], page: Page) -> bytes:
    """The decompressed data of a page of the first version, or of a dictionary.

    For a small page it is quicker than pieces, whose loop for snappy takes half a second to load.
    """
    import pyarrow

    packed = b"".join(_raw_pieces(file, page.start + page.header_bytes, page.start + page.length))
    if page.codec == "UNCOMPRESSED":
        return packed
    codec = "lz4_raw" if page.codec == "LZ4" else page.codec.lower()
    try:
        data: bytes = pyarrow.Codec(codec).decompress(packed, page.size, asbytes=True)
    except (pyarrow.ArrowException, OSError, ValueError):  # in older files LZ4 has another frame
        raise NotInPieces(f"{page.codec} data cannot be decompressed here") from None
    return data


def longest_text(data: bytes) -> int:
    """The bytes of the longest of PLAIN texts; raises ValueError if the data is broken."""
    at = longest = 0
    try:
        while at < len(data):
            (size,) = LENGTH.unpack_from(data, at)
            at += LENGTH.size + size
            if size > longest:
                longest = size
    except struct.error:
        at += LENGTH.size
    if at != len(data):
        raise ValueError("a dictionary is broken")
    return longest


def _raw_pieces(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    while start < end:
        file.seek(start)
        piece = file.read(min(PIECE, end - start))
        if not piece:
            raise ValueError("a page is cut short")
        start += len(piece)
        yield piece


def snappy_pieces(raw: Iterator[bytes]) -> Iterator[bytes]:
    """The decompressed data of a block of snappy. Raises ValueError if it is broken."""
    step: Any = compile_loop(_snappy_step)
    source = np.empty(0, np.uint8)
    out = np.empty(WINDOW + PIECE + 64, np.uint8)
    begin = end = literal = 0  # out[begin:end] is not yet yielded; bytes of a literal that are to come
    is_first = True
    while True:
        piece = next(raw, b"")
        source = np.concatenate((source, np.frombuffer(piece, np.uint8)))
        if is_first and len(source):
            is_first = False
            size = int(np.argmax(source < 128)) + 1  # the length of all, which the page's header has too
            source = source[size:]
        while True:
            used, end, literal, is_broken = step(source, out, end, literal, not piece)
            if is_broken:
                raise ValueError("its snappy data is broken")
            source = source[used:]
            if end > begin:
                yield out[begin:end].tobytes()
            is_full = end > WINDOW + PIECE - 64
            kept = min(end, WINDOW)
            out[:kept] = out[end - kept : end].copy()
            begin = end = kept
            if not is_full:
                break
        if not piece:
            if len(source) or literal:
                raise ValueError("its snappy data ends too early")
            return


def _snappy_step(source, out, end, literal, is_last):  # type: ignore[no-untyped-def]  # compiled by numba
    """Decompresses until the source ends or `out` is full: (bytes used, end, literal, is it broken)."""
    at, size, room = 0, len(source), len(out)
    length: Any = np.int64(0)
    more: Any = np.int64(0)
    while True:
        if literal > 0:
            count = min(literal, size - at, room - 64 - end)
            out[end : end + count] = source[at : at + count]
            at, end, literal = at + count, end + count, literal - count
            if literal > 0:
                return at, end, literal, False
        if at >= size or end > room - 128 or (size - at < 5 and not is_last):
            return at, end, literal, False
        tag = np.int64(source[at])
        kind = tag & 3
        if kind == 0:
            length = tag >> 2
            more = max(0, length - 59)
            if size - at < 1 + more:
                return at, end, literal, True
            if more:
                length = np.int64(0)
                for i in range(more):
                    length |= np.int64(source[at + 1 + i]) << (8 * i)
            literal = length + 1
            at += 1 + more
            continue
        more = 4 if kind == 3 else kind
        if size - at < 1 + more:
            return at, end, literal, True
        if kind == 1:
            length = ((tag >> 2) & 7) + 4
            offset = ((tag >> 5) << 8) | np.int64(source[at + 1])
        else:
            length = (tag >> 2) + 1
            offset = np.int64(0)
            for i in range(more):
                offset |= np.int64(source[at + 1 + i]) << (8 * i)
        if offset == 0 or offset > end:
            return at, end, literal, True
        for i in range(length):
            out[end + i] = out[end + i - offset]
        end += length
        at += 1 + more
