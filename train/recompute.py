"""Activations thrown away in the forward pass and computed again in the backward pass (Chen et al.

2016), applied to a model from outside.

    selective                the products of matrices and attention are kept; what is cheap is computed again
    full, uniform, N         every N blocks keep only what went in
    full, block, N           the first N blocks of a stack keep only what went in, the others everything

No loss and no gradient changes by a bit: the same operations run again on the same numbers, dropout's
included.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..core.config import check, configuration, option
from .model.block import Block


@configuration(group="recompute")
class RecomputeConfig:
    """Memory for time: which activations are computed again."""

    recompute_granularity: Literal["selective", "full"] | None = option(
        None, "selective: all but products of matrices and attention; full: whole blocks"
    )
    recompute_method: Literal["uniform", "block"] = option(
        "uniform", "full: groups of blocks, or single blocks from the first on"
    )
    recompute_num_layers: int = option(
        1, "full: blocks in a group (uniform), or blocks that are recomputed (block)"
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
                (
                    "recompute_method and recompute_num_layers need recompute_granularity = full; give it, or"
                    " leave them out"
                ),
            ),
        )


def recompute(model: nn.Module, config: RecomputeConfig) -> None:
    """Wraps the blocks of a model, in place."""
    drops = model.config.hidden_dropout > 0 or model.config.attention_dropout > 0
    how = {"use_reentrant": False, "preserve_rng_state": drops}
    if config.recompute_granularity == "selective":
        how["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for blocks in stacks(model):
        count = config.recompute_num_layers
        if config.recompute_granularity == "full" and config.recompute_method == "uniform":
            groups = [blocks[i : i + count] for i in range(0, len(blocks), count)]
        elif config.recompute_granularity == "full":
            groups = [[block] for block in blocks[:count]]
        else:
            groups = [[block] for block in blocks]
        for group in groups:
            _Group(group, how)


def stacks(model: nn.Module) -> list[list[Block]]:
    """The rows of blocks that a model runs one after the other (an encoder's, a decoder's; of a pipeline
    stage those that it has).

    Blocks within a block (Retro's encoder) are its own.
    """
    within = {
        inner
        for block in model.modules()
        if isinstance(block, Block)
        for inner in block.modules()
        if inner is not block
    }
    lists = (
        module for module in model.modules() if isinstance(module, nn.ModuleList) and module not in within
    )
    rows = ([block for block in blocks if isinstance(block, Block)] for blocks in lists)
    return [row for row in rows if row]


class _Group:
    """Blocks that keep only what goes into the first of them.

    The model calls its blocks one by one. The first then runs the whole group, and the others hand on what
    they get. Inside, they are called as modules, so that hooks on them (sharded parameters) still work.
    """

    def __init__(self, blocks: list[Block], how: dict):
        self.blocks, self.how, self.running = blocks, how, False
        self.first = blocks[0].forward
        blocks[0].forward = self.run
        for block in blocks[1:]:
            block.forward = functools.partial(self.pass_on, block.forward)

    def run(self, x: Tensor, **context) -> Tensor:
        if not torch.is_grad_enabled():
            return self.first(x, **context)
        return checkpoint(self.compute, x, context, **self.how)

    def compute(self, x: Tensor, context: dict) -> Tensor:
        self.running = True
        try:
            x = self.first(x, **context)
            for block in self.blocks[1:]:
                x = block(x, **context)
        finally:
            self.running = False
        return x

    def pass_on(self, forward, x: Tensor, **context) -> Tensor:
        return forward(x, **context) if self.running or not torch.is_grad_enabled() else x


# What is dear to compute, by torch's names; some exist only in some versions or on some devices.
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
    """Those whose results selective recomputation keeps."""
    return frozenset(getattr(torch.ops.aten, name).default for name in _KEPT if hasattr(torch.ops.aten, name))


def _policy(_context, operation, *_, **__) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in kept_operations() else CheckpointPolicy.PREFER_RECOMPUTE
