import copy

import pytest
import torch
from torch import nn

from mt.train.optimizer import OptimizerConfig, build_optimizer, clip_gradients
from mt.train.parallel.mesh import Mesh
from mt.train.precision import use_fast_float32_products

ALONE = Mesh(0, 1, torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_steps_as_the_formulas_of_the_paper_and_decays_matrices_only():
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.9, adam_eps=1e-6)
    model = network()
    by_hand = {name: (p.detach().double().clone(), 0.0, 0.0) for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    for step in range(1, 5):
        give_gradients(model, step)
        for name, p in model.named_parameters():
            theta, m, v = by_hand[name]
            g = p.grad.double()
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            decay = 0.5 if p.ndim == 2 else 0.0
            theta = theta * (1 - 0.1 * decay) - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
            by_hand[name] = theta, m, v
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), by_hand[name][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 1000.0])
def test_clipping_is_torchs_over_the_whole_gradient(limit):
    ours = network()
    give_gradients(ours, 1)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        b.grad = a.grad.clone()
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    torch.testing.assert_close(clip_gradients(ours, limit, ALONE), expected.double())
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_norm_of_millions_of_gradients_does_not_depend_on_how_they_are_cut():
    whole, cut = nn.Linear(2048, 1024, bias=False), nn.ModuleList(nn.Linear(2048, 512, bias=False) for _ in range(2))
    give_gradients(whole, 1)
    for part, gradient in zip(cut, whole.weight.grad.chunk(2)):
        part.weight.grad = gradient.clone()
    norm = clip_gradients(whole, 0.0, ALONE)
    torch.testing.assert_close(norm, whole.weight.grad.double().norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm, clip_gradients(cut, 0.0, ALONE), rtol=1e-12, atol=0)


def test_a_limit_of_zero_clips_nothing():
    model = network()
    give_gradients(model, 1)
    before = model[0].weight.grad.clone()
    assert clip_gradients(model, 0.0, ALONE) > 1
    assert torch.equal(model[0].weight.grad, before)


def test_fast_float32_products_are_kept_only_where_they_are_float32():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        used = use_fast_float32_products()
        a, b = torch.randn(300, 700), torch.randn(500, 700)
        error = (torch.nn.functional.linear(a, b).double() - a.double() @ b.double().T).abs().max()
        assert error < 1e-3  # bfloat16's would be 1e-1
        assert settings.fp32_precision == ("bf16" if used else before)
    finally:
        settings.fp32_precision = before
