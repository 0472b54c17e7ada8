"""Shingles and MinHash signatures in loops compiled by numba; the same results as shingles.py and minhash.py.

The loops take a third of numpy's time. numba takes half a second to load in each process, in which numpy
signs 20 MB of text; so this module is imported only by processes with more text (`shingles.COMPILE_FROM`).
The first use compiles the loops, in some seconds, and caches the result next to the source for later
processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ...core.numba_loops import compile_loop
from ..words import MARK, OUTSIDE, SINGLE
from .shingles import FOLD, MIX_A, MIX_B, WHITESPACE, WORD_BYTES

WORD_BYTE = np.frombuffer(WORD_BYTES, np.uint8)  # uint8 (256,): the byte that represents each in a word, or 0
IS_WHITESPACE = np.isin(np.arange(256), list(WHITESPACE))
SHIFT_30, SHIFT_27, SHIFT_31, SHIFT_32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
BITS_OF_BYTE, BITS_OF_BLOCK = np.uint64(8), np.uint64(64)
ZERO, ONE = np.uint64(0), np.uint64(1)
TAB, NEWLINE, SPACE = (np.uint8(ord(c)) for c in "\t\n ")


def separate_words(points: np.ndarray, ends: np.ndarray, kind_of: np.ndarray) -> np.ndarray:
    """The same words as words.separate_words."""
    separated = np.empty(2 * len(points) + len(ends), np.uint32)
    return separated[: _separate_words(points, ends, kind_of, separated)]


def word_shingles(encoded: Sequence[bytes], n: int) -> tuple[np.ndarray, np.ndarray]:
    """`shingles.shingle(*shingles.batch_words(texts), n)`. encoded: results of words.word_bytes."""
    data = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([len(e) for e in encoded])
    # a word and the separator behind it have at least two bytes
    shingles = np.empty(len(data) // 2 + len(encoded) + 1, np.uint64)
    first = np.zeros(len(encoded) + 1, np.int64)
    _word_shingles(data, ends, WORD_BYTE, n, shingles, first)
    return shingles[: first[-1]], first


def exact_texts(encoded: Sequence[bytes]) -> list[memoryview]:
    """`shingles.exact_bytes` of texts, uint8. encoded: the texts after shingles.encode_spaces."""
    data = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([len(e) for e in encoded])
    exact = np.empty(len(data) + 1, np.uint8)
    first = np.zeros(len(encoded) + 1, np.int64)
    _exact_texts(data, ends, IS_WHITESPACE, exact, first)
    view, bounds = exact.data, first.tolist()
    return [view[start:end] for start, end in itertools.pairwise(bounds)]


def minhash_signatures(
    shingles: np.ndarray, first: np.ndarray, factors: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """The same as minhash.minhash_signatures. factors, offsets: results of minhash.permutations."""
    result = np.empty((len(first) - 1, len(factors)), np.uint32)
    _signatures(shingles, first, factors, offsets, result)
    return result


@compile_loop
def power(base: np.uint64, exponent: int) -> np.uint64:
    """Modulo 2^64."""
    result = ONE
    for _ in range(exponent):
        result *= base
    return result


@compile_loop
def mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> SHIFT_30)) * MIX_A
    x = (x ^ (x >> SHIFT_27)) * MIX_B
    return x ^ (x >> SHIFT_31)


@compile_loop
def _separate_words(points: np.ndarray, ends: np.ndarray, kind_of: np.ndarray, separated: np.ndarray) -> int:
    """Fills `separated`; returns how many code points it has."""
    filled, start = 0, 0
    for text in range(len(ends)):
        if text:
            separated[filled] = NEWLINE
            filled += 1
        before = OUTSIDE
        for i in range(start, ends[text]):
            kind = kind_of[points[i]]
            if kind == OUTSIDE or (kind == MARK and before == OUTSIDE):
                before = OUTSIDE
                separated[filled] = SPACE
                filled += 1
                continue
            if kind != MARK:
                if before != OUTSIDE and (kind == SINGLE or kind != before):
                    separated[filled] = SPACE
                    filled += 1
                before = kind
            separated[filled] = points[i]
            filled += 1
        start = ends[text]
    return filled


@compile_loop
def _exact_texts(
    data: np.ndarray, ends: np.ndarray, is_whitespace: np.ndarray, exact: np.ndarray, first: np.ndarray
) -> None:
    """Fills the last two arrays: the exact bytes of all texts, and where those of each text begin."""
    filled, start = 0, 0
    for text in range(len(ends)):
        # A loop without branches takes a third of the time. It does not keep indentation.
        begin, after_space, before, indented = filled, True, SPACE, False
        for i in range(start, ends[text]):
            byte = data[i]
            is_space = is_whitespace[byte]
            exact[filled] = SPACE if is_space else byte
            filled += not (is_space and after_space)
            after_space = is_space
            indented |= (before == NEWLINE) & ((byte == SPACE) | (byte == TAB))
            before = byte
        if after_space and filled > begin:
            filled -= 1
        if indented:
            filled = _exact_text(data, start, ends[text], is_whitespace, exact, begin)
        start = ends[text]
        first[text + 1] = filled


@compile_loop
def _exact_text(
    data: np.ndarray, start: int, end: int, is_whitespace: np.ndarray, exact: np.ndarray, filled: int
) -> int:
    """Appends the exact bytes of one text, data[start:end]; returns the length of `exact`."""
    begin, run_start = filled, -1  # run_start: where the current run of white space begins
    for i in range(start, end):
        if is_whitespace[data[i]]:
            if run_start < 0:
                run_start = i
            continue
        if run_start >= 0:
            if filled > begin:
                filled = _one_space(data, run_start, i, exact, filled)
            run_start = -1
        exact[filled] = data[i]
        filled += 1
    return filled


@compile_loop
def _one_space(data: np.ndarray, start: int, end: int, exact: np.ndarray, filled: int) -> int:
    """Appends a run of white space, data[start:end], as exact_bytes has it; returns the length."""
    last, has_tab = end - 1, False
    if end - start > 1:
        while last >= start and (data[last] == SPACE or data[last] == TAB):
            has_tab = has_tab or data[last] == TAB
            last -= 1
    if last < start or data[last] != NEWLINE or not (has_tab or end - last > 2):
        exact[filled] = SPACE
        return filled + 1
    for i in range(last, end):
        exact[filled] = data[i]
        filled += 1
    return filled


@compile_loop
def _word_shingles(
    data: np.ndarray, ends: np.ndarray, word_byte: np.ndarray, n: int, shingles: np.ndarray, first: np.ndarray
) -> None:
    """Fills the last two arrays, which are `word_shingles`' results."""
    window = np.empty(n, np.uint64)  # the hashes of the last n words
    oldest = power(FOLD, n - 1)  # the factor of the first of n words in the rolling hash
    count, start = 0, 0
    for text in range(len(ends)):
        num_words, slot, folded = 0, 0, ZERO
        blocks, hashed, block, bits = 0, ZERO, ZERO, ZERO  # of the current word, eight bytes at a time
        for i in range(start, ends[text] + 1):
            byte = np.uint64(word_byte[data[i]]) if i < ends[text] else ZERO
            if byte:
                if bits == BITS_OF_BLOCK:
                    hashed = mix(hashed * FOLD + block) if blocks else mix(block)
                    blocks, block, bits = blocks + 1, ZERO, ZERO
                block |= byte << bits
                bits += BITS_OF_BYTE
            elif bits:
                word = mix(hashed * FOLD + block) if blocks else mix(block)
                blocks, block, bits = 0, ZERO, ZERO
                if num_words >= n:
                    folded -= window[slot] * oldest
                window[slot] = word
                slot = slot + 1 if slot + 1 < n else 0
                folded = folded * FOLD + word
                num_words += 1
                if num_words >= n:
                    shingles[count] = mix(folded)
                    count += 1
        if 0 < num_words < n:
            shingles[count] = mix(folded)
            count += 1
        start = ends[text]
        first[text + 1] = count


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
