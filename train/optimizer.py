"""AdamW with its decay groups, the learning rate's settings, and the clipping of gradients by their global norm."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import UserError, check, option
from .parallel.mesh import Mesh, local
from .schedule import LearningRate


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and the learning rate's course."""

    lr: float = option(3e-4, "peak learning rate")
    min_lr: float = option(0.0, "learning rate at the end of the decay")
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = option("cosine", "how it falls after the warm-up")
    lr_decay_iters: int | None = option(None, "steps until the minimum (default: the whole run)")
    lr_decay_samples: int | None = option(None, "samples until the minimum, in a run that counts samples")
    lr_warmup_fraction: float | None = option(None, "warm-up, as a fraction of the decay")
    lr_warmup_iters: int = option(0, "warm-up in steps")
    lr_warmup_samples: int = option(0, "warm-up in samples")
    lr_wsd_decay_iters: int | None = option(None, "WSD: steps over which the rate falls at the end")
    lr_wsd_decay_samples: int | None = option(None, "WSD: samples over which the rate falls at the end")
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = option("exponential", "WSD: how it falls")
    weight_decay: float = option(0.01, "decoupled weight decay; biases and other vectors have none")
    adam_beta1: float = option(0.9, "decay of the first moment")
    adam_beta2: float = option(0.999, "decay of the second moment")
    adam_eps: float = option(1e-8, "added to the root of the second moment")
    clip_grad: float = option(1.0, "largest norm of the whole gradient; 0 for no limit")

    def __post_init__(self):
        warmups = [n for n in ("lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples") if getattr(self, n)]
        pairs = [(a, b) for a, b in (("lr_decay_iters", "lr_decay_samples"), ("lr_wsd_decay_iters", "lr_wsd_decay_samples")) if getattr(self, a) and getattr(self, b)]
        check(
            (self.lr > 0, f"optimizer.lr = {self.lr} must be above 0"),
            (0 <= self.min_lr <= self.lr, f"optimizer.min_lr = {self.min_lr} must lie between 0 and lr = {self.lr}"),
            (len(warmups) <= 1, f"{' and '.join(warmups)} are both given; keep one"),
            (self.lr_warmup_fraction is None or 0 <= self.lr_warmup_fraction < 1, f"optimizer.lr_warmup_fraction = {self.lr_warmup_fraction} must be at least 0 and below 1"),
            *((False, f"{a} and {b} are both given; keep one") for a, b in pairs),
            *((getattr(self, n) >= 0, f"optimizer.{n} = {getattr(self, n)} must not be negative") for n in ("weight_decay", "clip_grad", "lr_warmup_iters", "lr_warmup_samples")),
            *((0 <= getattr(self, n) < 1, f"optimizer.{n} = {getattr(self, n)} must be at least 0 and below 1") for n in ("adam_beta1", "adam_beta2")),
        )


def learning_rate(config: OptimizerConfig, *, total_samples: int, global_batch_size: int, by_samples: bool) -> LearningRate:
    """The learning rate's course in samples; raises UserError where its parts do not fit.

    by_samples: the run's length is given in samples, so that counts of steps mean nothing, or the other way round.
    """
    wrong = [n for n in dataclasses.asdict(config) if n.startswith("lr_") and n.endswith("iters" if by_samples else "samples") and getattr(config, n)]
    if wrong:
        raise UserError(f"optimizer.{wrong[0]} does not fit a run of --train-{'samples' if by_samples else 'iters'}; use {wrong[0].rsplit('_', 1)[0]}_{'samples' if by_samples else 'iters'}")

    def samples(name: str) -> int | None:
        steps = getattr(config, f"{name}_iters")
        return getattr(config, f"{name}_samples") or (steps and steps * global_batch_size)

    decay = samples("lr_decay") or total_samples
    warmup = int(config.lr_warmup_fraction * decay) if config.lr_warmup_fraction is not None else samples("lr_warmup") or 0
    wsd_decay = samples("lr_wsd_decay") or 0
    check(
        (warmup < decay, f"the learning rate's warm-up ({warmup} samples) must be shorter than its decay ({decay} samples); shorten the warm-up"),
        (config.lr_decay_style != "WSD" or 0 < wsd_decay <= decay - warmup, f"lr_decay_style = WSD needs lr_wsd_decay_iters (or _samples) between 1 and the decay after the warm-up ({(decay - warmup) // global_batch_size} steps)"),
    )
    return LearningRate(config.lr, config.min_lr, config.lr_decay_style, warmup, decay, wsd_decay, config.lr_wsd_decay_style)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of a (sharded or plain) model; matrices decay, vectors and biases do not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    # fused: one pass over parameter, gradient and moments instead of a dozen.
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps, fused=True)


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float, mesh: Mesh) -> Tensor:
    """Scales the gradients so that their global 2-norm is at most `limit` (0: no limit); returns the norm before.

    torch's own clip_grad_norm_ refuses parameters of different meshes, so this works on the local shards: every
    parameter is cut over all ranks, and the squares add up.
    """
    gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
    # On CPU torch sums float32 squares one after the other: over 2 million of them the norm is off by 3e-5, by another
    # amount in each way of cutting them over ranks. GPUs sum in trees, where float32 does.
    wide = torch.float32 if mesh.device.type == "cuda" else torch.float64
    norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=wide))
    square = norms.square().sum()
    norm = mesh.sum(square).sqrt() if mesh.world_size > 1 else square.sqrt()
    if limit > 0:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype))
    return norm
