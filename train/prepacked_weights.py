"""Prepare a model for inference: optionally in bfloat16, and on a CPU with weights in oneDNN's blocked
layout.

Generation multiplies few rows with large matrices, so memory bandwidth limits it. oneDNN's blocked
("prepacked") layout halves the time of F.linear: for 8 rows in float32 on a 2-core Xeon, 22 instead of 46 CPU
ms a pass over 190 MB of matrices, and 14 instead of 38 for GPT-2's output layer; bfloat16 gains a sixth to a
half. Results differ by rounding only.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model.block import FeedForward
from .model.latent_attention import MultiLatentAttention
from .model.layers import Linear

M = TypeVar("M", bound=nn.Module)

FUSED = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}  # activation -> (oneDNN's name, its algorithm)


def prepare_for_inference(model: M, *, bf16: bool = False, rows: int | None = None) -> M:
    """Changes the model in place and returns it; it can no longer be trained or saved.

    rows: the usual number of rows of a product, for which oneDNN chooses the layout; None: few.
    """
    if bf16:
        model.bfloat16()
    weight = next(model.parameters())
    if weight.device.type == "cpu" and prepacking_works(weight.dtype):
        # Their numbers are read, too.
        kept: set[Any] = {m.key_value_up for m in model.modules() if isinstance(m, MultiLatentAttention)}
        kept.add(getattr(model, "output", None))
        for module in model.modules():
            if isinstance(module, Linear):
                product = PrepackedLinear(module.weight, module.bias, rows)
                module.forward = product  # type: ignore[method-assign]  # on the instance
                if module not in kept:
                    # shape, dtype and device are still read, the numbers are not: they take no memory
                    module.weight = nn.Parameter(
                        module.weight.new_zeros(()).expand(module.weight.shape), requires_grad=False
                    )
        for module in model.modules():
            if isinstance(module, FeedForward) and module.activation in FUSED:
                _fuse_activation(module)
        # an encoder without an output layer computes no logits
        if hasattr(model, "embedding") and getattr(model, "head", model) is not None:
            model.logits = _prepacked_lm_head(model)  # type: ignore[assignment]  # on the instance
    return model


def prepacking_works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN's packed product works here in this dtype, and computes what F.linear does.

    A build of torch may lack it, and bfloat16 needs AVX-512 or AVX-NE-CONVERT.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 48), (64, 48), (64,))
    )
    try:
        product = PrepackedLinear(weight, bias)(x)
    # internal operators of torch: another version may lack them
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    expected = F.linear(x.float(), weight.float(), bias.float())
    return bool((product.float() - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.25))


class PrepackedLinear:
    """F.linear with a fixed weight in oneDNN's layout: x (..., in) -> (..., out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int | None = None):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        self.bias = None if bias is None else bias.detach()
        self.activation = "none", "none"  # applied to the product: name and algorithm

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.activation[0], [], self.activation[1]
        )


def _fuse_activation(module: FeedForward) -> None:
    """Applies the activation in the first product, while its result is in the cache: 10 % of BERT at 768
    rows.
    """
    up = module.up.forward
    assert isinstance(up, PrepackedLinear), "all linear layers are prepacked before"
    up.activation = FUSED[module.activation]
    module.forward = lambda x: module.down(module.up(x))  # type: ignore[method-assign]  # on the instance


def _prepacked_lm_head(model: Any) -> PrepackedLinear:
    """`model.logits` by a prepacked copy of the output layer, without the padding of the vocabulary.

    model: a GPT, BERT or T5, with `embedding`, `output` and `config`.
    """
    weight = (model.embedding if getattr(model, "output", None) is None else model.output).weight
    return PrepackedLinear(weight[: model.config.vocab_size].contiguous(), None)
