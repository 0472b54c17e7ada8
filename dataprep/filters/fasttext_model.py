"""Scores whole documents by a classifier of fastText, with its scores, in loops compiled by numba.

A document is read as one line: its words lie between white space, newlines included, and `</s>` ends it. The
mean of the rows of its words, of their character n-grams and of its word n-grams is multiplied by the output
matrix. fastText sums the rows one by one. Here the rows of a word with character n-grams are summed once, and
kept in a cache of bounded size under the bytes of the word; most words of a text are there. Where there are
no character n-grams and few labels, the two matrices are multiplied when the model is loaded, and a document
is a sum of the short rows of the product. The sums differ by rounding alone: probabilities agree within 1e-5
(one-vs-all and negative sampling look them up in a table of 512 steps, as fastText does, so that a value at
the edge of a step may get the neighbouring one). A probability may be as high as 1.00001, since fastText adds
1e-5 before it takes logarithms.

numba takes half a second to load, so this module is imported only where there is a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.config import UserError
from ...core.numba_loops import compile_loop
from .fasttext_file import (
    LABEL_PREFIX,
    ModelFile,
    Options,
    QuantizedMatrix,
    label_name,
    label_tree,
    read_model,
)

MASK, FNV_OFFSET, FNV_PRIME = np.uint64(0xFFFFFFFF), np.uint64(2166136261), np.uint64(16777619)
WORD_NGRAM_PRIME = np.uint64(116049371)
# fastText hashes bytes as signed characters, and then as 32-bit numbers without a sign
SIGNED_BYTE = np.arange(256).astype(np.uint8).astype(np.int8).astype(np.uint32).astype(np.uint64)
IS_SPACE = np.isin(np.arange(256), list(b" \n\r\t\v\f\0"))
LABEL_START = np.frombuffer(LABEL_PREFIX.encode(), np.uint8)
END_OF_LINE, END_HASH = np.frombuffer(b"</s>", np.uint8), np.uint64(3617362777)
# A byte's part in a hash: a byte of a word is hashed on, white space sets the hash to its first value.
IN_WORD = np.where(IS_SPACE, 0, -1)
HASH_KEPT = IN_WORD.astype(np.uint64)
HASHED_BYTE = np.where(
    IS_SPACE, np.uint64(int(FNV_OFFSET) * pow(int(FNV_PRIME), -1, 2**64) % 2**64), SIGNED_BYTE
)
# fastText's hash has no secret, so words can be made that all have one slot. Honest ones are nowhere near.
MAX_PROBES = 1024  # slots of a hash table in which a word or n-gram may be
KEY_BYTES, LAST_BYTE, BYTE = 15, np.uint64(56), np.uint64(8)  # of the keys in the table of words
EMPTY_SLOT, WORD_BITS, WORD_MASK = np.uint64(2**64 - 1), np.uint64(32), np.uint64(0xFFFFFFFF)
WORDS_AT_ONCE = 256  # looked up together; their arrays stay in the first cache of the processor
NOT_LOOKED_UP = -2
# Sums of the product of the matrices are not rounded as fastText's. Beyond this many rows, if they are the
# same few, its own error from sums in 32 bits reaches 1e-5 of a probability; so they are added in its order.
MAX_FOLDED_ROWS = 2048
BEGIN_OF_WORD, END_OF_WORD = np.uint8(ord("<")), np.uint8(ord(">"))
CONTINUATION, CONTINUATION_MASK = np.uint8(0x80), np.uint8(0xC0)  # of bytes of UTF-8
NO_ROW, NOT_A_WORD = -1, -1
LOSSES = ("hs", "softmax", "ns", "ova")
FOLDED = ("hs", "softmax")
HIERARCHICAL, SOFTMAX = 0, 1
CACHED_WORD_BYTES = 24  # longer words are rare, and summed again every time
CACHE_BYTES = 16 << 20
WAYS = 2  # slots in which a word may be
SIGMOID_STEPS, MAX_SIGMOID = 512, np.float32(8)
NOT_PRUNED = np.full((1, 2), NO_ROW, np.int32)
TINY = 1e-5  # fastText's logarithm is log(x + TINY)


class FastTextModel:
    """A classifier of fastText in memory. labels: without `__label__`."""

    def __init__(self, model: ModelFile, name: str = "the model"):
        self.name = name
        self.labels: tuple[str, ...] = tuple(map(label_name, model.labels))
        options = model.options
        dense, codes = np.empty((0, options.dim), np.float32), np.empty((0, 1), np.uint8)
        centroids = np.empty((1, 1, 1), np.float32)
        norm_codes, norms = np.empty(0, np.uint8), np.empty(1, np.float32)
        width = options.dim
        if isinstance(model.input, QuantizedMatrix):
            codes, centroids = model.input.codes, model.input.centroids
            norm_codes, norms = model.input.norm_codes, model.input.norms
            width = centroids.shape[0] * centroids.shape[2]
        else:
            dense = model.input
        matrix = dense, codes, centroids, norm_codes, norms
        folded = np.empty((0, 1), np.float32)
        # the sums of the other losses must be fastText's to the bit, because they look a table up
        if len(dense) and options.maxn == 0 and options.loss in FOLDED and 2 * len(self.labels) <= width:
            folded = np.empty((len(dense), len(self.labels)), np.float32)
            _fold(dense, model.output, folded)
        words, crowded = word_table([*model.words, *model.labels])
        num_crowded, pruned = len(crowded), NOT_PRUNED
        if model.pruned is not None:
            pruned = np.repeat(_slots(2 * len(model.pruned))[:, None], 2, axis=1)
            num_crowded += _index_pruned(np.array(model.pruned), pruned)
        if num_crowded:
            raise UserError(
                f"{name}: {num_crowded:,} of its words or n-grams have hashes like more than {MAX_PROBES:,}"
                " others, as only words have that were made for it; fetch it again, from a source that you"
                " trust"
            )
        num_pruned = NO_ROW if model.pruned is None else len(model.pruned)
        options_array = option_numbers(options, len(model.words), num_pruned)
        slots = 1
        while 2 * slots * (4 * width + CACHED_WORD_BYTES + 16) <= CACHE_BYTES or slots < WAYS:
            slots *= 2
        cache = (
            np.zeros((slots, CACHED_WORD_BYTES), np.uint8),
            np.zeros(slots, np.int64),  # the length of the word; 0 is an empty slot
            np.zeros(slots, np.int64),  # how many rows it has, or NOT_A_WORD
            np.zeros((slots, width), np.float32),
            np.zeros(width, np.float32),
        )
        tree = label_tree(model.label_counts) if options.loss == "hs" else np.empty((0, 2), np.int64)
        steps = np.arange(SIGMOID_STEPS + 1).astype(np.float32)
        inputs = steps * np.float32(2) * MAX_SIGMOID / np.float32(SIGMOID_STEPS) - MAX_SIGMOID
        sigmoids = (1 / (1 + np.exp(-inputs))).astype(np.float32)
        self._scores = np.zeros(max(len(model.output), len(tree)), np.float32)
        self._arguments = (
            *(options_array, *words, pruned, *matrix, *cache, np.zeros(width, np.float32), model.output),
            *(folded, np.eye(folded.shape[1], dtype=np.float32)),
            *(LOSSES.index(options.loss), tree, np.zeros(len(tree), np.int64), sigmoids, self._scores),
        )

    @classmethod
    def load(cls, path: str | Path) -> FastTextModel:
        """Raises UserError for a file that is not a classifier of fastText."""
        return cls(read_model(path), str(path))

    def predict(self, text: str) -> tuple[str, float] | None:
        """(the likeliest label, its probability), or None if the model knows nothing of the text.

        Raises UserError where the model's weights give no number.
        """
        count, best, score = self._call(text, True)
        return (self.labels[best], self._finite(score)) if count else None

    def probabilities(self, text: str) -> np.ndarray | None:
        """float32 (labels,), or None if the model knows nothing of the text.

        Labels of one-vs-all and negative sampling do not exclude each other. Raises UserError as `predict`.
        """
        count, _, _ = self._call(text, False)
        if not count:
            return None
        scores = self._scores[: len(self.labels)].copy()
        self._finite(float(scores.sum()))
        return scores

    def label_probabilities(self, texts: Sequence[str], label: int) -> np.ndarray:
        """float64 (texts,): the probability of one label, by its number; NaN for a text of unknown words.

        A call for many texts takes less time than one for each. Raises UserError as `predict`.
        """
        encoded = [_encode(text) for text in texts]
        ends = np.cumsum([len(data) for data in encoded], dtype=np.int64)
        scores = np.empty(len(texts), np.float64)
        _score_all(np.frombuffer(b"".join(encoded), np.uint8), ends, label, scores, self._arguments)
        if np.isinf(scores).any():
            self._finite(math.inf)
        return scores

    def _call(self, text: str, only_best: bool) -> tuple[int, int, float]:
        """The results of `_score`."""
        count, best, score = _score(np.frombuffer(_encode(text), np.uint8), only_best, *self._arguments)
        return int(count), int(best), score

    def _finite(self, score: float) -> float:
        if not math.isfinite(score):
            raise UserError(
                f"{self.name}: its weights are so large that a score is not a number; train it again"
            )
        return score


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return text.encode("utf-8", "replace")


def option_numbers(options: Options, num_words: int, num_pruned: int = NO_ROW) -> np.ndarray:
    """int64 (6,): the options that the loops need, in their order."""
    return np.array(
        [num_words, options.minn, options.maxn, options.word_ngrams, options.bucket, num_pruned], np.int64
    )


def _slots(least: int, dtype: type = np.int32) -> np.ndarray:
    """An empty hash table: a power of two of at least this many slots, with all bits set."""
    return np.full(1 << max(1, (least - 1).bit_length()), NO_ROW, np.int64).astype(dtype)


def word_table(names: Sequence[bytes]) -> tuple[tuple[np.ndarray, ...], list[int]]:
    """((uint8 bytes of all words, int64 where each begins, uint64 (S, 3) hash table), words left out of it).

    A word is left out where MAX_PROBES slots from its own on are taken.

    A slot of the table has the last eight bytes of a word and the eight before them, as two little-endian
    numbers (see word_key), and the word's hash in the high 32 bits of the third number, with the word's
    number in the others. A word has no byte 0, so the two numbers are the whole word where it has at most
    15 bytes. The words of a model are in the order of their counts; the frequent ones have their first slots.
    """
    data = np.frombuffer(b"".join(names) or b"\0", np.uint8)
    first = np.zeros(len(names) + 1, np.int64)
    np.cumsum([len(name) for name in names], out=first[1:])
    slots = np.repeat(_slots(3 * len(names) // 2, np.uint64)[:, None], 3, axis=1)
    left_out = np.zeros(len(names), np.bool_)
    _index_words(data, first, slots, left_out)
    return (data, first, slots), np.flatnonzero(left_out).tolist()


@compile_loop
def _hash(data: np.ndarray, start: int, end: int) -> np.uint64:
    """fastText's hash of data[start:end], FNV-1a but for the sign of bytes; 32 bits."""
    value = FNV_OFFSET
    for i in range(start, end):
        value = ((value ^ SIGNED_BYTE[data[i]]) * FNV_PRIME) & MASK
    return value


