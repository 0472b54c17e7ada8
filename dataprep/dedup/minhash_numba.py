"""Shingles and MinHash signatures in loops compiled by numba; the same results as shingles.py and minhash.py.

The loops take a third of numpy's time. numba takes half a second to load in each process, in which numpy
signs 20 MB of text; so this module is imported only by processes with more text (`shingles.COMPILE_FROM`).
The first use compiles the loops, in some seconds, and caches the result next to the source for later
processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.numba_loops import compile_loop
from .shingles import FOLD, MIX_A, MIX_B, WHITESPACE, WORD_BYTES

WORD_BYTE = np.frombuffer(WORD_BYTES, np.uint8)  # uint8 (256,): the byte that represents each in a word, or 0
IS_WHITESPACE = np.isin(np.arange(256), list(WHITESPACE))
SHIFT_30, SHIFT_27, SHIFT_31, SHIFT_32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
BITS_OF_BYTE, BITS_OF_BLOCK = np.uint64(8), np.uint64(64)
ZERO, ONE = np.uint64(0), np.uint64(1)
TAB, NEWLINE, RETURN, SPACE = (np.uint8(ord(c)) for c in "\t\n\r ")


def word_shingles(encoded: Sequence[bytes], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`shingles.shingle(*shingles.batch_words(texts), n)`, and for ASCII texts `shingles.exact_bytes`.

    encoded: results of words.word_bytes. Returns (hashes uint64; where those of each text begin; exact bytes,
    uint8; where those of each text begin).
    """
    data = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([len(e) for e in encoded])
    # a word and the separator behind it have at least two bytes
    shingles = np.empty(len(data) // 2 + len(encoded) + 1, np.uint64)
    first, exact_first = np.zeros(len(encoded) + 1, np.int64), np.zeros(len(encoded) + 1, np.int64)
    exact = np.empty(len(data) + 1, np.uint8)
    _word_shingles(data, ends, WORD_BYTE, IS_WHITESPACE, n, shingles, first, exact, exact_first)
    return shingles[: first[-1]], first, exact, exact_first


def minhash_signatures(
    shingles: np.ndarray, first: np.ndarray, factors: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """The same as minhash.minhash_signatures. factors, offsets: results of minhash.permutations."""
    result = np.empty((len(first) - 1, len(factors)), np.uint32)
    _signatures(shingles, first, factors, offsets, result)
    return result


@compile_loop
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> SHIFT_30)) * MIX_A
    x = (x ^ (x >> SHIFT_27)) * MIX_B
    return x ^ (x >> SHIFT_31)


@compile_loop
def _word_shingles(
    data: np.ndarray,
    ends: np.ndarray,
    word_byte: np.ndarray,
    is_whitespace: np.ndarray,
    n: int,
    shingles: np.ndarray,
    first: np.ndarray,
    exact: np.ndarray,
    exact_first: np.ndarray,
) -> None:
    """Fills the last four arrays, which are `word_shingles`' results."""
    window = np.empty(n, np.uint64)  # the hashes of the last n words
    oldest = ONE  # the factor of the first of n words in the rolling hash
    for _ in range(n - 1):
        oldest *= FOLD
    count, filled, start = 0, 0, 0
    for text in range(len(ends)):
        num_words, slot, folded = 0, 0, ZERO
        # of the current run of white space: characters in its last line, whether it has lines and a tab there
        begin, white, indent, has_newline, has_tab = filled, False, 0, False, False
        blocks, hashed, block, bits = 0, ZERO, ZERO, ZERO  # of the current word, eight bytes at a time
        for i in range(start, ends[text] + 1):
            byte = ZERO
            if i < ends[text]:
                byte = np.uint64(word_byte[data[i]])
                if is_whitespace[data[i]]:
                    white = True
                    if data[i] == NEWLINE or data[i] == RETURN:
                        indent, has_newline, has_tab = 0, True, False
                    else:
                        indent += 1
                        has_tab = has_tab or data[i] == TAB
                else:
                    if white and filled > begin:
                        is_indented = has_newline and (indent >= 2 or has_tab)
                        exact[filled] = NEWLINE if is_indented else SPACE
                        filled += 1
                        for j in range(i - indent if is_indented else i, i):
                            exact[filled] = data[j]
                            filled += 1
                    if white:
                        white, indent, has_newline, has_tab = False, 0, False, False
                    exact[filled] = data[i]
                    filled += 1
            if byte:
                if bits == BITS_OF_BLOCK:
                    hashed = _mix(hashed * FOLD + block) if blocks else _mix(block)
                    blocks, block, bits = blocks + 1, ZERO, ZERO
                block |= byte << bits
                bits += BITS_OF_BYTE
            elif bits:
                word = _mix(hashed * FOLD + block) if blocks else _mix(block)
                blocks, block, bits = 0, ZERO, ZERO
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
        first[text + 1], exact_first[text + 1] = count, filled


@compile_loop
def _signatures(
    shingles: np.ndarray, first: np.ndarray, factors: np.ndarray, offsets: np.ndarray, result: np.ndarray
) -> None:
    """Fills `result`, uint32 (texts, num_perm)."""
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
