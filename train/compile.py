"""What makes steps faster and changes no result but by rounding: compiled blocks, and memory that stays with
the process.

Compilation costs its time once in every process, and pays in long runs only; `auto` decides by the length of
the whole run, so that a run that is interrupted goes on with what it began with.
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
from .model import moe
from .model.mamba import scan_backend
from .recompute import RecomputeConfig, recompute, stacks

# of a run on a GPU: some five minutes. On two cores compiled blocks took as long as others
# (docs/performance.md).
COMPILE_FROM_FLOPS = 1e17


def compile_and_recompute(
    model: nn.Module,
    recomputation: RecomputeConfig,
    setting: Literal["auto", "always", "never"],
    device: torch.device,
    total_flops: float,
) -> None:
    """Compiles the blocks of a model, if it pays, and lets them recompute, as asked; in place.

    total_flops: of the whole run, on this rank.
    """
    compiled = should_compile(setting, device, total_flops)
    # Selective recomputation chooses by operation, which it only sees inside of what is compiled.
    if recomputation.recompute_granularity == "selective":
        recompute(model, recomputation)
    if compiled:
        compile_blocks(model)
    if recomputation.recompute_granularity == "full":
        recompute(model, recomputation)


def check_compile(setting: Literal["auto", "always", "never"], device: torch.device) -> None:
    """Raises UserError where compilation is asked for and cannot be."""
    if setting == "always" and (obstacle := compile_obstacle(device)):
        raise UserError(f"train.compile = always: {obstacle}; or leave it out")


def compile_obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, or None."""
    if device.type == "cuda":
        return (
            None
            if importlib.util.find_spec("triton")
            else "torch.compile needs the package triton on a GPU: pip install triton"
        )
    compiler = os.environ.get("CXX", "g++")
    return (
        None
        if shutil.which(compiler)
        else (
            f"torch.compile needs the C++ compiler {compiler}; install it, or name another in the environment"
            " variable CXX"
        )
    )


def should_compile(
    setting: Literal["auto", "always", "never"], device: torch.device, total_flops: float
) -> bool:
    """Whether the blocks of a model are compiled. total_flops: of the whole run, on this rank."""
    if setting != "auto":
        return setting == "always"
    return device.type == "cuda" and total_flops >= COMPILE_FROM_FLOPS and compile_obstacle(device) is None


def compile_blocks(model: nn.Module) -> None:
    """Compiles every block of a model, in place; blocks alike share the code."""
    configure_compiler()
    for blocks in stacks(model):
        for block in blocks:
            # Dropout draws as it does without compilation, so that its masks do not depend on this setting.
            block.forward = torch.compile(block.forward, dynamic=False, options={"fallback_random": True})


@functools.cache  # once: each call would wrap the loop again
def configure_compiler() -> None:
    """What it cannot see in the code.

    Said where that is defined, it would load the compiler, 0.7 CPU seconds, for everybody.
    """
    torch.compiler.assume_constant_result(scan_backend)
    torch.compiler.assume_constant_result(moe.grouped_product_works)
    moe.looped_linear = torch.compiler.disable(moe.looped_linear)  # it would be compiled anew for all counts


def keep_freed_memory() -> bool:
    """Tells glibc to keep large pieces of memory for the next step instead of returning them to the system;
    says whether it could.

    Otherwise every large temporary is mapped anew, page by page: 4.6 instead of 3.0 CPU seconds for a step of
    GPT-2's shape in bfloat16 (together with huge pages, which cli.py asks torch for). The process then keeps
    its peak.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
    return all(
        mallopt(*setting) == 1
        for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    )
