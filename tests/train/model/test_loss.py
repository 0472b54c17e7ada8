import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from mt.tests.train.model.small_models import gpt, random_tokens
from mt.train.model.loss import cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


# one chunk, and several chunks (a chunk has 128 rows at this vocabulary size)
@pytest.mark.parametrize(("rows", "with_bias"), [(5, True), (140, False), (140, True)])
def test_the_chunked_cross_entropy_is_torchs_with_its_gradients(rows, with_bias):
    generator = torch.Generator().manual_seed(0)
    V, vocab_size = 1 << 17, (1 << 17) - 5
    hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator, dtype=torch.float64)
    bias = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    loss = cross_entropy(hidden, weight, labels, mask, vocab_size, bias) * 0.5
    ours = torch.autograd.grad(loss, inputs)
    logits = hidden @ weight[:vocab_size].T + (bias[:vocab_size] if with_bias else 0)
    expected = (F.cross_entropy(logits, labels, reduction="none") * mask).sum() * 0.5
    theirs = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, theirs)


def test_bfloat16_changes_the_loss_by_rounding_only():
    model, tokens = gpt(), random_tokens()
    mask = torch.ones(3, 23)
    exact = model.loss(tokens[:, :-1], tokens[:, 1:], mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(tokens[:, :-1], tokens[:, 1:], mask)
    assert 0 < abs(rough - exact) / exact < 1e-2
    rough.backward()
    assert model.embedding.weight.grad.dtype == torch.float32
