"""Log-likelihoods of given tokens, by an online softmax over chunks of the vocabulary.

N rows, D hidden, V vocabulary, C token ids of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss import WORTH_COMPILING, limited

ROWS = 1024  # rows at a time
# Logits of a chunk: 16 MiB, which fit a CPU's cache; those of the whole vocabulary would come back from
# memory.
PIECE = 1 << 22


class Softmax(NamedTuple):
    """The state of an online softmax over N rows of logits after some of the token ids."""

    largest: Tensor  # (N,) float32, the largest logit
    best: Tensor  # (N,) int64, the first id that has it
    total: Tensor  # (N,) float64, the sum of exp(logit - largest)
    wanted: Tensor  # (N,) float32, the logit of each row's target; 0 where its id is not among them


def likelihoods(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, *, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities in nats (N,) float32 of targets (N,), and whether each is the most probable.

    hidden: (N, D). weight: (V, D), of the output layer. vocab_size: rows of `weight` that are tokens.
    softcap: see loss.limited.
    """
    return answers(read(hidden, weight[:vocab_size], targets, softcap=softcap), targets)


def answers(known: Softmax, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The results of `likelihoods`, from the softmax over all ids."""
    return (known.wanted.double() - known.largest - known.total.log()).float(), known.best == targets


def joined(parts: Softmax) -> Softmax:
    """The softmax over all ids from those over consecutive ranges of ids: every tensor (ranges, N)."""
    largest = parts.largest.amax(0)
    is_largest = parts.largest == largest
    best = parts.best.masked_fill(~is_largest, torch.iinfo(torch.int64).max).amin(0)
    return Softmax(
        largest, best, (parts.total * (parts.largest.double() - largest).exp()).sum(0), parts.wanted.sum(0)
    )


def read(
    hidden: Tensor, weight: Tensor, targets: Tensor, first: int = 0, *, softcap: float | None = None
) -> Softmax:
    """The softmax over the ids `first`, first + 1 ..., whose rows of the output layer are `weight`."""
    N, on_cpu = len(hidden), hidden.device.type == "cpu"
    compiled = on_cpu and hidden.dtype == torch.float32 and N * len(weight) >= WORTH_COMPILING
    if compiled:
        from .softmax import fold_
    else:
        fold_ = _fold_
    make = lambda value, dtype: torch.full((N,), value, dtype=dtype, device=hidden.device)
    known = Softmax(
        make(float("-inf"), torch.float32),
        make(0, torch.int64),
        make(0, torch.float64),
        make(0, torch.float32),
    )
    for start in range(0, N, ROWS):
        rows = slice(start, start + ROWS)
        x, target = hidden[rows], targets[rows] - first
        columns = max(1, PIECE // len(x) if on_cpu else len(weight))
        for c in range(0, len(weight), columns):
            logits = limited(F.linear(x, weight[c : c + columns]).float(), softcap)
            here = (target >= c) & (target < c + logits.shape[1])
            picked = logits.gather(1, (target - c).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            known.wanted[rows] += picked.masked_fill(~here, 0.0)
            fold_(logits, first + c, *(tensor[rows] for tensor in known[:3]))
    return known


def _fold_(logits: Tensor, first: int, largest: Tensor, best: Tensor, total: Tensor) -> None:
    """softmax.fold_ by torch's operations, on any device; overwrites the logits."""
    most, place = logits.max(1)
    new = torch.maximum(most, largest)
    best.copy_(torch.where(most > largest, place + first, best))
    total.mul_((largest.double() - new).exp()).add_(logits.sub_(new[:, None]).exp_().sum(1))
    largest.copy_(new)
