"""BERT's samples: one or two segments of sentences with masked words, equal to Megatron-LM's BERT dataset.

A sample is `[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]` without the binary head. In half of the samples of two
segments A and B are swapped; the binary head learns to tell which (sentence order prediction, Lan et al.
2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..core.config import configuration, option
from ..tokenizer.tokenizer import Tokenizer
from .gpt_dataset import Dataset
from .masked_dataset import MaskedConfig, build_masked_datasets, flat, masked_spans, masking_budget
from .word_pieces import WordPieces, word_pieces


@configuration()
class BertConfig(MaskedConfig):
    """BERT's data settings."""

    bert_binary_head: bool = option(
        True, "samples have two segments, swapped in half of them: the model predicts their order"
    )


def build_bert_datasets(
    config: BertConfig, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of BERT, as `gpt_dataset.build_datasets` returns them."""
    return build_masked_datasets(
        config,
        BertObjective(word_pieces(tokenizer), config.seq_length, config.mask_prob, config.bert_binary_head),
        num_samples,
    )


@dataclasses.dataclass(frozen=True)
class BertObjective:
    """How sentences become a sample of BERT: the segments, and the masked words.

    Of the masked tokens 80 % become [MASK], 10 % a random token, and 10 % stay (Devlin et al. 2018, section
    3.1).
    """

    words: WordPieces
    seq_length: int
    mask_prob: float = 0.15
    binary_head: bool = True
    max_ngram: int = 3  # the most words that are masked together

    def __post_init__(self) -> None:
        self.words.require("cls", "sep", "mask", "pad")

    @property
    def max_length(self) -> int:
        return self.seq_length - 3  # [CLS] and two [SEP] take the others

    @property
    def min_sentences(self) -> int:
        return 2 if self.binary_head else 1

    @property
    def identity(self) -> tuple[object, ...]:
        words = self.words.fingerprint
        return "bert", words, self.seq_length, self.mask_prob, self.binary_head, self.max_ngram

    def sample(
        self, sentences: list[np.ndarray], target: int, random: np.random.RandomState
    ) -> dict[str, np.ndarray | int]:
        """A sample: five arrays (seq_length,) int64 and two flags, 0 or 1.

        text: token ids. types: 0 for A, 1 for B. labels: the masked tokens, -1 elsewhere. loss_mask: 1 at
        masked tokens. padding_mask: 1 at tokens, 0 at padding. is_random: A and B are swapped. truncated: the
        sentences had more than `target` tokens.
        """
        pivot, swapped = len(sentences), False
        if self.binary_head:
            pivot = random.randint(1, len(sentences)) if len(sentences) >= 3 else 1
            swapped = random.random_sample() < 0.5
        a, b = flat(sentences[:pivot]), flat(sentences[pivot:])
        if swapped:
            a, b = b, a
        truncated = len(a) + len(b) > target
        if truncated:
            a, b = _truncate(a, b, target, random)
        words = self.words
        cls, sep, mask, pad = words.require("cls", "sep", "mask", "pad")
        tokens = [cls, *a, sep, *b, *([sep] if b else [])]

        def replacement(token: int) -> int:
            if random.random_sample() < 0.8:
                return mask
            return random.randint(0, words.size) if random.random_sample() >= 0.5 else token

        budget = masking_budget(self.mask_prob, target, tokens)
        spans = masked_spans(tokens, budget, words, self.max_ngram, False, random, replacement)
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
        out["text"][:used], out["text"][used:] = tokens, pad
        out["types"][len(a) + 2 : used] = 1
        # as in Megatron-LM: also 0 where the random replacement of a token is [PAD]
        out["padding_mask"][:] = out["text"] != pad
        return {**out, "is_random": int(swapped), "truncated": int(truncated)}


def _truncate(
    a: list[int], b: list[int], target: int, random: np.random.RandomState
) -> tuple[list[int], list[int]]:
    """Cuts a and b to `target` tokens in all.

    Every step drops a token from the longer one, b if they are equally long, at its start or end by chance.
    """
    spans = [[0, len(a)], [0, len(b)]]
    for u in random.random_sample(len(a) + len(b) - target).tolist():
        lengths = [end - start for start, end in spans]
        span = spans[0 if lengths[0] > lengths[1] else 1]
        if u < 0.5:
            span[0] += 1
        else:
            span[1] -= 1
    return a[slice(*spans[0])], b[slice(*spans[1])]
