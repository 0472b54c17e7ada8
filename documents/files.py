"""the files that hold documents, as lines of text, rows of Parquet and batches of Arrow; broken ones are
named.

Nothing here knows what a document is (documents.py). Text is decompressed on the way, by the ending of its
file's name.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from ..core.config import UserError

READ_BYTES = 1 << 18
LINES_BYTES = 1 << 17  # at a time: what fits the second-level cache is parsed quickest


def lines_between(path: str, start: int, end: int) -> Iterator[tuple[int, None, list[bytes]]]:
    """(offset of the first, None, some lines) of the lines of a plain file whose first byte lies in [start,
    end).

    An empty file gives one empty line.
    """
    with open(path, "rb", buffering=READ_BYTES) as file:
        if start > 0:
            file.seek(start - 1)
            file.readline()  # the line under way at start belongs to the shard before
        position = file.tell()
        if not end:
            yield 0, None, [b""]
        while position < end:
            # readlines(n) stops behind the line with which it has more than n bytes, and n = 0 would be no
            # limit.
            few = min(LINES_BYTES, end - position) - 1
            lines = file.readlines(few) if few else [file.readline()]
            if not lines or not lines[0]:
                raise UserError(
                    f"{path}: is shorter than when this command began; leave the input alone and run it again"
                )
            yield position, None, lines
            position = file.tell()


def packed_lines(path: str) -> Iterator[tuple[int, int, list[bytes]]]:
    """(offset of the first in the plain text, its number, some lines) of a compressed file.

    A file of no bytes gives one empty line. Raises UserError where the compression is broken.
    """
    position, number = 0, 1
    try:
        with open_binary(path) as file:
            while lines := file.readlines(LINES_BYTES):
                yield position, number, lines
                position += sum(map(len, lines))
                number += len(lines)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: the compressed data ends or breaks after {position:,} bytes of text ({error}); fetch"
            " the file again"
        ) from None
    if not os.path.getsize(path):
        yield 0, 1, [b""]


def utf8_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line of a plain file with something in it; raises UserError where none is, and
    for what is not UTF-8.
    """
    any_line = False
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: byte {error.start} is not UTF-8; save the file as UTF-8"
                ) from None
            if line.strip():
                any_line = True
                yield number, line
    if not any_line:
        raise UserError(f"{path}: the file is empty; check the path")


def open_binary(path: str | Path):
    """A file opened for reading bytes, decompressed by its extension (.gz, .zst)."""
    path = str(path)
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"), READ_BYTES)
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), READ_BYTES)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """The text of a zstd file of one or more frames; EOFError where a frame is cut short (the library ends
    quietly).
    """

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun, self._ready = False, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                rest = b""
            data = rest or self._file.read(1 << 17)
            if not data:
                if self._begun:
                    raise EOFError("a zstd frame is cut short")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def row_group_bytes(path: str | Path) -> Iterator[int]:
    """The size of every row group of a Parquet file, in bytes."""
    metadata = open_parquet(path).metadata
    return (metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def open_parquet(path: str | Path):
    """A pyarrow.parquet.ParquetFile; raises UserError where the file is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{path}: not a whole Parquet file ({str(error).splitlines()[0]}); fetch or write it again"
        ) from None


def parquet_rows(path: str, start: int, end: int, key: str) -> Iterator[tuple[int, dict]]:
    """(number in the file, row) of the row groups [start, end); raises UserError where there is no column
    `key` (any will do for "").
    """
    import pyarrow

    file = open_parquet(path)
    _check_column(path, key, file.schema_arrow.names)
    first = sum(file.metadata.row_group(g).num_rows for g in range(start))
    for group in range(start, end):
        try:
            # pyarrow's threads would take twice the processor time, from workers that are at work already.
            for batch in file.iter_batches(batch_size=1024, row_groups=[group], use_threads=False):
                yield from enumerate(batch.to_pylist(), first)
                first += len(batch)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path}: row group {group} cannot be read ({str(error).splitlines()[0]}); fetch or write the"
                " file again"
            ) from None


def arrow_batches(path: str | Path) -> Iterator:
    """The record batches of an Arrow stream, as `datasets` writes them; they lie in the file, not in memory."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            yield from pyarrow.ipc.open_stream(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{path}: not a whole Arrow stream ({str(error).splitlines()[0]}); fetch or write it again"
        ) from None


def arrow_rows(path: str, start: int, end: int, key: str) -> Iterator[tuple[int, dict]]:
    """(number in the file, row) of the record batches [start, end); raises UserError where there is no column
    `key`.
    """
    first = 0
    for number, batch in enumerate(itertools.islice(arrow_batches(path), end)):
        if number >= start:
            _check_column(path, key, batch.schema.names)
            for i in range(0, len(batch), 1024):
                yield from enumerate(batch.slice(i, 1024).to_pylist(), first + i)
        first += len(batch)


def _check_column(path: str, key: str, names: list[str]) -> None:
    if key and key not in names:
        raise UserError(
            f"{path}: has no column {key!r} (it has {', '.join(names)}); name the text's with --text-key"
        )
