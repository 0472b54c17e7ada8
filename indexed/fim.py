"""Fill-in-the-middle: some documents of a sample are cut in three and their middle moved to the end (Bavarian
et al. 2022).

A wrapper around any dataset of token samples. The text of a document, or of the part of it that the sample
holds, is cut at two random characters and tokenised again in three pieces, so that a model also learns to
complete half a word:

    prefix, suffix, middle:   <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
    suffix, prefix, middle:   <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle

Item k draws its random numbers from the seed and k alone, so that it is the same at any number of workers and
after a resume; Megatron-LM's, which this otherwise follows, depends on what was read before, and loses an end
of document where two follow one another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xxhash

from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import Tokenizer
from .gpt_dataset import Dataset


@configuration(group="fim")
class FimConfig:
    """Fill-in-the-middle."""

    fim_rate: float = option(
        0.0, "share of the documents that are rearranged for fill-in-the-middle; 0: none"
    )
    fim_spm_rate: float = option(
        0.5, "share of those that become suffix, prefix, middle; the others prefix, suffix, middle"
    )
    fim_split_sample: str | None = option(
        None,
        "token between the files of a document: fim-rate is then drawn for the document, and its files are"
        " rearranged one by one",
    )
    fim_fragment_rate: float | None = option(
        None, "share of the files that are rearranged in such a document (default: fim-rate)"
    )
    fim_no_prefix: str | None = option(None, "leave texts alone that begin with this")

    def __post_init__(self):
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


# Under which names vocabularies hold the three tokens and the padding: StarCoder, Qwen and others,
# SantaCoder, Code Llama.
TOKENS = {
    "prefix": ("<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>", "FIM_PREFIX", "<PRE>"),
    "middle": ("<fim_middle>", "<|fim_middle|>", "<fim-middle>", "FIM_MIDDLE", "<MID>"),
    "suffix": ("<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>", "FIM_SUFFIX", "<SUF>"),
    "pad": ("<fim_pad>", "<|fim_pad|>", "<fim-pad>", "FIM_PAD", "<|endoftext|>", "<pad>"),
}


class FimDataset:
    """The samples of `dataset`, rearranged; each keeps its length, cut off or filled up with the padding
    token.

    Raises UserError where the tokenizer has not the tokens that it takes.
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
        return self._rearranged(int(k) + (len(self) if k < 0 else 0), self.dataset[k])

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        rows = self.dataset.batch(indices)
        for row, k in zip(rows, indices):
            row[:] = self._rearranged(int(k), row)
        return rows

    def describe(self) -> list[dict]:
        return self.dataset.describe()

    def _rearranged(self, k: int, sample: np.ndarray) -> np.ndarray:
        random = np.random.RandomState([self.seed, k & 0xFFFFFFFF, k >> 32])
        found: list[int] = []
        for document, end in _cut(sample.tolist(), self.tokenizer.eod):
            found += [*self._document(document, random), *end]
        return np.array((found + [self.pad] * (len(sample) - len(found)))[: len(sample)], np.int64)

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
            for file, end in _cut(tokens, self.split)
            for token in (*self._text(file, rate, random), *end)
        ]

    def _text(self, tokens: list[int], rate: float, random: np.random.RandomState) -> list[int]:
        if not tokens or random.random_sample() >= rate:
            return tokens
        text = self.tokenizer.decode(tokens)
        if self.config.fim_no_prefix is not None and text.startswith(self.config.fim_no_prefix):
            return tokens
        if "\ufffd" in text:
            return tokens  # it begins or ends within a character, and would not come back from its text
        first, second = sorted(random.randint(0, len(text) + 1, size=2).tolist())
        prefix, middle, suffix = (
            self.tokenizer.encode(piece) for piece in (text[:first], text[first:second], text[second:])
        )
        if random.random_sample() < self.config.fim_spm_rate:
            return [self.prefix, self.suffix, *suffix, self.middle, *prefix, *middle]
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle, *middle]


def _cut(tokens: list[int], end: int | None) -> list[tuple[list[int], list[int]]]:
    """(tokens, [end]) for every end in a list, and (tokens, []) for what comes after the last."""
    parts, start = [], 0
    for at, token in enumerate(tokens):
        if token == end:
            parts.append((tokens[start:at], [end]))
            start = at + 1
    return [*parts, (tokens[start:], [])]


def _find(known: dict[str, int], names: Sequence[str], what: str) -> int:
    """The id of the first of the names that the vocabulary holds."""
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        raise UserError(
            f"fill-in-the-middle needs a {what} token, and the tokenizer has none of {', '.join(names)}; add"
            " it with --tokenizer-special-tokens, or set fim_rate = 0"
        )
    return found
