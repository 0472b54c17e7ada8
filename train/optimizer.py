"""AdamW, SGD and Muon (muon.py), their settings and schedules, and gradient clipping by the global norm.

The optimizer steps float32 weights by name: the model's own, or master weights where the model computes in a
lower precision (precision.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core.config import UserError, check, configuration, option
from .model.config import ResolvedModelConfig
from .model.dtensor import local_shard, num_replicas
from .muon import Coefficients, Muon, ScaleMode, is_matrix, steps_mistake
from .parallel.mesh import Mesh
from .schedule import LearningRate, WeightDecay

DECOUPLED = (["embedding", "weight"], ["output", "weight"])  # the ends of the names of decoupled_lr's weights
QK_NORMS = ("query_norm", "key_norm")  # the norms of qk_layernorm
NORM_PIECE = 1 << 15  # numbers: 256 KB of float64, and so few that torch uses one thread


@configuration(group="optimizer")
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), SGD or Muon; schedules of learning rate and weight decay."""

    optimizer: Literal["adam", "sgd", "muon"] = option(
        "adam",
        "adam is AdamW; sgd is torch's, whose weight decay is added to the gradient; muon is Muon for"
        " matrices and AdamW for embeddings, the output layer and vectors",
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
    muon_momentum: float = option(0.95, "muon: decay of the momentum", added=True)
    muon_use_nesterov: bool = option(False, "muon: Nesterov's momentum", added=True)
    muon_scale_mode: ScaleMode = option(
        "spectral",
        "muon: factor of the update of R rows and C columns: root of max(R, C), root of R / C, or root of"
        " max(1, R / C)",
        added=True,
    )
    muon_extra_scale_factor: float = option(
        1.0, "muon: a further factor of the update; 0.2 makes it about as large as AdamW's", added=True
    )
    muon_coefficient_type: Coefficients = option(
        "quintic", "muon: coefficients of the Newton-Schulz steps", added=True
    )
    muon_num_ns_steps: int = option(
        5, "muon: Newton-Schulz steps: any number for simple, multiples of 5 for quintic", added=True
    )
    muon_split_qkv: bool = option(
        True, "muon: queries, keys and values are three matrices instead of one", added=True
    )
    muon_tp_mode: Literal["duplicated", "blockwise"] = option(
        "duplicated",
        "muon: tensor-parallel ranks gather a matrix, so that the layout changes no number, or each takes its"
        " block for a matrix of its own, as Megatron-LM does by default",
        added=True,
    )
    muon_fp32_matmul_prec: Literal["medium", "highest"] = option(
        "medium", "muon: Newton-Schulz steps in bfloat16, or in float32", added=True
    )
    clip_grad: float = option(1.0, "maximum norm of the whole gradient; 0: no clipping")

    @property
    def lowest_decoupled_lr(self) -> float:
        """The learning rate of the embedding at the end of the decay."""
        return self.min_lr if self.decoupled_min_lr is None else self.decoupled_min_lr

    @property
    def num_moments(self) -> int:
        """Optimizer state per weight, in numbers, at most: with Muon only embeddings have two."""
        return 1 if self.optimizer == "sgd" else 2

    @property
    def least_moments(self) -> int:
        """Optimizer state per weight, in numbers, at least."""
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
        changed = [
            field.name
            for field in dataclasses.fields(self)
            if field.name.startswith("muon_") and getattr(self, field.name) != field.default
        ]
        mistake = steps_mistake(self.muon_coefficient_type, self.muon_num_ns_steps)
        check(
            (
                self.optimizer == "muon" or not changed,
                f"optimizer.{', optimizer.'.join(changed)}: for --optimizer muon; give it too, or leave this"
                " out",
            ),
            (mistake is None, f"optimizer.muon_num_ns_steps = {self.muon_num_ns_steps} {mistake}"),
            (
                self.muon_extra_scale_factor > 0,
                f"optimizer.muon_extra_scale_factor = {self.muon_extra_scale_factor} must be above 0",
            ),
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
                for n in ("adam_beta1", "adam_beta2", "sgd_momentum", "muon_momentum")
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


def build_optimizer(
    weights: Mapping[str, nn.Parameter], config: OptimizerConfig, model: ResolvedModelConfig | None = None
) -> torch.optim.Optimizer:
    """AdamW, SGD or Muon over weights by name. model: Muon needs it.

    With decoupled_lr the token embedding and the output layer are a group of their own. Matrices have weight
    decay, vectors and biases have none (the stacked biases of experts are a matrix), except those of the
    norms of queries and keys with apply_wd_to_qk_layernorm.
    """
    weights = {name: p for name, p in weights.items() if p.requires_grad}
    free = {name for name, p in weights.items() if p.ndim < 2 or name.rsplit(".", 1)[-1].endswith("bias")}
    if config.apply_wd_to_qk_layernorm:
        free -= {name for name in free if name.rsplit(".", 2)[-2] in QK_NORMS}
    own = set() if config.decoupled_lr is None else {n for n in weights if n.split(".")[-2:] in DECOUPLED}
    names = {p: name for name, p in weights.items()}
    groups: list[dict[str, Any]] = [
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
    if config.optimizer == "muon":
        groups = [
            {**group, "params": params, "muon": muon}
            for group in groups
            for muon in (True, False)
            for params in [[p for p in group["params"] if is_matrix(names[p], p) == muon]]
        ]
    groups = [g for g in groups if g["params"]]
    # fused: one pass over parameters, gradients and moments instead of about twelve
    if config.optimizer == "sgd":
        # DTensor has no rule for fused SGD; with foreach it refuses weights on different meshes
        divided = any(isinstance(p, DTensor) for p in weights.values())
        how: dict[str, Any] = {"foreach": False} if divided else {"fused": True}
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.sgd_momentum, **how)
    adam: dict[str, Any] = {"lr": config.lr, "betas": (config.adam_beta1, config.adam_beta2)}
    adam |= {"eps": config.adam_eps, "fused": True}
    if config.optimizer == "adam":
        return torch.optim.AdamW(groups, **adam)
    assert model is not None, "Muon divides the weights of attention by the model's settings"
    return Muon(
        groups,
        names,
        model,
        momentum=config.muon_momentum,
        nesterov=config.muon_use_nesterov,
        split_qkv=config.muon_split_qkv,
        scale_mode=config.muon_scale_mode,
        extra_scale_factor=config.muon_extra_scale_factor,
        coefficients=config.muon_coefficient_type,
        num_steps=config.muon_num_ns_steps,
        dtype=torch.bfloat16 if config.muon_fp32_matmul_prec == "medium" else None,
        blockwise=config.muon_tp_mode == "blockwise",
        **adam,
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
