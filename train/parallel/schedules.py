"""Pipeline schedules: the order of actions on every rank of a pipeline, as pure functions.

Stage s of a model is on rank s mod p. With v stages a rank (interleaved, Narayanan et al. 2021) a micro-batch
visits every rank v times. A rank's actions are `F`, a forward pass, `B`, a backward pass, and where backward
passes are split, `W`, the weight gradients that a `B` left out.

    gpipe         all F, then all B (Huang et al. 2019): keeps the activations of every micro-batch
    1f1b          F and B alternate once the pipeline is full (Narayanan et al. 2019): keeps those of at most
        p
    zero-bubble   1f1b with W in place of idle time (ZB-H1 of Qi et al. 2023)

Idle time of a rank in forward passes of one of its stages, where a whole backward pass takes two and a B or a
W of a split one takes one: 3 (p - 1) for gpipe and 1f1b whatever v is, so its share falls as v grows; p - 1
for zero-bubble.

`programs` simulates all ranks on one time line and inserts `Send` and `Recv`. Both ends of a message get it
in the order of that time line, so two ranks always agree on the order of their messages: NCCL needs this
order, and it makes deadlock impossible.
"""

from __future__ import annotations

import functools
import itertools
from typing import Literal, NamedTuple

Schedule = Literal["1f1b", "gpipe", "zero-bubble"]


class Action(NamedTuple):
    """One stage's work on one micro-batch."""

    kind: str  # F, B, W
    stage: int
    micro: int


class Send(NamedTuple):
    """Send the result of an action to the rank of the stage that needs it."""

    action: Action
    peer: int  # rank in the pipeline group


class Recv(NamedTuple):
    """Receive the result of another rank's action."""

    action: Action
    peer: int


class PipelinePlan(NamedTuple):
    """The programs of all ranks for one step. Times are in units of a forward pass of one stage."""

    programs: tuple[tuple[Action | Send | Recv, ...], ...]  # of each rank
    idle: tuple[float, ...]  # of each rank, until all ranks are done
    length: float  # until all ranks are done


# of an action, in forward passes
DURATIONS = {"F": 1.0, "B": 2.0, "W": 0.0}
SPLIT_DURATIONS = {"F": 1.0, "B": 1.0, "W": 1.0}


@functools.lru_cache(64)
def programs(schedule: Schedule, ranks: int, per_rank: int, micro_batches: int) -> PipelinePlan:
    """The programs of `ranks` ranks with `per_rank` stages each, for one step."""
    for warmup_extra in itertools.count():
        orders = _action_orders(schedule, ranks, per_rank, micro_batches, warmup_extra)
        plan = _simulate(orders, ranks, per_rank, split=schedule == "zero-bubble")
        if plan is not None:
            return plan
    raise AssertionError("itertools.count never ends")


@functools.lru_cache(64)
def forward_programs(ranks: int, per_rank: int, micro_batches: int) -> PipelinePlan:
    """The same without backward passes, for validation."""
    orders = [
        [action for action in order if action.kind == "F"]
        for order in _action_orders("1f1b", ranks, per_rank, micro_batches, 0)
    ]
    plan = _simulate(orders, ranks, per_rank, split=False)
    assert plan is not None, "forward passes alone cannot deadlock"
    return plan


