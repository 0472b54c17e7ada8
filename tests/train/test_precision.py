import copy
import dataclasses

import pytest
import torch
from torch import nn

from mt.core.config import Failure, UserError
from mt.train.float8 import float8_obstacle, use_float8
from mt.train.loop import train
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import Linear, initialize
from mt.train.precision import LossScale, MasterWeights, PrecisionConfig, use_fast_float32_matmul

pytestmark = pytest.mark.usefixtures("one_thread")


def megatron_scaler(config: PrecisionConfig):
    """Megatron-core's rules, whose own scaler wants a GPU for its numbers."""
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler

    scaler = object.__new__(DynamicGradScaler)
    scaler._scale, scaler.min_scale = torch.tensor([config.initial_loss_scale]), torch.tensor([1.0])
    scaler.growth_factor, scaler.backoff_factor = torch.tensor([2.0]), torch.tensor([0.5])
    scaler.growth_interval = config.loss_scale_window
    scaler.hysteresis = scaler._hysteresis_tracker = config.hysteresis
    scaler._growth_tracker = 0
    return scaler


def test_the_loss_scale_moves_as_megatrons():
    config = PrecisionConfig(fp16=True, initial_loss_scale=64.0, loss_scale_window=5, hysteresis=2)
    ours, theirs = LossScale(config), megatron_scaler(config)
    overflows = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.2
    values = set()
    for overflow in overflows.tolist():
        ours.update(overflow)
        theirs.update(overflow)
        assert (ours.value, ours.good_steps, ours.patience) == (
            theirs._scale.item(),
            theirs._growth_tracker,
            theirs._hysteresis_tracker,
        )
        values.add(ours.value)
    assert len(values) > 4
    assert min(values) == 1.0


def test_a_loss_scale_goes_on_from_its_state():
    config = PrecisionConfig(fp16=True, loss_scale_window=3)
    ours = LossScale(config)
    for overflow in (True, True, False):
        ours.update(overflow)
    again = LossScale(config, ours.state())
    assert (again.value, again.good_steps, again.patience) == (2.0**31, 1, 0)
    assert LossScale(PrecisionConfig(bf16=True), {}).value == 1.0


