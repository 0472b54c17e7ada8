"""The in-place softmax of the loss, compared with torch's in float64."""

import pytest
import torch

from mt.train.model import loss as head
from mt.train.model import softmax
from mt.train.model.softmax import softmax_gradient_


def expected(logits, labels, vocab_size):
    wide = logits.double()
    wide[:, vocab_size:] = float("-inf")
    log_probabilities = wide.log_softmax(-1)
    picked = log_probabilities.gather(-1, labels[:, None])
    return picked[:, 0], log_probabilities.exp().scatter_(-1, labels[:, None], picked.expm1())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize(
    ("rows", "columns", "vocab_size"), [(1, 1, 1), (3, 64, 63), (7, 1200, 1111), (2, 4096, 4096)]
)
def test_probabilities_and_gradients_are_those_of_torch_in_float64(
    dtype, tolerance, rows, columns, vocab_size
):
    generator = torch.Generator().manual_seed(rows)
    logits = (torch.randn(rows, columns, generator=generator) * 5).to(dtype)
    logits[0, 0] = 60.0  # a probability of almost 1
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    wanted, gradient = expected(logits, labels, vocab_size)
    found = softmax_gradient_(logits, labels, vocab_size)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(logits.double(), gradient, rtol=tolerance, atol=1e-37)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_and_infinite_logits_give_nan(wrong):
    logits = torch.zeros(2, 700)
    logits[1, 650] = wrong
    found = softmax_gradient_(logits, torch.tensor([0, 3]), 700)
    assert torch.isfinite(found[0])
    assert torch.isnan(found[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_cross_entropy_is_the_same_compiled_or_not_and_in_chunks(monkeypatch, dtype, tolerance):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 900, (300,), generator=generator)
    mask = torch.rand(300, generator=generator)
    values = (
        torch.randn(300, 16, generator=generator).to(dtype),
        torch.randn(1024, 16, generator=generator).to(dtype),
    )
    results = []
    for worth, chunk_bytes in ((1 << 60, 1 << 27), (0, 1 << 27), (0, 0)):
        monkeypatch.setattr(head, "WORTH_COMPILING", worth)
        monkeypatch.setattr(softmax, "ROWS_BYTES", dict.fromkeys(softmax.ROWS_BYTES, chunk_bytes))
        monkeypatch.setattr(head, "chunk_bytes", lambda device, most=chunk_bytes: most)
        hidden, weight = (v.clone().requires_grad_() for v in values)
        loss = head.cross_entropy(hidden, weight, labels, mask, 900)
        (loss / 300).backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for ours in results[1:]:
        for found, torchs in zip(ours, results[0]):
            assert ((found - torchs).norm() / torchs.norm()).item() < tolerance
