"""Reads input files: lines of plain or compressed text, rows of Parquet, record batches of Arrow.

A broken file raises UserError that names it. Nothing here knows what a document is (reader.py does).
compression.py decompresses, charsets.py makes UTF-8 of other encodings.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any

from ..core.config import UserError, shown_names
from ..core.unicode import without_mark
from . import charsets, column_sizes, compression, large_pages, page_data, row_sizes, values

NEWLINE = ord("\n")
# Many blank lines, which are skipped; the first newline ends the line before them.
BLANK_LINES = re.compile(rb"\n\s{64,}\n")
SHORT_LINE = 16  # bytes of a line on average, below which blank lines are searched for
# Of the buffer of a plain file of lines. All but the end of a larger block is read past it, without a copy.
BUFFER_BYTES = 1 << 13
LINES_BYTES = 1 << 17  # of lines at a time: as many as fit the second-level cache are parsed fastest
MAX_REFUSED_ROWS = 1_000_000  # of a row group or batch that is not read; each is a line of rejects.jsonl
BATCH_ROWS = 1024  # that are decoded at once
# A dictionary of Parquet makes a file of 24 kB of a million rows with the same megabyte.
GROUP_BYTES, GROUP_EXPANSION = 1 << 30, 1000
ROW_BYTES = 64  # at least, of a row that is written: its id and the marks of JSON
ARROW_MAGIC, ARROW_HEADER_BYTES = b"ARROW1", 8
CONTINUATION = b"\xff" * 4  # before each message of an Arrow stream
BEGINNING_BYTES = 1000  # that are kept of a record which is too long
# The longest books have 20 MB, a file on GitHub at most 105 MB, a page of Wikipedia 2 MB of text.
MAX_RECORD_BYTES = 128_000_000
KEY_REMEDY = "name the text's with --text-key (of `mt data tokenize`: --json-keys)"
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

    size: the bytes of a line or row, or the number of rows; its `len`. beginning: the first bytes. rows: for
    how many rows it stands.
    """

    size: int
    beginning: bytes
    reason: str
    rows: int = 1

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

    Yields (offset of the first line in bytes, None for its unknown number, lines). A line of more
    than `max_bytes` without its newline is a Refused. Of many blank lines in succession none may be yielded.
    """
    with open(path, "rb", buffering=BUFFER_BYTES) as file:
        position = start
        if start > 0:  # a line that begins before `start` belongs to the shard before
            file.seek(start - 1)
            position += _skip_line(file, end - start + 1) - 1
        while position < end:
            groups, size, _ = _next_lines(file, min(LINES_BYTES, end - position), max_bytes)
            if not size:
                raise UserError(
                    f"{path}: is shorter than when this command began; leave the input alone and run it again"
                )
            for offset, _, lines in groups:
                yield position + offset, None, lines
            position += size


def packed_lines(
    path: str, max_bytes: int = MAX_RECORD_BYTES, encoding: str = charsets.UTF8
) -> Iterator[tuple[int, int, Lines]]:
    """The lines of a text file that is compressed or not in UTF-8, some at a time.

    Yields (byte offset of the first line in the plain text, its number from 1, lines). A line of more than
    `max_bytes` without its newline is a Refused. Of many blank lines in succession none may be yielded.
    Raises UserError where the compressed data is broken. encoding: of a file that begins with no byte-order
    mark; the lines, and the offsets, are those of UTF-8.
    """
    position, number = 0, 1
    with (
        broken_data_named(path, lambda: position),
        charsets.open_utf8(path, encoding) as file,
    ):
        while (read := _next_lines(file, LINES_BYTES, max_bytes))[1]:
            groups, size, count = read
            for offset, before, lines in groups:
                yield position + offset, number + before, lines
            position += size
            number += count


def arriving_lines(
    read: Callable[[int], bytes], max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, int, Lines]]:
    """The lines of a stream, as soon as they have arrived.

    read: returns at most so many bytes, those that are there; it waits while there are none, and returns b""
    at the end. Yields and refuses what `packed_lines` does.
    """
    position, number = 0, 1
    begun, dropped = bytearray(), 0  # the line that is not whole, and what is not kept of it
    while True:
        block = read(LINES_BYTES)
        whole, newline, rest = block.rpartition(b"\n")
        lines: Lines = io.BytesIO(whole + newline).readlines()
        if lines or not block:
            first, begun = bytes(begun + (lines.pop(0) if lines else b"")), bytearray()
            size = dropped + len(first)
            if size:
                lines.insert(0, first if not dropped else too_long(size, max_bytes, first))
            size += sum(map(len, lines[1:]))
            lines = [
                line
                if isinstance(line, Refused) or _fits(line, max_bytes)
                else too_long(len(line), max_bytes, line)
                for line in lines
            ]
            if lines:
                yield position, number, lines
            position, number, dropped = position + size, number + len(lines), 0
        if not block:
            return
        begun += rest
        if len(begun) > max(max_bytes, BEGINNING_BYTES) + 1:
            dropped += len(begun) - BEGINNING_BYTES - 1
            del begun[BEGINNING_BYTES + 1 :]


@contextlib.contextmanager
def broken_data_named(path: str, position: Callable[[], int] | None = None) -> Iterator[None]:
    """Raises UserError where the compressed data of a file is broken. position: bytes of text so far."""
    try:
        yield
    except compression.BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file, not of what is in it
            raise
        after = f" after {position():,} bytes of text" if position else ""
        raise UserError(
            f"{path}: the compressed data ends or breaks{after} ({compression.reason(error)}"
        ) from None


Group = tuple[int, int, Lines]  # the bytes and the lines of a block before the first of some lines; these


def _next_lines(file: IO[bytes], size: int, max_bytes: int) -> tuple[list[Group], int, int]:
    """(groups of the lines that begin in the next `size` bytes of a file, their bytes, their number).

    Blank lines in great number are in no group. There are no bytes at the end of the file.
    """
    block = file.read(size)
    groups: list[Group] = []
    if max_bytes >= size and block.isspace():  # quick: it ends at the first byte that is none
        groups, count = _without_blank_lines(block)
    else:
        lines: Lines = io.BytesIO(block).readlines()
        groups, count = [(0, 0, lines)], len(lines)
        if max_bytes >= size and count > len(block) // SHORT_LINE:
            groups, count = _without_blank_lines(block)
    read = len(block)
    if block and block[-1] != NEWLINE:
        lines = groups[-1][2]
        begun = lines.pop()
        lines.append(_finish_line(file, begun, max_bytes))
        read += len(lines[-1]) - len(begun)
    if max_bytes < size:  # else no line within the block is too long
        groups = [(o, n, [_or_refused(line, max_bytes) for line in some]) for o, n, some in groups]
    return groups, read, count


def _without_blank_lines(block: bytes) -> tuple[list[Group], int]:
    """(the lines of a block, without long runs of blank ones; the number of all lines)."""
    groups: list[Group] = []
    at = number = 0
    ends = [(run.start(), run.end() - 1) for run in BLANK_LINES.finditer(b"\n" + block)]
    for start, end in [*ends, (len(block), len(block))]:  # of the blank lines
        if some := io.BytesIO(block[at:start]).readlines():
            groups.append((at, number, some))
        number += len(some) + block.count(b"\n", start, end)
        at = end
    return groups, number


def _or_refused(line: bytes | Refused, max_bytes: int) -> bytes | Refused:
    if isinstance(line, Refused) or _fits(line, max_bytes):
        return line
    return too_long(len(line), max_bytes, line)


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
                line = (without_mark(raw) if number == 1 else raw).decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: byte {error.start} is not UTF-8; save the file as UTF-8"
                ) from None
            if line.strip():
                any_line = True
                yield number, line
    if not any_line:
        raise UserError(f"{path}: the file is empty; check the path")


def row_group_bytes(path: str | Path) -> Iterator[int]:
    """The size of every row group of a Parquet file, in bytes."""
    metadata = open_parquet(path).metadata
    return (metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def open_parquet(path: str | Path) -> Any:
    """The pyarrow.parquet.ParquetFile of a path; raises UserError if it is not a whole Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = _open(path)
        schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{path}: not a whole Parquet file ({str(error).splitlines()[0]}); fetch or write it again"
        ) from None
    _check_schema(path, schema)
    _check_rows(path, file.metadata.num_rows, os.path.getsize(path))
    return file


