"""The gradients of a step: forward and backward passes over this rank's micro-batches of a global batch."""

from __future__ import annotations

import functools

from torch import Tensor

from .determinism import seed_generators
from .model.base import Model
from .model.inputs import MicroBatch
from .model.moe import set_loss_scale
from .parallel.parallelize import synchronise_gradients
from .parallel.pipeline import Pipeline


def forward_backward(
    model: Model | Pipeline,
    batch: list[MicroBatch],
    factor: Tensor,
    *,
    seed: str,
    place: str = "",
    experts: bool = False,
) -> Tensor:
    """Adds the gradients of factor x the summed loss; returns this rank's summed loss, float64.

    In a pipeline the loss is that of all its stages. factor: one over the tokens of the global batch, times
    float16's loss scale. seed: with the index of a micro-batch it determines its dropout masks, so that these
    are the same after a resume and at every data-parallel size. place: differs where ranks have parts of a
    sequence (see parallelize.dropout_place). experts: whether the model has mixtures of experts.
    """
    if experts:
        set_loss_scale(model, factor)
    prepare = lambda micro: seed_generators(f"{seed}:{micro.index}{place}")
    if isinstance(model, Pipeline):
        return model.forward_backward(batch, factor, prepare)
    return model.forward_backward(batch, factor, prepare, functools.partial(synchronise_gradients, model))