@compile_loop
def next_word(text: np.ndarray, i: int) -> tuple[int, int, np.uint64]:
    """(start, end, hash) of the first word of text[i:]; start is len(text) where there is none."""
    while i < len(text) and IS_SPACE[text[i]]:
        i += 1
    end, value = i, FNV_OFFSET
    while end < len(text) and not IS_SPACE[text[end]]:
        value = ((value ^ SIGNED_BYTE[text[end]]) * FNV_PRIME) & MASK
        end += 1
    return i, end, value


@compile_loop
def _index_words(data: np.ndarray, first: np.ndarray, slots: np.ndarray, left_out: np.ndarray) -> None:
    """Fills the last two arrays."""
    mask = np.uint64(len(slots) - 1)
    for word in range(len(first) - 1):
        value = _hash(data, first[word], first[word + 1])
        slot, probes = value & mask, 1
        while slots[slot, 2] != EMPTY_SLOT and probes < MAX_PROBES:
            slot = (slot + np.uint64(1)) & mask
            probes += 1
        if slots[slot, 2] != EMPTY_SLOT:
            left_out[word] = True
            continue
        low, high = np.uint64(0), np.uint64(0)
        for i in range(max(first[word], first[word + 1] - 16), first[word + 1]):
            low, high = add_byte(low, high, np.uint64(data[i]))
        low, high = word_key(low, high, first[word + 1] - first[word])
        slots[slot, 0], slots[slot, 1], slots[slot, 2] = low, high, (value << WORD_BITS) | np.uint64(word)