def _open(source: Any, dictionaries: tuple[str, ...] = ()) -> Any:
    """The pyarrow.parquet.ParquetFile of a path or file. dictionaries: the paths of texts to read as such."""
    import pyarrow.parquet

    # With a buffer a column of a row group is not read as a whole.
    return pyarrow.parquet.ParquetFile(
        source, buffer_size=1 << 20, read_dictionary=list(dictionaries) or None
    )


Rows = tuple[int, Any]  # (number of the first in the file from 0, pyarrow.RecordBatch; or Refused for one)


def parquet_batches(
    file: Any, path: str, start: int, end: int, max_bytes: int, columns: list[str] | None = None
) -> Iterator[Rows]:
    """The rows of the row groups [start, end) of a Parquet file, at most BATCH_ROWS at a time.

    A batch takes max_bytes at most. A row that takes more is a Refused. So are the rows of a row group with a
    page that must not be decoded, or that becomes far larger than any text is compressed.

    file: what open_parquet returns for the path. columns: those to read; None for all.
    """
    most = GROUP_BYTES * (end - start) / max(1, file.metadata.num_row_groups)  # all shards of a file together
    group, size = start, 0
    while group < end:
        stop, packed = end, sum(_packed_bytes(file, g) for g in range(start, group))
        if size > most and size > GROUP_EXPANSION * packed:
            reason = _expansion(file, path, group, max_bytes, columns)
            if reason:
                yield _first_row(file, group), _refused_rows(file.metadata.row_group(group).num_rows, reason)
                group += 1
                continue
            stop = group + 1
        groups = range(group, stop)
        allowed = max(most, GROUP_EXPANSION * packed) - size
        group, more = yield from _of_groups(file, path, groups, max_bytes, columns, allowed)
        size += more