def _action_orders(
    schedule: Schedule, ranks: int, per_rank: int, micro_batches: int, warmup_extra: int
) -> list[list[Action]]:
    """The order of F and B on each rank. warmup_extra: forward passes beyond the schedule's warm-up."""
    # A rank passes a group of at least p micro-batches (gpipe: all) through its stages before the next group.
    groups = 1 if schedule == "gpipe" else max(1, micro_batches // ranks)
    bounds = [micro_batches * i // groups for i in range(groups + 1)]
    spans = [range(begin, end) for begin, end in itertools.pairwise(bounds)]
    orders = []
    for rank in range(ranks):
        stages = range(rank, ranks * per_rank, ranks)
        forward = [Action("F", stage, micro) for span in spans for stage in stages for micro in span]
        backward = [
            Action("B", stage, micro) for span in spans for stage in reversed(stages) for micro in span
        ]
        warmup = len(forward) if schedule == "gpipe" else ranks - rank - 1
        if schedule != "gpipe" and per_rank > 1:
            warmup = 2 * warmup + (per_rank - 1) * max(map(len, spans))
        warmup = min(warmup + warmup_extra, len(forward))
        order = forward[:warmup]
        for i, action in enumerate(forward[warmup:]):
            order += [action, backward[i]]
        orders.append(order + backward[len(forward) - warmup :])
    return orders


def _simulate(orders: list[list[Action]], ranks: int, per_rank: int, *, split: bool) -> PipelinePlan | None:
    """Runs the actions on a time line, each rank as early as it can; None if ranks wait for each other.

    split: schedules the `W` too. A `W` runs where its rank would be idle, and before the rank would keep the
    activations of more micro-batches than the first rank of 1f1b does.
    """
    durations = SPLIT_DURATIONS if split else DURATIONS
    last_stage = ranks * per_rank - 1
    most_in_flight = max(
        sum(1 for _ in itertools.takewhile(lambda action: action.kind == "F", order)) for order in orders
    )
    remaining = [list(reversed(order)) for order in orders]
    programs: list[list[Action | Send | Recv]] = [[] for _ in orders]
    clock, busy = [0.0] * ranks, [0.0] * ranks
    in_flight = [0] * ranks  # (stage, micro-batch) pairs whose activations a rank keeps
    deferred: list[list[Action]] = [[] for _ in orders]  # W
    ends: dict[Action, float] = {}

    def ready_time(action: Action) -> float | None:
        """When the input of an action is there; None: not known yet."""
        needed = _needs(action, last_stage)
        return 0.0 if needed is None else ends.get(needed)

    def next_of(rank: int) -> tuple[float, Action] | None:
        """(start, action) of what a rank does next; None if it has nothing to do yet."""
        action = remaining[rank][-1] if remaining[rank] else None
        ready = None if action is None else ready_time(action)
        if deferred[rank]:
            full = action is not None and action.kind == "F" and in_flight[rank] >= most_in_flight
            if ready is None or full or ready > clock[rank]:
                return clock[rank], deferred[rank][0]
        return None if action is None or ready is None else (max(ready, clock[rank]), action)

    while any(remaining) or any(deferred):
        # At the same time F and B come before W: they may give a rank that has only W an F or a B to do.
        choices = [
            (start, action.kind == "W", rank, action)
            for rank in range(ranks)
            if (choice := next_of(rank))
            for start, action in [choice]
        ]
        if not choices:
            return None
        start, _, rank, action = min(choices)
        if action.kind == "W":
            deferred[rank].pop(0)
        else:
            remaining[rank].pop()
        ends[action] = clock[rank] = start + durations[action.kind]
        busy[rank] += durations[action.kind]
        programs[rank].append(action)
        in_flight[rank] += {"F": 1, "B": 0 if split else -1, "W": -1}[action.kind]
        if split and action.kind == "B":
            deferred[rank].append(Action("W", action.stage, action.micro))
        target = {"F": action.stage + 1, "B": action.stage - 1}.get(action.kind, -1)
        if 0 <= target <= last_stage and (peer := target % ranks) != rank:
            programs[rank].append(Send(action, peer))
            programs[peer].append(Recv(action, rank))
    return PipelinePlan(tuple(map(tuple, programs)), tuple(max(clock) - time for time in busy), max(clock))


def _needs(action: Action, last_stage: int) -> Action | None:
    """The action of another stage, or the forward pass, whose result this one needs."""
    if action.kind == "F":
        return Action("F", action.stage - 1, action.micro) if action.stage > 0 else None
    if action.stage == last_stage:
        return Action("F", action.stage, action.micro)
    return Action("B", action.stage + 1, action.micro)
