"""Reads the records of a shard, whatever its format: JSON lines, JSON, CSV, Parquet, Arrow, text, HTML.

files.py reads lines, Parquet and Arrow, json_values.py and tables.py cut .json and .csv files into records,
sources.py streams datasets. Here the records of all of them get a place, and a reason where there is none.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from ..core.unicode import without_mark
from . import charsets, compression, files, html, html_encoding, json_values, sources, tables
from .sharding import EXTRACTOR, Shard

VALUE_BYTES, MIN_VALUES = 32, 1_000_000  # a value of JSON takes 8 to 200 bytes in memory
# Of more than 64 bits, which orjson reads as a floating-point number: 19 digits before any point.
LEAST_LONG, LONG_INTEGER = 2.0**63, re.compile(rb"[0-9](?<![.0-9].)[0-9]{18}")
MANY_VALUES = 8  # from which one call is faster than a loop
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# messages give the number of a line up to this offset in a JSONL file, then the offset
COUNTED_BYTES = 64 << 20


class Line:
    """The place of a line: its byte offset, and its number, which is counted only for a message."""

    __slots__ = ("encoding", "number", "path", "position")

    def __init__(self, shard: Shard, position: int, number: int | None = None):
        self.path, self.position, self.number = shard.path, position, number
        self.encoding = shard.encoding

    def __call__(self) -> str:
        if self.number is not None:
            return f", line {self.number}"
        if self.position > COUNTED_BYTES:  # counting would read a large file again for every bad line
            return f", byte {self.position}"
        left, number = self.position, 1
        with open(self.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                number += block.count(b"\n")
                left -= len(block)
        return f", line {number}"


class Row:
    """The place of a row: its number in a file, or SHARD:NUMBER in a Hugging Face dataset."""

    __slots__ = ("position", "row", "shard")

    def __init__(self, row: int, shard: int | None = None):
        self.row, self.shard = row, shard
        self.position: int | str = row if shard is None else f"{shard}:{row}"

    def __call__(self) -> str:
        return f", row {self.row + 1}" if self.shard is None else f", shard {self.shard}, row {self.row + 1}"


Place = Line | Row  # called, it gives the place as a message writes it: ", line 3"


# (place, bytes or row, record, "" or the reason why it cannot be parsed)
Record = tuple[Place, Any, Any, str]


def records(shard: Shard) -> Iterator[Record]:
    """Every record of a shard, in order. A text or HTML file is one record of `id` and text."""
    return READERS[shard.kind](shard)


def arriving(read: Callable[[int], bytes], shard: Shard) -> Iterator[list[Record]]:
    """The records of a stream of JSON lines, in lists of those that have arrived.

    read: as for files.arriving_lines. shard: names the stream; nothing of it is read.
    """
    for start, number, some in files.arriving_lines(read, shard.max_record_bytes):
        found: list[Record] = []
        offsets = itertools.accumulate(map(len, some), initial=start)
        for line, offset, count in zip(some, offsets, itertools.count(number)):
            if len(line) > files.LINES_BYTES and isinstance(line, bytes):
                line = _not_dense(line, shard.max_record_bytes)
            raw, record, problem = parsed(line, place := Line(shard, offset, count))
            if raw or problem:
                found.append((place, raw, record, problem))
        yield found


def _of_lines(shard: Shard) -> Iterator[Record]:
    for start, number, some in lines(shard):
        offsets = itertools.accumulate(map(len, some), initial=start)
        for index, (offset, line) in enumerate(zip(offsets, some)):
            raw, record, problem = parsed(line, place := Line(shard, offset, number and number + index))
            if raw or problem:
                yield place, raw, record, problem


def _of_json(shard: Shard) -> Iterator[Record]:
    """The values of an array, or those that stand one after another."""
    with (
        files.broken_data_named(shard.path),
        charsets.open_utf8(shard.path, shard.encoding) as file,
    ):
        for position, number, value in json_values.values(file, shard.max_record_bytes):
            place = Line(shard, position, number)
            if isinstance(value, bytes) and len(value) > files.LINES_BYTES:
                value = _not_dense(value, shard.max_record_bytes)
            yield place, *parsed(value, place)


def _of_table(shard: Shard) -> Iterator[Record]:
    """The rows of a .csv or .tsv file."""
    with (
        files.broken_data_named(shard.path),
        charsets.open_utf8(shard.path, shard.encoding) as file,
    ):
        found = tables.rows(
            file,
            shard.path,
            shard.kind,
            shard.key,
            shard.max_record_bytes,
            shard.encoding,
            shard.delimiter,
            shard.header,
        )
        for number, line, row in found:
            place = Line(shard, number, line)
            if isinstance(row, files.Refused):
                yield place, row.beginning, None, row.reason
            else:
                yield place, row, row, ""


def _of_rows(shard: Shard) -> Iterator[Record]:
    """The rows of a Parquet or Arrow file."""
    rows = files.parquet_rows if shard.kind == "parquet" else files.arrow_rows
    for row, record in rows(shard.path, shard.start, shard.end, shard.key, shard.max_record_bytes):
        if isinstance(record, files.Refused):
            yield Row(row), record.beginning, None, record.reason
        else:
            yield Row(row), record, record, ""


def _of_dataset(shard: Shard) -> Iterator[Record]:
    for index in range(shard.start, shard.end):
        for row, record in enumerate(sources.hub_records(shard.path, index)):
            text = record.get(shard.key)
            if isinstance(text, str) and len(text) > shard.max_record_bytes:
                long = files.too_long(len(text), shard.max_record_bytes, text[:1000].encode())
                yield Row(row, index), long.beginning, None, long.reason
            else:
                yield Row(row, index), record, record, ""


def _of_text(shard: Shard) -> Iterator[Record]:
    """The record of a file that is one text, or one page; none of an empty file."""
    place = Line(shard, 0, 1)
    with (
        files.broken_data_named(shard.path),
        (
            compression.open_binary(shard.path)
            if shard.kind == "html"
            else charsets.open_utf8(shard.path, shard.encoding)
        ) as file,
    ):
        raw = file.read(shard.max_record_bytes + 1)
    if len(raw) > shard.max_record_bytes:
        size = 0 if compression.ending(shard.path) else os.path.getsize(shard.path)
        long = files.too_long(size, shard.max_record_bytes, raw)
        yield place, long.beginning, None, long.reason
        return
    if not raw:
        return
    if shard.kind == "html":
        text, problem = _page_text(raw, shard.encoding)
        yield place, raw, {shard.key: text, "id": shard.label}, problem
        return
    raw = without_mark(raw)
    try:
        yield place, raw, {shard.key: raw.decode(), "id": shard.label}, ""
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"byte {error.start} of the file is not {shard.encoding.upper()}"
        yield Line(shard, 0, line), raw, None, reason


def _page_text(page: bytes, encoding: str) -> tuple[str, str]:
    """(the main text of an HTML file, "" or the reason why it cannot be parsed).

    encoding: what the user says of the file; html_encoding.py tells when it is not believed.
    """
    decoded = html_encoding.decode_page(page, None if encoding == charsets.UTF8 else encoding)
    if (tags := decoded.count("<")) > html.MAX_TAGS:
        return "", f"has {tags:,} tags, more than {html.MAX_TAGS:,}"
    text = html.main_text(decoded, EXTRACTOR)
    return ("", "its markup would take quadratic time") if text is None else (text, "")


def lines(shard: Shard) -> Iterator[tuple[int, int | None, files.Lines]]:
    """(offset of the first, its number if that is known, some lines) of the JSON lines of a shard."""
    for start, number, some in (
        files.lines_between(shard.path, shard.start, shard.end, shard.max_record_bytes)
        if shard.kind == "lines"
        else files.packed_lines(shard.path, shard.max_record_bytes, shard.encoding)
    ):
        if len(last := some[-1]) > files.LINES_BYTES and isinstance(last, bytes):  # no other is that long
            some[-1] = _not_dense(last, shard.max_record_bytes)
        yield start, number, some


def _not_dense(line: bytes, max_bytes: int) -> bytes | files.Refused:
    """The line, or a Refused if it has more values than one for VALUE_BYTES of max_bytes.

    `[[],[],[],...]` takes thirty times as much memory as a text of its length.
    """
    most = max(MIN_VALUES, max_bytes // VALUE_BYTES)
    if sum(map(line.count, (b",", b"[", b"{"))) <= most:
        return line
    values = sum(map(STRING.sub(b"", line).count, (b",", b"[", b"{")))  # a text may have these characters
    if values <= most:
        return line
    reason = f"has {values:,} values, more than --max-record-bytes {max_bytes} / {VALUE_BYTES}"
    return files.Refused(len(line), files.too_long(len(line), max_bytes, line).beginning, reason)


def may_have_long_integer(values: Iterable[Any]) -> bool:
    """Whether orjson may have read an integer of more than 64 bits as one of these values, or within one.

    It makes a floating-point number of it, whose magnitude is 2^63 or more; few others are that large.
    """
    for value in values:
        kind = type(value)
        if kind is str or kind is int:  # most are; the test of them first saves a sixth of the time
            continue
        if kind is float:
            if not -LEAST_LONG < value < LEAST_LONG:
                return True
        elif (kind is list or kind is dict) and value and _may_have_inside(value):
            return True
    return False


def _may_have_inside(value: list[Any] | dict[str, Any]) -> bool:
    """`may_have_long_integer` of the values of an array or object."""
    values = value if isinstance(value, list) else value.values()
    try:
        # Of numbers alone, this is at least the largest magnitude; it takes a fifth of the loop's time.
        if len(value) > MANY_VALUES and math.hypot(*values) < LEAST_LONG / 2:
            return False
    except TypeError:
        pass
    try:
        return may_have_long_integer(values)
    except RecursionError:
        return True


def loads(line: bytes) -> Any:
    """The value of a line of JSON, with integers of any size. Raises ValueError."""
    record = orjson.loads(line)
    if not may_have_long_integer((record,)):
        return record
    if not LONG_INTEGER.search(line) or not LONG_INTEGER.search(STRING.sub(b"", line)):
        return record
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("has a number of more than 64 bits and is nested too deep to read it") from None


def parsed(line: bytes | files.Refused, place: Line) -> tuple[bytes, Any, str]:
    """(the line without white space around it, its record, "" or what is wrong); a blank line gives b""."""
    if isinstance(line, files.Refused):
        return line.beginning, None, line.reason
    line = (without_mark(line) if place.position == 0 else line).strip()
    if not line:
        return b"", None, ""
    try:
        return line, loads(line), ""
    except orjson.JSONDecodeError as error:
        return line, None, _json_mistake(line, error, place.encoding)
    except ValueError as error:
        return line, None, str(error)


def _json_mistake(line: bytes, error: orjson.JSONDecodeError, encoding: str) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start + 1} of the line ({line[wrong.start]:#04x}) is not {encoding.upper()}"
    return f"malformed JSON at column {error.colno} ({error.msg.split(':')[0]})"


READERS: dict[str, Callable[[Shard], Iterator[Record]]] = {
    "lines": _of_lines,
    "packed": _of_lines,
    "json": _of_json,
    "csv": _of_table,
    "tsv": _of_table,
    "parquet": _of_rows,
    "arrow": _of_rows,
    "hub": _of_dataset,
    "text": _of_text,
    "html": _of_text,
}
