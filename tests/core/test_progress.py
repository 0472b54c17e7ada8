"""Progress of long work: plain lines where there is no terminal, a live line where there is one."""

import contextlib
import io
import itertools
import os
import pty
import re
import subprocess
import sys
import warnings

import pytest

from mt.core import progress as module
from mt.core.progress import activity, duration, notes_as_warnings, print_line, progress, set_quiet, speaks
from mt.core.terminal import escape_output


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: clock(11) sets what time.monotonic returns. No thread looks at it."""
    now = [0.0]
    monkeypatch.setattr("mt.core.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(module._Speaker, "_run", lambda speaker, ended: None)

    def set_time(seconds):
        now[0] = float(seconds)
        module._speaker.speak(now[0])

    return set_time


def replace_stderr(monkeypatch, kind="xterm"):
    """Makes standard error a terminal of 60 columns; in a fixture pytest would replace it again."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", "60")
    return terminal


def rows(terminal):
    """The lines that a person sees, each as it was last written, and the erased ones before."""
    return [row for row in re.split(r"\n|\r\x1b\[2K", terminal.getvalue()) if row]


def test_without_a_terminal_a_line_has_the_work_done_the_rate_and_the_time_left(capsys, clock):
    with progress("clean", 4_000_000, "B") as advance:
        for now in (11, 12, 30):
            clock(now - 0.001)
            clock(now)
            advance(1_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "clean: 0 of 4 MB, 11 s so far",
        "clean: 2 of 4 MB, 0.1 MB/s, 30 s left",  # 2 MB in 30 s
    ]


def test_work_inside_of_what_has_begun_counts_and_what_takes_long_is_named(capsys, clock):
    states = iter([(0, ""), (500_000, ""), (1_500_000, "7 s on big.html")])
    with progress("clean", 4_000_000, "B", lambda: next(states)):
        for now in (0, 11, 30):
            clock(now)
    assert capsys.readouterr().err.splitlines() == [
        "clean: 0 of 4 MB, 0.0 MB/s, 1 min 17 s left",
        "clean: 2 of 4 MB, 0.1 MB/s, 50 s left; 7 s on big.html",
    ]


def test_no_time_left_is_told_while_the_rate_changes(capsys, clock):
    told = {}
    with progress("clean", 1000, "files") as advance:
        for now in range(0, 900, 5):
            advance(1 if now > 200 else 0)  # a page that takes 200 s, then many short ones
            clock(now)
            for line in capsys.readouterr().err.splitlines():
                told[now] = "left" in line
    assert not any(left for now, left in told.items() if now < 590)
    assert any(left for now, left in told.items() if now > 600)


def test_a_line_is_printed_every_ten_seconds_and_not_before(capsys, clock):
    with progress("index", None, "documents") as advance:
        for now in (9.9, 10, 19.9, 20):
            clock(now) if now < 10 else None
            advance(0)
            clock(now)
            advance(5)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_work_in_which_nothing_advances_is_told_too_and_less_often_later(capsys, clock):
    with progress("stats", 8, "shards"):
        told = []
        for now in range(4000):
            clock(now)
            if capsys.readouterr().err:
                told.append(now)
    gaps = [b - a for a, b in itertools.pairwise(told)]
    assert told[0] == gaps[0] == 10
    assert gaps == sorted(gaps)
    assert 150 < gaps[-1] <= 300


def test_short_work_prints_nothing(capsys, clock):
    with progress("clean", 10, "documents") as advance, activity("loading"):
        advance(10)
        clock(9)
    assert capsys.readouterr() == ("", "")


def test_an_activity_is_told_at_once_or_when_it_takes_long_and_the_innermost_alone(capsys, clock):
    step = [3]
    with activity(lambda: f"step {step[0]}"):
        clock(12)
        with activity("compiling", after=0):
            clock(13)
            clock(30)
        step[0] = 4
        clock(33)
        print_line("step 4: loss 2")
        clock(42)
        clock(43)
    assert capsys.readouterr().err.splitlines() == [
        "mt: step 3 ... 12 s",
        "mt: compiling ...",
        "mt: compiling ... 18 s",
        "step 4: loss 2",
        "mt: step 4 ... 43 s",  # ten seconds after the last line of anybody
    ]


