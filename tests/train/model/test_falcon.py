"""Falcon against transformers: config.json, caches, and what is refused."""

import json

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.model.small_models import assert_cached_tokens_are_those_of_one_pass
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model

transformers = pytest.importorskip("transformers")
FALCON_7B = {  # the config.json of tiiuae/falcon-7b, but for its sizes
    "alibi": False, "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bias": False,
    "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 32,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon", "multi_query": True,
    "new_decoder_architecture": False, "num_attention_heads": 4, "num_hidden_layers": 2,
    "parallel_attn": True, "vocab_size": 61,
}  # fmt: skip


def shape(**changes):
    settings = {
        "family": "falcon",
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "make_vocab_size_divisible_by": 1,
        **changes,
    }
    return resolve(ModelConfig(**settings), vocab_size=61, seq_length=32)


def test_the_published_config_of_falcon_7b_is_read():
    ours = config_from_hf(FALCON_7B, "config.json")
    assert (ours.num_query_groups, ours.parallel_norms, ours.ffn_hidden_size) == (1, 1, 128)
    assert not ours.untie_embeddings_and_output_weights
    theirs = transformers.FalconConfig.from_dict(FALCON_7B)
    assert config_from_hf(theirs.to_dict(), "config.json") == ours, "as transformers 5 writes it"


@pytest.mark.parametrize("norms", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_what_is_written_is_read_again_by_us_and_builds_the_same_model_of_transformers(norms, groups):
    config = shape(parallel_norms=norms, num_query_groups=groups)
    name, written = config_to_hf(config)
    again = config_from_hf(json.loads(json.dumps(written)), "config.json")
    assert (name, again.parallel_norms, again.num_query_groups) == ("falcon", norms, groups)
    with torch.device("meta"):
        theirs = transformers.FalconForCausalLM(transformers.FalconConfig.from_dict(written))
        ours = build_model(config)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(theirs) == count(ours)


@pytest.mark.parametrize("norms", [1, 2])
def test_cached_tokens_are_those_of_one_pass(norms):
    assert_cached_tokens_are_those_of_one_pass(build_model(shape(parallel_norms=norms)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_embedding_type": "learned"}, "does not fit model.family = falcon; use rope"),
        ({"parallel_norms": 3}, "model.parallel_norms = 3 must be 1 or 2"),
        (
            {"family": "gpt", "parallel_norms": 1},
            "model.parallel_norms is for model.family = falcon, not gpt",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        shape(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alibi": True}, "alibi is True; only False can be loaded as falcon"),
        ({"parallel_attn": False}, "parallel_attn is False and num_ln_in_parallel_attn is 1"),
        ({"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn is 2 without new_decoder_architecture"),
    ],
)
def test_another_model_of_that_name_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**FALCON_7B, **changes}, "config.json")