def _first_row(file: Any, group: int) -> int:
    return sum(file.metadata.row_group(g).num_rows for g in range(group))


def _expansion(file: Any, path: str, group: int, max_bytes: int, columns: list[str] | None) -> str:
    """Why a row group is not read after others which became far larger than they are, or an empty text."""
    packed = _packed_bytes(file, group)
    try:
        if column_sizes.most_bytes(file, path, group, columns, max_bytes) <= GROUP_EXPANSION * packed:
            return ""
    except column_sizes.TooLarge as error:
        return f"is in row group {group}, which is not read: {error}"
    except (OSError, ValueError) as error:
        raise _broken_group(path, group, error) from None
    reason = f"which may become more than {GROUP_EXPANSION} times its {packed:,} bytes"
    return f"is in row group {group}, {reason}, as those before it do"


def _broken_group(path: str, group: int, error: Exception) -> UserError:
    return UserError(
        f"{path}: row group {group} cannot be read ({str(error).splitlines()[0]}); fetch or write the file"
        " again"
    )


def _of_groups(
    file: Any, path: str, groups: range, max_bytes: int, columns: list[str] | None, allowed: float
) -> Generator[Rows, None, tuple[int, int]]:
    """The rows of row groups; returns the first that was not read, and the bytes that all became.

    It ends early where these are more than `allowed`, and far more than the row groups have.
    """
    import pyarrow

    first, group = _first_row(file, groups.start), groups.start
    total = size = 0  # bytes of all, of the current row group
    last_rows = list(itertools.accumulate(file.metadata.row_group(g).num_rows for g in range(groups.stop)))
    try:
        for at_once, run in _equal_runs(file, path, groups, max_bytes, columns):
            group, size = run[0], 0
            if isinstance(at_once, column_sizes.LargePages):
                yield from _rows_of_large_pages(file, path, group, first, at_once, max_bytes, columns)
                first = last_rows[group]
                continue
            if isinstance(at_once, Refused):
                yield first, at_once
                first += len(at_once)
                continue
            rows, shared = at_once
            source = _open(path, shared) if shared else file
            # With threads pyarrow takes twice the processor time, which the other workers need.
            for batch in source.iter_batches(rows, run, columns, use_threads=False):
                for row, part, part_bytes in _sized(first, batch, max_bytes):
                    if shared and not isinstance(part, Refused):
                        part = _with_texts(part, file.schema_arrow)
                        part_bytes = row_sizes.of_batch(part)[0]
                    yield row, part
                    size, total = size + part_bytes, total + part_bytes
                first += len(batch)
                while group < groups.stop and first >= last_rows[group]:
                    group, size = group + 1, 0
                if total <= allowed or group == groups.stop:
                    continue
                packed = _packed_bytes(file, group)
                if size > GROUP_EXPANSION * packed:
                    reason = f"which becomes more than {GROUP_EXPANSION} times its {packed:,} bytes"
                    reason = f"is among the last rows of row group {group}, {reason}"
                    yield first, _refused_rows(last_rows[group] - first, reason)
                    return group + 1, total
                packed += sum(_packed_bytes(file, g) for g in range(groups.start, group))
                if total > GROUP_EXPANSION * packed:
                    if first > _first_row(file, group):
                        reason = f"behind others that become more than {GROUP_EXPANSION} times their bytes"
                        reason = f"is among the last rows of row group {group}, {reason}"
                        yield first, _refused_rows(last_rows[group] - first, reason)
                        group += 1
                    return group, total
        if first < last_rows[-1]:  # as pyarrow does where the first page is empty
            raise ValueError(f"{last_rows[-1] - first:,} of its rows are missing")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _broken_group(path, group, error) from None
    return groups.stop, total


