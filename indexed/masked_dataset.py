"""BERT and T5 samples: sentences of a document, some of their words masked, as Megatron-LM makes them.

In: .bin/.idx pairs with a sequence for every sentence (`mt data tokenize --split-sentences`). Out: datasets
whose item k is a dict of int64 arrays, drawn from the random numbers of seed + k alone, so that it is the
same at any number of workers and after a resume.

Which sentences make a sample stands in one array, cached like the indices of gpt.py and equal to the
original's:

    sample index    (samples, 3) uint32 (uint64 beyond 2**32 sentences): first sentence, one past the last,
        target
                    length in tokens; whole epochs, shuffled, so that there may be more samples than were
                        asked for
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import Tokenizer
from .blend import compiled
from .format import IndexedDataset
from .gpt_dataset import DataConfig, Dataset, build_splits, cached

LONG_SENTENCE = 512  # tokens: a document of several sentences with a longer one is left out
DOCUMENTS_AT_A_TIME = 1 << 20  # of a pass that builds the sample index
GEOMETRIC_P = 0.2  # of the lengths of masked spans in words: SpanBERT (Joshi et al. 2019), section 3.1


@configuration()
class MaskedConfig(DataConfig):
    """What BERT's and T5's data settings share."""

    mask_prob: float = option(0.15, "share of the tokens that are masked")
    short_seq_prob: float = option(0.1, "share of the samples that get a random shorter length")

    def __post_init__(self):
        super().__post_init__()
        check(
            (0 < self.mask_prob < 1, f"mask_prob = {self.mask_prob} must lie between 0 and 1"),
            (0 <= self.short_seq_prob <= 1, f"short_seq_prob = {self.short_seq_prob} must lie in [0, 1]"),
            (
                self.seq_length >= 8,
                f"seq_length = {self.seq_length} must be at least 8: special tokens and two sentences",
            ),
        )


@configuration()
class BertConfig(MaskedConfig):
    """BERT's data settings."""

    bert_binary_head: bool = option(
        True, "samples of two segments, half of them swapped: tell which came first"
    )


@configuration()
class T5Config(MaskedConfig):
    """T5's data settings. seq_length is the encoder's."""

    decoder_seq_length: int = option(128, "tokens of a decoder's sample")

    def __post_init__(self):
        super().__post_init__()
        check(
            (
                self.decoder_seq_length >= 4,
                f"decoder_seq_length = {self.decoder_seq_length} must be at least 4",
            )
        )


