"""Model: the methods of a model of any family that training, parallelism and planning use.

A family's class overrides what is different in it. The defaults describe a decoder with one stack of blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from .block import Block
from .config import ResolvedModelConfig
from .inputs import MicroBatch
from .multi_token_prediction import PredictionDepth


class Model(nn.Module):
    """A model whose weights have no values yet: see layers.initialize."""

    config: ResolvedModelConfig
    norm: nn.Module
    if TYPE_CHECKING:  # some families have an attribute of this name, others a property

        @property
        def layers(self) -> Sequence[Block]:
            """All blocks, in the order in which they run."""

    # The methods that training calls instead of forward: fully_shard hooks them.
    methods: ClassVar[tuple[str, ...]] = ("loss",)
    # The part whose shapes depend on the data, for the message of a dry run; None where there is none.
    data_dependent_part: ClassVar[str | None] = None
    # Rows of D elements that the output layer keeps for the backward pass, for each token of a sample.
    head_rows_per_token: ClassVar[float] = 1.0

    def loss(self, *arguments, **more) -> Tensor:
        """The summed loss of a micro-batch, a float scalar; arguments: MicroBatch.arguments."""
        raise NotImplementedError

    def losses(self, batch: Sequence[MicroBatch]) -> Tensor:
        """This rank's summed loss of its micro-batches of a global batch, float64. batch: not empty."""
        return functools.reduce(torch.add, (self.loss(**micro.arguments()).double() for micro in batch))

    def forward_backward(
        self,
        batch: Sequence[MicroBatch],
        factor: Tensor,
        prepare: Callable[[MicroBatch], None],
        synchronise: Callable[[bool], None],
    ) -> Tensor:
        """Adds the gradients of factor x the summed loss of a global batch; returns this rank's loss.

        prepare: sets the random generators for a micro-batch. synchronise: called before each backward pass
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
        """Gives a loss over global batches the function that gathers rows from all replicas.

        gather: rows (n, E) -> (those of all replicas (N, E), index of this rank's first). Other losses ignore
        it.
        """

    def outgrows_cache(self, length: int) -> bool:
        """Whether a text that grows to this length needs a new cache."""
        return False

    def freeze(self) -> None:
        """Freezes the weights that a further pretraining leaves as they are; only Retro has such weights."""
        raise NotImplementedError

    def encoder_norms(self) -> list[nn.Module]:
        """The modules that compute an encoder's last states, which several later modules read."""
        return []

    def prediction_depths(self) -> list[PredictionDepth]:
        """The depths of multi-token prediction, which run after the blocks, in training only."""
        return []

    def last_norms(self) -> list[nn.Module]:
        """The modules that compute the last hidden states."""
        return [self.norm]

    def whole_sequence_modules(self) -> list[nn.Module]:
        """The modules outside the blocks that compute on whole sequences, with sequence parallelism too."""
        return []

    def seeded_modules(self) -> list[nn.Module]:
        """The modules before which dropout is seeded; none where a micro-batch runs a block twice."""
        return list(self.layers)

    @property
    def runs_per_block(self) -> int:
        """How many times a sample runs through each block."""
        return 1

    def encoder_output_size(self, seq_length: int) -> int:
        """Elements of an encoder's last states that are kept for the backward pass, of one sample."""
        return 0

    def block_length(self, block: Block, seq_length: int, decoder_seq_length: int) -> int:
        """Tokens of a sample that a block reads."""
        return seq_length

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        """(arguments of a block beside x, for one sample; the tensors in them that all blocks share).

        length: the block's block_length. ranks: context-parallel ranks that the sequence is divided over.
        """
        raise NotImplementedError
