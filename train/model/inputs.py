"""MicroBatch, the input of every model, and the functions that collate each family's samples into one.

Legend: B samples, T tokens of a sample, S tokens of an encoder's input, l chunks, k neighbours of a chunk, r
tokens of a neighbour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.config import UserError, configuration, option
from ...indexed.gpt_dataset import document_layout
from .attention import Documents
from .config import ResolvedModelConfig

Samples = np.ndarray | Mapping[str, np.ndarray]  # what a dataset's `batch` gives


@configuration(group="packing")
class PackingConfig:
    """How documents packed into a sample are separated; by default the model reads them as one text."""

    reset_position_ids: bool = option(False, "restart position ids at every document")
    reset_attention_mask: bool = option(False, "mask attention to other documents of the sample")
    eod_mask_loss: bool = option(False, "mask the loss at end-of-document tokens")

    def any(self) -> bool:
        return self.reset_position_ids or self.reset_attention_mask or self.eod_mask_loss

    def check_against(self, eod: int | None) -> None:
        """Raises UserError where documents cannot be separated for lack of an end-of-document token."""
        if self.any() and eod is None:
            raise UserError(
                "reset_position_ids, reset_attention_mask and eod_mask_loss need an end-of-document token,"
                " and this tokenizer has none; leave them out"
            )


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass on one rank, B samples of T tokens; unused fields are None."""

    index: int  # its index in the global batch, the same at every data-parallel size
    tokens: Tensor  # (B, T) int64; t5: of the decoder; ict: of the queries
    labels: Tensor | None  # (B, T) int64: the next token; bert: the masked token; ict: None
    loss_mask: Tensor  # (B, T) float32: weight of each label in the loss; ict: (B,), of each sample
    positions: Tensor | None = None  # decoders: (B, T) int64; None: 0, 1, 2 ...
    documents: Documents | None = None  # decoders: mask attention to other documents; None: one text
    token_types: Tensor | None = None  # bert: (B, T) int64, 0 in the first segment, 1 in the second
    # bert, ict: (B, T) bool, false for padding; t5: (B, S), of encoder_tokens
    padding_mask: Tensor | None = None
    swapped: Tensor | None = None  # bert: (B,) int64, 1 where the two segments are swapped
    encoder_tokens: Tensor | None = None  # (B, S) int64; t5: of the encoder; ict: of the blocks
    encoder_padding_mask: Tensor | None = None  # ict: (B, S) bool
    neighbors: Tensor | None = (
        None  # Retro: (B, l, k, r) int64, k neighbours of r tokens for each of l chunks
    )
    neighbor_mask: Tensor | None = None  # Retro: (B, l, k, r) bool, false for padding

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the model's `loss`: every field but `index` that is not None."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "index"
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Collator:
    """The settings by which the functions below turn the samples of a dataset into a MicroBatch.

    vocab_size: of the model. eod: id of the end-of-document token, which ends the documents for `packing`;
    None where the tokenizer has none.
    """

    vocab_size: int
    device: torch.device
    packing: PackingConfig
    eod: int | None

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device."""
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
        )

    def tokens(self, array: np.ndarray) -> Tensor:
        """Token ids on the device; raises UserError for one outside the vocabulary."""
        check_range(array, self.vocab_size)
        return self.tensor(array)


def check_range(tokens: np.ndarray, vocab_size: int) -> None:
    """Raises UserError where a token id is outside the vocabulary."""
    for token in (int(tokens.max()), int(tokens.min())):
        if not 0 <= token < vocab_size:
            raise UserError(
                f"the data holds token {token}, but model.vocab_size = {vocab_size}; "
                "give the tokenizer that the data was made with, or another --vocab-size"
            )


def collate_causal(collator: Collator, index: int, samples: Samples) -> MicroBatch:
    """samples: (B, T + 1) int64 of gpt_dataset, or the `text` and `answer_mask` of instruct_dataset."""
    if isinstance(samples, Mapping):  # the loss is of the answers only
        text, mask = collator.tokens(samples["text"]), collator.tensor(samples["answer_mask"])
        return MicroBatch(index, text[:, :-1], text[:, 1:], mask[:, 1:].float())
    packing = collator.packing
    whole = collator.tokens(samples)
    tokens, labels = whole[:, :-1], whole[:, 1:]
    loss_mask = torch.ones(labels.shape, device=labels.device)
    if not packing.any():
        return MicroBatch(index, tokens, labels, loss_mask)
    assert collator.eod is not None, "PackingConfig.check_against refuses a tokenizer without it"
    packed = document_layout(samples[:, :-1], collator.eod)
    if packing.eod_mask_loss:
        loss_mask = tokens.ne(collator.eod).float()
    positions = documents = None
    if packing.reset_position_ids:
        positions = collator.tensor(packed.position_ids)
    if packing.reset_attention_mask:
        ids, starts = collator.tensor(packed.document_ids), collator.tensor(packed.cu_seqlens)
        documents = Documents(ids, starts, packed.max_seqlen)
    return MicroBatch(index, tokens, labels, loss_mask, positions, documents)


def collate_bert(collator: Collator, index: int, samples: Samples) -> MicroBatch:
    """samples: of bert_dataset's datasets."""
    assert isinstance(samples, Mapping), "these datasets give a mapping"
    return MicroBatch(
        index,
        collator.tokens(samples["text"]),
        _labels(collator, samples),
        collator.tensor(samples["loss_mask"]).float(),
        token_types=collator.tensor(samples["types"]),
        padding_mask=collator.tensor(samples["padding_mask"]).bool(),
        swapped=collator.tensor(samples["is_random"]),
    )


def collate_t5(collator: Collator, index: int, samples: Samples) -> MicroBatch:
    """samples: of t5_dataset's datasets."""
    assert isinstance(samples, Mapping), "these datasets give a mapping"
    return MicroBatch(
        index,
        collator.tokens(samples["text_dec"]),
        _labels(collator, samples),
        collator.tensor(samples["loss_mask"]).float(),
        padding_mask=collator.tensor(samples["enc_mask"]).bool(),
        encoder_tokens=collator.tokens(samples["text_enc"]),
    )


def collate_pairs(collator: Collator, index: int, samples: Samples) -> MicroBatch:
    """samples: queries and their blocks, of ict_dataset."""
    assert isinstance(samples, Mapping), "these datasets give a mapping"
    queries = collator.tokens(samples["query_tokens"])
    return MicroBatch(
        index,
        queries,
        None,
        torch.ones(len(queries), device=queries.device),
        padding_mask=collator.tensor(samples["query_pad_mask"]).bool(),
        encoder_tokens=collator.tokens(samples["context_tokens"]),
        encoder_padding_mask=collator.tensor(samples["context_pad_mask"]).bool(),
    )


def _labels(collator: Collator, samples: Mapping[str, np.ndarray]) -> Tensor:
    return collator.tensor(samples["labels"]).clamp(min=0)  # they are -1 where the loss mask is 0


def empty_causal(
    config: ResolvedModelConfig, size: int, seq_length: int, decoder_seq_length: int
) -> MicroBatch:
    """A micro-batch of `size` samples with the shapes and dtypes of collate_causal, without values."""
    tokens, labels = _empty_tokens(size, seq_length, count=2)
    micro = MicroBatch(0, tokens, labels, torch.empty(size, seq_length))
    if not config.retro_add_retriever:
        return micro
    m, k = config.retro_chunk_length, config.retro_num_neighbors
    neighbors = torch.empty(size, seq_length // m, k, 2 * m, dtype=torch.int64)
    return dataclasses.replace(micro, neighbors=neighbors, neighbor_mask=neighbors > 0)


def empty_bert(
    config: ResolvedModelConfig, size: int, seq_length: int, decoder_seq_length: int
) -> MicroBatch:
    """A micro-batch with the shapes and dtypes of collate_bert."""
    tokens, labels = _empty_tokens(size, seq_length, count=2)
    return MicroBatch(
        0,
        tokens,
        labels,
        torch.empty(size, seq_length),
        token_types=tokens,
        padding_mask=torch.empty(size, seq_length, dtype=torch.bool),
        swapped=torch.empty(size, dtype=torch.int64),
    )


def empty_t5(config: ResolvedModelConfig, size: int, seq_length: int, decoder_seq_length: int) -> MicroBatch:
    """A micro-batch with the shapes and dtypes of collate_t5."""
    tokens, labels = _empty_tokens(size, decoder_seq_length, count=2)
    return MicroBatch(
        0,
        tokens,
        labels,
        torch.empty(size, decoder_seq_length),
        padding_mask=torch.empty(size, seq_length, dtype=torch.bool),
        encoder_tokens=torch.empty(size, seq_length, dtype=torch.int64),
    )


def empty_pairs(
    config: ResolvedModelConfig, size: int, seq_length: int, decoder_seq_length: int
) -> MicroBatch:
    """A micro-batch with the shapes and dtypes of collate_pairs."""
    queries, blocks = _empty_tokens(size, seq_length, count=2)
    present = torch.empty(size, seq_length, dtype=torch.bool)
    return MicroBatch(
        0,
        queries,
        None,
        torch.empty(size),
        padding_mask=present,
        encoder_tokens=blocks,
        encoder_padding_mask=present,
    )


def _empty_tokens(size: int, length: int, *, count: int) -> Tensor:
    """(count, size, length) int64."""
    return torch.empty(count, size, length, dtype=torch.int64)
