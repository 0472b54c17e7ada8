"""One step's gradients: the forward and backward passes over a global batch's micro-batches on this rank."""

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
    """Adds the gradients of factor x the summed loss to the parameters: factor is one over the tokens of the
    whole global batch, times float16's loss scale.

    Returns this rank's summed loss, float64; of a pipeline that of all its stages. Each micro-batch's dropout
    is drawn from `seed` and its index alone, so that it is the same after a resume and at every data-parallel
    size, and from `place` where ranks have parts of a sequence (sharding.dropout_place). experts: whether the
    model has mixtures.
    """
    if experts:
        set_loss_scale(model, factor)
    prepare = lambda micro: seed_generators(f"{seed}:{micro.index}{place}")
    if isinstance(model, Pipeline):
        return model.forward_backward(batch, factor, prepare)
    return model.forward_backward(batch, factor, prepare, functools.partial(synchronise_gradients, model))
