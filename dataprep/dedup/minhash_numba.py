"""the loops of shingles.py and minhash.py compiled by numba, for much text: the same numbers in a third of
the time.

numba takes half a second to load in every process, the time in which numpy signs 20 MB; so this module is
imported where a process has more than that to do (`shingles.COMPILE_FROM`), and numpy serves elsewhere. It
compiles on the first use, in some seconds, and keeps the result beside the source for later processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.numba_loops import compile_loop
from .shingles import BLANKS, FOLD, MIX_A, MIX_B, WORD_BYTES

KIND = np.frombuffer(WORD_BYTES, np.uint8)  # the byte that stands for each byte in a word, or zero
BLANK = np.isin(np.arange(256), list(BLANKS))
SHIFT_30, SHIFT_27, SHIFT_31, SHIFT_32, BYTE, FULL = (np.uint64(n) for n in (30, 27, 31, 32, 8, 64))
NOTHING, ONE = np.uint64(0), np.uint64(1)


def word_shingles(pieces: Sequence[bytes], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`shingles.shingle(*shingles.batch_words(texts), n)`, and the bytes of the texts without whitespace.

    pieces: of shingles.word_bytes. Returns (hashes, where each text's begin, bare bytes uint8, where each
    text's begin).
    """
    data = np.frombuffer(b"".join(pieces), np.uint8)
    ends = np.cumsum([len(p) for p in pieces])
    # a word and what separates it are two bytes
    shingles = np.empty(len(data) // 2 + len(pieces) + 1, np.uint64)
    first, bare_first = np.zeros(len(pieces) + 1, np.int64), np.zeros(len(pieces) + 1, np.int64)
    bare = np.empty(len(data) + 1, np.uint8)
    _word_shingles(data, ends, KIND, BLANK, n, shingles, first, bare, bare_first)
    return shingles[: first[-1]], first, bare, bare_first


def minhash_signatures(
    shingles: np.ndarray, first: np.ndarray, factors: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """`minhash.minhash_signatures`. factors, offsets: of minhash.permutations."""
    result = np.empty((len(first) - 1, len(factors)), np.uint32)
    _signatures(shingles, first, factors, offsets, result)
    return result


@compile_loop
def _mix(x):
    x = (x ^ (x >> SHIFT_30)) * MIX_A
    x = (x ^ (x >> SHIFT_27)) * MIX_B
    return x ^ (x >> SHIFT_31)


@compile_loop
def _word_shingles(data, ends, kind, blank, n, shingles, first, bare, bare_first):
    window = np.empty(n, np.uint64)  # the hashes of the last n words
    oldest = ONE  # the factor of the first of n words in their sum
    for _ in range(n - 1):
        oldest *= FOLD
    count, filled, start = 0, 0, 0
    for text in range(len(ends)):
        num_words, slot, folded = 0, 0, NOTHING
        blocks, hashed, block, bits = 0, NOTHING, NOTHING, NOTHING
        for i in range(start, ends[text] + 1):
            byte = NOTHING
            if i < ends[text]:
                bare[filled] = data[i]
                filled += not blank[data[i]]
                byte = np.uint64(kind[data[i]])
            if byte:
                if bits == FULL:
                    hashed = _mix(hashed * FOLD + block) if blocks else _mix(block)
                    blocks, block, bits = blocks + 1, NOTHING, NOTHING
                block |= byte << bits
                bits += BYTE
            elif bits:
                word = _mix(hashed * FOLD + block) if blocks else _mix(block)
                blocks, block, bits = 0, NOTHING, NOTHING
                if num_words >= n:
                    folded -= window[slot] * oldest
                window[slot] = word
                slot = slot + 1 if slot + 1 < n else 0
                folded = folded * FOLD + word
                num_words += 1
                if num_words >= n:
                    shingles[count] = _mix(folded)
                    count += 1
        if 0 < num_words < n:
            shingles[count] = _mix(folded)
            count += 1
        start = ends[text]
        first[text + 1], bare_first[text + 1] = count, filled


@compile_loop
def _signatures(shingles, first, factors, offsets, result):
    least = np.empty(len(factors), np.uint32)
    for text in range(len(first) - 1):
        for k in range(len(factors)):
            least[k] = 0xFFFFFFFF
        for i in range(first[text], first[text + 1]):
            value = np.uint32(shingles[i] >> SHIFT_32)
            for k in range(len(factors)):
                permuted = np.uint32(np.uint32(value * factors[k]) + offsets[k])
                least[k] = min(least[k], permuted)
        for k in range(len(factors)):
            result[text, k] = least[k]
