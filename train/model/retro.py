"""Retro (Borgeaud et al.

2022): a GPT some of whose layers also read what was retrieved for each chunk of its tokens.

Tokens are cut into chunks of m. Each chunk has k neighbours of r = 2 m tokens: a chunk of a database and what
follows it there. Chunked cross-attention lets the last token of chunk i and the m - 1 tokens after it read
the neighbours of chunk i, so that no token sees what was retrieved by a later one. For m = 4:

    token                       0 1 2 3 4 5 6 7 8 9
    of chunk                    0 0 0 0 1 1 1 1 2 2
    reads neighbours of chunk   - - - 0 0 0 0 1 1 1

Every third layer has it (config.retro_layers), between attention and the feed-forward layer. The first of
these owns the encoder of the neighbours, which looks both ways and whose first layer reads that layer's
states of the chunk that a neighbour was retrieved for. Neighbours share the embeddings of tokens and
positions; only the encoder's attention to itself rotates. A sequence that chunks do not divide begins with
the short one, as in Megatron-LM: then what was retrieved for all of it is read by its last token.

Where Megatron-LM fills a missing neighbour with other tokens and a short chunk with zeros, both are masked
here. Nor has chunked cross-attention a bias after it: a token that reads nothing gets exactly nothing, and
without neighbours the model is the GPT that it contains.

Legend: B batch, T sequence, D hidden, H heads, G key-value groups, C channels; n chunks, m their tokens, k
neighbours of each, r tokens of one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .attention import AttentionMask, Cache, Documents, LayerCache
from .block import Block
from .chunked_cross_attention import NeighborEncoder, Retrieved, attend_where_present
from .config import ResolvedModelConfig, retro_layers
from .gpt import GPT
from .inputs import MicroBatch
from .stage import PipelineStage, StageRules, end_modules, states_shape
from .warm_start import WarmStart

# ids (n, m) int64 of whole chunks -> their neighbours' (n, k, r) int64, and bool of that shape, false where
# there is no token
Retrieve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Retro(GPT):
    """A GPT that reads neighbours: those it is given, or those that `retrieve` finds for its own chunks,
    whenever one is full.

    gate: what is read is multiplied by it; 0 turns retrieval off. Without neighbours and without `retrieve`
    the model is a plain GPT, too. The chunks that it looks up itself are those at the multiples of m: so they
    do not move as a text grows.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__(config)
        self.gate = 1.0
        self.retrieve: Retrieve | None = None

    def forward(
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

        neighbors: (B, ceil(T / m), k, r) int64, of each chunk, the first one short where m does not divide T.
        neighbor_mask: bool of that shape, false where there is no token; a neighbour that is missing is all
        false. cache: from `new_cache`; neighbours of chunks that become full are then looked up.
        """
        retrieved: Retrieved | None = None
        if self.gate and neighbors is not None:
            assert cache is None, "with a cache neighbours are looked up, not given"
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
        # The first layer that reads neighbours encodes them itself.
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

        neighbors, neighbor_mask: as in `forward`; without, that of the plain GPT.
        """
        hidden = self.forward(
            tokens, neighbors=neighbors, neighbor_mask=neighbor_mask, positions=positions, documents=documents
        )
        return self.cross_entropy(
            hidden.flatten(0, 1), self._head(), labels.flatten(), loss_mask.flatten(), self.config.vocab_size
        )

    def new_cache(self, batch: int, max_length: int) -> Cache:
        cache = super().new_cache(batch, max_length)
        if not self.gate or self.retrieve is None:
            return cache
        for layer, own in zip(self.layers, cache.layers):
            if layer.cross is not None:
                own.memory = layer.cross.new_memory(
                    batch, self.config.retro_num_neighbors * 2 * self.config.retro_chunk_length
                )
        return RetroCache(
            cache,
            self.config,
            self.embedding.weight.new_zeros(batch, self.config.retro_chunk_length, self.config.hidden_size),
        )

    def freeze_gpt(self) -> None:
        """Leaves only what reads neighbours to be trained."""
        for name, weight in self.named_parameters():
            weight.requires_grad_(is_retrieval(name))

    def _look_up(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours (n, k, r) and their mask, of chunks (n, m)."""
        tokens, mask = self.retrieve(chunks.cpu().numpy())
        return torch.from_numpy(tokens).to(chunks.device), torch.from_numpy(mask).to(chunks.device)

    def _embed(self, neighbors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """(states (n k, r, D), mask (n, k, r), cosines and sines) of neighbors (n, k, r)."""
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
    """Whether a weight of a Retro model, by its name, is none of the GPT's that it contains."""
    return ".cross" in name


FROM_GPT = WarmStart(
    "a GPT without retrieval, which Retro can begin with",
    parts=lambda model: {"": model},
    allow_missing=is_retrieval,
    settings="retro_",
)


class RetroCache(Cache):
    """A GPT's cache, and of every row its last chunk, as far as it goes, and what was retrieved for the one
    before it.

    A layer that reads neighbours keeps keys and values of the latter in its LayerCache.memory.
    """

    def __init__(self, cache: Cache, config: ResolvedModelConfig, states: Tensor):
        super().__init__(cache.layers, cache.max_length, cache.window)
        batch, m = states.shape[:2]
        # (B, m, D): in the first layer that reads neighbours; a token's slot is its place in its chunk
        self.states = states
        self.tokens = torch.zeros(batch, m, dtype=torch.int64, device=states.device)
        self.present = torch.zeros(
            batch, config.retro_num_neighbors * 2 * m, dtype=torch.bool, device=states.device
        )


class Growing(Retrieved):
    """The same for tokens that are added to a cache, where each row is somewhere else in a chunk.

    Row b has a window of w chunks: from the one that its first new token lies in to the one that the last of
    any row lies in. `finished` (B, w) says which of them are now full, `rows` and `which` name those n. What
    a layer reads is a bank of w + 1 entries a row: what it had before, and the window's chunks.
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
        self.last = (ends // m).clamp(max=w - 1)  # the window's chunk that goes on
        self.row = torch.arange(B, device=tokens.device)
        self.newest = self.finished.sum(1)  # the bank's entry that is read from the last new token on
        old = cache.present & (positions[:, :1] >= m)  # before, a row may have been another text's
        # (B, w + 1, k r) bool
        self.bank = torch.cat([old[:, None], old.new_zeros(B, w, old.shape[1])], dim=1)
        cache.present.copy_(self.bank[self.row, self.newest])
        self.encoded = None

    def keep(self, kept: Tensor, new: Tensor) -> Tensor:
        """(n, m, ...): the chunks that are now full, of kept (B, m, ...), which then holds the one that goes
        on, and new (B, T, ...).
        """
        m, w = self.chunk_length, self.finished.shape[1]
        slots, offset = torch.arange(w * m, device=new.device), self.offset[:, None]
        place = torch.where(slots < offset, slots, m + slots - offset).clamp(max=m + new.shape[1] - 1)
        window = torch.cat([kept.to(new.dtype), new], dim=1)[self.row[:, None], place].unflatten(1, (w, m))
        kept.copy_(window[self.row, self.last])
        return window[self.rows, self.which]

    def come(self, states: Tensor, present: Tensor, rotary: tuple[Tensor, Tensor] | None) -> None:
        """The neighbours of the chunks that are now full."""
        self.states, self.present, self.rotary = states, present, rotary
        self.bank[self.rows, self.which + 1] = present.flatten(1)
        self.cache.present.copy_(self.bank[self.row, self.newest])

    def encode(self, encoder: NeighborEncoder, x: Tensor) -> None:
        chunks = self.keep(self.cache.states, x)
        if len(chunks):
            self.encoded = encoder(self.states, self.present, self.rotary, chunks, AttentionMask())

    def read(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, cache: LayerCache, attention: Callable
    ) -> Tensor:
        B, T, width = query.shape
        m, w, channels = self.chunk_length, self.finished.shape[1], cache.memory[0].shape[-1]
        if T == 1:  # what it reads is what the cache then holds
            if key is not None:
                for kept, new in zip(cache.memory, (key, value)):
                    kept[self.rows] = new.to(kept.dtype)
            key, value = (kept.to(query.dtype) for kept in cache.memory)
            return attend_where_present(
                query.view(B, 1, -1, channels).transpose(1, 2), key, value, self.cache.present, attention
            )
        banks = []
        for kept, new in zip(cache.memory, (key, value)):
            bank = torch.cat([kept[:, None], kept.new_zeros(B, w, *kept.shape[1:])], dim=1)
            if new is not None:
                bank[self.rows, self.which + 1] = new.to(kept.dtype)
            kept.copy_(bank[self.row, self.newest])
            banks.append(bank.flatten(0, 1).to(query.dtype))  # (B (w + 1), G, k r, C)
        # The token in slot j of the window reads entry (j + 1) // m: the last of a chunk its own, those
        # before it the one before.
        slots = self.offset[:, None] + torch.arange(1, T + 1, device=query.device)
        groups = query.new_zeros(B, (w + 1) * m, width)
        groups[self.row[:, None], slots] = query
        y = attend_where_present(
            groups.view(B * (w + 1), m, -1, channels).transpose(1, 2),
            *banks,
            self.bank.flatten(0, 1),
            attention,
        )
        return y.view(B, (w + 1) * m, width)[self.row[:, None], slots]


class RetroStage(PipelineStage):
    """A stage of a Retro model. From the encoder to the last layer that reads them, the encoded neighbours travel too."""

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
        x = GPT.forward(self, tokens, retrieved=retrieved, **how)
        return (
            (x, retrieved.encoded.clone())
            if not self.is_last and _reads_neighbors_after(self.config, self.end)
            else x
        )


def _reads_neighbors_after(config: ResolvedModelConfig, begin: int) -> bool:
    """Whether a layer from `begin` on reads neighbours that a layer before it has encoded."""
    reading = retro_layers(config.num_layers) if config.retro_add_retriever else range(0)
    return bool(reading) and reading[0] < begin <= reading[-1]


def causal_stage_modules(config: ResolvedModelConfig, begin: int, end: int, total: int) -> set[str]:
    """See stage.StageRules."""
    names = end_modules(config, begin, end, total)
    if config.retro_add_retriever and begin <= retro_layers(total)[0] < end:  # neighbours are embedded, too
        names |= {"embedding", "positions"}
    return names


def causal_stage_shapes(
    config: ResolvedModelConfig, begin: int, micro: MicroBatch, cut: int
) -> list[torch.Size]:
    """See stage.StageRules."""
    shapes = states_shape(config, begin, micro, cut)
    if _reads_neighbors_after(config, begin):
        chunks, k, r = micro.neighbors.shape[1:]
        shapes.append(torch.Size((len(micro.tokens) * chunks, k * r, config.hidden_size)))
    return shapes


def _causal_stage(config: ResolvedModelConfig) -> type[PipelineStage]:
    return RetroStage if config.retro_add_retriever else PipelineStage


CAUSAL_STAGES = StageRules(_causal_stage, causal_stage_modules, causal_stage_shapes)
