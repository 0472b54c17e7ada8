"""Muon against the published formula, written by singular values, and at layouts against one process."""

import json

import pytest
import torch
from torch import nn

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import differences, model_config, run_mt_train, train
from mt.train.checkpoint.base import moment_names
from mt.train.model.family import build_model
from mt.train.muon import COEFFICIENTS, is_matrix, newton_schulz, scale_factor
from mt.train.optimizer import OptimizerConfig, build_optimizer

EXACT = {"optimizer": "muon", "lr": 1e-2, "muon_fp32_matmul_prec": "highest"}


def by_singular_values(x, sets):
    """The same polynomial of each singular value, in float64."""
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / x.double().norm()
    for a, b, c in sets:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5)])
@pytest.mark.parametrize(
    ("kind", "steps"),
    [("quintic", 5), ("quintic", 10), ("simple", 3), ("polar_express", 8), ("polar_express", 10), ("aol", 4)],
)
def test_newton_schulz_applies_the_polynomials_to_the_singular_values(kind, steps, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sets = list(COEFFICIENTS[kind])
    sets = sets + [sets[-1]] * 2 if (kind, steps) == ("polar_express", 10) else (sets * steps)[:steps]
    found = newton_schulz(x, kind, steps)
    torch.testing.assert_close(found, by_singular_values(x, sets))
    stacked = newton_schulz(torch.stack([x, 2 * x]), kind, steps)
    torch.testing.assert_close(stacked, torch.stack([found, found]))


def test_the_result_is_nearly_orthogonal():
    x = torch.randn(32, 20, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(newton_schulz(x, "polar_express", 8))
    assert (values - 1).abs().max() < 0.02
    assert torch.linalg.svdvals(newton_schulz(x, "quintic", 5)).sub(1).abs().max() < 0.4
    half = newton_schulz(x, "quintic", 5, torch.bfloat16)
    torch.testing.assert_close(half, newton_schulz(x, "quintic", 5), atol=0.05, rtol=0)
    assert newton_schulz(torch.zeros(3, 4), "quintic", 5).abs().max() == 0


@pytest.mark.parametrize(
    ("mode", "factor"),
    [("spectral", 6**0.5), ("unit_rms_norm", 1.5**0.5), ("shape_scaling", 1.5**0.5)],
)
def test_scale_factors(mode, factor):
    assert scale_factor(6, 4, mode) == pytest.approx(factor)
    other = {"spectral": 6**0.5, "unit_rms_norm": (4 / 6) ** 0.5, "shape_scaling": 1.0}
    assert scale_factor(4, 6, mode) == pytest.approx(other[mode])


def weights_of(family, **changes):
    with torch.device("meta"):
        model = build_model(model_config(family, **changes))
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(p.shape, generator=generator)) for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_steps_follow_the_formula(nesterov, split):
    """M <- 0.9 M + 0.1 G; W <- (1 - lr decay) W - lr factor orthogonal(M or 0.9 M + 0.1 G)."""
    settings = EXACT | {"weight_decay": 0.5, "muon_momentum": 0.9, "muon_extra_scale_factor": 0.2}
    config = OptimizerConfig(**settings, muon_use_nesterov=nesterov, muon_split_qkv=split)
    weights, model = weights_of("moe"), model_config("moe")
    optimizer = build_optimizer(weights, config, model)
    expected = {name: p.detach().double().clone() for name, p in weights.items()}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    orthogonal = lambda x: by_singular_values(x, COEFFICIENTS["quintic"]) * 0.2 * max(x.shape) ** 0.5
    for step in range(3):
        generator = torch.Generator().manual_seed(step + 5)
        for p in weights.values():
            p.grad = torch.randn(p.shape, generator=generator)
        direction = {}
        for name, p in weights.items():
            momentum[name] = 0.9 * momentum[name] + 0.1 * p.grad.double()
            direction[name] = 0.9 * momentum[name] + 0.1 * p.grad.double() if nesterov else momentum[name]
        for name in list(direction):
            if name.endswith("qkv.weight") and split:  # 4 heads of 4 channels, each with its key and value
                x = direction[name].view(4, 3, 4, -1)
                parts = [orthogonal(x[:, i].reshape(16, -1)).view(4, 4, -1) for i in range(3)]
                direction[name] = torch.stack(parts, 1).view(48, -1)
            elif "gate" in name.split("."):
                other = name.replace("gate", "up")
                x = torch.cat([direction[name], direction[other]], -2)
                done = torch.stack([orthogonal(e) for e in x]) if x.ndim == 3 else orthogonal(x)
                direction[name], direction[other] = done.chunk(2, -2)
            elif "up" in name.split(".") and name.replace("up", "gate") in direction:
                pass  # with its gate, which comes first
            elif is_matrix(name, direction[name]):
                x = direction[name]
                direction[name] = torch.stack([orthogonal(e) for e in x]) if x.ndim == 3 else orthogonal(x)
        optimizer.step()
        for name in weights:
            if is_matrix(name, weights[name]):
                expected[name] = expected[name] * (1 - 1e-2 * 0.5) - 1e-2 * direction[name]
                torch.testing.assert_close(weights[name].double(), expected[name], rtol=1e-5, atol=1e-5)


def test_embeddings_vectors_and_convolutions_are_stepped_by_adamw():
    weights, model = weights_of("mamba"), model_config("mamba")
    ours = build_optimizer(weights, OptimizerConfig(optimizer="muon", lr=1e-2), model)
    copies = {name: nn.Parameter(p.detach().clone()) for name, p in weights.items()}
    theirs = build_optimizer(copies, OptimizerConfig(lr=1e-2))
    for name, p in weights.items():
        p.grad = torch.randn(p.shape)
        copies[name].grad = p.grad.clone()
    ours.step()
    theirs.step()
    same = {name for name in weights if torch.equal(weights[name], copies[name])}
    assert same == {
        name
        for name, p in weights.items()
        if p.ndim < 2 or name in ("embedding.weight", "output.weight") or name.endswith("convolution")
    }
    assert {moment_names(ours, weights[name]) for name in same} == {("exp_avg", "exp_avg_sq")}
    assert moment_names(ours, weights["layers.0.mixer.out.weight"]) == ("momentum_buffer",)


MUON = OptimizerConfig(**EXACT)
LAYOUTS = {
    "TP2": ("llama", 2, {"tensor_model_parallel_size": 2}),
    "DP2, experts": ("moe", 2, {}),
    "EP2": ("moe", 2, {"expert_model_parallel_size": 2}),
    "TP2, experts": ("moe", 2, {"tensor_model_parallel_size": 2}),
    "TP2, Mamba": ("mamba", 2, {"tensor_model_parallel_size": 2}),
    "TP2, latent attention": ("mla", 2, {"tensor_model_parallel_size": 2}),
    "PP2": ("gpt", 2, {"pipeline_model_parallel_size": 2}),
    "T5, TP2": ("t5_relative", 2, {"tensor_model_parallel_size": 2}),
    "TP2 x DP2": ("llama", 4, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "TP2 x EP2": ("moe", 4, {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}),
    "EP2 x DP4": ("moe", 4, {"expert_model_parallel_size": 2, "data_parallel_sharding": "full"}),
}
QUICK = ("TP2", "EP2")


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in LAYOUTS]
)
def test_steps_at_a_layout_give_the_numbers_of_one_process(pool, layout):
    family, world, parallel = LAYOUTS[layout]
    one = train(family, steps=3, optimizer=MUON)
    many = pool.run(train, world, family, parallel, steps=3, optimizer=MUON)[0]
    loss, norm, weights = differences(one, many)
    assert loss < 1e-12
    assert norm < 1e-11
    assert weights < 1e-10


