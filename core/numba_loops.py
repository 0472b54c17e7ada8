"""Compiles loops over numpy arrays with numba, for what numpy cannot vectorise; no C compiler is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def compile_loop(function: F, *, fastmath: frozenset[str] = frozenset()) -> F:
    """The compiled function. Its first call compiles it, in seconds; later processes load the result.

    numba takes half a second to import, so call this only where compiling saves more. The compiled function
    releases Python's global interpreter lock. fastmath: the fast-math flags of LLVM that it may use, such as
    "reassoc".
    """
    compiled: F = _compile(function, fastmath)
    return compiled


@functools.cache
def _compile(function: Callable[..., Any], fastmath: frozenset[str]) -> Any:
    import numba
    from numba.core import entrypoints

    # Before it compiles, numba would import the extensions of other packages: awkward takes a quarter of a
    # second.
    entrypoints._already_initialized = True
    try:
        return numba.njit(cache=True, nogil=True, fastmath=set(fastmath))(function)
    except RuntimeError:  # no cache directory can be written: compile again in every process
        return numba.njit(nogil=True, fastmath=set(fastmath))(function)
