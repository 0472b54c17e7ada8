"""AdamW and SGD, their settings and schedules, and gradient clipping by the global norm.

The optimizer steps float32 weights by name: the model's own, or master weights where the model computes in a
lower precision (precision.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.config import UserError, check, configuration, option
from .model.dtensor import local_shard, num_replicas
from .parallel.mesh import Mesh
from .schedule import LearningRate, WeightDecay

DECOUPLED = (["embedding", "weight"], ["output", "weight"])  # the ends of the names of decoupled_lr's weights
QK_NORMS = ("query_norm", "key_norm")  # the norms of qk_layernorm
NORM_PIECE = 1 << 15  # numbers: 256 KB of float64, and so few that torch uses one thread


@configuration(group="optimizer")
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) or SGD, and the schedules of learning rate and weight decay."""

    optimizer: Literal["adam", "sgd"] = option(
        "adam", "adam is AdamW; sgd is torch's, whose weight decay is added to the gradient"
    )
    lr: float = option(3e-4, "peak learning rate")
    min_lr: float = option(0.0, "learning rate at the end of the decay")
    decoupled_lr: float | None = option(
        None, "peak learning rate of the token embedding and the output layer (default: lr)", added=True
    )
    decoupled_min_lr: float | None = option(
        None, "their learning rate at the end of the decay (default: min-lr)", added=True
    )
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = option(
        "cosine", "how the learning rate falls after the warm-up"
    )
    lr_decay_iters: int | None = option(None, "steps until min_lr is reached (default: the whole run)")
    lr_decay_samples: int | None = option(None, "samples until min_lr is reached, with --train-samples")
    lr_warmup_fraction: float | None = option(None, "length of the warm-up, as a fraction of the decay's")
    lr_warmup_iters: int = option(0, "length of the warm-up in steps")
    lr_warmup_samples: int = option(0, "length of the warm-up in samples")
    lr_warmup_init: float = option(0.0, "learning rate at the start of the warm-up")
    lr_wsd_decay_iters: int | None = option(None, "WSD: length of the final decay in steps")
    lr_wsd_decay_samples: int | None = option(None, "WSD: length of the final decay in samples")
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = option(
        "exponential", "WSD: shape of the final decay"
    )
    weight_decay: float = option(
        0.01, "decoupled weight decay of matrices; biases and other vectors have none"
    )
    apply_wd_to_qk_layernorm: bool = option(
        False, "weight decay of the norms of qk-layernorm too, as Qwen3-Next has it", added=True
    )
    start_weight_decay: float | None = option(None, "weight decay at the start, if it changes over the run")
    end_weight_decay: float | None = option(None, "weight decay at the end, if it changes over the run")
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = option(
        "constant", "how the weight decay goes from start to end"
    )
    adam_beta1: float = option(0.9, "decay of the first moment")
    adam_beta2: float = option(0.999, "decay of the second moment")
    adam_eps: float = option(1e-8, "added to the square root of the second moment")
    sgd_momentum: float = option(0.9, "momentum of sgd")
    clip_grad: float = option(1.0, "maximum norm of the whole gradient; 0: no clipping")

    @property
    def lowest_decoupled_lr(self) -> float:
        """The learning rate of the embedding at the end of the decay."""
        return self.min_lr if self.decoupled_min_lr is None else self.decoupled_min_lr

    @property
    def num_moments(self) -> int:
        """Optimizer state per weight, in numbers."""
        return 2 if self.optimizer == "adam" else 1

    def __post_init__(self):
        warmups = [
            n for n in ("lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples") if getattr(self, n)
        ]
        pairs = [
            (a, b)
            for a, b in (
                ("lr_decay_iters", "lr_decay_samples"),
                ("lr_wsd_decay_iters", "lr_wsd_decay_samples"),
            )
            if getattr(self, a) and getattr(self, b)
        ]
        ends = (self.start_weight_decay, self.end_weight_decay)
        constant = self.weight_decay_incr_style == "constant"
        check(
            (self.lr > 0, f"optimizer.lr = {self.lr} must be above 0"),
            (
                0 <= self.min_lr <= self.lr,
                f"optimizer.min_lr = {self.min_lr} must lie between 0 and lr = {self.lr}",
            ),
            (
                0 <= self.lr_warmup_init <= self.lr,
                f"optimizer.lr_warmup_init = {self.lr_warmup_init} must lie between 0 and lr = {self.lr}",
            ),
            (
                self.decoupled_lr is None or self.decoupled_lr > 0,
                f"optimizer.decoupled_lr = {self.decoupled_lr} must be above 0",
            ),
            (
                self.decoupled_min_lr is None or self.decoupled_lr is not None,
                "optimizer.decoupled_min_lr needs --decoupled-lr",
            ),
            (
                self.decoupled_lr is None
                or (
                    0 <= self.lowest_decoupled_lr <= self.decoupled_lr
                    and self.lr_warmup_init <= self.decoupled_lr
                ),
                f"optimizer.decoupled_lr = {self.decoupled_lr} must be at least its end"
                f" {self.lowest_decoupled_lr} and lr_warmup_init = {self.lr_warmup_init}; give"
                " --decoupled-min-lr",
            ),
            (len(warmups) <= 1, f"{' and '.join(warmups)} are both given; keep one"),
            (
                self.lr_warmup_fraction is None or 0 <= self.lr_warmup_fraction < 1,
                f"optimizer.lr_warmup_fraction = {self.lr_warmup_fraction} must be at least 0 and below 1",
            ),
            *((False, f"{a} and {b} are both given; keep one") for a, b in pairs),
            (
                constant or None not in ends,
                f"optimizer.weight_decay_incr_style = {self.weight_decay_incr_style} needs"
                " start_weight_decay and end_weight_decay",
            ),
            (
                not constant or ends == (None, None),
                "start_weight_decay and end_weight_decay need weight_decay_incr_style linear or cosine;"
                " for one value all along give weight_decay",
            ),
            *(
                (getattr(self, n) >= 0, f"optimizer.{n} = {getattr(self, n)} must not be negative")
                for n in ("weight_decay", "clip_grad", "lr_warmup_iters", "lr_warmup_samples")
            ),
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 0,
                    f"optimizer.{n} = {getattr(self, n)} must not be negative",
                )
                for n in ("start_weight_decay", "end_weight_decay")
            ),
            *(
                (
                    0 <= getattr(self, n) < 1,
                    f"optimizer.{n} = {getattr(self, n)} must be at least 0 and below 1",
                )
                for n in ("adam_beta1", "adam_beta2", "sgd_momentum")
            ),
        )


