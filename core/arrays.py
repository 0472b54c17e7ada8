"""Opens .npy files that mt did not write in the same run, memory-mapped.

numpy.load also opens archives (.npz), takes any type, shape and order, and leaves the rest of a longer file
unread. Here the header must say what the caller expects, and the file must be as long as the header says.
Values are checked where they are used: `beyond` finds those that are no index.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from . import paths
from .config import UserError

MOST = 1 << 62  # of a length: no file is so large
MADE_AGAIN = "run the command that made it again"
UNFINISHED = "remove the unfinished output, and run the command again"  # for files of a run that was killed


def open_array(
    path: str | Path,
    dtype: npt.DTypeLike | None,
    shape: Sequence[int | None] | None,
    *,
    remedy: str = MADE_AGAIN,
) -> np.ndarray:
    """The array in a .npy file, memory-mapped and read-only.

    dtype: of its values; None: any integers. shape: its length along each axis, None where any will do; or
    None for one axis or more.
    Raises UserError if the file is not there, is no .npy file of that kind, or has another size than its
    header says.
    """
    path = paths.regular(path)
    try:
        with open(path, "rb") as file:
            found, order, sizes = _header(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python: its tokenizer and its parser raise theirs
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path}: not a .npy file ({reason!a}); {remedy}") from None
    if wrong := _wrong_header(found, order, sizes, dtype, shape):
        raise UserError(f"{path}: {wrong}; {remedy}")
    wanted = start + found.itemsize * math.prod(sizes)
    if size != wanted:
        raise UserError(f"{path}: has {size:,} bytes where its header says {wanted:,}; {remedy}")
    if size == start:  # nothing can be mapped
        return np.empty(sizes, found)
    # A plain array: slices of np.memmap take ten times as long.
    return np.asarray(np.memmap(path, found, "r", start, sizes))


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """(type, whether the first axis changes fastest, shape); raises ValueError, TypeError and others."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]}")
    sizes, order, dtype = readers[version](file)
    return dtype, bool(order), sizes


def _wrong_header(
    found: np.dtype[Any],
    order: bool,
    sizes: Sequence[int],
    dtype: npt.DTypeLike | None,
    shape: Sequence[int | None] | None,
) -> str | None:
    """What is wrong with a header, or None."""
    if found.hasobject:
        return "holds Python objects, which are never read"
    if found.kind not in "iu" if dtype is None else found != np.dtype(dtype):
        expected = "integers" if dtype is None else str(np.dtype(dtype))
        return f"has values of type {str(found)[:200]!a}, not {expected}"
    shape = [None] * max(1, len(sizes)) if shape is None else shape
    if len(sizes) != len(shape) or any(
        not 0 <= n <= MOST or m not in (None, n) for n, m in zip(sizes, shape)
    ):
        wanted = ", ".join("any" if m is None else str(m) for m in shape)
        return f"has the shape {str(tuple(sizes))[:200]}, not ({wanted})"
    return "has its values in Fortran's order" if order and len(shape) > 1 else None


def refuse_beyond(
    values: np.ndarray, stop: int, place: str | Path, first: int = 0, remedy: str = UNFINISHED
) -> None:
    """Raises UserError for a value outside [first, stop) of an array of integers. place: its file."""
    if (wrong := beyond(values, stop, first)) is not None:
        raise UserError(f"{place}: has the value {wrong:,}, not from {first:,} to {stop - 1:,}; {remedy}")


def beyond(values: np.ndarray, stop: int, first: int = 0) -> int | None:
    """A value outside [first, stop) of an array of integers, or None."""
    if values.size and int(values.min()) < first:
        return int(values.min())
    return int(values.max()) if values.size and int(values.max()) >= stop else None
