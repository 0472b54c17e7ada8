"""Shows the progress of long work: a bar on a terminal, plain lines elsewhere.

Both go to standard error, so that standard output holds the command's summary and nothing else.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from .terminal import escape_output, unescaped

LINE_SECONDS = 10  # between two plain lines


@contextlib.contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows progress: `with progress("clean", 1000, "documents") as advance: advance(10)`.

    total: the amount of work, None where it is not known. unit: "B" counts bytes and prints MB. A terminal
    shows a bar with the rate and the time left. Elsewhere a line is printed every ten seconds, so work that
    takes less prints none.
    """
    with (_bar if sys.stderr.isatty() else _lines)(label, total, unit) as advance:
        yield advance


@contextlib.contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    count: tuple[ProgressColumn, ...]
    if unit == "B":
        count = (DownloadColumn(), TransferSpeedColumn())
    else:
        count = (MofNCompleteColumn(), TextColumn(unit), TextColumn("{task.fields[rate]}"))
    # the bar moves the cursor, so it writes to the terminal itself
    console = Console(file=unescaped(sys.stderr))
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    # The bar takes what is printed meanwhile and writes it above itself, so it gets it escaped.
    with Progress(*columns, console=console, transient=True) as bar, escape_output():
        task = bar.add_task(label, total=total, rate="")

        def advance(amount: int = 1) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=amount, rate=f"{speed:,.1f}/s" if speed else "")

        yield advance


@contextlib.contextmanager
def _lines(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    start = printed = time.monotonic()
    done = 0
    scale, name = (1e6, "MB") if unit == "B" else (1, unit)

    def advance(amount: int = 1) -> None:
        nonlocal done, printed
        done += amount
        now = time.monotonic()
        if now - printed < LINE_SECONDS:
            return
        printed = now
        rate = done / (now - start)
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        whole = f" of {total / scale:,.0f}" if total else ""
        print(
            f"{label}: {done / scale:,.0f}{whole} {name}, {rate / scale:,.1f} {name}/s{left}",
            file=sys.stderr,
            flush=True,
        )

    yield advance
