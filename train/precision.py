"""In which numbers the model computes: float32 or bfloat16 (master weights stay float32), and fast float32 products on CPU."""

from __future__ import annotations

import contextlib

import torch


def autocast(bf16: bool, device: torch.device):
    """A context in which matrix products run in bfloat16 if asked for; sums, norms and softmax stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def use_fast_float32_products() -> bool:
    """Lets oneDNN do float32 matrix products on the CPU where it does them in true float32; says whether it does.

    torch hands them to MKL, which on AMD processors is 2 to 2.5 times slower. The setting is called "bf16" because it
    allows rounding to bfloat16, and a processor with AMX tiles would round; so it is kept only if a product's error
    against float64 is float32's (about 1e-4 for 768 terms, where bfloat16's is 1e-1).
    """
    settings = torch.backends.mkldnn
    if not settings.is_available():
        return False
    before = settings.matmul.fp32_precision
    settings.matmul.fp32_precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((256, 768), (768, 256)))
    error = (torch.nn.functional.linear(a, b.T.contiguous()).double() - a.double() @ b.double()).abs().max().item()
    if error > 1e-3:
        settings.matmul.fp32_precision = before
    return error <= 1e-3
