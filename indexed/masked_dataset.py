"""Samples of masked sentences, as Megatron-LM makes them: what BERT's and T5's datasets share.

In: .bin/.idx pairs with a sequence for every sentence (`mt data tokenize --split-sentences`). Out: datasets
whose item k is a dict of int64 arrays. Its random numbers depend on seed + k alone, so that it is the same
for any number of workers and after a resume.

One array says which sentences make a sample. It is cached like the indices of gpt_dataset.py and equals
Megatron-LM's:

    sample index    (samples, 3) uint32, or uint64 beyond 2**32 sentences: first sentence, one past the last,
                    target length in tokens

It holds whole epochs, shuffled, so there may be more samples than requested.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from ..core.config import UserError, check, configuration, option
from .blend import compile_if_long
from .format import IndexedDataset
from .gpt_dataset import DataConfig, Dataset, SourceRow, build_splits, cached
from .shuffle import shuffled
from .word_pieces import WordPieces

LONG_SENTENCE = 512  # tokens: a document of several sentences with a longer one gives no sample
DOCUMENTS_AT_A_TIME = 1 << 20  # documents of one call of the compiled loop that builds the sample index
GEOMETRIC_P = 0.2  # of the span lengths in words: SpanBERT (Joshi et al. 2019), section 3.1


@configuration()
class MaskedConfig(DataConfig):
    """Data settings that BERT and T5 share."""

    mask_prob: float = option(0.15, "share of the tokens that are masked")
    short_seq_prob: float = option(0.1, "share of the samples with a random shorter length")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (0 < self.mask_prob < 1, f"mask_prob = {self.mask_prob} must lie between 0 and 1"),
            (0 <= self.short_seq_prob <= 1, f"short_seq_prob = {self.short_seq_prob} must lie in [0, 1]"),
            (
                self.seq_length >= 8,
                f"seq_length = {self.seq_length} must be at least 8: special tokens and two sentences",
            ),
        )


def build_masked_datasets(
    config: MaskedConfig, objective: Objective, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of an objective, as `gpt_dataset.build_datasets` returns them."""

    def make(
        indexed: IndexedDataset, documents: tuple[int, int], count: int | None, name: str, cache: Path
    ) -> MaskedDataset:
        return MaskedDataset(
            indexed, documents, count, objective, config.short_seq_prob, config.seed, name=name, cache=cache
        )

    return build_splits(config, num_samples, make, of="documents")


