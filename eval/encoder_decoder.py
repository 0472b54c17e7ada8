"""Adapts an encoder-decoder to generation: the encoder reads the prompt, the decoder generates the answer.

Generation gives the model a prompt and then one token of each row at a time. Here the decoder's sequence
begins with its start token, and the prompt reaches it through cross-attention. The cache is the decoder's
own. It also holds, for each row, the keys and values of the encoded prompt in every decoder layer
(LayerCache.memory) and the prompt's length, so that rows can join, leave and move like those of other models.
Positions count from the prompt's beginning, as everywhere in generation. The decoder's own positions begin
with 0 at its start token.

B rows, T tokens of a step, S tokens of the longest prompt, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..train.model.attention import Cache, CrossAttention, LayerCache, bidirectional_mask
from ..train.model.t5 import T5, Memory


class EncoderDecoderCache(Cache):
    """The decoder's cache. prompt_lengths: (B,) int64, the tokens of each row's prompt."""

    def __init__(self, layers: list[LayerCache], max_length: int, prompt_lengths: Tensor):
        super().__init__(layers, max_length)
        self.prompt_lengths = prompt_lengths


class EncoderDecoder(nn.Module):
    """A T5 for GenerationBatch and BeamSearch. start: id of the token that begins every answer."""

    def __init__(self, model: T5, start: int):
        super().__init__()
        self.model, self.start = model, start

    @property
    def output(self) -> nn.Module | None:
        return self.model.output

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        cache: EncoderDecoderCache,
        lengths: Tensor | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The decoder's hidden state for the next token of each row.

        With `lengths`, tokens (B, S) are prompts: encodes them and starts the answers. Without, tokens (B, 1)
        are the last tokens of the answers. Returns (B, 1, D), or (B, D) where `at` is given; `at` can only be
        the last token of every prompt.
        """
        if lengths is not None:
            self._encode(tokens, lengths, cache)
            tokens = torch.full_like(tokens[:, :1], self.start)
            decoder_positions = torch.zeros_like(tokens)
        else:
            decoder_positions = positions - cache.prompt_lengths[:, None] + 1
        longest = int(cache.prompt_lengths.max())
        for layer in cache.layers:
            keys, values = layer.memory
            layer.memory = keys[:, :, :longest], values[:, :, :longest]
        present = torch.arange(longest, device=tokens.device) < cache.prompt_lengths[:, None]
        # Cross-attention reads the cached keys and values, so only the length of the states matters here.
        memory = Memory(cache.layers[0].memory[0], bidirectional_mask(present))
        hidden = self.model.decode(tokens, memory, positions=decoder_positions, cache=cache)
        return hidden if at is None else hidden[:, 0]

    def _encode(self, tokens: Tensor, lengths: Tensor, cache: EncoderDecoderCache) -> None:
        """Encodes prompts (B, S) and stores their keys and values in the cache."""
        present = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        states = self.model.encode(tokens, present).states
        cache.prompt_lengths.copy_(lengths)
        for cross, layer in zip(self._cross_attentions(), cache.layers):
            for memory, new in zip(layer.memory, cross.keys_and_values(states)):
                memory[:, :, : tokens.shape[1]] = new

    def _cross_attentions(self) -> Iterator[CrossAttention]:
        for block in self.model.decoder:
            assert isinstance(block.cross, CrossAttention), "every decoder layer has cross-attention"
            yield block.cross

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def new_cache(self, rows: int, length: int) -> EncoderDecoderCache:
        cache = self.model.new_cache(rows, length)
        for cross, layer in zip(self._cross_attentions(), cache.layers):
            layer.memory = cross.new_memory(rows, length)
        device = cache.layers[0].keys.device
        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return EncoderDecoderCache(cache.layers, cache.max_length, lengths)
