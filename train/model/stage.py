"""A pipeline stage of a model: the model itself, without the blocks of other stages.

Every stage runs the model's own forward pass. Blocks of other stages pass their input through, and `embed`
returns the hidden states that came from the stage before. parallel/stages.py makes the stages and decides
which blocks they have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import ResolvedModelConfig
from .inputs import MicroBatch

LOSS_INPUTS = ("labels", "loss_mask", "swapped")  # fields of a MicroBatch that only the last stage reads


class PassThrough(nn.Module):
    """Takes the place of a block of another stage."""

    def forward(self, x: Tensor, **_) -> Tensor:
        return x


class PipelineStage(nn.Module):
    """A mixin for the class of a model.

    begin, end: its blocks. is_first, is_last: whether it has the model's first block, the last one. received:
    tensors from the stage before, set before each forward pass.
    """

    loss: Callable[..., Tensor]
    norm: nn.Module

    begin: int
    end: int
    is_first: bool
    is_last: bool
    received: list[Tensor]

    def embed(self, *arguments: Tensor) -> Tensor:
        if self.received:
            return self.received.pop(0)
        return super().embed(*arguments)  # type: ignore[misc]  # the model's class has it

    def run(self, micro: MicroBatch, received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors that the next stage receives; of the last stage (the summed loss,)."""
        self.received = list(received)
        arguments = micro.arguments()
        if self.is_last:
            result = self.loss(**arguments)
        else:
            result = self(**{name: value for name, value in arguments.items() if name not in LOSS_INPUTS})
        return result if isinstance(result, tuple) else (result,)


@dataclasses.dataclass(frozen=True)
class StageRules:
    """How a family's models are cut into pipeline stages. Blocks `begin` to `end` of `total` make a stage.

    behaviour: the mixin for the model's class. modules: (config, begin, end, total) -> names of the model's
    children that a stage has beside its blocks. shapes: (config, begin, micro-batch, cut) -> shapes of the
    tensors that a stage receives where tensor parallelism cuts sequences over `cut` ranks.
    """

    behaviour: Callable[[ResolvedModelConfig], type[PipelineStage]]
    modules: Callable[[ResolvedModelConfig, int, int, int], set[str]]
    shapes: Callable[[ResolvedModelConfig, int, MicroBatch, int], list[torch.Size]]


def end_modules(config: ResolvedModelConfig, begin: int, end: int, total: int) -> set[str]:
    """The children of a model before its first and after its last block, where the stage has that block."""
    names: set[str] = set()
    if end == total:
        names |= {"norm", "decoder_norm", "output", "head", "pooler", "binary_head", "mtp"}
        if config.mtp_num_layers:
            names |= {"embedding", "embedding_norm", "positions"}
        if not config.untie_embeddings_and_output_weights:
            names.add("embedding")
    if begin == 0:
        names |= {"embedding", "embedding_norm", "positions", "token_types"}
    return names


def states_shape(config: ResolvedModelConfig, begin: int, micro: MicroBatch, cut: int) -> list[torch.Size]:
    """The shape of the hidden states (B, T, D), for families whose stages receive nothing else."""
    B, T = micro.tokens.shape
    return [torch.Size((B, T // cut, config.hidden_size))]