class Objective(Protocol):
    """How the sentences of a sample are masked."""

    @property
    def max_length(self) -> int:
        """The most tokens of a sample's sentences."""
        ...

    @property
    def min_sentences(self) -> int:
        """The fewest sentences of a sample."""
        ...

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that determines a sample, given its sentences."""
        ...

    def sample(
        self, sentences: list[np.ndarray], target: int, random: np.random.RandomState
    ) -> dict[str, np.ndarray | int]:
        """The sample of some sentences, cut to `target` tokens."""
        ...


class SentenceDataset:
    """Samples of a range of the documents of one .bin/.idx pair whose sequences are sentences; a base class.

    sample_index: (samples, columns), a row for every sample, which begins with its first sentence and the one
    past its last. num_samples: how many were requested; None for all of them.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        document_range: tuple[int, int],
        seed: int,
        fingerprint: str,
        sample_index: np.ndarray,
        num_samples: int | None,
    ):
        self.indexed, self.range = indexed, document_range
        self.seed, self.fingerprint = seed, fingerprint
        self.sample_index = sample_index
        self.num_samples = len(self) if num_samples is None else num_samples

    def __len__(self) -> int:
        return len(self.sample_index)

    def __getitem__(self, k: int) -> dict[str, np.ndarray | int]:
        """Arrays (length,) int64, and flags that are 0 or 1; random numbers depend on seed + k alone."""
        k = int(k) + (len(self) if k < 0 else 0)
        return self.sample(self.sample_index[k].tolist(), np.random.RandomState((self.seed + k) % (1 << 32)))

    def sample(self, row: list[int], random: np.random.RandomState) -> dict[str, np.ndarray | int]:
        """The sample that a row of the sample index describes."""
        raise NotImplementedError

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays (len(indices), length) int64; (len(indices),) int64 for flags."""
        samples = [self[k] for k in indices]
        return {name: np.array([s[name] for s in samples], np.int64) for name in samples[0]}

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[SourceRow]:
        samples = self.num_samples if samples is None else samples
        first, end = (int(i) for i in self.indexed.document_indices[list(self.range)])
        tokens = int(self.indexed.lengths[first:end].sum(dtype=np.int64))
        passes = int((self.sample_index[:, 1] - self.sample_index[:, 0]).sum(dtype=np.int64)) / (end - first)
        epochs = round(samples / len(self) * passes, 4)
        return [
            {
                "prefix": self.indexed.prefix,
                "weight": weight,
                "sequences": end - first,
                "tokens": tokens,
                "samples": samples,
                "epochs": epochs,
            }
        ]


class MaskedDataset(SentenceDataset):
    """Samples of masked sentences.

    num_samples: how many are requested (None: one epoch); there may be more. cache: directory of the sample
    index, or None to keep it in memory. Raises UserError if no document gives a sample.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        document_range: tuple[int, int],
        num_samples: int | None,
        objective: Objective,
        short_seq_prob: float,
        seed: int,
        *,
        name: str = "train",
        cache: Path | None = None,
    ):
        self.objective = objective
        key = (
            "masked 1",
            indexed.fingerprint,
            document_range,
            num_samples,
            objective.max_length,
            objective.min_sentences,
            short_seq_prob,
            seed,
        )
        stem = f"{Path(indexed.prefix).name}-{name}-{xxhash.xxh3_128(repr(key).encode()).hexdigest()}"
        fingerprint = xxhash.xxh3_128(repr((key, objective.identity)).encode()).hexdigest()
        documents = indexed.document_indices[document_range[0] : document_range[1] + 1]

        def build() -> list[np.ndarray]:
            try:
                return [
                    build_mapping(
                        documents,
                        indexed.lengths,
                        num_samples,
                        objective.max_length,
                        short_seq_prob,
                        seed,
                        objective.min_sentences,
                    )
                ]
            except ValueError as error:
                raise UserError(
                    f"{indexed.prefix}: the {name} split gives no sample: {error}; tokenize with"
                    f" --split-sentences, or give {name} a larger share"
                ) from None

        (sample_index,) = build() if cache is None else cached(cache, stem, ("masked_index",), build)
        super().__init__(indexed, document_range, seed, fingerprint, sample_index, num_samples)

    def sample(self, row: list[int], random: np.random.RandomState) -> dict[str, np.ndarray | int]:
        """See `BertObjective.sample` and `T5Objective.sample`."""
        first, end, target = row
        return self.objective.sample([self.indexed[i] for i in range(first, end)], target, random)


def masked_spans(
    tokens: list[int],
    budget: float,
    words: WordPieces,
    max_ngram: int,
    geometric: bool,
    random: np.random.RandomState,
    replacement: Callable[[int], int],
) -> list[tuple[list[int], list[int], list[int]]]:
    """(positions, their tokens, the replacements) of every masked span of whole words, ordered by position.

    Words are visited in random order. A span of n words begins at each, with n up to max_ngram drawn with
    probabilities proportional to 1/n, or from a geometric distribution. n is reduced until the span fits the
    budget of tokens; a span that overlaps another one is dropped. [CLS] and [SEP] belong to no word.

    replacement: token -> the token that replaces it; it may draw from `random` and is called once for each
    masked token.
    """
    continues = words.continues
    positions = [i for i, token in enumerate(tokens) if token not in (words.cls, words.sep)]
    starts = [k for k, i in enumerate(positions) if k == 0 or not continues[tokens[i]]]
    order = np.arange(len(starts))
    random.shuffle(order)
    shares = 1.0 / np.arange(1, max_ngram + 1)
    shares = shares / shares.sum()
    cumulative = (shares / shares.sum()).cumsum()
    # as RandomState.choice computes it, with its rounding
    cumulative = (cumulative / cumulative[-1]).tolist()
    bounds = [*starts, *[len(positions)] * max_ngram]
    masked, count = bytearray(len(tokens)), 0
    spans: list[tuple[list[int], list[int], list[int]]] = []
    for word in order.tolist():
        if count >= budget:
            break
        n = (
            min(random.geometric(GEOMETRIC_P), max_ngram)
            if geometric
            else bisect.bisect_right(cumulative, random.random_sample()) + 1
        )
        while n and count + bounds[word + n] - bounds[word] > budget:
            n -= 1
        span = positions[bounds[word] : bounds[word + n]]
        if n == 0 or any(masked[i] for i in span):
            continue
        for i in span:
            masked[i] = 1
        spans.append((span, [tokens[i] for i in span], [replacement(tokens[i]) for i in span]))
        count += len(span)
    return sorted(spans)


def masking_budget(share: float, target: int, tokens: list[int]) -> float:
    """The most tokens to mask in a sample."""
    return min(share * target, max(1, round(len(tokens) * share)))


