"""progress of long work: a bar on a terminal, plain lines elsewhere.

On standard error, so that a command's standard output stays its summary.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error: `with progress("clean", 1000, "documents") as advance: advance(10)`.

    On a terminal a bar with rate and time left; elsewhere a plain line every ten seconds, and none for work
    that is over sooner. unit "B" counts bytes and prints MB.
    """
    if sys.stderr.isatty():
        yield from _bar(label, total, unit)
    else:
        yield from _lines(label, total, unit)


def _bar(label, total, unit):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    count = (
        (DownloadColumn(), TransferSpeedColumn())
        if unit == "B"
        else (MofNCompleteColumn(), TextColumn(unit), TextColumn("{task.fields[rate]}"))
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, rate="")

        def advance(amount: int = 1) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=amount, rate=f"{speed:,.1f}/s" if speed else "")

        yield advance


def _lines(label, total, unit):
    state = {"done": 0, "said": time.monotonic()}
    start = state["said"]

    def advance(amount: int = 1) -> None:
        state["done"] += amount
        now = time.monotonic()
        if now - state["said"] < 10:
            return
        state["said"] = now
        rate = state["done"] / (now - start)
        scale, name = (1e6, "MB") if unit == "B" else (1, unit)
        left = f", {(total - state['done']) / rate:.0f} s left" if total and rate else ""
        whole = f" of {total / scale:,.0f}" if total else ""
        print(
            f"{label}: {state['done'] / scale:,.0f}{whole} {name}, {rate / scale:,.1f} {name}/s{left}",
            file=sys.stderr,
            flush=True,
        )

    yield advance
