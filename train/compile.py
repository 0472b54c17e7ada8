"""Speed up training: torch.compile for blocks, and a setting of glibc's allocator.

Results change by rounding only.

Compilation takes its time once in every process, so it pays in long runs only. `auto` decides by the length
of the whole run, so that a resumed run computes as before.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import sys
from typing import Literal

import torch
from torch import nn

from ..core.config import UserError
from ..core.manifest import keep_compiled_code_private
from .model import moe
from .model.base import Model
from .model.mamba import scan_backend
from .parallel.pipeline import Pipeline
from .recompute import RecomputeConfig, recompute, stacks

# Total FLOPs of a run on a GPU: about five minutes. On two CPU cores compiled blocks were as slow as others
# (docs/performance.md).
COMPILE_FROM_FLOPS = 1e17


def compile_and_recompute(
    model: Model | Pipeline,
    recomputation: RecomputeConfig,
    setting: Literal["auto", "always", "never"],
    device: torch.device,
    total_flops: float,
) -> None:
    """Compiles the blocks of a model and makes them recompute, as the settings say; in place.

    total_flops: of the whole run, on this rank.
    """
    compiled = should_compile(setting, device, total_flops)
    # Selective recomputation chooses operations, which are visible only inside the compiled function.
    if recomputation.recompute_granularity == "selective":
        recompute(model, recomputation)
    if compiled:
        compile_blocks(model)
    if recomputation.recompute_granularity == "full":
        recompute(model, recomputation)


def check_compile(setting: Literal["auto", "always", "never"], device: torch.device) -> None:
    """Raises UserError if compilation is requested and impossible."""
    if setting == "always" and (obstacle := compile_obstacle(device)):
        raise UserError(f"train.compile = always: {obstacle}; or leave it out")


def compile_obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work here; None if it can."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton"):
            return None
        return "torch.compile needs the package triton on a GPU: pip install triton"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler):
        return None
    return (
        f"torch.compile needs the C++ compiler {compiler}; install it, or name another in the environment"
        " variable CXX"
    )


def should_compile(
    setting: Literal["auto", "always", "never"], device: torch.device, total_flops: float
) -> bool:
    """Whether to compile the blocks of a model. total_flops: of the whole run, on this rank."""
    if setting != "auto":
        return setting == "always"
    return device.type == "cuda" and total_flops >= COMPILE_FROM_FLOPS and compile_obstacle(device) is None


def compile_blocks(model: nn.Module) -> None:
    """Compiles every block of a model, in place; equal blocks share their code."""
    configure_compiler()
    for blocks in stacks(model):
        for block in blocks:
            # fallback_random: dropout masks do not depend on compilation
            compiled = torch.compile(block.forward, dynamic=False, options={"fallback_random": True})
            block.forward = compiled  # type: ignore[method-assign]  # on the instance, which keeps its class


@functools.cache  # once: every call would wrap looped_linear again
def configure_compiler() -> None:
    """Tells torch.compile which functions are constant and which not to compile.

    Decorators on those functions would load the compiler (0.7 CPU seconds) wherever they are imported.
    """
    keep_compiled_code_private()
    torch.compiler.assume_constant_result(scan_backend)
    torch.compiler.assume_constant_result(moe.grouped_product_works)
    moe.looped_linear = torch.compiler.disable(moe.looped_linear)  # else recompiled for each set of counts


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory instead of returning it to the system; returns whether it does.

    Otherwise every large temporary is mapped again, page by page: a step of GPT-2's shape in bfloat16 takes
    4.6 instead of 3.0 CPU seconds (together with huge pages, which cli.py enables). The process keeps its
    peak.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
    return all(
        mallopt(*setting) == 1
        for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    )
