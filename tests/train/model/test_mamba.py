import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

from mt.core.config import UserError
from mt.train.model.attention import Documents
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.gpt import GPT
from mt.train.model.layers import generator_of, initialize
from mt.train.model.mamba import Mamba, convolve, scan, scan_backend
from mt.train.precision import MasterWeights

pytestmark = pytest.mark.usefixtures("one_thread")


def shape(**settings) -> ModelConfig:
    base = {
        "hybrid_override_pattern": "MM",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "mamba_state_dim": 8,
        "mamba_head_dim": 16,
        "mamba_num_groups": 2,
    }
    base |= {
        "normalization": "RMSNorm",
        "position_embedding_type": "none",
        "init_method_std": 0.3,
        "make_vocab_size_divisible_by": 64,
    }
    return resolve(ModelConfig(**{**base, **settings}), vocab_size=64, seq_length=64)


def layer(dtype=torch.float64, **settings) -> Mamba:
    module = Mamba(shape(**settings))
    initialize(module, seed=0)
    return module.to(dtype)


def gpt(**settings) -> GPT:
    model = GPT(shape(**settings))
    initialize(model, seed=0)
    return model


def randn(*size, dtype=torch.float64, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_tokens(rows=2, length=21):
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(1))


def documents_of(ids) -> Documents:
    return Documents(torch.as_tensor(ids), torch.empty(0), 0)  # a Mamba layer uses only the ids


def recurrence(x, dt, A, B, C, *, state, documents):
    """The scan by its definition, token by token."""
    heads_per_group = x.shape[2] // B.shape[2]
    ys = []
    for t in range(x.shape[1]):
        if documents is not None and t:
            state = state * (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        write, read = (w[:, t].repeat_interleave(heads_per_group, dim=1)[:, :, None] for w in (B, C))
        state = (
            state * (dt[:, t] * A).exp()[..., None, None] + (dt[:, t, :, None] * x[:, t])[..., None] * write
        )
        ys.append((state * read).sum(-1))
    return torch.stack(ys, dim=1), state


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_the_chunked_scan_and_its_gradients_are_those_of_the_recurrence(length, packed):
    batch, heads, groups, channels, size = 2, 6, 3, 4, 5
    x, dt = randn(batch, length, heads, channels), randn(batch, length, heads, seed=1).exp()
    B, C = randn(batch, length, groups, size, seed=2), randn(batch, length, groups, size, seed=3)
    inputs = [
        t.requires_grad_()
        for t in (x, dt, -randn(heads, seed=4).exp(), B, C, randn(batch, heads, channels, size, seed=5))
    ]
    boundaries = torch.rand(batch, length, generator=torch.Generator().manual_seed(6)) < 0.3
    documents = boundaries.cumsum(1) if packed else None
    ours = scan(*inputs[:5], state=inputs[5], documents=documents, chunk=8)
    theirs = recurrence(*inputs[:5], state=inputs[5], documents=documents)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(y.square().sum() + state.square().sum(), inputs) for y, state in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_the_convolution_is_torchs():
    x, weight, bias = randn(2, 9, 5), randn(5, 4, seed=1), randn(5, seed=2)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight[:, None], bias, groups=5).transpose(1, 2)
    torch.testing.assert_close(convolve(x, weight, bias), expected)
    later = convolve(x[:, 4:], weight, bias, before=x[:, 1:4])
    torch.testing.assert_close(later, expected[:, 4:])


# Our name after `layers.N.` -> Hugging Face's name after `backbone.layers.N.`.
HF_NAMES = {
    "mixer_norm.weight": "norm.weight",
    "mixer.projection.weight": "mixer.in_proj.weight",
    "mixer.convolution": "mixer.conv1d.weight",
    "mixer.convolution_bias": "mixer.conv1d.bias",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.norm_weight": "mixer.norm.weight",
    "mixer.out.weight": "mixer.out_proj.weight",
}
HF_NAMES_OUTSIDE = {
    "embedding.weight": "backbone.embeddings.weight",
    "norm.weight": "backbone.norm_f.weight",
    "output.weight": "lm_head.weight",
}


def converted(theirs: dict, config: ModelConfig) -> dict:
    """Hugging Face's weights (or gradients) of a Mamba-2 under our names.

    Its rows are in the order z, x, B, C, dt; ours are in this order within each group.
    """
    groups, inner, both = (
        config.mamba_num_groups,
        config.mamba_num_heads * config.mamba_head_dim,
        config.mamba_num_groups * config.mamba_state_dim,
    )
    rows = {
        "mixer.projection.weight": (inner, inner, both, both, config.mamba_num_heads),
        "mixer.convolution": (inner, both, both),
        "mixer.convolution_bias": (inner, both, both),
    }
    ours = {name: theirs[other] for name, other in HF_NAMES_OUTSIDE.items()}
    for i in range(config.num_layers):
        for name, other in HF_NAMES.items():
            weight = theirs[f"backbone.layers.{i}.{other}"]
            if name in rows:
                weight = torch.cat(
                    [p.unflatten(0, (groups, -1)) for p in weight.split(rows[name])], dim=1
                ).flatten(0, 1)
            ours[f"layers.{i}.{name}"] = weight.squeeze(1) if name == "mixer.convolution" else weight
    return ours


@pytest.mark.parametrize("groups", [1, 2])
def test_a_mamba_gives_the_hidden_states_and_gradients_of_transformers(groups):
    theirs = transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            num_heads=4,
            head_dim=16,
            vocab_size=64,
            hidden_size=32,
            state_size=8,
            num_hidden_layers=2,
            n_groups=groups,
            chunk_size=8,
            expand=2,
        )
    )
    ours = GPT(shape(mamba_num_groups=groups, untie_embeddings_and_output_weights=True))
    ours.load_state_dict(converted({k: v.detach() for k, v in theirs.named_parameters()}, ours.config))
    tokens = random_tokens()
    torch.testing.assert_close(ours(tokens), theirs.backbone(tokens).last_hidden_state, rtol=1e-5, atol=1e-5)
    for logits in (ours.logits(ours(tokens)), theirs(tokens).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    expected = converted({k: v.grad for k, v in theirs.named_parameters()}, ours.config)
    for name, parameter in ours.named_parameters():
        size = expected[name].abs().max()
        torch.testing.assert_close(parameter.grad / size, expected[name] / size, rtol=1e-5, atol=1e-5)


HYBRID = {"hybrid_override_pattern": "M*-M-", "position_embedding_type": "rope"}


@pytest.mark.parametrize("settings", [{}, HYBRID], ids=["Mamba", "hybrid"])
def test_with_a_cache_the_hidden_states_are_those_without(settings):
    model, tokens = gpt(**settings).double().eval(), random_tokens()
    with torch.no_grad():
        cache = model.new_cache(2, 21)
        pieces = [
            model(tokens[:, a:b], cache=cache) for a, b in ((0, 10), (10, 11), (11, 12), (12, 13), (13, 21))
        ]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-5, atol=1e-6)


def test_rows_of_different_lengths_share_a_cache_if_their_lengths_are_given():
    model, tokens = gpt(**HYBRID).double().eval(), random_tokens()
    lengths = torch.tensor([2, 9])  # the first is shorter than the convolution
    with torch.no_grad():
        cache = model.new_cache(2, 21)
        model(tokens[:, :9].masked_fill(torch.arange(9) >= lengths[:, None], 0), cache=cache, lengths=lengths)
        for _ in range(4):
            step = model(tokens.gather(1, lengths[:, None]), positions=lengths[:, None], cache=cache)
            for row in range(2):
                alone = model(tokens[row : row + 1, : lengths[row] + 1])
                torch.testing.assert_close(step[row, 0], alone[0, -1], rtol=1e-5, atol=1e-6)
            lengths = lengths + 1


def test_the_state_is_reset_between_packed_documents():
    module = layer()
    pieces = [
        randn(1, length, 32, seed=length) for length in (2, 130, 9)
    ]  # the second is longer than a chunk
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 130, 9]))[None]
    packed = module(torch.cat(pieces, dim=1), documents=documents_of(ids))
    torch.testing.assert_close(
        packed, torch.cat([module(piece) for piece in pieces], dim=1), rtol=1e-12, atol=1e-12
    )
    assert not torch.allclose(packed, module(torch.cat(pieces, dim=1)))


def test_the_outputs_of_the_parts_of_a_layer_divided_by_groups_sum_to_its_output():
    whole, x = layer(), randn(2, 9, 32)
    total = torch.zeros_like(x)
    for half in range(2):
        part = copy.deepcopy(whole)
        for name, parameter in part.named_parameters():
            parameter.data = parameter.data.chunk(2, dim=1 if name == "out.weight" else 0)[half]
        total += part(x)
        cache = part.new_cache(2, 9)
        torch.testing.assert_close(part(x, cache=cache), part(x))
    torch.testing.assert_close(total, whole(x), rtol=1e-12, atol=1e-12)