def _rows_of_large_pages(
    file: Any,
    path: str,
    group: int,
    first: int,
    large: column_sizes.LargePages,
    max_bytes: int,
    columns: list[str] | None,
) -> Iterator[Rows]:
    """The rows of a row group with pages that are not decoded as a whole; first: the number of the first."""
    rows = file.metadata.row_group(group).num_rows
    names = list(dict.fromkeys(page.column for page in large.pages))
    begin, done = [0] * len(large.pages), 0
    last_done, tries = -1, 0
    while done < rows:
        tries = tries + 1 if done == last_done else 0
        last_done = done
        try:
            # A list may have more texts than one view has room for.
            if tries > len(large.pages):
                raise page_data.NotInPieces("a row has too many texts in lists")
            patched = large_pages.PatchedFile(path, large.pages, begin, max_bytes)
        except page_data.NotInPieces as error:
            if large.is_bomb or done:
                reason = f"is in row group {group}, which is not read: {large} ({error})"
                yield first + done, _refused_rows(rows - done, reason)
                return
            for batch in file.iter_batches(1, [group], columns, use_threads=False):
                yield from _bounded(first + done, batch, max_bytes)
                done += len(batch)
            return
        with patched:
            at_once = max(1, min(large.rows, max_bytes // (patched.longest + 1)))
            at, mark = 0, None
            for batch in _open(patched).iter_batches(at_once, [group], columns, use_threads=False):
                for row in _rows_from(batch, max(0, done - at), names):
                    mark = large_pages.find_mark(_bytes_of(row.select(names)))
                    if mark and mark.kind == large_pages.LATER:
                        break
                    if mark:
                        yield first + done, too_long(mark.number, max_bytes, _short_values(row))
                    else:
                        yield from _bounded(first + done, row, max_bytes)
                    done, mark = done + len(row), None
                at += len(batch)
                if mark:
                    begin[mark.page] = mark.number
                    break
            if not mark and done < rows:
                raise ValueError("it has fewer rows than its metadata says")


def _rows_from(batch: Any, start: int, names: list[str]) -> Iterator[Any]:
    """The rows of a batch from `start` on, together if no value in these columns is a mark."""
    batch = batch.slice(start)
    if not len(batch) or not large_pages.find_mark(_bytes_of(batch.select(names))):
        return iter([batch])
    return (batch.slice(i, 1) for i in range(len(batch)))


def _decoded(batch: Any) -> list[Any]:
    """The columns of a batch, without dictionaries, which may have values of other rows."""
    from pyarrow import types

    return [c.dictionary_decode() if types.is_dictionary(c.type) else c for c in batch.columns]


def _bytes_of(batch: Any) -> Any:
    """A buffer with all values of a batch, without those of other rows."""
    import pyarrow

    decoded = pyarrow.record_batch(_decoded(batch), names=batch.schema.names)
    # A slice would be written with bytes beside it.
    decoded = decoded.take(pyarrow.array(range(len(batch)), pyarrow.int64()))
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, decoded.schema) as stream:
        stream.write_batch(decoded)
    return sink.getvalue()


def _packed_bytes(file: Any, group: int) -> int:
    metadata = file.metadata.row_group(group)
    return sum(metadata.column(i).total_compressed_size for i in range(metadata.num_columns))


# What column_sizes.rows_at_once returns, or why a row group is not decoded like that
AtOnce = tuple[int, tuple[str, ...]] | Refused | column_sizes.LargePages


def _equal_runs(
    file: Any, path: str, groups: range, max_bytes: int, columns: list[str] | None
) -> Iterator[tuple[AtOnce, list[int]]]:
    """(how to decode, row groups) of consecutive row groups for which that is the same.

    A row group that must not be decoded is alone, with a Refused, or with the pages that are read in pieces.
    """
    run: list[int] = []
    common: AtOnce = (0, ())
    for group in groups:
        at_once: AtOnce
        try:
            at_once = column_sizes.rows_at_once(file, path, group, columns, max_bytes, BATCH_ROWS)
        except column_sizes.TooLarge as error:
            rows = file.metadata.row_group(group).num_rows
            at_once = _refused_rows(rows, f"is in row group {group}, which is not read: {error}")
        except column_sizes.LargePages as error:
            at_once = error
        if run and (at_once != common or not isinstance(at_once, tuple)):
            yield common, run
            run = []
        run, common = [*run, group], at_once
    if run:
        yield common, run


def _bounded(first: int, batch: Any, max_bytes: int) -> Iterator[Rows]:
    """A batch, or each of its rows if they take more than max_bytes together."""
    return ((row, part) for row, part, _ in _sized(first, batch, max_bytes))


def _sized(first: int, batch: Any, max_bytes: int) -> Iterator[tuple[int, Any, int]]:
    """The same, each with its bytes; a row that is not read counts as one."""
    most_memory = max(row_sizes.LEAST_MEMORY, row_sizes.MOST_MEMORY * max_bytes)
    try:
        size, memory = row_sizes.of_batch(batch)
        if size <= max_bytes and memory <= most_memory:
            yield first, batch, size
            return
        sizes = row_sizes.of_rows(batch)
    except row_sizes.TooMany:
        if len(batch) > 1:
            for i in range(len(batch)):
                yield from _sized(first + i, batch.slice(i, 1), max_bytes)
        else:
            reason = f"has more than {row_sizes.MOST_SHARED:,} values that share bytes"
            yield first, Refused(1, b"", reason), 1
        return
    for i in range(len(batch)):
        row, size, memory = batch.slice(i, 1), int(sizes[0, i]), int(sizes[1, i])
        if size > max_bytes:
            yield first + i, too_long(size, max_bytes, _short_values(row)), 1
        elif memory > most_memory:
            reason = (
                f"has values that take {memory:,} bytes of memory, more than {row_sizes.MOST_MEMORY} times"
            )
            reason = f"{reason} --max-record-bytes {max_bytes}"
            yield first + i, Refused(1, _short_values(row), reason), 1
        else:
            yield first + i, row, size


def _check_rows(path: str | Path, rows: int, packed: int) -> None:
    """Raises UserError if a file says that it has so many rows that its bytes cannot be what they say.

    A run of 50 million equal rows takes a few bytes, but each row is written, with an id of its own. packed:
    the bytes of the file.
    """
    if rows > MAX_REFUSED_ROWS and ROW_BYTES * rows > GROUP_EXPANSION * packed:
        raise UserError(
            f"{path}: has {rows:,} rows in {packed:,} bytes, and written as JSON they become more than"
            f" {GROUP_EXPANSION} times that; check the file"
        )


def _with_texts(batch: Any, schema: Any) -> Any:
    """A batch with the types that a schema has for its columns, without dictionaries that only these have."""
    import pyarrow

    alone = batch.take(pyarrow.array(range(len(batch)), pyarrow.int64()))  # without the rest of a slice
    return alone.cast(pyarrow.schema([schema.field(name) for name in batch.schema.names]))


def _short_values(row: Any) -> bytes:
    """The values of a batch of one row that are not long, as JSON."""
    try:
        sizes = [(name, row_sizes.of_batch(row.select([name]))) for name in row.schema.names]
        short = [name for name, size in sizes if sum(size) <= 2 * BEGINNING_BYTES]
        return values.json_bytes(values.rows_of_batch(row.select(short))[0])
    except (ValueError, row_sizes.TooMany):  # not UTF-8, an invalid value, or nested too deep
        return b""


def parquet_rows(
    path: str, start: int, end: int, key: str, max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, Any]]:
    """(number in the file from 0, row as a dict, or Refused) of the row groups [start, end).

    Raises UserError if there is no column `key`; an empty key needs no column.
    """
    file = open_parquet(path)
    check_column(path, key, file.schema_arrow.names)
    return rows_of(parquet_batches(file, path, start, end, max_bytes))


