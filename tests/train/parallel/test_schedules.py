"""Pipeline schedules: replayed without deadlock; their idle time, compared with the papers."""

import pytest

from mt.train.parallel.schedules import Action, Recv, Send, forward_programs, programs

SCHEDULES = ("1f1b", "gpipe", "zero-bubble")


SHAPES = [
    (ranks, per_rank, count)
    for ranks in (2, 3, 4, 8)
    for per_rank in (1, 2, 3)
    for count in (1, 2, 3, 5, 8, 16)
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "per_rank", "count"), SHAPES)
def test_every_stage_runs_every_micro_batch_once_in_order_after_its_dependencies(
    schedule, ranks, per_rank, count
):
    found = programs(schedule, ranks, per_rank, count).programs
    stages, kinds = ranks * per_rank, "FBW" if schedule == "zero-bubble" else "FB"
    for stage in range(stages):
        for kind in kinds:  # gradients are added up in the order of micro-batches, as on one process
            assert [
                a.micro
                for a in found[stage % ranks]
                if isinstance(a, Action) and (a.kind, a.stage) == (kind, stage)
            ] == list(range(count))
    replay(found, ranks, stages)


def replay(found, ranks: int, stages: int) -> None:
    """Runs the programs. Messages of a pair of ranks arrive in order; a rank waits for its next message."""
    at, done = [0] * ranks, set()
    channels: dict = {}
    posted: dict = {}
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(found):
            while at[rank] < len(program):
                step = program[at[rank]]
                match step:
                    case Send(action, peer):
                        assert action in done
                        channels.setdefault((rank, peer), []).append(action)
                    case Recv(action, peer):
                        posted.setdefault((peer, rank), []).append(action)
                    case Action(kind, stage, micro):
                        before = {
                            "F": ("F", stage - 1) if stage else None,
                            "B": ("B", stage + 1) if stage < stages - 1 else ("F", stage),
                            "W": ("B", stage),
                        }[kind]
                        if before is not None and (*before, micro) not in done:
                            break
                        if before is not None and before[1] != stage:
                            pair = (before[1] % ranks, rank)
                            place = posted[pair].index(Action(*before, micro))
                            assert channels[pair][place] == Action(*before, micro)
                        done.add(step)
                at[rank] += 1
                moved = True
    assert at == [len(program) for program in found], "ranks wait for each other"
    assert channels == posted


@pytest.mark.parametrize(
    ("ranks", "per_rank", "count"), [(2, 1, 8), (4, 1, 16), (4, 2, 16), (8, 3, 32), (16, 1, 64)]
)
def test_idle_times_are_those_of_the_papers(ranks, per_rank, count):
    """In forward passes of a stage: gpipe, 1F1B and interleaved 1F1B wait 3 (p - 1), ZB-H1 waits p - 1.

    Narayanan et al. 2021, Qi et al. 2023.
    """
    for schedule, waiting in (
        ("1f1b", 3 * (ranks - 1)),
        ("gpipe", 3 * (ranks - 1)),
        ("zero-bubble", ranks - 1),
    ):
        plan = programs(schedule, ranks, per_rank, count)
        assert set(plan.idle) == {waiting}
        assert plan.length == 3 * count * per_rank + waiting


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_no_rank_has_more_micro_batches_in_flight_than_there_are_stages(schedule):
    end = {"1f1b": "B", "zero-bubble": "W"}[schedule]
    for program in programs(schedule, 4, 1, 16).programs:
        in_flight = most = 0
        for step in program:
            in_flight += {"F": 1, end: -1}.get(step.kind, 0) if isinstance(step, Action) else 0
            most = max(most, in_flight)
        assert most <= 4


def test_validation_runs_only_forward_passes():
    plan = forward_programs(4, 2, 5)
    assert {step.kind for program in plan.programs for step in program if isinstance(step, Action)} == {"F"}
    assert plan.length == 2 * 5 + 4 - 1
