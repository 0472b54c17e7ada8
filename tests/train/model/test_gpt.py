import copy
import hashlib

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from mt.core.config import UserError
from mt.train.model.attention import AttentionMask, causal_mask
from mt.train.model.block import activate
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize
from mt.train.model.loss import cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


def gpt(seed=0, **settings) -> GPT:
    config = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "init_method_std": 0.2,
        "make_vocab_size_divisible_by": 16,
        **settings,
    }
    model = GPT(resolve(ModelConfig(**config), vocab_size=61, seq_length=24))
    initialize(model, seed)
    return model


LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "add_bias_linear": False,
    "num_query_groups": 2,
    "untie_embeddings_and_output_weights": True,
}


def random_tokens(rows=3, length=24):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


def test_the_padding_of_the_vocabulary_has_no_probability_and_learns_nothing():
    model, tokens = gpt(), random_tokens()
    logits = model.logits(model(tokens))
    assert logits.shape == (3, 24, 64)
    assert (logits[..., 61:] == float("-inf")).all()
    loss = model.loss(tokens[:, :-1], tokens[:, 1:], torch.ones(3, 23))
    reference = F.cross_entropy(logits[:, :-1, :61].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    loss.backward()
    assert (model.embedding.weight.grad[61:] == 0).all()


@pytest.mark.parametrize("shape", [{}, LLAMA, {**LLAMA, "window_size": 5}], ids=["gpt2", "llama", "window"])
def test_with_a_cache_the_hidden_states_are_those_without(shape):
    model, tokens = gpt(**shape).eval(), random_tokens()
    with torch.no_grad():
        whole = model(tokens)
        cache = model.new_cache(3, 24)
        pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 10), (10, 11), (11, 12), (12, 24))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_rows_of_different_lengths_share_a_cache_when_padded_on_the_right():
    model, tokens = gpt(**LLAMA).eval(), random_tokens(rows=2)
    lengths = torch.tensor([5, 9])
    with torch.no_grad():
        cache = model.new_cache(2, 24)
        model(tokens[:, :9].masked_fill(torch.arange(9) >= lengths[:, None], 0), cache=cache)
        for _ in range(4):  # each row goes on behind its own end
            step = model(tokens.gather(1, lengths[:, None]), positions=lengths[:, None], cache=cache)
            for row in range(2):
                alone = model(tokens[row : row + 1, : lengths[row] + 1])
                torch.testing.assert_close(step[row, 0], alone[0, -1], rtol=1e-5, atol=1e-5)
            lengths = lengths + 1


# one chunk, and several (of 128 rows at this vocabulary)
@pytest.mark.parametrize(("rows", "with_bias"), [(5, True), (140, False), (140, True)])
def test_the_chunked_cross_entropy_is_torchs_with_its_gradients(rows, with_bias):
    generator = torch.Generator().manual_seed(0)
    V, vocab_size = 1 << 17, (1 << 17) - 5
    hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator, dtype=torch.float64)
    bias = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    loss = cross_entropy(hidden, weight, labels, mask, vocab_size, bias) * 0.5
    ours = torch.autograd.grad(loss, inputs)
    logits = hidden @ weight[:vocab_size].T + (bias[:vocab_size] if with_bias else 0)
    expected = (F.cross_entropy(logits, labels, reduction="none") * mask).sum() * 0.5
    theirs = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, theirs)


