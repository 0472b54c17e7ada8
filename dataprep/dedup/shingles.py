"""Shingles (n-grams) of texts as 64-bit hashes, in numpy, one batch of texts at a time.

A *word* is that of dataprep/words.py, in lower case. A *shingle* is n consecutive words; a text of fewer
words has one shingle, all its words. Texts are split into words by bytes, after `word_bytes` has put spaces
around the words of other alphabets. For n-grams of characters, each character of the lower-cased text takes
the place of a word, and consecutive whitespace is one space. All arithmetic is on unsigned integers modulo
2^64. minhash_numba.py does the same in compiled loops, for large inputs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from ..words import CACHED_CHARS, has_many_runs, register_encoder, texts_word_bytes

# Part of the key of runs that compare words or exact texts: other words make other results.
TEXT_RULES = "NFC, UAX 29, one space"
WHITESPACE = b" \t\n\v\f\r\x1c\x1d\x1e\x1f"  # the ASCII whitespace of str.split
SPACE_RUN = re.compile(r"\s+")
# A list of characters is searched for three times as fast as their property.
OTHER_SPACE = re.compile(f"[{''.join(c for c in map(chr, range(0x80, 0x3001)) if c.isspace())}]")
OTHER_SPACE_RUN = re.compile(f"{OTHER_SPACE.pattern}+")
ASCII_SPACE_RUN = re.compile(rb"[ \t\n\v\f\r\x1c-\x1f]+")
ONE_SPACE = bytes(0x20 if b in WHITESPACE else b for b in range(256))  # a table for bytes.translate
INDENTATION = re.compile(rb"\n( *\t[ \t]*|  +)\Z")
SEPARATOR = b" "
# A table for bytes.translate: ASCII word characters are lower-cased; non-ASCII bytes, which `word_bytes`
# leaves in words only, are kept; all others become zero.
WORD_BYTES = bytes(
    ord(chr(b).lower()) if b < 0x80 and (chr(b).isalnum() or chr(b) == "_") else b if b >= 0x80 else 0
    for b in range(256)
)
OUTSIDE_WORDS = re.compile(r"[\0-/:-@\[-^`{-\x7f\u3000-\u3002\uff0c]")  # common characters that end any word
BLOCK = 1 << 20  # characters or hashes of a long text at a time
MIX_A, MIX_B, FOLD = (np.uint64(c) for c in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))
LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks of the first n bytes
BATCH_CHARS = 500_000  # of a batch of texts: its arrays fit into the second-level cache
COMPILE_FROM = 32_000_000  # characters in a process from which loading numba (half a second) pays off


def exact_bytes(text: str) -> bytes:
    """UTF-8 of a text in form NFC, with white space, in which exact copies may differ, in one form.

    There is none at the ends, and a run of it is one space. But the indentation of a line, by two spaces or a
    tab at least, is kept: in code it has a meaning. White space outside ASCII counts as a space.
    """
    data = encode_spaces(text)
    if b"\n" in data and (b"\n " in data or b"\n\t" in data):
        return ASCII_SPACE_RUN.sub(_one_space, data.strip(WHITESPACE))
    data = data.translate(ONE_SPACE).strip()
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return data


def encode_spaces(text: str) -> bytes:
    """UTF-8 of a text with one space for each run of white space outside ASCII."""
    if has_many_runs(text):
        return (OTHER_SPACE_RUN.sub(" ", text) if OTHER_SPACE.search(text) else text).encode()
    return text.encode("ascii", "mt.one_space")


def _one_space(run: re.Match[bytes]) -> bytes:
    indentation = INDENTATION.search(run[0])
    return indentation[0] if indentation else b" "


def _space_run(text: str, start: int, end: int) -> bytes:
    run = text[start:end]
    return _space_in(run) if end - start > CACHED_CHARS else _cached_space_in(run)


def _space_in(run: str) -> bytes:
    return SPACE_RUN.sub(" ", run).encode()


_cached_space_in = functools.lru_cache(maxsize=1 << 16)(_space_in)
register_encoder("mt.one_space", _space_run)


def batch_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all words, uint64 (W,); where the words of each text begin, int64 (texts + 1,)).

    texts: in form NFC, as for all functions here.
    """
    encoded = texts_word_bytes(texts)
    data = SEPARATOR + SEPARATOR.join(encoded) + SEPARATOR * 9  # eight bytes can be read at any word
    data = data.translate(WORD_BYTES)
    is_word = np.frombuffer(data, np.uint8) != 0
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, lengths = edges[0::2], edges[1::2] - edges[0::2]
    text_starts = np.cumsum([1, *(len(e) + 1 for e in encoded)])
    return _hash_spans(data, starts, lengths), np.searchsorted(starts, text_starts)


def long_text_shingles(text: str, n: int) -> np.ndarray:
    """The hashes of all shingles of one text, as `shingle` returns them, in 8 bytes of memory for a word."""
    words = np.empty(len(text) + 1, np.uint64)  # what is not filled takes no memory
    count = start = 0
    while start < len(text):
        cut = OUTSIDE_WORDS.search(text, start + BLOCK)
        end = cut.start() if cut else len(text)
        hashes, _ = batch_words([text[start:end]])
        words[count : count + len(hashes)] = hashes
        count, start = count + len(hashes), end
    n = min(n, count)
    total = count - n + 1 if count else 0
    for first in range(0, total, BLOCK):
        last = min(first + BLOCK, total)
        words[first:last] = ngram_hashes(words[first : last + n - 1], n)
    return words[:total]


def batch_characters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`batch_words` for characters: those of the lower-cased text, consecutive whitespace as one space."""
    lowered = [" ".join(t.lower().split()) for t in texts]
    points = np.frombuffer("".join(lowered).encode("utf-32-le"), "<u4").astype(np.uint64)
    return mix64(points), np.cumsum([0, *map(len, lowered)])


def _hash_spans(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A 64-bit hash of data[start : start + length] for every span, eight bytes at a time.

    This is fast because most words fit into eight bytes, which are read at once.
    """
    words = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, 0, (1,))  # the eight bytes from every byte on
    hashes = mix64(words[starts] & LOW_BYTES[np.minimum(lengths, 8)])
    longer, done = np.flatnonzero(lengths > 8), 8
    while len(longer):
        block = words[starts[longer] + done] & LOW_BYTES[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = mix64(hashes[longer] * FOLD + block)
        done += 8
        longer = longer[lengths[longer] > done]
    return hashes


def mix64(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: a bijection in which every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * MIX_A
    x = (x ^ (x >> np.uint64(27))) * MIX_B
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """A hash of every n consecutive words, also across texts; uint64 (max(W - n + 1, 0),)."""
    count = max(len(words) - n + 1, 0)
    folded = words[:count].copy()
    for k in range(1, n):
        folded *= FOLD
        folded += words[k : k + count]
    return mix64(folded)


def shingle(words: np.ndarray, first: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all shingles, uint64 (S,); where the shingles of each text begin, int64 (texts + 1,)).

    words, first: as batch_words returns them.
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
