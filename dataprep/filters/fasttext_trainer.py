"""Trains a classifier as `fasttext supervised` does, but the same seed gives the same bytes.

A document is a line of words, with `</s>` at its end. Its hidden vector is the mean of the rows of its words
and word n-grams in the input matrix; the softmax of the output matrix times that vector gives the labels'
probabilities (Joulin et al. 2016, arXiv 1607.01759). Stochastic gradient descent, one document a step, with
a rate that falls linearly to zero. fastText reads its file in order, in several threads that overwrite each
other's updates; here every epoch visits the documents in another random order, in one thread.

The texts stay in a file. The order is a permutation that is computed, not stored (a Feistel network), so
memory holds the model and nothing that grows with the documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ...core.numba_loops import compile_loop
from .fasttext_file import ModelFile, Options
from .fasttext_model import NOT_PRUNED, document_rows, dot, option_numbers, word_table

DOCUMENTS_PER_CALL = 4096  # between two reports of progress
FEISTEL_ROUNDS = 6
MIX_A, MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of SplitMix64
SHIFT_30, SHIFT_27, SHIFT_31 = np.uint64(30), np.uint64(27), np.uint64(31)


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """Documents in one array.

    data: uint8, their UTF-8. ends: int64 (N,), where each ends. labels: uint8 (N,).
    """

    data: np.ndarray
    ends: np.ndarray
    labels: np.ndarray


def train(
    text: TrainingText,
    words: Sequence[bytes],
    word_counts: np.ndarray,
    labels: Sequence[bytes],
    options: Options,
    *,
    learning_rate: float,
    seed: int,
    advance: Callable[[int], None] = lambda documents: None,
) -> ModelFile:
    """Trains a model of the kind that `options` say: softmax, without character n-grams.

    words: the vocabulary, with `</s>` and without words that `word_table` leaves out; other words have no
    row, but their n-grams have. labels: names of the numbers in `text.labels`. advance: called with numbers
    of documents, in all epochs times documents.
    """
    assert options.loss == "softmax", "the other kinds are only read"
    assert options.maxn == 0, "models with character n-grams are only read"
    rows = len(words) + options.bucket
    matrix = np.empty((rows, options.dim), np.float32)
    generator = np.random.Generator(np.random.PCG64(seed))
    step = max(1, (1 << 20) // options.dim)
    for start in range(0, rows, step):
        part = matrix[start : start + step]
        part[:] = (2 * generator.random(part.shape, np.float32) - 1) / np.float32(options.dim)
    output = np.zeros((len(labels), options.dim), np.float32)
    (vocabulary, offsets, slots), left_out = word_table(words)
    assert not left_out, "words that cannot be looked up have no place in a vocabulary"
    numbers = option_numbers(options, len(words))
    count = len(text.ends)
    keys = generator.integers(0, 1 << 63, (options.epoch, FEISTEL_ROUNDS), np.uint64)
    for epoch in range(options.epoch):
        for first in range(0, count, DOCUMENTS_PER_CALL):
            last = min(count, first + DOCUMENTS_PER_CALL)
            progress = (epoch + first / count) / options.epoch
            _descend(
                text.data, text.ends, text.labels, first, last, keys[epoch], vocabulary, offsets, slots,
                numbers, learning_rate * (1 - progress), learning_rate / (count * options.epoch), matrix,
                output,
            )  # fmt: skip
            advance(last - first)
    counts = np.bincount(text.labels, minlength=len(labels)).astype(np.int64)
    return ModelFile(
        options, list(words), list(labels), word_counts, counts, int(word_counts.sum()), None, matrix, output
    )


@compile_loop
def permuted(i: int, count: int, keys: np.ndarray) -> np.int64:
    """Where a random permutation of range(count) takes i.

    A Feistel network permutes the numbers of an even number of bits; it is repeated until the result is below
    count (cycle walking), four times at most on average.
    """
    half = 1
    while 1 << (2 * half) < count:
        half += 1
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    value = np.uint64(i)
    while True:
        left, right = value >> shift, value & mask
        for k in range(len(keys)):
            x = right + keys[k]
            x = (x ^ (x >> SHIFT_30)) * MIX_A
            x = (x ^ (x >> SHIFT_27)) * MIX_B
            left, right = right, (left ^ x ^ (x >> SHIFT_31)) & mask
        value = (left << shift) | right
        if value < np.uint64(count):
            return np.int64(value)


@compile_loop
def _descend(
    data: np.ndarray,
    ends: np.ndarray,
    labels: np.ndarray,
    begin: int,
    end: int,
    keys: np.ndarray,
    words: np.ndarray,
    first: np.ndarray,
    slots: np.ndarray,
    options: np.ndarray,
    rate: float,
    rate_step: float,
    matrix: np.ndarray,
    output: np.ndarray,
) -> None:
    """Steps begin to end of an epoch. rate: of the first of them; it falls by rate_step at each."""
    num_labels, dim = output.shape
    hidden, gradient = np.empty(dim, np.float32), np.empty(dim, np.float32)
    scores = np.empty(num_labels, np.float32)
    for step in range(begin, end):
        document = permuted(step, len(ends), keys)
        text = data[ends[document - 1] if document > 0 else 0 : ends[document]]
        rows = document_rows(text, options, words, first, slots, NOT_PRUNED)
        if len(rows) == 0:
            continue
        hidden[:] = 0
        for row in rows:
            for j in range(dim):
                hidden[j] += matrix[row, j]
        share = np.float32(1.0 / len(rows))
        highest, total = np.float32(-np.inf), np.float32(0)
        for j in range(dim):
            hidden[j] *= share
        for label in range(num_labels):
            scores[label] = dot(output[label], hidden)
            highest = max(highest, scores[label])
        for label in range(num_labels):
            scores[label] = np.exp(scores[label] - highest)
            total += scores[label]
        gradient[:] = 0
        for label in range(num_labels):
            wanted = np.float32(1) if label == labels[document] else np.float32(0)
            change = np.float32(rate - (step - begin) * rate_step) * (wanted - scores[label] / total)
            for j in range(dim):
                gradient[j] += change * output[label, j]
                output[label, j] += change * hidden[j]
        for j in range(dim):
            gradient[j] *= share
        for row in rows:
            for j in range(dim):
                matrix[row, j] += gradient[j]