def test_on_a_terminal_one_line_is_rewritten_and_removed_at_the_end(clock, monkeypatch):
    terminal = replace_stderr(monkeypatch)
    with progress("clean", 10, "documents") as advance:
        clock(0.4)
        assert not terminal.getvalue()
        advance(5)
        clock(5)
        clock(6)
        assert rows(terminal)[-1].startswith("clean [##########..........] 5 of 10 documents, 0.8")
    assert len(rows(terminal)) == 2
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")
    assert all(len(row) < 60 for row in rows(terminal))


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    terminal = replace_stderr(monkeypatch, "dumb")
    with activity("loading"):
        clock(11)
    assert terminal.getvalue() == "mt: loading ... 11 s\n"


def test_what_is_printed_meanwhile_appears_above_the_line_and_cannot_move_the_cursor(clock, monkeypatch):
    terminal = replace_stderr(monkeypatch)
    with escape_output(), progress("clean", 10, "documents"):
        clock(1)
        print("name\x1b]0;owned\x07\x9b2J\u202e", file=sys.stderr)
        clock(2)
    assert rows(terminal) == [
        "clean [....................] 0 of 10 documents, 1 s so far",
        r"name\x1b]0;owned\x07\x9b2J\u202e",
        "clean [....................] 0 of 10 documents, 2 s so far",
    ]
    assert "\r\x1b[2Kname" in terminal.getvalue(), "the line is erased before"


def test_a_line_that_is_not_ended_is_left_alone(clock, monkeypatch):
    terminal = replace_stderr(monkeypatch)
    with escape_output(), activity("loading"):
        print("Password: ", end="", file=sys.stderr)
        clock(5)
        assert terminal.getvalue() == "Password: "
        print(file=sys.stderr)
        clock(6)
    assert rows(terminal) == ["Password: ", "mt: loading ... 6 s"]


def test_quiet_work_other_ranks_and_other_processes_say_nothing(capsys, clock, monkeypatch):
    def speak():
        with activity("loading", after=0), progress("clean", 10, "documents"):
            clock(11)
            print_line("a line")

    set_quiet(True)
    try:
        speak()
    finally:
        set_quiet(False)
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")
        speak()
    with monkeypatch.context() as patched:
        patched.setattr("multiprocessing.parent_process", lambda: "another")
        speak()
    assert capsys.readouterr().err == ""
    clock(0)
    speak()
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3599.9, "1 h"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_exception_in_the_work_is_raised_and_ends_the_progress():
    with pytest.raises(ValueError, match="broken"), progress("clean", 10, "documents"):
        raise ValueError("broken")
    assert not module._speaker.tasks


def test_on_a_real_terminal_the_thread_draws_while_the_work_blocks():
    code = (
        "import time; from mt.core.progress import activity\n"
        "with activity('waiting'): time.sleep(2)\n"
        "print('done')"
    )
    main, other = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code],
        stdout=other,
        stderr=other,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(other)
    shown = b""
    while True:
        try:
            block = os.read(main, 4096)
        except OSError:  # Linux: the other end is closed
            break
        shown += block
        if not block:
            break
    os.close(main)
    assert b"\r\x1b[2Kmt: waiting ... 1 s" in shown
    assert shown.endswith(b"\r\x1b[2Kdone\r\n")


def test_calls_from_python_print_nothing_and_their_notes_are_warnings(capsys):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with notes_as_warnings():
            assert not speaks()
            print_line("step 1")
            print("mt: two files are not read", file=sys.stderr)
        with contextlib.suppress(ZeroDivisionError), notes_as_warnings():
            print("mt: before a failure", file=sys.stderr)
            _ = 1 / 0
    assert [str(one.message) for one in told] == ["two files are not read", "before a failure"]
    assert speaks()
    assert capsys.readouterr() == ("", "")