def rows_of(batches: Iterator[Rows]) -> Iterator[tuple[int, Any]]:
    """(number, row as a dict, or Refused) of every row of batches."""
    for first, batch in batches:
        if isinstance(batch, Refused):
            yield from _each_row(first, batch)
            continue
        try:
            rows = values.rows_of_batch(batch)
        except (UnicodeDecodeError, values.InvalidValue) as error:
            if len(batch) > 1:
                yield from rows_of((first + i, batch.slice(i, 1)) for i in range(len(batch)))
            elif isinstance(error, UnicodeDecodeError):
                place = f"byte {error.start} of a text ({error.object[error.start]:#04x})"
                yield first, Refused(1, error.object[:BEGINNING_BYTES], f"{place} is not UTF-8")
            else:
                yield first, Refused(1, b"", str(error))
            continue
        yield from enumerate(rows, first)


def _refused_rows(count: int, reason: str) -> Refused:
    return Refused(count, b"", reason, count)


def _each_row(first: int, refused: Refused) -> Iterator[tuple[int, Refused]]:
    """(number, Refused) of every row for which one stands; raises UserError if they are too many to list."""
    if refused.rows > MAX_REFUSED_ROWS:
        raise UserError(
            f"row {first + 1} and {refused.rows - 1:,} more cannot be read, since each {refused.reason};"
            " check the file"
        )
    return ((first + i, refused) for i in range(refused.rows))


