"""Pipeline stages: which blocks and weights each stage has."""

import re
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import lengths_of, model_config
from mt.train.model.family import build_model
from mt.train.parallel.mesh import ParallelConfig
from mt.train.parallel.stages import bounds, check_stages, cut_stage, divide, owners


def test_blocks_are_divided_evenly_counting_the_cost_of_the_lm_head():
    config = model_config("gpt", num_layers=8, vocab_size=60)
    split = bounds(ParallelConfig(pipeline_model_parallel_size=4), config, {"seq_length": 16})
    assert split == [(0, 2), (2, 4), (4, 6), (6, 8)]
    large_head = model_config("gpt", num_layers=8, vocab_size=6000)  # its lm_head costs more than all blocks
    assert bounds(ParallelConfig(pipeline_model_parallel_size=4), large_head, {"seq_length": 16})[-1] == (
        7,
        8,
    )


def test_a_layout_says_the_blocks_of_every_stage():
    config = model_config("gpt", num_layers=8)
    given = lambda size, text: ParallelConfig(
        pipeline_model_parallel_size=size, pipeline_model_parallel_layout=text
    )
    assert bounds(given(3, "Et|ttttt|ttL"), config, {"seq_length": 16}) == [(0, 1), (1, 6), (6, 8)]
    interleaved = bounds(given(2, "t*3|t|t*2|t*2"), config, {"seq_length": 16})
    assert interleaved == [(0, 3), (3, 4), (4, 6), (6, 8)]
    with pytest.raises(UserError, match="layout has 7 blocks, and the model 8; write a t for each"):
        check_stages(given(2, "t*3|t*4"), config, {"seq_length": 16})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "t|t|t"},
            "has 3 stages, which",
        ),
        ({"pipeline_model_parallel_layout": "tt"}, "needs --pipeline-model-parallel-size above 1"),
        (
            {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "tm|t"},
            "layout = 'tm|t' has 'm'; write t for a block",
        ),
        (
            {
                "pipeline_model_parallel_size": 2,
                "pipeline_model_parallel_layout": "t|t",
                "num_layers_per_virtual_pipeline_stage": 1,
            },
            "leave --num-layers-per-virtual-pipeline-stage out",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ParallelConfig(**settings)


@pytest.mark.parametrize(
    "family", ["gpt", "llama", "moe", "bert", "bert_post_norm", "t5", "t5_relative", "mamba_moe"]
)
def test_the_stages_have_every_weight_and_only_shared_weights_twice(family):
    config = model_config(family)
    with torch.device("meta"):
        whole = build_model(config)
    split = bounds(ParallelConfig(pipeline_model_parallel_size=2), config, lengths_of(config))
    names = [{name for name, _ in cut_stage(whole, *where).named_parameters()} for where in split]
    assert names[0] | names[1] == {name for name, _ in whole.named_parameters()}
    assert {name.split(".")[0] for name in names[0] & names[1]} == set(owners(config, split)) & {
        name.split(".")[0] for name in names[0]
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_cost_of_a_stage_is_the_least_of_all_divisions(seed):
    random = np.random.default_rng(seed)
    costs = random.integers(1, 10, size=random.integers(3, 9)).astype(float).tolist()
    for stages in range(1, len(costs) + 1):
        ends = divide(costs, stages)
        assert ends == sorted(set(ends)), "no stage is empty"
        assert (len(ends), ends[-1]) == (stages, len(costs))
        best = min(
            largest_cost(costs, [*cut, len(costs)]) for cut in combinations(range(1, len(costs)), stages - 1)
        )
        assert largest_cost(costs, ends) == best


def largest_cost(costs: list[float], ends: list[int]) -> float:
    return max(sum(costs[begin:end]) for begin, end in pairwise([0, *ends]))


def test_a_weight_on_several_stages_belongs_to_the_first():
    config = model_config("gpt", num_layers=4)
    assert owners(config, [(0, 2), (2, 4)]) == {"embedding": [0, 1]}
    assert owners(config, [(0, 1), (1, 2), (2, 4)]) == {"embedding": [0, 2]}
