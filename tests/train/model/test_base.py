import pytest
import torch
from torch import nn

from mt.tests.train.parallel_jobs import FAMILIES, micro_batch, model_config
from mt.train.model.block import Block
from mt.train.model.family import build_model
from mt.train.model.layers import initialize

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = {"labels", "loss_mask"}


def built(name):
    model = build_model(model_config(name, hidden_dropout=0.0))
    initialize(model, 3)
    return model.double()


@pytest.mark.parametrize("name", ["gpt", "bert", "t5", "mamba"])
def test_loss_and_gradients_of_a_batch_are_the_sums_over_its_micro_batches(name):
    model = built(name)
    batch = [micro_batch(model.config, index) for index in range(3)]
    calls = []
    total = model.forward_backward(
        batch,
        torch.tensor(0.25, dtype=torch.float64),
        lambda micro: calls.append(("prepare", micro.index)),
        lambda last: calls.append(("synchronise", last)),
    )
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = [model.loss(**micro.arguments()) for micro in batch]
    (sum(losses) / 4).backward()
    assert total.item() == pytest.approx(sum(losses).item(), rel=1e-12)
    with torch.no_grad():
        assert model.losses(batch).item() == pytest.approx(total.item(), rel=1e-12)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-9, atol=1e-12)
    assert calls == [call for index in range(3) for call in (("prepare", index), ("synchronise", index == 2))]


@pytest.mark.parametrize("name", list(FAMILIES))
@torch.no_grad()
def test_a_block_takes_the_inputs_that_its_model_gives_it(name):
    model = built(name).float()
    for block in model.layers:
        assert isinstance(block, Block)
        length = model.block_length(block, 16, 12)
        inputs, shared = model.block_inputs(block, length, 16, 1, torch.float32)
        x = torch.randn(1, length, model.config.hidden_size)
        assert block(x, **inputs).shape == x.shape
        assert all(isinstance(tensor, torch.Tensor) for tensor in shared)


@pytest.mark.parametrize("name", ["gpt", "bert", "bert_post_norm", "t5", "ict", "retro"])
@torch.no_grad()
def test_the_outputs_of_the_last_norms_are_the_last_hidden_states(name):
    model, outputs = built(name), []
    for norm in model.last_norms():
        norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    arguments = micro_batch(model.config, 0).arguments()
    if name == "ict":
        queries, _ = model.embed(**arguments)
        first = outputs[0][:, 0]
        projection = model.query.projection
        torch.testing.assert_close(first if projection is None else projection(first), queries)
        return
    inputs = {n: value for n, value in arguments.items() if n not in (*TOKENS, "swapped")}
    torch.testing.assert_close(model.forward(**inputs), outputs[-1])


def test_only_retro_can_be_frozen():
    with pytest.raises(NotImplementedError):
        built("gpt").freeze()
    model = built("retro")
    model.freeze()
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {name for name, _ in model.named_parameters() if ".cross" in name}
    assert free
    assert isinstance(model.norm, nn.Module)
