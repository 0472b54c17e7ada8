"""Reads the records of .csv and .tsv files, of which the first row names the columns (RFC 4180).

A value may be quoted, and then hold the delimiter, line ends and doubled quotation marks. Every value is a
text. Python's csv module reads them, strictly: a row that breaks the rules is refused, not guessed.

Excel writes semicolons in countries where a number has a decimal comma, and perhaps a first line `sep=;`.
`find_delimiter` finds what divides the columns, if the first rows leave no doubt.
"""

from __future__ import annotations

import collections
import csv
import io
import re
import sys
from collections.abc import Iterator

from ..core.config import UserError, shown, shown_names
from ..core.unicode import MARK
from . import compression
from .files import BEGINNING_BYTES, GROUP_BYTES, GROUP_EXPANSION, KEY_REMEDY, Refused, too_long

USUAL = {"csv": ",", "tsv": "\t"}
DELIMITERS = (",", ";", "\t", "|")  # that are looked for
NAMES = {"tab": "\t", "\\t": "\t"}  # of delimiters, on a command line
SAMPLE_BYTES, SAMPLE_ROWS = 1 << 16, 100  # of a file, in which the delimiter is looked for
MAX_BLANK = 1_000_000  # blank lines, and GROUP_EXPANSION more for each row
SEP_LINE = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n|\Z)')  # of Excel, before the first row

Row = tuple[
    int, int, dict[str, str | None] | Refused
]  # its number from 0, that of its first line from 1, the row


def delimiter_rule(delimiter: str | None) -> tuple[bool, str]:
    """The rule of the setting `delimiter`, for config.check."""
    given = NAMES.get(delimiter or "", delimiter)
    holds = given is None or (len(given) == 1 and given not in '"\r\n\0 ')
    return holds, f"delimiter = {delimiter!r} must be one character, as in --delimiter ';', or tab"


def find_delimiter(file: io.BufferedReader, path: str, kind: str, key: str, header: bool) -> str:
    """The delimiter of a file of UTF-8; that of the kind where the first rows do not tell another one.

    It divides the first row so that a column has the name `key`, or else all of the first rows into the same
    number of columns. Raises UserError where two delimiters do the latter, none of them that of the kind.
    """
    raw = file.read(SAMPLE_BYTES)
    sample = raw.removeprefix(MARK).decode("utf-8", "replace")
    if line := SEP_LINE.match(sample):
        return line[1]
    usual = USUAL[kind]
    tables = {d: _first_rows(sample, d, whole=len(raw) < SAMPLE_BYTES) for d in DELIMITERS}
    named = [d for d, table in tables.items() if header and table and len(table[0]) > 1 and key in table[0]]
    if not header and key.isdecimal():
        tables = {d: table for d, table in tables.items() if table and len(table[0]) >= int(key)}
    even = [d for d, table in tables.items() if table and {len(table[0])} == set(map(len, table)) != {1}]
    found = named or even
    if usual in found or not found:
        return usual
    if len(found) > 1:
        shown = " and ".join(map(repr, found))
        raise UserError(f"{path}: {shown} divide its rows evenly; name the right one with --delimiter")
    return found[0]


def _first_rows(sample: str, delimiter: str, whole: bool) -> list[list[str]]:
    """The first rows of a sample of a file, without those from one on that breaks the rules.

    whole: whether the sample is the file; if it is not, its last row may not be whole.
    """
    found: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, strict=True):
            found += [row] if row else []
            if len(found) == SAMPLE_ROWS:
                return found
    except csv.Error:
        return found
    return found if whole else found[:-1]


