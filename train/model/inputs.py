"""The input of a model's forward pass: MicroBatch, the tensors of one micro-batch on one rank."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .attention import Documents


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """One forward pass on one rank: B samples of T tokens. None: the model's family does not read it."""

    index: int  # its place in the global batch, the same at every data-parallel size
    tokens: Tensor  # (B, T) int64; t5: the decoder's; ict: the queries'
    labels: Tensor | None  # (B, T) int64: the token after each; bert: the one that was masked; ict: none
    loss_mask: Tensor  # (B, T) float32: each label's weight in the loss; ict: (B,), each sample's
    positions: Tensor | None = None  # gpt: (B, T) int64; None: 0, 1, 2 ...
    documents: Documents | None = None  # gpt: tokens see their own document alone; None: all that came before
    token_types: Tensor | None = None  # bert: (B, T) int64, 0 in the first segment, 1 in the second
    # bert, ict: (B, T) bool, true where there is a token; t5: (B, S), of encoder_tokens
    padding_mask: Tensor | None = None
    swapped: Tensor | None = None  # bert: (B,) int64, 1 where the second segment came first
    encoder_tokens: Tensor | None = None  # (B, S) int64; t5: the encoder's; ict: the blocks'
    encoder_padding_mask: Tensor | None = None  # ict: (B, S) bool
    # Retro: (B, l, k, r) int64: k neighbours of r tokens for each of l chunks
    neighbors: Tensor | None = None
    neighbor_mask: Tensor | None = None  # Retro: (B, l, k, r) bool, false where there is no token

    def arguments(self) -> dict:
        """For the model's `loss`."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "index"
        }
        return {name: value for name, value in given.items() if value is not None}
