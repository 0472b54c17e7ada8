import hashlib

import pytest
import torch
import torch.nn.functional as F
import transformers

from mt.config import UserError
from mt.train.model.gpt import GPT
from mt.train.model.layers import ModelConfig, cross_entropy, initialize, resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def gpt(seed=0, **settings) -> GPT:
    config = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "init_method_std": 0.2, "make_vocab_size_divisible_by": 16, **settings}
    model = GPT(resolve(ModelConfig(**config), vocab_size=61, seq_length=24))
    initialize(model, seed)
    return model


LLAMA = {"position_embedding_type": "rope", "normalization": "RMSNorm", "activation": "swiglu", "add_bias_linear": False, "num_query_groups": 2, "untie_embeddings_and_output_weights": True}


def random_tokens(rows=3, length=24):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


def fused(query, key, value, groups):
    """Separate projections (heads x C, D) as our one matrix, group by group."""
    parts = [w.unflatten(0, (groups, -1)) for w in (query, key, value)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def as_gpt2(ours: GPT):
    config = transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    return transformers.GPT2LMHeadModel(config).eval()


def load_gpt2(ours: GPT, theirs) -> None:
    w = {k: v.detach() for k, v in theirs.transformer.named_parameters()}
    state = {"embedding.weight": torch.cat([w["wte.weight"], torch.full((3, 32), 9.0)]), "positions.weight": w["wpe.weight"], "norm.weight": w["ln_f.weight"], "norm.bias": w["ln_f.bias"]}
    for i in range(2):
        h, o = f"h.{i}.", f"layers.{i}."
        for ln, norm in (("ln_1", "mixer_norm"), ("ln_2", "ffn_norm")):
            state |= {f"{o}{norm}.{k}": w[f"{h}{ln}.{k}"] for k in ("weight", "bias")}
        state[f"{o}mixer.qkv.weight"] = fused(*w[f"{h}attn.c_attn.weight"].T.chunk(3), groups=4)
        state[f"{o}mixer.qkv.bias"] = fused(*w[f"{h}attn.c_attn.bias"].chunk(3), groups=4)
        for conv, name in (("attn.c_proj", "mixer.out"), ("mlp.c_fc", "ffn.up"), ("mlp.c_proj", "ffn.down")):
            state |= {f"{o}{name}.weight": w[f"{h}{conv}.weight"].T, f"{o}{name}.bias": w[f"{h}{conv}.bias"]}
    ours.load_state_dict(state)


def test_gpt2_gives_the_logits_loss_and_gradients_of_transformers():
    ours = gpt(activation="gelu_tanh")
    theirs = as_gpt2(ours)
    load_gpt2(ours, theirs)
    tokens = random_tokens()
    expected = theirs(tokens).logits
    logits = ours.logits(ours(tokens))
    torch.testing.assert_close(logits[..., :61], expected, rtol=1e-5, atol=1e-5)
    assert (logits[..., 61:] == float("-inf")).all()
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    loss = ours.loss(inputs, labels, torch.ones(labels.shape))
    reference = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.embedding.weight.grad[:61], theirs.transformer.wte.weight.grad, rtol=1e-4, atol=1e-4)
    assert (ours.embedding.weight.grad[61:] == 0).all()  # the padding of the vocabulary learns nothing
    torch.testing.assert_close(ours.layers[0].ffn.up.weight.grad, theirs.transformer.h[0].mlp.c_fc.weight.grad.T, rtol=1e-4, atol=1e-4)


def test_the_llama_shape_gives_the_logits_of_transformers():
    ours = gpt(**LLAMA)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=ours.config.ffn_hidden_size, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=24, rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    w = {k: v.detach() for k, v in theirs.named_parameters()}
    pad = torch.zeros(3, 32)
    state = {"embedding.weight": torch.cat([w["model.embed_tokens.weight"], pad]), "output.weight": torch.cat([w["lm_head.weight"], pad]), "norm.weight": w["model.norm.weight"]}
    for i in range(2):
        h, o = f"model.layers.{i}.", f"layers.{i}."
        state[f"{o}mixer.qkv.weight"] = fused(*(w[f"{h}self_attn.{n}_proj.weight"] for n in "qkv"), groups=2)
        for theirs_name, name in (("input_layernorm", "mixer_norm"), ("post_attention_layernorm", "ffn_norm"), ("self_attn.o_proj", "mixer.out"), ("mlp.gate_proj", "ffn.gate"), ("mlp.up_proj", "ffn.up"), ("mlp.down_proj", "ffn.down")):
            state[f"{o}{name}.weight"] = w[f"{h}{theirs_name}.weight"]
    ours.load_state_dict(state)
    tokens = random_tokens()
    torch.testing.assert_close(ours.logits(ours(tokens))[..., :61], theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [{}, LLAMA], ids=["gpt2", "llama"])
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


@pytest.mark.parametrize("rows", [5, 140])  # one chunk, and several (chunks of 128 rows at this vocabulary)
def test_the_chunked_cross_entropy_is_torchs_with_its_gradients(rows):
    generator = torch.Generator().manual_seed(0)
    V, vocab_size = 1 << 17, (1 << 17) - 5
    hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator, dtype=torch.float64)
    loss = cross_entropy(hidden, weight, labels, mask, vocab_size) * 0.5
    ours = torch.autograd.grad(loss, (hidden, weight))
    expected = (F.cross_entropy(hidden @ weight[:vocab_size].T, labels, reduction="none") * mask).sum() * 0.5
    theirs = torch.autograd.grad(expected, (hidden, weight))
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
    assert torch.equal(shallow.layers[1].mixer.qkv.weight, torch.empty(96, 32).normal_(0, 0.2, generator=generator))
    assert not torch.equal(shallow.embedding.weight, gpt(seed=8).embedding.weight)
    assert shallow.layers[0].ffn.down.weight.std().item() == pytest.approx(0.2 / 2, rel=0.05)  # over the root of twice the layers
    assert (shallow.norm.weight == 1).all()
    assert (shallow.norm.bias == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 768, "num_attention_heads": 10}, r"num_attention_heads = 10 does not divide model.hidden_size = 768; use 4, 6, 8 or 12"),
        ({"num_query_groups": 5}, r"num_query_groups = 5 does not divide model.num_attention_heads = 12"),
        ({"hidden_size": 36, "num_attention_heads": 12, "position_embedding_type": "rope"}, "rope needs an even number of channels a head, not 3"),
        ({"hidden_dropout": 1.0}, "hidden_dropout = 1.0 must be at least 0 and below 1"),
        ({"num_layers": 0}, "num_layers = 0 must be at least 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings)
