"""train/valid/test ranges of a dataset's sequences, by shares such as "969,30,1".

The first share of the sequences, in their order, is for training, the next for validation, the last for
testing.
"""

from __future__ import annotations

import re

from ..core.config import UserError

NAMES = ("train", "valid", "test")


def shares(split: str) -> tuple[float, float, float]:
    """The three shares, of sum 1, of a split such as "969,30,1" or "98,2"; raises UserError."""
    numbers = [n for n in re.split(r"[,\s/]+", split.strip()) if n]
    try:
        values = [float(n) for n in numbers]
    except ValueError:
        values = []
    if not values or len(values) > 3 or min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise UserError(
            f"split = {split!r} must be up to three shares for train, valid and test, such as 969,30,1"
        )
    values += [0.0] * (3 - len(values))
    total = sum(values)
    return tuple(v / total for v in values)


def ranges(split: str, count: int) -> tuple[tuple[int, int] | None, ...]:
    """[start, end) of every split of `count` elements; None where the share is nothing.

    Megatron-LM's rounding: the boundaries are running sums of the shares times the count, halves to even. A
    range may be empty where there are few elements.
    """
    bounds, found = [0.0], []
    for share in shares(split):
        bounds.append(bounds[-1] + share)
        found.append((round(bounds[-2] * float(count)), round(bounds[-1] * float(count))) if share else None)
    return tuple(found)