def rows(
    file: io.BufferedReader,
    path: str,
    kind: str,
    key: str,
    max_bytes: int,
    encoding: str,
    delimiter: str = "",
    header: bool = True,
) -> Iterator[Row]:
    """The rows of a file of UTF-8 below the one with the names; blank lines are no rows.

    kind: "csv" or "tsv". key: of a column that must be there, if it is not empty. encoding: of the file, for
    messages. delimiter: that of the kind if it is empty. header: whether the first row names the columns;
    else their names are their numbers, from 1. An empty `id` is None. A row of more than max_bytes is a
    Refused, as is one that breaks the rules. Raises UserError for a first row that names no columns, or one
    twice.
    """
    csv.field_size_limit(sys.maxsize)  # _Lines limits the bytes of a row
    lines = _Lines(file, max_bytes)
    delimiter = delimiter or USUAL[kind]
    found = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number = blank = num_bytes = 0
    while True:
        lines.begin()
        row: list[str] | Refused | None
        try:
            row = next(found, None)
        except csv.Error as error:
            row = Refused(lines.size, lines.beginning(), f"breaks the rules of {kind.upper()} ({error})")
        except _TooLong:
            lines.skip_row()
            row = too_long(lines.size, max_bytes, lines.beginning())
        if row is None:
            return
        if isinstance(row, list) and (place := _wrong_byte(row)):
            row = Refused(lines.size, lines.beginning(), f"{place} is not {encoding.upper()}")
        num_bytes += lines.size
        if row == []:
            blank += 1
            if blank > MAX_BLANK + GROUP_EXPANSION * number:  # a small compressed file may have billions
                raise UserError(f"{path}: has {blank:,} blank lines, and {number:,} rows; check the file")
            continue
        if names is None:
            names = _names(row, path, key, delimiter, header)
            names_bytes = sum(len(name.encode(errors="replace")) for name in names)
            if header:
                continue
        if isinstance(row, list) and len(row) != len(names):
            problem = f"has {len(row)} values, but the first row has {len(names)}; they are divided by"
            row = Refused(lines.size, lines.beginning(), f"{problem} {delimiter!r}")
        record = row if isinstance(row, Refused) else _record(names, row)
        yield number, lines.first, record
        number += 1
        # Every row of JSON has the names of the columns.
        if names_bytes * number > max(GROUP_BYTES, GROUP_EXPANSION * num_bytes):
            raise UserError(
                f"{path}: its columns have names of {names_bytes:,} bytes, with which {number:,} rows become"
                f" more than {GROUP_EXPANSION} times their bytes; shorten the names"
            )


def _record(names: list[str], row: list[str]) -> dict[str, str | None]:
    record: dict[str, str | None] = dict(zip(names, row))
    if record.get("id") == "":
        record["id"] = None
    return record


def _names(row: list[str] | Refused, path: str, key: str, delimiter: str, header: bool) -> list[str]:
    """The names of the columns. row: the first one."""
    if isinstance(row, Refused):
        must = "; the first row must name the columns" if header else ""
        raise UserError(f"{path}, line 1: {row.reason}{must}")
    names = row if header else [str(number) for number in range(1, len(row) + 1)]
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise UserError(
            f"{path}: its first row names the column {shown(twice)} twice; rename one of them, or pass"
            " --no-header if it names no columns"
        )
    if key and key not in names:
        divided = f", divided by {delimiter!r}" if len(names) > 1 else ""
        more = "; if its first row names no columns: --no-header, and --text-key 1 or another number"
        raise UserError(
            f"{path}: has no column {key!r} (it has {shown_names(names)}{divided}); {KEY_REMEDY}"
            f"{more if header else ''}{'' if divided else '; what divides its columns: --delimiter'}"
        )
    return names


def _wrong_byte(row: list[str]) -> str | None:
    """The place of a byte that cannot be decoded, or None. Such a byte is a surrogate in the text."""
    for index, value in enumerate(row, 1):
        if not value.isascii():
            wrong = next((c for c in value if "\udc80" <= c <= "\udcff"), None)
            if wrong is not None:
                return f"a byte of value {index} ({ord(wrong) - 0xDC00:#04x})"
    return None


class _TooLong(Exception):
    """The current row has more bytes than a record may have."""


class _Lines:
    """The physical lines of a file, for csv.reader, with the place and the size of the current row."""

    def __init__(self, file: io.BufferedReader, max_bytes: int):
        if file.peek(3).startswith(MARK):
            file.read(len(MARK))
        line = SEP_LINE.match(file.peek(16)[:16].decode("utf-8", "replace"))
        if line:
            file.read(len(line[0].encode()))
        # newline="" keeps the line ends, \r too, which csv needs
        self._text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        self._max_bytes = max_bytes
        self._next = 2 if line else 1  # number of the next line
        self.first = 1  # number of the first line of the row
        self.size = 0  # bytes of the row so far
        self._quotes = 0
        self._last = ""
        self._row: list[str] = []

    def begin(self) -> None:
        """A new row begins with the next line."""
        self.first, self.size, self._quotes, self._row = self._next, 0, 0, []

    def beginning(self) -> bytes:
        return "".join(self._row)[: BEGINNING_BYTES + 1].encode("utf-8", "surrogateescape")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._line(self._max_bytes + 2 - self.size)
        if not line:
            raise StopIteration
        if self.size - (len(line) - len(line.rstrip("\r\n"))) > self._max_bytes:
            raise _TooLong
        return line

    def _line(self, limit: int) -> str:
        line = self._last = self._text.readline(max(1, limit))
        self._next += line.endswith(("\n", "\r"))
        self.size += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
        self._quotes += line.count('"')
        if sum(map(len, self._row)) <= BEGINNING_BYTES:
            self._row.append(line)
        return line

    def skip_row(self) -> None:
        """Moves behind the row: behind the first line end before which the quotation marks are even."""
        while self._last and not (self._last.endswith(("\n", "\r")) and self._quotes % 2 == 0):
            self._line(compression.READ_BYTES)
