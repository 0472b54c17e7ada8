"""Lines {"text": ...} on standard input, for the commands that are programs for other commands.

`mt data classify` starts `mt eval score`, and `mt data dedup` starts `mt retro embed-lines`. Other programs
may write the lines, too, so each is checked as a file is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, TypedDict

from .config import UserError, shown
from .parsing import check_value, parse_json

MOST_LINE_BYTES = 1 << 28  # more than `--max-record-bytes` lets through, with every character escaped
REMEDY = "give lines as mt writes them to a program"


class TextLine(TypedDict):
    """A line; its other keys have no meaning."""

    text: str


def read_texts(file: BinaryIO) -> Iterator[str]:
    """The texts of the lines of a file, without empty lines; raises UserError for any other line."""
    number = 0
    while line := file.readline(MOST_LINE_BYTES):
        number += 1
        place = f"standard input, line {number}"
        if len(line) == MOST_LINE_BYTES:
            raise UserError(f"{place}: has more than {MOST_LINE_BYTES:,} bytes; {REMEDY}")
        if not line.strip():
            continue
        try:
            value = parse_json(line, place, REMEDY)
        except UserError as error:
            raise UserError(f"{error} (it begins with {shown(line[:40])})") from None
        checked: TextLine = check_value(value, TextLine, place, REMEDY)
        yield checked["text"]
