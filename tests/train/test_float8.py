"""Linear layers in float8, compared with float32 and torchao."""

import copy
import dataclasses
import types

import pytest
import torch
from torch import nn

from mt.core.config import UserError
from mt.train.float8 import float8_obstacle, use_float8
from mt.train.loop import train
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import Linear, initialize

pytestmark = pytest.mark.usefixtures("one_thread")


def two_linears() -> nn.Module:
    """Layers of 64 to 48 and of 64 to 7; 7 is not a multiple of 16, as float8 needs."""
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
def test_products_in_float8_equal_those_of_float32_within_a_few_hundredths(format, recipe):
    """torch._scaled_mm runs on CPUs, slowly; torchao emulates it. 25 tokens are not a multiple of 16."""
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
    assert min(errors[:2]) > 0.005  # those of bfloat16 are 0.002
    assert (errors[2] < 0.005) == (recipe == "rowwise_with_gw_hp")


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_products_in_float8_equal_those_of_torchao(recipe):
    """One number is a thousand times the others, so that a scale for each row and one for all differ."""
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


def test_float8_is_refused_if_the_hardware_lacks_it(settings, tmp_path):
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


@pytest.mark.parametrize("first_last", [(0, 0), (1, 1), (2, 0), (0, 3), (3, 3)])
def test_the_layers_that_stay_in_bfloat16_are_megatrons(first_last):
    from megatron.core.fp8_utils import is_first_last_bf16_layer

    config = ModelConfig(num_layers=5, hidden_size=32, num_attention_heads=2)
    with torch.device("meta"):
        model = build_model(resolve(config, vocab_size=8, seq_length=4))
    use_float8(model, "e4m3", layers_in_bf16=first_last, num_layers={"layers": 5})
    theirs = types.SimpleNamespace(
        first_last_layers_bf16=True,
        num_layers_at_start_in_bf16=first_last[0],
        num_layers_at_end_in_bf16=first_last[1],
        num_layers=5,
    )
    for number, block in enumerate(model.layers):
        wide = {m.product is torch.nn.functional.linear for m in block.modules() if isinstance(m, Linear)}
        assert wide == {is_first_last_bf16_layer(theirs, number)}, number


def test_both_stacks_of_a_t5_multiply_in_float8():
    config = ModelConfig(
        family="t5", num_layers=2, hidden_size=32, num_attention_heads=2, decoder_num_layers=3
    )
    with torch.device("meta"):
        model = build_model(resolve(config, vocab_size=8, seq_length=4))
    lengths = {"encoder": 2, "decoder": 3}
    # an encoder's layer has 4 linear layers, a decoder's 7; of the decoder the second layer alone is left
    assert use_float8(model, "e4m3") == 2 * 4 + 3 * 7
    with torch.device("meta"):
        model = build_model(model.config)
    assert use_float8(model, "e4m3", layers_in_bf16=(1, 1), num_layers=lengths) == 7
