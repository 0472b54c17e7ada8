"""a loop over numpy arrays compiled by numba: what numpy cannot vectorise, without a compiler at install
time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable


@functools.cache
def compile_loop(function: Callable, *, fastmath: frozenset[str] = frozenset()) -> Callable:
    """The function, compiled on its first call, in seconds, and kept beside its source for later processes.

    numba takes half a second to load: call this where there is more than that to win. Other threads of Python
    go on while it runs. fastmath: the liberties of LLVM with floating-point numbers that it may take.
    """
    import numba
    from numba.core import entrypoints

    # numba would import what other packages add to it before it compiles: awkward, in a quarter of a second.
    entrypoints._already_initialized = True
    how = {"nogil": True, "fastmath": set(fastmath)}
    try:
        return numba.njit(cache=True, **how)(function)
    except RuntimeError:  # no folder that may be written: compile again in every process
        return numba.njit(**how)(function)
