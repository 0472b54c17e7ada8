"""shingles -> MinHash signatures -> band keys, in numpy, a batch of texts at a time.

minhash_numba.py does the same in compiled loops, for much text. Broder 1997, "On the resemblance and
containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from .shingles import FOLD, batch_characters, batch_words, mix64, shingle, word_bytes

PERMUTATION_SEED = 1


def text_shingles(
    texts: Sequence[str], n: int, unit: str, compiled: bool
) -> tuple[np.ndarray, np.ndarray, list]:
    """(hashes of the shingles of texts, where each text's begin, each text's bytes without whitespace or
    None).

    unit: "word" or "char". compiled: whether the loops of loops.py do it, which give those bytes of ASCII
    texts too.
    """
    if unit == "char" or not compiled:
        words = (batch_characters if unit == "char" else batch_words)(texts)
        return *shingle(*words, n), [None] * len(texts)
    from . import minhash_numba

    shingles, first, bare, ends = minhash_numba.word_shingles([word_bytes(t) for t in texts], n)
    view, ends = memoryview(bare), ends.tolist()
    return shingles, first, [view[a:b] if t.isascii() else None for t, a, b in zip(texts, ends, ends[1:])]


@functools.cache
def permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), uint32 (num_perm,) each, of the permutations x -> a x + b of 32-bit hashes; a is odd."""
    random = np.random.Generator(np.random.PCG64(PERMUTATION_SEED))
    factors = random.integers(0, 1 << 32, num_perm, np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, num_perm, np.uint32)


def minhash_signatures(
    shingles: np.ndarray, first: np.ndarray, num_perm: int, compiled: bool = False
) -> np.ndarray:
    """MinHash signatures, uint32 (number of texts, num_perm); every text must have a shingle."""
    if compiled:
        from . import minhash_numba

        return minhash_numba.minhash_signatures(shingles, first, *permutations(num_perm))
    factors, offsets = permutations(num_perm)
    values = (shingles >> np.uint64(32)).astype(np.uint32)
    result = np.empty((num_perm, len(first) - 1), np.uint32)
    permuted = np.empty_like(values)
    for k in range(num_perm if len(values) else 0):
        np.multiply(values, factors[k], out=permuted)
        permuted += offsets[k]
        np.minimum.reduceat(permuted, first[:-1], out=result[k])
    return result.T


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """A 64-bit key for every band of `rows` signature values, uint64 (bands, number of texts)."""
    columns = np.ascontiguousarray(signature[:, : bands * rows].T).reshape(bands, rows, -1).astype(np.uint64)
    keys = columns[:, 0].copy()
    for k in range(1, rows):
        keys = mix64(keys) * FOLD + columns[:, k]
    return mix64(keys)


def choose_bands(threshold: float, num_perm: int, missed_weight: float) -> tuple[int, int]:
    """(bands, rows) that minimise the weighted sum of false and of missed candidates, bands * rows <=
    num_perm.

    The two areas under and over the curve 1 - (1 - s^rows)^bands on either side of the threshold, as
    datasketch.MinHashLSH weighs them: missed_weight is its false_negative_weight, the rest its
    false_positive_weight.
    """
    best, least = (1, 1), float("inf")
    step = 0.001
    below = np.arange(0, threshold, step) + step / 2
    above = np.arange(threshold, 1, step) + step / 2
    for bands in range(1, num_perm + 1):
        for rows in range(1, num_perm // bands + 1):
            false = (1 - (1 - below**rows) ** bands).sum() * step
            missed = ((1 - above**rows) ** bands).sum() * step
            error = false * (1 - missed_weight) + missed * missed_weight
            if error < least:
                best, least = (bands, rows), error
    return best


def jaccards(hashes: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of common shingles of pairs of sets, float64 (P,).

    hashes: sets of 64-bit hashes, sorted, each once; a, b: int (P,), which sets make a pair.
    """
    count = len(a)
    bits = np.uint64(max(1, count - 1).bit_length())
    sizes = np.array([len(h) for h in hashes], np.int64)
    # All sets of all pairs are sorted at once: the number of the pair above, as much of a hash below as there
    # is room. 4096 pairs leave 52 bits: a false match in some 10^10 pairs.
    members = (
        np.concatenate(
            [np.empty(0, np.uint64), *(hashes[i] for pair in zip(a.tolist(), b.tolist()) for i in pair)]
        )
        >> bits
    )
    numbers = np.repeat(np.arange(count, dtype=np.uint64), sizes[a] + sizes[b])
    members |= numbers << (np.uint64(64) - bits)
    members.sort(kind="stable")  # timsort: it joins sorted runs, which the sets are
    twice = members[1:][members[1:] == members[:-1]] >> (np.uint64(64) - bits)
    common = np.bincount(twice.astype(np.int64), minlength=count)
    union = sizes[a] + sizes[b] - common
    return np.divide(common, union, out=np.ones(count), where=union > 0)
