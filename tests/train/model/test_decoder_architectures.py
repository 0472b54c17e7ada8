"""Gemma, OLMo 2, Phi-3, StarCoder 2 and Granite: caches, and rows beside longer ones.

tests/train/checkpoint/test_architectures.py compares their logits and gradients with transformers'.
"""

import pytest
import torch
import transformers

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import DECODERS, LLAMA
from mt.tests.train.model.small_models import assert_cached_tokens_are_those_of_one_pass, gpt, random_tokens
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.model.config import ModelConfig
from mt.train.model.decoder_architectures import DECODER_ARCHITECTURES
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", DECODER_ARCHITECTURES)
def test_cached_tokens_are_those_of_one_pass(name):
    assert_cached_tokens_are_those_of_one_pass(
        build_model(config_from_hf(DECODERS[name].to_dict(), "config.json"))
    )


ROPE = {"position_embedding_type": "rope", "normalization": "RMSNorm", "activation": "swiglu"}
SCALINGS = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {
        "rope_type": "longrope", "factor": 3.0, "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 5.0, 7.0, 9.0],
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_a_row_is_the_same_alone_and_beside_longer_rows(scaling):
    """Whatever the length of a text decides is decided for each row."""
    model = gpt(**ROPE, rope_scaling=scaling).eval()
    tokens, lengths = random_tokens(3, 20), torch.tensor([20, 5, 9])
    together = model(tokens, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0])


@torch.no_grad()
def test_a_text_says_when_it_outgrows_its_cache():
    """longrope then changes the states of all tokens."""
    model = gpt(**ROPE, rope_scaling=SCALINGS["longrope"]).eval()
    assert [n for n in range(20) if model.outgrows_cache(n)] == [9]
    tokens, cache = random_tokens(2, 12), model.new_cache(2, 12)
    model(tokens[:, :6], cache=cache)
    for end in range(7, 13):
        first = 0 if model.outgrows_cache(end) else end - 1
        positions = torch.arange(first, end).expand(2, -1)
        state = model(tokens[:, first:end], positions=positions, cache=cache)
        torch.testing.assert_close(state[:, -1], model(tokens[:, :end])[:, -1])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; only models"),
        ("gemma", {"hidden_activation": "relu"}, "hidden_activation is 'relu'; only 'gelu_pytorch_tanh'"),
        ("gemma3_text", {"rope_parameters": {"factor": 2.0}}, "rope_parameters has 'factor'; only a mapping"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_parameters has rope_type 'linear'; only",
        ),
        ("granite", {"mlp_bias": True}, "mlp_bias is True and attention_bias is not"),
    ],
)
def test_a_model_that_is_another_one_is_refused(name, change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**DECODERS[name].to_dict(), **change}, "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_attn_skip_freq": "2"}, "window_attn_skip_freq says which layers have a window; give"),
        ({"window_size": 4, "window_attn_skip_freq": "[1]"}, "is a list of 1, but there are 2 layers"),
        ({"rotary_local_base": 50.0}, "rotary_local_base is for layers that have a window"),
        ({"qk_layernorm_scope": "all_heads"}, "all_heads needs --qk-layernorm and --normalization RMSNorm"),
        ({"softmax_scale": 0.0}, "softmax_scale = 0.0 must be above 0"),
        ({"rotary_percent": 0.5}, "rotary_percent is for model.position_embedding_type = rope"),
        ({"retro_add_retriever": True, "num_layers": 6, "residual_multiplier": 0.5}, "Retro's layers do not"),
        (
            {"family": "falcon", "position_embedding_type": "rope", "softmax_scale": 1.0},
            "model.family = gpt,",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**{"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, **settings})


def test_windows_that_megatron_lms_rule_gives_are_exported_as_a_list():
    raw = transformers.Gemma2Config(**LLAMA, head_dim=8, sliding_window=5).to_dict()
    name, written = config_to_hf(config_from_hf(raw, "config.json"))
    assert (name, written["layer_types"]) == ("gemma2", raw["layer_types"])