def learning_rate(
    config: OptimizerConfig, *, total_samples: int, global_batch_size: int, by_samples: bool
) -> LearningRate:
    """The learning-rate schedule, in samples.

    by_samples: the length of the run is given in samples, so settings in steps are refused; otherwise
    settings in samples are. Raises UserError for those, and where warm-up and decay do not fit each other.
    """
    wrong = [
        n
        for n in dataclasses.asdict(config)
        if n.startswith("lr_") and n.endswith("iters" if by_samples else "samples") and getattr(config, n)
    ]
    if wrong:
        raise UserError(
            f"optimizer.{wrong[0]} does not fit a run of --train-{'samples' if by_samples else 'iters'}; use"
            f" {wrong[0].rsplit('_', 1)[0]}_{'samples' if by_samples else 'iters'}"
        )

    def samples(name: str) -> int | None:
        steps = getattr(config, f"{name}_iters")
        return getattr(config, f"{name}_samples") or (steps and steps * global_batch_size)

    decay = samples("lr_decay") or total_samples
    warmup = (
        int(config.lr_warmup_fraction * decay)
        if config.lr_warmup_fraction is not None
        else samples("lr_warmup") or 0
    )
    wsd_decay = samples("lr_wsd_decay") or 0
    check(
        (
            warmup < decay,
            f"the learning rate's warm-up ({warmup} samples) must be shorter than its decay ({decay}"
            " samples); shorten the warm-up",
        ),
        (
            config.lr_decay_style != "WSD" or 0 < wsd_decay <= decay - warmup,
            "lr_decay_style = WSD needs lr_wsd_decay_iters (or _samples) between 1 and the decay after"
            f" the warm-up ({(decay - warmup) // global_batch_size} steps)",
        ),
    )
    return LearningRate(
        config.lr,
        config.min_lr,
        config.lr_decay_style,
        warmup,
        decay,
        wsd_decay,
        config.lr_wsd_decay_style,
        config.lr_warmup_init,
    )


def weight_decay(config: OptimizerConfig, total_samples: int) -> WeightDecay:
    """The weight-decay schedule, in samples."""
    style, start, end = config.weight_decay_incr_style, config.start_weight_decay, config.end_weight_decay
    if start is None or end is None:  # OptimizerConfig allows this for "constant" alone
        return WeightDecay(config.weight_decay, config.weight_decay, "constant", total_samples)
    return WeightDecay(start, end, style, total_samples)


