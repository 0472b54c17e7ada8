"""Progress of long work: plain lines where there is no terminal, a bar where there is one."""

import io
import sys

import pytest

from mt.core.progress import progress
from mt.core.terminal import escape_output


@pytest.fixture
def clock(monkeypatch):
    """clock(0, 11, 12) sets the times that time.monotonic returns, one after another."""

    def set_times(*times):
        left = iter(map(float, times))
        monkeypatch.setattr("mt.core.progress.time.monotonic", lambda: next(left))

    return set_times


def test_without_a_terminal_a_line_has_the_work_done_the_rate_and_the_time_left(capsys, clock):
    clock(0, 11, 12, 30)
    with progress("clean", 4_000_000, "B") as advance:
        advance(1_000_000)
        advance(1_000_000)
        advance(1_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "clean: 1 of 4 MB, 0.1 MB/s, 33 s left",  # 1 MB in 11 s, 3 MB to go
        "clean: 3 of 4 MB, 0.1 MB/s, 10 s left",  # 3 MB in 30 s, 1 MB to go
    ]


def test_a_line_is_printed_every_ten_seconds_and_not_before(capsys, clock):
    clock(0, 9.9, 10, 19.9, 20)
    with progress("index", None, "documents") as advance:
        for _ in range(4):
            advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "index: 10 documents, 1.0 documents/s",
        "index: 20 documents, 1.0 documents/s",
    ]


def test_short_work_prints_nothing(capsys):
    with progress("clean", 10, "documents") as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "shown"), [("documents", "3/10"), ("B", "bytes")])
def test_on_a_terminal_a_bar_is_drawn_on_standard_error_and_removed_at_the_end(
    monkeypatch, capsys, unit, shown
):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("clean", 10, unit) as advance:
        advance(3)
    assert "clean" in terminal.getvalue()
    assert shown in terminal.getvalue()
    assert terminal.getvalue().rstrip("\r").endswith("\x1b[2K")  # the line is erased
    assert capsys.readouterr().out == ""


def test_what_is_printed_while_a_bar_is_drawn_cannot_move_the_cursor(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with escape_output(), progress("clean", 10, "documents") as advance:
        print("name\x1b]0;owned\x07\x9b2J\u202e", file=sys.stderr)
        advance(3)
        print("another\x1b[31m", file=sys.stderr)
    assert r"name\x1b]0;owned\x07\x9b2J\u202e" in terminal.getvalue()
    assert r"another\x1b[31m" in terminal.getvalue()
    assert not set("\x07\x9b\u202e") & set(terminal.getvalue())


def test_an_exception_in_the_work_is_raised():
    with pytest.raises(ValueError, match="broken"), progress("clean", 10, "documents"):
        raise ValueError("broken")
