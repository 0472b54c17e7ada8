"""The difference of two texts by words (words.py), in a time that their lengths bound.

What two texts have in common at their beginnings and ends is set aside first. The rest is compared by words
if it has at most MOST_UNITS of them, else by lines, and the words of lines that differ. What is still longer
is told as one replacement: the result always makes the second text of the first, though not always in the
fewest steps.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from .words import WORD

MOST_UNITS = 2000  # of a text that are compared; the time grows with their square at worst
Tag = Literal["equal", "replace", "delete", "insert"]
Step = tuple[Tag, int, int, int, int]  # as of difflib.SequenceMatcher.get_opcodes, in characters


def word_diff(a: str, b: str) -> list[Step]:
    """The steps from a to b: (tag, start in a, end in a, start in b, end in b), without gaps."""
    return list(_joined(list(_steps(a, b, 0, 0, (_words, _lines))), a))


def _steps(
    a: str, b: str, i: int, j: int, splitters: tuple[Callable[[str], list[str]], ...]
) -> Iterator[Step]:
    """The steps between two pieces of texts, which begin at i and j; by the first splitter with few units."""
    if not a or not b or a == b:
        tag: Tag = "equal" if a == b else "delete" if a else "insert"
        if a or b:
            yield tag, i, i + len(a), j, j + len(b)
        return
    for split in splitters:
        units, others = split(a), split(b)
        before = _common(units, others)
        after = _common(units[: before - 1 - len(units) : -1], others[: before - 1 - len(others) : -1])
        left, right = units[before : len(units) - after], others[before : len(others) - after]
        if max(len(left), len(right)) <= MOST_UNITS:
            break
    else:
        yield "replace", i, i + len(a), j, j + len(b)
        return
    starts = list(itertools.accumulate(map(len, units), initial=0))
    other_starts = list(itertools.accumulate(map(len, others), initial=0))
    found: list[tuple[Tag, int, int, int, int]] = [("equal", 0, before, 0, before)]
    matcher = difflib.SequenceMatcher(None, left, right)
    found += [(t, p + before, q + before, r + before, s + before) for t, p, q, r, s in matcher.get_opcodes()]
    found.append(("equal", len(units) - after, len(units), len(others) - after, len(others)))
    for tag, p, q, r, s in found:
        span = starts[p], starts[q], other_starts[r], other_starts[s]
        if tag == "replace" and split is not splitters[0]:
            pieces = a[span[0] : span[1]], b[span[2] : span[3]]
            yield from _steps(*pieces, i + span[0], j + span[2], splitters[:1])
        elif span[0] < span[1] or span[2] < span[3]:
            yield tag, i + span[0], i + span[1], j + span[2], j + span[3]


def _common(a: list[str], b: list[str]) -> int:
    """How many units at the beginning are equal."""
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _joined(steps: Sequence[Step], a: str) -> Iterator[Step]:
    """The steps, of which neighbours are joined: equal ones, and changes with only spaces between them."""
    last = len(steps) - 1
    same = [
        step[0] == "equal" and (n in (0, last) or bool(a[step[1] : step[2]].strip(" ")))
        for n, step in enumerate(steps)
    ]
    for is_equal, group in itertools.groupby(zip(same, steps), lambda pair: pair[0]):
        some = [step for _, step in group]
        i, j, k, m = some[0][1], some[-1][2], some[0][3], some[-1][4]
        tag: Tag = "equal" if is_equal else "delete" if k == m else "insert" if i == j else "replace"
        yield tag, i, j, k, m


def _words(text: str) -> list[str]:
    """The words of a text and what stands between them."""
    cuts = [place for found in WORD.finditer(text) for place in found.span()]
    bounds = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if a < b]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
