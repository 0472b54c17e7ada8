"""WarmStart: which weights of a model come from a checkpoint of another kind of model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .base import Model


def _no_more(weights: Mapping[str, Tensor]) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """How a model starts from another kind of model's checkpoint.

    source: the kind of model in the checkpoint, for messages. parts: the modules of the model that it fills,
    by the prefix of their weights' names. allow_extra: whether it may have weights that these modules lack.
    allow_missing: by name, which of their weights it may lack. settings: prefix of the settings in which the
    two models may differ; None: settings are not compared. finish: a last change of the model's weights, by
    name.
    """

    source: str
    parts: Callable[[Model], Mapping[str, nn.Module]]
    allow_extra: bool = False
    allow_missing: Callable[[str], bool] | None = None
    settings: str | None = None
    finish: Callable[[Mapping[str, Tensor]], None] = _no_more