def test_a_narrow_model_sums_its_gradients_in_float32_and_follows_its_masters():
    model = nn.Linear(4, 3)
    weights = MasterWeights(model, torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16
    assert all(w.dtype == torch.float32 for w in weights)
    parts = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(64)]
    for part in parts:
        model(part.bfloat16()).sum().backward()
        assert model.weight.grad is None
    expected = sum(part.bfloat16().sum(0).float() for part in parts)  # each in bfloat16, their sum not
    torch.testing.assert_close(weights.by_name["weight"].grad[0], expected, rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        weights.by_name["bias"].fill_(1.0)
    weights.refresh()
    assert (model.bias == 1).all()


def test_float32_weights_are_the_models_own():
    model = nn.Linear(4, 3)
    weights = MasterWeights(model, torch.float32)
    assert weights.by_name["weight"] is model.weight
    weights.refresh()


def test_bf16_learns_as_float32_does_and_goes_on_to_the_same_bits(finished, settings, tmp_path):
    exact = finished[1]["curve"]
    whole = train(settings(tmp_path / "whole", bf16=True, log_interval=2))["curve"]
    assert [loss for _, loss in whole] == pytest.approx([loss for _, loss in exact], rel=5e-3)
    assert whole != exact
    while "finished" not in (cut := train(settings(tmp_path / "cut", bf16=True, exit_interval=3))):
        pass
    assert cut["curve"] == whole


def test_float16_finds_its_loss_scale_and_counts_what_it_skipped(finished, settings, tmp_path):
    how = {
        "fp16": True,
        "hysteresis": 1,
        "initial_loss_scale": 2.0**24,
        "train_iters": 18,
        "lr_decay_style": "constant",
        "log_interval": 18,
        "eval_iters": 0,
        "split": "100,0,0",
        "save_interval": 9,
    }
    whole = train(settings(tmp_path / "whole", **how))
    assert 2 < whole["skipped_steps"] < 12
    assert whole["train_loss"] < finished[1]["curve"][0][1]
    while "finished" not in (cut := train(settings(tmp_path / "cut", **how, exit_interval=5))):
        pass
    assert (cut["curve"], cut["skipped_steps"]) == (whole["curve"], whole["skipped_steps"])


def test_float16_that_never_found_its_scale_says_so(settings, tmp_path):
    with pytest.raises(
        Failure,
        match=(
            r"not one step of this run changed a weight; float16's loss scale has only come down to \d.*;"
            r" train for more steps, or lower --initial-loss-scale"
        ),
    ):
        train(settings(tmp_path / "run", fp16=True, train_iters=4, eval_iters=0, split="100,0,0"))


def two_linears() -> nn.Module:
    """Layers as a block has them: one of 48 x 64, and one of 7 x 64, whose rows are no multiple of 16."""
    model = nn.Sequential()
    model.add_module(
        "layers", nn.ModuleList([Linear(64, 48, bias=True, std=0.1), Linear(64, 7, bias=False, std=0.1)])
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def output_and_gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    (y.float() * torch.linspace(-1, 1, 48)).sum().backward()
    return [y, x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize(
    ("format", "recipe"),
    [("e4m3", "tensorwise"), ("hybrid", "tensorwise"), ("e4m3", "rowwise"), ("e4m3", "rowwise_with_gw_hp")],
)
def test_products_in_float8_are_those_of_float32_to_a_few_hundredths(format, recipe):
    """torch._scaled_mm works on CPUs, slowly; torchao emulates. 25 tokens are no multiple of 16."""
    if recipe != "tensorwise":
        pytest.importorskip("torchao", reason="torchao is not installed")
    exact = two_linears()
    narrow = copy.deepcopy(exact).bfloat16()
    assert use_float8(narrow, format, recipe, emulate=True) == 1
    x = torch.randn(5, 5, 64, generator=torch.Generator().manual_seed(2))
    expected, found = (
        output_and_gradients(exact.layers[0], x),
        output_and_gradients(narrow.layers[0], x.bfloat16()),
    )
    errors = [
        ((ours.float() - theirs).norm() / theirs.norm()).item() for ours, theirs in zip(found, expected)
    ]
    assert max(errors) < 0.08
    assert min(errors[:2]) > 0.005  # bfloat16's are 0.002
    assert (errors[2] < 0.005) == (recipe == "rowwise_with_gw_hp")


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_products_in_float8_are_those_of_torchao(recipe):
    """One number is a thousand times the others, so that scales of rows and of matrices differ."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear

    ours = two_linears().bfloat16()
    theirs = nn.Linear(64, 48, dtype=torch.bfloat16)
    theirs.load_state_dict(ours.layers[0].state_dict())
    how = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=True, pad_inner_dim=True)
    theirs = Float8Linear.from_float(theirs, how)
    use_float8(ours, "hybrid" if recipe == "tensorwise" else "e4m3", recipe, emulate=True)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    x[3, 5] = 1000
    for found, expected in zip(output_and_gradients(ours.layers[0], x), output_and_gradients(theirs, x)):
        assert (found - expected).norm() / expected.norm() < (0.004 if recipe == "tensorwise" else 1e-9)


def test_float8_is_refused_where_the_hardware_lacks_it(settings, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"precision.fp8_format = hybrid with fp8_recipe = tensorwise needs a GPU with 8-bit matrix units,"
            r" and this runs on cpu; leave it out"
        ),
    ):
        train(settings(tmp_path / "run", bf16=True, fp8_format="hybrid"))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("format", "recipe"), [("hybrid", "tensorwise"), ("e4m3", "rowwise"), ("e4m3", "rowwise_with_gw_hp")]
)
def test_float8_trains_on_a_gpu(format, recipe):
    device = torch.device("cuda")
    if wrong := float8_obstacle(device, recipe):
        pytest.skip(wrong)
    config = resolve(
        ModelConfig(num_layers=2, hidden_size=256, num_attention_heads=4), vocab_size=512, seq_length=64
    )
    model = build_model(config)
    initialize(model, 1)
    model.to(device, torch.bfloat16)
    tokens = torch.randint(0, 512, (4, 65), device=device)
    arguments = {
        "tokens": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "loss_mask": torch.ones(4, 64, device=device),
    }
    exact = model.loss(**arguments).item()
    assert use_float8(model, format, recipe) == 8
    loss = model.loss(**arguments)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=1e-2)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both given; keep one"),
        ({"fp8_format": "hybrid"}, "precision.fp8_format = hybrid needs --bf16"),
        (
            {"bf16": True, "fp8_format": "hybrid", "fp8_recipe": "rowwise"},
            "precision.fp8_recipe = rowwise needs --fp8-format e4m3: it has no other format",
        ),
        ({"fp16": True, "initial_loss_scale": 0.5}, "initial_loss_scale = 0.5 must be at least 1.0"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PrecisionConfig(**settings)


def test_fast_float32_products_are_kept_only_where_they_are_float32():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        used = use_fast_float32_matmul()
        a, b = torch.randn(300, 700), torch.randn(500, 700)
        error = (torch.nn.functional.linear(a, b).double() - a.double() @ b.double().T).abs().max()
        assert error < 1e-3  # bfloat16's would be 1e-1
        assert settings.fp32_precision == ("bf16" if used else before)
    finally:
        settings.fp32_precision = before
