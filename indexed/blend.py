"""Mixtures: which sample of which dataset comes k-th, by weights.

The order is Megatron-LM's: greedy and without chance, every next sample is taken from the dataset that is furthest
behind its share. A weight is a share of the samples, whatever the size of the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def blending_indices(weights: Sequence[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(dataset (size,) int16, sample within it (size,) int64) of every sample of a mixture of endless datasets.

    Sample i is of the dataset d with the greatest w[d] * max(i, 1) - count[d], the first where several are.
    """
    return _greedy([float(w) for w in weights], size, None)


def exhaustive_blending_indices(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same, where every sample of every dataset comes exactly once; the weights are the sizes."""
    total = sum(sizes)
    return _greedy([s / total for s in sizes], total, sizes)


def _greedy(weights: list[float], size: int, limits: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    # A plain loop over floats: each choice depends on the one before. 0.3 us a sample and dataset.
    dataset_index, sample_index = np.empty(size, np.int16), np.empty(size, np.int64)
    counts = [0] * len(weights)
    among = [d for d in range(len(weights)) if limits is None or limits[d] > 0]
    for i in range(size):
        step = i or 1
        best, most = -1, -float("inf")
        for d in among:
            behind = weights[d] * step - counts[d]
            if behind > most:
                best, most = d, behind
        dataset_index[i], sample_index[i] = best, counts[best]
        counts[best] += 1
        if limits is not None and counts[best] == limits[best]:
            among.remove(best)
    return dataset_index, sample_index
