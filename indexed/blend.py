"""Order of a blended dataset: for every item, the dataset it comes from and the sample of that dataset.

The order is Megatron-LM's, which is greedy and not random: every next sample is taken from the dataset that
is furthest behind its share. A weight is a share of the samples, whatever the size of the dataset.

Each choice depends on the one before, so numpy cannot vectorise the loop: numba compiles it where it is long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ..core.numba_loops import compile_loop

Loop = TypeVar("Loop", bound=Callable[..., Any])  # a function of numpy arrays and numbers

ENDLESS = np.iinfo(np.int64).max
COMPILE_FROM = 50_000  # steps of a loop: 50 ms of plain Python, less than importing numba takes


def blending_indices(weights: Sequence[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `size` items of a blend of endless datasets, in the order of build_blending_indices.

    Returns the dataset of every item, (size,) int16, and the sample within that dataset, (size,) int64. Item
    i is of the dataset d with the greatest weights[d] * max(i, 1) - count[d]; of equal ones, of the first.
    """
    return _blend(weights, size, [ENDLESS] * len(weights))


def exhaustive_blending_indices(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same for a blend in which every sample of every dataset occurs once; the sizes are the weights."""
    total = sum(sizes)
    return _blend([s / total for s in sizes], total, sizes)


def _blend(weights: Sequence[float], size: int, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    dataset_index, sample_index = np.empty(size, np.int16), np.empty(size, np.int64)
    loop = compile_if_long(_greedy, size * len(weights))
    loop(np.asarray(weights, np.float64), np.asarray(limits, np.int64), dataset_index, sample_index)
    return dataset_index, sample_index


def _greedy(
    weights: np.ndarray, limits: np.ndarray, dataset_index: np.ndarray, sample_index: np.ndarray
) -> None:
    """Fills both indices. weights: (D,) float64. limits: (D,) int64 samples of every dataset."""
    counts = np.zeros(len(weights), np.int64)
    for i in range(len(dataset_index)):
        best, most = -1, -np.inf
        for d in range(len(weights)):
            if counts[d] < limits[d]:
                behind = weights[d] * max(i, 1) - counts[d]
                if behind > most:
                    best, most = d, behind
        dataset_index[i], sample_index[i] = best, counts[best]
        counts[best] += 1


def compile_if_long(function: Loop, steps: int) -> Loop:
    """The function, compiled by numba if it runs at least COMPILE_FROM steps; its results are the same."""
    return function if steps < COMPILE_FROM else compile_loop(function)