def test_blocks_of_tensor_parallel_ranks_are_matrices_of_their_own(pool):
    """A step of SGD gives the gradient, whose scale does not matter to Muon."""
    parallel = {"tensor_model_parallel_size": 2}
    plain = {"weight_decay": 0.0, "lr": 1.0}
    sgd = OptimizerConfig(optimizer="sgd", sgd_momentum=0.0, **plain)
    blockwise = OptimizerConfig(**EXACT | plain, muon_tp_mode="blockwise")
    start, after_sgd, after_muon = (
        pool.run(train, 2, "llama", parallel, steps=steps, optimizer=config)[0].weights
        for steps, config in ((0, sgd), (1, sgd), (1, blockwise))
    )
    for name, dim, joined in [
        ("layers.0.mixer.out.weight", 1, None),
        ("layers.1.ffn.gate.weight", 0, "layers.1.ffn.up.weight"),
    ]:
        blocks = (start[name] - after_sgd[name]).chunk(2, dim)
        if joined:
            more = (start[joined] - after_sgd[joined]).chunk(2, dim)
            blocks = [torch.cat(pair) for pair in zip(blocks, more)]
        steps = (start[name] - after_muon[name]).chunk(2, dim)
        for gradient, step in zip(blocks, steps):
            expected = by_singular_values(gradient, COEFFICIENTS["quintic"]) * max(gradient.shape) ** 0.5
            torch.testing.assert_close(step, expected[: len(step)], rtol=1e-6, atol=1e-6)


def test_a_run_resumes_at_another_layout(pool, settings, tmp_path):
    changes = {
        **EXACT,
        "train_iters": 4,
        "save_interval": 2,
        "log_interval": 1,
        "eval_iters": 0,
        "lr_warmup_iters": 0,
    }
    pool.run(run_mt_train, 1, settings(tmp_path / "one", **changes))
    save, two = tmp_path / "run", {"tensor_model_parallel_size": 2}
    pool.run(run_mt_train, 2, settings(save, exit_interval=2, **changes | two))
    pool.run(run_mt_train, 1, settings(save, **changes))
    losses = lambda folder: [
        json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if "loss" in line
    ]
    assert len(losses(save)) == 4
    assert losses(save) == pytest.approx(losses(tmp_path / "one"), abs=5e-6)
    adam = {"load": str(save), "optimizer": "adam", "train_iters": 6}
    with pytest.raises(UserError, match="new moments"):
        run_mt_train(settings(tmp_path / "adam", **{**changes, **adam, "muon_fp32_matmul_prec": "medium"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"muon_momentum": 0.9}, "optimizer.muon_momentum: for --optimizer muon; give it too"),
        ({"optimizer": "muon", "muon_num_ns_steps": 3}, "= 3 must be a multiple of 5 for quintic"),
        (
            {"optimizer": "muon", "muon_coefficient_type": "polar_express"},
            "= 5 must be at least 8 for polar_express",
        ),
        ({"optimizer": "muon", "muon_momentum": 1.0}, "muon_momentum = 1.0 must be at least 0 and below 1"),
        ({"optimizer": "muon", "muon_extra_scale_factor": 0.0}, "factor = 0.0 must be above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**settings)
