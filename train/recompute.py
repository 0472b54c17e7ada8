"""Activation recomputation (Chen et al. 2016), applied to the blocks of a built model.

    selective           keeps the results of matrix products and attention, and recomputes the rest
    full, uniform, N    keeps only the input of every group of N blocks
    full, block, N      keeps only the input of each of the first N blocks of a stack, and all of the others

Losses and gradients are bitwise the same: the same operations run again on the same numbers, with the same
dropout masks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..core.config import check, configuration, option
from .model.base import Model
from .model.block import Block
from .model.multi_token_prediction import PredictionDepth
from .parallel.pipeline import Pipeline


@configuration(group="recompute")
class RecomputeConfig:
    """Activation recomputation: less memory for more time."""

    recompute_granularity: Literal["selective", "full"] | None = option(
        None, "what is recomputed; selective: all but matrix products and attention; full: whole blocks"
    )
    recompute_method: Literal["uniform", "block"] = option(
        "uniform", "full: every group of blocks (uniform), or single blocks from the first on (block)"
    )
    recompute_num_layers: int = option(
        1, "full: blocks in a group (uniform), or number of blocks that are recomputed (block)"
    )

    def __post_init__(self):
        full = self.recompute_granularity == "full"
        check(
            (
                self.recompute_num_layers >= 1,
                f"recompute.recompute_num_layers = {self.recompute_num_layers} must be at least 1",
            ),
            (
                full or (self.recompute_method, self.recompute_num_layers) == ("uniform", 1),
                "recompute_method and recompute_num_layers need recompute_granularity = full; give it, or"
                " leave them out",
            ),
        )


def recompute(model: Model | Pipeline, config: RecomputeConfig) -> None:
    """Makes the blocks of a model recompute, in place; see RecomputeConfig."""
    has_dropout = model.config.hidden_dropout > 0 or model.config.attention_dropout > 0
    options: dict = {"use_reentrant": False, "preserve_rng_state": has_dropout}
    if config.recompute_granularity == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for blocks in stacks(model):
        count = config.recompute_num_layers
        if config.recompute_granularity == "full" and config.recompute_method == "uniform":
            groups = [blocks[i : i + count] for i in range(0, len(blocks), count)]
        elif config.recompute_granularity == "full":
            groups = [[block] for block in blocks[:count]]
        else:
            groups = [[block] for block in blocks]
        for group in groups:
            _CheckpointedGroup(group, options)


def stacks(model: nn.Module) -> list[list[Block]]:
    """The stacks of blocks of a model: of an encoder, of a decoder, of each depth of multi-token prediction;
    without the blocks of other pipeline stages.

    Blocks inside another block (Retro's encoder) are left out.
    """
    nested = {
        inner
        for block in model.modules()
        if isinstance(block, Block)
        for inner in block.modules()
        if inner is not block
    }
    lists = (
        module for module in model.modules() if isinstance(module, nn.ModuleList) and module not in nested
    )
    rows = [[block for block in blocks if isinstance(block, Block)] for blocks in lists]
    depths = (module for module in model.modules() if isinstance(module, PredictionDepth))
    return [row for row in [*rows, *([depth.block] for depth in depths)] if row]


class _CheckpointedGroup:
    """Blocks of which only the input of the first is kept.

    The model calls its blocks one by one. The first block runs the whole group, and the others return their
    input. Within the group blocks are called as modules, so that their hooks (sharded parameters) still run.
    """

    def __init__(self, blocks: list[Block], options: dict):
        self.blocks, self.options, self.running = blocks, options, False
        self.first_forward = blocks[0].forward
        # on the instances: the blocks keep their class, names and hooks
        blocks[0].forward = self.run  # type: ignore[method-assign]
        for block in blocks[1:]:
            block.forward = functools.partial(self.pass_through, block.forward)  # type: ignore[method-assign]

    def run(self, x: Tensor, **context) -> Tensor:
        if not torch.is_grad_enabled():
            return self.first_forward(x, **context)
        return checkpoint(self.compute, x, context, **self.options)

    def compute(self, x: Tensor, context: dict) -> Tensor:
        self.running = True
        try:
            x = self.first_forward(x, **context)
            for block in self.blocks[1:]:
                x = block(x, **context)
        finally:
            self.running = False
        return x

    def pass_through(self, forward: Callable[..., Tensor], x: Tensor, **context) -> Tensor:
        return forward(x, **context) if self.running or not torch.is_grad_enabled() else x


# Expensive operations, by torch's names; some exist only in some versions or on some devices.
_KEPT = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_mm",
    "_grouped_mm",
    "convolution",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_flash_attention_forward",
)


@functools.cache
def kept_operations() -> frozenset:
    """The operations whose results selective recomputation keeps."""
    return frozenset(getattr(torch.ops.aten, name).default for name in _KEPT if hasattr(torch.ops.aten, name))


def _policy(_context, operation, *_, **__) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in kept_operations() else CheckpointPolicy.PREFER_RECOMPUTE
