"""Pipeline stages: the order of their work, what each of them has, and the numbers of one process to the last
bit.
"""

import pytest
import torch

from mt.core.config import UserError, build
from mt.tests.train.parallel_jobs import build_stages, lengths_of, model_config, train
from mt.train.model.family import build_model
from mt.train.parallel.mesh import ParallelConfig
from mt.train.parallel.schedules import Action, Recv, Send, forward_programs, programs
from mt.train.parallel.stages import bounds, cut_stage, owners

SCHEDULES = ("1f1b", "gpipe", "zero-bubble")
SHAPES = [
    (ranks, per_rank, count)
    for ranks in (2, 3, 4, 8)
    for per_rank in (1, 2, 3)
    for count in (1, 2, 3, 5, 8, 16)
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "per_rank", "count"), SHAPES)
def test_every_stage_does_every_micro_batch_once_in_order_and_after_what_it_needs(
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
    """Runs the programs with messages that arrive in the order in which a pair of ranks sends them, blocking
    where one is not there.
    """
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
def test_the_bubble_is_that_of_the_papers(ranks, per_rank, count):
    """In forward passes of a stage: 3 (p - 1) of gpipe, 1F1B and interleaved 1F1B (Narayanan et al.

    2021), p - 1 of ZB-H1 (Qi et al. 2023).
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
def test_no_rank_holds_more_micro_batches_than_there_are_stages(schedule):
    end = {"1f1b": "B", "zero-bubble": "W"}[schedule]
    for program in programs(schedule, 4, 1, 16).programs:
        held = most = 0
        for step in program:
            held += {"F": 1, end: -1}.get(step.kind, 0) if isinstance(step, Action) else 0
            most = max(most, held)
        assert most <= 4


def test_validation_has_forward_passes_alone():
    plan = forward_programs(4, 2, 5)
    assert {step.kind for program in plan.programs for step in program if isinstance(step, Action)} == {"F"}
    assert plan.length == 2 * 5 + 4 - 1


def test_stages_are_as_even_as_blocks_can_be_dealt_out_with_the_head():
    config = model_config("gpt", num_layers=8, vocab_size=60)
    split = bounds(ParallelConfig(pipeline_model_parallel_size=4), config, {"seq_length": 16})
    assert split == [(0, 2), (2, 4), (4, 6), (6, 8)]
    heavy = model_config("gpt", num_layers=8, vocab_size=6000)  # a head that costs more than all blocks
    assert bounds(ParallelConfig(pipeline_model_parallel_size=4), heavy, {"seq_length": 16})[-1] == (7, 8)


@pytest.mark.parametrize(
    "family", ["gpt", "llama", "moe", "bert", "bert_post_norm", "t5", "t5_relative", "mamba_moe"]
)
def test_stages_together_have_every_weight_and_only_shared_ones_twice(family):
    config = model_config(family)
    with torch.device("meta"):
        whole = build_model(config)
    split = bounds(ParallelConfig(pipeline_model_parallel_size=2), config, lengths_of(config))
    names = [{name for name, _ in cut_stage(whole, *where).named_parameters()} for where in split]
    assert names[0] | names[1] == {name for name, _ in whole.named_parameters()}
    assert {name.split(".")[0] for name in names[0] & names[1]} == set(owners(config, split)) & {
        name.split(".")[0] for name in names[0]
    }


BITWISE = {
    "1f1b": ({}, {}),
    "interleaved": ({"num_layers_per_virtual_pipeline_stage": 1}, {}),
    "zero-bubble": ({"pipeline_schedule": "zero-bubble"}, {}),
    "gpipe, recomputed, dropout": ({"pipeline_schedule": "gpipe"}, {"granularity": "full"}),
}


@pytest.mark.parametrize("how", list(BITWISE))
def test_a_pipeline_gives_the_weights_of_one_process_to_the_last_bit(pool, how):
    """In float32, with dropout, over 4 micro-batches a step."""
    parallel, options = BITWISE[how]
    common = {
        "steps": 5,
        "dtype": torch.float32,
        "changes": {"num_layers": 4, "hidden_dropout": 0.2, "attention_dropout": 0.1},
    }
    one = pool.run(train, 1, "llama", **common)[0]
    many = pool.run(train, 2, "llama", {"pipeline_model_parallel_size": 2} | parallel, **common, **options)[0]
    assert one.losses == many.losses
    assert all(torch.equal(one.weights[name], many.weights[name]) for name in one.weights)


def test_gradients_put_off_change_no_bit_in_bfloat16(pool):
    how = {"steps": 3, "dtype": torch.float32, "compute_dtype": torch.bfloat16}
    plain, put_off = (
        pool.run(train, 2, "gpt", {"pipeline_model_parallel_size": 2, "pipeline_schedule": schedule}, **how)[
            0
        ]
        for schedule in ("1f1b", "zero-bubble")
    )
    assert plain.losses == put_off.losses
    assert all(torch.equal(plain.weights[name], put_off.weights[name]) for name in plain.weights)


def test_a_rank_has_memory_for_its_own_stage_alone(pool):
    whole, *stages = (
        pool.run(build_stages, ranks, {"pipeline_model_parallel_size": ranks}) for ranks in (1, 2)
    )
    assert sum(stages[0]) == whole[0] + 64 * 16  # the embedding, which is the head too


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pipeline_schedule": "gpipe"},
            "need several pipeline stages, and there is one; give --pipeline-model-parallel-size",
        ),
        (
            {
                "pipeline_model_parallel_size": 2,
                "pipeline_schedule": "zero-bubble",
                "data_parallel_sharding": "full",
            },
            "keeps unsharded gradients until the end of a step",
        ),
        (
            {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 0},
            "num_layers_per_virtual_pipeline_stage = 0 must be at least 1",
        ),
        ({"pipeline_model_parallel_size": 0}, "pipeline_model_parallel_size = 0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(ParallelConfig, ("test", settings))
