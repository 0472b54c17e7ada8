"""Ranges of a dataset's sequences for training, validation and test, from a split such as "969,30,1".

The first share of the sequences, in their order, is for training, the next for validation, the last for test.
"""

from __future__ import annotations

import re

from ..core.config import UserError

SPLIT_NAMES = ("train", "valid", "test")


def shares(split: str) -> tuple[float, float, float]:
    """The three shares of a split such as "969,30,1" or "98,2", scaled to a sum of 1.

    Raises UserError for anything but one to three non-negative numbers of a positive, finite sum.
    """
    numbers = [n for n in re.split(r"[,\s/]+", split.strip()) if n]
    try:
        values = [float(n) for n in numbers]
    except ValueError:
        values = []
    if not values or len(values) > 3 or min(values) < 0 or not 0 < sum(values) < float("inf"):
        raise UserError(
            f"split = {split!r} must be up to three shares for train, valid and test, such as 969,30,1"
        )
    train, valid, test = values + [0.0] * (3 - len(values))
    total = sum(values)
    return train / total, valid / total, test / total


def ranges(split: str, count: int) -> tuple[tuple[int, int] | None, ...]:
    """[start, end) of every split of `count` elements; None for a share of 0.

    Rounding is Megatron-LM's: a boundary is the running sum of the shares times `count`, with halves rounded
    to even. If there are few elements, a range may be empty.
    """
    end, found = 0.0, []
    for share in shares(split):
        start, end = end, end + share
        found.append((round(start * float(count)), round(end * float(count))) if share else None)
    return tuple(found)
