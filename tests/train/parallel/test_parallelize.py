"""Parallel training compared with one process: tensor, sequence, context, expert and data parallelism, and
layouts that are refused.
"""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import (
    CASES,
    FEW,
    bytes_per_parameter,
    differences,
    embedding_after_dropout,
    first_weights,
    memory_of_building,
    model_config,
    random_numbers_of_a_rank,
    train,
)
from mt.train.parallel.mesh import SIZES, ParallelConfig
from mt.train.parallel.parallelize import check_layout


@pytest.fixture(scope="module")
def alone(pool):
    """alone(family, name=value ...) -> the Result of one process."""
    return functools.cache(lambda family, **how: pool.run(train, 1, family, **how)[0])


# layouts of more than two processes that are not marked slow
QUICK = (
    "gpt, TP2 x CP2, sequence parallel",
    "moe, TP2 x EP2, sequence parallel",
    "t5, PP2 x TP2, sequence parallel",
)
# Layouts of two processes that are: of these families another layout has the same exchanges and more.
SLOW = (
    *("gpt, CP2, weights sharded, all recomputed", "gpt, DP2, weights sharded, packed documents"),
    *("llama, TP2", "llama, CP2", "llama, PP2", "moe, DP2", "moe, TP2", "moe, CP2 x EP2, weights sharded"),
    *("moe that drops tokens, DP2", "bert, TP2", "bert, DP2", "bert, PP2", "bert with norms after, PP2"),
    *("t5, TP2", "t5, DP2", "ict, TP2", "Retro, DP2", "Retro, TP2", "Retro with experts, EP2"),
    *(
        "Retro, rotated, TP2, sequence parallel",
        "mamba hybrid, DP2",
        "mamba hybrid, TP2",
        "mamba hybrid, CP2",
    ),
    *("mamba hybrid, DP2, weights sharded", "falcon, DP2", "falcon, TP2", "falcon, PP2", "gpt_neox, CP2"),
    *("gpt, CP2, weights sharded", "bert with norms after, TP2, sequence parallel", "falcon, CP2"),
    *("t5 with relative positions, TP2, sequence parallel", "t5, PP2", "gpt_neox, PP2", "moe, PP2"),
    *(
        "moe, CP2 x EP2",
        "moe, TP2, sequence parallel",
        "moe that drops tokens, CP2",
        "t5, DP2, weights sharded",
    ),
    *("gpt, CP2", "gpt, TP2, sequence parallel, packed documents", "Retro, DP2, weights sharded"),
    *("bloom, DP2, weights sharded", "bloom, TP2", "bloom, CP2, packed documents", "bloom, PP2"),
    *("mla, DP2, weights sharded", "mla, TP2", "mla, CP2, packed documents", "mla, PP2"),
    *("mtp, DP2", "mtp, DP2, weights sharded", "mtp, TP2", "mtp, CP2, packed documents"),
    *("mtp, PP2, zero-bubble", "mtp, its own output layer, PP2, interleaved"),
    *("mtp of latents and experts, EP2", "mtp of latents and experts, PP2"),
    # test_pipeline.py compares these schedules bit for bit
    *("gpt, PP2", "gpt, PP2, interleaved", "gpt, PP2, zero-bubble", "mamba hybrid, PP2"),
)
assert set(QUICK) | set(SLOW) <= set(CASES)


def is_slow(case: str) -> bool:
    return case in SLOW or (CASES[case][1] > 2 and case not in QUICK)


PARAMETERS = [pytest.param(name, marks=[pytest.mark.slow] * is_slow(name)) for name in CASES]


@pytest.mark.parametrize("case", PARAMETERS)
def test_steps_at_a_layout_give_the_numbers_of_one_process(pool, alone, case):
    """Ten steps, or three in a quick test: the third has the weights that two updates made."""
    family, world, parallel, *how = CASES[case]
    how = dict(*how) | ({} if is_slow(case) else FEW)
    loss, norm, weights = differences(
        alone(family, **how), pool.run(train, world, family, parallel, **how)[0]
    )
    assert loss < 1e-12
    assert norm < 1e-12
    assert weights < 1e-10


def test_every_size_of_a_group_has_layouts_in_cases_and_all_are_in_the_docs():
    for name in SIZES:
        assert any(parallel.get(name, 1) > 1 for _, _, parallel, *_ in CASES.values()), name
    page = (Path(__file__).parents[3] / "docs" / "parallelism.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(ParallelConfig):
        assert f"`--{field.name.replace('_', '-')}" in page, field.name
    table = page.split("| layout | processes | loss |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|]*) \| (\d+) \|", table, re.MULTILINE)
    assert rows == [(name, str(world)) for name, (_, world, *_) in CASES.items()], (
        "make layouts prints the table; NAMES=... only some rows of it"
    )


def test_in_float32_and_bfloat16_losses_differ_by_rounding_only(pool, alone):
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    one = alone("gpt", dtype=torch.float32, **FEW)
    many = pool.run(train, 2, "gpt", parallel, dtype=torch.float32, **FEW)[0]
    assert one.losses == pytest.approx(many.losses, abs=2e-6)
    half = pool.run(train, 2, "gpt", parallel, dtype=torch.float32, compute_dtype=torch.bfloat16, **FEW)[0]
    assert one.losses == pytest.approx(half.losses, abs=2e-2)


def test_losses_differ_from_step_to_step(alone):
    """Otherwise equal losses would prove nothing."""
    losses = alone("gpt", **FEW).losses
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize(
    ("granularity", "sequence_parallel"),
    [
        ("selective", False),
        ("full", True),
        pytest.param("selective", True, marks=pytest.mark.slow),
        pytest.param("full", False, marks=pytest.mark.slow),
    ],
)
def test_recomputation_with_dropout_changes_no_bit_at_a_layout(pool, granularity, sequence_parallel):
    how = {"steps": 2, "changes": {"hidden_dropout": 0.2, "attention_dropout": 0.3}}
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": sequence_parallel}
    plain, again = (pool.run(train, 2, "gpt", parallel, granularity=g, **how)[0] for g in (None, granularity))
    assert plain.losses == again.losses
    assert all(torch.equal(plain.weights[name], again.weights[name]) for name in plain.weights)


def test_dropout_masks_of_replicated_states_are_those_of_one_process(pool):
    how = {"steps": 3, "changes": {"hidden_dropout": 0.3}}
    assert (
        max(
            differences(
                pool.run(train, 1, "gpt", **how)[0],
                pool.run(train, 2, "gpt", {"tensor_model_parallel_size": 2}, **how)[0],
            )
        )
        < 1e-10
    )


def test_dropout_masks_of_states_divided_over_ranks_differ(pool):
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    first, second = pool.run(
        embedding_after_dropout, 2, parallel
    )  # embeddings of one token at all positions, after dropout
    assert not torch.equal(first == 0, second == 0)
    parallel = {"tensor_model_parallel_size": 2}
    first, second = pool.run(embedding_after_dropout, 2, parallel)
    assert torch.equal(first, second)


def test_random_numbers_of_a_rank_are_its_own_reproducible_and_leave_the_common_generator_in_step(pool):
    (a, again, next_a, after_a), (b, _, next_b, after_b) = pool.run(random_numbers_of_a_rank, 2)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, next_a)
    assert not torch.equal(next_a, next_b)
    assert torch.equal(after_a, after_b)


@pytest.mark.parametrize(
    ("dtype", "alone", "whole", "shared"),
    [(torch.bfloat16, 18, 6, 12), (torch.float32, 16, 8, 12), (torch.float16, 18, 6, 12)],
    ids=str,
)
def test_bytes_per_parameter_are_those_of_megatrons_distributed_optimizer_in_bfloat16(
    pool, dtype, alone, whole, shared
):
    """Its README, for 1 and d processes: bf16 18, 6 + 12 / d; fp32 16, 8 + 8 / d; fp16 20, 4 + 16 / d."""
    assert pool.run(bytes_per_parameter, 1, {}, dtype) == [pytest.approx((alone, alone), rel=0.01)]
    assert (
        pool.run(bytes_per_parameter, 2, {}, dtype)
        == [pytest.approx((whole + shared / 2, 16 / 2), rel=0.01)] * 2
    )
    if dtype == torch.bfloat16:
        assert (
            pool.run(bytes_per_parameter, 2, {"data_parallel_sharding": "full"}, dtype)
            == [pytest.approx((16 / 2, 16 / 2), rel=0.02)] * 2
        )
        assert (
            pool.run(bytes_per_parameter, 4, {"tensor_model_parallel_size": 2}, dtype)
            == [pytest.approx((whole / 2 + shared / 4, 16 / 4), rel=0.02)] * 4
        )


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"tensor_model_parallel_size": 2},
        {"expert_model_parallel_size": 2},
        {"data_parallel_sharding": "full"},
    ],
)
def test_ranks_initialize_their_parts_with_the_weights_of_one_process(pool, parallel):
    one, many = pool.run(first_weights, 1, {})[0], pool.run(first_weights, 2, parallel)[0]
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_no_rank_ever_allocates_a_whole_model(pool):
    grown, model = pool.run(memory_of_building, 2, {})[0]
    assert grown < 0.75 * model  # its half, and a block


@pytest.mark.parametrize(
    ("family", "parallel", "changes", "length", "message"),
    [
        (
            "gpt",
            {"tensor_model_parallel_size": 3},
            {},
            16,
            (
                r"parallel.tensor_model_parallel_size = 3 does not divide model.num_attention_heads = 4; use"
                r" a size that does"
            ),
        ),
        (
            "llama",
            {"tensor_model_parallel_size": 4},
            {},
            16,
            r"= 4 does not divide model.num_query_groups = 2",
        ),
        (
            "gpt",
            {"tensor_model_parallel_size": 4},
            {"make_vocab_size_divisible_by": 2, "vocab_size": 58},
            16,
            (
                r"= 4 does not divide model.padded_vocab_size = 58; give a --make-vocab-size-divisible-by"
                r" that is"
            ),
        ),
        (
            "mamba",
            {"tensor_model_parallel_size": 4},
            {},
            16,
            r"= 4 does not divide model.mamba_num_groups = 2",
        ),
        (
            "gpt",
            {"tensor_model_parallel_size": 2, "sequence_parallel": True},
            {},
            15,
            (
                r"data.seq_length = 15 is not a multiple of parallel.tensor_model_parallel_size = 2; use 14"
                r" or 16"
            ),
        ),
        (
            "gpt",
            {"tensor_model_parallel_size": 2, "sequence_parallel": True, "context_parallel_size": 2},
            {},
            20,
            (
                r"data.seq_length = 20 is not a multiple of 2 x parallel.context_parallel_size = 2 x"
                r" parallel.tensor_model_parallel_size = 2 = 8; use 16 or 24"
            ),
        ),
        (
            "gpt",
            {"expert_model_parallel_size": 2},
            {},
            16,
            r"parallel.expert_model_parallel_size = 2, and the model has no experts; give --num-experts",
        ),
        (
            "moe",
            {"expert_model_parallel_size": 3},
            {},
            16,
            r"parallel.expert_model_parallel_size = 3 does not divide model.num_experts = 4",
        ),
        (
            "bert",
            {"context_parallel_size": 2},
            {},
            16,
            r"model.family = bert looks both ways; use --tensor-model-parallel-size",
        ),
        ("retro", {"context_parallel_size": 2}, {}, 16, r"would cut the chunks that neighbours are read for"),
        (
            "retro",
            {"tensor_model_parallel_size": 4, "sequence_parallel": True},
            {"retro_chunk_length": 3},
            16,
            (
                r"= 4 with --sequence-parallel does not divide a neighbour of 2 x model.retro_chunk_length ="
                r" 6 tokens"
            ),
        ),
        (
            "gpt",
            {"pipeline_model_parallel_size": 4},
            {},
            16,
            (
                r"parallel.pipeline_model_parallel_size = 4 is more than the model's 2 blocks; use at most so"
                r" many"
            ),
        ),
        (
            "gpt",
            {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 2},
            {"num_layers": 6},
            16,
            (
                r"num_layers_per_virtual_pipeline_stage = 2 x parallel.pipeline_model_parallel_size = 2 does"
                r" not divide the model's 6 blocks; use one of 1, 3"
            ),
        ),
        (
            "mamba",
            {"context_parallel_size": 2, "tensor_model_parallel_size": 2},
            {},
            16,
            (
                r"parallel.context_parallel_size = 2 \(x parallel.tensor_model_parallel_size = 2\) does not"
                r" divide model.mamba_num_groups = 2"
            ),
        ),
    ],
)
def test_an_impossible_layout_is_refused_with_the_reason(family, parallel, changes, length, message):
    with pytest.raises(UserError, match=message):
        check_layout(ParallelConfig(**parallel), model_config(family, **changes), {"seq_length": length})
