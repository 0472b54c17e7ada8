"""A loss of whole global batches, over micro-batches: every sample is a wrong answer to all the others.

Embeddings are small where the activations behind them are not. So a rank that has several micro-batches
embeds them one after the other without keeping anything, takes the gradient of the whole loss with respect to
the embeddings, and then runs each micro-batch once more, forwards and backwards from the gradient of its own
embeddings (Gao et al. 2021, GradCache). The numbers are those of one large batch, dropout's masks included,
whose size memory does not bound: BERT's batch of 4,096 questions and blocks needs no 32 GPUs. With one
micro-batch nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .checkpoint.base import Checkpoint
from .model.biencoder import Biencoder
from .parallel.mesh import Mesh


@torch.no_grad()
def start_from_bert(
    checkpoint: Checkpoint, model: Biencoder, weights: Mapping[str, Tensor], mesh: Mesh
) -> None:
    """Fills each tower with a BERT's checkpoint, ours or another library's; their projections then begin
    alike. weights: see checkpoint/base.py: named_tensors.
    """
    for name, tower in model.named_children():
        prefix = f"{name}.bert."
        own = {n.removeprefix(prefix): weight for n, weight in weights.items() if n.startswith(prefix)}
        checkpoint.load(tower.bert, None, mesh, weights=own, allow_extra=True)
    for name, weight in weights.items():
        if name.startswith("context.projection."):
            weight.copy_(weights[name.replace("context.", "query.", 1)])