def test_autocast_changes_the_loss_by_rounding_only_and_keeps_the_state_in_float32():
    model, tokens = gpt(), random_tokens()
    mask = torch.ones(2, 20)
    exact = model.loss(tokens[:, :-1], tokens[:, 1:], mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(tokens[:, :-1], tokens[:, 1:], mask)
        cache = model.new_cache(2, 21)
        model.eval()(tokens, cache=cache)
    assert 0 < abs(rough - exact) / exact < 2e-2
    assert cache.layers[0].state.dtype == torch.float32
    rough.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_recomputation_changes_no_bit():
    plain, x = layer(torch.float32), randn(2, 9, 32, dtype=torch.float32)
    again = copy.deepcopy(plain)
    plain(x.requires_grad_()).square().sum().backward()
    torch.utils.checkpoint.checkpoint(again, x, use_reentrant=False).square().sum().backward()
    for ours, theirs in zip(again.parameters(), plain.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_compiled_layer_is_one_graph():
    module, x = layer(), randn(2, 140, 32)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))


def test_initial_weights_have_the_papers_distributions_and_depend_on_their_names():
    module = layer(torch.float32, hidden_size=256, mamba_head_dim=4)  # 128 heads
    for a, b in zip(
        module.parameters(), layer(torch.float32, hidden_size=256, mamba_head_dim=4).parameters()
    ):
        assert torch.equal(a, b)
    uniform = {name: torch.rand(128, generator=generator_of(f".{name}", 0)) for name in ("A_log", "dt_bias")}
    torch.testing.assert_close(module.A_log.exp(), 1 + 15 * uniform["A_log"])
    torch.testing.assert_close(
        F.softplus(module.dt_bias).log10(), -3 + 2 * uniform["dt_bias"], rtol=0, atol=1e-4
    )
    assert (module.D == 1).all()
    assert (module.norm_weight == 1).all()
    assert module.convolution.abs().max() <= 0.5
    assert module.projection.weight.std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mamba_state_dim": 64},
            (
                "model.mamba_state_dim: there are no Mamba layers to set; give a --hybrid-override-pattern"
                " with M too"
            ),
        ),
        (
            {"hybrid_override_pattern": "M-", "mamba_num_groups": 5},
            "mamba_num_groups = 5 does not divide the 24 heads of a Mamba layer; use 2, 3, 4 or 6",
        ),
        (
            {"hybrid_override_pattern": "M-", "mamba_head_dim": 100},
            "mamba_head_dim = 100 does not divide twice model.hidden_size = 768",
        ),
        ({"hybrid_override_pattern": "M-", "mamba_num_heads": 0}, "mamba_num_heads = 0 must be at least 1"),
        ({"hybrid_override_pattern": "M-", "mamba_head_dim": 0}, "mamba_head_dim = 0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError) as refused:
        ModelConfig(**settings)
    assert message in str(refused.value)


def test_without_a_gpu_torch_computes_the_scan():
    assert scan_backend("cpu") == "torch"


@pytest.mark.gpu
def test_the_kernels_of_mamba_ssm_give_the_scan():
    pytest.importorskip("mamba_ssm", reason="pip install mamba-ssm brings the kernels")
    assert scan_backend("cuda") == "mamba_ssm"
    x, dt = (
        randn(2, 300, 8, 64, dtype=torch.float32),
        randn(2, 300, 8, seed=1, dtype=torch.float32).exp() * 0.1,
    )
    B, C = (randn(2, 300, 2, 64, seed=s, dtype=torch.float32) for s in (2, 3))
    A, documents = (
        -randn(8, seed=4, dtype=torch.float32).exp(),
        (torch.arange(300) >= 170).long().expand(2, -1),
    )
    expected = scan(x, dt, A, B, C, documents=documents)
    y, state = scan(*(t.cuda() for t in (x, dt, A, B, C)), documents=documents.cuda())
    torch.testing.assert_close(y.cpu(), expected[0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state.cpu(), expected[1], rtol=2e-2, atol=2e-2)


def test_build_model_builds_hybrids():
    model = build_model(shape(hybrid_override_pattern="M-*E", num_experts=4, position_embedding_type="rope"))
    assert [type(layer.mixer or layer.ffn).__name__ for layer in model.layers] == [
        "Mamba",
        "FeedForward",
        "Attention",
        "MoE",
    ]


def test_a_log_and_d_stay_float32_in_a_bfloat16_model_and_are_trained():
    model = build_model(shape(hybrid_override_pattern="M-"))
    initialize(model, 0)
    weights, mixer = MasterWeights(model, torch.bfloat16), model.layers[0].mixer
    assert (mixer.A_log.dtype, mixer.D.dtype, mixer.dt_bias.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )
    tokens = torch.randint(0, 60, (2, 21))
    model.loss(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 20)).backward()
    before = mixer.A_log.detach().clone()
    optimizer = torch.optim.SGD(list(weights), lr=1.0)
    optimizer.step()
    weights.refresh()
    assert weights.by_name["layers.0.mixer.A_log"] is mixer.A_log
    assert (mixer.A_log != before).any()
    assert torch.equal(
        mixer.projection.weight, weights.by_name["layers.0.mixer.projection.weight"].bfloat16()
    )
