"""Mixtures: which sample of which dataset comes k-th, by weights.

The order is Megatron-LM's: greedy and without chance, every next sample is taken from the dataset that is
furthest behind its share. A weight is a share of the samples, whatever the size of the dataset.

Each choice depends on the one before, which numpy cannot vectorise: the loop is compiled by numba where it is
long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.numba_loops import compile_loop

ENDLESS = np.iinfo(np.int64).max
COMPILE_FROM = 50_000  # steps of a loop: some 50 ms of plain Python, less than it takes to load numba


def blending_indices(weights: Sequence[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(dataset (size,) int16, sample within it (size,) int64) of every sample of a mixture of endless
    datasets.

    Sample i is of the dataset d with the greatest w[d] * max(i, 1) - count[d], the first where several are.
    """
    return _blend(weights, size, [ENDLESS] * len(weights))


def exhaustive_blending_indices(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same, where every sample of every dataset comes exactly once; the weights are the sizes."""
    total = sum(sizes)
    return _blend([s / total for s in sizes], total, sizes)


def _blend(weights: Sequence[float], size: int, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    dataset_index, sample_index = np.empty(size, np.int16), np.empty(size, np.int64)
    loop = compiled(_greedy, size * len(weights))
    loop(np.asarray(weights, np.float64), np.asarray(limits, np.int64), dataset_index, sample_index)
    return dataset_index, sample_index


def _greedy(weights, limits, dataset_index, sample_index):
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


def compiled(function: Callable, steps: int) -> Callable:
    """A loop over numpy arrays, as it is where it is short, else compiled: the same numbers either way."""
    return function if steps < COMPILE_FROM else compile_loop(function)
