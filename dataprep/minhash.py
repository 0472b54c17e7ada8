"""texts -> n-grams as 64-bit hashes -> MinHash signatures -> band keys, in numpy, a batch of texts at a time.

A *word* is a run of letters, digits and underscores (`\\w+`), lower-cased; a *shingle* is n words in a row (all words,
where a text has fewer). Texts are cut into words by bytes; those that are not ASCII are lower-cased first, and what else
may not stand in a word is made a blank. Where n-grams are of characters, each one of the lower-cased text stands
for a word, and whitespace between words counts as one blank. All arithmetic is on unsigned integers that wrap around.
loops.py does the same in compiled loops, for much text.

MinHash and banding: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

WORD = re.compile(r"\w+")
NO_WORD = re.compile(r"\W+")
BLANKS = b" \t\n\v\f\r\x1c\x1d\x1e\x1f"  # what str.split drops of ASCII, and beyond
SEPARATOR = b" "
# Lower-cased word bytes stay, everything else becomes zero; bytes beyond ASCII stand in words only (see `batch_words`).
WORD_BYTES = bytes(
    ord(chr(b).lower()) if b < 0x80 and (chr(b).isalnum() or chr(b) == "_") else b if b >= 0x80 else 0 for b in range(256)
)
MIX_A, MIX_B, FOLD = (np.uint64(c) for c in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))
LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(8)] + [(1 << 64) - 1], np.uint64)  # a mask of the first n bytes
PERMUTATION_SEED = 1
BATCH_CHARS = 500_000  # texts signed together: their arrays fit the second-level cache
COMPILE_FROM = 32_000_000  # characters of a process from which the compiled loops repay the half second that loads them


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


def text_shingles(texts: Sequence[str], n: int, unit: str, compiled: bool) -> tuple[np.ndarray, np.ndarray, list]:
    """(hashes of the shingles of texts, where each text's begin, each text's bytes without whitespace or None).

    unit: "word" or "char". compiled: whether the loops of loops.py do it, which give those bytes of ASCII texts too.
    """
    if unit == "char" or not compiled:
        words = (batch_characters if unit == "char" else batch_words)(texts)
        return *shingle(*words, n), [None] * len(texts)
    from . import loops

    shingles, first, bare, ends = loops.word_shingles([word_bytes(t) for t in texts], n)
    view, ends = memoryview(bare), ends.tolist()
    return shingles, first, [view[a:b] if t.isascii() else None for t, a, b in zip(texts, ends, ends[1:])]


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


# Encoding as ASCII passes over what is ASCII ten times as fast as a regular expression, and asks about every run that is not.
codecs.register_error("mt.word_bytes", lambda found: (_lower_word_bytes(found.object[found.start : found.end]), found.end))
codecs.register_error("mt.bare_bytes", lambda found: (_bare_characters(found.object[found.start : found.end]), found.end))


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
    """What batch_words gives, for characters: hashes of those of the lower-cased text, runs of whitespace as one blank."""
    pieces = [" ".join(t.lower().split()) for t in texts]
    points = np.frombuffer("".join(pieces).encode("utf-32-le"), "<u4").astype(np.uint64)
    return _mix(points), np.cumsum([0, *map(len, pieces)])


def _hash_spans(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A 64-bit hash of data[start : start + length] for every span, eight bytes at a time.

    Reading eight bytes at each word instead of each byte once is what makes this quick: the mean word is shorter.
    """
    words = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, 0, (1,))  # eight bytes at every byte
    hashes = _mix(words[starts] & LOW_BYTES[np.minimum(lengths, 8)])
    longer, done = np.flatnonzero(lengths > 8), 8
    while len(longer):
        block = words[starts[longer] + done] & LOW_BYTES[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = _mix(hashes[longer] * FOLD + block)
        done += 8
        longer = longer[lengths[longer] > done]
    return hashes


def _mix(x: np.ndarray) -> np.ndarray:
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
    return _mix(folded)


def shingle(words: np.ndarray, first: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the shingles of every text, in order; where each text's begin); words, first as of batch_words."""
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


@functools.cache
def permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), uint32 (num_perm,) each, of the permutations x -> a x + b of 32-bit hashes; a is odd."""
    random = np.random.Generator(np.random.PCG64(PERMUTATION_SEED))
    factors = random.integers(0, 1 << 32, num_perm, np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, num_perm, np.uint32)


def signatures(shingles: np.ndarray, first: np.ndarray, num_perm: int, compiled: bool = False) -> np.ndarray:
    """MinHash signatures, uint32 (number of texts, num_perm); every text must have a shingle."""
    if compiled:
        from . import loops

        return loops.signatures(shingles, first, num_perm)
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
        keys = _mix(keys) * FOLD + columns[:, k]
    return _mix(keys)


def choose_bands(threshold: float, num_perm: int, missed_weight: float) -> tuple[int, int]:
    """(bands, rows) that minimise the weighted sum of false and of missed candidates, bands * rows <= num_perm.

    The two areas under and over the curve 1 - (1 - s^rows)^bands on either side of the threshold, as
    datasketch.MinHashLSH weighs them: missed_weight is its false_negative_weight, the rest its false_positive_weight.
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
    # All sets of all pairs are sorted at once: the number of the pair above, as much of a hash below as there is room.
    # 4096 pairs leave 52 bits: a false match in some 10^10 pairs.
    members = np.concatenate([np.empty(0, np.uint64), *(hashes[i] for pair in zip(a.tolist(), b.tolist()) for i in pair)]) >> bits
    numbers = np.repeat(np.arange(count, dtype=np.uint64), sizes[a] + sizes[b])
    members |= numbers << (np.uint64(64) - bits)
    members.sort(kind="stable")  # timsort: it joins sorted runs, which the sets are
    twice = members[1:][members[1:] == members[:-1]] >> (np.uint64(64) - bits)
    common = np.bincount(twice.astype(np.int64), minlength=count)
    union = sizes[a] + sizes[b] - common
    return np.divide(common, union, out=np.ones(count), where=union > 0)
