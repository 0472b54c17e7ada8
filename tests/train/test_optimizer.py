import copy

import pytest
import torch
from torch import nn

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import differences, train
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.optimizer import OptimizerConfig, build_optimizer, clip_gradients, gradient_norm, set_rates
from mt.train.parallel.mesh import Mesh

ALONE = Mesh(0, 1, torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_follows_the_formulas_of_the_paper_and_decays_matrices_only():
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.9, adam_eps=1e-6)
    model = network()
    by_hand = {name: (p.detach().double().clone(), 0.0, 0.0) for name, p in model.named_parameters()}
    optimizer = build_optimizer(dict(model.named_parameters()), config)
    for step in range(1, 5):
        give_gradients(model, step)
        for name, p in model.named_parameters():
            theta, m, v = by_hand[name]
            g = p.grad.double()
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            decay = 0.5 if p.ndim == 2 else 0.0
            theta = theta * (1 - 0.1 * decay) - 0.1 * (m / (1 - 0.8**step)) / (
                (v / (1 - 0.9**step)).sqrt() + 1e-6
            )
            by_hand[name] = theta, m, v
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), by_hand[name][0], rtol=1e-5, atol=1e-6)


def test_sgd_is_torchs_and_decays_matrices_only():
    ours, theirs = network(), network()
    optimizer = build_optimizer(
        dict(ours.named_parameters()),
        OptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=0.5, sgd_momentum=0.8),
    )
    matrices, vectors = (
        [p for p in theirs.parameters() if (p.ndim == 2) == wanted] for wanted in (True, False)
    )
    expected = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.8,
        foreach=False,
    )
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        expected.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("family", "parallel"),
    [
        ("llama", {"tensor_model_parallel_size": 2}),
        pytest.param("moe", {"expert_model_parallel_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_sgd_on_two_processes_gives_the_numbers_of_one(pool, family, parallel):
    sgd = OptimizerConfig(optimizer="sgd", lr=0.1)
    one = train(family, steps=3, optimizer=sgd)
    loss, norm, weights = differences(one, pool.run(train, 2, family, parallel, steps=3, optimizer=sgd)[0])
    assert loss < 1e-12
    assert norm < 1e-12
    assert weights < 1e-10


def test_stacked_biases_of_experts_do_not_decay():
    weights = {
        "experts.up": nn.Parameter(torch.ones(2, 3, 4)),
        "experts.up_bias": nn.Parameter(torch.ones(2, 3)),
        "norm.weight": nn.Parameter(torch.ones(3)),
    }
    decays, free = build_optimizer(weights, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [len(g["params"]) for g in (decays, free)] == [1, 2]
    assert (decays["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("applied", [False, True])
def test_the_weights_that_decay_are_megatrons(applied):
    from megatron.core.optimizer import get_standard_config_overrides
    from megatron.core.optimizer.optimizer_config import AdamOptimizerConfig

    settings = {"weight_decay": 0.1, "apply_wd_to_qk_layernorm": applied}
    config = ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2, qk_layernorm=True)
    with torch.device("meta"):
        model = build_model(resolve(config, vocab_size=8, seq_length=4))
    weights = dict(model.named_parameters())
    groups = build_optimizer(weights, OptimizerConfig(**settings)).param_groups
    decays = {id(p) for group in groups if group["decays"] for p in group["params"]}
    ((key, override),) = get_standard_config_overrides(AdamOptimizerConfig(**settings)).items()
    assert override == {"wd_mult": 0.0}
    for name, weight in weights.items():
        theirs = name.replace("query_norm.", "q_layernorm.").replace("key_norm.", "k_layernorm.")
        assert (id(weight) in decays) == (not key.matches(weight, theirs)), name


def test_the_embedding_and_the_output_layer_may_have_a_learning_rate_of_their_own():
    weights = {
        name: nn.Parameter(torch.ones(2, 2))
        for name in ("embedding.weight", "positions.weight", "layers.0.mixer.out.weight", "output.weight")
    } | {"norm.weight": nn.Parameter(torch.ones(2))}
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer = build_optimizer(weights, OptimizerConfig(optimizer="sgd", weight_decay=0, decoupled_lr=0.5))
    set_rates(optimizer, 0.125, 0.0, 0.5)
    optimizer.step()
    assert {name: 1 - weight.flatten()[0].item() for name, weight in weights.items()} == {
        "embedding.weight": 0.5,
        "output.weight": 0.5,
        "positions.weight": 0.125,
        "layers.0.mixer.out.weight": 0.125,
        "norm.weight": 0.125,
    }
    with pytest.raises(UserError, match="decoupled_min_lr needs --decoupled-lr"):
        OptimizerConfig(decoupled_min_lr=0.1)


def test_set_rates_sets_the_weight_decay_of_matrices_only():
    optimizer = build_optimizer(dict(network().named_parameters()), OptimizerConfig())
    set_rates(optimizer, 0.5, 0.25)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.25), (0.5, 0.0)]


@pytest.mark.parametrize("scale", [1.0, 4096.0])
@pytest.mark.parametrize("limit", [0.5, 1000.0])
def test_clipping_is_torchs_at_any_loss_scale(limit, scale):
    ours = network()
    give_gradients(ours, 1)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        b.grad = a.grad.clone()
        a.grad *= scale  # gradients of a scaled loss
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    norm = gradient_norm(ours.parameters(), ALONE) / scale
    torch.testing.assert_close(norm, expected.double())
    clip_gradients(ours.parameters(), norm.item(), limit, scale)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_norm_of_millions_of_gradients_does_not_depend_on_how_they_are_divided():
    whole, cut = (
        nn.Linear(2048, 1024, bias=False),
        nn.ModuleList(nn.Linear(2048, 512, bias=False) for _ in range(2)),
    )
    give_gradients(whole, 1)
    for part, gradient in zip(cut, whole.weight.grad.chunk(2)):
        part.weight.grad = gradient.clone()
    norm = gradient_norm(whole.parameters(), ALONE)
    torch.testing.assert_close(norm, whole.weight.grad.double().norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm, gradient_norm(cut.parameters(), ALONE), rtol=1e-12, atol=0)


def test_a_limit_of_zero_clips_nothing():
    model = network()
    give_gradients(model, 1)
    before = model[0].weight.grad.clone()
    clip_gradients(model.parameters(), 17.0, 0.0)
    assert torch.equal(model[0].weight.grad, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"weight_decay_incr_style": "linear"},
            "weight_decay_incr_style = linear needs start_weight_decay and end_weight_decay",
        ),
        (
            {"end_weight_decay": 0.1},
            "start_weight_decay and end_weight_decay need weight_decay_incr_style linear or cosine",
        ),
        (
            {"lr": 0.1, "lr_warmup_init": 0.2},
            "optimizer.lr_warmup_init = 0.2 must lie between 0 and lr = 0.1",
        ),
        ({"sgd_momentum": 1.0}, "optimizer.sgd_momentum = 1.0 must be at least 0 and below 1"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**settings)
