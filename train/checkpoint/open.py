"""open_checkpoint(path): finds out what a path holds, a checkpoint of ours or of another library.

a run of `mt train`      DIR/step_NNNNNNNN/state.json      the newest whole step, or the one that is asked for
one of its steps         DIR/state.json
Hugging Face             DIR/config.json, DIR/*.safetensors
Megatron-LM              DIR/latest_checkpointed_iteration.txt, or an iter_NNNNNNN or mp_rank_* folder of one
"""

from __future__ import annotations

from pathlib import Path

from ...core.config import UserError
from .base import Checkpoint
from .huggingface import HuggingFaceCheckpoint
from .megatron import MegatronCheckpoint
from .native import NativeCheckpoint, find_step


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """The checkpoint that a path means. step: which of a run of ours.

    Raises UserError where there is none, where its files are not whole, and where the model is not one of
    ours.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; check the path")
    if step is None and not (path / "state.json").exists():
        for kind in (HuggingFaceCheckpoint, MegatronCheckpoint):
            if kind.recognizes(path):
                return kind(path)
    return NativeCheckpoint(find_step(path, step))
