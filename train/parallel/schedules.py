"""In which order pipeline stages work on micro-batches: pure functions from a schedule's name to what each
rank does, and when.

Stage s of a model is on rank s mod p; with v stages a rank (interleaved, Narayanan et al. 2021) a micro-batch
goes round v times. A rank's work is a row of actions: `F` a forward pass, `B` a backward pass, and where
backward passes are split, `W` the gradients of weights that a `B` has put off.

    gpipe         all F, then all B (Huang et al. 2019): keeps the activations of every micro-batch
    1f1b          F and B in turns once the pipeline is full (Narayanan et al. 2019): keeps those of p at most
    zero-bubble   1f1b whose waiting is filled with W (ZB-H1 of Qi et al. 2023)

Waiting of a rank, in forward passes of one of its stages (a backward pass takes two, a split one one and
one): gpipe and 1f1b 3 (p - 1), whatever v is, so that its share falls with v; zero-bubble p - 1.

`programs` lays the actions of all ranks out in time and puts `Send` and `Recv` between them. Both ends of a
message get it in the order of that one time line, so that two ranks always agree on the order of what they
exchange: NCCL needs that, and nothing can wait for itself.
"""

from __future__ import annotations

import functools
import itertools
from typing import Literal, NamedTuple

Schedule = Literal["1f1b", "gpipe", "zero-bubble"]


class Action(NamedTuple):
    kind: str  # F, B, W
    stage: int
    micro: int


class Send(NamedTuple):
    """The result of an action, to the stage that goes on with it."""

    of: Action
    peer: int  # its rank


class Recv(NamedTuple):
    of: Action
    peer: int


class Plan(NamedTuple):
    programs: tuple[tuple[Action | Send | Recv, ...], ...]  # of each rank
    waiting: tuple[float, ...]  # of each rank, until the last one is done, in the unit of `durations`
    length: float


DURATIONS = {"F": 1.0, "B": 2.0, "W": 0.0}
SPLIT_DURATIONS = {"F": 1.0, "B": 1.0, "W": 1.0}


@functools.lru_cache(64)
def programs(schedule: Schedule, ranks: int, per_rank: int, micro_batches: int) -> Plan:
    """What each of `ranks` ranks does in a step, with `per_rank` stages on each."""
    extra = 0
    while (
        plan := _lay_out(
            _rows(schedule, ranks, per_rank, micro_batches, extra),
            ranks,
            per_rank,
            split=schedule == "zero-bubble",
        )
    ) is None:
        extra += 1
    return plan


@functools.lru_cache(64)
def forward_programs(ranks: int, per_rank: int, micro_batches: int) -> Plan:
    """The same without backward passes, for validation."""
    rows = [
        [action for action in row if action.kind == "F"]
        for row in _rows("1f1b", ranks, per_rank, micro_batches, 0)
    ]
    return _lay_out(rows, ranks, per_rank, split=False)


def _rows(
    schedule: Schedule, ranks: int, per_rank: int, micro_batches: int, extra: int
) -> list[list[Action]]:
    """Each rank's F and B in order. extra: forward passes ahead of what the schedule asks for."""
    # A rank goes through its stages with a group of at least p micro-batches at a time (all of them for
    # gpipe).
    groups = 1 if schedule == "gpipe" else max(1, micro_batches // ranks)
    bounds = [micro_batches * i // groups for i in range(groups + 1)]
    spans = [range(begin, end) for begin, end in itertools.pairwise(bounds)]
    rows = []
    for rank in range(ranks):
        stages = range(rank, ranks * per_rank, ranks)
        forward = [Action("F", stage, micro) for span in spans for stage in stages for micro in span]
        backward = [
            Action("B", stage, micro) for span in spans for stage in reversed(stages) for micro in span
        ]
        ahead = len(forward) if schedule == "gpipe" else ranks - rank - 1
        if schedule != "gpipe" and per_rank > 1:
            ahead = 2 * ahead + (per_rank - 1) * max(map(len, spans))
        ahead = min(ahead + extra, len(forward))
        row = forward[:ahead]
        for i, action in enumerate(forward[ahead:]):
            row += [action, backward[i]]
        rows.append(row + backward[len(forward) - ahead :])
    return rows


def _lay_out(rows: list[list[Action]], ranks: int, per_rank: int, *, split: bool) -> Plan | None:
    """The rows in time, each rank as early as it can; None where ranks wait for each other in a circle.

    split: `W` follow their `B` where a rank has nothing else to do, and before it would hold more
    micro-batches than the first rank of 1f1b does.
    """
    durations = SPLIT_DURATIONS if split else DURATIONS
    last_stage = ranks * per_rank - 1
    most = max(
        sum(a.kind == "F" for a in row[: next((i for i, a in enumerate(row) if a.kind == "B"), len(row))])
        for row in rows
    )
    left = [list(reversed(row)) for row in rows]
    found: list[list[Action | Send | Recv]] = [[] for _ in rows]
    clock, busy = [0.0] * ranks, [0.0] * ranks
    held = [0] * ranks  # micro-batches of a stage whose activations a rank holds
    put_off: list[list[Action]] = [[] for _ in rows]
    ends: dict[Action, float] = {}

    def ready(action: Action) -> float | None:
        """When what an action needs is there; None: not known yet."""
        needed = _needs(action, last_stage)
        return 0.0 if needed is None else ends.get(needed)

    def next_of(rank: int) -> tuple[float, Action] | None:
        action = left[rank][-1] if left[rank] else None
        when = ready(action) if action is not None else None
        if put_off[rank]:
            full = action is not None and action.kind == "F" and held[rank] >= most
            if when is None or full or when > clock[rank]:
                return clock[rank], put_off[rank][0]
        return None if when is None else (max(when, clock[rank]), action)

    while any(left) or any(put_off):
        # A rank that could only do `W` waits for those that may give it something better at the same time.
        choices = [
            (start, action.kind == "W", rank, action)
            for rank in range(ranks)
            if (choice := next_of(rank))
            for start, action in [choice]
        ]
        if not choices:
            return None
        start, _, rank, action = min(choices)
        (put_off[rank].pop(0) if action.kind == "W" else left[rank].pop())
        ends[action] = clock[rank] = start + durations[action.kind]
        busy[rank] += durations[action.kind]
        found[rank].append(action)
        held[rank] += {"F": 1, "B": 0 if split else -1, "W": -1}[action.kind]
        if split and action.kind == "B":
            put_off[rank].append(Action("W", action.stage, action.micro))
        target = {"F": action.stage + 1, "B": action.stage - 1}.get(action.kind, -1)
        if 0 <= target <= last_stage and (peer := target % ranks) != rank:
            found[rank].append(Send(action, peer))
            found[peer].append(Recv(action, rank))
    return Plan(tuple(map(tuple, found)), tuple(max(clock) - time for time in busy), max(clock))


def _needs(action: Action, last_stage: int) -> Action | None:
    """The action whose result another needs."""
    if action.kind == "F":
        return Action("F", action.stage - 1, action.micro) if action.stage > 0 else None
    return (
        Action("F", action.stage, action.micro)
        if action.stage == last_stage
        else Action("B", action.stage + 1, action.micro)
    )
