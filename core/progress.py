"""Tells what a command does while it takes long: a live line on a terminal, plain lines elsewhere.

All goes to standard error, so that standard output holds the command's summary and nothing else. Three
functions speak:

    print_line      a line, such as a message or a training step
    progress        counted work: a bar, or a line every ten seconds and more
    activity        a phase without a count, such as a compilation: its name and the time so far

Work that ends within ten seconds prints nothing. Longer work prints a line at least every ten seconds at
first, and less often later: after an hour every three minutes. A terminal shows the time at every moment.

Only the first process speaks: neither worker processes nor the other ranks of a job. `set_quiet` silences it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

from .terminal import live_line

LINE_SECONDS = 10.0  # between two plain lines, at first
LIVE_AFTER = 0.5  # seconds before a terminal shows a task
OBSERVE_SECONDS, MOST_SEEN = 1.0, 1000  # of the amount of work that is done
STEADY = 1.5  # ratio up to which two rates are about equal; after an hour of nothing it would always be 2
_GROWTH = 0.05  # the time between two lines is at least this share of the time so far,
_MOST_SECONDS = 300.0  # and at most this
_BAR = 20  # characters

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether to print no progress: nothing that this module's functions would print."""
    global _quiet
    _quiet = quiet


@contextlib.contextmanager
def notes_as_warnings() -> Iterator[None]:
    """For calls from Python: nothing is printed. Progress is silent, and a note becomes a warning at the end.

    A note is a line that code writes to sys.stderr, which is replaced for all threads of this process.
    """
    before, notes = _quiet, io.StringIO()
    set_quiet(True)
    try:
        with contextlib.redirect_stderr(notes):
            yield
    finally:
        set_quiet(before)
        for line in notes.getvalue().splitlines():
            warnings.warn(line.removeprefix("mt: "), stacklevel=2)


def speaks() -> bool:
    """Whether this process prints progress: not with set_quiet, in a worker process, or on another rank."""
    first = os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None
    return first and not _quiet


def print_line(text: str) -> None:
    """Prints a line on standard error, where this process speaks."""
    if speaks():
        live_line.erase()
        print(text, file=sys.stderr, flush=True)
        _speaker.printed = time.monotonic()


def duration(seconds: float) -> str:
    """A time for people: `9 s`, `5 min 20 s`, `3 h 5 min`, `2 d 4 h`."""
    seconds = round(seconds)
    for large, small, size, ratio in (("d", "h", 86400, 24), ("h", "min", 3600, 60), ("min", "s", 60, 60)):
        if seconds >= size:
            whole, rest = divmod(round(seconds / size * ratio), ratio)
            return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"
    return f"{seconds} s"


