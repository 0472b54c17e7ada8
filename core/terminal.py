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
import dataclasses
import os
import re
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any, TextIO, cast

# \t and \n are not among them; U+061C, U+200E, U+200F and from U+202A on: bidirectional controls.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CODE, GLUE = re.compile("`[^`]*`"), "\ue000"
# What colorama writes at the end of a process that imported it: it only ends colours.
RESET = "\x1b[0m"
MESSAGE = "mt: "  # begins what mt says of its own accord
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


def fold(text: str, stream: TextIO, *, indent: str = "") -> str:
    """The text with its long lines broken at spaces, for a terminal; unchanged for a file or a pipe.

    What stands between `backticks`, as a command to be copied, stays in one line. indent: of further lines.
    """
    if not stream.isatty():
        return text
    columns = screen(stream).columns
    lines = []
    for line in text.split("\n"):
        words = CODE.sub(lambda found: found[0].replace(" ", GLUE), line)
        own = textwrap.wrap(
            words, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines.append("\n".join(own).replace(GLUE, " ") if len(line) > columns else line)
    return "\n".join(lines)


def _code(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: how Python decodes a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class EscapedStream:
    """A text stream that writes to another one, `stream`, and escapes; a muted one writes nothing."""

    def __init__(self, stream: TextIO, muted: bool = False):
        self.stream = stream
        self.muted = muted
        self.terminal = stream.isatty()

    def write(self, text: str) -> int:
        if self.muted:
            return len(text)
        if text and self.terminal:
            live_line.make_room(text)
        if text == RESET:
            if self.terminal:
                self.stream.write(text)
            return len(text)
        if self.terminal and text.startswith(MESSAGE):
            text = fold(text, self.stream, indent=" " * len(MESSAGE))
        moves = CURSOR.match(text) if self.terminal and text[:1] in ("\r", "\n", "\x1b") else None
        start = moves.end() if moves else 0
        self.stream.write(text[:start] + escape(text[start:]))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class LiveLine:
    """A line at the end of a terminal that is written again and again, as for a clock or a bar.

    What is printed through an EscapedStream meanwhile erases it, and appears above it: the next `show` writes
    the line below. It stays away while a printed line is not ended.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = None  # where the line is, None while there is none
        self._ended = True  # whether the last printed line has ended
        self._lock = threading.RLock()

    def show(self, text: str, stream: TextIO) -> None:
        """Writes the line, cut to the width of the terminal, in place of the one before."""
        with self._lock:
            if not self._ended:
                return
            stream = unescaped(stream)
            columns = screen(stream).columns - 1  # a full line would move the cursor to the next one
            shown = escape_line(text)
            stream.write(f"\r\x1b[2K{shown if len(shown) <= columns else shown[: columns - 3] + '...'}")
            stream.flush()
            self._stream = stream

    def erase(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.write("\r\x1b[2K")
                self._stream.flush()
                self._stream = None

    def make_room(self, text: str) -> None:
        """Erases the line before `text` is printed."""
        with self._lock:
            self.erase()
            self._ended = text.endswith(("\n", "\r"))


live_line = LiveLine()  # a terminal has one end


@contextlib.contextmanager
def escape_output(quiet: bool = False) -> Iterator[None]:
    """Escapes all that Python code writes to sys.stdout and sys.stderr, for the length of a `with` block.

    quiet: writes nothing to sys.stderr; the stream below it (`unescaped`) is for errors.
    """
    before = sys.stdout, sys.stderr
    # either is None where the process was started without it
    sys.stdout, sys.stderr = (
        cast(TextIO, stream and EscapedStream(stream, muted)) for stream, muted in zip(before, (False, quiet))
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unescaped(stream: TextIO) -> TextIO:
    """The stream below sys.stdout or sys.stderr, for what is meant to reach the terminal as it is."""
    return stream.stream if isinstance(stream, EscapedStream) else stream


@dataclasses.dataclass(frozen=True)
class Screen:
    """What a text is laid out for. columns: its width in cells. colours: whether it shows SGR sequences."""

    columns: int
    colours: bool


def screen(stream: TextIO) -> Screen:
    """The terminal behind a stream; for a file or a pipe 100 columns without colours.

    NO_COLOR with any value but an empty one switches colours off (no-color.org), as TERM=dumb does.
    FORCE_COLOR switches them on, for files and pipes too; NO_COLOR is stronger.
    """
    shows = stream.isatty()
    columns = max(shutil.get_terminal_size((80, 24)).columns, 40) if shows else 100
    colours = shows and os.environ.get("TERM") != "dumb"
    if os.environ.get("FORCE_COLOR"):
        colours = True
    return Screen(columns, colours and not os.environ.get("NO_COLOR"))
