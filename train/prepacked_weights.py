"""a model made ready to be used, not trained: in bfloat16 if asked for, and on a CPU with its matrices in the
order the kernels read.

Generation multiplies few rows with large matrices, so it waits for the matrices to come from memory. oneDNN's
blocked order halves that time against F.linear (8 rows of float32, 2-core Xeon: 22 against 46 CPU ms a pass
over 190 MB of matrices, and 14 against 38 for GPT-2's head; bfloat16 gains a sixth to a half). The numbers
differ by rounding alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model.block import FeedForward
from .model.layers import Linear

FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}  # by oneDNN's names


def prepare_for_inference(model: nn.Module, *, bf16: bool = False, rows: int | None = None) -> nn.Module:
    """The model itself, changed for good: it can no longer be trained or saved.

    rows: how many a product will mostly have; it decides the order of the matrices. None: few.
    """
    if bf16:
        model.bfloat16()
    weight = next(model.parameters())
    if weight.device.type == "cpu" and prepacking_works(weight.dtype):
        for module in model.modules():
            if isinstance(module, Linear):
                module.forward = PrepackedLinear(module.weight, module.bias, rows)
                if module is not getattr(model, "output", None):
                    # its shape, kind and place are still asked for, its numbers are not: they take no memory
                    module.weight = nn.Parameter(
                        module.weight.new_zeros(()).expand(module.weight.shape), requires_grad=False
                    )
        for module in model.modules():
            if isinstance(module, FeedForward) and module.activation in FUSED:
                # while what the product wrote is in cache: a tenth of BERT's time at 768 rows
                module.up.forward.activation = FUSED[module.activation]
                module.forward = lambda x, part=module: part.down(part.up(x))
        # an encoder alone asks for no token
        if hasattr(model, "embedding") and getattr(model, "head", model) is not None:
            model.logits = _prepacked_lm_head(model)
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
    # internal to torch: another version may lack it
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    expected = F.linear(x.float(), weight.float(), bias.float())
    return bool((product.float() - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.25))


class PrepackedLinear:
    """x (..., in) -> (..., out), as F.linear."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int | None = None):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        self.bias = None if bias is None else bias.detach()
        self.activation = "none", "none"  # the activation applied to the product, and how it is computed

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.activation[0], [], self.activation[1]
        )


def _prepacked_lm_head(model: nn.Module):
    """`model.logits` through a packed copy of the head, without the padding of the vocabulary."""
    weight = (model.embedding if getattr(model, "output", None) is None else model.output).weight
    return PrepackedLinear(weight[: model.config.vocab_size].contiguous(), None)
