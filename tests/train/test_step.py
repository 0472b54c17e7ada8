import pytest
import torch

from mt.tests.train.parallel_jobs import micro_batch, model_config
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.model.moe import Router
from mt.train.step import forward_backward

pytestmark = pytest.mark.usefixtures("one_thread")
FACTOR = torch.tensor(0.125, dtype=torch.float64)


def gradients(model, batch, **how):
    model.zero_grad()
    loss = forward_backward(model, batch, FACTOR, **how)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def built(name, **settings):
    model = build_model(model_config(name, **settings))
    initialize(model, 1)
    return model.train()


def test_dropout_depends_on_the_seed_the_index_and_the_place():
    model = built("gpt", hidden_dropout=0.3)
    batch = [micro_batch(model.config, index) for index in range(2)]
    loss = lambda batch, **how: gradients(model, batch, **how)[0].item()
    assert loss(batch, seed="5:1") == loss(batch, seed="5:1")
    assert loss(batch[1:], seed="5:1") + loss(batch[:1], seed="5:1") == pytest.approx(
        loss(batch, seed="5:1"), rel=1e-6
    )
    others = [loss(batch, seed="5:2"), loss(batch, seed="5:1", place=":1"), loss(batch, seed="5:1")]
    assert len(set(others)) == 3


def test_gradients_are_those_of_factor_times_the_summed_loss():
    model = built("gpt", hidden_dropout=0.0)
    batch = [micro_batch(model.config, index) for index in range(3)]
    loss, found = gradients(model, batch, seed="0")
    model.zero_grad()
    whole = sum(model.loss(**micro.arguments()) for micro in batch)
    (whole * 0.125).backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_router_losses_are_scaled_as_the_loss_of_the_model():
    model = built("moe", hidden_dropout=0.0)
    batch = [micro_batch(model.config, 0)]
    gradients(model, batch, seed="0", experts=True)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert [router.loss_scale.item() for router in routers] == [0.125]