def flat(sentences: list[np.ndarray]) -> list[int]:
    """The tokens of all sentences, in order."""
    return np.concatenate(sentences).tolist() if sentences else []


def padded(tokens: list[int], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(the tokens, then pad; 1 at tokens and 0 at padding): (length,) int64 each."""
    out, mask = np.full(length, pad, np.int64), np.zeros(length, np.int64)
    out[: len(tokens)], mask[: len(tokens)] = tokens, 1
    return out, mask


def build_mapping(
    documents: np.ndarray,
    lengths: np.ndarray,
    num_samples: int | None,
    max_length: int,
    short_seq_prob: float,
    seed: int,
    min_sentences: int,
) -> np.ndarray:
    """The sample index, (n, 3) uint32 or uint64: Megatron-LM's build_mapping with the same random numbers.

    documents: (documents + 1,) int64, the first sentence of every document. lengths: (S,) int32 tokens of
    every sentence. num_samples: None for one epoch. max_length: target length of a sample in tokens. A sample
    is shorter if its document ends before, and longer if no sentence ends at the target. Raises ValueError if
    no document has min_sentences sentences, none of them too long.
    """
    dtype = np.uint32 if len(lengths) <= np.iinfo(np.uint32).max else np.uint64
    ratio = int(1 / short_seq_prob + 0.5) if short_seq_prob > 0 else 0
    draws = _Draws(np.random.RandomState(seed)) if ratio else None
    parts: list[np.ndarray] = []
    total, epochs = 0, 0
    while total < (1 if num_samples is None else num_samples):
        for start in range(0, len(documents) - 1, DOCUMENTS_AT_A_TIME):
            block = documents[start : start + DOCUMENTS_AT_A_TIME + 1]
            most = int(block[-1] - block[0])  # samples: each has a sentence at least
            rows = np.empty((most, 3), dtype)
            numbers = draws.peek(most + len(block)) if draws else np.empty(0, np.uint32)
            loop = compile_if_long(_samples_of_documents, most)
            count, used = loop(
                block, lengths[block[0] : block[-1]], max_length, ratio, numbers, min_sentences, rows
            )
            if draws:
                draws.consume(used)
            parts.append(rows[:count].copy())
            total += count
        epochs += 1
        if total == 0:
            raise ValueError(
                f"none of its {len(documents) - 1:,} documents has {min_sentences} or more sentences of at"
                f" most {LONG_SENTENCE} tokens"
            )
    return shuffled(np.concatenate(parts), seed)


class _Draws:
    """Numbers of the 32-bit Mersenne Twister that are read before it is known how many of them are used."""

    def __init__(self, random: np.random.RandomState):
        self.random, self.numbers = random, np.empty(0, np.uint32)

    def peek(self, count: int) -> np.ndarray:
        """At least the next `count` numbers, uint32."""
        fresh = max(0, count - len(self.numbers))
        self.numbers = np.concatenate([self.numbers, self.random.randint(0, 1 << 32, fresh, np.uint32)])
        return self.numbers

    def consume(self, count: int) -> None:
        self.numbers = self.numbers[count:]


def _samples_of_documents(
    documents: np.ndarray,
    lengths: np.ndarray,
    max_length: int,
    ratio: int,
    numbers: np.ndarray,
    min_sentences: int,
    rows: np.ndarray,
) -> tuple[int, int]:
    """Fills `rows` in the order of the documents; returns the numbers of rows and of random numbers used.

    lengths: of the sentences from documents[0] on. One in `ratio` samples gets a random target length (0:
    none). numba compiles it.
    """
    count, used, base = 0, 0, documents[0]
    for d in range(len(documents) - 1):
        first, last = documents[d], documents[d + 1]
        if last - first < min_sentences:
            continue
        if last - first > 1 and lengths[first - base : last - base].max() > LONG_SENTENCE:
            continue
        start, tokens, target = first, 0, max_length
        if ratio:
            if numbers[used] % ratio == 0:
                target = 2 + int(numbers[used]) % (max_length - 1)
            used += 1
        for s in range(first, last):
            tokens += lengths[s - base]
            remaining = last - s - 1
            if remaining == 0 or (tokens >= target and remaining > 1 and s + 1 - start >= min_sentences):
                rows[count, 0], rows[count, 1], rows[count, 2] = start, s + 1, target
                count += 1
                start, tokens, target = s + 1, 0, max_length
                if ratio:
                    if numbers[used] % ratio == 0:
                        target = 2 + int(numbers[used]) % (max_length - 1)
                    used += 1
    return count, used
