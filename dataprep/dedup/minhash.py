"""MinHash signatures of shingles and the keys of their LSH bands, in numpy, one batch of texts at a time.

minhash_numba.py does the same in compiled loops, for large inputs. Broder 1997, "On the resemblance and
containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..words import texts_word_bytes
from .shingles import BLOCK, FOLD, batch_characters, batch_words, encode_spaces, exact_bytes, mix64, shingle

PERMUTATION_SEED = 1


def text_shingles(texts: Sequence[str], n: int, unit: str, compiled: bool) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of shingles, where those of each text begin), as shingles.shingle returns them.

    texts: in form NFC. unit: "word" or "char". compiled: whether to use minhash_numba.py.
    """
    if unit == "char" or not compiled:
        words = (batch_characters if unit == "char" else batch_words)(texts)
        return shingle(*words, n)
    from . import minhash_numba

    return minhash_numba.word_shingles(texts_word_bytes(texts, minhash_numba.separate_words), n)


def exact_texts(texts: Sequence[str], compiled: bool) -> Sequence[bytes | memoryview]:
    """`shingles.exact_bytes` of texts in form NFC. compiled: whether to use minhash_numba.py."""
    if not compiled:
        return [exact_bytes(text) for text in texts]
    from . import minhash_numba

    return minhash_numba.exact_texts([encode_spaces(text) for text in texts])


@functools.cache
def permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), uint32 (num_perm,): the permutations x -> a x + b (mod 2^32) of 32-bit hashes; a is odd."""
    random = np.random.Generator(np.random.PCG64(PERMUTATION_SEED))
    factors = random.integers(0, 1 << 32, num_perm, np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, num_perm, np.uint32)


def minhash_signatures(
    shingles: np.ndarray, first: np.ndarray, num_perm: int, compiled: bool = False
) -> np.ndarray:
    """MinHash signatures, uint32 (texts, num_perm). shingles, first: as shingles.shingle returns them.

    Every text must have a shingle.
    """
    if compiled:
        from . import minhash_numba

        return minhash_numba.minhash_signatures(shingles, first, *permutations(num_perm))
    factors, offsets = permutations(num_perm)
    if len(shingles) > BLOCK and len(first) == 2:  # a long text
        blocks = (shingles[i : i + BLOCK] for i in range(0, len(shingles), BLOCK))
        found = [minhash_signatures(block, np.array([0, len(block)]), num_perm) for block in blocks]
        least: np.ndarray = np.min(found, axis=0)
        return least
    values = (shingles >> np.uint64(32)).astype(np.uint32)
    result = np.empty((num_perm, len(first) - 1), np.uint32)
    permuted = np.empty_like(values)
    for k in range(num_perm if len(values) else 0):
        np.multiply(values, factors[k], out=permuted)
        permuted += offsets[k]
        np.minimum.reduceat(permuted, first[:-1], out=result[k])
    return result.T


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """A 64-bit key for each band of `rows` signature values, uint64 (bands, texts)."""
    columns = np.ascontiguousarray(signature[:, : bands * rows].T).reshape(bands, rows, -1).astype(np.uint64)
    keys = columns[:, 0].copy()
    for k in range(1, rows):
        keys = mix64(keys) * FOLD + columns[:, k]
    return mix64(keys)


def choose_bands(threshold: float, num_perm: int, missed_weight: float) -> tuple[int, int]:
    """(bands, rows), bands * rows <= num_perm, with the least weighted sum of false positives and negatives.

    As in datasketch.MinHashLSH, these are the areas below and above the curve 1 - (1 - s^rows)^bands on
    either side of the threshold. missed_weight is datasketch's false_negative_weight, and 1 - missed_weight
    its false_positive_weight.
    """
    best, least_error = (1, 1), float("inf")
    step = 0.001
    below = np.arange(0, threshold, step) + step / 2
    above = np.arange(threshold, 1, step) + step / 2
    for bands in range(1, num_perm + 1):
        for rows in range(1, num_perm // bands + 1):
            false = (1 - (1 - below**rows) ** bands).sum() * step
            missed = ((1 - above**rows) ** bands).sum() * step
            error = false * (1 - missed_weight) + missed * missed_weight
            if error < least_error:
                best, least_error = (bands, rows), error
    return best
