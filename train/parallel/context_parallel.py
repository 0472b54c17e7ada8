"""Context parallelism: a sequence cut over ranks so that each has the same work, and attention over all of
it.

A sequence of T tokens is cut into twice as many chunks as there are ranks, and rank r of n takes chunks r and
2 n - 1 - r: under a causal mask an early chunk and a late one see as many keys together as any other such
pair does. Keys and values are gathered from all ranks (`collectives.gather_from`, whose gradient gives each rank its own
back, summed); queries stay where they are, and each of the two chunks is computed with the keys up to its own
end. For 2 ranks and 8 tokens:

    rank 0: tokens 0 1 6 7        rank 1: tokens 2 3 4 5        keys as they are gathered: 0 1 6 7 2 3 4 5

A Mamba layer's groups of heads know nothing of each other: ranks exchange their tokens of all groups for all
tokens of their groups, and back (`exchange_groups`). The capacity of an expert counts all ranks' choices
(`within_capacity`).
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from ..model import attention, moe
from ..model.attention import AttentionMask, Documents
from ..model.config import ResolvedModelConfig
from ..model.inputs import MicroBatch
from ..model.mamba import Exchange
from .collectives import all_to_all, gather_from, local_part
from .mesh import Axis


def places(rank: int, size: int, length: int, device: torch.device | None = None) -> Tensor:
    """(length / size,) int64: the tokens of a sequence that a rank has, in their order there."""
    chunk = length // (2 * size)
    return torch.cat(
        [
            torch.arange(start * chunk, (start + 1) * chunk, device=device)
            for start in (rank, 2 * size - 1 - rank)
        ]
    )


def _gathered(size: int, length: int, device: torch.device) -> Tensor:
    """(length,) int64: the tokens of a sequence in the order in which all ranks' are gathered."""
    return torch.cat([places(rank, size, length, device) for rank in range(size)])


def cut(micro: MicroBatch, axis: Axis) -> MicroBatch:
    """This rank's tokens of a micro-batch, with their positions; `documents` stay whole, because keys come
    from everywhere.
    """
    if axis.size == 1:
        return micro
    T = micro.tokens.shape[1]
    here = places(axis.rank, axis.size, T, micro.tokens.device)
    positions = here[None] if micro.positions is None else micro.positions[:, here]
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
) -> AttentionMask:
    """attention.causal_mask for `attend`: queries cut as above, keys in the order of the sequence.

    tokens: (B, T / ranks).
    """
    T = tokens.shape[1] * axis.size
    queries, keys = (
        places(axis.rank, axis.size, T, tokens.device)[:, None],
        torch.arange(T, device=tokens.device),
    )
    mask = keys <= queries
    if config.window_size is not None and config.window_size < T:
        mask &= keys > queries - config.window_size
    mask = mask[None]
    if documents is not None:
        mask = mask & (documents.ids[:, queries] == documents.ids[:, None, :])
    return AttentionMask(tensor=mask[:, None])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    scale: float | None,
    dropout: float,
    axis: Axis,
) -> Tensor:
    """attention.attend for query, key and value (B, heads, T / ranks, C) of this rank's tokens.

    mask: of `causal_mask`.
    """
    T = key.shape[2] * axis.size
    chunk = T // (2 * axis.size)
    order = _gathered(axis.size, T, key.device).argsort()
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
            )
        )
    return torch.cat(parts, dim=1)


def exchange_groups(axis: Axis) -> Exchange:
    """For a Mamba layer between ranks that have parts of a sequence."""
    one_each = [1] * axis.size

    def to_groups(x: Tensor) -> Tensor:
        """(B, T / ranks, G, ...) -> (B, T, G / ranks, ...)"""
        received = all_to_all(x.unflatten(2, (axis.size, -1)).movedim(2, 0), one_each, one_each, axis)
        x = received.movedim(0, 1).flatten(1, 2)
        return x.index_select(1, _gathered(axis.size, x.shape[1], x.device).argsort())

    def to_tokens(x: Tensor) -> Tensor:
        """(B, T, G / ranks, ...) -> (B, T / ranks, G, ...)"""
        x = x.index_select(1, _gathered(axis.size, x.shape[1], x.device)).unflatten(1, (axis.size, -1))
        return all_to_all(x.movedim(1, 0), one_each, one_each, axis).movedim(0, 2).flatten(2, 3)

    return Exchange(to_groups, to_tokens, functools.partial(local_part, axis=axis, dim=0))


def within_capacity(experts: Tensor, weights: Tensor, *how, axis: Axis) -> Tensor:
    """moe.within_capacity for experts and weights (B, T / ranks, K) of this rank's tokens; the experts take
    from those of all ranks.
    """
    T = experts.shape[1] * axis.size
    order = _gathered(axis.size, T, experts.device).argsort()
    everyones = (gather_from(t, axis, 1, "split").index_select(1, order) for t in (experts, weights.detach()))
    return moe.within_capacity(*everyones, *how)[:, places(axis.rank, axis.size, T, experts.device)]
