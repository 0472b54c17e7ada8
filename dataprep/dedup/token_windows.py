"""Tokens of a text, windows of them and the anchors of windows, in loops compiled by numba.

A *token* is a word (dataprep/words.py) as it is written, or any other character but white space, with the
combining marks that follow it. A *window* is `length` consecutive tokens of one text. Its *anchor* is, of
the shorter windows of half the length within it, the one with the least hash: equal windows have equal
anchors, and neighbours mostly share one, so that a text has few of them (winnowing: Schleimer, Wilkerson and
Aiken 2003, "Winnowing: local algorithms for document fingerprinting").
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ...core.numba_loops import compile_loop
from ...core.unicode import normalize
from ..words import KANA, LETTER, MARK, OUTSIDE, kinds
from .minhash_numba import ZERO, mix, power
from .shingles import FOLD, MIX_B

SPACE = 5  # a kind of code points besides those of words.py
LAST_SPACE = 0x3000  # no white space comes after the ideographic space


@functools.cache
def kinds_with_space() -> np.ndarray:
    """The kind of each code point, uint8 (0x110000,): words.kinds, and SPACE for white space."""
    found = kinds().copy()
    found[[i for i in range(LAST_SPACE + 1) if chr(i).isspace()]] = SPACE
    return found


def tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes of all tokens, uint64 (T,); [start, end) in characters of its text of each, int64 (2, T); where
    the tokens of each text begin, int64 (texts + 1,)).
    """
    points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    ends = np.cumsum([len(text) for text in texts])
    hashes = np.empty(len(points), np.uint64)
    spans = np.empty((2, len(points)), np.int64)
    first = np.zeros(len(texts) + 1, np.int64)
    _tokens(points, ends, kinds_with_space(), hashes, spans, first)
    return hashes[: first[-1]], spans[:, : first[-1]], first


def normalized_tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, where those of each text begin) of the texts in form NFC, as `tokens` returns them."""
    hashes, _, first = tokens([normalize("NFC", text) for text in texts])
    return hashes, first


def anchors(hashes: np.ndarray, first: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(the hash of each place that is an anchor, in order, uint64 (A,); of the window that begins at each
    token, the index of its anchor, -1 where there is none before the end of the text, int64 (T,)).

    hashes, first: as `tokens` returns them. length: of a window, in tokens.
    """
    found = np.empty(len(hashes), np.uint64)
    anchor_of = np.full(len(hashes), -1)
    return found[: _anchors(hashes, first, length, found, anchor_of)], anchor_of


def window_keys(hashes: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """128-bit hashes, uint64 (N, 2), of the windows that begin at the tokens `starts`, in ascending order."""
    keys = np.empty((len(starts), 2), np.uint64)
    _window_keys(hashes, starts, length, keys)
    return keys


@compile_loop
def _tokens(
    points: np.ndarray,
    ends: np.ndarray,
    kind_of: np.ndarray,
    hashes: np.ndarray,
    spans: np.ndarray,
    first: np.ndarray,
) -> None:
    """Fills the last three arrays, which are `tokens`' results."""
    count, start = 0, 0
    for text in range(len(ends)):
        before, folded = SPACE, ZERO  # the kind of the current token, SPACE between two tokens
        for i in range(start, ends[text]):
            kind = kind_of[points[i]]
            goes_on = before != SPACE and (kind == MARK or (kind == before and kind in (LETTER, KANA)))
            if not goes_on:
                if before != SPACE:
                    hashes[count] = mix(folded)
                    spans[1, count] = i - start
                    count += 1
                if kind == SPACE:
                    before = SPACE
                    continue
                before = OUTSIDE if kind == MARK else kind
                folded = ZERO
                spans[0, count] = i - start
            folded = folded * FOLD + np.uint64(points[i] + 1)
        if before != SPACE:
            hashes[count] = mix(folded)
            spans[1, count] = ends[text] - start
            count += 1
        start = ends[text]
        first[text + 1] = count


@compile_loop
def _anchors(
    hashes: np.ndarray, first: np.ndarray, length: int, found: np.ndarray, anchor_of: np.ndarray
) -> int:
    """Fills `found` and `anchor_of`; returns the number of anchors."""
    inner = (length + 1) // 2  # tokens of an anchor
    span = length - inner + 1  # places of anchors in a window
    oldest = power(FOLD, inner - 1)
    recent = np.empty(span, np.uint64)  # hashes of the last `span` places
    count = 0
    for text in range(len(first) - 1):
        folded, least, least_at = ZERO, ZERO, -1
        for i in range(first[text], first[text + 1]):
            place = i - inner + 1
            if place > first[text]:
                folded -= hashes[place - 1] * oldest
            folded = folded * FOLD + hashes[i]
            if place < first[text]:
                continue
            value = mix(folded)
            recent[place % span] = value
            window = place - span + 1
            if window < first[text]:
                continue
            if least_at < window:
                least, least_at = _least(recent, place, span)
                found[count] = least
                count += 1
            elif value <= least:
                least, least_at = value, place
                found[count] = least
                count += 1
            anchor_of[window] = count - 1
    return count


@compile_loop
def _window_keys(hashes: np.ndarray, starts: np.ndarray, length: int, keys: np.ndarray) -> None:
    oldest_a, oldest_b = power(FOLD, length - 1), power(MIX_B, length - 1)
    key_a, key_b, before = ZERO, ZERO, -2
    for n in range(len(starts)):
        start = starts[n]
        if start == before + 1:  # the window before, without its first token and with one more
            key_a = (key_a - hashes[before] * oldest_a) * FOLD + hashes[start + length - 1]
            key_b = (key_b - hashes[before] * oldest_b) * MIX_B + hashes[start + length - 1]
        else:
            key_a, key_b = ZERO, ZERO
            for i in range(start, start + length):
                key_a = key_a * FOLD + hashes[i]
                key_b = key_b * MIX_B + hashes[i]
        before = start
        keys[n, 0] = mix(key_a)
        keys[n, 1] = mix(key_b)


@compile_loop
def _least(recent: np.ndarray, place: int, span: int) -> tuple[np.uint64, int]:
    """(the least of the last `span` values, its place); the last one of equal values."""
    least, least_at = recent[place % span], place
    for at in range(place - 1, place - span, -1):
        if recent[at % span] < least:
            least, least_at = recent[at % span], at
    return least, least_at