def arrow_batches(path: str | Path, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Any]:
    """The pyarrow.RecordBatch objects of an Arrow stream or file; they stay in the file.

    A batch that must not be decompressed is a Refused with the number of its rows as length.
    """
    import pyarrow

    try:
        with _open_arrow(path) as file, _open_arrow(path) as again:
            stream = pyarrow.ipc.open_stream(file)
            _check_schema(path, stream.schema)
            has_dictionaries = "dictionary<" in str(stream.schema)
            for message in pyarrow.ipc.MessageReader.open_stream(again):
                if message.type not in ("record batch", "dictionary"):
                    continue
                try:
                    column_sizes.check_batch(message, max_bytes)
                except column_sizes.TooLarge as error:
                    if has_dictionaries:  # the stream cannot be read without it
                        raise UserError(f"{path}: a record batch is too large ({error})") from None
                    yield _refused_rows(error.rows, f"is in a record batch that is not read: {error}")
                    continue
                if message.type == "record batch":
                    yield (
                        stream.read_next_batch()
                        if has_dictionaries
                        else pyarrow.ipc.read_record_batch(message, stream.schema)
                    )
            _check_end(again)
    except (pyarrow.ArrowException, OSError, ValueError, IndexError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _broken_stream(path, error) from None


def _open_arrow(path: str | Path) -> Any:
    """The stream of an Arrow file, memory-mapped.

    `datasets` writes the stream alone. pandas and polars write the file format: the stream between
    ARROW_MAGIC, with two bytes of padding, and a footer that also ends in ARROW_MAGIC.
    """
    import pyarrow

    file = pyarrow.memory_map(str(path))
    if file.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
        file.seek(0)
        return file
    file.seek(file.size() - len(ARROW_MAGIC))
    if file.read() != ARROW_MAGIC:
        raise pyarrow.ArrowInvalid("its end is missing")
    file.seek(ARROW_HEADER_BYTES)
    return file


def _check_end(file: Any) -> None:
    """Raises pyarrow.ArrowInvalid where a stream that was read ends without its mark: it was cut.

    Arrow's format lets a stream end at any batch, but all writers end it by the mark when they are closed. A
    stream of Arrow before 0.15, which does not begin with CONTINUATION, has a shorter one.
    """
    import pyarrow

    end = file.tell()
    file.seek(0)
    begin = file.read(len(ARROW_MAGIC))
    if begin == ARROW_MAGIC:
        file.seek(ARROW_HEADER_BYTES)
        begin = file.read(len(CONTINUATION))
    mark = (CONTINUATION if begin.startswith(CONTINUATION) else b"") + bytes(4)
    file.seek(max(end - len(mark), 0))
    if file.read(len(mark)) != mark:
        raise pyarrow.ArrowInvalid("it ends without the mark of its end, so batches may be missing")


def _check_offsets(batch: Any) -> None:
    """Raises pyarrow.ArrowInvalid for a batch whose texts or lists would lie outside of its buffers."""
    import pyarrow
    from pyarrow import types

    raw = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    for column in batch.columns:
        # A time that is not valid makes its row one that cannot be read, as a text that is not UTF-8.
        (column.view(raw[column.type]) if column.type in raw else column).validate(
            full=not types.is_temporal(column.type)
        )


def arrow_rows(
    path: str, start: int, end: int, key: str, max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, Any]]:
    """(number in the file from 0, row as a dict, or Refused) of the record batches [start, end) of a stream.

    Raises UserError if there is no column `key`; an empty key needs no column.
    """
    import pyarrow

    first, size, packed = 0, 0, os.path.getsize(path)
    for number, batch in enumerate(itertools.islice(arrow_batches(path, max_bytes), end)):
        _check_rows(path, first + len(batch), packed)
        if number >= start and isinstance(batch, Refused):
            yield from _each_row(first, batch)
        elif number >= start:
            check_column(path, key, batch.schema.names)
            try:
                _check_offsets(batch)
            except pyarrow.ArrowInvalid as error:
                raise UserError(
                    f"{path}: record batch {number} is damaged ({error}); write it again"
                ) from None
            for i in range(0, len(batch), BATCH_ROWS):
                for row, part, part_bytes in _sized(first + i, batch.slice(i, BATCH_ROWS), max_bytes):
                    size += part_bytes
                    if size > GROUP_BYTES and size > GROUP_EXPANSION * packed:
                        raise UserError(
                            f"{path}: its rows up to row {row + 1} become more than {GROUP_EXPANSION} times"
                            f" its {packed:,} bytes; check the file"
                        )
                    yield from rows_of(iter([(row, part)]))
        first += len(batch)


