"""What a terminal would obey is shown, and everything else is printed as it is."""

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.terminal import (
    EscapedStream,
    Screen,
    escape,
    escape_json,
    escape_line,
    escape_output,
    screen,
    unescaped,
)

ANY = st.text(st.characters(codec=None))
# PropList.txt of Unicode: Bidi_Control
BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
UNSAFE = {
    chr(n)
    for n in range(sys.maxunicode + 1)
    if n in BIDI or unicodedata.category(chr(n)) in ("Cc", "Cs", "Zl", "Zp")
} - {"\n", "\t"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_every_character_of_these_classes_is_escaped_and_no_other():
    for n in range(sys.maxunicode + 1):
        assert (escape(chr(n)) != chr(n)) == (chr(n) in UNSAFE), hex(n)


@given(ANY)
def test_an_escaped_text_has_no_control_characters_and_can_be_encoded(text):
    for shown in (escape(text), escape_line(text), escape_json(json.dumps(text, ensure_ascii=False))):
        assert not UNSAFE & set(shown)
        assert shown.isascii() or shown.encode()
    assert not set("\n\t") & set(escape_line(text))
    if not UNSAFE & set(text):
        assert escape(text) == text


@given(
    st.recursive(ANY | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner))
)
def test_escaped_json_has_the_same_values(value):
    assert json.loads(escape_json(json.dumps(value, ensure_ascii=False))) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("a\u202eb\u2028", r"a\u202eb\u2028"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("naïve\tкириллица 👩‍💻 \u200d\n", "naïve\tкириллица 👩‍💻 \u200d\n"),
    ],
)
def test_characters_are_shown_by_their_code(text, shown):
    assert escape(text) == shown


@given(st.lists(ANY))
def test_whatever_is_printed_is_escaped_also_by_a_library(texts):
    stream = io.StringIO()
    for text in texts:
        print(text, file=EscapedStream(stream))
        EscapedStream(stream).writelines([text, text])
    assert stream.getvalue() == "".join(escape(f"{t}\n{t}{t}") for t in texts)


@pytest.mark.parametrize("text", ["\r 10%|# |", "\x1b[A", "\n\n\x1b[A\x1b[A"])
def test_a_librarys_progress_bar_may_move_in_its_lines_on_a_terminal_and_nowhere_else(text):
    for stream, expected in ((Terminal(), text), (io.StringIO(), escape(text))):
        EscapedStream(stream).write(text)
        assert stream.getvalue() == expected


@pytest.mark.parametrize(
    "text", ["\r\r", "a\rb", "\ra\rb", "\x1b[A text", "\x1b[2J", "\x1b[A\x1b[2J", "\r\x1b[A", "\n\x1b[B"]
)
def test_nothing_else_moves_the_cursor(text):
    EscapedStream(stream := Terminal()).write(text)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()[1:]


def test_standard_output_and_error_are_escaped_within_the_block_only(capsys):
    before = sys.stdout, sys.stderr
    with escape_output():
        print("a\x1b")
        print("b\x1b", file=sys.stderr)
        print("c\x1b", file=unescaped(sys.stdout))
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    assert unescaped(sys.stdout) is sys.stdout
    assert capsys.readouterr() == ("a\\x1b\nc\x1b\n", "b\\x1b\n")


def test_a_process_without_standard_streams_keeps_having_none(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with escape_output():
        print("a")
        assert sys.stdout is None


@pytest.mark.parametrize(
    ("is_terminal", "variables", "colours"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "0"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, is_terminal, variables, colours):
    for name, value in ({"TERM": "xterm", "COLUMNS": "77", "NO_COLOR": ""} | variables).items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if is_terminal else io.StringIO()
    assert screen(stream) == Screen(77 if is_terminal else 100, colours)


def test_the_end_of_colours_that_a_library_writes_reaches_only_terminals():
    terminal_, pipe = io.StringIO(), io.StringIO()
    terminal_.isatty = lambda: True
    for stream in (terminal_, pipe):
        EscapedStream(stream).write("\x1b[0m")
        EscapedStream(stream).write("a\x1b[0m")
    assert (terminal_.getvalue(), pipe.getvalue()) == ("\x1b[0ma\\x1b[0m", "a\\x1b[0m")