def build_optimizer(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over weights by name.

    With decoupled_lr the token embedding and the output layer are a group of their own. Matrices have weight
    decay, vectors and biases have none (the stacked biases of experts are a matrix), except those of the
    norms of queries and keys with apply_wd_to_qk_layernorm.
    """
    weights = {name: p for name, p in weights.items() if p.requires_grad}
    free = {name for name, p in weights.items() if p.ndim < 2 or name.rsplit(".", 1)[-1].endswith("bias")}
    if config.apply_wd_to_qk_layernorm:
        free -= {name for name in free if name.rsplit(".", 2)[-2] in QK_NORMS}
    own = set() if config.decoupled_lr is None else {n for n in weights if n.split(".")[-2:] in DECOUPLED}
    groups = [
        {
            "params": [p for name, p in weights.items() if name not in free | own],
            "weight_decay": config.weight_decay,
            "decays": True,
        },
        {
            "params": [weights[name] for name in weights if name in own],
            "weight_decay": config.weight_decay,
            "decays": True,
            "decoupled": True,
        },
        {"params": [p for name, p in weights.items() if name in free], "weight_decay": 0.0, "decays": False},
    ]
    groups = [g for g in groups if g["params"]]
    # fused: one pass over parameters, gradients and moments instead of about twelve
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.sgd_momentum, fused=True)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps, fused=True
    )


def set_rates(
    optimizer: torch.optim.Optimizer, rate: float, decay: float, decoupled: float | None = None
) -> None:
    """Sets the learning rate and weight decay of the next step. decoupled: the rate of decoupled_lr."""
    for group in optimizer.param_groups:
        group["lr"] = decoupled if decoupled is not None and "decoupled" in group else rate
        if group["decays"]:
            group["weight_decay"] = decay


@torch.no_grad()
def gradient_norm(weights: Iterable[nn.Parameter], mesh: Mesh) -> Tensor:
    """The 2-norm of all gradients together, over all ranks; a scalar.

    torch's get_total_norm refuses parameters on different meshes, so this takes the local shards. The squares
    are summed over all ranks; a shard that several ranks have is counted once.
    """
    return _total_norm([p.grad for p in weights if p.grad is not None], mesh)


@torch.no_grad()
def weights_norm(weights: Iterable[nn.Parameter], mesh: Mesh) -> Tensor:
    """The 2-norm of all weights together, over all ranks; a scalar."""
    return _total_norm([p.detach() for p in weights], mesh)


@torch.no_grad()
def zeros_in_gradients(weights: Iterable[nn.Parameter], mesh: Mesh) -> Tensor:
    """The number of zeros in all gradients together, over all ranks; a scalar."""
    zeros = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for gradient in (p.grad for p in weights if p.grad is not None):
        shard = local_shard(gradient)
        zeros += (shard.numel() - torch.count_nonzero(shard)) / num_replicas(gradient)
    return mesh.all_reduce(zeros)


def _total_norm(tensors: list[Tensor], mesh: Mesh) -> Tensor:
    replicas = [num_replicas(t) for t in tensors]
    shards = [local_shard(t) for t in tensors]
    norm = _norm_on_gpu if mesh.device.type == "cuda" else _norm_on_cpu
    squares = norm(shards).square()
    if mesh.world_size == 1:
        return squares.sum().sqrt()
    return mesh.all_reduce((squares / torch.tensor(replicas, device=squares.device)).sum()).sqrt()


def _norm_on_gpu(gradients: list[Tensor]) -> Tensor:
    """2-norms of gradients, (n,) float32. GPUs sum in a tree, for which float32 is precise enough."""
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32))


def _norm_on_cpu(gradients: list[Tensor]) -> Tensor:
    """2-norms of gradients, (n,) float64.

    torch sums float32 squares sequentially: for 2 million of them the norm is off by 3e-5, by another amount
    for each way of sharding. For float64 it first converts the whole tensor, which takes 0.4 CPU seconds and
    300 MB for an output layer of 50304 x 768; pieces that stay in the cache take 0.06 seconds.
    """
    norms = torch.zeros(len(gradients), dtype=torch.float64)
    for i, gradient in enumerate(gradients):
        pieces = gradient.reshape(-1).split(NORM_PIECE)
        norms[i] = torch.stack(
            [torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]
        ).norm()
    return norms


def clip_gradients(weights: Iterable[nn.Parameter], norm: float, limit: float, scale: float = 1.0) -> None:
    """Divides the gradients by `scale`, then clips their norm to `limit` (0: no limit); in place.

    norm: of the gradients after the division by `scale`.
    """
    factor = (min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0) / scale
    if factor != 1.0:
        torch._foreach_mul_([local_shard(p.grad) for p in weights if p.grad is not None], factor)
