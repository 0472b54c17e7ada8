"""GPT-NeoX against transformers: config.json of both versions, partial rotation, caches, refused settings."""

import json

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.model.small_models import assert_cached_tokens_are_those_of_one_pass
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.positions import rotary_table, rotate

transformers = pytest.importorskip("transformers")
PYTHIA = {  # the config.json of EleutherAI/pythia-70m, with smaller sizes
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 64, "layer_norm_eps": 1e-05, "max_position_embeddings": 64, "num_attention_heads": 4,
    "num_hidden_layers": 2, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "use_parallel_residual": True, "vocab_size": 61, "initializer_range": 0.02, "torch_dtype": "float16",
}  # fmt: skip


def shape(**changes):
    settings = {
        "family": "gpt_neox",
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "make_vocab_size_divisible_by": 1,
        **changes,
    }
    return resolve(ModelConfig(**settings), vocab_size=61, seq_length=32)


def test_the_published_config_of_pythia_is_read_as_transformers_reads_it():
    ours = config_from_hf(PYTHIA, "config.json")
    theirs = transformers.GPTNeoXConfig.from_dict(PYTHIA)
    assert ours.rotary_percent == theirs.rope_parameters["partial_rotary_factor"] == 0.25
    assert ours.rotary_base == theirs.rope_parameters["rope_theta"]
    assert config_from_hf(theirs.to_dict(), "config.json") == ours, "the form that transformers 5 writes"


@pytest.mark.parametrize("percent", [0.25, 0.5, 1.0])
def test_a_written_config_is_read_by_us_and_by_transformers(percent):
    config = shape(rotary_percent=percent, untie_embeddings_and_output_weights=True)
    name, written = config_to_hf(config)
    again = config_from_hf(json.loads(json.dumps(written)), "config.json")
    assert (name, again.rotary_percent, again.untie_embeddings_and_output_weights) == (
        "gpt_neox",
        percent,
        True,
    )
    assert transformers.GPTNeoXConfig.from_dict(written).rope_parameters["partial_rotary_factor"] == percent


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_only_the_first_channels_are_rotated(channels):
    x, positions = torch.randn(2, 3, 5, 8), torch.arange(5)[None]
    cos, sin = (t[:, None] for t in rotary_table(positions, channels, 10000.0))
    y = rotate(x, cos, sin)
    assert torch.equal(y[..., channels:], x[..., channels:])
    torch.testing.assert_close(y[..., :channels], rotate(x[..., :channels], cos, sin))


def test_with_a_cache_the_hidden_states_are_those_of_one_pass():
    assert_cached_tokens_are_those_of_one_pass(build_model(shape()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_embedding_type": "learned"}, "does not fit model.family = gpt_neox; use rope"),
        ({"rotary_percent": 1.5}, "model.rotary_percent = 1.5 must be above 0 and at most 1"),
        ({"rotary_percent": 0.4}, "needs an even number of rotated channels a head, not 3"),
        ({"rotary_percent": 0.1}, "needs an even number of rotated channels a head, not 0"),
        ({"num_experts": 4}, "model.num_experts is for model.family = gpt, not gpt_neox"),
        ({"family": "falcon"}, "model.rotary_percent is for model.family = gpt or gpt_neox, not falcon"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        shape(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"use_parallel_residual": False},
            "use_parallel_residual is False; only True can be loaded as gpt_neox",
        ),
        ({"attention_bias": False}, "attention_bias is False; only True"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
    ],
)
def test_an_unsupported_gpt_neox_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**PYTHIA, **changes}, "config.json")
