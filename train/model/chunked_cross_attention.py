"""Retro's chunked cross-attention: the neighbours of a chunk, their encoder, and the layer that reads them.

Borgeaud et al. 2022, section 2.4. retro.py puts these layers into a GPT. Legend: B batch, T sequence, D
hidden, H heads, G key-value groups, C channels of a head, m tokens of a chunk, k neighbours of a chunk, r
tokens of a neighbour (2 m).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, AttentionMask, CrossAttention, LayerCache, attend, bidirectional_mask
from .block import Block, FeedForward
from .config import ResolvedModelConfig
from .layers import Linear, Norm


class Retrieved:
    """The retrieved neighbours of a batch, which the layers encode and read.

    states: (n k, r, D), embedded neighbours; None in a pipeline stage after their encoder. present: (n, k, r)
    bool, false for padding. gate: factor of what the layers read. chunks: of each sample; n = B x chunks.
    first: tokens of the first chunk.
    """

    def __init__(
        self,
        states: Tensor | None,
        present: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        *,
        gate: float,
        chunks: int,
        first: int,
    ):
        self.states, self.present, self.rotary = states, present, rotary
        self.gate, self.chunks, self.first = gate, chunks, first
        # (n, k r, D): computed by the first layer with chunked cross-attention, read by it and those after it
        self.encoded: Tensor | None = None

    def encode(self, encoder: NeighborEncoder, x: Tensor) -> None:
        """Computes `encoded`. x: (B, T, D), hidden states of the first layer that reads neighbours."""
        assert self.states is not None, "only the stage of the encoder encodes neighbours"
        m = self.present.shape[-1] // 2
        absent = m - self.first
        # (n, m, D)
        memory = (
            F.pad(x[:, : self.first + (self.chunks - 1) * m], (0, 0, absent, 0))
            .unflatten(1, (self.chunks, m))
            .flatten(0, 1)
        )
        mask = AttentionMask()
        if absent:
            there = torch.arange(self.chunks * m, device=x.device).view(self.chunks, m) >= absent
            mask = bidirectional_mask(there.repeat(len(x), 1))
        self.encoded = encoder(self.states, self.present, self.rotary, memory, mask)

    def read(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        cache: LayerCache | None,
        attention: Callable[..., Tensor],
    ) -> Tensor:
        """The attention of each token to its neighbours, (B, T, H C). query: (B, T, H C).

        key, value: (n, G, k r, C), of `encoded`. cache: used by retro.Growing.
        """
        assert key is not None, "neighbours are encoded before they are read"
        assert value is not None, "neighbours are encoded before they are read"
        B, T, width = query.shape
        m, channels, skipped = self.present.shape[-1] // 2, key.shape[-1], self.first - 1
        groups = F.pad(query[:, skipped:], (0, 0, 0, self.chunks * m - (T - skipped)))
        y = attend_where_present(
            groups.reshape(B * self.chunks, m, -1, channels).transpose(1, 2),
            key,
            value,
            self.present.flatten(1),
            attention,
        )
        return F.pad(y.view(B, -1, width)[:, : T - skipped], (0, 0, skipped, 0))


def attend_where_present(
    query: Tensor, key: Tensor, value: Tensor, present: Tensor, attention: Callable[..., Tensor]
) -> Tensor:
    """(n, T, H C); zeros where no key is present. query: (n, H, T, C). key, value: (n, G, keys, C).

    present: (n, keys) bool.
    """
    any_present = present.any(1, keepdim=True)
    # A softmax over no keys is NaN: attend to all of them, then multiply by zero.
    y = attention(query, key, value, bidirectional_mask(present | ~any_present))
    return y * any_present[..., None].to(y.dtype)


class ChunkedCrossAttention(CrossAttention):
    """x (B, T, D) -> (B, T, D): attention of each token to the neighbours that it may read (section 2.4).

    encodes: whether this is the first such layer of the model, which owns the encoder of neighbours.
    """

    def __init__(self, config: ResolvedModelConfig, *, encodes: bool):
        super().__init__(config)
        self.out = Linear(
            config.num_attention_heads * config.kv_channels,
            config.hidden_size,
            bias=False,
            std=config.residual_std,
            split="row",
        )
        self.encoder = NeighborEncoder(config) if encodes else None

    def forward(  # type: ignore[override]  # its context differs: neighbours, not another sequence
        self, x: Tensor, *, retrieved: Retrieved, cache: LayerCache | None = None, **_
    ) -> Tensor:
        if self.encoder is not None:
            retrieved.encode(self.encoder, x)
        key, value = (None, None) if retrieved.encoded is None else self.keys_and_values(retrieved.encoded)
        attention = functools.partial(
            attend, scale=self.scale, dropout=self.dropout if self.training else 0.0
        )
        y = self.out(retrieved.read(self.query(x), key, value, cache, attention))
        return y if retrieved.gate == 1 else y * retrieved.gate


class NeighborEncoder(nn.Module):
    """The encoder of neighbours: each attends to itself and to the chunk that it was retrieved for."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        own = dataclasses.replace(
            config,
            hidden_dropout=config.retro_encoder_hidden_dropout,
            attention_dropout=config.retro_encoder_attention_dropout,
        )
        self.dropout = own.hidden_dropout
        crosses = [NeighborAttention(own) if i == 0 else None for i in range(config.retro_encoder_layers)]
        self.layers = nn.ModuleList(
            Block(own, mixer=Attention(own), cross=cross, ffn=FeedForward(own)) for cross in crosses
        )
        self.norm = Norm(config)

    def forward(
        self,
        states: Tensor,
        present: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        memory: Tensor,
        memory_mask: AttentionMask,
    ) -> Tensor:
        """(n, k r, D), after its norm. states: (n k, r, D). present: (n, k, r) bool.

        memory, memory_mask: the hidden states of the chunks (n, m, D), and their attention mask.
        """
        here = present.flatten(0, 1)
        mask = bidirectional_mask(here | ~here.any(1, keepdim=True))
        x = F.dropout(states, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x, mask=mask, rotary=rotary, memory=memory, memory_mask=memory_mask)
        return self.norm(x).reshape(len(present), -1, x.shape[-1])


class NeighborAttention(CrossAttention):
    """x (n k, r, D), memory (n, m, D) -> (n k, r, D): attention of each neighbour to its chunk.

    The keys of a chunk are computed once for all of its k neighbours.
    """

    def forward(
        self, x: Tensor, *, memory: Tensor, memory_mask: AttentionMask, cache: LayerCache | None = None, **_
    ) -> Tensor:
        query = self.query(x)
        # (n, H, k r, C)
        grouped = query.view(len(memory), -1, query.shape[-1] // self.channels, self.channels).transpose(1, 2)
        y = attend(
            grouped,
            *self.keys_and_values(memory),
            memory_mask,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(y.view(query.shape))
