import copy

import pytest
import torch
import torch.utils.checkpoint

from mt.tests.train.model.small_models import LLAMA, gpt, random_tokens
from mt.train.model.attention import AttentionMask, causal_mask
from mt.train.model.block import activate

pytestmark = pytest.mark.usefixtures("one_thread")


def cut(module, rank, ranks):
    """A module with its share of every weight, as `split` has it."""
    for part in module.modules():
        split = getattr(part, "split", None)
        if split is not None:
            part.weight = torch.nn.Parameter(
                part.weight.chunk(ranks, dim=0 if split == "column" else 1)[rank].clone()
            )
            if part.bias is not None:  # that of a row-split is added once, after the sum
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
def test_the_shares_of_a_cut_block_add_up(settings):
    model, x = gpt(**settings), torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(1))
    context = {
        "mask": causal_mask(model.config, x[..., 0], x.dtype),
        "rotary": model._rotary(torch.arange(24)[None]),
    }
    mixer, ffn = model.layers[0].mixer, model.layers[0].ffn
    whole = mixer(x, **context), ffn(x)
    shares = [
        (cut(copy.deepcopy(mixer), rank, 2)(x, **context), cut(copy.deepcopy(ffn), rank, 2)(x))
        for rank in range(2)
    ]
    for expected, *parts in zip(whole, *shares):
        torch.testing.assert_close(sum(parts), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("squared_relu", lambda x: x.clamp(min=0) ** 2),
        ("gelu", lambda x: x * torch.special.ndtr(x)),
    ],
)
def test_an_activation_is_its_formula(activation, by_hand):
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(activate(x, activation), by_hand(x), rtol=1e-5, atol=1e-6)


def test_dropout_is_the_same_again_under_recomputation():
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
