"""Megatron-LM's uneven pipelines as the numbers of blocks of each stage: the layout of `mt train`.

Stages are in the order of blocks: with interleaving, the first ones of all processes, then the second ones,
and so on. Megatron-LM's stages may have no block (`...|L`); here each has one, which it takes from the
nearest stage. Results do not depend on where a block is.
"""

from __future__ import annotations

from collections.abc import Sequence


def ends_given(
    layers: int, stages: int, virtual: int, first: int | None, last: int | None
) -> list[int] | None:
    """Of --decoder-first- and --decoder-last-pipeline-num-layers: the processes between share the others.

    virtual: stages of each process. None where they do not divide.
    """
    between = stages - (first is not None) - (last is not None)
    rest = layers - (first or 0) - (last or 0)
    if rest < 0 or rest % max(between, 1) or (between == 0 and rest) or between < 0:
        return None
    ranks = [rest // max(between, 1)] * between
    ranks = [*([first] if first is not None else []), *ranks, *([last] if last is not None else [])]
    if any(count % virtual for count in ranks):
        return None
    return [count // virtual for count in ranks] * virtual


def ends_counted(layers: int, stages: int, virtual: int, embedding: bool, loss: bool) -> list[int] | None:
    """Of --account-for-embedding- and --account-for-loss-in-pipeline-split: each counts as a layer."""
    total = layers + embedding + loss
    if total % (stages * virtual):
        return None
    lengths = [total // (stages * virtual)] * (stages * virtual)
    lengths[0] -= embedding
    lengths[-1] -= loss
    return lengths if min(lengths) >= 0 else None


def without_empty(lengths: Sequence[int]) -> list[int] | None:
    """The lengths with a block for each stage that has none, from the nearest stage that has several.

    The blocks between move with it, so that their order stays. None where there are fewer blocks than stages.
    """
    made = list(lengths)
    if sum(made) < len(made):
        return None
    while 0 in made:
        empty = made.index(0)
        donors = [i for i, count in enumerate(made) if count > 1]
        made[min(donors, key=lambda i: abs(i - empty))] -= 1
        made[empty] = 1
    return made


def as_layout(lengths: Sequence[int]) -> str:
    """The text of --pipeline-model-parallel-layout."""
    return "|".join("t" if count == 1 else f"t*{count}" for count in lengths)
