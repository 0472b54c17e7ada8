"""What ends a run early, and what is done about a step whose numbers cannot be right.

A step whose loss or gradient is no number, or whose loss or gradient jumps far above those before it, is
computed once more before anything is changed by it: the weights, the batch and the seeds of its dropout are
still there. The same result again means that it follows from data and model (or from a device that is wrong
in the same way each time, which only another device can tell); another result means that the device has
failed. What was found and done is a line of SAVE/incidents.jsonl:

    {"step", "samples": [first, end), "what": "nan" | "spike", "loss", "grad_norm", "again": {"loss",
        "grad_norm"},
     "verdict": "reproducible" | "hardware", "action", "ranks", "host", "device", "time"}

    exit code 16    it was the same twice, and the policy is to stop: resume, best on another device
    exit code 17    it was not: a fault of the hardware

These are the codes of Megatron-LM's rerun state machine (core/rerun_state_machine.py). A signal ends the
command with 128 + its number.
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

from ..core.config import Failure, check, configuration, option

EXIT_REPRODUCIBLE, EXIT_HARDWARE = 16, 17
MOST_IN_A_ROW = 10  # steps given up one after the other before the run is
FEWEST_BEFORE_SPIKE, MOST_BEFORE_SPIKE = 8, 64  # steps that a spike is measured against
SAME = 1e-4  # relative; what atomic sums of a GPU may differ by, and no fault that makes a loss jump


@configuration(group="guard")
class AnomalyConfig:
    """Early ends, and steps that cannot be right.

    A policy changes no byte of a run without incidents, so all are `runtime`.
    """

    exit_interval: int | None = option(
        None, "save and exit when the step is a multiple of this; the same command goes on", role="runtime"
    )
    exit_duration_in_mins: float | None = option(
        None, "save and exit after this many minutes; the same command goes on", role="runtime"
    )
    on_nan: Literal["stop", "skip", "rollback"] = option(
        "stop",
        "a loss or gradient that is no number: stop; skip the batch; or take the newest checkpoint's weights"
        " and go on behind the batch",
        role="runtime",
    )
    on_spike: Literal["ignore", "stop", "skip", "rollback"] = option(
        "ignore", "a loss or gradient far above those before it: the same choices", role="runtime"
    )
    spike_factor: float = option(
        3.0, "how far above the median of recent steps a loss's or gradient's spike is", role="runtime"
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
    """What a step computed, before it changed anything: the same on all ranks."""

    loss: float  # nats per token
    grad_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def same(self, other: StepResult) -> bool:
        return all(_same(a, b) for a, b in zip(self, other))


def _same(a: float, b: float) -> bool:
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b) <= SAME * max(abs(a), abs(b))
    return not math.isfinite(a) and not math.isfinite(b)


def find_incident(
    result: StepResult, recent: Sequence[Sequence[float]], config: AnomalyConfig
) -> Literal["nan", "spike"] | None:
    """What is wrong with a step, if anything. recent: (loss, gradient norm) of the steps before it."""
    if not result.finite:
        return "nan"
    if config.on_spike == "ignore" or len(recent) < FEWEST_BEFORE_SPIKE:
        return None
    medians = [statistics.median(values) for values in zip(*recent)]
    return (
        "spike"
        if any(value > config.spike_factor * median for value, median in zip(result, medians))
        else None
    )


class IncidentLog:
    """The report of a run's incidents, on the rank that writes."""

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
        """ranks: those whose own part of the loss was not the same twice."""
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
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(result: StepResult) -> dict:
    """JSON knows neither NaN nor infinity."""
    return {name: value if math.isfinite(value) else str(value) for name, value in result._asdict().items()}


def incident_failure(
    what: str, step: int, first: StepResult, again: StepResult, path: Path, *, saved: bool
) -> Failure:
    """What ends the command after an incident."""
    numbers = f"step {step:,}: loss {first.loss}, gradient norm {first.grad_norm}"
    if not first.same(again):
        failure = Failure(
            f"{numbers}, and loss {again.loss}, gradient norm {again.grad_norm} when computed again: the"
            f" hardware has failed ({path}); run the same command on another device, it goes on from the"
            " newest checkpoint"
        )
        failure.exit_code = EXIT_HARDWARE
        return failure
    word = "training has diverged" if what == "nan" else "the loss has jumped"
    rest = (
        "the checkpoint before it is saved: the same command tries it once more, with --on-nan skip or"
        " rollback it goes on"
        if saved and what == "nan"
        else (
            "the checkpoint before it is saved: with --on-spike skip or rollback the same command goes on"
            if saved
            else "start again with a lower --lr, more warm-up or a lower --clip-grad"
        )
    )
    failure = Failure(f"{numbers}, twice the same: {word} ({path}); {rest}")
    failure.exit_code = EXIT_REPRODUCIBLE
    return failure


class StopSignals:
    """Within the block, SIGTERM, SIGINT and SIGUSR1 (a batch system's warning) wait for the end of the step;
    a second SIGINT does not.
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
        """What ends the command, with the exit code of a process that the signal ended (128 + its number)."""
        number = self.received or signal.SIGTERM  # another rank may have been the one that was told
        failure = Failure(
            f"stopped by {signal.Signals(number).name} after step {step:,}; its checkpoint is saved: run the"
            " same command again to go on"
        )
        failure.exit_code = 128 + number
        return failure


def free_memory() -> int | None:
    """Bytes of main memory that the processes of this machine may take; None where it cannot be told."""
    try:
        free = (
            int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))[1])
            * 1024
        )
    except (OSError, TypeError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a control group without a limit says "max"
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, the GPU's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )
