"""GPT: tokens -> hidden states -> loss or logits. Covers GPT-2's and Llama's shape by configuration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, KVCache
from .block import Block, FeedForward
from .layers import Embedding, Linear, ModelConfig, Norm, cross_entropy, logits_of, rotary_table


class GPT(nn.Module):
    """A causal language model. config must be resolved; `layers.initialize` gives the weights their first values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        std, V, D = config.init_method_std, config.padded_vocab_size, config.hidden_size
        self.embedding = Embedding(V, D, std=std)
        learned = config.position_embedding_type == "learned"
        self.positions = Embedding(config.max_position_embeddings, D, std=std) if learned else None
        self.layers = nn.ModuleList(
            Block(config, Attention(config, causal=True), FeedForward(config)) for _ in range(config.num_layers)
        )
        self.norm = Norm(config)
        self.output = Linear(D, V, bias=False, std=std) if config.untie_embeddings_and_output_weights else None

    def forward(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, T, D), normalised, of tokens (B, T) int64.

        positions: (B, T) int64; by default 0, 1, 2 ... or, with a cache, on from what it holds. mask: (B, 1, T, T)
        bool, True where a query may look; by default at everything before it. cache: from `new_cache`, instead of a
        mask; the tokens are added to it and see what it holds.
        """
        B, T = tokens.shape
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + T, device=tokens.device).expand(B, T)
        x = self.embedding(tokens)
        rotary = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            cos, sin = rotary_table(positions, self.config.kv_channels, self.config.rotary_base)
            rotary = (cos[:, None], sin[:, None])
        x = F.dropout(x, self.config.hidden_dropout, self.training)
        caches, mask = cache.at(positions) if cache is not None else ([None] * len(self.layers), mask)
        for layer, layer_cache in zip(self.layers, caches):
            x = layer(x, rotary=rotary, mask=mask, cache=layer_cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) from hidden states (..., D); the padding of the vocabulary has minus infinity."""
        return logits_of(hidden, self._head(), self.config.vocab_size)

    def loss(self, tokens: Tensor, labels: Tensor, loss_mask: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Summed negative log-likelihood in nats, a scalar. tokens, labels: (B, T) int64. loss_mask: (B, T), weights."""
        hidden = GPT.forward(self, tokens, positions=positions, mask=mask)  # not self(...): data parallelism hooks this method as it hooks forward
        return cross_entropy(hidden.flatten(0, 1), self._head(), labels.flatten(), loss_mask.flatten(), self.config.vocab_size)

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for `batch` rows of up to `max_length` tokens."""
        weight = self._head()
        return KVCache(self.config, batch, max_length, dtype=weight.dtype, device=weight.device)

    def _head(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight
