"""Learning rate, weight decay and batch size as functions of the number of consumed samples.

The semantics are Megatron-LM's (core/optimizer_param_scheduler.py, num_microbatches_calculator.py).
Everything is counted in samples, and a step uses the value at the samples consumed before it. So with a
warm-up from 0 the first step has learning rate 0 and changes only the optimizer's moments. A checkpoint holds
no state of a schedule: the settings and the number of consumed samples determine it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal

from ..core.config import UserError, shown


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """Learning-rate schedule. All counts are samples."""

    peak: float
    minimum: float
    style: str  # constant, linear, cosine, inverse-square-root or WSD
    warmup: int
    decay: int  # where the minimum is reached, warm-up included
    wsd_decay: int = 0  # WSD: length of the final decay, which ends at `decay`
    wsd_style: str = "exponential"
    initial: float = 0.0  # at the start of the warm-up

    def at(self, samples: int) -> float:
        """The learning rate of the step that begins after `samples` samples."""
        if self.warmup > 0 and samples <= self.warmup:
            return self.initial + (self.peak - self.initial) * samples / self.warmup
        if self.style == "constant":
            return self.peak
        if samples > self.decay:
            return self.minimum
        if self.style == "inverse-square-root":
            return max(self.minimum, self.peak * max(self.warmup, 1) ** 0.5 / max(samples, 1) ** 0.5)
        if self.style == "WSD":
            share = self._wsd(samples)
        else:
            ratio = (samples - self.warmup) / (self.decay - self.warmup)
            share = 1.0 - ratio if self.style == "linear" else 0.5 * (math.cos(math.pi * ratio) + 1.0)
        return self.minimum + share * (self.peak - self.minimum)

    def _wsd(self, samples: int) -> float:
        """Warmup-stable-decay (Hu et al. 2024): the position between minimum (0) and peak (1)."""
        start = self.decay - self.wsd_decay
        if samples <= start:
            return 1.0
        ratio = (samples - start) / self.wsd_decay
        return {
            "linear": 1.0 - ratio,
            "cosine": 0.5 * (math.cos(math.pi * ratio) + 1.0),
            "exponential": 2.0 * 0.5**ratio - 1.0,
            "minus_sqrt": 1.0 - math.sqrt(ratio),
        }[self.wsd_style]


@dataclasses.dataclass(frozen=True)
class WeightDecay:
    """Weight-decay schedule, from the first sample of a run to its last."""

    start: float
    end: float
    style: str  # constant, linear or cosine
    total: int  # samples

    def at(self, samples: int) -> float:
        """The weight decay of the step that begins after `samples` samples."""
        if self.style == "constant" or samples > self.total:
            return self.end
        ratio = samples / self.total
        share = ratio if self.style == "linear" else 0.5 * (math.cos(math.pi * (1 - ratio)) + 1.0)
        return self.start + share * (self.end - self.start)


SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)([KMBT]?)", re.IGNORECASE)


def batch_size_steps(schedule: Iterable[str]) -> list[tuple[int, int]]:
    """[(tokens, size)] of `0:384 200B:768`, as Megatron-LM reads it: the global batch from so many tokens on.

    schedule: words, which may hold several steps. Raises UserError for what is no schedule.
    """
    steps = []
    for step in " ".join(schedule).replace(",", " ").split():
        found = [NUMBER.fullmatch(part) for part in step.split(":")]
        numbers = [int(Decimal(m[1]) * SUFFIXES.get(m[2].upper(), 1)) for m in found if m is not None]
        if len(numbers) != 2 or len(found) != 2 or numbers[1] < 1:
            raise UserError(
                f"train.step_batch_size_schedule has {shown(step)}; each step is TOKENS:SIZE, such as"
                " 200B:768 (K, M, B, T: 10^3 to 10^12)"
            )
        steps.append((numbers[0], numbers[1]))
    if not steps or min(steps)[0] != 0:
        raise UserError(
            f"train.step_batch_size_schedule = {shown(' '.join(schedule))} must say the size from the first"
            " token on; begin with 0:SIZE"
        )
    return sorted(steps)


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """Batch-size schedule: constant, a linear ramp from `start` to `full` in steps of `increment`, or given
    sizes from given samples on.
    """

    full: int
    start: int = 0
    increment: int = 0
    ramp_samples: int = 0  # length of the ramp
    steps_up: tuple[tuple[int, int], ...] = ()  # (samples from which on it is used, size), ascending

    @classmethod
    def rampup(cls, full: int, rampup: tuple[int, ...]) -> BatchSize:
        """From `--rampup-batch-size START INCREMENT SAMPLES`, as in Megatron-LM.

        Raises UserError where `full` cannot be reached from START in steps of INCREMENT.
        """
        if len(rampup) != 3 or min(rampup) < 1:
            raise UserError(
                f"train.rampup_batch_size = {' '.join(map(str, rampup))} must be three positive numbers:"
                " start, increment, samples"
            )
        start, increment, samples = rampup
        if start > full or (full - start) % increment:
            raise UserError(
                f"train.rampup_batch_size: global batch {full} minus start {start} is not a multiple of"
                f" increment {increment}; change one of the three"
            )
        return cls(full, start, increment, samples)

    @classmethod
    def stepwise(cls, schedule: Iterable[str], seq_length: int) -> BatchSize:
        """From `--step-batch-size-schedule`, whose thresholds are tokens of samples of seq_length tokens.

        Raises UserError where two sizes begin with the same sample.
        """
        steps = [(tokens // seq_length, size) for tokens, size in batch_size_steps(schedule)]
        for (before, _), (samples, size) in itertools.pairwise(steps):
            if samples <= before:
                raise UserError(
                    f"train.step_batch_size_schedule: the size {size} begins after {samples} samples of"
                    f" {seq_length} tokens, but the one before it after {before}; raise its tokens"
                )
        return cls(steps[-1][1], steps_up=tuple(steps))

    def at(self, samples: int) -> int:
        """The size of the global batch that begins after `samples` samples."""
        if self.steps_up:
            return [size for begin, size in self.steps_up if begin <= samples][-1]
        if self.increment == 0 or self.start == self.full or samples > self.ramp_samples:
            return self.full
        every = self.ramp_samples / ((self.full - self.start) // self.increment)
        return min(self.start + self.increment * int(samples / every), self.full)

    def sizes(self) -> list[int]:
        """All sizes that may occur, ascending."""
        if self.steps_up:
            return sorted({size for _, size in self.steps_up})
        return [*range(self.start, self.full, self.increment), self.full] if self.increment else [self.full]

    def steps(self, total_samples: int, consumed: int = 0) -> Iterator[tuple[int, int]]:
        """(samples consumed before the step, its batch size) of every remaining step.

        A last batch that would exceed `total_samples` is left out.
        """
        while consumed + (size := self.at(consumed)) <= total_samples:
            yield consumed, size
            consumed += size
