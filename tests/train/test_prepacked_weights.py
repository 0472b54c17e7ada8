"""Models with prepacked weights, compared with the same models without."""

import copy

import pytest
import torch

from mt.train.model.bert import Bert
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.prepacked_weights import PrepackedLinear, prepacking_works, prepare_for_inference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not prepacking_works(), reason="this build of torch has no prepacked products"),
]
V, T = 60, 12


def model_of(family: str, **settings):
    shape = ModelConfig(family=family, num_layers=2, hidden_size=32, num_attention_heads=4, **settings)
    model = build_model(resolve(shape, vocab_size=V, seq_length=T))
    initialize(model, 3)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("rows", [None, 24])
@pytest.mark.parametrize("bias", [False, True])
def test_a_prepacked_linear_layer_gives_the_product_of_float64(rows, bias):
    generator = torch.Generator().manual_seed(0)
    x, weight, b = (torch.randn(shape, generator=generator) for shape in ((2, 3, 48), (40, 48), (40,)))
    found = PrepackedLinear(weight, b if bias else None, rows)(x)
    expected = x.double() @ weight.double().T + (b.double() if bias else 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "swiglu"])
@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_hidden_states_are_the_same_with_every_activation(family, activation):
    model = model_of(family, activation=activation)
    exact, tokens = copy.deepcopy(model), torch.arange(2 * T).view(2, T)
    assert prepare_for_inference(model) is model
    torch.testing.assert_close(model(tokens), exact(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("untied", [False, True])
def test_logits_are_the_same_without_the_padding_of_the_vocabulary(untied):
    model = model_of("gpt", untie_embeddings_and_output_weights=untied, make_vocab_size_divisible_by=64)
    exact, hidden = copy.deepcopy(model), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    found = prepare_for_inference(model).logits(hidden)
    assert found.shape == (5, V)
    torch.testing.assert_close(found, exact.logits(hidden)[:, :V], rtol=1e-4, atol=1e-4)


def test_the_plain_copy_of_a_prepacked_matrix_is_freed():
    model = prepare_for_inference(model_of("gpt"))
    weight = model.layers[0].ffn.up.weight
    assert weight.shape == (128, 32)
    assert weight.untyped_storage().nbytes() == 4  # one number, expanded to the shape


def test_an_encoder_without_an_output_layer_has_no_logits():
    model = model_of("bert")
    assert isinstance(model, Bert)
    model.head = None
    prepare_for_inference(model)
    assert "logits" not in vars(model)
