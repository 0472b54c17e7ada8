"""Seeds of dropout, and --deterministic-mode: bitwise the same numbers from the same command.

Every block draws dropout in every micro-batch from its own seed, so masks do not depend on other random
numbers: they are the same after a resume, at every data-parallel size and on every pipeline stage.

CPU kernels are deterministic. On GPUs some kernels and collectives add in the order in which threads arrive;
--deterministic-mode selects others. The rules are Megatron-LM's (training/determinism.py). Libraries read
them from the environment when CUDA starts. A contrary value that the user has set is an error, not
overwritten.
"""

from __future__ import annotations

import functools
import hashlib
import os

import torch
from torch import Tensor, nn

from ..core.config import check
from .model.base import Model


def seed_generators(text: str) -> None:
    """Seeds all generators from a text (any string), for a micro-batch; see seed_dropout_per_block."""
    digest = hashlib.sha256(text.encode()).digest()
    torch.manual_seed(_seed(int.from_bytes(digest[:4], "little") >> 1, 0))


def seed_dropout_per_block(model: Model) -> None:
    """Seeds the generators before each of Model.seeded_modules, from the micro-batch's seed and its index.

    By hooks, in place; nothing for a model without dropout.
    """
    config = model.config
    if not (config.hidden_dropout or config.attention_dropout or config.retro_add_retriever):
        return
    for index, module in enumerate(model.seeded_modules()):
        module.register_forward_pre_hook(functools.partial(_seed_module, index + 1))


def _seed_module(index: int, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    device = arguments[0].device
    generator = (
        torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    )
    # The micro-batch's seed is the upper half of the current one, also in recomputation, which restores
    # generators.
    generator.manual_seed(_seed(generator.initial_seed() >> 32, index))


def _seed(micro_batch: int, index: int) -> int:
    """A seed of 63 bits. micro_batch: of 31 bits, its upper half.

    Torch's CPU generator uses the lower half.
    """
    digest = hashlib.sha256(f"{micro_batch}:{index}".encode()).digest()
    return micro_batch << 32 | int.from_bytes(digest[:4], "little")


# Environment variable -> its deterministic values; the first is set if the variable is unset.
RULES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
}


def enable_deterministic_mode() -> None:
    """Call before CUDA starts. Raises UserError if a variable has a value that is not deterministic."""
    check(
        *(
            (
                os.environ.get(name, values[0]) in values,
                (
                    f"train.deterministic_mode: the environment variable {name} = {os.environ.get(name)} is"
                    f" not deterministic; unset it, or use {' or '.join(values)}"
                ),
            )
            for name, values in RULES.items()
        )
    )
    for name, values in RULES.items():
        os.environ.setdefault(name, values[0])
    torch.use_deterministic_algorithms(True)
    # filling takes time, and no tensor is read before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.benchmark = False
