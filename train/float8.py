"""Matrix products of linear layers in float8, forward and backward (Micikevicius et al. 2022).

| recipe | one scale for | product of |
|---|---|---|
| tensorwise | a matrix | torch |
| rowwise | a row of an operand, so that an outlier affects one row only | torchao |
| rowwise_with_gw_hp | the same; the weight gradient is a bfloat16 product | torchao |

Scales are dynamic: each is computed from the largest value of the matrix or row that is cast, without a
history. The linear layers of torchao and transformer-engine are modules, which do not know how our weights
are divided over ranks. So only torchao's product is used, and torch's for `tensorwise`, which needs no
package.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from .model.layers import Linear

# in the name of a module: its stack, and the number of its block there, which is the model's in a stage too
BLOCK = re.compile(r"(?:^|\.)(layers|encoder|decoder)\.(\d+)(?:\.|$)")
Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]


def float8_obstacle(device: torch.device, recipe: Recipe = "tensorwise") -> str | None:
    """Why a device cannot compute float8 products; None if it can."""
    if device.type != "cuda":
        return f"needs a GPU with 8-bit matrix units, and this runs on {device.type}"
    least, names = (
        ((8, 9), "Ada, Hopper, Blackwell") if recipe == "tensorwise" else ((9, 0), "Hopper, Blackwell")
    )
    if (capability := torch.cuda.get_device_capability(device)) < least:
        return (
            f"needs a GPU of compute capability {least[0]}.{least[1]} or more ({names}), and"
            f" {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        )
    if recipe != "tensorwise" and importlib.util.find_spec("torchao") is None:
        return "needs the package torchao (pip install torchao)"
    return None


def use_float8(
    model: nn.Module,
    format: Literal["e4m3", "hybrid"],
    recipe: Recipe = "tensorwise",
    *,
    layers_in_bf16: tuple[int, int] = (0, 0),
    num_layers: Mapping[str, int] | None = None,
    emulate: bool = False,
) -> int:
    """Makes the linear layers of a model's blocks multiply in float8, in place; returns their number.

    Layers whose sizes are not multiples of 16, which the hardware requires, the output layer and embeddings
    stay as they are, and so do the blocks of layers_in_bf16: so many first and last ones of each stack, whose
    lengths num_layers has by their names. emulate: torchao's rounding and float32 products, for devices
    without float8.
    """
    gradient_dtype = torch.float8_e5m2 if format == "hybrid" else torch.float8_e4m3fn
    product = tensorwise_linear(gradient_dtype) if recipe == "tensorwise" else rowwise_linear(recipe, emulate)
    changed = [
        module
        for name, module in model.named_modules()
        if BLOCK.search(name)
        and not _in_bf16(name, layers_in_bf16, num_layers or {})
        and type(module) is Linear
        and all(size % 16 == 0 for size in module.weight.shape)
    ]
    for module in changed:
        module.product = product
    return len(changed)


def _in_bf16(name: str, layers_in_bf16: tuple[int, int], num_layers: Mapping[str, int]) -> bool:
    """Whether a module of a block is in one of the first or last layers of its stack."""
    found = BLOCK.search(name)
    assert found is not None, "only modules of blocks are asked for"
    if name.startswith("mtp.") or ".mtp." in name:  # these layers are neither the first nor the last
        return False
    first, last = layers_in_bf16
    number = int(found[2])
    return number < first or (last > 0 and number >= num_layers[found[1]] - last)


def tensorwise_linear(gradient_dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A replacement of F.linear by the recipe `tensorwise`. gradient_dtype: of the output's gradient."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = _Product.apply(x.flatten(0, -2), weight, gradient_dtype).unflatten(0, x.shape[:-1])
        return y if bias is None else y + bias

    return linear


def rowwise_linear(recipe: Recipe, emulate: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A replacement of F.linear by torchao's recipe of this name."""
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args
    from torchao.float8.float8_training_tensor import LinearMMConfig, ScaledMMConfig

    # The number of tokens, over which weight gradients sum, may be no multiple of 16: torchao pads.
    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True
    )
    products = config.gemm_config_output, config.gemm_config_grad_input, config.gemm_config_grad_weight
    how = LinearMMConfig(
        *(ScaledMMConfig(emulate, product.use_fast_accum, False, True) for product in products)
    )

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = matmul_with_hp_or_float8_args.apply(x, weight.t(), how, config)
        return y if bias is None else y + bias

    return linear


class _Product(torch.autograd.Function):
    """x (N, in), weight (out, in) -> (N, out): e4m3 forward, e5m2 or e4m3 for gradients."""

    @staticmethod
    def forward(ctx, x, weight, gradient_dtype):
        (x8, x_scale), (w8, w_scale) = (_to_float8(t, torch.float8_e4m3fn) for t in (x, weight))
        ctx.gradient_dtype = gradient_dtype
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        return _scaled_product(x8, w8, x_scale, w_scale, x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = _to_float8(gradient.contiguous(), ctx.gradient_dtype)
        to_x = _scaled_product(g8, w8.T.contiguous(), g_scale, w_scale, gradient.dtype)
        # Sums are over rows, whose length must be a multiple of 16; here it is the number of tokens.
        short = -len(x8) % 16
        g8, x8 = (_pad_rows(t, short) for t in (g8, x8))
        to_weight = _scaled_product(g8.T.contiguous(), x8.T.contiguous(), g_scale, x_scale, gradient.dtype)
        return to_x, to_weight, None


def _to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x / scale in float8, scale float32): the largest |x| becomes the largest value of the dtype."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=1e-12) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def _scaled_product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, m): a (n, k) times the transpose of b (m, k), both contiguous."""
    return torch._scaled_mm(
        a,
        b.T,
        scale_a=a_scale,
        scale_b=b_scale,
        out_dtype=dtype,
        use_fast_accum=a.dtype == b.dtype == torch.float8_e4m3fn,
    )


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """x with `rows` rows of zeros at its end. Through uint8: torch.cat does not know float8."""
    if rows == 0:
        return x
    return torch.cat([x.view(torch.uint8), x.new_zeros(rows, x.shape[1]).view(torch.uint8)]).view(x.dtype)
