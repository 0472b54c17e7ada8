import pytest
import torch
from torch import nn

from mt.core.config import Failure, UserError
from mt.train.loop import train
from mt.train.precision import LossScale, MasterWeights, PrecisionConfig, use_fast_float32_matmul

pytestmark = pytest.mark.usefixtures("one_thread")


def megatron_scaler(config: PrecisionConfig):
    """Megatron-core's loss scaler, made without its constructor, which needs a GPU."""
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler

    scaler = object.__new__(DynamicGradScaler)
    scaler._scale, scaler.min_scale = torch.tensor([config.initial_loss_scale]), torch.tensor([1.0])
    scaler.growth_factor, scaler.backoff_factor = torch.tensor([2.0]), torch.tensor([0.5])
    scaler.growth_interval = config.loss_scale_window
    scaler.hysteresis = scaler._hysteresis_tracker = config.hysteresis
    scaler._growth_tracker = 0
    return scaler


def test_the_loss_scale_changes_as_megatrons():
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


def test_a_loss_scale_resumes_from_its_state():
    config = PrecisionConfig(fp16=True, loss_scale_window=3)
    ours = LossScale(config)
    for overflow in (True, True, False):
        ours.update(overflow)
    again = LossScale(config, ours.state())
    assert (again.value, again.good_steps, again.patience) == (2.0**31, 1, 0)
    assert LossScale(PrecisionConfig(bf16=True), {}).value == 1.0


def test_a_bfloat16_model_sums_its_gradients_in_float32_and_is_refreshed_from_master_weights():
    model = nn.Linear(4, 3)
    weights = MasterWeights(model, torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16
    assert all(w.dtype == torch.float32 for w in weights)
    parts = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(64)]
    for part in parts:
        model(part.bfloat16()).sum().backward()
        assert model.weight.grad is None
    expected = sum(
        part.bfloat16().sum(0).float() for part in parts
    )  # terms in bfloat16, their sum in float32
    torch.testing.assert_close(weights.by_name["weight"].grad[0], expected, rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        weights.by_name["bias"].fill_(1.0)
    weights.refresh()
    assert (model.bias == 1).all()


def test_in_float32_the_master_weights_are_the_models_weights():
    model = nn.Linear(4, 3)
    weights = MasterWeights(model, torch.float32)
    assert weights.by_name["weight"] is model.weight
    weights.refresh()


@pytest.mark.slow  # 17 s: two runs and a resumed one
def test_bf16_learns_as_float32_does_and_resumes_to_the_same_losses(finished, settings, tmp_path):
    exact = finished[1]["curve"]
    whole = train(settings(tmp_path / "whole", bf16=True, log_interval=2))["curve"]
    assert [loss for _, loss in whole] == pytest.approx([loss for _, loss in exact], rel=5e-3)
    assert whole != exact
    while "finished" not in (cut := train(settings(tmp_path / "cut", bf16=True, exit_interval=3))):
        pass
    assert cut["curve"] == whole


@pytest.mark.slow
def test_float16_lowers_its_loss_scale_and_counts_skipped_steps(finished, settings, tmp_path):
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


def test_a_float16_run_that_skips_every_step_fails_with_the_reason(settings, tmp_path):
    with pytest.raises(
        Failure,
        match=(
            r"no step of this run changed a weight; float16's loss scale has only fallen to \d.*;"
            r" train for more steps, or lower --initial-loss-scale"
        ),
    ):
        train(settings(tmp_path / "run", fp16=True, train_iters=4, eval_iters=0, split="100,0,0"))


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
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PrecisionConfig(**settings)


def test_fast_float32_matmul_is_used_only_if_it_has_the_precision_of_float32():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        used = use_fast_float32_matmul()
        a, b = torch.randn(300, 700), torch.randn(500, 700)
        error = (torch.nn.functional.linear(a, b).double() - a.double() @ b.double().T).abs().max()
        assert error < 1e-3  # in bfloat16 it would be 1e-1
        assert settings.fp32_precision == ("bf16" if used else before)
    finally:
        settings.fp32_precision = before
