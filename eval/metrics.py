"""Statistics that the evaluation tasks share: means, perplexities and their standard errors."""

from __future__ import annotations

import math


class RunningMean:
    """The mean of values and its standard error, in constant memory (Welford 1962)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        change = value - self.mean
        self.mean += change / self.count
        self._squares += change * (value - self.mean)

    @property
    def stderr(self) -> float | None:
        """The sample standard deviation over the square root of the count; None below two values."""
        return math.sqrt(self._squares / (self.count - 1) / self.count) if self.count > 1 else None


def perplexity(name: str, loss: float, stderr: float | None) -> dict[str, float | None]:
    """`name`: exp(loss), and `name`_stderr: its standard error to first order.

    loss: nats. The loss is capped at 700, so that exp(loss) is finite in float64; Megatron-LM caps it at 20.
    """
    value = math.exp(min(loss, 700))
    return {name: value, f"{name}_stderr": None if stderr is None else value * stderr}
