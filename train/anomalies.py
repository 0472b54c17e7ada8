"""Stop a run early, and handle steps with a NaN or a spike in loss or gradient.

A step whose loss or gradient norm is not finite, or is far above those of recent steps, is computed again
before any weight changes: weights, batch and dropout seeds are the same. The same result means that it
follows from the data and the model (or from a device that is wrong in the same way each time, which only
another device can tell). Another result means that the hardware failed. Each incident is a line of
SAVE/incidents.jsonl:

    {"step", "samples": [first, end), "what": "nan" | "spike", "loss", "grad_norm",
     "again": {"loss", "grad_norm"}, "verdict": "reproducible" | "hardware", "action", "ranks",
     "host", "device", "time"}

    exit code 16    the result was the same, and the policy is to stop: resume, best on another device
    exit code 17    it was not the same: a hardware fault

These are the exit codes of Megatron-LM's rerun state machine (core/rerun_state_machine.py). After a signal
the exit code is 128 + its number.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ..core import paths
from ..core.config import Failure, check, configuration, option

EXIT_REPRODUCIBLE, EXIT_HARDWARE = 16, 17
MOST_IN_A_ROW = 10  # consecutive skipped steps after which the run stops
FEWEST_BEFORE_SPIKE, MOST_BEFORE_SPIKE = 8, 64  # recent steps that a spike is compared with
SAME = 1e-4  # relative tolerance: atomic sums on GPUs differ by less, a fault that makes a spike by more


@configuration(group="guard")
class AnomalyConfig:
    """Early exits, and policies for NaNs and spikes.

    They change no byte of a run without incidents, so all have the role `runtime`.
    """

    exit_interval: int | None = option(
        None, "save and exit when the step is a multiple of this; the same command resumes", role="runtime"
    )
    exit_duration_in_mins: float | None = option(
        None, "save and exit after this many minutes; the same command resumes", role="runtime"
    )
    on_nan: Literal["stop", "skip", "rollback"] = option(
        "stop",
        "if loss or gradient is NaN or infinite: stop; skip the batch; or roll back to the newest"
        " checkpoint's weights and continue after the batch",
        role="runtime",
    )
    on_spike: Literal["ignore", "stop", "skip", "rollback"] = option(
        "ignore",
        "if loss or gradient is far above those of recent steps: the same choices, or ignore it",
        role="runtime",
    )
    spike_factor: float = option(
        3.0,
        "a loss or gradient norm above this multiple of the median of recent steps is a spike",
        role="runtime",
    )

    def __post_init__(self):
        check(
            (
                self.exit_interval is None or self.exit_interval >= 1,
                f"guard.exit_interval = {self.exit_interval} must be at least 1",
            ),
            (
                self.exit_duration_in_mins is None or self.exit_duration_in_mins > 0,
                f"guard.exit_duration_in_mins = {self.exit_duration_in_mins} must be above 0",
            ),
            (self.spike_factor > 1, f"guard.spike_factor = {self.spike_factor} must be above 1"),
        )


class StepResult(NamedTuple):
    """Loss and gradient norm of a step, before the optimizer step; the same on all ranks."""

    loss: float  # nats per token
    grad_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def same(self, other: StepResult) -> bool:
        """Equal up to rounding; non-finite numbers are equal to each other."""
        return all(_same(a, b) for a, b in zip(self, other))


def _same(a: float, b: float) -> bool:
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b) <= SAME * max(abs(a), abs(b))
    return not math.isfinite(a) and not math.isfinite(b)


def find_incident(
    result: StepResult, recent: Sequence[Sequence[float]], config: AnomalyConfig
) -> Literal["nan", "spike"] | None:
    """Whether a step has a NaN or a spike. recent: (loss, gradient norm) of the steps before it."""
    if not result.finite:
        return "nan"
    if config.on_spike == "ignore" or len(recent) < FEWEST_BEFORE_SPIKE:
        return None
    medians = [statistics.median(values) for values in zip(*recent)]
    spikes = any(value > config.spike_factor * median for value, median in zip(result, medians))
    return "spike" if spikes else None


class IncidentLog:
    """Writes incidents.jsonl, on rank 0."""

    def __init__(self, path: Path):
        self.path = path

    def report(
        self,
        *,
        step: int,
        samples: tuple[int, int],
        what: str,
        first: StepResult,
        again: StepResult,
        action: str,
        ranks: list[int],
        device: torch.device,
    ) -> None:
        """Appends a line. ranks: those whose part of the loss differed the second time."""
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else platform.processor() or platform.machine()
        )
        line = {
            "step": step,
            "samples": list(samples),
            "what": what,
            **_plain(first),
            "again": _plain(again),
            "verdict": "reproducible" if first.same(again) else "hardware",
            "action": action,
            "ranks": ranks,
            "host": platform.node(),
            "device": name,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with paths.update(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(result: StepResult) -> dict:
    """The result for JSON, which has neither NaN nor infinity."""
    return {name: value if math.isfinite(value) else str(value) for name, value in result._asdict().items()}


def incident_failure(
    what: str, step: int, first: StepResult, again: StepResult, path: Path, *, saved: bool
) -> Failure:
    """The exception that ends the command after an incident.

    saved: a checkpoint was saved before the step.
    """
    numbers = f"step {step:,}: loss {first.loss}, gradient norm {first.grad_norm}"
    if not first.same(again):
        failure = Failure(
            f"{numbers}, and loss {again.loss}, gradient norm {again.grad_norm} when computed again: the"
            f" hardware has failed ({path}); run the same command on another device, it resumes from the"
            " newest checkpoint"
        )
        failure.exit_code = EXIT_HARDWARE
        return failure
    diagnosis = "training has diverged" if what == "nan" else "the loss has jumped"
    if not saved:
        remedy = "start again with a lower --lr, more warm-up or a lower --clip-grad"
    elif what == "nan":
        remedy = (
            "the checkpoint before it is saved: the same command computes the step once more, with --on-nan"
            " skip or rollback it continues"
        )
    else:
        remedy = (
            "the checkpoint before it is saved: with --on-spike skip or rollback the same command continues"
        )
    failure = Failure(f"{numbers}, the same when computed again: {diagnosis} ({path}); {remedy}")
    failure.exit_code = EXIT_REPRODUCIBLE
    return failure


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGUSR1 (a batch system's warning) only set `received`.

    The train loop then ends after the step. A second SIGINT raises KeyboardInterrupt at once.
    """

    def __enter__(self) -> StopSignals:
        self.received = 0
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def stopped(self, step: int) -> Failure:
        """The exception that ends the command, with exit code 128 + the signal's number, as in shells."""
        number = self.received or signal.SIGTERM  # else another rank did
        failure = Failure(
            f"stopped by {signal.Signals(number).name} after step {step:,}; its checkpoint is saved: run the"
            " same command again to resume"
        )
        failure.exit_code = 128 + number
        return failure


def free_memory() -> int | None:
    """Free main memory of this machine or control group in bytes; None if unknown."""
    try:
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        return None
    if available is None:
        return None
    free = int(available[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # a control group without a limit says "max"
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory, a GPU's or the machine's, is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )
