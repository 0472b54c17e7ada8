"""texts -> n-grams (shingles) as 64-bit hashes, in numpy, a batch of texts at a time.

A *word* is a run of letters, digits and underscores (`\\w+`), lower-cased; a *shingle* is n words in a row
(all words, where a text has fewer). Texts are cut into words by bytes; those that are not ASCII are
lower-cased first, and what else may not stand in a word is made a blank. Where n-grams are of characters,
each one of the lower-cased text stands for a word, and whitespace between words counts as one blank. All
arithmetic is on unsigned integers that wrap around. minhash_numba.py does the same in compiled loops, for
much text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

WORD = re.compile(r"\w+")
NO_WORD = re.compile(r"\W+")
BLANKS = b" \t\n\v\f\r\x1c\x1d\x1e\x1f"  # what str.split drops of ASCII, and beyond
SEPARATOR = b" "
# Lower-cased word bytes stay, everything else becomes zero; bytes beyond ASCII stand in words only (see
# `batch_words`).
WORD_BYTES = bytes(
    ord(chr(b).lower()) if b < 0x80 and (chr(b).isalnum() or chr(b) == "_") else b if b >= 0x80 else 0
    for b in range(256)
)
MIX_A, MIX_B, FOLD = (np.uint64(c) for c in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))
# a mask of the first n bytes
LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(8)] + [(1 << 64) - 1], np.uint64)
BATCH_CHARS = 500_000  # texts signed together: their arrays fit the second-level cache
# characters of a process from which the compiled loops repay the half second that loads them
COMPILE_FROM = 32_000_000


def batches(items: Iterable) -> Iterator[list]:
    """Documents in lists of about BATCH_CHARS characters."""
    batch, size = [], 0
    for document in items:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def word_bytes(text: str) -> bytes:
    """UTF-8 of a text in which the words are the runs of bytes that WORD_BYTES does not make zero."""
    if text.isascii():
        return text.encode()
    if "Σ" in text:  # its lower case depends on its neighbours in the word
        return " ".join(WORD.findall(text)).lower().encode()
    return text.encode("ascii", "mt.word_bytes")


def bare_bytes(text: str) -> bytes:
    """`"".join(text.split())` in UTF-8."""
    return text.encode("ascii", "mt.bare_bytes").translate(None, BLANKS)


def _lower_word_bytes(characters: str) -> bytes:
    """Characters beyond ASCII in lower case, a blank for those that may not stand in a word."""
    return NO_WORD.sub(" ", characters).lower().encode()


def _bare_characters(characters: str) -> bytes:
    return "".join(characters.split()).encode()


# Encoding as ASCII passes over what is ASCII ten times as fast as a regular expression, and asks about every
# run that is not.
codecs.register_error(
    "mt.word_bytes", lambda found: (_lower_word_bytes(found.object[found.start : found.end]), found.end)
)
codecs.register_error(
    "mt.bare_bytes", lambda found: (_bare_characters(found.object[found.start : found.end]), found.end)
)


def batch_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all words, uint64 (W,); where each text's words begin, int64 (len(texts) + 1,))."""
    pieces = [word_bytes(t) for t in texts]
    data = SEPARATOR + SEPARATOR.join(pieces) + SEPARATOR * 9  # eight bytes can be read at any word
    data = data.translate(WORD_BYTES)
    is_word = np.frombuffer(data, np.uint8) != 0
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, lengths = edges[0::2], edges[1::2] - edges[0::2]
    offsets = np.cumsum([1, *(len(p) + 1 for p in pieces)])
    return _hash_spans(data, starts, lengths), np.searchsorted(starts, offsets)


def batch_characters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What batch_words gives, for characters: hashes of those of the lower-cased text, runs of whitespace as
    one blank.
    """
    pieces = [" ".join(t.lower().split()) for t in texts]
    points = np.frombuffer("".join(pieces).encode("utf-32-le"), "<u4").astype(np.uint64)
    return mix64(points), np.cumsum([0, *map(len, pieces)])


def _hash_spans(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A 64-bit hash of data[start : start + length] for every span, eight bytes at a time.

    Reading eight bytes at each word instead of each byte once is what makes this quick: the mean word is
    shorter.
    """
    words = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, 0, (1,))  # eight bytes at every byte
    hashes = mix64(words[starts] & LOW_BYTES[np.minimum(lengths, 8)])
    longer, done = np.flatnonzero(lengths > 8), 8
    while len(longer):
        block = words[starts[longer] + done] & LOW_BYTES[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = mix64(hashes[longer] * FOLD + block)
        done += 8
        longer = longer[lengths[longer] > done]
    return hashes


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * MIX_A
    x = (x ^ (x >> np.uint64(27))) * MIX_B
    return x ^ (x >> np.uint64(31))


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """A hash of every n words in a row, whatever texts they belong to; uint64 (max(W - n + 1, 0),)."""
    count = max(len(words) - n + 1, 0)
    folded = words[:count].copy()
    for k in range(1, n):
        folded *= FOLD
        folded += words[k : k + count]
    return mix64(folded)


def shingle(words: np.ndarray, first: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the shingles of every text, in order; where each text's begin); words, first as of
    batch_words.
    """
    grams = np.zeros(len(words), np.uint64)
    inside = ngram_hashes(words, n)
    grams[: len(inside)] = inside
    counts = np.diff(first)
    text_end = np.repeat(first[1:], counts)
    whole = np.arange(len(words)) + n <= text_end
    for text in np.flatnonzero((counts > 0) & (counts < n)):
        start, end = first[text], first[text + 1]
        grams[start] = ngram_hashes(words[start:end], end - start)[0]
        whole[start] = True
    shingles_before = np.concatenate(([0], np.cumsum(whole)))
    return grams[whole], shingles_before[first]
