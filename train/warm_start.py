"""Starts a model from the checkpoint of another kind of model: biencoder from BERT, Retro from GPT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .checkpoint.base import Checkpoint
from .model.base import Model
from .model.config import ModelConfig
from .model.family import family_of
from .model.warm_start import WarmStart
from .parallel.mesh import Mesh


def warm_start_of(source: Checkpoint, model: ModelConfig) -> WarmStart | None:
    """How a model starts from a checkpoint of another kind; None if the checkpoint is of the same kind."""
    return family_of(model).warm_start(model, source.config)


@torch.no_grad()
def warm_start(
    start: WarmStart, source: Checkpoint, model: Model, weights: Mapping[str, Tensor], mesh: Mesh
) -> None:
    """Loads the parts of a model that a checkpoint has. weights: see named_tensors in checkpoint/base.py."""
    for prefix, part in start.parts(model).items():
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        source.load(
            part, None, mesh, weights=own, allow_extra=start.allow_extra, allow_missing=start.allow_missing
        )
    start.finish(weights)
