"""The model that a configuration describes."""

from __future__ import annotations

import torch
from torch import nn

from .bert import Bert
from .biencoder import Biencoder
from .config import ModelConfig
from .gpt import GPT
from .retro import Retro
from .t5 import T5


def build_model(config: ModelConfig) -> nn.Module:
    """A GPT (Retro where it retrieves), Bert, T5 or Biencoder whose weights have no values yet: see
    layers.initialize. config must be resolved.

    Every one has `layers`, its blocks, and `loss(**arguments)`, a summed float scalar (MicroBatch.arguments).
    """
    return {"gpt": Retro if config.retro_add_retriever else GPT, "bert": Bert, "t5": T5, "ict": Biencoder}[
        config.family
    ](config)


def count_parameters(config: ModelConfig) -> int:
    """Of the whole model; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())
