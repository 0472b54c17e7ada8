"""Metrics of a run: on standard error, in log.jsonl, in TensorBoard, and in Weights & Biases or MLflow.

log.jsonl has one JSON object a line. For every log interval:

    step, samples, tokens           totals since the start of the run
    loss                            nats per token, mean over the interval's steps; null if all were skipped
    lr, weight_decay, grad_norm     of the interval's last step
    params_norm                     of all weights, with --log-params-norm
    num_zeros                       in the gradient of the last step, with --log-num-zeros-in-grad
    timers                          with --timing-log-level 1: mean seconds of a step's forward and backward
                                    passes, and of its optimizer step
    skipped                         steps since the start that changed no weight
    loss_scale                      of float16
    experts                         of mixtures of experts, by layer: the largest share of the last step's
                                    choices that one expert got, as a multiple of an equal share
    mtp_loss                        of multi-token prediction, by depth: nats per token that it predicts
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
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

import torch

from ..core import manifest, paths
from ..core.config import UserError, check, configuration, option
from ..core.extras import install_extra
from ..core.parsing import AnyFloat, Count, Range, check_value, parse_json
from ..core.progress import duration, print_line
from .model.flops import Flops

LINE_BYTES = 1 << 24  # of log.jsonl; an honest line has a few hundred


@configuration(group="log")
class LogConfig:
    """Logging and profiling."""

    log_interval: int = option(10, "steps per log line", role="runtime")
    log_params_norm: bool = option(False, "also log the norm of all weights", role="runtime")
    log_num_zeros_in_grad: bool = option(
        False, "also log the number of zeros in the gradient", role="runtime"
    )
    log_validation_ppl_to_tensorboard: bool = option(
        False, "also log the perplexity of a validation, e to its loss", role="runtime"
    )
    timing_log_level: Literal[0, 1, 2] = option(
        0,
        "1 or 2: also log the time of the parts of a step; --profile records single operations",
        role="runtime",
    )
    log_timers_to_tensorboard: bool = option(
        False, "these times, and that of a step, in TensorBoard too", role="runtime"
    )
    tensorboard_dir: str | None = option(
        None, "directory of the TensorBoard files (default: SAVE/tensorboard)", role="runtime"
    )
    wandb_project: str | None = option(None, "also log to this Weights & Biases project", role="runtime")
    wandb_exp_name: str | None = option(
        None, "name of the Weights & Biases run (default: the name of the directory --save)", role="runtime"
    )
    wandb_entity: str | None = option(None, "the Weights & Biases team that has the project", role="runtime")
    wandb_save_dir: str | None = option(
        None, "directory for the files of Weights & Biases (default: --save)", role="runtime"
    )
    mlflow_experiment: str | None = option(None, "also log to this MLflow experiment", role="runtime")
    mlflow_tracking_uri: str | None = option(
        None, "MLflow server or directory (default: the variable MLFLOW_TRACKING_URI)", role="runtime"
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
            *(
                (
                    getattr(self, name) is None or self.wandb_project is not None,
                    f"log.{name} needs --wandb-project",
                )
                for name in ("wandb_exp_name", "wandb_entity", "wandb_save_dir")
            ),
            (
                self.mlflow_tracking_uri is None or self.mlflow_experiment is not None,
                "log.mlflow_tracking_uri needs --mlflow-experiment",
            ),
            (
                self.mlflow_experiment is None or importlib.util.find_spec("mlflow") is not None,
                "log.mlflow_experiment needs the package mlflow; install it with: pip install mlflow",
            ),
            (
                self.wandb_project is None or importlib.util.find_spec("wandb") is not None,
                "log.wandb_project needs the package wandb; install it with: pip install wandb",
            ),
        )


class RunLog:
    """The log of one run, on rank 0. Call `flush` before a checkpoint is saved."""

    def __init__(
        self,
        folder: Path,
        config: LogConfig,
        *,
        step: int,
        total_steps: int,
        settings: dict,
        total_samples: int | None = None,
    ):
        """Truncates an earlier log to `step`, the step of the checkpoint, and appends to it.

        settings: of the run, for Weights & Biases. total_samples: of the run, for the time that is left.
        """
        self.path, self.total_steps, self.total_samples = folder / "log.jsonl", total_steps, total_samples
        self._began = time.monotonic()
        self._timed: tuple[float, int] | None = None  # time and samples after this process's first step
        self.lines = [line for line in whole_lines(self.path) if line["step"] <= step]
        with manifest.atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self._file = paths.update(self.path, "a", buffering=1)  # closed by close
        self.config = config
        self._board = _tensorboard(
            Path(config.tensorboard_dir or folder / "tensorboard"), purge_step=step + 1
        )
        self._wandb = _weights_and_biases(folder, config, settings) if config.wandb_project else None
        self._mlflow = _mlflow(folder, config, settings) if config.mlflow_experiment else None

    def training(self, step: int, **values: float | dict | None) -> None:
        """Logs an interval. values: those that the module's docstring lists, except `step`."""
        self._write({"step": step, **values})
        loss, mfu, skipped = values["loss"], values.get("mfu"), values.get("skipped")
        samples = values["samples"]
        assert isinstance(samples, int)
        print_line(
            f"step {step:,}/{self.total_steps:,}  loss {'none' if loss is None else f'{loss:.4f}'}  lr"
            f" {values['lr']:.2e}  grad norm {values['grad_norm']:.2f}  {values['tokens_per_second']:,.0f}"
            " tokens/s"
            + (f"  MFU {mfu:.1%}" if mfu is not None else "")
            + (f"  skipped {skipped:,}" if skipped else "")
            + f"  {self._times(samples)}"
        )
        self._points(step, values)

    def validation(self, step: int, valid_loss: float) -> None:
        self._write({"step": step, "valid_loss": valid_loss})
        print_line(f"step {step:,}/{self.total_steps:,}  validation loss {valid_loss:.4f}")
        points = {"valid_loss": valid_loss}
        if self.config.log_validation_ppl_to_tensorboard:
            points["valid_ppl"] = math.exp(min(20, valid_loss))  # as Megatron-LM bounds it
        self._points(step, points)

    def step_done(self, samples: int) -> None:
        """To be called after every step. samples: consumed so far."""
        if self._timed is None:
            self._timed = time.monotonic(), samples

    def time_left(self, samples: int) -> str | None:
        """About how long the rest of the run takes; None where that is not known yet, or nothing is left.

        It is counted from the end of the first step on, which may have compiled the model.
        """
        if self._timed is None or self.total_samples is None:
            return None
        began, done = self._timed
        if not done < samples < self.total_samples:
            return None
        return duration((time.monotonic() - began) / (samples - done) * (self.total_samples - samples))

    def _times(self, samples: int) -> str:
        """The time since the start of this process's part of the run, and about how much is left."""
        left = self.time_left(samples)
        elapsed = duration(time.monotonic() - self._began)
        return f"elapsed {elapsed}" + (f"  left {left}" if left is not None else "")

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
        flat |= {f"mtp_{depth} loss": loss for depth, loss in (values.get("mtp_loss") or {}).items()}
        if self.config.log_timers_to_tensorboard:
            flat |= {f"timers/{name}": seconds for name, seconds in (values.get("timers") or {}).items()}
        if self._board is not None:
            for name, value in flat.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(flat, step=step)
        if self._mlflow is not None:
            self._mlflow.log_metrics(flat, step=step)

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
        if self._mlflow is not None:
            self._mlflow.end_run()

    def curve(self, name: str) -> list[list[float]]:
        """[[step, value], ...] of a metric ("loss", "valid_loss"), without nulls."""
        return [[line["step"], line[name]] for line in self.lines if line.get(name) is not None]

    def tokens_per_second(self) -> float:
        """The mean rate over all steps, without validation and saving."""
        rated = [line for line in self.lines if "seconds" in line and "tokens_per_second" in line]
        seconds = sum(line["seconds"] for line in rated)
        tokens = sum(line["tokens_per_second"] * line["seconds"] for line in rated)
        return tokens / seconds if seconds else 0.0  # the log may have lost its lines


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


