"""Compiles loops over numpy arrays with numba, for what numpy cannot vectorise; no C compiler is needed."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .progress import LINE_SECONDS, activity, shows_live

F = TypeVar("F", bound=Callable[..., Any])
# numbers that loops without a compiled form read before they are compiled: some seconds of work
MOST_INTERPRETED = 1_000_000
IMPORT = re.compile(r"^from (\.+)([\w.]*) import (\([^)]*\)|[^\n(]*)", re.MULTILINE)

_few: FewInputs | None = None  # within `for_few_inputs`


def compile_loop(function: F, *, fastmath: frozenset[str] = frozenset()) -> F:
    """The compiled function. Its first call compiles it, in seconds; later processes load the result.

    The user is told when it compiles: that takes half a minute for all loops of some commands.

    They compile it again if its file has changed, or one that this imports functions or numbers from.
    numba takes half a second to import, so call this only where compiling saves more. The compiled function
    releases Python's global interpreter lock. fastmath: the fast-math flags of LLVM that it may use, such as
    "reassoc".
    """
    if _few is not None and _few.interprets(function, fastmath):
        interpreted: F = _interpreted(function)
        return interpreted
    compiled: F = _compile(function, fastmath)
    return compiled


class FewInputs:
    """The work of `for_few_inputs`: how many numbers interpreted loops have read."""

    def __init__(self) -> None:
        self.read = 0

    def interprets(self, function: Callable[..., Any], fastmath: frozenset[str]) -> bool:
        """Whether to run a loop as it is: its compiled form is not stored, and few numbers were read."""
        return self.read < MOST_INTERPRETED and not _is_stored(function, fastmath)


@contextlib.contextmanager
def for_few_inputs() -> Iterator[None]:
    """Within it a loop that is asked for runs as it is, if it was never compiled on this machine.

    Compiling takes seconds a loop, and pays off for many inputs only. Results are the same. After
    MOST_INTERPRETED numbers loops are compiled here too. Loops that are compiled when their module is
    imported stay so.
    """
    global _few
    before, _few = _few, _few or FewInputs()
    try:
        yield
    finally:
        _few = before


def are_inputs_few() -> bool:
    """Whether this is within `for_few_inputs`, for code that has another way besides compiled loops."""
    return _few is not None


def _is_stored(function: Callable[..., Any], fastmath: frozenset[str]) -> bool:
    cache = getattr(_compile(function, fastmath), "_cache", None)
    return os.path.exists(getattr(getattr(cache, "_cache_file", None), "_index_path", ""))


@functools.cache
def _interpreted(function: Callable[..., Any]) -> Any:
    import numpy as np

    @functools.wraps(function)  # its first argument is what it goes through
    def run(*arguments: Any) -> Any:
        if _few is not None:
            _few.read += len(arguments[0])
        with np.errstate(over="ignore"):  # hashes are meant to overflow
            return function(*arguments)

    return run


@functools.cache
def _compile(function: Callable[..., Any], fastmath: frozenset[str]) -> Any:
    # Else numba starts colorama, which writes an escape sequence to the terminal when the process ends.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    with activity("loading the compiler of loops (numba)"):
        import numba
        from numba.core import entrypoints

    _without_scipy()
    _tell_of_compilation()
    # Before it compiles, numba would import the extensions of other packages: awkward takes a quarter of a
    # second.
    entrypoints._already_initialized = True
    try:
        compiled: Any = numba.njit(cache=True, nogil=True, fastmath=set(fastmath))(function)
        # numba looks at the function's own file alone, but what it calls and numbers are part of the result.
        file = compiled._cache._cache_file
        file._source_stamp = (file._source_stamp, imported_files(function.__code__.co_filename))
        return compiled
    except (RuntimeError, AttributeError):
        # No cache directory can be written, or another version of numba keeps the stamp elsewhere: compile
        # again in every process.
        return numba.njit(nogil=True, fastmath=set(fastmath))(function)


@functools.cache  # once
def _without_scipy() -> None:
    """Lets numba look for BLAS in scipy when a loop needs it: scipy takes a third of a second to import."""
    with contextlib.suppress(ImportError, AttributeError):  # another version of numba looks elsewhere
        from numba.np import linalg

        look = linalg.ensure_blas
        linalg.ensure_blas = lambda: None
        try:
            from numba.np import arraymath

            arraymath.ensure_blas = look
        finally:
            linalg.ensure_blas = look


@functools.cache  # once
def _tell_of_compilation() -> None:
    """Says what the process does while numba compiles; loading compiled loops is not told."""
    from numba.core import event
    from numba.core.caching import NullCache

    class Told(event.Listener):
        def __init__(self) -> None:
            self.depth = 0  # a loop compiles those that it calls
            self.told = contextlib.ExitStack()
            self.quiet_until = 0.0  # not a line for each of many loops

        def on_start(self, event: Any) -> None:
            if not self.depth:
                now = time.monotonic()
                after = max(0.0, self.quiet_until - now)
                if shows_live():  # else a bar that stands still would show between two loops
                    after = 0.0
                elif not after:
                    self.quiet_until = now + LINE_SECONDS
                loop = event.data["dispatcher"]
                kept = not isinstance(loop._cache, NullCache)
                label = f"compiling loops{' (once a machine)' if kept else ''}, now {loop.py_func.__name__}"
                self.told.enter_context(activity(label, after=after))
            self.depth += 1

        def on_end(self, event: Any) -> None:
            self.depth -= 1
            if not self.depth:
                self.told.close()

    event.register("numba:compile", Told())  # type: ignore[no-untyped-call]  # numba has no types here


@functools.cache
def imported_files(path: str) -> tuple[tuple[str, int, int], ...]:
    """(path, time of the last change in ns, bytes) of the files that a file imports by relative names.

    Of these, those that have compiled functions are followed. A name that leads to no file is left out. The
    paths start at the folder of the file: the same folder may be reached by several ways.
    """
    found: set[str] = set()
    wanted = [path]
    while wanted:
        file = Path(wanted.pop())
        source = file.read_text(encoding="utf-8")
        if str(file) != path and "compile_loop" not in source:
            continue
        for dots, module, names in IMPORT.findall(source):
            folder = file.parents[len(dots) - 1].joinpath(*filter(None, module.split(".")))
            modules = [folder, *(folder / name for name in re.findall(r"\w+", names))]
            new = {str(m.with_suffix(".py")) for m in modules if m.with_suffix(".py").is_file()} - found
            found |= new
            wanted += new
    stamps = ((name, os.stat(name)) for name in sorted(found - {path}))
    start = os.path.dirname(path)
    return tuple((os.path.relpath(name, start), s.st_mtime_ns, s.st_size) for name, s in stamps)
