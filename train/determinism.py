"""Where random numbers come from; and --deterministic-mode: the same numbers, to the last bit, from the same
command.

Every micro-batch, and in it every block, draws dropout from a seed of its own, so that masks depend on
nothing that was drawn elsewhere: they are the same after a resume, at every data-parallel size and on every
pipeline stage.

On a CPU they are that anyway. On GPUs some kernels and collectives add in the order in which threads happen
to arrive; this chooses others. The rules are Megatron-LM's (training/determinism.py): the libraries read them
from the environment when CUDA starts, what the user has set himself is refused where it contradicts, and
nothing is changed silently.
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
    """Seeds all generators from a text, and so that blocks find it again (`seed_dropout_per_block`)."""
    torch.manual_seed(_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1, 0))


def seed_dropout_per_block(model: Model) -> None:
    """Lets every block of a model that drops anything, in place, draw from a seed that follows from the
    micro-batch's and from its own place.

    Model.seeded_modules tells which modules these are.
    """
    config = model.config
    if not (config.hidden_dropout or config.attention_dropout or config.retro_add_retriever):
        return
    for index, module in enumerate(model.seeded_modules()):
        module.register_forward_pre_hook(functools.partial(_draw_for, index + 1))


def _draw_for(place: int, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    device = arguments[0].device
    generator = (
        torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    )
    # The upper half of a seed is the micro-batch's: recomputation, which sets generators back, finds it there
    # too.
    generator.manual_seed(_seed(generator.initial_seed() >> 32, place))


def _seed(micro_batch: int, place: int) -> int:
    """Upper half: the micro-batch, 31 bits. Lower half, which is all that torch takes on a CPU: of both."""
    return micro_batch << 32 | int.from_bytes(
        hashlib.sha256(f"{micro_batch}:{place}".encode()).digest()[:4], "little"
    )


# Environment variable -> values that are deterministic; the first is set where there is none.
RULES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
}


def enable_deterministic_mode() -> None:
    """Before CUDA starts; raises UserError where the environment asks for the contrary."""
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
    # it fills every new tensor, and none is read before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
