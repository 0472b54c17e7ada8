"""--deterministic-mode: the same numbers, to the last bit, from the same command on the same machine.

On a CPU they are that anyway. On GPUs some kernels and collectives add in the order in which threads happen to arrive;
this chooses others. The rules are Megatron-LM's (training/determinism.py): the libraries read them from the environment
when CUDA starts, what the user has set himself is refused where it contradicts, and nothing is changed silently.
"""

from __future__ import annotations

import os

import torch

from ..config import check

# Environment variable -> values that are deterministic; the first is set where there is none.
RULES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
}


def be_deterministic() -> None:
    """Before CUDA starts; raises UserError where the environment asks for the contrary."""
    check(*(
        (os.environ.get(name, values[0]) in values, f"train.deterministic_mode: the environment variable {name} = {os.environ.get(name)} is not deterministic; unset it, or use {' or '.join(values)}")
        for name, values in RULES.items()
    ))
    for name, values in RULES.items():
        os.environ.setdefault(name, values[0])
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it fills every new tensor, and none is read before it is written
    torch.backends.cudnn.benchmark = False
