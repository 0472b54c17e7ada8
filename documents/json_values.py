"""Reads the records of a .json file: the values of one array, or values one after another over several lines.

A file ending in .json may also be JSON lines; `is_one_value` tells by the beginning. The file is never in
memory as a whole: a scanner finds where each value ends, by its brackets and quotation marks, and orjson
(reader.py) parses one value at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson

from ..core.unicode import without_mark
from . import charsets, compression
from .files import BEGINNING_BYTES, Refused, too_long

BEGINNING = 1 << 16  # bytes by which a file is known
MAX_DEPTH = 1024  # of brackets in one another: orjson reads no more
SPACE = re.compile(rb"[ \t\r\n]*+")
STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
# A string that the data do not end has no closing mark; it ends before a backslash that is the last byte.
TOKEN = re.compile(rb'"' + STRING + rb'(?P<closed>"?)|[\[\]{}]', re.DOTALL)
REST_OF_STRING = re.compile(STRING + rb'(?P<closed>"?)', re.DOTALL)
SCALAR = re.compile(rb'[^\s,\[\]{}"]*+')

Value = tuple[
    int, int, bytes | Refused
]  # byte offset in the plain text, number of its line from 1, the value


def is_one_value(path: str | Path, encoding: str) -> bool:
    """Whether a .json file is an array, or values over several lines, rather than JSON lines."""
    try:
        with charsets.open_utf8(path, encoding) as file:
            head = without_mark(file.read(BEGINNING)).lstrip()
    except compression.BROKEN:  # told where the file is read
        return False
    line, _, rest = head.partition(b"\n")
    if _is_whole(line):
        return line.startswith(b"[") and not rest.strip()
    if line.startswith(b"["):
        return True
    return line.startswith(b"{") and line.rstrip().endswith((b"{", b"[", b",", b":"))


def _is_whole(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def values(file: IO[bytes], max_bytes: int) -> Iterator[Value]:
    """The values of a file of UTF-8, not parsed.

    A value of more than max_bytes is a Refused, and so is the rest of a file that is no JSON any more.
    """
    text = _Text(file)
    in_array = text.next_byte() == ord("[")
    if in_array:
        text.at += 1
    while (byte := text.next_byte()) is not None and not (in_array and byte == ord("]")):
        place = text.place()
        if not (value := text.value(max_bytes)):
            yield *place, _rest(text, "is not the beginning of a JSON value")
            return
        yield *place, value
        if text.given_up:
            return
        byte = text.next_byte()
        if in_array and byte == ord(","):
            text.at += 1
        elif in_array and byte not in (None, ord("]")):
            yield *text.place(), _rest(text, "stands where a comma or the end of the array must be")
            return
    if not in_array:
        return
    if text.next_byte() is None:
        yield *text.place(), Refused(0, b"", "the array does not end: the file is cut short")
        return
    text.at += 1
    if text.next_byte() is not None:
        yield *text.place(), _rest(text, "stands after the end of the array")


def _rest(text: _Text, problem: str) -> Refused:
    beginning = text.data[text.at : text.at + BEGINNING_BYTES]
    return Refused(
        len(beginning), beginning, f"malformed JSON: {chr(beginning[0])!r} {problem}; the rest is not read"
    )


class _Text:
    """A window on a file, of about as many bytes as the current value has."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        block = file.read(compression.READ_BYTES)
        self.data = without_mark(block)
        self.at = 0  # the current byte
        self._offset = len(block) - len(self.data)  # of data in the file
        self._line, self._counted = 1, 0  # the line of the byte `_counted` of the data
        self.given_up = False  # the current value is nested so deep that its end is not looked for

    def place(self) -> tuple[int, int]:
        """(byte offset, line) of the current byte."""
        self._line += self.data.count(b"\n", self._counted, self.at)
        self._counted = self.at
        return self._offset + self.at, self._line

    def _more(self) -> bool:
        """Drops what is before the current byte, and reads as much as is left, so that the sum is linear."""
        self._offset = self.place()[0]
        left = self.data[self.at :]
        self.at = self._counted = 0
        block = self._file.read(max(compression.READ_BYTES, len(left)))
        self.data = left + block
        return bool(block)

    def next_byte(self) -> int | None:
        """Moves over white space; returns the byte there, None at the end of the file."""
        while True:
            found = SPACE.match(self.data, self.at)
            assert found, "the expression matches nothing too"
            self.at = found.end()
            if self.at < len(self.data):
                return self.data[self.at]
            if not self._more():
                return None

    def value(self, max_bytes: int) -> bytes | Refused:
        """Moves over the value that begins here; an empty text if none does, what there is of a cut one."""
        scan = _Scan(self.data[self.at])
        dropped, beginning = 0, b""
        end = self.at
        while True:
            end = scan.go_on(self.data, end)
            if (scan.ended and end < len(self.data)) or scan.closed:
                break
            if dropped + end - self.at > max_bytes:
                beginning = beginning or self.data[self.at : self.at + BEGINNING_BYTES + 1]
                dropped += end - self.at
                self.at = end
            end -= self.at
            if not self._more():
                end = len(self.data)
                break
        size = dropped + end - self.at
        value = self.data[self.at : end]
        if scan.too_deep:
            self.given_up = True
            reason = f"is nested deeper than {MAX_DEPTH} levels; the rest is not read"
            return Refused(size, (beginning or value)[:BEGINNING_BYTES], reason)
        self.at = end
        return value if size <= max_bytes else too_long(size, max_bytes, beginning or value)


class _Scan:
    """Finds the end of a value whose bytes come in parts.

    closed: a bracket or quotation mark has ended it. ended: it is a number or a word, which may go on in the
    next part if it ends with this one. too_deep: it is nested deeper than MAX_DEPTH, where the scan stops.
    """

    def __init__(self, first: int):
        self.closed = self.too_deep = False
        self.ended = first not in b'"[{'
        self._bare = first == ord('"')
        self._depth = 0
        self._in_string = False

    def go_on(self, data: bytes, at: int) -> int:
        """Returns up to where the data are read: `at` of the next call, in data with more at the end."""
        if self.ended:
            found = SCALAR.match(data, at)
            assert found, "the expression matches nothing too"
            return found.end()
        if self._in_string:
            rest = REST_OF_STRING.match(data, at)
            assert rest, "the expression matches nothing too"
            at = rest.end()
            if not rest["closed"]:
                return at
            self._in_string, self.closed = False, self._bare
            if self.closed:
                return at
        for token in TOKEN.finditer(data, at):
            at = token.end()
            byte = data[token.start()]
            if byte == ord('"'):
                if not token["closed"]:
                    self._in_string = True
                    return at
                self.closed = self._bare
            else:
                self._depth += 1 if byte in b"[{" else -1
                self.too_deep = self._depth > MAX_DEPTH
                self.closed = self._depth <= 0 or self.too_deep
            if self.closed:
                return at
        return len(data)
