"""Retro (Borgeaud et al. 2022): a GPT with layers that attend to retrieved neighbours of chunks.

Tokens are cut into chunks of m. Each chunk has k neighbours of r = 2 m tokens: a chunk of a database and the
one after it there. Chunked cross-attention lets the last token of chunk i and the m - 1 tokens after it read
the neighbours of chunk i, so that no token reads what was retrieved for a later one. For m = 4:

    token                       0 1 2 3 4 5 6 7 8 9
    of chunk                    0 0 0 0 1 1 1 1 2 2
    reads neighbours of chunk   - - - 0 0 0 0 1 1 1

Every third layer has it (config.retro_layers), between attention and the feed-forward layer. The first of
these owns the encoder of neighbours, which is bidirectional; its first layer attends to that layer's hidden
states of the chunk that a neighbour was retrieved for. Neighbours share the embeddings of tokens and
positions with the GPT; rotary positions are used only in the encoder's self-attention. Where the chunk length
does not divide the sequence, the first chunk is short, as in Megatron-LM: its last token then reads its
neighbours.

Megatron-LM fills a missing neighbour with other tokens and a short chunk with zeros; here both are masked.
Chunked cross-attention has no bias after it: a token without neighbours gets exactly zero, so that without
neighbours the model is the GPT that it contains.

Legend: B batch, T sequence, D hidden, H heads, G key-value groups, C channels; n chunks, m their tokens, k
neighbours of each, r tokens of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .attention import AttentionMask, Cache, Documents, LayerCache
from .block import Block
from .chunked_cross_attention import (
    ChunkedCrossAttention,
    NeighborEncoder,
    Retrieved,
    attend_where_present,
)
from .config import ResolvedModelConfig, retro_layers
from .gpt import GPT
from .inputs import MicroBatch
from .stage import PipelineStage, StageRules, end_modules, states_shape
from .warm_start import WarmStart

# Token ids (n, m) int64 of full chunks -> those of their neighbours (n, k, r) int64, and their padding mask,
# bool.
Retrieve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Retro(GPT):
    """A GPT that reads neighbours, given with the tokens or found by `retrieve` for each full chunk.

    gate: factor of the output of chunked cross-attention; 0 turns retrieval off. Without neighbours and
    without `retrieve` the model is a plain GPT as well. The chunks that `retrieve` gets begin at multiples of
    m, so that they do not move as a text grows.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__(config)
        self.gate = 1.0
        self.retrieve: Retrieve | None = None

    def forward(  # type: ignore[override]  # it is given neighbours, not `retrieved`, which it computes from them
        self,
        tokens: Tensor,
        *,
        neighbors: Tensor | None = None,
        neighbor_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Documents | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T), as GPT.forward.

        neighbors: (B, ceil(T / m), k, r) int64, of each chunk; the first chunk is short where m does not
        divide T. neighbor_mask: bool of that shape, false for padding and for all tokens of a missing
        neighbour. cache: of `new_cache`; the neighbours of chunks that become full are then looked up.
        """
        retrieved: Retrieved | None = None
        if self.gate and neighbors is not None:
            assert cache is None, "with a cache neighbours are looked up, not given"
            assert neighbor_mask is not None, "neighbors come with neighbor_mask"
            embedded = self._embed(neighbors.flatten(0, 1), neighbor_mask.flatten(0, 1))
            retrieved = Retrieved(
                *embedded,
                gate=self.gate,
                chunks=neighbors.shape[1],
                first=self.first_chunk(tokens, neighbors),
            )
        elif self.gate and isinstance(cache, RetroCache):
            if positions is None:
                positions = torch.arange(
                    cache.length, cache.length + tokens.shape[1], device=tokens.device
                ).expand(tokens.shape)
            retrieved = self._retrieve_growing(tokens, positions, cache, lengths)
        elif (
            self.gate
            and cache is None
            and self.retrieve is not None
            and (full := tokens.shape[1] // self.config.retro_chunk_length)
        ):
            m = self.config.retro_chunk_length
            found = self._look_up(tokens[:, : full * m].unflatten(1, (full, m)).flatten(0, 1))
            retrieved = Retrieved(*self._embed(*found), gate=self.gate, chunks=full, first=m)
        return GPT.forward(
            self,
            tokens,
            positions=positions,
            documents=documents,
            cache=cache,
            lengths=lengths,
            retrieved=retrieved,
            at=at,
        )

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        inputs, shared = super().block_inputs(block, length, seq_length, ranks, dtype)
        m, k, D = self.config.retro_chunk_length, self.config.retro_num_neighbors, self.config.hidden_size
        chunks = -(-length // m)
        states = torch.empty(chunks * k, 2 * m, D, dtype=dtype, requires_grad=True)
        present = torch.ones(chunks, k, 2 * m, dtype=torch.bool)
        rotary, first = self._rotary(torch.arange(2 * m)[None]), (length - 1) % m + 1
        retrieved = Retrieved(states, present, rotary, gate=1.0, chunks=chunks, first=first)
        # All layers read encoded neighbours; the first of them encodes them itself.
        retrieved.encoded = torch.empty(chunks, k * 2 * m, D, dtype=dtype, requires_grad=True)
        return {**inputs, "retrieved": retrieved}, shared

    def first_chunk(self, tokens: Tensor, neighbors: Tensor) -> int:
        """Tokens of the first chunk, short where m does not divide T. neighbors: as in `forward`."""
        assert neighbors.shape[1] == -(-tokens.shape[1] // self.config.retro_chunk_length), (
            "as many chunks must have neighbours as there are"
        )
        return (tokens.shape[1] - 1) % self.config.retro_chunk_length + 1

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        *,
        neighbors: Tensor | None = None,
        neighbor_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Summed negative log-likelihood in nats, as GPT.loss.

        neighbors, neighbor_mask: as in `forward`; without them the loss is that of the plain GPT.
        """
        hidden = self.forward(
            tokens, neighbors=neighbors, neighbor_mask=neighbor_mask, positions=positions, documents=documents
        )
        return self._loss_of(hidden, labels, loss_mask)

    def new_cache(self, batch: int, max_length: int) -> Cache:
        cache = super().new_cache(batch, max_length)
        if not self.gate or self.retrieve is None:
            return cache
        for layer, own in zip(self.layers, cache.layers):
            if isinstance(layer.cross, ChunkedCrossAttention):
                own.memory = layer.cross.new_memory(
                    batch, self.config.retro_num_neighbors * 2 * self.config.retro_chunk_length
                )
        return RetroCache(
            cache,
            self.config,
            self.embedding.weight.new_zeros(batch, self.config.retro_chunk_length, self.config.hidden_size),
        )

    def freeze(self) -> None:
        """Freezes all weights but those of chunked cross-attention and of the encoder of neighbours."""
        for name, weight in self.named_parameters():
            weight.requires_grad_(is_retrieval(name))

    def _look_up(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """The neighbours (n, k, r) of chunks (n, m), and their padding mask."""
        assert self.retrieve is not None, "callers check that there is an index to look up in"
        tokens, mask = self.retrieve(chunks.cpu().numpy())
        return torch.from_numpy(tokens).to(chunks.device), torch.from_numpy(mask).to(chunks.device)

    def _embed(self, neighbors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """(embedded states (n k, r, D), mask (n, k, r), cosines and sines) of neighbors (n, k, r)."""
        positions = torch.arange(neighbors.shape[-1], device=neighbors.device)[None]
        x = self.embedding(neighbors.flatten(0, 1))
        if self.positions is not None:
            x = x + self.positions(positions)
        return x, mask, self._rotary(positions)

    def _retrieve_growing(
        self, tokens: Tensor, positions: Tensor, cache: RetroCache, lengths: Tensor | None
    ) -> Growing:
        """Adds tokens (B, T) to the cache and looks up the chunks that they fill."""
        growing = Growing(cache, tokens, positions, lengths, gate=self.gate)
        full = growing.keep(cache.tokens, tokens)
        if len(full):
            growing.come(*self._embed(*self._look_up(full)))
        return growing


def is_retrieval(name: str) -> bool:
    """Whether the weight of this name belongs to Retro alone, not to the GPT that it contains."""
    return ".cross" in name


FROM_GPT = WarmStart(
    "a GPT without retrieval, which Retro can begin with",
    parts=lambda model: {"": model},
    allow_missing=is_retrieval,
    settings="retro_",
)


class RetroCache(Cache):
    """A GPT's cache, and for each row its unfinished last chunk and the neighbours of the chunk before it.

    A layer with chunked cross-attention keeps the keys and values of these neighbours in its
    LayerCache.memory.
    """

    def __init__(self, cache: Cache, config: ResolvedModelConfig, states: Tensor):
        super().__init__(cache.layers, cache.max_length, cache.window)
        batch, m = states.shape[:2]
        # (B, m, D), of the first layer with chunked cross-attention; a token's slot is its index in its chunk
        self.states = states
        self.tokens = torch.zeros(batch, m, dtype=torch.int64, device=states.device)
        self.present = torch.zeros(
            batch, config.retro_num_neighbors * 2 * m, dtype=torch.bool, device=states.device
        )


class Growing(Retrieved):
    """Retrieved for tokens that are added to a cache, where each row is at another index of its chunk.

    Row b has a window of w chunks, from the chunk of its first new token to the furthest chunk of any row.
    finished (B, w) tells which of them are now full; rows, which: the indices of these n. A layer reads from
    a bank of w + 1 entries a row: the neighbours in the cache, then those of the window's chunks.
    """

    def __init__(
        self, cache: RetroCache, tokens: Tensor, positions: Tensor, lengths: Tensor | None, *, gate: float
    ):
        B, T = tokens.shape
        m = cache.tokens.shape[1]
        self.cache, self.gate, self.chunk_length = cache, gate, m
        self.offset = positions[:, 0] % m  # of the first new token in its chunk
        ends = self.offset + (T if lengths is None else lengths.to(tokens.device))
        w = -(-(int(self.offset.max()) + T) // m)
        self.finished = ends[:, None] >= m * torch.arange(1, w + 1, device=tokens.device)
        self.rows, self.which = self.finished.nonzero(as_tuple=True)
        self.last = (ends // m).clamp(max=w - 1)  # the window's unfinished chunk
        self.row = torch.arange(B, device=tokens.device)
        self.newest = self.finished.sum(1)  # the bank's entry that the last new token reads
        old = cache.present & (
            positions[:, :1] >= m
        )  # in its first chunk a row may still have another text's
        # (B, w + 1, k r) bool
        self.bank = torch.cat([old[:, None], old.new_zeros(B, w, old.shape[1])], dim=1)
        cache.present.copy_(self.bank[self.row, self.newest])
        self.encoded = None

    def keep(self, kept: Tensor, new: Tensor) -> Tensor:
        """The chunks that are now full, (n, m, ...), of kept (B, m, ...) followed by new (B, T, ...).

        Leaves the unfinished chunk in kept.
        """
        m, w = self.chunk_length, self.finished.shape[1]
        slots, offset = torch.arange(w * m, device=new.device), self.offset[:, None]
        place = torch.where(slots < offset, slots, m + slots - offset).clamp(max=m + new.shape[1] - 1)
        window = torch.cat([kept.to(new.dtype), new], dim=1)[self.row[:, None], place].unflatten(1, (w, m))
        kept.copy_(window[self.row, self.last])
        return window[self.rows, self.which]

    def come(self, states: Tensor, present: Tensor, rotary: tuple[Tensor, Tensor] | None) -> None:
        """Takes the neighbours of the chunks that are now full."""
        self.states, self.present, self.rotary = states, present, rotary
        self.bank[self.rows, self.which + 1] = present.flatten(1)
        self.cache.present.copy_(self.bank[self.row, self.newest])

    def encode(self, encoder: NeighborEncoder, x: Tensor) -> None:
        chunks = self.keep(self.cache.states, x)
        if len(chunks):
            assert self.states is not None, "neighbours of full chunks were embedded before"
            self.encoded = encoder(self.states, self.present, self.rotary, chunks, AttentionMask())

    def read(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        cache: LayerCache | None,
        attention: Callable[..., Tensor],
    ) -> Tensor:
        assert cache is not None, "new_cache gives these layers a memory"
        assert cache.memory is not None, "new_cache gives these layers a memory"
        new: Tensor | None
        B, T, width = query.shape
        m, w, channels = self.chunk_length, self.finished.shape[1], cache.memory[0].shape[-1]
        if T == 1:  # the token reads the neighbours that are now in the cache
            if key is not None and value is not None:
                for kept, new in zip(cache.memory, (key, value)):
                    kept[self.rows] = new.to(kept.dtype)
            keys, values = (kept.to(query.dtype) for kept in cache.memory)
            return attend_where_present(
                query.view(B, 1, -1, channels).transpose(1, 2), keys, values, self.cache.present, attention
            )
        banks = []
        for kept, new in zip(cache.memory, (key, value)):
            bank = torch.cat([kept[:, None], kept.new_zeros(B, w, *kept.shape[1:])], dim=1)
            if new is not None:
                bank[self.rows, self.which + 1] = new.to(kept.dtype)
            kept.copy_(bank[self.row, self.newest])
            banks.append(bank.flatten(0, 1).to(query.dtype))  # (B (w + 1), G, k r, C)
        keys, values = banks
        # The token in slot j of the window reads entry (j + 1) // m: the last token of a chunk its own
        # neighbours, the tokens before it those of the chunk before.
        slots = self.offset[:, None] + torch.arange(1, T + 1, device=query.device)
        groups = query.new_zeros(B, (w + 1) * m, width)
        groups[self.row[:, None], slots] = query
        grouped = groups.view(B * (w + 1), m, -1, channels).transpose(1, 2)
        y = attend_where_present(grouped, keys, values, self.bank.flatten(0, 1), attention)
        return y.view(B, (w + 1) * m, width)[self.row[:, None], slots]


class RetroStage(PipelineStage):
    """A stage of a Retro model. Encoded neighbours travel from their encoder's stage to the last reader."""

    config: ResolvedModelConfig
    layers: Sequence[nn.Module]
    first_chunk: Callable[[Tensor, Tensor], int]
    _embed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]]

    def forward(
        self, tokens: Tensor, *, neighbors: Tensor, neighbor_mask: Tensor, **how
    ) -> Tensor | tuple[Tensor, Tensor]:
        encoding = retro_layers(len(self.layers))[0]
        retrieved = None
        if self.begin <= encoding < self.end:
            retrieved = Retrieved(
                *self._embed(neighbors.flatten(0, 1), neighbor_mask.flatten(0, 1)),
                gate=1.0,
                chunks=neighbors.shape[1],
                first=self.first_chunk(tokens, neighbors),
            )
        elif _reads_neighbors_after(self.config, self.begin):
            retrieved = Retrieved(
                None,
                neighbor_mask.flatten(0, 1),
                None,
                gate=1.0,
                chunks=neighbors.shape[1],
                first=self.first_chunk(tokens, neighbors),
            )
            retrieved.encoded = self.received.pop()
        x = GPT.forward(cast(GPT, self), tokens, retrieved=retrieved, **how)
        if self.is_last or not _reads_neighbors_after(self.config, self.end):
            return x
        assert retrieved is not None, "a stage before this one encoded them"
        assert retrieved.encoded is not None, "a stage before this one encoded them"
        return x, retrieved.encoded.clone()


def _reads_neighbors_after(config: ResolvedModelConfig, begin: int) -> bool:
    """Whether a layer from `begin` on reads neighbours that a layer before `begin` has encoded."""
    reading = retro_layers(config.num_layers) if config.retro_add_retriever else range(0)
    return bool(reading) and reading[0] < begin <= reading[-1]


def causal_stage_modules(config: ResolvedModelConfig, begin: int, end: int, total: int) -> set[str]:
    """See stage.StageRules."""
    names = end_modules(config, begin, end, total)
    if config.retro_add_retriever and begin <= retro_layers(total)[0] < end:  # it embeds neighbours
        names |= {"embedding", "positions"}
    return names


def causal_stage_shapes(
    config: ResolvedModelConfig, begin: int, micro: MicroBatch, cut: int
) -> list[torch.Size]:
    """See stage.StageRules."""
    shapes = states_shape(config, begin, micro, cut)
    if _reads_neighbors_after(config, begin):
        assert micro.neighbors is not None, "Retro's micro-batches have neighbours"
        chunks, k, r = micro.neighbors.shape[1:]
        shapes.append(torch.Size((len(micro.tokens) * chunks, k * r, config.hidden_size)))
    return shapes


def _causal_stage(config: ResolvedModelConfig) -> type[PipelineStage]:
    return RetroStage if config.retro_add_retriever else PipelineStage


CAUSAL_STAGES = StageRules(_causal_stage, causal_stage_modules, causal_stage_shapes)