class LogLine(TypedDict):
    """What is used again of a line of log.jsonl."""

    step: Count
    loss: NotRequired[AnyFloat | None]
    valid_loss: NotRequired[AnyFloat | None]
    accuracy: NotRequired[AnyFloat]
    seconds: NotRequired[Annotated[float, Range(1e-9, 1e12)]]
    tokens_per_second: NotRequired[Annotated[float, Range(0, 1e30)]]


def whole_lines(path: Path) -> list[dict]:
    """The lines of a log, without a last one that was not written whole, and what follows a foreign one."""
    lines: list[dict] = []
    if path.exists():
        with open(paths.regular(path), "rb") as file:
            while text := file.readline(LINE_BYTES):
                try:
                    lines.append(check_value(parse_json(text, str(path)), LogLine, path))
                except UserError:  # not whole, not UTF-8, or nobody's honest log
                    break
    return lines


def _tensorboard(folder: Path, purge_step: int):
    """A TensorBoard writer; None, with a message, if the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        print(f"mt: no TensorBoard file is written; to have one: {install_extra('train')}", file=sys.stderr)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step if purge_step > 1 else None)


def _weights_and_biases(folder: Path, config: LogConfig, settings: dict):
    """The Weights & Biases run. Its id is saved in the directory, so a resumed run continues the same one."""
    import wandb

    place = folder / "wandb_id"
    if config.wandb_save_dir:
        paths.make_folder(Path(config.wandb_save_dir))
    try:
        run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_exp_name or folder.name,
            entity=config.wandb_entity,
            dir=config.wandb_save_dir or str(folder),
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


def _mlflow(folder: Path, config: LogConfig, settings: dict):
    """The module mlflow with a run. The run's id is saved, so a resumed run continues the same one."""
    import mlflow

    place = folder / "mlflow_id"
    try:
        if config.mlflow_tracking_uri:
            mlflow.set_tracking_uri(config.mlflow_tracking_uri)
        mlflow.set_experiment(config.mlflow_experiment)
        known = paths.regular(place).read_text(encoding="utf-8") if place.exists() else None
        run = mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        if known is None:
            mlflow.log_params(
                {
                    f"{group}.{k}": v
                    for group, own in settings.items()
                    if isinstance(own, dict)
                    for k, v in own.items()
                    if v is not None
                }
            )
    except mlflow.exceptions.MlflowException as error:
        raise UserError(
            f"MLflow: {error}; check --mlflow-tracking-uri, or leave out --mlflow-experiment"
        ) from None
    with manifest.atomic_write(place, "w") as file:
        file.write(run.info.run_id)
    return mlflow