def arrow_fields(path: str, kind: str) -> dict[str, Any]:
    """{name: pyarrow.Field} of the columns of a file; kind: "parquet" or "arrow"."""
    return {field.name: field for field in _schema(path, kind)}


def _schema(path: str, kind: str) -> Any:
    import pyarrow

    if kind == "parquet":
        return open_parquet(path).schema_arrow
    try:
        with _open_arrow(path) as file:
            return pyarrow.ipc.open_stream(file).schema
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _broken_stream(path, error) from None


def _broken_stream(path: str | Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a whole Arrow stream or file ({str(error).splitlines()[0]}); fetch or write it again"
    )


def _check_schema(path: str | Path, schema: Any) -> None:
    """Raises UserError for a schema in which two columns, or two fields of one, have the same name."""
    pending = [("", list(schema))]
    while pending:
        within, fields = pending.pop()
        try:
            names = [field.name for field in fields]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: the name of a column is not UTF-8 ({error.object!r}); write the file again"
            ) from None
        twice = next((name for name, count in collections.Counter(names).items() if count > 1), None)
        if twice is not None:
            raise UserError(
                f"{path}: has more than one column {within + twice!r}; rename or remove all but one of them"
            )
        for field in fields:
            pending.append((f"{within}{field.name}.", _fields_of(field.type)))


def _fields_of(kind: Any) -> list[Any]:
    """The fields of the structs that a value of a type has, without those of two unlike places together."""
    from pyarrow import types

    while not types.is_struct(kind):
        inner = values.children(kind)
        if len(inner) != 1:
            return []
        kind = inner[0]
    return list(kind)


def check_column(path: str, key: str, names: list[str]) -> None:
    """Raises UserError if a table has no column `key`; an empty key needs none."""
    if key and key not in names:
        raise UserError(f"{path}: has no column {key!r} (it has {shown_names(names)}); {KEY_REMEDY}")
