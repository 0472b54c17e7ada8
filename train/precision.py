"""Precision of the computation: float32, bfloat16, float16 with a dynamic loss scale, or float8 (float8.py).

The optimizer always steps float32 weights. A model that computes in a lower precision is a working copy of
its master weights (`MasterWeights`): gradients are accumulated in float32 after every micro-batch, and after
a step the copy is refreshed. Unlike torch's autocast this needs no cast of every weight in every micro-batch,
and the residual stream is in low precision too: for GPT-2's shape in bfloat16 on two cores a step takes 4.6
instead of 5.3 CPU seconds. Checkpoints hold the float32 weights, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypedDict

import torch
from torch import Tensor, nn

from ..core.config import UserError, check, configuration, option
from ..core.parsing import MADE_BY_MT, Count, Range, check_value
from .float8 import Recipe, float8_obstacle
from .model.dtensor import local_shard

LEAST_LOSS_SCALE = 1.0


@configuration(group="precision")
class PrecisionConfig:
    """Precision of forward and backward passes. Weights, moments and accumulated gradients are float32."""

    bf16: bool = option(False, "compute in bfloat16")
    fp16: bool = option(False, "compute in float16, with a dynamic loss scale")
    fp8_format: Literal["e4m3", "hybrid"] | None = option(
        None,
        "matrix products of the blocks in float8 (GPUs of compute capability 8.9 or more): e4m3, or hybrid"
        " with e5m2 for gradients",
    )
    fp8_recipe: Recipe = option(
        "tensorwise",
        "float8: one scale per tensor or per row; gw_hp computes the weight gradients in bfloat16; rowwise"
        " needs torchao and e4m3",
    )
    first_last_layers_bf16: bool = option(
        False, "float8: the first and the last layers multiply in bfloat16", added=True
    )
    num_layers_at_start_in_bf16: int = option(
        1, "float8: how many first layers, with first-last-layers-bf16", added=True
    )
    num_layers_at_end_in_bf16: int = option(
        1, "float8: how many last layers, with first-last-layers-bf16", added=True
    )
    initial_loss_scale: float = option(2.0**32, "float16: initial loss scale")
    loss_scale: float | None = option(
        None, "float16: a loss scale that does not change (default: it follows the overflows)", added=True
    )
    loss_scale_window: int = option(1000, "float16: steps without overflow before the loss scale doubles")
    hysteresis: int = option(2, "float16: overflows before the loss scale halves")

    def __post_init__(self):
        check(
            (not (self.bf16 and self.fp16), "bf16 and fp16 are both given; keep one"),
            (
                self.fp8_format is None or self.bf16,
                f"precision.fp8_format = {self.fp8_format} needs --bf16: all but the matrix"
                " products is computed in bfloat16",
            ),
            (
                self.fp8_recipe == "tensorwise" or self.fp8_format == "e4m3",
                f"precision.fp8_recipe = {self.fp8_recipe} needs --fp8-format e4m3: it has no other format",
            ),
            (
                self.fp8_format is not None or not self.first_last_layers_bf16,
                "precision.first_last_layers_bf16: no layer multiplies in float8; give --fp8-format too, or"
                " leave it out",
            ),
            *(
                (getattr(self, n) >= 0, f"precision.{n} = {getattr(self, n)} must not be negative")
                for n in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
            ),
            (
                self.first_last_layers_bf16
                or (self.num_layers_at_start_in_bf16, self.num_layers_at_end_in_bf16) == (1, 1),
                "precision.num_layers_at_start_in_bf16 and precision.num_layers_at_end_in_bf16 need"
                " --first-last-layers-bf16",
            ),
            (
                self.initial_loss_scale >= LEAST_LOSS_SCALE,
                f"precision.initial_loss_scale = {self.initial_loss_scale} must be at least"
                f" {LEAST_LOSS_SCALE}",
            ),
            (
                self.loss_scale is None or self.loss_scale >= LEAST_LOSS_SCALE,
                f"precision.loss_scale = {self.loss_scale} must be at least {LEAST_LOSS_SCALE}",
            ),
            (
                self.loss_scale_window >= 1,
                f"precision.loss_scale_window = {self.loss_scale_window} must be at least 1",
            ),
            (self.hysteresis >= 1, f"precision.hysteresis = {self.hysteresis} must be at least 1"),
        )

    @property
    def layers_in_bf16(self) -> tuple[int, int]:
        """(first, last) layers that do not multiply in float8."""
        if not self.first_last_layers_bf16:
            return 0, 0
        return self.num_layers_at_start_in_bf16, self.num_layers_at_end_in_bf16

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


class MasterWeights:
    """The float32 weights of a model by name: its own if it computes in float32, else their master copies."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        """Casts the model's weights to `dtype`, in place, except those that a module names in
        `keeps_float32`.

        For sharded models dtype is float32: fully_shard casts their weights itself.
        """
        self.by_name = dict(model.named_parameters())
        # a pipeline copies weights that several stages have
        self._share = getattr(model, "share_weights", lambda: None)
        self._copies: list[tuple[Tensor, Tensor]] = []  # (working copy, master weight)
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
        """Copies the master weights to the model, after a step has changed them."""
        if self._copies:
            copies, masters = map(list, zip(*self._copies))
            torch._foreach_copy_(copies, masters)
        self._share()


def _add_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's gradient to that of its master weight and frees it."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None, "the hook runs after the gradient is accumulated"
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move


class LossScaleState(TypedDict):
    """The result of `LossScale.state`, in a checkpoint."""

    value: Annotated[float, Range(0)]
    good_steps: Count
    patience: int


class LossScale:
    """Dynamic loss scale for float16 (Micikevicius et al. 2018), by Megatron-LM's rules; else 1.

    After `hysteresis` overflows the scale halves, and at every further overflow again. After `window` steps
    in a row without overflow it doubles, and the count of overflows starts again. With
    PrecisionConfig.loss_scale it is that one, and never changes.
    """

    def __init__(self, config: PrecisionConfig, state: dict | None = None):
        """state: the result of `state` that a checkpoint holds, to resume from."""
        self.config = config
        self.value = (config.loss_scale or config.initial_loss_scale) if config.fp16 else 1.0
        self.dynamic = config.fp16 and config.loss_scale is None
        self.good_steps, self.patience = 0, config.hysteresis
        if state and self.dynamic:
            check_value(state, LossScaleState, "loss_scale of the checkpoint's state.json", MADE_BY_MT)
            self.value = state["value"]
            self.good_steps, self.patience = state["good_steps"], state["patience"]

    def state(self) -> dict:
        """For a checkpoint; empty unless the loss scale changes."""
        if not self.dynamic:
            return {}
        return {"value": self.value, "good_steps": self.good_steps, "patience": self.patience}

    @property
    def can_fall(self) -> bool:
        """Whether a lower loss scale may avoid an overflow."""
        return self.dynamic and self.value > LEAST_LOSS_SCALE

    def update(self, overflow: bool) -> None:
        """Adjusts the scale after a step. overflow: its gradients were not finite."""
        if not self.dynamic:
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
    """Raises UserError where a device does not support the precision."""
    if config.fp8_format is not None and (wrong := float8_obstacle(device, config.fp8_recipe)):
        raise UserError(
            f"precision.fp8_format = {config.fp8_format} with fp8_recipe = {config.fp8_recipe} {wrong}; leave"
            " it out"
        )


def use_fast_float32_matmul() -> bool:
    """Computes float32 matrix products on the CPU with oneDNN if it does not round; returns whether it does.

    By default torch uses MKL, which is 2 to 2.5 times slower on AMD processors. The setting is called "bf16"
    because it allows rounding to bfloat16, which processors with AMX tiles do. So it is kept only if the
    error of a product against float64 is that of float32 (about 1e-4 for 768 terms; bfloat16: 1e-1).
    """
    settings = torch.backends.mkldnn
    if not settings.is_available():
        return False
    matmul = settings.matmul  # type: ignore[attr-defined]  # torch adds it to the module at run time
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((256, 768), (768, 256)))
    product = torch.nn.functional.linear(a, b.T.contiguous()).double()
    error = (product - a.double() @ b.double()).abs().max().item()
    if error > 1e-3:
        matmul.fp32_precision = before
    return error <= 1e-3
