"""Context parallelism: sequences divided over ranks, and attention over whole sequences.

A sequence of T tokens is divided into 2n chunks for n ranks, and rank r takes the chunks r and 2n - 1 - r.
Under a causal mask each such pair has the same number of keys to attend to, so all ranks have the same work.
Keys and values are gathered from all ranks (`collectives.gather_from`). Queries stay on their rank; each of
its two chunks is computed with the keys up to the chunk's end. For 2 ranks and 8 tokens:

    rank 0: tokens 0 1 6 7        rank 1: tokens 2 3 4 5        order of the gathered keys: 0 1 6 7 2 3 4 5

The groups of heads of a Mamba layer are independent: an all-to-all gives each rank all tokens of some groups
in place of some tokens of all groups, and another one reverses it (`exchange_groups`). The capacity of an
expert is counted over the tokens of all ranks (`within_capacity`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import torch
from torch import Tensor

from ..model import attention, moe
from ..model.attention import AttentionMask, Documents
from ..model.config import ResolvedModelConfig
from ..model.inputs import MicroBatch
from ..model.mamba import Exchange
from ..model.multi_token_prediction import next_tokens as next_of_sequence
from ..model.positions import Alibi
from .collectives import all_to_all, gather_from, local_part
from .mesh import Axis


def token_indices(rank: int, size: int, length: int, device: torch.device | None = None) -> Tensor:
    """(length / size,) int64: which tokens of a sequence a rank has, in the order in which it has them."""
    chunk = length // (2 * size)
    return torch.cat(
        [
            torch.arange(start * chunk, (start + 1) * chunk, device=device)
            for start in (rank, 2 * size - 1 - rank)
        ]
    )


def _gathered_order(size: int, length: int, device: torch.device) -> Tensor:
    """(length,) int64: the tokens of a sequence in the order of an all-gather over the ranks."""
    return torch.cat([token_indices(rank, size, length, device) for rank in range(size)])


def split_sequences(micro: MicroBatch, axis: Axis) -> MicroBatch:
    """This rank's tokens of a micro-batch, with their positions.

    `documents` stays that of the whole sequence: a query needs the documents of all keys.
    """
    if axis.size == 1:
        return micro
    T = micro.tokens.shape[1]
    here = token_indices(axis.rank, axis.size, T, micro.tokens.device)
    positions = here[None] if micro.positions is None else micro.positions[:, here]
    assert micro.labels is not None, (
        "only causal decoders are divided along the sequence, and these have labels"
    )
    return dataclasses.replace(
        micro,
        tokens=micro.tokens[:, here],
        labels=micro.labels[:, here],
        loss_mask=micro.loss_mask[:, here],
        positions=positions,
    )


def causal_mask(
    config: ResolvedModelConfig,
    tokens: Tensor,
    dtype: torch.dtype,
    documents: Documents | None = None,
    *,
    axis: Axis,
    windowed: bool = True,
    alibi: Alibi | None = None,
) -> AttentionMask:
    """attention.causal_mask for `attend`: (B or 1, 1 or H, T / ranks, T), keys in the order of the sequence.

    tokens: (B, T / ranks), this rank's.
    """
    T = tokens.shape[1] * axis.size
    own = token_indices(axis.rank, axis.size, T, tokens.device)
    queries = own[:, None]
    keys = torch.arange(T, device=tokens.device)
    mask = keys <= queries
    if windowed and config.window_size is not None and config.window_size < T:
        mask &= keys > queries - config.window_size
    mask = mask[None]
    if documents is not None:
        mask = mask & (documents.ids[:, queries] == documents.ids[:, None, :])
    mask = mask[:, None]
    return AttentionMask(tensor=mask if alibi is None else alibi.bias(own, keys, mask, dtype))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    scale: float | None,
    dropout: float,
    softcap: float | None = None,
    axis: Axis,
) -> Tensor:
    """attention.attend for query, key and value (B, heads, T / ranks, C) of this rank's tokens.

    mask: of `causal_mask`.
    """
    assert mask.tensor is not None, "causal_mask makes one"
    T = key.shape[2] * axis.size
    chunk = T // (2 * axis.size)
    order = _gathered_order(axis.size, T, key.device).argsort()
    key, value = (gather_from(x, axis, 2).index_select(2, order) for x in (key, value))
    parts = []
    for i, place in enumerate((axis.rank, 2 * axis.size - 1 - axis.rank)):
        queries, keys = slice(i * chunk, (i + 1) * chunk), slice((place + 1) * chunk)
        chunk_mask = AttentionMask(tensor=mask.tensor[:, :, queries, keys])
        parts.append(
            attention.attend(
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                chunk_mask,
                scale=scale,
                dropout=dropout,
                softcap=softcap,
            )
        )
    return torch.cat(parts, dim=1)


def next_tokens(x: Tensor, documents: Documents | None = None, *, axis: Axis) -> Tensor:
    """multi_token_prediction.next_tokens of this rank's tokens x (B, T / ranks)."""
    T = x.shape[1] * axis.size
    whole = gather_from(x, axis, 1, "split").index_select(
        1, _gathered_order(axis.size, T, x.device).argsort()
    )
    return next_of_sequence(whole, documents)[:, token_indices(axis.rank, axis.size, T, x.device)]


def exchange_groups(axis: Axis) -> Exchange:
    """Between tokens divided over ranks and groups of heads divided over ranks, for Mamba layers."""
    equal_splits = [1] * axis.size

    def to_groups(x: Tensor) -> Tensor:
        """(B, T / ranks, G, ...) -> (B, T, G / ranks, ...)"""
        received = all_to_all(x.unflatten(2, (axis.size, -1)).movedim(2, 0), equal_splits, equal_splits, axis)
        x = received.movedim(0, 1).flatten(1, 2)
        return x.index_select(1, _gathered_order(axis.size, x.shape[1], x.device).argsort())

    def to_tokens(x: Tensor) -> Tensor:
        """(B, T, G / ranks, ...) -> (B, T / ranks, G, ...)"""
        x = x.index_select(1, _gathered_order(axis.size, x.shape[1], x.device)).unflatten(1, (axis.size, -1))
        return all_to_all(x.movedim(1, 0), equal_splits, equal_splits, axis).movedim(0, 2).flatten(2, 3)

    return Exchange(to_groups, to_tokens, functools.partial(local_part, axis=axis, dim=0))


def within_capacity(
    experts: Tensor,
    weights: Tensor,
    num_experts: int,
    factor: float,
    policy: Literal["probs", "position"],
    *,
    axis: Axis,
) -> Tensor:
    """moe.within_capacity over the tokens of all ranks, for experts and weights (B, T / ranks, K) of this
    one.
    """
    T = experts.shape[1] * axis.size
    order = _gathered_order(axis.size, T, experts.device).argsort()
    all_experts, all_weights = (
        gather_from(tensor, axis, 1, "split").index_select(1, order) for tensor in (experts, weights.detach())
    )
    within = moe.within_capacity(all_experts, all_weights, num_experts, factor, policy)
    return within[:, token_indices(axis.rank, axis.size, T, experts.device)]
