import copy

import pytest
import torch
import torch.utils.checkpoint

from mt.tests.train.model.small_models import LLAMA, gpt, random_tokens
from mt.train.model.attention import AttentionMask, causal_mask
from mt.train.model.block import activate

pytestmark = pytest.mark.usefixtures("one_thread")


def keep_part(module, rank, ranks):
    """The module with a rank's part of every weight, divided as `split` says."""
    for part in module.modules():
        split = getattr(part, "split", None)
        if split is not None:
            part.weight = torch.nn.Parameter(
                part.weight.chunk(ranks, dim=0 if split == "column" else 1)[rank].clone()
            )
            if part.bias is not None:  # the bias of a row-split layer is added once to the sum of all ranks
                part.bias = torch.nn.Parameter(
                    part.bias.chunk(ranks)[rank].clone() if split == "column" else part.bias / ranks
                )
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**LLAMA, "num_query_groups": 2, "qk_layernorm": True, "window_size": 5},
        {"num_query_groups": 2, "activation": "geglu"},
    ],
    ids=["gpt2", "qwen3", "grouped"],
)
def test_the_outputs_of_the_parts_of_a_divided_block_sum_to_its_output(settings):
    model, x = gpt(**settings), torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(1))
    context = {
        "mask": causal_mask(model.config, x[..., 0], x.dtype),
        "rotary": model._rotary(torch.arange(24)[None]),
    }
    mixer, ffn = model.layers[0].mixer, model.layers[0].ffn
    whole = mixer(x, **context), ffn(x)
    outputs = [
        (keep_part(copy.deepcopy(mixer), rank, 2)(x, **context), keep_part(copy.deepcopy(ffn), rank, 2)(x))
        for rank in range(2)
    ]
    for expected, *parts in zip(whole, *outputs):
        torch.testing.assert_close(sum(parts), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("squared_relu", lambda x: x.clamp(min=0) ** 2),
        ("gelu", lambda x: x * torch.special.ndtr(x)),
    ],
)
def test_an_activation_equals_its_formula(activation, formula):
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(activate(x, activation), formula(x), rtol=1e-5, atol=1e-6)


def test_recomputation_repeats_the_dropout_masks():
    model, tokens = gpt(hidden_dropout=0.2, attention_dropout=0.2).train(), random_tokens()
    losses, gradients = [], []
    for layer_call in (
        lambda layer, *a, **k: layer(*a, **k),
        lambda layer, *a, **k: torch.utils.checkpoint.checkpoint(layer, *a, use_reentrant=False, **k),
    ):
        torch.manual_seed(3)
        x = model.embedding(tokens)
        for layer in model.layers:
            x = layer_call(layer, x, mask=AttentionMask(causal=True))
        loss = model.norm(x).square().sum()
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, model.embedding.weight)[0])
    assert losses[0] == losses[1]
    assert torch.equal(*gradients)
