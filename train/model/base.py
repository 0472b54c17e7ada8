"""Model: what training, parallelism and planning ask of a model of any family.

A family's class overrides what is different in it. The defaults describe a decoder with one stack of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .block import Block
from .config import ResolvedModelConfig
from .inputs import MicroBatch


class Model(nn.Module):
    """A model whose weights have no values yet: see layers.initialize. It has `layers`, its blocks."""

    config: ResolvedModelConfig
    layers: Iterable[Block]
    methods: ClassVar[tuple[str, ...]] = (
        "loss",
    )  # which training calls instead of forward: fully_shard hooks them
    # The part whose shapes depend on the data, for the message of a dry run; None where no part's do.
    data_dependent_part: ClassVar[str | None] = None
    # Rows of D numbers that the output layer keeps for the backward pass, for each token of a sample.
    head_rows_per_token: ClassVar[float] = 1.0

    def loss(self, *arguments, **more) -> Tensor:
        """The summed loss of a micro-batch, a float scalar; arguments: MicroBatch.arguments."""
        raise NotImplementedError

    def losses(self, batch: Sequence[MicroBatch]) -> Tensor:
        """This rank's summed loss of its micro-batches of a global batch, float64."""
        return sum(self.loss(**micro.arguments()).double() for micro in batch)

    def forward_backward(
        self,
        batch: Sequence[MicroBatch],
        factor: Tensor,
        prepare: Callable[[MicroBatch], None],
        synchronise: Callable[[bool], None],
    ) -> Tensor:
        """Adds the gradients of factor x the summed loss of a global batch; returns that loss on this rank, float64.

        prepare: sets the random generators for a micro-batch. synchronise: is called before each backward pass
        with whether it is the last one.
        """
        total = torch.zeros((), dtype=torch.float64, device=factor.device)
        for position, micro in enumerate(batch):
            prepare(micro)
            synchronise(position == len(batch) - 1)
            loss = self.loss(**micro.arguments())
            (loss * factor).backward()
            total += loss.detach()
        return total

    def join_replicas(self, gather: Callable[[Tensor], tuple[Tensor, int]]) -> None:
        """Tells a loss over whole global batches how to gather rows from all data-parallel replicas.

        gather: rows (n, E) -> (those of all replicas (N, E), where this one's begin). Other losses do without.
        """

    def encoder_norms(self) -> list[nn.Module]:
        """The modules that give an encoder's last states, which several later modules read."""
        return []

    def last_norms(self) -> list[nn.Module]:
        """The modules that give the last hidden states."""
        return [self.norm]

    def whole_sequence_modules(self) -> list[nn.Module]:
        """The modules outside the blocks that compute on whole sequences, with sequence parallelism too."""
        return []

    def seeded_modules(self) -> list[nn.Module]:
        """The modules before which dropout's generator is seeded; none where a micro-batch runs a block twice."""
        return list(self.layers)

    @property
    def runs_per_block(self) -> int:
        """How often a sample runs through each block."""
        return 1

    def encoder_output_size(self, seq_length: int) -> int:
        """Numbers of an encoder's last states that are kept for the backward pass, of one sample."""
        return 0

    def block_length(self, block: Block, seq_length: int, decoder_seq_length: int) -> int:
        """Tokens of a sample that a block reads."""
        return seq_length

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        """(the arguments of a block's forward pass beside x, for one sample; the tensors in them that all blocks share).

        length: of block_length. ranks: over which context parallelism divides the sequence.
        """
        raise NotImplementedError
