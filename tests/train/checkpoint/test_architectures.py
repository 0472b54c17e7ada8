"""Small random models of transformers, converted by our tables: the same logits and gradients, and the same
weights when converted back.
"""

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import DECODERS, IN_FILES, LLAMA, MODELS, TOLERANCE, T, V
from mt.train.checkpoint.architectures import ARCHITECTURES, weights_from_hf, weights_to_hf
from mt.train.checkpoint.hf_settings import config_from_hf
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")
EAGER = {"attn_implementation": "eager", "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
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


def random(shape, high=V, low=0, seed=1):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def named_parameters(model):
    """By the names that they have in files."""
    renamed = IN_FILES.get(model.config.model_type, ("", ""))
    return {name.replace(*renamed): parameter for name, parameter in model.named_parameters()}


def converted(config, kind):
    """(ours, theirs): a random model of transformers, and our model with its weights.

    Norm weights and biases are random too, so that swapping two of them is noticed.
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
    weights = {name: parameter.detach() for name, parameter in named_parameters(theirs).items()}
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    ours.load_state_dict(
        dict(
            weights_from_hf(
                config.model_type, shapes, shape, weights, weights.__getitem__, "model.safetensors"
            )
        )
    )
    return ours, theirs


def check_the_same(ours, theirs, our_loss, their_loss):
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-6, atol=0)
    our_loss.backward()
    their_loss.backward()
    name = theirs.config.model_type
    found = dict(weights_to_hf(name, [(n, p.grad) for n, p in ours.named_parameters()], ours.config))
    expected = {n: p.grad for n, p in named_parameters(theirs).items() if p.grad is not None}
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for n, gradient in expected.items():  # the gradient of a key bias is 0 except for rounding
        assert (found[n] - gradient).norm() <= TOLERANCE * max(gradient.norm(), 1e-3 * whole), n
    weights = named_parameters(theirs)
    back = dict(weights_to_hf(name, ours.named_parameters(), ours.config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[n], weights[n]) for n in weights)


def test_every_architecture_goes_through_directories_and_is_documented():
    """An architecture is added in three places; this names the one that was forgotten."""
    assert {name.split()[0] for name in MODELS} == set(ARCHITECTURES)
    page = (Path(__file__).parents[3] / "docs" / "conversion.md").read_text(encoding="utf-8")
    table = page.split("| `model_type` | models |")[1].split("\n\n")[0]
    first_column = " ".join(re.findall(r"^\|([^|]*)\|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_column)) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_the_logits_and_gradients_of_transformers(name):
    config = DECODERS[name]
    ours, theirs = converted(config, getattr(transformers, ARCHITECTURES[config.model_type].loaded_by))
    tokens = random((3, T + 1))
    with torch.no_grad():
        # A copy of the model: with dynamic RoPE, transformers stores the longest sequence length so far.
        logits, expected = ours.logits(ours(tokens)), copy.deepcopy(theirs)(tokens).logits
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    reference = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    check_the_same(ours, theirs, ours.loss(inputs, labels, torch.ones(labels.shape)), reference)


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForMaskedLM"])
def test_bert_gives_the_losses_and_gradients_of_transformers(name):
    config = {**LLAMA, "hidden_act": "gelu_new", "initializer_range": 0.1}
    config.pop("num_key_value_heads")
    ours, theirs = converted(transformers.BertConfig(**config), getattr(transformers, name))
    # no token 0: transformers gives it no gradient
    tokens, labels, types = random((3, T), low=1), random((3, T), seed=2), random((3, T), high=2)
    present = torch.arange(T) < torch.tensor([[T], [9], [20]])
    loss_mask = (random((3, T), high=3, seed=3) == 0) & present
    swapped = torch.tensor([0, 1, 1])
    output = theirs(input_ids=tokens, attention_mask=present.long(), token_type_ids=types)
    logits = output.prediction_logits if name == "BertForPreTraining" else output.logits
    reference = F.cross_entropy(
        logits.flatten(0, 1), labels.masked_fill(~loss_mask, -100).flatten(), reduction="sum"
    )
    with torch.no_grad():
        hidden = ours(tokens, present, types)
        assert (ours.logits(hidden) - logits)[present].abs().max() <= TOLERANCE * logits.abs().max()
    if name == "BertForPreTraining":
        order = F.cross_entropy(output.seq_relationship_logits, swapped, reduction="none")
        reference = reference + (order * loss_mask.sum(1)).sum()
    loss = ours.loss(
        tokens, labels, loss_mask.float(), token_types=types, padding_mask=present, swapped=swapped
    )
    check_the_same(ours, theirs, loss, reference)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5_gives_the_logits_and_gradients_of_transformers(version):
    new = version == "1.1"
    config = transformers.T5Config(
        **T5, feed_forward_proj="gated-gelu" if new else "relu", tie_word_embeddings=not new
    )
    ours, theirs = converted(config, UntiedT5 if new else transformers.T5ForConditionalGeneration)
    assert (ours.output is not None) == new
    source, tokens, labels = random((3, T)), random((3, 17), seed=2), random((3, 17), seed=3)
    present = torch.arange(T) < torch.tensor([[T], [9], [20]])
    loss_mask = torch.arange(17) < torch.tensor([[17], [12], [3]])
    logits = theirs(input_ids=source, attention_mask=present.long(), decoder_input_ids=tokens).logits
    with torch.no_grad():
        assert (
            ours.logits(ours(tokens, source, present)) - logits
        ).abs().max() <= TOLERANCE * logits.abs().max()
    reference = F.cross_entropy(
        logits.flatten(0, 1), labels.masked_fill(~loss_mask, -100).flatten(), reduction="sum"
    )
    check_the_same(
        ours,
        theirs,
        ours.loss(tokens, labels, loss_mask.float(), encoder_tokens=source, padding_mask=present),
        reference,
    )


class UntiedT5(transformers.T5ForConditionalGeneration):
    """T5 v1.1 with an lm_head of its own, as transformers loads one; a new model of transformers is tied."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model))


def test_rows_that_pad_the_vocabulary_are_added_and_removed():
    shape = dataclasses.replace(
        config_from_hf(DECODERS["llama"].to_dict(), "config.json"), make_vocab_size_divisible_by=16
    )
    weights = {
        name: p.detach() for name, p in transformers.LlamaForCausalLM(DECODERS["llama"]).named_parameters()
    }
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build_model(shape).named_parameters()}
    ours = dict(weights_from_hf("llama", shapes, shape, weights, weights.__getitem__, "here"))
    assert ours["output.weight"].shape == (64, 32)
    assert (ours["output.weight"][V:] == 0).all()
    assert torch.equal(
        dict(weights_to_hf("llama", ours.items(), shape))["lm_head.weight"], weights["lm_head.weight"]
    )


def test_names_without_the_base_prefix_are_found():
    weights = {
        name.removeprefix("transformer."): p.detach()
        for name, p in transformers.GPT2LMHeadModel(DECODERS["gpt2"]).named_parameters()
    }
    shape = config_from_hf(DECODERS["gpt2"].to_dict(), "config.json")
    shapes = {"embedding.weight": weights["wte.weight"].shape}
    assert torch.equal(
        dict(weights_from_hf("gpt2", shapes, shape, weights, weights.__getitem__, "here"))[
            "embedding.weight"
        ],
        weights["wte.weight"],
    )
    with pytest.raises(
        UserError, match=r"^here: has no weight transformer.wpe.weight; give a whole gpt2 model's directory"
    ):
        list(weights_from_hf("gpt2", {"positions.weight": (64, 32)}, shape, {}, {}.__getitem__, "here"))
