import math

import pytest
import torch
import torch.nn.functional as F

from mt.tests.train.parallel_jobs import micro_batch, model_config
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.step import forward_backward

pytestmark = pytest.mark.usefixtures("one_thread")


def built(family, **changes):
    model = build_model(model_config(family, hidden_dropout=0.0, **changes))
    initialize(model, 5)
    return model.double()


@pytest.mark.parametrize("family", ["ict", "ict_shared"])
def test_the_loss_equals_that_of_a_loop_over_queries_and_blocks(family):
    model = built(family)
    batch = [micro_batch(model.config, index) for index in range(3)]
    queries, blocks = [], []
    for micro in batch:
        for row in range(2):
            here = {name: value[row : row + 1] for name, value in micro.arguments().items()}
            queries.append(model.query(here["tokens"], here["padding_mask"])[0].detach().numpy())
            blocks.append(
                (model.query if model.context is None else model.context)(
                    here["encoder_tokens"], here["encoder_padding_mask"]
                )[0]
                .detach()
                .numpy()
            )
    scale = 1 / math.sqrt(16) if family == "ict_shared" else 1.0
    expected = 0.0
    for i, query in enumerate(queries):
        scores = [sum(a * b for a, b in zip(query, block)) * scale for block in blocks]
        expected -= scores[i] - math.log(sum(math.exp(s) for s in scores))
    assert queries[0].shape == (6,) if family == "ict" else (16,)
    with torch.no_grad():
        assert model.losses(batch).item() == pytest.approx(expected, rel=1e-12)
    assert forward_backward(
        model, batch, torch.ones((), dtype=torch.float64), seed="0"
    ).item() == pytest.approx(expected, rel=1e-12)


def test_micro_batches_give_the_gradients_of_one_large_batch():
    model = built("ict")
    batch = [micro_batch(model.config, index) for index in range(3)]
    forward_backward(model, batch, torch.tensor(1 / 6, dtype=torch.float64), seed="0")
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pairs = [model.embed(**micro.arguments()) for micro in batch]
    queries, blocks = (torch.cat(side) for side in zip(*pairs))
    F.cross_entropy(queries @ blocks.T, torch.arange(6)).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-10, atol=1e-14)
    assert any(gradient.abs().max() > 1e-3 for gradient in ours.values())


def test_gradients_are_synchronised_in_the_last_micro_batch_only():
    model = built("ict")
    batch = [micro_batch(model.config, index) for index in range(3)]
    asked = []
    factor = torch.tensor(1 / 6, dtype=torch.float64)
    model.forward_backward(batch, factor, lambda micro: None, asked.append)
    assert asked == [False, False, True]
