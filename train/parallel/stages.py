"""A model cut into pipeline stages: which blocks a stage has, and what of the model is left there.

A stage is the whole model, built without memory (on the meta device), of which the blocks of other stages
became pass-throughs, what stands before the first block or after the last is gone where it is not needed, and
the embedding gives what came from the stage before. So the model's own forward pass is that of every stage,
and all names are those of one process. What goes from stage to stage:

    GPT, BERT           (B, T, D), after a block
    T5, in the encoder  (B, S, D), after a block of the encoder, or its last
    T5, in the decoder  (B, T, D), after a block, and the encoder's states (B, S, D)
    Retro               (B, T, D), and from its encoder to the last layer that reads it the neighbours' states
        (n, k r, D)

A weight that several stages read (an embedding that is the head too, T5's positions and its biases by
distance) belongs to the first of them; the others have copies (pipeline.py keeps them equal).
"""

from __future__ import annotations

import copy
import functools

from torch import nn

from ...core.config import UserError, check
from ..model.block import Block
from ..model.config import ResolvedModelConfig
from ..model.family import family_of
from ..model.stage import PassThrough, StageRules
from .mesh import ParallelConfig


def check_stages(parallel: ParallelConfig, model: ResolvedModelConfig, lengths: dict[str, int]) -> None:
    """Raises UserError where a model cannot be cut into these stages. model: resolved.

    lengths: see sharding.check_layout.
    """
    ranks, size = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
    if ranks == 1:
        return
    stage_rules(model)
    blocks = len(_costs(model, lengths))
    check(
        (
            ranks <= blocks,
            (
                f"parallel.pipeline_model_parallel_size = {ranks} is more than the model's {blocks} blocks;"
                " use at most so many"
            ),
        ),
        (
            size is None or blocks % (ranks * size) == 0,
            (
                f"parallel.num_layers_per_virtual_pipeline_stage = {size} x"
                f" parallel.pipeline_model_parallel_size = {ranks} does not divide the model's {blocks}"
                " blocks; "
                "use one of"
                f" {', '.join(str(n) for n in range(1, blocks // ranks + 1) if blocks % (ranks * n) == 0) or 'none: leave it out, or change the stages'}"
            ),
        ),
    )


def bounds(
    parallel: ParallelConfig, model: ResolvedModelConfig, lengths: dict[str, int]
) -> list[tuple[int, int]]:
    """(first block, block after the last) of every stage: as even as blocks can be dealt out, the head
    counted with the last one.
    """
    costs, ranks, size = (
        _costs(model, lengths),
        parallel.pipeline_model_parallel_size,
        parallel.num_layers_per_virtual_pipeline_stage,
    )
    ends = divide(costs, ranks) if size is None else list(range(size, len(costs) + 1, size))
    return list(zip([0, *ends], ends))


def stage_rules(config: ResolvedModelConfig) -> StageRules:
    """Of the model's family; raises UserError where its models are not cut into stages."""
    rules = family_of(config).stages
    if rules is None:
        raise UserError(
            f"parallel.pipeline_model_parallel_size: model.family = {config.family} is not cut into stages; use"
            " --tensor-model-parallel-size, or more data-parallel processes"
        )
    return rules


def _costs(model: ResolvedModelConfig, lengths: dict[str, int]) -> list[float]:
    """FLOPs of each block; the output layer counts with the last one."""
    family, how = family_of(model), (lengths["seq_length"], lengths.get("decoder_seq_length", 0))
    costs = [cost.full for cost in family.block_flops(model, *how)]
    costs[-1] += family.head_flops(model, *how)
    return costs


def divide(costs: list[float], stages: int) -> list[int]:
    """Where each stage ends: consecutive blocks, the dearest stage as cheap as can be.

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
    while len(ends) < stages:  # a stage of several blocks gives one away: the limit still holds
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


def cut_stage(whole: nn.Module, begin: int, end: int) -> nn.Module:
    """The stage of the blocks `begin` to `end` of a model on the meta device, which stays as it is."""
    model = copy.deepcopy(whole)
    total, first = len(model.layers), 0
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
    model.begin, model.end, model.received = begin, end, []
    model.is_first, model.is_last = begin == 0, end == total
    return model


def owners(config: ResolvedModelConfig, stages: list[tuple[int, int]]) -> dict[str, list[int]]:
    """Part of a model -> the stages that have it, the owner first, where these are several."""
    having: dict[str, list[int]] = {}
    rules = stage_rules(config)
    for index, (begin, end) in enumerate(stages):
        for name in rules.modules(config, begin, end, stages[-1][1]):
            having.setdefault(name, []).append(index)
    return {name: indices for name, indices in sorted(having.items()) if len(indices) > 1}


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The stages of a pipeline on this rank; any other model itself."""
    return list(getattr(model, "stages", [model]))


def own_blocks(model: nn.Module) -> list[Block]:
    """The blocks of a model that are not other stages'."""
    return [block for block in model.layers if isinstance(block, Block)]
