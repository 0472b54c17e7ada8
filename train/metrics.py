"""Metrics of a run: on standard error, in log.jsonl, in TensorBoard and, if configured, in Weights & Biases.

log.jsonl has one JSON object a line. For every log interval:

    step, samples, tokens           totals since the start of the run
    loss                            nats per token, mean over the interval's steps; null if all were skipped
    lr, weight_decay, grad_norm     of the interval's last step
    skipped                         steps since the start that changed no weight
    loss_scale                      of float16
    experts                         of mixtures of experts, by layer: the largest share of the last step's
                                    choices that one expert got, as a multiple of an equal share
    seconds, tokens_per_second      time of the interval's steps, and their rate
    data_wait                       fraction of those seconds in which steps waited for their batches
    flops_per_second, mfu           of one device, counting full attention (flops.py), and as a fraction of
                                    the device's peak
    mfu_causal                      the same, counting half of the FLOPs of causal attention
    memory_bytes                    peak so far: what torch reserved on a GPU, else of the process
    block_seconds, slowest, slow    of several ranks: see stragglers.py

and {"step", "valid_loss"} for every validation. A run that resumes truncates the log to its checkpoint's
step, so a resumed run has the same log as an uninterrupted one, except for times and memory.
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

from ..core import manifest, paths
from ..core.config import UserError, check, configuration, option
from .model.flops import Flops


@configuration(group="log")
class LogConfig:
    """Logging and profiling."""

    log_interval: int = option(10, "steps per log line", role="runtime")
    wandb_project: str | None = option(None, "also log to this Weights & Biases project", role="runtime")
    wandb_exp_name: str | None = option(
        None, "name of the Weights & Biases run (default: the name of the directory --save)", role="runtime"
    )
    profile: bool = option(False, "profile some steps; the traces are in SAVE/profile", role="runtime")
    profile_step_start: int = option(10, "the step after which profiling starts", role="runtime")
    profile_step_end: int = option(12, "the last step that is profiled", role="runtime")
    profile_ranks: tuple[int, ...] = option((0,), "the ranks that are profiled", role="runtime")

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
    """The log of one run, on rank 0. Call `flush` before a checkpoint is saved."""

    def __init__(self, folder: Path, config: LogConfig, *, step: int, total_steps: int, settings: dict):
        """Truncates an earlier log to `step`, the step of the checkpoint, and appends to it.

        settings: of the run, for Weights & Biases.
        """
        self.path, self.total_steps = folder / "log.jsonl", total_steps
        self.lines = [line for line in whole_lines(self.path) if line["step"] <= step]
        with manifest.atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self._file = paths.update(self.path, "a", buffering=1)  # closed by close
        self._board = _tensorboard(folder / "tensorboard", purge_step=step + 1)
        self._wandb = _weights_and_biases(folder, config, settings) if config.wandb_project else None

    def training(self, step: int, **values: float | dict | None) -> None:
        """Logs an interval. values: those that the module's docstring lists, except `step`."""
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
        """Writes all lines to the disk, so that they survive if the process is killed."""
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
        """[[step, value], ...] of a metric ("loss", "valid_loss"), without nulls."""
        return [[line["step"], line[name]] for line in self.lines if line.get(name) is not None]

    def tokens_per_second(self) -> float:
        """The mean rate over all steps, without validation and saving."""
        rated = [line for line in self.lines if "seconds" in line]
        return sum(line["tokens_per_second"] * line["seconds"] for line in rated) / sum(
            line["seconds"] for line in rated
        )


@dataclasses.dataclass
class Rates:
    """Counts samples, tokens and seconds of a log interval, and computes rates."""

    sample_flops: Flops  # of one sample, forward and backward
    devices: int
    peak: float | None  # FLOP/s of one device
    seconds: float = 0.0
    waited: float = 0.0  # for batches, part of `seconds`
    samples: int = 0
    tokens: int = 0

    def count(self, samples: int, tokens: int) -> None:
        self.samples += samples
        self.tokens += tokens

    def time(self, seconds: float, waited: float) -> None:
        self.seconds += seconds
        self.waited += waited

    def take(self) -> dict:
        """The values for a log line; resets the counts."""
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
    """Peak memory in bytes: what torch reserved on this rank's GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def whole_lines(path: Path) -> list[dict]:
    """The lines of a log, without a last one that was not written whole, and what follows a foreign one."""
    lines: list[dict] = []
    if path.exists():
        for text in paths.regular(path).read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):  # not whole, not UTF-8, or nobody's honest log
                break
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                break
            lines.append(line)
    return lines


def _tensorboard(folder: Path, purge_step: int):
    """A TensorBoard writer; None, with a message, if the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        print("mt: no TensorBoard file is written; to have one: pip install 'mt[train]'", file=sys.stderr)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step if purge_step > 1 else None)


def _weights_and_biases(folder: Path, config: LogConfig, settings: dict):
    """The Weights & Biases run. Its id is saved in the directory, so a resumed run continues the same one."""
    import wandb

    place = folder / "wandb_id"
    try:
        run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_exp_name or folder.name,
            dir=str(folder),
            config=settings,
            id=paths.regular(place).read_text(encoding="utf-8") if place.exists() else None,
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
