"""T5 (Raffel et al. 2020): a bidirectional encoder, and a decoder with cross-attention to it.

Positions are learned (Megatron-LM's T5) or relative: biases by distance, one table for all layers of a stack
(the original and Hugging Face's). Relative positions imply the original's other choices: scores are not
divided by the root of the channels, and with a tied output layer its input is scaled by hidden_size^-0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, AttentionMask, Cache, CrossAttention, bidirectional_mask
from .base import Model
from .block import Block, FeedForward, block_list
from .config import ResolvedModelConfig
from .inputs import MicroBatch
from .layers import Embedding, Linear, Norm
from .loss import cross_entropy, logits_of
from .positions import distance_buckets
from .stage import PipelineStage, StageRules, end_modules


class Memory(NamedTuple):
    """The encoder's last states, which the decoder attends to."""

    states: Tensor  # (B, S, D)
    mask: AttentionMask


class T5(Model):
    """An encoder-decoder. Its weights have no values yet: see layers.initialize."""

    encoder: Sequence[Block]
    decoder: Sequence[Block]

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.config = config
        std, V, D = config.init_method_std, config.padded_vocab_size, config.hidden_size
        self.embedding = Embedding(V, D, std=config.embedding_std, split="column")  # of both stacks
        learned, relative = (config.position_embedding_type == kind for kind in ("learned", "relative"))
        self.positions = (
            Embedding(config.max_position_embeddings, D, std=config.embedding_std) if learned else None
        )
        self.encoder_bias = DistanceBias(config, both_ways=True) if relative else None
        self.encoder = block_list(
            Block(config, mixer=Attention(config), ffn=FeedForward(config)) for _ in range(config.num_layers)
        )
        self.encoder_norm = Norm(config)
        self.decoder_bias = DistanceBias(config, both_ways=False) if relative else None
        self.decoder = block_list(
            Block(config, mixer=Attention(config), cross=CrossAttention(config), ffn=FeedForward(config))
            for _ in range(config.decoder_layers)
        )
        self.decoder_norm = Norm(config)
        self.output = (
            Linear(D, V, bias=False, std=std, split="column")
            if config.untie_embeddings_and_output_weights
            else None
        )
        # parallel/ replaces this where ranks have parts of the vocabulary.
        self.cross_entropy = cross_entropy

    @property
    def layers(self) -> list[Block]:
        return [*self.encoder, *self.decoder]

    def forward(self, tokens: Tensor, encoder_tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The decoder's hidden states (B, T, D) of tokens (B, T) given encoder_tokens (B, S), int64.

        padding_mask: (B, S), true where encoder_tokens are tokens, false for padding.
        """
        return self.decode(tokens, self.encode(encoder_tokens, padding_mask))

    def encode(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Memory:
        """The input of `decode`, for tokens (B, S) int64."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        present = bidirectional_mask(padding_mask)
        mask = present if self.encoder_bias is None else self.encoder_bias(positions, positions, present)
        x = self.embed(tokens, positions)
        for layer in self.encoder:
            x = layer(x, mask=mask)
        return Memory(self.encoder_norm(x), present)

    def decode(
        self, tokens: Tensor, memory: Memory, *, positions: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """The decoder's hidden states (B, T, D), after its norm, of tokens (B, T) int64.

        positions, cache: as in GPT.forward; keys and values of the memory are computed at the cache's first
        use.
        """
        T = tokens.shape[1]
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + T, device=tokens.device).expand(
                len(tokens) if cache is not None else 1, T
            )
        mask = cache.at(positions) if cache is not None else AttentionMask(causal=True)
        if self.decoder_bias is not None:
            slots = torch.arange(cache.length if cache is not None else T, device=tokens.device)
            mask = self.decoder_bias(positions, slots, mask)
        x = self.embed(tokens, positions)
        for i, layer in enumerate(self.decoder):
            x = layer(
                x, mask=mask, memory=memory.states, memory_mask=memory.mask, cache=cache and cache.layers[i]
            )
        return self.decoder_norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The input of a stack's first block, (B, T, D). tokens: (B, T), positions: (T,) or (B, T), int64."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        return F.dropout(x, self.config.hidden_dropout, self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) from the decoder's hidden states (..., D); minus infinity for the vocabulary's padding."""
        return logits_of(self._scaled(hidden), self._head(), self.config.vocab_size)

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        *,
        encoder_tokens: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Summed negative log-likelihood in nats, a scalar.

        tokens, labels: (B, T) int64. loss_mask: (B, T), weights of the labels.
        """
        # not self(...): see GPT.loss
        hidden = self._scaled(self.forward(tokens, encoder_tokens, padding_mask))
        return self.cross_entropy(
            hidden.flatten(0, 1), self._head(), labels.flatten(), loss_mask.flatten(), self.config.vocab_size
        )

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache of the decoder, for `batch` rows of up to `max_length` tokens."""
        mixers = [layer.mixer for layer in self.decoder if layer.mixer is not None]
        return Cache([mixer.new_cache(batch, max_length) for mixer in mixers], max_length)

    def encoder_norms(self) -> list[nn.Module]:
        return [self.encoder_norm]

    def last_norms(self) -> list[nn.Module]:
        return [self.decoder_norm]

    def seeded_modules(self) -> list[nn.Module]:
        return [
            *self.layers,
            self.encoder_norm,
        ]  # the decoder's embedding has dropout after the encoder's norm

    def encoder_output_size(self, seq_length: int) -> int:
        return 2 * seq_length * self.config.hidden_size  # before and after the norm

    def block_length(self, block: Block, seq_length: int, decoder_seq_length: int) -> int:
        return seq_length if block.cross is None else decoder_seq_length

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        positions, decodes = torch.arange(length), block.cross is not None
        bias, mask = self.decoder_bias if decodes else self.encoder_bias, AttentionMask(causal=decodes)
        inputs: dict = {"mask": mask if bias is None else bias(positions, positions, mask)}
        shared = [] if inputs["mask"].tensor is None else [inputs["mask"].tensor]
        if decodes:
            inputs["memory"] = torch.empty(1, seq_length, self.config.hidden_size, dtype=dtype)
            inputs["memory_mask"] = AttentionMask()
            shared.append(inputs["memory"])
        return inputs, shared

    def _scaled(self, hidden: Tensor) -> Tensor:
        config = self.config
        return (
            hidden
            if config.untie_embeddings_and_output_weights or config.position_embedding_type != "relative"
            else hidden * config.hidden_size**-0.5
        )

    def _head(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight


class DistanceBias(nn.Module):
    """A learned bias of every head's scores, by the bucket of the distance from query to key."""

    def __init__(self, config: ResolvedModelConfig, *, both_ways: bool):
        super().__init__()
        self.both_ways = both_ways
        self.buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.table = Embedding(
            self.buckets, config.num_attention_heads, std=config.init_method_std, split="row"
        )

    def forward(self, queries: Tensor, keys: Tensor, mask: AttentionMask) -> AttentionMask:
        """An additive attention mask: the bias where the given mask allows attention, -inf elsewhere.

        queries: (T,) or (B, T), keys: (K,) int64 positions.
        """
        # (H, T, K) or (B, H, T, K)
        bias = self.table(
            distance_buckets(
                queries, keys, both_ways=self.both_ways, buckets=self.buckets, max_distance=self.max_distance
            )
        ).movedim(-1, -3)
        bias = bias if bias.ndim == 4 else bias[None]
        allowed = mask.tensor
        if mask.causal:
            allowed = keys <= queries[..., None]
            allowed = allowed[:, None] if allowed.ndim == 3 else allowed
        return AttentionMask(tensor=bias if allowed is None else bias.masked_fill(~allowed, float("-inf")))


class T5Stage(PipelineStage):
    """A stage of a T5. Stages of the decoder also receive the encoder's states."""

    encoder: Sequence[Block]
    encode: Callable[[Tensor, Tensor | None], Memory]
    decode: Callable[[Tensor, Memory], Tensor]

    def forward(
        self, tokens: Tensor, encoder_tokens: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        encoder = len(self.encoder)
        if self.begin <= encoder:
            memory = self.encode(encoder_tokens, padding_mask)
            if self.end <= encoder:
                return memory.states
        else:
            memory = Memory(self.received.pop(), bidirectional_mask(padding_mask))
        x = self.decode(tokens, memory)
        # A copy: the output of a gather is a view, of which fully_shard warns.
        return x if self.is_last else (x, memory.states.clone())


def t5_stage_modules(config: ResolvedModelConfig, begin: int, end: int, total: int) -> set[str]:
    """See stage.StageRules."""
    names, encoder = end_modules(config, begin, end, total), config.num_layers
    if begin < encoder:
        names |= {"encoder_bias"}
    if begin <= encoder < end:  # the encoder ends here and the decoder begins
        names |= {"encoder_norm", "embedding", "positions"}
    if end > encoder:
        names |= {"decoder_bias"}
    return names


def t5_stage_shapes(config: ResolvedModelConfig, begin: int, micro: MicroBatch, cut: int) -> list[torch.Size]:
    """See stage.StageRules."""
    assert micro.encoder_tokens is not None, "collate_t5 gives every micro-batch the encoder's tokens"
    (B, T), D, S = micro.tokens.shape, config.hidden_size, micro.encoder_tokens.shape[1]
    if begin <= config.num_layers:
        return [torch.Size((B, S // cut, D))]
    return [torch.Size((B, T // cut, D)), torch.Size((B, S, D))]


T5_STAGES = StageRules(lambda config: T5Stage, t5_stage_modules, t5_stage_shapes)
