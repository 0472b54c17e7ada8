"""Reads input files: lines of plain or compressed text, rows of Parquet, record batches of Arrow.

A broken file raises UserError that names it. Nothing here knows what a document is (reader.py does). The
extension of a file, .gz or .zst, determines how its text is compressed.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from ..core.config import UserError
from . import column_sizes

READ_BYTES = 1 << 18
NEWLINE = ord("\n")
LINES_BYTES = 1 << 17  # of lines at a time: as many as fit the second-level cache are parsed fastest
# Of zstd at a time. Its decompressor returns all that they give, which is up to 32,768 times as much.
ZSTD_BYTES = 1 << 12
BATCH_ROWS = 1024  # that are decoded at once
# A dictionary of Parquet makes a file of 24 kB of a million rows with the same megabyte.
GROUP_BYTES, GROUP_EXPANSION = 1 << 30, 1000
SHARED_VALUES = re.compile(r"dictionary<|_view|run_end_encoded<")  # types of Arrow
BEGINNING_BYTES = 1000  # that are kept of a record which is too long
# The longest books have 20 MB, a file on GitHub at most 105 MB, a page of Wikipedia 2 MB of text.
MAX_RECORD_BYTES = 128_000_000
MAX_RECORD_HELP = (
    "a record or page of more bytes, decompressed, is one that cannot be read; memory for each worker is a"
    " few times as much (longer than any book, or any file of code on GitHub)"
)


def record_limit_rule(max_bytes: int) -> tuple[bool, str]:
    """The rule of the setting max_record_bytes, for config.check."""
    return max_bytes >= 1, f"max_record_bytes = {max_bytes} must be at least 1"


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Stands for a line, row, page or group of rows that is not read, mostly since it is too long.

    size: the bytes of a line, or the number of rows; its `len`. beginning: the first bytes.
    """

    size: int
    beginning: bytes
    reason: str

    def __len__(self) -> int:
        return self.size


Lines = list[Any]  # of bytes, and Refused


def too_long(size: int, max_bytes: int, beginning: bytes | bytearray = b"") -> Refused:
    """The stand-in for a record of `size` bytes, 0 if that is not known."""
    kept = bytes(beginning[:BEGINNING_BYTES])
    if len(beginning) > BEGINNING_BYTES:
        kept = re.sub(rb"[\xc0-\xff][\x80-\xbf]*\Z", b"", kept)  # not a part of a character
    bytes_of = f"{size:,} bytes, more than" if size else "more bytes than"
    return Refused(size, kept, f"has {bytes_of} --max-record-bytes {max_bytes}")


def lines_between(
    path: str, start: int, end: int, max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, None, Lines]]:
    """The lines of a plain text file whose first byte lies in [start, end), some at a time.

    Yields (offset of the first line in bytes, None for its unknown number, lines). An empty file gives one
    empty line. A line of more than `max_bytes` without its newline is a Refused.
    """
    with open(path, "rb", buffering=READ_BYTES) as file:
        position = start
        if start > 0:  # a line that begins before `start` belongs to the shard before
            file.seek(start - 1)
            position += _skip_line(file, end - start + 1) - 1
        if not end:
            yield 0, None, [b""]
        while position < end:
            lines, size = _next_lines(file, min(LINES_BYTES, end - position), max_bytes)
            if not lines:
                raise UserError(
                    f"{path}: is shorter than when this command began; leave the input alone and run it again"
                )
            yield position, None, lines
            position += size


def packed_lines(path: str, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[tuple[int, int, Lines]]:
    """The lines of a compressed text file, some at a time.

    Yields (byte offset of the first line in the plain text, its number from 1, lines). An empty file gives
    one empty line. A line of more than `max_bytes` without its newline is a Refused. Raises UserError where
    the compressed data is broken.
    """
    position, number = 0, 1
    try:
        with open_binary(path) as file:
            while (some := _next_lines(file, LINES_BYTES, max_bytes))[0]:
                lines, size = some
                yield position, number, lines
                position += size
                number += len(lines)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: the compressed data ends or breaks after {position:,} bytes of text ({error}); fetch"
            " the file again"
        ) from None
    if not os.path.getsize(path):
        yield 0, 1, [b""]


