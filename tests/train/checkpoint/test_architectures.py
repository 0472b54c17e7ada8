"""Models of transformers, tiny and random, carried over by our own tables: the same logits and gradients, and
back again.
"""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import transformers

from mt.core.config import UserError
from mt.train.checkpoint.architectures import ARCHITECTURES, weights_from_hf, weights_to_hf
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")
V, T = 61, 24
TOLERANCE = 1e-5
EAGER = {"attn_implementation": "eager", "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {**EAGER, "vocab_size": V, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {
    **EAGER,
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
NEOX = {
    **LLAMA,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}
NEOX.pop("num_key_value_heads")
T5 = {
    **EAGER,
    "vocab_size": V,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
DECODERS = {
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt_bigcode": transformers.GPTBigCodeConfig(**GPT2),
    "gpt_bigcode with a key for every query": transformers.GPTBigCodeConfig(**GPT2, multi_query=False),
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama with positions divided by 4": transformers.LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    ),
    "llama 3.1": transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama with a base that grows": transformers.LlamaConfig(
        **{**LLAMA, "max_position_embeddings": 16},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
    ),
    "llama with yarn": transformers.LlamaConfig(**LLAMA, rope_parameters=YARN),
    "mistral": transformers.MistralConfig(**LLAMA, sliding_window=7),
    "gpt_neox": transformers.GPTNeoXConfig(**NEOX),
    "gpt_neox with one embedding": transformers.GPTNeoXConfig(**NEOX, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**LLAMA),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=16),
}


def random(shape, high=V, low=0, seed=1):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def carried_over(config, kind):
    """(ours, theirs): a random model of transformers, vectors and biases away from 1 and 0, and ours with its
    weights.
    """
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1, 0.3)
    config.architectures = [kind.__name__]
    shape = config_from_hf(config.to_dict(), "config.json")
    ours = build_model(shape).eval()
    held = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    ours.load_state_dict(
        dict(weights_from_hf(config.model_type, shapes, shape, held, held.__getitem__, "model.safetensors"))
    )
    return ours, theirs


def check_the_same(ours, theirs, our_loss, their_loss):
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-6, atol=0)
    our_loss.backward()
    their_loss.backward()
    name = theirs.config.model_type
    found = dict(weights_to_hf(name, [(n, p.grad) for n, p in ours.named_parameters()], ours.config))
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for n, gradient in expected.items():  # that of a key's bias is 0 but for rounding
        assert (found[n] - gradient).norm() <= TOLERANCE * max(gradient.norm(), 1e-3 * whole), n
    held = dict(theirs.named_parameters())
    back = dict(weights_to_hf(name, ours.named_parameters(), ours.config))
    assert back.keys() == held.keys()
    assert all(torch.equal(back[n], held[n]) for n in held)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_the_logits_and_gradients_of_transformers(name):
    config = DECODERS[name]
    ours, theirs = carried_over(config, getattr(transformers, ARCHITECTURES[config.model_type].loaded_by))
    tokens = random((3, T + 1))
    with torch.no_grad():
        # Of a copy: with frequencies that grow, transformers' model remembers the longest sequence that it
        # met.
        logits, expected = ours.logits(ours(tokens)), copy.deepcopy(theirs)(tokens).logits
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    reference = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    check_the_same(ours, theirs, ours.loss(inputs, labels, torch.ones(labels.shape)), reference)


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForMaskedLM"])
def test_bert_gives_the_losses_and_gradients_of_transformers(name):
    config = {**LLAMA, "hidden_act": "gelu_new", "initializer_range": 0.1}
    config.pop("num_key_value_heads")
    ours, theirs = carried_over(transformers.BertConfig(**config), getattr(transformers, name))
    # theirs gives token 0 no gradient
    tokens, labels, types = random((3, T), low=1), random((3, T), seed=2), random((3, T), high=2)
    present = torch.arange(T) < torch.tensor([[T], [9], [20]])
    asked = (random((3, T), high=3, seed=3) == 0) & present
    swapped = torch.tensor([0, 1, 1])
    output = theirs(input_ids=tokens, attention_mask=present.long(), token_type_ids=types)
    logits = output.prediction_logits if name == "BertForPreTraining" else output.logits
    reference = F.cross_entropy(
        logits.flatten(0, 1), labels.masked_fill(~asked, -100).flatten(), reduction="sum"
    )
    with torch.no_grad():
        hidden = ours(tokens, present, types)
        assert (ours.logits(hidden) - logits)[present].abs().max() <= TOLERANCE * logits.abs().max()
    if name == "BertForPreTraining":
        order = F.cross_entropy(output.seq_relationship_logits, swapped, reduction="none")
        reference = reference + (order * asked.sum(1)).sum()
    loss = ours.loss(tokens, labels, asked.float(), token_types=types, padding_mask=present, swapped=swapped)
    check_the_same(ours, theirs, loss, reference)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5_gives_the_logits_and_gradients_of_transformers(version):
    new = version == "1.1"
    config = transformers.T5Config(
        **T5, feed_forward_proj="gated-gelu" if new else "relu", tie_word_embeddings=not new
    )
    ours, theirs = carried_over(config, UntiedT5 if new else transformers.T5ForConditionalGeneration)
    assert (ours.output is not None) == new
    source, tokens, labels = random((3, T)), random((3, 17), seed=2), random((3, 17), seed=3)
    present = torch.arange(T) < torch.tensor([[T], [9], [20]])
    asked = torch.arange(17) < torch.tensor([[17], [12], [3]])
    logits = theirs(input_ids=source, attention_mask=present.long(), decoder_input_ids=tokens).logits
    with torch.no_grad():
        assert (
            ours.logits(ours(tokens, source, present)) - logits
        ).abs().max() <= TOLERANCE * logits.abs().max()
    reference = F.cross_entropy(
        logits.flatten(0, 1), labels.masked_fill(~asked, -100).flatten(), reduction="sum"
    )
    check_the_same(
        ours,
        theirs,
        ours.loss(tokens, labels, asked.float(), encoder_tokens=source, padding_mask=present),
        reference,
    )


