"""Pipeline stages of a model, run one after the other on one process, compared with the whole model."""

import copy
import itertools

import pytest
import torch

from mt.tests.train.parallel_jobs import FAMILIES, micro_batch, model_config
from mt.train.model.family import build_model, family_of
from mt.train.model.layers import initialize
from mt.train.model.stage import LOSS_INPUTS, PassThrough, end_modules
from mt.train.parallel.stages import cut_stage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("ict")])
@torch.no_grad()
def test_stages_run_one_after_the_other_give_the_loss_of_the_whole_model(name):
    config = model_config(name, hidden_dropout=0.0)
    whole = build_model(config)
    initialize(whole, 4)
    whole.eval().double()
    micro = micro_batch(config, 0)
    expected = whole.loss(**micro.arguments())
    total, rules = len(list(whole.layers)), family_of(config).stages
    for cut in range(1, total):
        received = ()
        for begin, end in ((0, cut), (cut, total)):
            if begin:
                shapes = rules.shapes(config, begin, micro, 1)
                assert [tensor.shape for tensor in received] == shapes
            stage = cut_stage(copy.deepcopy(whole), begin, end)
            received = stage.run(micro, received)
        torch.testing.assert_close(received[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("ict")])
def test_every_module_of_a_model_is_on_a_stage(name):
    config = model_config(name)
    model = build_model(config)
    total, rules = len(list(model.layers)), family_of(config).stages
    children = {n for n, child in model.named_children() if n not in ("layers", "encoder", "decoder")}
    for cut in range(1, total):
        stages = [rules.modules(config, begin, end, total) for begin, end in ((0, cut), (cut, total))]
        assert children <= set.union(*stages)
        assert all("embedding" in stage for stage in stages if not config.untie_embeddings_and_output_weights)


def test_only_the_first_and_last_stage_have_modules_outside_blocks():
    tied, untied = (model_config("gpt", untie_embeddings_and_output_weights=value) for value in (False, True))
    assert end_modules(untied, 1, 2, 3) == set()
    assert end_modules(untied, 0, 1, 3) == {"embedding", "embedding_norm", "positions", "token_types"}
    assert "embedding" not in end_modules(untied, 2, 3, 3)
    assert {"embedding", "norm", "output"} <= end_modules(tied, 2, 3, 3)


def test_a_block_of_another_stage_returns_its_input():
    x = torch.randn(2, 3, 4)
    assert PassThrough()(x, mask=None, rotary=None) is x


def test_inputs_of_the_loss_are_fields_of_a_micro_batch():
    for name in LOSS_INPUTS:
        assert name in micro_batch(model_config("bert"), 0).arguments()
    assert len(set(itertools.chain(LOSS_INPUTS))) == 3