def test_bfloat16_changes_the_loss_by_its_rounding_alone():
    model, tokens = gpt(), random_tokens()
    mask = torch.ones(3, 23)
    exact = model.loss(tokens[:, :-1], tokens[:, 1:], mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(tokens[:, :-1], tokens[:, 1:], mask)
    assert 0 < abs(rough - exact) / exact < 1e-2
    rough.backward()
    assert model.embedding.weight.grad.dtype == torch.float32


def test_a_weight_starts_from_its_name_seed_and_full_shape_alone():
    shallow, deep = gpt(seed=7), gpt(seed=7, num_layers=3)
    assert torch.equal(shallow.layers[1].mixer.qkv.weight, deep.layers[1].mixer.qkv.weight)
    digest = hashlib.sha256(b"7:layers.1.mixer.qkv.weight").digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    assert torch.equal(
        shallow.layers[1].mixer.qkv.weight, torch.empty(96, 32).normal_(0, 0.2, generator=generator)
    )
    assert not torch.equal(shallow.embedding.weight, gpt(seed=8).embedding.weight)
    # over the root of twice the layers
    assert shallow.layers[0].ffn.down.weight.std().item() == pytest.approx(0.2 / 2, rel=0.05)
    assert (shallow.norm.weight == 1).all()
    assert (shallow.norm.bias == 0).all()


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


def test_a_pattern_makes_a_block_of_each_symbol():
    model = gpt(num_layers=None, hybrid_override_pattern="*-*-")
    plain = gpt()
    assert [(layer.mixer is None, layer.ffn is None) for layer in model.layers] == [
        (False, True),
        (True, False),
    ] * 2
    weights = {
        name: w for name, w in plain.state_dict().items() if ".ffn" not in name and ".mixer" not in name
    }
    for i in range(2):
        for part, at in (("mixer", 2 * i), ("ffn", 2 * i + 1)):
            weights |= {
                name.replace(f"layers.{i}.", f"layers.{at}."): w
                for name, w in plain.state_dict().items()
                if name.startswith(f"layers.{i}.{part}")
            }
    model.load_state_dict(weights)
    torch.testing.assert_close(model(random_tokens()), plain(random_tokens()))


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_size": 768, "num_attention_heads": 10},
            r"num_attention_heads = 10 does not divide model.hidden_size = 768; use 4, 6, 8 or 12",
        ),
        ({"num_query_groups": 5}, r"num_query_groups = 5 does not divide model.num_attention_heads = 12"),
        (
            {"hidden_size": 36, "num_attention_heads": 12, "position_embedding_type": "rope"},
            "rope needs an even number of rotated channels a head, not 3",
        ),
        ({"hidden_dropout": 1.0}, "hidden_dropout = 1.0 must be at least 0 and below 1"),
        ({"num_layers": 0}, "num_layers = 0 must be at least 1"),
        ({"window_size": 0}, "window_size = 0 must be at least 1"),
        (
            {"position_embedding_type": "rope", "rope_scaling": {"rope_type": "longrope"}},
            "rope_scaling has rope_type 'longrope'; use linear, dynamic, llama3, yarn",
        ),
        (
            {"position_embedding_type": "rope", "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "has no original_max_position_embeddings, which rope_type yarn needs",
        ),
        (
            {
                "position_embedding_type": "rope",
                "rope_scaling": {"rope_type": "linear", "factor": 2.0, "fast": 1},
            },
            "has fast, which rope_type linear does not know; use factor",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling is for model.position_embedding_type = rope",
        ),
        ({"hybrid_override_pattern": "M*x"}, "hybrid_override_pattern has 'x'; use M for Mamba-2"),
        (
            {"hybrid_override_pattern": "*-", "num_layers": 3},
            r"num_layers = 3, but model.hybrid_override_pattern has 2 symbols; leave num_layers out",
        ),
        (
            {"family": "bert", "position_embedding_type": "rope"},
            "position_embedding_type = rope does not fit model.family = bert; use learned",
        ),
        (
            {"family": "t5", "window_size": 3},
            (
                "window_size limits causal attention to the last tokens, and the attention of model.family = t5"
                " is bidirectional; leave it out"
            ),
        ),
        (
            {"post_norm": True},
            "post_norm is for model.family = bert or ict; leave it out for model.family = gpt",
        ),
        ({"decoder_num_layers": 3}, "decoder_num_layers is for model.family = t5"),
        (
            {"family": "bert", "attention_backend": "flash"},
            "attention_backend = flash computes causal attention only; leave it out for model.family = bert",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings)