def _next_lines(file: IO[bytes], size: int, max_bytes: int) -> tuple[Lines, int]:
    """(the lines that begin in the next `size` bytes of a file, their bytes); no line at its end."""
    block = file.read(size)
    lines: Lines = io.BytesIO(block).readlines()
    read = len(block)
    if block and block[-1] != NEWLINE:
        begun = lines.pop()
        lines.append(_finish_line(file, begun, max_bytes))
        read += len(lines[-1]) - len(begun)
    if max_bytes < size:  # else no line within the block is too long
        lines = [
            line
            if isinstance(line, Refused) or _fits(line, max_bytes)
            else too_long(len(line), max_bytes, line)
            for line in lines
        ]
    return lines, read


def _fits(line: bytes | bytearray, max_bytes: int) -> bool:
    return len(line) <= max_bytes + line.endswith(b"\n")


def _finish_line(file: IO[bytes], begun: bytes, max_bytes: int) -> bytes | Refused:
    """The line that begins with these bytes and ends in the rest of the file."""
    line = bytearray(begun)
    while line[-1] != NEWLINE and len(line) <= max_bytes and (part := file.readline(LINES_BYTES)):
        line += part
    if _fits(line, max_bytes):
        return bytes(line)
    size, beginning = len(line), line[: BEGINNING_BYTES + 1]
    if line[-1] != NEWLINE:
        line.clear()
        size += _skip_line(file)
    return too_long(size, max_bytes, beginning)


def _skip_line(file: IO[bytes], limit: int = sys.maxsize) -> int:
    """Reads to the end of a line, but no more than `limit` bytes; returns their number."""
    skipped = 0
    while part := file.readline(min(LINES_BYTES, limit - skipped)):
        skipped += len(part)
        if part[-1] == NEWLINE:
            break
    return skipped


