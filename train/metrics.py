"""Losses and rates: a line on standard error, a line in log.jsonl, a point in TensorBoard.

`log.jsonl` has one JSON object a line: {"step", "samples", "tokens", "loss", "lr", "grad_norm", "tokens_per_second",
"seconds"} for every log interval (samples and tokens since the beginning; loss in nats per token, mean over the
interval's steps; learning rate and gradient norm of its last step; seconds spent in its steps) and {"step",
"valid_loss"} for every validation. A run that is resumed cuts it back to its checkpoint's step, so that it reads as if
nothing had happened, but for the rates.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

from .. import manifest
from ..config import check, option


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is told, and how often."""

    log_interval: int = option(10, "steps from one log line to the next", role="runtime")
    tensorboard_dir: str | None = option(None, "directory for TensorBoard (default: tensorboard inside --save)", role="runtime")

    def __post_init__(self):
        check((self.log_interval >= 1, f"log.log_interval = {self.log_interval} must be at least 1"))


class RunLog:
    """The log of one run, on the rank that writes; use `log.flush()` before a checkpoint."""

    def __init__(self, folder: Path, config: LogConfig, *, step: int, total_steps: int):
        """Cuts an earlier log back to `step`, the last step that counts, and goes on behind it."""
        self.path, self.total_steps = folder / "log.jsonl", total_steps
        self.lines = [line for line in _whole_lines(self.path) if line["step"] <= step]
        with manifest.atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self._file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = _tensorboard(Path(config.tensorboard_dir or folder / "tensorboard"), purge_step=step + 1)

    def training(self, step: int, **values: float) -> None:
        """values: samples, tokens, loss, lr, grad_norm, tokens_per_second, seconds."""
        self._write({"step": step, **values})
        print(
            f"step {step:,}/{self.total_steps:,}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
            f"grad norm {values['grad_norm']:.2f}  {values['tokens_per_second']:,.0f} tokens/s",
            file=sys.stderr, flush=True,
        )
        self._points(step, {k: values[k] for k in ("loss", "lr", "grad_norm", "tokens_per_second")})

    def validation(self, step: int, valid_loss: float) -> None:
        self._write({"step": step, "valid_loss": valid_loss})
        print(f"step {step:,}/{self.total_steps:,}  validation loss {valid_loss:.4f}", file=sys.stderr, flush=True)
        self._points(step, {"valid_loss": valid_loss})

    def _write(self, line: dict) -> None:
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")

    def _points(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes everything logged so far survive a kill."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def curve(self, name: str) -> list[list[float]]:
        """[[step, value], ...] of everything logged under a name ("loss", "valid_loss")."""
        return [[line["step"], line[name]] for line in self.lines if name in line]

    def tokens_per_second(self) -> float:
        """The mean rate of all that was logged, validation and saving apart."""
        rated = [line for line in self.lines if "seconds" in line]
        return sum(line["tokens_per_second"] * line["seconds"] for line in rated) / sum(line["seconds"] for line in rated)


def _whole_lines(path: Path) -> list[dict]:
    """The lines of a log whose last one may have been cut short by a kill."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def _tensorboard(folder: Path, purge_step: int):
    """A TensorBoard writer, or None with a word where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        print("mt: no TensorBoard file is written; to have one: pip install 'mt[train]'", file=sys.stderr)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step if purge_step > 1 else None)
