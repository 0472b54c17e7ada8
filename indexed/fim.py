"""Fill-in-the-middle: the middle of some documents of a sample moves to their end (Bavarian et al. 2022).

A wrapper of any dataset of token samples. The text of a document, or of its part in the sample, is cut at two
random characters and tokenized again in three pieces, so that a model also learns to complete half a word:

    prefix, suffix, middle:   <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
    suffix, prefix, middle:   <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle

The random numbers of item k depend on the seed and k alone, so that it is the same for any number of workers
and after a resume. It differs from Megatron-LM's GPTFIMDataset in two points: an item there depends on the
items read before, and of two consecutive end-of-document tokens one is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xxhash

from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import Tokenizer
from .gpt_dataset import Dataset, SourceRow


@configuration(group="fim")
class FimConfig:
    """Fill-in-the-middle."""

    fim_rate: float = option(
        0.0, "share of the documents that are transformed for fill-in-the-middle; 0: none"
    )
    fim_spm_rate: float = option(
        0.5, "share of those in the order suffix, prefix, middle; the others are prefix, suffix, middle"
    )
    fim_split_sample: str | None = option(
        None,
        "token between the files of a document: fim-rate then selects documents, and each of their files is"
        " transformed by itself",
    )
    fim_fragment_rate: float | None = option(
        None, "share of the files that are transformed in such a document (default: fim-rate)"
    )
    fim_no_prefix: str | None = option(None, "do not transform texts that begin with this")

    def __post_init__(self) -> None:
        rates = ("fim_rate", "fim_spm_rate", "fim_fragment_rate")
        check(
            *(
                (
                    getattr(self, n) is None or 0 <= getattr(self, n) <= 1,
                    f"{n} = {getattr(self, n)} must lie in [0, 1]",
                )
                for n in rates
            ),
            (
                self.fim_fragment_rate is None or self.fim_split_sample is not None,
                "fim_fragment_rate needs fim_split_sample: the token between files",
            ),
        )


# The names of the three tokens and of padding in known vocabularies: StarCoder, Qwen and others, SantaCoder,
# a plain spelling, Code Llama.
TOKENS = {
    "prefix": ("<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>", "FIM_PREFIX", "<PRE>"),
    "middle": ("<fim_middle>", "<|fim_middle|>", "<fim-middle>", "FIM_MIDDLE", "<MID>"),
    "suffix": ("<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>", "FIM_SUFFIX", "<SUF>"),
    "pad": ("<fim_pad>", "<|fim_pad|>", "<fim-pad>", "FIM_PAD", "<|endoftext|>", "<pad>"),
}


class FimDataset:
    """The samples of `dataset` after the transformation, each truncated or padded to its former length.

    Raises UserError if the tokenizer lacks one of the tokens.
    """

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, config: FimConfig, seed: int):
        self.dataset, self.tokenizer, self.config, self.seed = dataset, tokenizer, config, seed
        known = {tokenizer.decode([i]): i for i in range(tokenizer.vocab_size - 1, -1, -1)}
        self.prefix, self.middle, self.suffix, self.pad = (
            _find(known, names, name) for name, names in TOKENS.items()
        )
        self.split = (
            None if config.fim_split_sample is None else _find(known, (config.fim_split_sample,), "split")
        )
        key = ("fim 1", dataset.fingerprint, tokenizer.fingerprint, dataclasses.astuple(config), seed)
        self.fingerprint = xxhash.xxh3_128(repr(key).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, k: int) -> np.ndarray:
        sample = self.dataset[k]
        assert isinstance(sample, np.ndarray), "fill-in-the-middle is for samples of tokens"
        return self._transform(int(k) + (len(self) if k < 0 else 0), sample)

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        rows = self.dataset.batch(indices)
        assert isinstance(rows, np.ndarray), "fill-in-the-middle is for samples of tokens"
        for row, k in zip(rows, indices):
            row[:] = self._transform(int(k), row)
        return rows

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[SourceRow]:
        return self.dataset.describe(weight, samples)

    def _transform(self, k: int, sample: np.ndarray) -> np.ndarray:
        random = np.random.RandomState([self.seed, k & 0xFFFFFFFF, k >> 32])
        tokens: list[int] = []
        for document, end in _split_at(sample.tolist(), self.tokenizer.eod):
            tokens += [*self._document(document, random), *end]
        return np.array((tokens + [self.pad] * (len(sample) - len(tokens)))[: len(sample)], np.int64)

    def _document(self, tokens: list[int], random: np.random.RandomState) -> list[int]:
        if self.split is None or self.split not in tokens:
            return self._text(tokens, self.config.fim_rate, random)
        if random.random_sample() >= self.config.fim_rate:
            return tokens
        rate = (
            self.config.fim_rate if self.config.fim_fragment_rate is None else self.config.fim_fragment_rate
        )
        return [
            token
            for file, end in _split_at(tokens, self.split)
            for token in (*self._text(file, rate, random), *end)
        ]

    def _text(self, tokens: list[int], rate: float, random: np.random.RandomState) -> list[int]:
        if not tokens or random.random_sample() >= rate:
            return tokens
        text = self.tokenizer.decode(tokens)
        if self.config.fim_no_prefix is not None and text.startswith(self.config.fim_no_prefix):
            return tokens
        if "\ufffd" in text:
            return (
                tokens  # it begins or ends inside a character, so its text does not encode to the same tokens
            )
        first, second = sorted(random.randint(0, len(text) + 1, size=2).tolist())
        prefix, middle, suffix = (
            self.tokenizer.encode(piece) for piece in (text[:first], text[first:second], text[second:])
        )
        if random.random_sample() < self.config.fim_spm_rate:
            return [self.prefix, self.suffix, *suffix, self.middle, *prefix, *middle]
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle, *middle]


def _split_at(tokens: list[int], end: int | None) -> list[tuple[list[int], list[int]]]:
    """(tokens before it, [end]) for every `end` in a list, and (tokens, []) for those after the last one."""
    parts, start = [], 0
    for at, token in enumerate(tokens):
        if token == end:
            parts.append((tokens[start:at], [end]))
            start = at + 1
    return [*parts, (tokens[start:], [])]


def _find(known: dict[str, int], names: Sequence[str], what: str) -> int:
    """The id of the first of the names that the vocabulary has."""
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        raise UserError(
            f"fill-in-the-middle needs a {what} token, and the tokenizer has none of {', '.join(names)}; add"
            " it with --tokenizer-special-tokens, or set fim_rate = 0"
        )
    return found