def utf8_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line of a plain text file that is not blank.

    Raises UserError if there is none, where the file is not UTF-8, and for a line of more than
    MAX_RECORD_BYTES.
    """
    any_line = False
    with open(path, "rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_RECORD_BYTES + 1), b""), 1):
            if len(raw) > MAX_RECORD_BYTES:
                raise UserError(
                    f"{path}, line {number}: has more than {MAX_RECORD_BYTES:,} bytes; check the file"
                )
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


def read_whole(path: str | Path) -> bytes:
    """The bytes of a file, decompressed as by open_binary.

    Raises UserError for a file that is large only since its compressed data is extremely repetitive.
    """
    limit = max(column_sizes.WHOLE_BYTES, column_sizes.EXPANSION * os.path.getsize(path))
    with open_binary(path) as file:
        data = bytearray()
        while len(data) <= limit and (more := file.read(READ_BYTES)):
            data += more
    if len(data) > limit:
        raise UserError(f"{path}: becomes more than {limit:,} bytes; decompress it yourself if it is sound")
    return bytes(data)


class _ZstdFile(io.RawIOBase):
    """The plain text of a zstd file of one or more frames.

    Raises EOFError where a frame is cut short; the library itself ends there without an error.
    """

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this object
        self._packed, self._next = b"", 0  # compressed bytes, and the place of those not yet decompressed
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._in_frame = False
        self._ready = memoryview(b"")  # decompressed, not yet read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._next == len(self._packed):
                self._packed, self._next = self._file.read(1 << 17), 0
                if not self._packed:
                    if self._in_frame:
                        raise EOFError("a zstd frame is cut short")
                    return 0
            self._ready = memoryview(b"")  # an empty part would keep all of the last piece in memory
            piece = self._packed[self._next : self._next + ZSTD_BYTES]
            self._next += len(piece)
            self._ready = memoryview(self._frame.decompress(piece))
            self._in_frame = not self._frame.eof
            if self._frame.eof:
                self._next -= len(self._frame.unused_data)
                self._frame = zstandard.ZstdDecompressor().decompressobj()
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


Rows = tuple[int, Any]  # (number of the first in the file from 0, pyarrow.RecordBatch; or Refused for one)


def parquet_batches(
    file: Any, path: str, start: int, end: int, max_bytes: int, columns: list[str] | None = None
) -> Iterator[Rows]:
    """The rows of the row groups [start, end) of a Parquet file, at most BATCH_ROWS at a time.

    A batch takes max_bytes at most. A row that takes more is a Refused. So are the rows of a row group with a
    page that must not be decoded, or that becomes far larger than any text is compressed.

    file: what open_parquet returns for the path. columns: those to read; None for all.
    """
    import pyarrow

    last_rows = list(itertools.accumulate(file.metadata.row_group(g).num_rows for g in range(end)))
    first, group = last_rows[start - 1] if start else 0, start
    try:
        for at_once, groups in _equal_runs(file, path, range(start, end), max_bytes, columns):
            group, size = groups[0], 0
            if isinstance(at_once, Refused):
                yield first, at_once
                first += len(at_once)
                continue
            # With threads pyarrow takes twice the processor time, which the other workers need.
            for batch in file.iter_batches(at_once, groups, columns, use_threads=False):
                for row, part in _bounded(first, batch, max_bytes):
                    yield row, part
                    size += 0 if isinstance(part, Refused) else part.nbytes
                first += len(batch)
                while group < end and first >= last_rows[group]:
                    group, size = group + 1, 0
                if size > GROUP_BYTES and size > GROUP_EXPANSION * (packed := _packed_bytes(file, group)):
                    reason = f"which becomes more than {GROUP_EXPANSION} times its {packed:,} bytes"
                    yield (
                        first,
                        Refused(
                            last_rows[group] - first, b"", f"begins the rest of row group {group}, {reason}"
                        ),
                    )
                    yield from parquet_batches(file, path, group + 1, end, max_bytes, columns)
                    return
    except (pyarrow.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(
            f"{path}: row group {group} cannot be read ({str(error).splitlines()[0]}); fetch or write the"
            " file again"
        ) from None


def _packed_bytes(file: Any, group: int) -> int:
    metadata = file.metadata.row_group(group)
    return sum(metadata.column(i).total_compressed_size for i in range(metadata.num_columns))


def _equal_runs(
    file: Any, path: str, groups: range, max_bytes: int, columns: list[str] | None
) -> Iterator[tuple[int | Refused, list[int]]]:
    """(rows to decode at once, row groups) of consecutive row groups for which that is the same number.

    A row group that must not be decoded is alone, with a Refused.
    """
    run: list[int] = []
    common: int | Refused = 0
    for group in groups:
        at_once: int | Refused
        try:
            at_once = column_sizes.rows_at_once(file, path, group, columns, max_bytes, BATCH_ROWS)
        except column_sizes.TooLarge as error:
            rows = file.metadata.row_group(group).num_rows
            at_once = Refused(rows, b"", f"begins row group {group}, which is not read: {error}")
        if run and (at_once != common or isinstance(at_once, Refused)):
            yield common, run
            run = []
        run, common = [*run, group], at_once
    if run:
        yield common, run


def _bounded(first: int, batch: Any, max_bytes: int) -> Iterator[Rows]:
    """A batch, or each of its rows if they take more than max_bytes together."""
    if batch.nbytes <= max_bytes:
        yield first, batch
        return
    for i in range(len(batch)):
        row = batch.slice(i, 1)
        if row.nbytes <= max_bytes:
            yield first + i, row
            continue
        short = [name for name in batch.schema.names if row.column(name).nbytes <= BEGINNING_BYTES]
        beginning = orjson.dumps(row.select(short).to_pylist()[0], default=str)
        yield first + i, too_long(row.nbytes, max_bytes, beginning)


def parquet_rows(
    path: str, start: int, end: int, key: str, max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, Any]]:
    """(number in the file from 0, row as a dict, or Refused) of the row groups [start, end).

    Raises UserError if there is no column `key`; an empty key needs no column.
    """
    file = open_parquet(path)
    _check_column(path, key, file.schema_arrow.names)
    return rows_of(parquet_batches(file, path, start, end, max_bytes))


def rows_of(batches: Iterator[Rows]) -> Iterator[tuple[int, Any]]:
    """(number, row as a dict, or Refused) of every row of batches."""
    for first, batch in batches:
        if isinstance(batch, Refused):
            yield first, batch
            continue
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            if len(batch) == 1:
                place = f"byte {error.start} of a text ({error.object[error.start]:#04x})"
                yield first, Refused(1, error.object[:BEGINNING_BYTES], f"{place} is not UTF-8")
            else:
                yield from rows_of((first + i, batch.slice(i, 1)) for i in range(len(batch)))
            continue
        yield from enumerate(rows, first)


def arrow_batches(path: str | Path, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Any]:
    """The pyarrow.RecordBatch objects of an Arrow stream, as `datasets` writes it; they stay in the file.

    A batch that must not be decompressed is a Refused with the number of its rows as length.
    """
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.memory_map(str(path)) as again:
            stream = pyarrow.ipc.open_stream(file)
            has_dictionaries = "dictionary<" in str(stream.schema)
            for message in pyarrow.ipc.MessageReader.open_stream(again):
                if message.type not in ("record batch", "dictionary"):
                    continue
                try:
                    column_sizes.check_batch(message, max_bytes)
                except column_sizes.TooLarge as error:
                    if has_dictionaries:  # the stream cannot be read without it
                        raise UserError(f"{path}: a record batch is too large ({error})") from None
                    yield Refused(error.rows, b"", f"begins a record batch that is not read: {error}")
                    continue
                if message.type == "record batch":
                    yield (
                        stream.read_next_batch()
                        if has_dictionaries
                        else pyarrow.ipc.read_record_batch(message, stream.schema)
                    )
    except (pyarrow.ArrowInvalid, OSError, ValueError, IndexError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{path}: not a whole Arrow stream ({str(error).splitlines()[0]}); fetch or write it again"
        ) from None


def _check_offsets(batch: Any) -> None:
    """Raises pyarrow.ArrowInvalid for a batch whose texts or lists would lie outside of its buffers."""
    import pyarrow

    raw = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    for column in batch.columns:
        (column.view(raw[column.type]) if column.type in raw else column).validate(full=True)


def arrow_rows(
    path: str, start: int, end: int, key: str, max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, Any]]:
    """(number in the file from 0, row as a dict, or Refused) of the record batches [start, end) of a stream.

    Raises UserError if there is no column `key`; an empty key needs no column.
    """
    import pyarrow

    first = 0
    for number, batch in enumerate(itertools.islice(arrow_batches(path, max_bytes), end)):
        if number >= start and isinstance(batch, Refused):
            yield first, batch
        elif number >= start:
            _check_column(path, key, batch.schema.names)
            try:
                _check_offsets(batch)
            except pyarrow.ArrowInvalid as error:
                raise UserError(
                    f"{path}: record batch {number} is damaged ({error}); write it again"
                ) from None
            # A row of these types can repeat bytes of other rows, so that their sum is not known.
            at_once = 1 if SHARED_VALUES.search(str(batch.schema)) else BATCH_ROWS
            for i in range(0, len(batch), at_once):
                yield from rows_of(_bounded(first + i, batch.slice(i, at_once), max_bytes))
        first += len(batch)


def _check_column(path: str, key: str, names: list[str]) -> None:
    if key and key not in names:
        raise UserError(
            f"{path}: has no column {key!r} (it has {', '.join(names)}); name the text's with --text-key"
        )
