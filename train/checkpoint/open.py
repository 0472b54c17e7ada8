"""Opens a checkpoint of any format: `open_checkpoint(path)` detects the format from the files.

a run of `mt train`      DIR/step_NNNNNNNN/state.json      the newest complete step, or the given one
one of its steps         DIR/state.json
Hugging Face             DIR/config.json, DIR/*.safetensors
Meta's Llama             DIR/params.json, DIR/consolidated.*.pth
Megatron-LM              DIR/latest_checkpointed_iteration.txt, or an iter_NNNNNNN or mp_rank_* folder of one
"""

from __future__ import annotations

from pathlib import Path

from .base import Checkpoint
from .huggingface import HuggingFaceCheckpoint
from .megatron import MegatronCheckpoint
from .meta import MetaCheckpoint
from .native import NativeCheckpoint, find_step
from .presence import check_presence


def open_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of a path. step: the step of a run of `mt train`.

    Raises UserError if there is none, if its files are damaged, or if mt does not have the model.
    """
    path = Path(path)
    check_presence(path)
    if step is None and not (path / "state.json").exists():
        for kind in (HuggingFaceCheckpoint, MetaCheckpoint, MegatronCheckpoint):
            if kind.recognizes(path):
                return kind(path)
    return NativeCheckpoint(find_step(path, step))