def build_bert_datasets(
    config: BertConfig, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of BERT: see gpt.build_datasets."""
    return _build(
        config,
        Bert(word_pieces(tokenizer), config.seq_length, config.mask_prob, config.bert_binary_head),
        num_samples,
    )


def build_t5_datasets(
    config: T5Config, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of T5: see gpt.build_datasets."""
    return _build(
        config,
        T5(word_pieces(tokenizer), config.seq_length, config.decoder_seq_length, config.mask_prob),
        num_samples,
    )


def _build(
    config: MaskedConfig, objective: Objective, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    def make(
        indexed: IndexedDataset, documents: tuple[int, int], count: int | None, name: str, cache: Path
    ) -> MaskedDataset:
        return MaskedDataset(
            indexed, documents, count, objective, config.short_seq_prob, config.seed, name=name, cache=cache
        )

    return build_splits(config, num_samples, make, of="documents")


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """What masking must know of a vocabulary. An id is None where the vocabulary has no such token."""

    fingerprint: str
    continues: tuple[bool, ...]  # for every id: whether the piece goes on with a word ("##ing")
    cls: int | None
    sep: int | None
    mask: int | None
    pad: int | None
    bos: int | None
    eos: int | None
    sentinels: tuple[int, ...]  # T5's <extra_id_0>, <extra_id_1>, ...

    @property
    def size(self) -> int:
        return len(self.continues)

    def need(self, *names: str) -> None:
        missing = [n for n in names if getattr(self, n) in (None, ())]
        if missing:
            remedy = (
                "add sentinels with --vocab-extra-ids 100"
                if missing == ["sentinels"]
                else "give a vocabulary that has them, such as BERT's"
            )
            raise UserError(f"the tokenizer has no token for {', '.join(missing)}; {remedy}")


# Under which names vocabularies hold a special token, the first found wins.
SPECIALS = {
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "bos": ("[BOS]", "<s>", "[CLS]", "<pad>"),
    "eos": ("[EOS]", "</s>", "[SEP]"),
}


def word_pieces(tokenizer: Tokenizer) -> WordPieces:
    """A tokenizer's pieces, as masking sees them."""
    # alone, a piece is decoded to its own name
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    sentinels = []
    while (sentinel := ids.get(f"<extra_id_{len(sentinels)}>")) is not None:
        sentinels.append(sentinel)
    specials = {name: next((ids[n] for n in known if n in ids), None) for name, known in SPECIALS.items()}
    return WordPieces(
        tokenizer.fingerprint,
        tuple(p.startswith("##") for p in pieces),
        **specials,
        sentinels=tuple(sentinels),
    )


class Objective(Protocol):
    """How sentences become a sample."""

    max_length: int  # tokens of the sentences of a sample
    min_sentences: int

    @property
    def identity(self) -> tuple:
        """Everything that decides a sample but its sentences."""
        ...

    def sample(
        self, sentences: list[np.ndarray], target: int, random: np.random.RandomState
    ) -> dict[str, np.ndarray | int]: ...


class SentenceSamples:
    """Samples of a range of the documents of one .bin/.idx pair whose sequences are sentences.

    sample_index: (samples, columns), a row for each sample, which begins with its first sentence and the one
    past its last. num_samples: how many were asked for; None: what there are.
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
        self.indexed, self.range, self.seed, self.fingerprint, self.sample_index = (
            indexed,
            document_range,
            seed,
            fingerprint,
            sample_index,
        )
        self.num_samples = len(self) if num_samples is None else num_samples

    def __len__(self) -> int:
        return len(self.sample_index)

    def __getitem__(self, k: int) -> dict[str, np.ndarray | int]:
        """Arrays (length,) int64, and flags that are 0 or 1; drawn from the random numbers of seed + k alone."""
        k = int(k) + (len(self) if k < 0 else 0)
        return self.sample(self.sample_index[k].tolist(), np.random.RandomState((self.seed + k) % (1 << 32)))

    def sample(self, row: list[int], random: np.random.RandomState) -> dict[str, np.ndarray | int]:
        """The sample of a row of the sample index."""
        raise NotImplementedError

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays (len(indices), length) int64; (len(indices),) int64 for flags."""
        samples = [self[k] for k in indices]
        return {name: np.array([s[name] for s in samples], np.int64) for name in samples[0]}

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[dict]:
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


class MaskedDataset(SentenceSamples):
    """Samples whose words are masked.

    num_samples: how many are wanted (None: what one epoch gives); there may be more. cache: directory of the
    sample index, or None to keep it in memory. Raises UserError where no document can give a sample.
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
        """See `Bert.sample` and `T5.sample`."""
        first, end, target = row
        return self.objective.sample([self.indexed[i] for i in range(first, end)], target, random)


@dataclasses.dataclass(frozen=True)
class Bert:
    """[CLS] A [SEP] B [SEP] with masked words; B [SEP] is there, and A and B may have changed places, with
    binary_head.
    """

    words: WordPieces
    seq_length: int
    mask_prob: float = 0.15
    binary_head: bool = True
    max_ngram: int = 3  # words that are masked together, at most

    def __post_init__(self):
        self.words.need("cls", "sep", "mask", "pad")

    @property
    def max_length(self) -> int:
        return self.seq_length - 3  # for [CLS] and two [SEP]

    @property
    def min_sentences(self) -> int:
        return 2 if self.binary_head else 1

    @property
    def identity(self) -> tuple:
        return (
            "bert",
            self.words.fingerprint,
            self.seq_length,
            self.mask_prob,
            self.binary_head,
            self.max_ngram,
        )

    def sample(
        self, sentences: list[np.ndarray], target: int, random: np.random.RandomState
    ) -> dict[str, np.ndarray | int]:
        """text, types (0 for A, 1 for B), labels (-1 where nothing is asked), loss_mask, padding_mask (1
        where there
        is a token): (seq_length,) int64; is_random (A and B are swapped), truncated: 0 or 1."""
        pivot, swapped = len(sentences), False
        if self.binary_head:
            pivot = random.randint(1, len(sentences)) if len(sentences) >= 3 else 1
            swapped = random.random_sample() < 0.5
        a, b = _flat(sentences[:pivot]), _flat(sentences[pivot:])
        if swapped:
            a, b = b, a
        truncated = len(a) + len(b) > target
        if truncated:
            a, b = _truncate(a, b, target, random)
        words = self.words
        tokens = [words.cls, *a, words.sep, *b, *([words.sep] if b else [])]

        def replacement(token: int) -> int:
            if random.random_sample() < 0.8:
                return words.mask
            return random.randint(0, words.size) if random.random_sample() >= 0.5 else token

        spans = masked_spans(
            tokens, _budget(self.mask_prob, target, tokens), words, self.max_ngram, False, random, replacement
        )
        used = len(tokens)
        out = {
            name: np.zeros(self.seq_length, np.int64)
            for name in ("text", "types", "labels", "padding_mask", "loss_mask")
        }
        out["labels"] -= 1
        for positions, originals, replacements in spans:
            out["labels"][positions] = originals
            out["loss_mask"][positions] = 1
            for position, token in zip(positions, replacements):
                tokens[position] = token
        out["text"][:used], out["text"][used:] = tokens, words.pad
        out["types"][len(a) + 2 : used] = 1
        # as in the original: also 0 where chance put [PAD] for a word
        out["padding_mask"][:] = out["text"] != words.pad
        return {**out, "is_random": int(swapped), "truncated": int(truncated)}


@dataclasses.dataclass(frozen=True)
class T5:
    """Text whose masked spans are sentinels, for the encoder; sentinels and spans, for the decoder."""

    words: WordPieces
    seq_length: int  # the encoder's
    decoder_seq_length: int
    mask_prob: float = 0.15
    max_ngram: int = 10

    min_sentences = 1

    def __post_init__(self):
        self.words.need("pad", "bos", "eos", "sentinels")

    @property
    def max_length(self) -> int:
        return self.seq_length - 2

    @property
    def identity(self) -> tuple:
        return (
            "t5",
            self.words.fingerprint,
            self.seq_length,
            self.decoder_seq_length,
            self.mask_prob,
            self.max_ngram,
        )

    def sample(
        self, sentences: list[np.ndarray], target: int, random: np.random.RandomState
    ) -> dict[str, np.ndarray | int]:
        """text_enc, enc_mask: (seq_length,) int64; text_dec, labels (-1 for padding), loss_mask, dec_mask:
        (decoder_seq_length,) int64; masks are 1 where there is a token; truncated: 0 or 1."""
        words, tokens = self.words, _flat(sentences)
        truncated = len(tokens) > target
        tokens = tokens[:target]
        spans = masked_spans(
            tokens,
            _budget(self.mask_prob, target, tokens),
            words,
            self.max_ngram,
            True,
            random,
            lambda token: token,
        )
        if len(spans) > len(words.sentinels):
            raise UserError(
                f"a sample has {len(spans)} masked spans, but the tokenizer only {len(words.sentinels)}"
                f" sentinels; raise --vocab-extra-ids to {len(spans)} or more"
            )
        encoder, asked, done = [], [], 0
        for sentinel, (positions, originals, _) in zip(words.sentinels, spans):
            encoder += [*tokens[done : positions[0]], sentinel]
            asked += [sentinel, *originals]
            done = positions[-1] + 1
        encoder += tokens[done:]
        used = len(asked) + 1
        if used > self.decoder_seq_length:
            raise UserError(
                f"decoder_seq_length = {self.decoder_seq_length} is too short for a sample whose masked spans"
                f" take {used}; raise it, or lower --mask-prob"
            )
        text_enc, enc_mask = padded(encoder, self.seq_length, words.pad)
        text_dec, dec_mask = padded([words.bos, *asked], self.decoder_seq_length, words.pad)
        labels, _ = padded([*asked, words.eos], self.decoder_seq_length, -1)
        return {
            "text_enc": text_enc,
            "text_dec": text_dec,
            "labels": labels,
            "loss_mask": dec_mask.copy(),
            "truncated": int(truncated),
            "enc_mask": enc_mask,
            "dec_mask": dec_mask,
        }


def masked_spans(
    tokens: list[int],
    budget: float,
    words: WordPieces,
    max_ngram: int,
    geometric: bool,
    random: np.random.RandomState,
    replacement: Callable[[int], int],
) -> list[tuple[list[int], list[int], list[int]]]:
    """(positions, tokens there, what replaces them) of every masked run of whole words, by position.

    Words are visited in random order; each asks for a run of n words that begins with it, n drawn from 1/n
    (or geometrically) up to max_ngram, cut down until it fits the budget of tokens, and left out where it
    meets another. [CLS] and [SEP] belong to no word. replacement: draws from `random`, once for every masked
    token.
    """
    continues = words.continues
    positions = [i for i, token in enumerate(tokens) if token not in (words.cls, words.sep)]
    starts = [k for k, i in enumerate(positions) if k == 0 or not continues[tokens[i]]]
    order = np.arange(len(starts))
    random.shuffle(order)
    shares = 1.0 / np.arange(1, max_ngram + 1)
    shares = shares / shares.sum()
    cumulative = (shares / shares.sum()).cumsum()
    # as RandomState.choice computes it, rounding included
    cumulative = (cumulative / cumulative[-1]).tolist()
    bounds = [*starts, *[len(positions)] * max_ngram]
    masked, count, spans = bytearray(len(tokens)), 0, []
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
        run = positions[bounds[word] : bounds[word + n]]
        if n == 0 or any(masked[i] for i in run):
            continue
        for i in run:
            masked[i] = 1
        spans.append((run, [tokens[i] for i in run], [replacement(tokens[i]) for i in run]))
        count += len(run)
    return sorted(spans)


def _budget(share: float, target: int, tokens: list[int]) -> float:
    """Tokens to mask, at most."""
    return min(share * target, max(1, round(len(tokens) * share)))


def _flat(sentences: list[np.ndarray]) -> list[int]:
    return np.concatenate(sentences).tolist() if sentences else []


def _truncate(
    a: list[int], b: list[int], target: int, random: np.random.RandomState
) -> tuple[list[int], list[int]]:
    """Drops tokens one by one from the longer (b where they are equal), at a random one of its ends."""
    spans = [[0, len(a)], [0, len(b)]]
    for u in random.random_sample(len(a) + len(b) - target).tolist():
        lengths = [end - start for start, end in spans]
        span = spans[0 if lengths[0] > lengths[1] else 1]
        if u < 0.5:
            span[0] += 1
        else:
            span[1] -= 1
    return a[slice(*spans[0])], b[slice(*spans[1])]


def padded(tokens: list[int], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens filled up to length with pad, 1 where there is a token), (length,) int64 each."""
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
    """The sample index, (n, 3) uint32 or uint64, as Megatron-LM's build_mapping makes it, random numbers
    included.

    documents: (documents + 1,) int64 their first sentences. lengths: (S,) int32 tokens of every sentence.
    num_samples: None for one epoch. max_length: tokens of a sample; it is left before the target where that
    takes a whole document in, and passed where no sentence ends just there. Raises ValueError where no
    document has min_sentences, none of them too long.
    """
    dtype = np.uint32 if len(lengths) <= np.iinfo(np.uint32).max else np.uint64
    ratio = int(1 / short_seq_prob + 0.5) if short_seq_prob > 0 else 0
    draws = _Draws(np.random.RandomState(seed)) if ratio else None
    parts: list[np.ndarray] = []
    total, epochs = 0, 0
    while total < (1 if num_samples is None else num_samples):
        for start in range(0, len(documents) - 1, DOCUMENTS_AT_A_TIME):
            block = documents[start : start + DOCUMENTS_AT_A_TIME + 1]
            most = int(block[-1] - block[0])  # samples: each has a sentence
            rows = np.empty((most, 3), dtype)
            numbers = draws.ahead(most + len(block)) if ratio else np.empty(0, np.uint32)
            loop = compiled(_samples_of_documents, most)
            count, used = loop(
                block, lengths[block[0] : block[-1]], max_length, ratio, numbers, min_sentences, rows
            )
            if ratio:
                draws.take(used)
            parts.append(rows[:count].copy())
            total += count
        epochs += 1
        if total == 0:
            raise ValueError(
                f"none of its {len(documents) - 1:,} documents has {min_sentences} or more sentences of at"
                f" most {LONG_SENTENCE} tokens"
            )
    rows = np.concatenate(parts)
    return shuffled(rows, seed)


class _Draws:
    """Numbers of the 32-bit Mersenne twister, some of which are looked at before it is known how many are
    used.
    """

    def __init__(self, random: np.random.RandomState):
        self.random, self.numbers = random, np.empty(0, np.uint32)

    def ahead(self, count: int) -> np.ndarray:
        fresh = max(0, count - len(self.numbers))
        self.numbers = np.concatenate([self.numbers, self.random.randint(0, 1 << 32, fresh, np.uint32)])
        return self.numbers

    def take(self, count: int) -> None:
        self.numbers = self.numbers[count:]


def _samples_of_documents(documents, lengths, max_length, ratio, numbers, min_sentences, rows):
    """Fills `rows`, in the order of the documents; returns (how many, how many random numbers were used).

    lengths: those of the sentences from documents[0] on.
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


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows (n, columns) themselves in Megatron-LM's order, in place: by mt19937_64(seed + 1)."""
    compiled(_shuffle, len(rows))(rows, bounded_draws(seed + 1, len(rows)))
    return rows


def _shuffle(rows, partners):
    """Fisher-Yates from the end: row i changes places with row partners[i] <= i."""
    for i in range(len(rows) - 1, 0, -1):
        j = partners[i]
        for column in range(rows.shape[1]):
            rows[i, column], rows[j, column] = rows[j, column], rows[i, column]


def bounded_draws(seed: int, count: int) -> np.ndarray:
    """(count,) int64: entry i is the next number of C++'s mt19937_64(seed) modulo i + 1, drawn for i = count
    - 1 down to 1.
    """
    blocks, need = [], max(count - 1, 0)
    stream = mt19937_64(seed)
    while need > 0:
        blocks.append(next(stream)[:need])
        need -= len(blocks[-1])
    numbers = np.concatenate([*blocks, np.zeros(1, np.uint64)])[:count][::-1]
    return (numbers % np.arange(1, count + 1, dtype=np.uint64)).astype(np.int64)


def mt19937_64(seed: int):
    """The numbers of the 64-bit Mersenne twister (Nishimura 2000), endlessly, in arrays of 312 uint64: numpy
    has only the 32-bit one.
    """
    size, half, full = 312, 156, (1 << 64) - 1
    state = [seed & full]
    for i in range(1, size):
        state.append((6364136223846793005 * (state[-1] ^ (state[-1] >> 62)) + i) & full)
    x = np.array(state, np.uint64)
    upper, lower = np.uint64(full ^ ((1 << 31) - 1)), np.uint64((1 << 31) - 1)
    odd = np.array([0, 0xB5026F5AA96619E9], np.uint64)

    def twist(current: np.ndarray, following: np.ndarray, far: np.ndarray) -> np.ndarray:
        y = (current & upper) | (following & lower)
        return far ^ (y >> np.uint64(1)) ^ odd[(y & np.uint64(1)).astype(np.intp)]

    while True:
        # A new word needs the old one, the old one after it and the word 156 further on: half of them are
        # old, half new.
        first = twist(x[:half], x[1 : half + 1], x[half:])
        x = np.concatenate([first, twist(x[half:], np.append(x[half + 1 :], first[0]), first)])
        y = x ^ ((x >> np.uint64(29)) & np.uint64(0x5555555555555555))
        y ^= (y << np.uint64(17)) & np.uint64(0x71D67FFFEDA60000)
        y ^= (y << np.uint64(37)) & np.uint64(0xFFF7EEE000000000)
        yield y ^ (y >> np.uint64(43))
