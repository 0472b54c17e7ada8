"""Divide a model into pipeline stages: which blocks and which other modules each stage has.

A stage is the whole model, built on the meta device, in which the blocks of other stages pass their input
through, modules before the first and after the last block are removed where they are not needed, and `embed`
gives the states that came from the stage before (model/stage.py). So the model's own forward pass is that of
every stage, and names of weights are those of one process. Sent from stage to stage:

    GPT, BERT           (B, T, D), after a block
    T5, in the encoder  (B, S, D), after a block of the encoder, or its last states
    T5, in the decoder  (B, T, D), after a block, and the encoder's states (B, S, D)
    Retro               (B, T, D), and the neighbours' states (n, k r, D), from the encoder to the last layer
                        that reads them

A weight that several stages read (an embedding that is also the output layer, T5's positions and relative
biases) belongs to the first of them. The others have copies, which pipeline.py keeps equal.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import cast

from torch import nn

from ...core.config import UserError, check
from ..model.base import Model
from ..model.block import Block
from ..model.config import ResolvedModelConfig
from ..model.family import family_of
from ..model.stage import PassThrough, PipelineStage, StageRules
from .mesh import ParallelConfig


def check_stages(parallel: ParallelConfig, model: ResolvedModelConfig, lengths: dict[str, int]) -> None:
    """Raises UserError if a model cannot be divided into these stages. model: resolved.

    lengths: see parallelize.check_layout.
    """
    ranks, size = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
    if ranks == 1:
        return
    stage_rules(model)
    blocks = len(_costs(model, lengths))
    sizes = [str(n) for n in range(1, blocks // ranks + 1) if blocks % (ranks * n) == 0]
    given = parallel.stage_lengths
    possible = ", ".join(sizes) or "none: leave it out, or change the stages"
    check(
        (
            ranks <= blocks,
            f"parallel.pipeline_model_parallel_size = {ranks} is more than the model's {blocks} blocks;"
            " use at most so many",
        ),
        (
            given is None or sum(given) == blocks,
            f"parallel.pipeline_model_parallel_layout has {sum(given or [])} blocks, and the model {blocks};"
            " write a t for each",
        ),
        (
            size is None or blocks % (ranks * size) == 0,
            f"parallel.num_layers_per_virtual_pipeline_stage = {size} x"
            f" parallel.pipeline_model_parallel_size = {ranks} does not divide the model's {blocks}"
            f" blocks; use one of {possible}",
        ),
    )


def bounds(
    parallel: ParallelConfig, model: ResolvedModelConfig, lengths: dict[str, int]
) -> list[tuple[int, int]]:
    """(first block, block after the last) of every stage, as the layout says it.

    Otherwise FLOPs are divided as evenly as blocks allow; the output layer counts with the last block.
    """
    if (given := parallel.stage_lengths) is not None:
        ends = list(itertools.accumulate(given))
        return list(zip([0, *ends], ends))
    costs = _costs(model, lengths)
    ranks, size = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
    ends = divide(costs, ranks) if size is None else list(range(size, len(costs) + 1, size))
    return list(zip([0, *ends], ends))


def stage_rules(config: ResolvedModelConfig) -> StageRules:
    """The StageRules of the model's family; raises UserError if its models cannot be divided into stages."""
    rules = family_of(config).stages
    if rules is None:
        raise UserError(
            f"parallel.pipeline_model_parallel_size: model.family = {config.family} is not cut into stages;"
            " use --tensor-model-parallel-size, or more data-parallel processes"
        )
    return rules


def _costs(model: ResolvedModelConfig, lengths: dict[str, int]) -> list[float]:
    """FLOPs of each block; the output layer counts with the last one."""
    family, how = family_of(model), (lengths["seq_length"], lengths.get("decoder_seq_length", 0))
    costs = [cost.full for cost in family.block_flops(model, *how)]
    costs[-1] += family.head_flops(model, *how).full
    return costs


def divide(costs: list[float], stages: int) -> list[int]:
    """The ends of stages of consecutive blocks, such that the most expensive stage is as cheap as possible.

    len(costs) >= stages.
    """
    return list(_divide(tuple(costs), stages))


@functools.lru_cache(4096)
def _divide(costs: tuple[float, ...], stages: int) -> tuple[int, ...]:
    low, high = max(costs), sum(costs)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_fill(costs, middle)) <= stages else (middle, high)
    ends = _fill(costs, high)
    while len(ends) < stages:  # split a stage of several blocks: no stage exceeds the limit then either
        begins = [0, *ends]
        longest = max(range(len(ends)), key=lambda i: ends[i] - begins[i])
        ends.insert(longest, ends[longest] - 1)
    return tuple(ends)


def _fill(costs: tuple[float, ...], limit: float) -> list[int]:
    ends, total = [], 0.0
    for i, cost in enumerate(costs):
        if total + cost > limit * (1 + 1e-12) and i > 0:
            ends.append(i)
            total = 0.0
        total += cost
    return [*ends, len(costs)]


def cut_stage(whole: Model, begin: int, end: int) -> PipelineStage:
    """The stage with blocks `begin` to `end` of a model on the meta device, which is not changed."""
    model = copy.deepcopy(whole)
    total, first = len(list(model.layers)), 0
    for row in [m for m in model.children() if isinstance(m, nn.ModuleList)]:
        for i in range(len(row)):
            if not begin <= first + i < end:
                row[i] = PassThrough()
        first += len(row)
    rules = stage_rules(model.config)
    kept = rules.modules(model.config, begin, end, total)
    for name, child in list(model.named_children()):
        if name not in kept and not isinstance(child, nn.ModuleList):
            setattr(model, name, nn.Identity() if name.endswith("norm") else None)
    kind = type(model)
    model.__class__ = type(f"Stage{kind.__name__}", (rules.behaviour(model.config), kind), {})
    stage = cast(PipelineStage, model)  # its class is one now
    stage.begin, stage.end, stage.received = begin, end, []
    stage.is_first, stage.is_last = begin == 0, end == total
    return stage


def owners(config: ResolvedModelConfig, stages: list[tuple[int, int]]) -> dict[str, list[int]]:
    """Module of a model -> the stages that have it, the owner first, if several stages have it."""
    having: dict[str, list[int]] = {}
    rules = stage_rules(config)
    for index, (begin, end) in enumerate(stages):
        for name in rules.modules(config, begin, end, stages[-1][1]):
            having.setdefault(name, []).append(index)
    return {name: indices for name, indices in sorted(having.items()) if len(indices) > 1}


def stages_of(model: nn.Module) -> list[Model]:
    """The stages of a pipeline on this rank; [model] for a model that is not a pipeline."""
    return list(getattr(model, "stages", [model]))


def own_blocks(model: Model) -> list[Block]:
    """The blocks of a model, without those of other stages."""
    return [block for block in model.layers if isinstance(block, Block)]
