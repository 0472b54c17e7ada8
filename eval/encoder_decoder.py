"""an encoder-decoder as generation sees a model: a prompt is what is encoded, and what follows it is what the
decoder says.

The cache is the decoder's own; besides, each row has the keys and values of its prompt's states in every
decoder layer (LayerCache.memory) and the prompt's length, so that rows come, go and are copied as those of
any other model. A token's position counts from the prompt's start, as everywhere in generation; the decoder's
own positions begin behind the prompt, with the token that starts every answer.

B rows, T tokens of a step, S tokens of the longest prompt, D hidden, G key-value heads, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..train.model.attention import Cache, bidirectional_mask
from ..train.model.t5 import T5, Memory


class EncoderDecoder(nn.Module):
    """A T5 for batching.Batch and beams.BeamSearch. start: id of the token that starts every answer."""

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
        cache: Cache,
        lengths: Tensor | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states of the answer's next place: (B, D) of prompts (B, S) with their `lengths`, or (B, 1,
        D) of one token of each row.

        at: the last token of every prompt; nothing else follows from a prompt here.
        """
        if lengths is not None:
            self._read(tokens, lengths, cache)
            tokens, places = torch.full_like(tokens[:, :1], self.start), torch.zeros_like(tokens[:, :1])
        else:
            places = positions - cache.prompts[:, None] + 1
        longest = int(cache.prompts.max())
        for layer in cache.layers:
            layer.memory = tuple(part[:, :, :longest] for part in layer.memory)
        present = torch.arange(longest, device=tokens.device) < cache.prompts[:, None]
        # the states themselves are in the cache, as keys and values
        memory = Memory(cache.layers[0].memory[0], bidirectional_mask(present))
        hidden = self.model.decode(tokens, memory, positions=places, cache=cache)
        return hidden if at is None else hidden[:, 0]

    def _read(self, tokens: Tensor, lengths: Tensor, cache: Cache) -> None:
        present = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        states = self.model.encode(tokens, present).states
        cache.prompts.copy_(lengths)
        for layer, kept in zip(self.model.decoder, cache.layers):
            for memory, new in zip(kept.memory, layer.cross.keys_and_values(states)):
                memory[:, :, : tokens.shape[1]] = new

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def new_cache(self, rows: int, length: int) -> Cache:
        cache = self.model.new_cache(rows, length)
        for layer, kept in zip(self.model.decoder, cache.layers):
            kept.memory = layer.cross.new_memory(rows, length)
        cache.prompts = torch.zeros(rows, dtype=torch.int64, device=kept.keys.device)
        return cache
