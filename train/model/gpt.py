"""GPT, the causal language model: GPT-2, Llama, Mistral, Qwen, Mixtral, BLOOM, Mamba-2 and hybrids."""

from __future__ import annotations

import math
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
from .multi_token_prediction import MultiTokenPrediction, PredictionDepth, next_tokens
from .positions import Alibi, rotary_table


class GPT(Model):
    """A causal language model. Its weights have no values yet: see layers.initialize."""

    layers: Sequence[Block]

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.config = config
        std, V, D = config.init_method_std, config.padded_vocab_size, config.hidden_size
        self.embedding = Embedding(V, D, std=config.embedding_std, split="column")
        learned = config.position_embedding_type == "learned"
        self.positions = (
            Embedding(config.max_position_embeddings, D, std=config.embedding_std) if learned else None
        )
        self.embedding_norm = Norm(config) if config.embed_layernorm else None
        self.layers = block_list(build_block(config, kind) for kind in layer_kinds(config))
        self.windowed = config.windowed  # whether each layer's attention has the window
        self.norm = Norm(config)
        self.output = (
            Linear(D, V, bias=False, std=std, split="column")
            if config.untie_embeddings_and_output_weights
            else None
        )
        self.mtp = MultiTokenPrediction(config) if config.mtp_num_layers else None
        heads = config.num_attention_heads
        # parallel/ replaces these where ranks have parts of the heads, a sequence or the vocabulary.
        self.alibi = Alibi(heads, 0, heads) if config.position_embedding_type == "alibi" else None
        self.causal_mask, self.cross_entropy, self.next_tokens = causal_mask, cross_entropy, next_tokens
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
        Without a cache only rotary frequencies that depend on the length of a text look at it.
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
        masks = {
            has_window: cache.at(positions, windowed=has_window, alibi=self.alibi)
            if cache is not None
            else self.causal_mask(
                self.config, tokens, compute_dtype(x), documents, windowed=has_window, alibi=self.alibi
            )
            for has_window in set(self.windowed)
        }
        rotary = {
            has_window: self._rotary(positions, windowed=has_window, lengths=lengths) for has_window in masks
        }
        for i, layer in enumerate(self.layers):
            more = {"at": at} if at is not None and i == len(self.layers) - 1 else {}
            x = layer(
                x,
                mask=masks[self.windowed[i]],
                rotary=rotary[self.windowed[i]],
                documents=documents,
                cache=cache and cache.layers[i],
                lengths=lengths if cache is not None else None,
                retrieved=retrieved,
                **more,
            )
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The input of the first block, (B, T, D), for tokens and positions (B, T) int64."""
        x = self.embedding(tokens)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.config.embedding_multiplier != 1:
            x = x * self.config.embedding_multiplier
        if self.positions is not None:
            x = x + self.positions(positions)
        return F.dropout(x, self.config.hidden_dropout, self.training)

    def _rotary(
        self, positions: Tensor, *, windowed: bool = False, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """windowed: of the layers that have the window, which may have frequencies of their own."""
        config = self.config
        if config.position_embedding_type != "rope":
            return None
        base, scaling = config.rotary_base, config.rope_scaling
        if windowed and config.rotary_local_base is not None:
            base, scaling = config.rotary_local_base, None
        cos, sin = rotary_table(positions, config.rotary_channels, base, scaling, lengths=lengths)
        return cos[:, None], sin[:, None]

    def outgrows_cache(self, length: int) -> bool:
        """Whether a text that grows to this length needs a new cache: longrope changes all frequencies.

        With dynamic scaling keys keep the rotation of the length at which they came, as in transformers.
        """
        scaling = self.config.rope_scaling or {}
        return (
            scaling.get("rope_type") == "longrope"
            and length == math.floor(scaling["original_max_position_embeddings"]) + 1
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) from hidden states (..., D); minus infinity for the padding of the vocabulary."""
        return self.logits_of(
            self._scaled(hidden),
            self._head(),
            self.config.vocab_size,
            softcap=self.config.final_logit_softcapping,
        )

    def log_likelihoods(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of targets (N,) int64 given hidden states (N, D): see likelihood.likelihoods."""
        return self.likelihoods(
            self._scaled(hidden),
            self._head(),
            targets,
            self.config.vocab_size,
            softcap=self.config.final_logit_softcapping,
        )

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

        tokens, labels: (B, T) int64. loss_mask: (B, T), weights of the labels. In training its gradients have
        those of multi-token prediction.
        """
        # Not self(...): data parallelism hooks this method as it hooks calls of the module.
        hidden = self.forward(tokens, positions=positions, documents=documents)
        loss = self._loss_of(hidden, labels, loss_mask)
        if self.mtp is None or not self.training:
            return loss
        return self._with_later_tokens(loss, hidden, tokens, labels, loss_mask, positions, documents)

    def _with_later_tokens(
        self,
        loss: Tensor,
        states: Tensor,
        tokens: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        positions: Tensor | None,
        documents: Documents | None,
    ) -> Tensor:
        """`loss` with the gradients of multi-token prediction. states: (B, T, D), of `forward`."""
        assert self.mtp is not None, "only a model that has it predicts later tokens"
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        windowed = self.config.mtp_windowed
        mask = self.causal_mask(
            self.config, tokens, compute_dtype(states), documents, windowed=windowed, alibi=self.alibi
        )
        rotary = self._rotary(positions, windowed=windowed)
        places = positions.expand(tokens.shape)  # of the tokens whose embeddings are read
        losses, weights = [], []
        for depth in self.mtp.layers:
            tokens, places, labels, loss_mask = (
                self.next_tokens(x, documents) for x in (tokens, places, labels, loss_mask)
            )
            states = depth(states, self.embed(tokens, places), mask=mask, rotary=rotary, documents=documents)
            losses.append(self._loss_of(states, labels, loss_mask))
            weights.append(loss_mask.sum(dtype=torch.float64))
        return self.mtp.join(loss, losses, weights)

    def _loss_of(self, hidden: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
        return self.cross_entropy(
            self._scaled(hidden.flatten(0, 1)),
            self._head(),
            labels.flatten(),
            loss_mask.flatten(),
            self.config.vocab_size,
            softcap=self.config.final_logit_softcapping,
        )

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of up to `max_length` tokens."""
        layers = [
            None if layer.mixer is None else layer.mixer.new_cache(batch, max_length) for layer in self.layers
        ]
        return Cache(layers, max_length, self.config.window_size)

    def prediction_depths(self) -> list[PredictionDepth]:
        return [] if self.mtp is None else self.mtp.depths()

    def last_norms(self) -> list[nn.Module]:
        return [self.norm, *(depth.norm for depth in self.prediction_depths())]

    def seeded_modules(self) -> list[nn.Module]:
        return [*self.layers, *(depth.block for depth in self.prediction_depths())]

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
        if self.alibi is not None:
            bias = torch.zeros(1, self.alibi.heads, length // ranks, length, dtype=dtype)
            inputs["mask"] = AttentionMask(tensor=bias)
            shared.append(bias)
        # of a layer without the window: the others have tensors of the same shapes
        rotary = self._rotary(torch.arange(length // ranks)[None])
        if rotary is not None:
            inputs["rotary"] = rotary
            shared += rotary
        return inputs, shared

    def _scaled(self, hidden: Tensor) -> Tensor:
        scaling = self.config.logits_scaling
        return hidden if scaling == 1 else hidden / scaling

    def _head(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight
