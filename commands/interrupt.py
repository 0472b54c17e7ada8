"""Ctrl-C: one line and exit code 130, whatever the process is doing.

Python raises KeyboardInterrupt between two instructions of the main thread. In three places that is not
enough. In a destructor, or in a function that C code calls (numba's compiler, weak references), Python prints
the exception with its traceback and goes on: `sys.unraisablehook` raises it again, outside. A library can
turn it into an exception of its own: `received` tells that the exception was Ctrl-C. And after the command,
while Python ends, there is nothing to clean up: the process ends at once.

While Python itself starts, before it has read a line of mt, it prints a traceback of its own: nothing that mt
could do is running yet. So __main__.py and __init__.py import next to nothing before `install`.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

CODE = 128 + signal.SIGINT
MESSAGE = "interrupted; finished work is kept: run the same command again to continue"

received = 0  # how often Ctrl-C was pressed


def install() -> None:
    """Handles SIGINT as described above; not where it is ignored, as in a shell's background jobs."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _interrupt)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # from another thread, a moment later: raised here, it would be printed too
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; the fourth time, where that did not end the process, ends it at once."""
    global received
    received += 1
    if received > 3:
        end()
    raise KeyboardInterrupt


def end() -> NoReturn:
    """Ends the process with the message: nothing has begun that must be cleaned up."""
    print(f"mt: {MESSAGE}", file=sys.stderr, flush=True)
    os._exit(CODE)


def end_at_once() -> None:
    """From now on Ctrl-C ends the process without a word: its command is done."""
    if threading.current_thread() is threading.main_thread() and is_installed():
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(CODE))


def is_installed() -> bool:
    return signal.getsignal(signal.SIGINT) is _interrupt
