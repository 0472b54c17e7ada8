"""What a person sees of documents: marks, line numbers, colours only on a terminal, and nothing to obey."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.terminal import UNSAFE, Screen
from mt.dataprep.look_layout import MOST_ROWS, layout
from mt.dataprep.word_diff import word_diff

from .test_look import ROWS, RULES, cleaned

PIPE, TERMINAL = Screen(60, False), Screen(60, True)
SGR = re.compile(r"\x1b\[\d+m")
anything = st.text(st.characters(exclude_categories=[]), max_size=300)


def removed(text, places, **more):
    document = {"id": "x", "reason": "r", "facts": {}, "measured": [], "note": ""}
    return {**document, "text": text, "offending": places, **more}


def summary(document, shows="removed", full=False):
    stage = {"stage": "data clean", "folder": "out", "shows": shows, "of": 1, "looked_at": 1}
    return {"full": full, "stages": [stage | {"reasons": {"r": 1}, "documents": [document]}]}


def body(document, screen=PIPE, full=False):
    """The rows below the name and the reason."""
    return layout(summary(document, full=full), screen).split("\n")[5:]


def test_marked_lines_are_shown_with_their_neighbours_and_numbers():
    text = "\n".join(f"line {n}" for n in range(1, 10))
    assert body(removed(text, [[29, 32]])) == [
        "    ⋮  3 lines",
        "    4  line 4",
        "    5  l>>>ine<<< 5",
        "    6  line 6",
        "    ⋮  3 lines; --full shows all",
    ]
    colours = body(removed(text, [[29, 32]]), TERMINAL)
    assert colours[2] == "\x1b[2m    5  \x1b[0ml\x1b[7mine\x1b[0m 5"
    assert len(body(removed(text, [[29, 32]]), full=True)) == 9


def test_a_mark_over_lines_and_one_of_a_newline_are_seen():
    assert body(removed("ab\ncd\n", [[1, 4]])) == ["    1  a>>>b<<<", "    2  >>>c<<<d", "    3  "]
    assert body(removed("\na\n", [[2, 3]]))[1] == "    2  a>>>↵<<<"


def test_long_texts_and_long_lines_are_shortened_around_their_marks():
    line = f"{'before ' * 200}MARK{' after' * 200}"
    start = line.index("MARK")
    shown = "\n".join(body(removed(line, [[start, start + 4]])))
    assert ">>>MARK<<<" in shown
    assert "characters)" in shown
    assert len(shown) < 400
    many = "\n".join(f"- {n}" for n in range(100))
    places = [[m.start(), m.end()] for m in re.finditer(r"-.*", many)]
    rows = body(removed(many, places))
    assert len(rows) == 25
    assert rows[-1] == "    ⋮  76 lines, 76 more marked places; --full shows all"


@given(anything, st.data())
def test_all_of_a_text_is_shown_in_full_escaped_and_no_wider_than_the_screen(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    places = [list(pair) for pair in zip(cuts[::2], cuts[1::2])]
    document = removed(text, places, id=text[:9], reason=text[:5], facts={text[:3]: text}, note=text)
    for full in (False, True):
        shown = layout(summary(document, full=full), TERMINAL)
        plain = SGR.sub("", shown)
        assert not UNSAFE.search(plain)
        assert all(len(row) <= 60 + sum(not c.isascii() for c in row) for row in plain.split("\n"))
        assert not UNSAFE.search(layout(summary(document, full=full), PIPE))
    if text.isascii() and text.isprintable() and text:
        rows = plain.split("\n")
        start = next(n for n, row in enumerate(rows) if row.startswith("    1  "))
        assert "".join(row[7:] for row in rows[start:]) == text


@given(anything, anything)
def test_a_pair_is_escaped_too(a, b):
    pair = {"id": a, "reason": "near", "survivor": b, "similarity": 0.5, "note": ""}
    pair |= {"removed_text": a, "survivor_text": b, "diff": [list(step) for step in word_diff(a, b)]}
    for screen in (PIPE, TERMINAL):
        assert not UNSAFE.search(SGR.sub("", layout(summary(pair, "pairs"), screen)))


def test_a_pair_has_signs_in_a_pipe_and_colours_on_a_terminal():
    a, b = "the brown fox", "the red fox"
    pair = {"id": "a", "reason": "near", "survivor": "b", "similarity": 0.5, "note": ""}
    pair |= {"removed_text": a, "survivor_text": b, "diff": [list(step) for step in word_diff(a, b)]}
    assert body(pair) == ["  the [-brown-]{+red+} fox"]
    assert body(pair, TERMINAL) == ["  the \x1b[31mbrown\x1b[0m\x1b[32mred\x1b[0m fox"]


def on_a_terminal(arguments, **variables):
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    package = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(package.parent),
        "COLUMNS": "60",
        "TERM": "xterm",
        **variables,
    }
    command = [sys.executable, "-m", package.name, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 1 << 16):
            said += block
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return said.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_the_command_on_a_terminal_in_a_pipe_and_with_no_color(tmp_path):
    folder = cleaned(tmp_path, [{"id": "x\x1b[2J", "text": "JavaScript \x1b[31m red"}, *ROWS], RULES)
    arguments = ["data", "look", folder, "--reason", "javascript_notice"]
    shown = on_a_terminal(arguments)
    assert "\x1b[7mJavaScript\x1b[0m \\x1b[31m red" in shown
    assert "\x1b[2J" not in shown
    plain = on_a_terminal(arguments, NO_COLOR="1")
    assert not SGR.search(plain)  # no colour; the line of progress is still erased
    assert ">>>JavaScript<<< \\x1b[31m red" in plain
    as_json = on_a_terminal([*arguments, "--json"])
    assert not SGR.search(as_json)


def test_one_long_line_with_many_marks_is_cut():
    document = removed(f"mark {'x' * 200} " * 100, [[206 * n, 206 * n + 4] for n in range(100)])
    rows = body(document)
    assert len(rows) == MOST_ROWS + 1
    assert rows[-1].endswith("more rows of this line; --full shows all")
    assert len(body(document, full=True)) > 5 * MOST_ROWS
