"""Losses and rates: a line on standard error, a line in log.jsonl, a point in TensorBoard and, if asked for,
in Weights & Biases.

`log.jsonl` has one JSON object a line. For every log interval:

    step, samples, tokens       since the beginning
    loss                        nats per token, mean over the interval's steps; null where none of them
        counted
    lr, weight_decay, grad_norm of its last step
    skipped                     steps since the beginning that changed no weight; loss_scale: float16's
    experts                     of mixtures, by layer: the largest share that one expert got of the last
        step's choices,
                                in multiples of an even one
    seconds, tokens_per_second  spent in its steps, and made in them
    data_wait                   share of those seconds in which the step waited for its batch
    flops_per_second, mfu       by full attention (flops.py), and that as a share of the device's peak, on one
        device
    mfu_causal                  the same with half of causal attention's FLOPs
    memory_bytes                largest so far: of a GPU what torch held, else the process's
    block_seconds, slowest, slow of several ranks: stragglers.py

and {"step", "valid_loss"} for every validation. A run that is resumed cuts it back to its checkpoint's step,
so that it reads as if nothing had happened, but for what depends on time and memory.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import resource
import sys
from pathlib import Path

import torch

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from .model.flops import Flops


@configuration(group="log")
class LogConfig:
    """What is told, and how often."""

    log_interval: int = option(10, "steps from one log line to the next", role="runtime")
    wandb_project: str | None = option(None, "also log to this project of Weights & Biases", role="runtime")
    wandb_exp_name: str | None = option(
        None, "name of the run there (default: the name of the directory --save)", role="runtime"
    )
    profile: bool = option(False, "record what happens in some steps: SAVE/profile", role="runtime")
    profile_step_start: int = option(10, "the step after which recording begins", role="runtime")
    profile_step_end: int = option(12, "the last step that is recorded", role="runtime")
    profile_ranks: tuple[int, ...] = option((0,), "the ranks that record", role="runtime")

    def __post_init__(self):
        check(
            (
                not self.profile or 0 <= self.profile_step_start < self.profile_step_end,
                (
                    f"log.profile_step_start = {self.profile_step_start} must be before log.profile_step_end"
                    f" = {self.profile_step_end}"
                ),
            ),
            (self.log_interval >= 1, f"log.log_interval = {self.log_interval} must be at least 1"),
            (
                self.wandb_exp_name is None or self.wandb_project is not None,
                "log.wandb_exp_name needs --wandb-project",
            ),
            (
                self.wandb_project is None or importlib.util.find_spec("wandb") is not None,
                "log.wandb_project needs the package wandb; install it with: pip install wandb",
            ),
        )


class RunLog:
    """The log of one run, on the rank that writes; use `log.flush()` before a checkpoint."""

    def __init__(self, folder: Path, config: LogConfig, *, step: int, total_steps: int, settings: dict):
        """Cuts an earlier log back to `step`, the last step that counts, and goes on behind it.

        settings: the run's, for W&B.
        """
        self.path, self.total_steps = folder / "log.jsonl", total_steps
        self.lines = [line for line in _whole_lines(self.path) if line["step"] <= step]
        with manifest.atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self._file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = _tensorboard(folder / "tensorboard", purge_step=step + 1)
        self._wandb = _weights_and_biases(folder, config, settings) if config.wandb_project else None

    def training(self, step: int, **values: float | dict | None) -> None:
        """values: what the file's docstring lists beside `step`."""
        self._write({"step": step, **values})
        loss, mfu, skipped = values["loss"], values.get("mfu"), values.get("skipped")
        print(
            f"step {step:,}/{self.total_steps:,}  loss {'none' if loss is None else f'{loss:.4f}'}  lr"
            f" {values['lr']:.2e}  grad norm {values['grad_norm']:.2f}  {values['tokens_per_second']:,.0f}"
            " tokens/s"
            + (f"  MFU {mfu:.1%}" if mfu is not None else "")
            + (f"  skipped {skipped:,}" if skipped else ""),
            file=sys.stderr,
            flush=True,
        )
        self._points(step, values)

    def validation(self, step: int, valid_loss: float) -> None:
        self._write({"step": step, "valid_loss": valid_loss})
        print(
            f"step {step:,}/{self.total_steps:,}  validation loss {valid_loss:.4f}",
            file=sys.stderr,
            flush=True,
        )
        self._points(step, {"valid_loss": valid_loss})

    def _write(self, line: dict) -> None:
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")

    def _points(self, step: int, values: dict) -> None:
        flat = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and name not in ("samples", "tokens", "seconds", "slowest")
        }
        flat |= {f"experts/{layer}": load for layer, load in (values.get("experts") or {}).items()}
        if self._board is not None:
            for name, value in flat.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(flat, step=step)

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
        if self._wandb is not None:
            self._wandb.finish()

    def curve(self, name: str) -> list[list[float]]:
        """[[step, value], ...] of everything logged under a name ("loss", "valid_loss")."""
        return [[line["step"], line[name]] for line in self.lines if line.get(name) is not None]

    def tokens_per_second(self) -> float:
        """The mean rate of all that was logged, validation and saving apart."""
        rated = [line for line in self.lines if "seconds" in line]
        return sum(line["tokens_per_second"] * line["seconds"] for line in rated) / sum(
            line["seconds"] for line in rated
        )


@dataclasses.dataclass
class Rates:
    """What an interval's steps took, and what that is per second; starts anew with every log line."""

    sample_flops: Flops  # of one sample, forward and backward
    devices: int
    peak: float | None  # FLOP/s of one device
    seconds: float = 0.0
    waited: float = 0.0  # of these, for batches
    samples: int = 0
    tokens: int = 0

    def count(self, samples: int, tokens: int) -> None:
        self.samples += samples
        self.tokens += tokens

    def time(self, seconds: float, waited: float) -> None:
        self.seconds += seconds
        self.waited += waited

    def take(self) -> dict:
        """What goes into a log line; begins the next interval."""
        flops = self.sample_flops * (self.samples / self.seconds / self.devices)
        values = {
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "data_wait": self.waited / self.seconds,
            "flops_per_second": flops.full,
        }
        if self.peak is not None:
            values |= {"mfu": flops.full / self.peak, "mfu_causal": flops.causal / self.peak}
        self.seconds, self.waited, self.samples, self.tokens = 0.0, 0.0, 0, 0
        return {**values, "memory_bytes": peak_memory()}


def peak_memory() -> int:
    """Bytes: the most that torch has held on this rank's GPU, or else that the process has."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def _weights_and_biases(folder: Path, config: LogConfig, settings: dict):
    """The run there; a run that goes on is the same one again, because its id is kept in the directory."""
    import wandb

    place = folder / "wandb_id"
    try:
        run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_exp_name or folder.name,
            dir=str(folder),
            config=settings,
            id=place.read_text(encoding="utf-8") if place.exists() else None,
            resume="allow",
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"Weights & Biases: {error}; log in with `wandb login`, set WANDB_MODE=offline, or leave out"
            " --wandb-project"
        ) from None
    with manifest.atomic_write(place, "w") as file:
        file.write(run.id)
    return run
