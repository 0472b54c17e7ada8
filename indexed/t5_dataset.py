"""T5's samples by span corruption (Raffel et al. 2020, section 3.1.4), equal to Megatron-LM's T5 dataset.

In the encoder's text a sentinel replaces every masked span; the decoder predicts each sentinel and its span.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import Tokenizer
from .gpt_dataset import Dataset
from .masked_dataset import MaskedConfig, build_masked_datasets, flat, masked_spans, masking_budget, padded
from .word_pieces import WordPieces, word_pieces


@configuration()
class T5Config(MaskedConfig):
    """T5's data settings; seq_length is the encoder's."""

    decoder_seq_length: int = option(128, "tokens of the decoder's sequence")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (
                self.decoder_seq_length >= 4,
                f"decoder_seq_length = {self.decoder_seq_length} must be at least 4",
            )
        )


def build_t5_datasets(
    config: T5Config, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of T5, as `gpt_dataset.build_datasets` returns them."""
    return build_masked_datasets(
        config,
        T5Objective(word_pieces(tokenizer), config.seq_length, config.decoder_seq_length, config.mask_prob),
        num_samples,
    )


@dataclasses.dataclass(frozen=True)
class T5Objective:
    """How sentences become a sample of T5: text with sentinels for the encoder, spans for the decoder."""

    words: WordPieces
    seq_length: int  # the encoder's
    decoder_seq_length: int
    mask_prob: float = 0.15
    max_ngram: int = 10  # the most words that are masked together

    @property
    def min_sentences(self) -> int:
        return 1

    def __post_init__(self) -> None:
        self.words.require("pad", "bos", "eos", "sentinels")

    @property
    def max_length(self) -> int:
        return self.seq_length - 2

    @property
    def identity(self) -> tuple[object, ...]:
        lengths = self.seq_length, self.decoder_seq_length
        return "t5", self.words.fingerprint, *lengths, self.mask_prob, self.max_ngram

    def sample(
        self, sentences: list[np.ndarray], target: int, random: np.random.RandomState
    ) -> dict[str, np.ndarray | int]:
        """A sample: arrays of int64 and a flag.

        text_enc, enc_mask: (seq_length,). text_dec, labels (-1 at padding), loss_mask, dec_mask:
        (decoder_seq_length,). Masks are 1 at tokens and 0 at padding. truncated: 1 if the sentences had more
        than `target` tokens, else 0. Raises UserError if the spans need more sentinels than the vocabulary
        has, or more tokens than the decoder's sequence.
        """
        words, tokens = self.words, flat(sentences)
        pad, bos, eos = words.require("pad", "bos", "eos")
        truncated = len(tokens) > target
        tokens = tokens[:target]
        budget = masking_budget(self.mask_prob, target, tokens)
        spans = masked_spans(tokens, budget, words, self.max_ngram, True, random, lambda token: token)
        if len(spans) > len(words.sentinels):
            raise UserError(
                f"a sample has {len(spans)} masked spans, but the tokenizer only {len(words.sentinels)}"
                f" sentinels; raise --vocab-extra-ids to {len(spans)} or more"
            )
        encoder: list[int] = []
        predicted: list[int] = []  # sentinels, each with its span
        done = 0
        for sentinel, (positions, originals, _) in zip(words.sentinels, spans):
            encoder += [*tokens[done : positions[0]], sentinel]
            predicted += [sentinel, *originals]
            done = positions[-1] + 1
        encoder += tokens[done:]
        used = len(predicted) + 1
        if used > self.decoder_seq_length:
            raise UserError(
                f"decoder_seq_length = {self.decoder_seq_length} is too short for a sample whose masked spans"
                f" take {used}; raise it, or lower --mask-prob"
            )
        text_enc, enc_mask = padded(encoder, self.seq_length, pad)
        text_dec, dec_mask = padded([bos, *predicted], self.decoder_seq_length, pad)
        labels, _ = padded([*predicted, eos], self.decoder_seq_length, -1)
        return {
            "text_enc": text_enc,
            "text_dec": text_dec,
            "labels": labels,
            "loss_mask": dec_mask.copy(),
            "truncated": int(truncated),
            "enc_mask": enc_mask,
            "dec_mask": dec_mask,
        }
