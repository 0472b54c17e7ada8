"""GPT, the causal language model: GPT-2, Llama, Mistral, Qwen, Mixtral, Mamba-2 and hybrids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionMask, Cache, Documents, causal_mask
from .base import Model
from .block import Block, block_list
from .chunked_cross_attention import NeighborEncoder, Retrieved
from .config import ResolvedModelConfig
from .decoder_blocks import build_block, layer_kinds
from .layers import Embedding, Linear, Norm, compute_dtype
from .likelihood import likelihoods
from .loss import cross_entropy, logits_of
from .positions import rotary_table


class GPT(Model):
    """A causal language model. Its weights have no values yet: see layers.initialize."""

    layers: Sequence[Block]

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.config = config
        std, V, D = config.init_method_std, config.padded_vocab_size, config.hidden_size
        self.embedding = Embedding(V, D, std=std, split="column")
        learned = config.position_embedding_type == "learned"
        self.positions = Embedding(config.max_position_embeddings, D, std=std) if learned else None
        self.layers = block_list(build_block(config, kind) for kind in layer_kinds(config))
        self.norm = Norm(config)
        self.output = (
            Linear(D, V, bias=False, std=std, split="column")
            if config.untie_embeddings_and_output_weights
            else None
        )
        # parallel/ replaces these where ranks have parts of a sequence or of the vocabulary.
        self.causal_mask, self.cross_entropy = causal_mask, cross_entropy
        self.likelihoods, self.logits_of = likelihoods, logits_of

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Documents | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        retrieved: Retrieved | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D), after the final norm, of tokens (B, T) int64; (N, D) with `at`.

        positions: (B, T) int64; by default 0, 1, 2 ..., or the positions after those in the cache. documents:
        mask attention to other documents; by default a token attends to all tokens before it. cache: of
        `new_cache`; the tokens are added to it and attend to the tokens in it. lengths: (B,), with a cache: a
        row's tokens from there on are padding; Mamba layers need this, attention does not (see Cache).
        retrieved: the neighbours that Retro's layers read. at: (rows, columns), each (N,): return only the
        states at these places.
        """
        B, T = tokens.shape
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + T, device=tokens.device).expand(
                1 if cache is None else B, T
            )
        x = self.embed(tokens, positions)
        mask = (
            cache.at(positions)
            if cache is not None
            else self.causal_mask(self.config, tokens, compute_dtype(x), documents)
        )
        rotary = self._rotary(positions)
        for i, layer in enumerate(self.layers):
            more = {"at": at} if at is not None and i == len(self.layers) - 1 else {}
            x = layer(
                x,
                mask=mask,
                rotary=rotary,
                documents=documents,
                cache=cache and cache.layers[i],
                lengths=lengths,
                retrieved=retrieved,
                **more,
            )
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The input of the first block, (B, T, D), for tokens and positions (B, T) int64."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        return F.dropout(x, self.config.hidden_dropout, self.training)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        config = self.config
        if config.position_embedding_type != "rope":
            return None
        cos, sin = rotary_table(positions, config.kv_channels, config.rotary_base, config.rope_scaling)
        return cos[:, None], sin[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) from hidden states (..., D); minus infinity for the padding of the vocabulary."""
        return self.logits_of(hidden, self._head(), self.config.vocab_size)

    def log_likelihoods(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of targets (N,) int64 given hidden states (N, D): see likelihood.likelihoods."""
        return self.likelihoods(hidden, self._head(), targets, self.config.vocab_size)

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Summed negative log-likelihood in nats, a scalar.

        tokens, labels: (B, T) int64. loss_mask: (B, T), weights of the labels.
        """
        # Not self(...): data parallelism hooks this method as it hooks calls of the module.
        hidden = self.forward(tokens, positions=positions, documents=documents)
        return self.cross_entropy(
            hidden.flatten(0, 1), self._head(), labels.flatten(), loss_mask.flatten(), self.config.vocab_size
        )

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of up to `max_length` tokens."""
        layers = [
            None if layer.mixer is None else layer.mixer.new_cache(batch, max_length) for layer in self.layers
        ]
        return Cache(layers, max_length, self.config.window_size)

    def encoder_norms(self) -> list[nn.Module]:
        return [module.norm for module in self.modules() if isinstance(module, NeighborEncoder)]

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        inputs: dict = {"mask": AttentionMask(causal=True)}
        shared = []
        if ranks > 1:
            mask = torch.ones(1, 1, length // ranks, length, dtype=torch.bool)
            inputs["mask"] = AttentionMask(tensor=mask)
            shared.append(mask)
        rotary = self._rotary(torch.arange(length // ranks)[None])
        if rotary is not None:
            inputs["rotary"] = rotary
            shared += rotary
        return inputs, shared

    def _head(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight
