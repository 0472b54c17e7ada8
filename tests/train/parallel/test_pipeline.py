"""Pipeline parallelism: the weights of one process bit for bit, and the memory of a stage."""

import pytest
import torch

from mt.tests.train.parallel_jobs import build_stages, train

BITWISE = {
    "1f1b": ({}, {}),
    "interleaved": ({"num_layers_per_virtual_pipeline_stage": 1}, {}),
    "zero-bubble": ({"pipeline_schedule": "zero-bubble"}, {}),
    "gpipe, recomputed, dropout": ({"pipeline_schedule": "gpipe"}, {"granularity": "full"}),
}


@pytest.mark.parametrize("how", list(BITWISE))
def test_a_pipeline_gives_the_weights_of_one_process_bit_for_bit(pool, how):
    """In float32, with dropout, 4 micro-batches a step."""
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


def test_delayed_weight_gradients_change_no_bit_in_bfloat16(pool):
    how = {"steps": 3, "dtype": torch.float32, "compute_dtype": torch.bfloat16}
    plain, delayed = (
        pool.run(train, 2, "gpt", {"pipeline_model_parallel_size": 2, "pipeline_schedule": schedule}, **how)[
            0
        ]
        for schedule in ("1f1b", "zero-bubble")
    )
    assert plain.losses == delayed.losses
    assert all(torch.equal(plain.weights[name], delayed.weights[name]) for name in plain.weights)


def test_a_rank_allocates_only_its_own_stage(pool):
    whole, *stages = (
        pool.run(build_stages, ranks, {"pipeline_model_parallel_size": ranks}) for ranks in (1, 2)
    )
    assert (
        sum(stages[0]) == whole[0] + 64 * 16
    )  # both stages have the embedding, which is tied to the lm_head