class UntiedT5(transformers.T5ForConditionalGeneration):
    """What transformers makes of a T5 v1.1 checkpoint, which has a head of its own; a new model it ties
    regardless.
    """

    def __init__(self, config):
        super().__init__(config)
        self.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model))


@pytest.mark.parametrize("name", [*DECODERS, "bert", "t5"])
def test_settings_written_are_read_by_transformers_and_come_back(name):
    others = {"bert": transformers.BertConfig(), "t5": transformers.T5Config(**T5)}
    shape = config_from_hf({**others, **DECODERS}[name].to_dict(), "config.json")
    architecture, written = config_to_hf(shape)
    written.pop("model_type")
    theirs = transformers.AutoConfig.for_model(architecture, **written)
    assert (
        dataclasses.replace(
            config_from_hf(theirs.to_dict(), "config.json"), init_method_std=shape.init_method_std
        )
        == shape
    )


def test_rows_that_pad_the_vocabulary_are_added_and_taken_off():
    shape = dataclasses.replace(
        config_from_hf(DECODERS["llama"].to_dict(), "config.json"), make_vocab_size_divisible_by=16
    )
    held = {
        name: p.detach() for name, p in transformers.LlamaForCausalLM(DECODERS["llama"]).named_parameters()
    }
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build_model(shape).named_parameters()}
    ours = dict(weights_from_hf("llama", shapes, shape, held, held.__getitem__, "here"))
    assert ours["output.weight"].shape == (64, 32)
    assert (ours["output.weight"][V:] == 0).all()
    assert torch.equal(
        dict(weights_to_hf("llama", ours.items(), shape))["lm_head.weight"], held["lm_head.weight"]
    )


def test_names_without_the_body_s_prefix_are_found():
    held = {
        name.removeprefix("transformer."): p.detach()
        for name, p in transformers.GPT2LMHeadModel(DECODERS["gpt2"]).named_parameters()
    }
    shape = config_from_hf(DECODERS["gpt2"].to_dict(), "config.json")
    shapes = {"embedding.weight": held["wte.weight"].shape}
    assert torch.equal(
        dict(weights_from_hf("gpt2", shapes, shape, held, held.__getitem__, "here"))["embedding.weight"],
        held["wte.weight"],
    )
    with pytest.raises(
        UserError, match=r"^here: has no weight transformer.wpe.weight; give a whole gpt2 model's directory"
    ):
        list(weights_from_hf("gpt2", {"positions.weight": (64, 32)}, shape, {}, {}.__getitem__, "here"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "config.json: model_type is 'mamba'; only gpt2, gpt_bigcode, llama"),
        ({"mlp_bias": True}, "config.json: mlp_bias is True; only False can be loaded as llama"),
        ({"hidden_act": "relu"}, "config.json: hidden_act is 'relu'; only 'silu' or"),
        ({"num_hidden_layers": None}, "config.json: has no num_hidden_layers; give a model's config.json"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "config.json: partial_rotary_factor is 0.5; only models that rotate all channels",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "model.rope_scaling has rope_type 'longrope'; use linear, dynamic, llama3, yarn",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
            "config.json: max_window_layers is 1: some layers have a window",
        ),
    ],
)
def test_a_model_that_is_not_ours_is_refused_with_the_reason(change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**DECODERS["llama"].to_dict(), **change}, "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "swiglu"}, "its gpt2 is the nearest, with activation = gelu_tanh instead of swiglu"),
        (
            {"num_query_groups": 2},
            "its gpt_bigcode is the nearest, with num_query_groups = 1 instead of 2|num_query_groups",
        ),
        (
            {"position_embedding_type": "rope"},
            "its llama is the nearest, with normalization = RMSNorm instead of LayerNorm",
        ),
        (
            {"family": "bert"},
            "its bert is the nearest, with post_norm = True instead of False; it cannot be exported",
        ),
    ],
)
def test_a_model_that_hugging_face_does_not_have_is_not_exported(settings, message):
    shape = resolve(
        ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, **settings),
        vocab_size=V,
        seq_length=T,
    )
    with pytest.raises(UserError, match=message):
        config_to_hf(shape)
