"""A loss of whole global batches, over micro-batches: every sample is a wrong answer to all the others.

Embeddings are small where the activations behind them are not. So a rank that has several micro-batches
embeds them one after the other without keeping anything, takes the gradient of the whole loss with respect to
the embeddings, and then runs each micro-batch once more, forwards and backwards from the gradient of its own
embeddings (Gao et al. 2021, GradCache). The numbers are those of one large batch, dropout's masks included,
whose size memory does not bound: BERT's batch of 4,096 questions and blocks needs no 32 GPUs. With one
micro-batch nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import native as checkpoint
from .model.biencoder import Biencoder
from .model.inputs import MicroBatch
from .parallel.mesh import Mesh


def batch_loss(model: nn.Module, batch: Sequence[MicroBatch]) -> Tensor:
    """This rank's summed loss of its share of a global batch, float64, without gradients."""
    if isinstance(model, Biencoder):
        queries, blocks = zip(*(model.embed(**micro.arguments()) for micro in batch))
        return model.contrast(torch.cat(queries), torch.cat(blocks)).double()
    return sum(model.loss(**micro.arguments()).double() for micro in batch)


def contrastive_backward(
    model: Biencoder,
    batch: Sequence[MicroBatch],
    factor: Tensor,
    prepare: Callable[[MicroBatch], None],
    last: Callable[[bool], None],
) -> Tensor:
    """Adds the gradients of factor x the summed loss of a global batch to the parameters; returns this rank's
    part of it, float64.

    prepare: sets the random numbers of a micro-batch. last: is told before each backward pass whether it is
    the last one.
    """
    once = len(batch) == 1
    pairs: list[tuple[Tensor, Tensor]] = []
    for micro in batch:
        prepare(micro)
        with torch.set_grad_enabled(once):
            pairs.append(model.embed(**micro.arguments()))
    leaves = [torch.cat(side).detach().requires_grad_() for side in zip(*pairs)]
    loss = model.contrast(*leaves)
    (loss * factor).backward()
    gradients = zip(*(leaf.grad.split([len(pair[0]) for pair in pairs]) for leaf in leaves))
    for position, (micro, pair, gradient) in enumerate(zip(batch, pairs, gradients)):
        last(position == len(batch) - 1)
        if not once:
            prepare(micro)
            pair = model.embed(**micro.arguments())
        torch.autograd.backward(pair, gradient)
    return loss.detach().double()


@torch.no_grad()
def start_from_bert(path: Path, model: Biencoder, weights: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Fills each tower with a BERT's checkpoint, ours or another library's; their projections then begin
    alike. weights: see checkpoint.named_tensors.
    """
    for name, tower in model.named_children():
        prefix = f"{name}.bert."
        own = {n.removeprefix(prefix): weight for n, weight in weights.items() if n.startswith(prefix)}
        checkpoint.load(path, tower.bert, None, mesh, weights=own, part=True)
    for name, weight in weights.items():
        if name.startswith("context.projection."):
            weight.copy_(weights[name.replace("context.", "query.", 1)])
