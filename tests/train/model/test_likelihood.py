"""Log-likelihoods of given tokens, computed by parts of the vocabulary, compared with torch in float64."""

import pytest
import torch

from mt.train.model import likelihood
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize
from mt.train.model.likelihood import Softmax, answers, joined, likelihoods, read


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize("piece", [1, 5000, 1 << 22])
def test_likelihoods_are_those_of_the_whole_softmax_for_any_size_of_parts(monkeypatch, piece, compiled):
    monkeypatch.setattr(likelihood, "WORTH_COMPILING", 0 if compiled else 1 << 60)
    monkeypatch.setattr(likelihood, "PIECE", piece)
    monkeypatch.setattr(likelihood, "ROWS", 16)
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(40, 8, generator=generator), torch.randn(330, 8, generator=generator) * 3
    targets = torch.randint(0, 321, (40,), generator=generator)
    exact = (hidden.double() @ weight.double().T)[:, :321]  # the rest is padding
    targets[:20] = exact[:20].argmax(1)
    found, most_probable = likelihoods(hidden, weight, targets, 321)
    torch.testing.assert_close(
        found.double(), exact.log_softmax(1).gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=2e-6
    )
    assert most_probable.tolist() == (exact.argmax(1) == targets).tolist()
    assert 20 <= most_probable.sum() < 40


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
def test_the_first_of_equal_logits_is_the_most_probable_and_nan_stays_nan(monkeypatch, compiled):
    monkeypatch.setattr(likelihood, "WORTH_COMPILING", 0 if compiled else 1 << 60)
    monkeypatch.setattr(likelihood, "PIECE", 12)
    weight = torch.ones(70, 2)
    hidden = torch.tensor([[1.0, 1.0], [float("nan"), 0.0]])
    found, most_probable = likelihoods(hidden, weight, torch.tensor([0, 5]), 70)
    assert found[0].item() == pytest.approx(-torch.log(torch.tensor(70.0)).item())
    assert found[1].isnan()
    assert most_probable[0]
    assert not likelihoods(hidden, weight, torch.tensor([3, 5]), 70)[1][0]


SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
MAMBA = {"hybrid_override_pattern": "M*", "mamba_head_dim": 16, "mamba_num_groups": 1, "mamba_state_dim": 8}


@pytest.mark.parametrize(
    "settings", [{}, {"num_experts": 4, "moe_router_topk": 2}, MAMBA], ids=["dense", "experts", "mamba"]
)
def test_hidden_states_at_some_positions_are_those_of_the_whole_batch(settings):
    model = GPT(resolve(ModelConfig(**SIZES, **settings), vocab_size=50, seq_length=16)).eval()
    initialize(model, 1)
    tokens, at = torch.arange(24).reshape(2, 12), (torch.tensor([0, 1, 1]), torch.tensor([11, 0, 7]))
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens, at=at), model(tokens)[at], rtol=1e-5, atol=1e-5)


def test_softmaxes_of_ranges_of_ids_are_joined_including_an_empty_range():
    generator = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(30, 8, generator=generator), torch.randn(70, 8, generator=generator) * 3
    weight[10] = weight[50] = 9 * hidden[0]  # the largest logit of the first row, in two ranges
    targets = torch.randint(0, 70, (30,), generator=generator)
    ranges = [read(hidden, weight[first:end], targets, first) for first, end in ((0, 40), (40, 70), (70, 70))]
    found, most_probable = answers(joined(Softmax(*map(torch.stack, zip(*ranges)))), targets)
    expected, most = likelihoods(hidden, weight, targets, 70)
    torch.testing.assert_close(found, expected)
    assert most_probable.tolist() == most.tolist()
    best = joined(Softmax(*map(torch.stack, zip(*ranges)))).best
    assert best.tolist() == (hidden @ weight.T).argmax(1).tolist()
    assert best[0] == 10
