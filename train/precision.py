"""In which numbers the model computes: float32, bfloat16, float16 with a dynamic loss scale, or float8
products (float8.py).

The optimizer always steps float32 weights. A model that computes in narrower numbers is a working copy of
them (`MasterWeights`): its gradients are added up in float32 as they are made, micro-batch by micro-batch, and
after a step the copy is filled anew. Beside torch's autocast this saves a cast of every weight in every
micro-batch and keeps the residual stream narrow too: with GPT-2's shape in bfloat16 on two cores, a step
takes 4.6 instead of 5.3 CPU seconds. Checkpoints hold the float32 weights, whatever the model computes in.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..core.config import UserError, check, configuration, option
from .float8 import Recipe, float8_obstacle
from .model.dtensor import local_shard

LEAST_LOSS_SCALE = 1.0


@configuration(group="precision")
class PrecisionConfig:
    """The numbers of forward and backward pass. Weights, moments and sums of gradients are float32."""

    bf16: bool = option(False, "compute in bfloat16")
    fp16: bool = option(False, "compute in float16, with a loss scale that finds its size by itself")
    fp8_format: Literal["e4m3", "hybrid"] | None = option(
        None,
        "products of the blocks in 8 bits (GPUs from compute capability 8.9): e4m3 throughout, or hybrid,"
        " with e5m2 for gradients",
    )
    fp8_recipe: Recipe = option(
        "tensorwise",
        "float8: one scale for a matrix, or for each of its rows, with the weights' gradients in 8 bits too"
        " or in bfloat16 (gw_hp); by rows needs torchao and e4m3",
    )
    initial_loss_scale: float = option(2.0**32, "float16: the loss scale at the start")
    loss_scale_window: int = option(1000, "float16: steps without overflow before it doubles")
    hysteresis: int = option(2, "float16: overflows before it halves")

    def __post_init__(self):
        check(
            (not (self.bf16 and self.fp16), "bf16 and fp16 are both given; keep one"),
            (
                self.fp8_format is None or self.bf16,
                (
                    f"precision.fp8_format = {self.fp8_format} needs --bf16: everything but the products"
                    " stays in bfloat16"
                ),
            ),
            (
                self.fp8_recipe == "tensorwise" or self.fp8_format == "e4m3",
                f"precision.fp8_recipe = {self.fp8_recipe} needs --fp8-format e4m3: it has no other format",
            ),
            (
                self.initial_loss_scale >= LEAST_LOSS_SCALE,
                (
                    f"precision.initial_loss_scale = {self.initial_loss_scale} must be at least"
                    f" {LEAST_LOSS_SCALE}"
                ),
            ),
            (
                self.loss_scale_window >= 1,
                f"precision.loss_scale_window = {self.loss_scale_window} must be at least 1",
            ),
            (self.hysteresis >= 1, f"precision.hysteresis = {self.hysteresis} must be at least 1"),
        )

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


class MasterWeights:
    """The float32 weights of a model by name; the model itself where it computes in float32, else their
    masters.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        """Turns the model's weights to `dtype`, in place, but for those that a module names in
        `keeps_float32`.

        Sharded models keep their own: fully_shard does the same for them.
        """
        self.by_name = dict(model.named_parameters())
        # of a pipeline, whose stages have copies of each other's
        self._share = getattr(model, "share_weights", lambda: None)
        self._copies: list[tuple[Tensor, Tensor]] = []  # (what the model computes with, its master)
        if dtype == torch.float32:
            return
        wide = {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            for name in getattr(module, "keeps_float32", ())
        }
        for name, parameter in list(self.by_name.items()):
            if name in wide:
                continue
            master = self.by_name[name] = nn.Parameter(
                parameter.detach(), requires_grad=parameter.requires_grad
            )
            parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_add_to(master))
            self._copies.append((local_shard(parameter.detach()), local_shard(master.detach())))

    def __iter__(self):
        return iter(self.by_name.values())

    @torch.no_grad()
    def refresh(self) -> None:
        """Fills the model anew after its masters have changed."""
        if self._copies:
            torch._foreach_copy_(*map(list, zip(*self._copies)))
        self._share()


def _add_to(master: nn.Parameter):
    """A hook that moves a parameter's gradient to its master, so that a narrow one lives only until it is
    summed.
    """

    def move(parameter: nn.Parameter) -> None:
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move


class LossScale:
    """float16's loss scale (Micikevicius et al.

    2018) by Megatron-LM's rules; 1 and without effect for other numbers.

    `hysteresis` overflows halve it, and from then on every further one does, until `window` steps in a row
    were free of them: those double it and forgive.
    """

    def __init__(self, config: PrecisionConfig, state: dict | None = None):
        """state: of an earlier run's `state()`, to go on from."""
        self.config = config
        self.value, self.good_steps, self.patience = (
            config.initial_loss_scale if config.fp16 else 1.0,
            0,
            config.hysteresis,
        )
        if state and config.fp16:
            self.value, self.good_steps, self.patience = (
                state["value"],
                state["good_steps"],
                state["patience"],
            )

    def state(self) -> dict:
        return (
            {"value": self.value, "good_steps": self.good_steps, "patience": self.patience}
            if self.config.fp16
            else {}
        )

    @property
    def can_fall(self) -> bool:
        """Whether an overflow may be the scale's own fault."""
        return self.config.fp16 and self.value > LEAST_LOSS_SCALE

    def update(self, overflow: bool) -> None:
        """After a step's gradients were found finite, or not."""
        if not self.config.fp16:
            return
        if overflow:
            self.good_steps = 0
            self.patience -= 1
            if self.patience <= 0:
                self.value = max(self.value / 2, LEAST_LOSS_SCALE)
            return
        self.good_steps += 1
        if self.good_steps == self.config.loss_scale_window:
            self.good_steps, self.patience, self.value = 0, self.config.hysteresis, self.value * 2


def check_precision(config: PrecisionConfig, device: torch.device) -> None:
    """Raises UserError where a device cannot compute in these numbers."""
    if config.fp8_format is not None and (wrong := float8_obstacle(device, config.fp8_recipe)):
        raise UserError(
            f"precision.fp8_format = {config.fp8_format} with fp8_recipe = {config.fp8_recipe} {wrong}; leave"
            " it out"
        )


def use_fast_float32_matmul() -> bool:
    """Lets oneDNN do float32 matrix products on the CPU where it does them in true float32; says whether it
    does.

    torch hands them to MKL, which on AMD processors is 2 to 2.5 times slower. The setting is called "bf16"
    because it allows rounding to bfloat16, and a processor with AMX tiles would round; so it is kept only if
    a product's error against float64 is float32's (about 1e-4 for 768 terms, where bfloat16's is 1e-1).
    """
    settings = torch.backends.mkldnn
    if not settings.is_available():
        return False
    before = settings.matmul.fp32_precision
    settings.matmul.fp32_precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((256, 768), (768, 256)))
    error = (
        (torch.nn.functional.linear(a, b.T.contiguous()).double() - a.double() @ b.double())
        .abs()
        .max()
        .item()
    )
    if error > 1e-3:
        settings.matmul.fp32_precision = before
    return error <= 1e-3
