"""Reads input files: lines of plain or compressed text, rows of Parquet, record batches of Arrow.

A broken file raises UserError that names it. Nothing here knows what a document is (reader.py does). The
extension of a file, .gz or .zst, determines how its text is compressed.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from ..core.config import UserError

READ_BYTES = 1 << 18
LINES_BYTES = 1 << 17  # of lines at a time: as many as fit the second-level cache are parsed fastest


def lines_between(path: str, start: int, end: int) -> Iterator[tuple[int, None, list[bytes]]]:
    """The lines of a plain text file whose first byte lies in [start, end), some at a time.

    Yields (offset of the first line in bytes, None for its unknown number, lines). An empty file gives one
    empty line.
    """
    with open(path, "rb", buffering=READ_BYTES) as file:
        if start > 0:
            file.seek(start - 1)
            file.readline()  # a line that begins before `start` belongs to the shard before
        position = file.tell()
        if not end:
            yield 0, None, [b""]
        while position < end:
            # readlines(n) stops after the line with which it has more than n bytes; n = 0 sets no limit.
            few = min(LINES_BYTES, end - position) - 1
            lines = file.readlines(few) if few else [file.readline()]
            if not lines or not lines[0]:
                raise UserError(
                    f"{path}: is shorter than when this command began; leave the input alone and run it again"
                )
            yield position, None, lines
            position = file.tell()


def packed_lines(path: str) -> Iterator[tuple[int, int, list[bytes]]]:
    """The lines of a compressed text file, some at a time.

    Yields (byte offset of the first line in the plain text, its number from 1, lines). An empty file gives
    one empty line. Raises UserError where the compressed data is broken.
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
    """(number from 1, line) of every line of a plain text file that is not blank.

    Raises UserError if there is none, and where the file is not UTF-8.
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


def open_binary(path: str | Path) -> io.BufferedReader:
    """Opens a file for reading bytes, decompressed as the ending of its name says (.gz, .zst)."""
    path = str(path)
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(path, "rb"), READ_BYTES)
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), READ_BYTES)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """The plain text of a zstd file of one or more frames.

    Raises EOFError where a frame is cut short; the library itself ends there without an error.
    """

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this object
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._in_frame = False
        self._ready = memoryview(b"")  # decompressed, not yet read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._in_frame = False
            else:
                rest = b""
            data = rest or self._file.read(1 << 17)
            if not data:
                if self._in_frame:
                    raise EOFError("a zstd frame is cut short")
                return 0
            self._in_frame = True
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def row_group_bytes(path: str | Path) -> Iterator[int]:
    """The size of every row group of a Parquet file, in bytes."""
    metadata = open_parquet(path).metadata
    return (metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def open_parquet(path: str | Path) -> Any:
    """The pyarrow.parquet.ParquetFile of a path; raises UserError if it is not a whole Parquet file."""
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


def parquet_rows(path: str, start: int, end: int, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number in the file from 0, row) of the row groups [start, end) of a Parquet file.

    Raises UserError if there is no column `key`; an empty key needs no column.
    """
    import pyarrow

    file = open_parquet(path)
    _check_column(path, key, file.schema_arrow.names)
    first = sum(file.metadata.row_group(g).num_rows for g in range(start))
    for group in range(start, end):
        try:
            # With threads pyarrow takes twice the processor time, which the other workers need.
            for batch in file.iter_batches(batch_size=1024, row_groups=[group], use_threads=False):
                yield from enumerate(batch.to_pylist(), first)
                first += len(batch)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path}: row group {group} cannot be read ({str(error).splitlines()[0]}); fetch or write the"
                " file again"
            ) from None


def arrow_batches(path: str | Path) -> Iterator[Any]:
    """The pyarrow.RecordBatch objects of an Arrow stream, as `datasets` writes it; they stay in the file."""
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


def arrow_rows(path: str, start: int, end: int, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number in the file from 0, row) of the record batches [start, end) of an Arrow stream.

    Raises UserError if there is no column `key`; an empty key needs no column.
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