@contextlib.contextmanager
def progress(
    label: str, total: int | None, unit: str, begun: Callable[[], tuple[int, str]] | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows progress: `with progress("clean", 1000, "documents") as advance: advance(10)`.

    total: the amount of work, None where it is not known. unit: "B" counts bytes and prints MB. begun: gives
    the amount of work that is done in what has begun and has not been advanced by, and what takes long at the
    moment, "" for nothing. A terminal shows a bar with the rate and the time left. The time left is shown
    while the recent rate is near that of the whole time; after a change it would be wrong.
    """
    task = _Task(lambda: label, total, unit, begun=begun)
    terminal = shows_live()

    def advance(amount: int = 1) -> None:
        task.done += amount
        if not terminal:  # there the thread draws
            _speaker.speak(time.monotonic())

    with _shown(task):
        yield advance


@contextlib.contextmanager
def activity(label: str | Callable[[], str], *, after: float = LINE_SECONDS) -> Iterator[None]:
    """Tells what this process does as soon as that has taken `after` seconds: 0 says it at once.

    label: what it does, as "loading torch"; a function of it where it changes.
    """
    task = _Task(label if callable(label) else lambda: label, None, None, after=after)
    with _shown(task):
        yield


@dataclasses.dataclass(eq=False)
class _Task:
    label: Callable[[], str]
    total: int | None
    unit: str | None  # None for an activity, which counts nothing
    after: float = LINE_SECONDS  # seconds before the first line
    done: int = 0
    lines: int = 0  # printed so far
    started: float = dataclasses.field(default_factory=lambda: time.monotonic())
    begun: Callable[[], tuple[int, str]] | None = None
    inside: int = 0  # done in what has begun
    item: str = ""  # what takes long
    seen: list[tuple[float, int]] = dataclasses.field(default_factory=list)  # (time, amount done)

    def observe(self, now: float) -> None:
        """Notes what is done by now, at most once a second."""
        if self.unit is None or (self.seen and now - self.seen[-1][0] < OBSERVE_SECONDS):
            return
        if self.begun is not None:
            self.inside, self.item = self.begun()
        self.seen.append((now, self.done + self.inside))
        if len(self.seen) > MOST_SEEN:
            del self.seen[::2]

    def is_steady(self, now: float, done: int) -> bool:
        """Whether the rate of the later half of the time is about that of all of it."""
        middle = (self.started + now) / 2
        then, before = max((s for s in self.seen if s[0] <= middle), default=(self.started, 0))
        recent, whole = (done - before) / (now - then), done / (now - self.started)
        return whole / STEADY <= recent <= whole * STEADY

    def interval(self, now: float) -> float:
        """Seconds between the last printed line and the next one."""
        first = LINE_SECONDS if self.lines else self.after
        return max(first, min(_GROWTH * (now - self.started), _MOST_SECONDS))

    def line(self, now: float) -> str:
        """What is done, in one line."""
        seconds = now - self.started
        if self.unit is None:
            return f"mt: {self.label()} ..." + (f" {duration(seconds)}" if seconds >= 1 else "")
        scale, name = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        whole = f" of {self.total / scale:,.0f}" if self.total else ""
        done = self.done + self.inside
        item = f"; {self.item}" if self.item else ""
        if not done or seconds <= 0:
            return f"{self.label()}: {done}{whole} {name}, {duration(seconds)} so far{item}"
        rate = done / seconds
        left = ""
        if self.total and self.is_steady(now, done):
            left = f", {duration(max(self.total - done, 0) / rate)} left"
        return f"{self.label()}: {done / scale:,.0f}{whole} {name}, {rate / scale:,.1f} {name}/s{left}{item}"

    def bar(self, now: float) -> str:
        """The same for a terminal, with a bar where the total is known."""
        if not self.total or self.unit is None:
            return self.line(now)
        filled = min(_BAR * (self.done + self.inside) // self.total, _BAR)
        label, rest = self.line(now).split(": ", 1)
        return f"{label} [{'#' * filled}{'.' * (_BAR - filled)}] {rest}"


class _Speaker:
    """Prints the innermost task of this process: a live line on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.printed = 0.0  # when the last line was, by time.monotonic
        self.lock = threading.RLock()
        self.ended: threading.Event | None = None  # of the thread

    def enter(self, task: _Task) -> None:
        with self.lock:
            if not self.tasks:
                self.printed = task.started
                self.ended = threading.Event()
                threading.Thread(target=self._run, args=(self.ended,), name="progress", daemon=True).start()
            self.tasks.append(task)
        if task.after == 0:
            self.speak(task.started)

    def leave(self, task: _Task) -> None:
        with self.lock:
            self.tasks.remove(task)
            live_line.erase()
            if not self.tasks and self.ended is not None:
                self.ended.set()  # not joined: the thread may be waiting for the lock

    def speak(self, now: float) -> None:
        """Shows the innermost task, if it is time for that."""
        with self.lock:
            if not self.tasks:
                return
            for task in self.tasks:
                task.observe(now)
            if shows_live():
                due = [t for t in self.tasks if now - t.started >= min(t.after, LIVE_AFTER)]
                if due:
                    live_line.show(due[-1].bar(now), sys.stderr)
                return
            task = self.tasks[-1]
            if now - max(self.printed, task.started) >= task.interval(now):
                task.lines += 1
                self.printed = now
                print(task.line(now), file=sys.stderr, flush=True)

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(0.25):
            self.speak(time.monotonic())


_speaker = _Speaker()


@contextlib.contextmanager
def _shown(task: _Task) -> Iterator[None]:
    if not speaks():
        yield
        return
    _speaker.enter(task)
    try:
        yield
    finally:
        _speaker.leave(task)


def shows_live() -> bool:
    """Whether progress is a live line: standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
