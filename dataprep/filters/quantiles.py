"""Exact order statistics of numbers in files, in memory that does not grow with them.

A number's bits, read as an unsigned integer after a small change, sort as the number does. Four passes over
the files count these integers by 16 bits at a time, from the highest, and so find the bits of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...core.arrays import UNFINISHED, open_array

BITS, DIGITS = 16, 4
BLOCK = 1 << 20  # numbers in memory
SIGN = np.uint64(1 << 63)


def blocks(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """The numbers of .npy files, float64, in pieces, without those that are NaN."""
    for path in paths:
        values = open_array(path, np.float64, (None,), remedy=UNFINISHED)
        for start in range(0, len(values), BLOCK):
            block = np.asarray(values[start : start + BLOCK])
            yield block[~np.isnan(block)]


def order_statistics(paths: Sequence[Path], ranks: Sequence[int]) -> list[float]:
    """For each rank the number that has it when all are sorted; rank 0 is the lowest.

    paths: .npy files of float64. Each rank must be below the count of numbers that are not NaN.
    """
    prefixes, left = [0] * len(ranks), list(ranks)
    for digit in range(DIGITS):
        shift = np.uint64(BITS * (DIGITS - 1 - digit))
        counts = {prefix: np.zeros(1 << BITS, np.int64) for prefix in prefixes}
        for block in blocks(paths):
            keys = _keys(block) >> shift
            heads, digits = keys >> np.uint64(BITS), keys & np.uint64((1 << BITS) - 1)
            for prefix, histogram in counts.items():
                found = digits if digit == 0 else digits[heads == np.uint64(prefix)]
                histogram += np.bincount(found.astype(np.int64), minlength=1 << BITS)
        for place, prefix in enumerate(prefixes):
            below = np.cumsum(counts[prefix])
            chosen = int(np.searchsorted(below, left[place], "right"))
            left[place] -= int(below[chosen - 1]) if chosen else 0
            prefixes[place] = (prefix << BITS) | chosen
    return list(map(float, _numbers(np.array(prefixes, np.uint64))))


def _keys(values: np.ndarray) -> np.ndarray:
    """uint64 that sort as the float64 do. -0.0 counts as 0.0."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _numbers(keys: np.ndarray) -> np.ndarray:
    """The float64 that `_keys` turns into these."""
    return np.where(keys & SIGN, keys ^ SIGN, ~keys).view(np.float64)
