"""Escapes what a terminal would obey instead of show, in everything that a command prints.

File names, ids, settings, tokens and generated text can come from strangers. A terminal obeys their control
characters: they can erase lines, rename the window, or turn the order of what is read. `escape_output` puts a
stream of its own before standard output and standard error, which shows such characters by their code, so
that no message, table, log line or traceback has to think of them, nor a library that prints.

Escaped are the control characters of C0 and C1 but newline and tab, DEL, the separators U+2028 and U+2029,
the bidirectional controls (Unicode Technical Report 36, section 2.10.4; "Trojan Source", CVE-2021-42574) and
surrogates, of which no text in UTF-8 can consist.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# \t and \n are not among them; U+061C, U+200E, U+200F and from U+202A on: bidirectional controls.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What progress bars write to go back to the beginning of their line, and up over lines below it: a whole
# write, or its beginning. No message begins with it: `mt: ` does, or a column's name.
CURSOR = re.compile(r"\n*(\x1b\[A)+\Z|\r(?=[^\r]*\Z)")


def escape(text: str) -> str:
    r"""The text with unsafe characters as `\x1b` or `\u202e`; a byte that is not UTF-8 as `\xff`."""
    return UNSAFE.sub(_code, text)


def escape_line(text: str) -> str:
    r"""The same for a text within a line: newlines and tabs are shown as `\n` and `\t` too."""
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def escape_json(text: str) -> str:
    r"""JSON whose strings have the same values, with every unsafe character as `\u009b`."""
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _code(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: how Python decodes a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class EscapedStream:
    """A text stream that writes to another one and escapes; `stream` is the other one."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        moves = CURSOR.match(text) if text[:1] in ("\r", "\n", "\x1b") and self.stream.isatty() else None
        start = moves.end() if moves else 0
        self.stream.write(text[:start] + escape(text[start:]))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def escape_output() -> Iterator[None]:
    """Escapes all that Python code writes to sys.stdout and sys.stderr, for the length of a `with` block."""
    before = sys.stdout, sys.stderr
    # either is None where the process was started without it
    sys.stdout, sys.stderr = (cast(TextIO, stream and EscapedStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unescaped(stream: TextIO) -> TextIO:
    """The stream below sys.stdout or sys.stderr, for what is meant to reach the terminal as it is."""
    return stream.stream if isinstance(stream, EscapedStream) else stream