@compile_loop
def add_byte(low: np.uint64, high: np.uint64, byte: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The last eight bytes, and the eight before them, after one more byte; the last byte is the highest."""
    return (low >> BYTE) | (byte << LAST_BYTE), (high >> BYTE) | (low << LAST_BYTE)


@compile_loop
def word_key(low: np.uint64, high: np.uint64, size: int | np.int64) -> tuple[np.uint64, np.uint64]:
    """`low` and `high` without the bytes before a word of this size; not of one above 15 bytes."""
    least = np.uint64(8 * min(size, 8))
    more = np.uint64(8 * min(max(size, 8), KEY_BYTES))
    # a shift by 64 is not defined, so it is done in two steps
    return low >> (np.uint64(64) - least), (high >> np.uint64(1)) >> (np.uint64(127) - more)


@compile_loop
def _index_pruned(rows: np.ndarray, slots: np.ndarray) -> int:
    """Fills a hash table, int32 (slots, 2), with pairs of an n-gram and its row.

    Returns how many are left out, as words are, see word_table.
    """
    left_out = 0
    for entry in range(len(rows)):
        slot, probes = np.int64(rows[entry, 0]) & (len(slots) - 1), 1
        while slots[slot, 0] != NO_ROW and probes < MAX_PROBES:
            slot = (slot + 1) & (len(slots) - 1)
            probes += 1
        if slots[slot, 0] != NO_ROW:
            left_out += 1
        else:
            slots[slot] = rows[entry]
    return left_out


@compile_loop
def find_word(
    text: np.ndarray,
    start: int | np.int64,
    end: int | np.int64,
    value: np.uint64,
    data: np.ndarray,
    first: np.ndarray,
    slots: np.ndarray,
) -> np.int64:
    """The number of the word text[start:end] with this hash, or NO_ROW."""
    slot, mask = value & np.uint64(len(slots) - 1), np.uint64(len(slots) - 1)
    for _ in range(MAX_PROBES):
        if slots[slot, 2] == EMPTY_SLOT:
            break
        if slots[slot, 2] >> WORD_BITS == value:
            word = np.int64(slots[slot, 2] & WORD_MASK)
            begin = first[word]
            if first[word + 1] - begin == end - start:
                same = 0
                while same < end - start and text[start + same] == data[begin + same]:
                    same += 1
                if same == end - start:
                    return word
        slot = (slot + np.uint64(1)) & mask
    return np.int64(NO_ROW)


@compile_loop
def ngram_row(
    value: np.uint64, num_words: int, bucket: np.uint64, num_pruned: int, pruned: np.ndarray
) -> np.int64:
    """The row of an n-gram with this hash, or NO_ROW where it is pruned."""
    ngram = np.int64(value % bucket)
    if num_pruned == NO_ROW:
        return num_words + ngram
    if num_pruned == 0:
        return np.int64(NO_ROW)
    slot = ngram & (len(pruned) - 1)
    for _ in range(MAX_PROBES):
        if pruned[slot, 0] == NO_ROW:
            break
        if pruned[slot, 0] == ngram:
            return num_words + np.int64(pruned[slot, 1])
        slot = (slot + 1) & (len(pruned) - 1)
    return np.int64(NO_ROW)


@compile_loop
def _add_row(
    total: np.ndarray,
    row: int | np.int64,
    dense: np.ndarray,
    codes: np.ndarray,
    centroids: np.ndarray,
    norm_codes: np.ndarray,
    norms: np.ndarray,
) -> None:
    """Adds a row of the input matrix to `total`."""
    if len(codes) == 0:
        for j in range(dense.shape[1]):
            total[j] += dense[row, j]
        return
    norm = norms[norm_codes[row]] if len(norm_codes) > 0 else np.float32(1)
    width = centroids.shape[2]
    for group in range(codes.shape[1]):
        code = codes[row, group]
        for j in range(width):
            total[group * width + j] += norm * centroids[group, code, j]


@compile_loop
def _add_character_ngrams(
    text: np.ndarray,
    start: int,
    end: int,
    options: np.ndarray,
    pruned: np.ndarray,
    dense: np.ndarray,
    codes: np.ndarray,
    centroids: np.ndarray,
    norm_codes: np.ndarray,
    norms: np.ndarray,
    total: np.ndarray,
) -> int:
    """Adds the rows of the character n-grams of `<text[start:end]>` to `total`; returns how many."""
    num_words, minn, maxn, bucket, num_pruned = options[0], options[1], options[2], options[4], options[5]
    size, count = end - start + 2, 0  # of the word in its brackets: place p is text[start + p - 1]
    for begin in range(size):
        if 0 < begin < size - 1 and text[start + begin - 1] & CONTINUATION_MASK == CONTINUATION:
            continue
        value, p = FNV_OFFSET, begin
        for n in range(1, maxn + 1):
            if p >= size:
                break
            byte = BEGIN_OF_WORD if p == 0 else (END_OF_WORD if p == size - 1 else text[start + p - 1])
            value = ((value ^ SIGNED_BYTE[byte]) * FNV_PRIME) & MASK
            p += 1
            while p < size - 1 and text[start + p - 1] & CONTINUATION_MASK == CONTINUATION:
                value = ((value ^ SIGNED_BYTE[text[start + p - 1]]) * FNV_PRIME) & MASK
                p += 1
            if n >= minn and not (n == 1 and (begin == 0 or p == size)):
                row = ngram_row(value, num_words, np.uint64(bucket), num_pruned, pruned)
                if row != NO_ROW:
                    _add_row(total, row, dense, codes, centroids, norm_codes, norms)
                    count += 1
    return count


@compile_loop
def starts_with(text: np.ndarray, start: int, end: int, prefix: np.ndarray) -> bool:
    if end - start < len(prefix):
        return False
    same = 0
    while same < len(prefix) and text[start + same] == prefix[same]:
        same += 1
    return same == len(prefix)


@compile_loop
def _add_word_ngrams(
    tokens: np.ndarray, options: np.ndarray, pruned: np.ndarray, found: np.ndarray, count: int | np.int64
) -> int | np.int64:
    """Writes the rows of the word n-grams to `found`, from place `count` on; returns the place after them.

    tokens: int32, the hashes of the words.
    """
    num_words, word_ngrams = options[0], options[3]
    for begin in range(len(tokens) if word_ngrams > 1 else 0):
        value = np.uint64(np.int64(tokens[begin]))
        for last in range(begin + 1, min(len(tokens), begin + word_ngrams)):
            value = value * WORD_NGRAM_PRIME + np.uint64(np.int64(tokens[last]))
            row = ngram_row(value, num_words, np.uint64(options[4]), options[5], pruned)
            if row != NO_ROW:
                found[count] = row
                count += 1
    return count


@compile_loop
def _next_words(
    text: np.ndarray,
    i: int,
    hashes: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    ends: np.ndarray,
    sizes: np.ndarray,
) -> tuple[int | np.int64, int]:
    """(how many words were found from text[i] on, the place after them).

    Fills arrays of WORDS_AT_ONCE + 1 words: uint64 hashes, bytes as of add_byte, int64 ends and sizes. There
    is no branch at the end of a word, which no processor predicts: every byte is written to the place of its
    word, and white space goes on to the next place.
    """
    count: int | np.int64 = 0
    size = 0
    value, low, high = FNV_OFFSET, np.uint64(0), np.uint64(0)
    while i < len(text) and count < WORDS_AT_ONCE:
        byte = text[np.uint64(i)]  # without a sign it needs no test whether it counts from the end
        i += 1
        before = size
        size = (size + 1) & IN_WORD[byte]
        count += np.int64(size < before)
        value = ((value & HASH_KEPT[byte]) ^ HASHED_BYTE[byte]) * FNV_PRIME
        low, high = add_byte(low, high, np.uint64(byte))
        at = np.uint64(count)
        hashes[at], lows[at], highs[at], ends[at], sizes[at] = value, low, high, i, size
    return count + np.int64(size > 0), i


@compile_loop
def _look_up(
    count: int | np.int64,
    hashes: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    sizes: np.ndarray,
    slots: np.ndarray,
    found: np.ndarray,
) -> None:
    """Fills `found` with the numbers of the words in the first slots of their hashes, or NOT_LOOKED_UP.

    It has no branch, so that the processor waits for many slots at a time. Long words are not looked up.
    """
    mask = np.uint64(len(slots) - 1)
    for number in range(count):
        i = np.uint64(number)
        slot = hashes[i] & mask
        low, high = word_key(lows[i], highs[i], sizes[i])
        is_here = (slots[slot, 0] == low) & (slots[slot, 1] == high) & (sizes[i] <= KEY_BYTES)
        found[i] = np.int64(slots[slot, 2] & WORD_MASK) if is_here else np.int64(NOT_LOOKED_UP)


@compile_loop
def document_rows(
    text: np.ndarray,
    options: np.ndarray,
    words: np.ndarray,
    first: np.ndarray,
    slots: np.ndarray,
    pruned: np.ndarray,
) -> np.ndarray:
    """int64: the rows of a document without character n-grams in the input matrix, in fastText's order."""
    num_words, word_ngrams = options[0], options[3]
    tokens = np.empty(len(text) // 2 + 2, np.int32)
    found = np.empty((len(text) // 2 + 2) * max(1, word_ngrams), np.int64)
    bytes_and_hashes = np.empty((3, WORDS_AT_ONCE + 1), np.uint64)
    hashes, lows, highs = bytes_and_hashes[0], bytes_and_hashes[1], bytes_and_hashes[2]
    places = np.empty((3, WORDS_AT_ONCE + 1), np.int64)
    ends, sizes, numbers = places[0], places[1], places[2]
    count: int | np.int64 = 0
    num_tokens: int | np.int64 = 0
    i, ended = 0, False
    while not ended:
        size, i = _next_words(text, i, hashes, lows, highs, ends, sizes)
        _look_up(size, hashes, lows, highs, sizes, slots, numbers)
        for n in range(size):
            word, value = numbers[n], hashes[n] & MASK
            start, end = ends[n] - sizes[n], ends[n]
            if word == NOT_LOOKED_UP:
                word = find_word(text, start, end, value, words, first, slots)
                if word == NO_ROW and starts_with(text, start, end, LABEL_START):
                    word = num_words  # a label
            # written in any case, and kept if the count goes on: cheaper than a branch
            found[count], tokens[num_tokens] = word, np.int32(np.uint32(value))
            count += np.int64((word >= 0) & (word < num_words))
            num_tokens += np.int64(word < num_words)
            if value == END_HASH and end - start == len(END_OF_LINE):
                ended = starts_with(text, start, end, END_OF_LINE)
                if ended:
                    break
        if i == len(text) and not ended:  # `</s>` follows the words of the text
            ended = True
            word = find_word(END_OF_LINE, 0, len(END_OF_LINE), END_HASH, words, first, slots)
            found[count], tokens[num_tokens] = word, np.int32(np.uint32(END_HASH))
            count += np.int64((word >= 0) & (word < num_words))
            num_tokens += np.int64(word < num_words)
    return found[: _add_word_ngrams(tokens[:num_tokens], options, pruned, found, count)]


@compile_loop
def _add_rows(
    total: np.ndarray,
    rows: np.ndarray,
    dense: np.ndarray,
    codes: np.ndarray,
    centroids: np.ndarray,
    norm_codes: np.ndarray,
    norms: np.ndarray,
) -> None:
    """Adds rows of the input matrix to `total`."""
    if len(codes) == 0:
        for i in range(len(rows)):
            unsigned = np.uint64(rows[i])  # it needs no test whether it counts from the end
            for j in range(dense.shape[1]):
                total[j] += dense[unsigned, j]
    else:
        for i in range(len(rows)):
            _add_row(total, rows[i], dense, codes, centroids, norm_codes, norms)


@compile_loop
def _fold(dense: np.ndarray, output: np.ndarray, folded: np.ndarray) -> None:
    """Fills `folded`, float32 (rows, labels), with the product of the input and the output matrices.

    With two labels a row is 8 bytes, so that the rows of a document are summed in the processor's caches.
    """
    for row in range(len(dense)):
        for label in range(len(output)):
            folded[row, label] = dot(output[label], dense[row])


@compile_loop
def _add_folded(total: np.ndarray, rows: np.ndarray, folded: np.ndarray) -> None:
    """Adds rows to `total`, two columns at a time: their sums stay in registers, and have 64 bits."""
    last = folded.shape[1] - 1
    for column in range(0, last + 1, 2):
        a, b, other = 0.0, 0.0, min(column + 1, last)
        for i in range(len(rows)):
            unsigned = np.uint64(rows[i])  # it needs no test whether it counts from the end
            a += folded[unsigned, column]
            b += folded[unsigned, other]
        total[column] += np.float32(a)
        if other > column:
            total[other] += np.float32(b)


@compile_loop
def _sum_rows(
    text: np.ndarray,
    options: np.ndarray,
    words: np.ndarray,
    first: np.ndarray,
    slots: np.ndarray,
    pruned: np.ndarray,
    dense: np.ndarray,
    codes: np.ndarray,
    centroids: np.ndarray,
    norm_codes: np.ndarray,
    norms: np.ndarray,
    cached_words: np.ndarray,
    cached_sizes: np.ndarray,
    cached_counts: np.ndarray,
    cached_totals: np.ndarray,
    subtotal: np.ndarray,
    total: np.ndarray,
) -> int | np.int64:
    """Sums the rows of a document in `total`; returns how many they are. subtotal: a place for one word's."""
    num_words, maxn, word_ngrams = options[0], options[2], options[3]
    total[:] = 0
    word_hashes = np.empty(len(text) // 2 + 2 if word_ngrams > 1 else 1, np.int32)
    count, num_hashes, i = 0, 0, 0
    while True:
        start, end, value = next_word(text, i)
        source = text
        if start == len(text):  # `</s>` follows the words of the text
            source = END_OF_LINE
            start, end, value = next_word(source, 0)
        size = end - start
        ends_line = size == len(END_OF_LINE) and starts_with(source, start, end, END_OF_LINE)
        least_slot = WAYS * (np.int64(value) & (len(cached_sizes) // WAYS - 1))
        slot = least_slot
        while slot < least_slot + WAYS:
            if cached_sizes[slot] == size:
                same = 0
                while same < size and cached_words[slot, same] == source[start + same]:
                    same += 1
                if same == size:
                    break
            slot += 1
        if slot < least_slot + WAYS:
            added = cached_counts[slot]
            if added > 0:
                for j in range(len(total)):
                    total[j] += cached_totals[slot, j]
        else:
            word = find_word(source, start, end, value, words, first, slots)
            added = 0
            subtotal[:] = 0
            if word >= num_words or (word == NO_ROW and starts_with(source, start, end, LABEL_START)):
                added = NOT_A_WORD
            else:
                if word != NO_ROW:
                    _add_row(subtotal, word, dense, codes, centroids, norm_codes, norms)
                    added += 1
                if maxn > 0 and not ends_line:
                    added += _add_character_ngrams(
                        source, start, end, options, pruned, dense, codes, centroids, norm_codes,
                        norms, subtotal,
                    )  # fmt: skip
                for j in range(len(total)):
                    total[j] += subtotal[j]
            if size <= cached_words.shape[1]:
                for way in range(WAYS - 1, 0, -1):  # the oldest word leaves
                    slot = least_slot + way
                    cached_words[slot] = cached_words[slot - 1]
                    cached_totals[slot] = cached_totals[slot - 1]
                    cached_sizes[slot], cached_counts[slot] = cached_sizes[slot - 1], cached_counts[slot - 1]
                slot = least_slot
                cached_words[slot, :size] = source[start:end]
                cached_sizes[slot], cached_counts[slot] = size, added
                cached_totals[slot] = subtotal
        if added != NOT_A_WORD:
            count += added
            if word_ngrams > 1:
                word_hashes[num_hashes] = np.int32(np.uint32(value))
                num_hashes += 1
        if ends_line:
            break
        i = end
    ngram_rows = np.empty(num_hashes * word_ngrams, np.int64)
    num_ngrams = _add_word_ngrams(word_hashes[:num_hashes], options, pruned, ngram_rows, 0)
    _add_rows(total, ngram_rows[:num_ngrams], dense, codes, centroids, norm_codes, norms)
    return count + num_ngrams


@compile_loop
def _log(x: np.float32) -> np.float32:
    return np.float32(np.log(np.float64(x) + TINY))


@compile_loop
def dot(row: np.ndarray, hidden: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(row)):
        total += row[j] * hidden[j]
    return total


@compile_loop
def _score(
    text: np.ndarray,
    only_best: bool,
    options: np.ndarray,
    words: np.ndarray,
    first: np.ndarray,
    slots: np.ndarray,
    pruned: np.ndarray,
    dense: np.ndarray,
    codes: np.ndarray,
    centroids: np.ndarray,
    norm_codes: np.ndarray,
    norms: np.ndarray,
    cached_words: np.ndarray,
    cached_sizes: np.ndarray,
    cached_counts: np.ndarray,
    cached_totals: np.ndarray,
    subtotal: np.ndarray,
    hidden: np.ndarray,
    output: np.ndarray,
    folded: np.ndarray,
    identity: np.ndarray,
    loss: int,
    tree: np.ndarray,
    stack: np.ndarray,
    sigmoids: np.ndarray,
    scores: np.ndarray,
) -> tuple[int | np.int64, int | np.int64, float]:
    """(number of rows, the likeliest label, its probability); fills `scores` with those of all labels.

    only_best: leave out what the first label does not need. loss: an index into LOSSES. folded: see _fold.
    """
    if options[2] == 0:
        rows = document_rows(text, options, words, first, slots, pruned)
        count: int | np.int64 = len(rows)
        hidden[:] = 0
        if len(folded) > 0 and count <= MAX_FOLDED_ROWS:
            _add_folded(hidden, rows, folded)
            output = identity
        else:
            _add_rows(hidden, rows, dense, codes, centroids, norm_codes, norms)
    else:
        count = _sum_rows(
            text, options, words, first, slots, pruned, dense, codes, centroids, norm_codes, norms,
            cached_words, cached_sizes, cached_counts, cached_totals, subtotal, hidden,
        )  # fmt: skip
    if count == 0:
        return 0, 0, 0.0
    scale = np.float32(1.0 / count)
    for j in range(len(hidden)):
        hidden[j] *= scale
    if loss == HIERARCHICAL:
        best = _score_tree(hidden, output, tree, only_best, stack, scores)
    else:
        best = _score_labels(hidden, output, loss, sigmoids, scores)
    return count, best, np.float64(scores[best])


@compile_loop
def _score_all(
    data: np.ndarray, ends: np.ndarray, label: int, scores: np.ndarray, arguments: tuple[Any, ...]
) -> None:
    """Fills `scores` with a label's probability for each text of data, NaN where nothing is known of it.

    A probability that is not a number is infinite. arguments: those of _score but the first two.
    """
    begin = 0
    for i in range(len(ends)):
        count, _, _ = _score(data[begin : ends[i]], False, *arguments)
        begin = ends[i]
        score = np.float64(arguments[-1][label])
        if count == 0:
            scores[i] = np.nan
        else:
            scores[i] = score if np.isfinite(score) else np.inf


@compile_loop
def _score_tree(
    hidden: np.ndarray,
    output: np.ndarray,
    tree: np.ndarray,
    only_best: bool,
    stack: np.ndarray,
    scores: np.ndarray,
) -> np.int64:
    """Hierarchical softmax: fills `scores` from the root on; returns the likeliest label.

    The likelier child of a node is visited first; with only_best, no node that is less likely than the best
    label so far.
    """
    num_labels, dim = output.shape
    best, highest, waiting = np.int64(0), np.float32(-np.inf), 1
    stack[0] = len(tree) - 1
    scores[stack[0]] = 0
    while waiting > 0:
        waiting -= 1
        node = stack[waiting]
        if node < num_labels:
            if scores[node] > highest:
                best, highest = node, scores[node]
            scores[node] = np.exp(scores[node])
            continue
        if only_best and scores[node] < highest:
            continue
        x = dot(output[node - num_labels], hidden[:dim])
        right = np.float32(1.0 / np.float64(np.float32(1) + np.exp(-x)))
        scores[tree[node, 0]] = scores[node] + _log(np.float32(1.0 - np.float64(right)))
        scores[tree[node, 1]] = scores[node] + _log(right)
        likelier = np.int64(x > 0)
        stack[waiting], stack[waiting + 1] = tree[node, 1 - likelier], tree[node, likelier]
        waiting += 2
    return best


@compile_loop
def _score_labels(
    hidden: np.ndarray, output: np.ndarray, loss: int, sigmoids: np.ndarray, scores: np.ndarray
) -> np.int64:
    """Softmax, or a sigmoid for each label: fills `scores`; returns the likeliest label."""
    num_labels, dim = output.shape
    highest = np.float32(-np.inf)
    for label in range(num_labels):
        scores[label] = dot(output[label], hidden[:dim])
        highest = max(highest, scores[label])
    z = np.float32(0)
    for label in range(num_labels):
        x = scores[label]
        if loss == SOFTMAX:
            scores[label] = np.exp(x - highest)
            z += scores[label]
        elif x < -MAX_SIGMOID:
            scores[label] = 0
        elif x > MAX_SIGMOID:
            scores[label] = 1
        elif x == x:
            step = np.int64((x + MAX_SIGMOID) * np.float32(SIGMOID_STEPS) / MAX_SIGMOID / np.float32(2))
            scores[label] = sigmoids[step]
    best = np.int64(0)
    for label in range(num_labels):
        if loss == SOFTMAX:
            scores[label] = scores[label] / z
        scores[label] = np.exp(_log(scores[label]))
        if scores[label] >= scores[best]:  # of equal labels fastText takes the last
            best = np.int64(label)
    return best
