"""Whether a checkpoint is where the user says: a mistyped path is told at once, before anything is read.

torch is not imported here: see commands/outline.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from ...core.config import UserError
from ...core.manifest import read_json
from ...core.parsing import MADE_BY_MT, check_value


class _Claim(TypedDict):
    """A run.json, as far as it is looked at."""

    verb: str


def check_presence(path: str | Path) -> None:
    """Raises UserError where nothing is, or a training that has saved no checkpoint yet."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; check the path")
    claim = path / "run.json"  # of a run of `mt train` that has not ended
    if not claim.is_file() or any(path.glob("step_*")):
        return
    if check_value(read_json(claim), _Claim, claim, MADE_BY_MT)["verb"] == "train":
        raise UserError(
            f"{path}: this training has saved no checkpoint yet; it saves one every --save-interval steps"
            " (default: 1000), when it is stopped (Ctrl-C, once) and at its end. If it is not running,"
            " run the same command again"
        )
