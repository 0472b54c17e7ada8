"""Hugging Face's config.json to our settings and back, compared with transformers' configurations."""

import dataclasses
import typing

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError

from mt.commands.configure import configure
from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import (
    DECODERS,
    LLAMA,
    MODELS,
    T5,
    T,
    V,
    random_model,
    write,
)
from mt.train.checkpoint.architectures import ARCHITECTURES
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.loop import TrainConfig
from mt.train.model.config import ModelConfig, resolve

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def source(tmp_path):
    return write(random_model("llama"), tmp_path / "theirs", max_shard_size="20KB")


@pytest.mark.parametrize("name", [*DECODERS, "bert", "t5"])
def test_written_settings_are_read_by_transformers_and_by_us(name):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "config.json: model_type is 'mamba'; only gpt2, gpt_bigcode, llama"),
        ({"mlp_bias": True}, "config.json: mlp_bias is True and attention_bias is not; only biases in"),
        ({"alibi": True}, "config.json: alibi is True, which no llama of mt has; remove it if the model is"),
        ({"hidden_act": "relu"}, "config.json: hidden_act is 'relu'; only 'silu' or"),
        ({"num_hidden_layers": None}, "config.json: has no num_hidden_layers; give a model's config.json"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "config.json: partial_rotary_factor is 0.5; only models that rotate all channels",
        ),
        (
            {"rope_parameters": {"rope_type": "proportional"}},
            "model.rope_scaling has rope_type 'proportional'; use linear, dynamic, llama3, yarn, longrope",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked_attention"] * 2},
            "config.json: layer_types has 'chunked_attention'; only one of full_attention or",
        ),
    ],
)
def test_an_unsupported_model_is_refused_with_the_reason(change, message):
    raw = {**DECODERS["llama"].to_dict(), **change}
    if "model_type" in change:  # which has no such key
        del raw["mlp_bias"]
    with pytest.raises(UserError, match=message):
        config_from_hf(raw, "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "swiglu"}, "its gpt2 is the nearest, with activation = gelu_tanh instead of swiglu"),
        (
            {"num_query_groups": 2},
            "its gpt_bigcode is the nearest, with num_query_groups = 1 instead of 2|num_query_groups",
        ),
        (
            {"position_embedding_type": "rope", "activation": "swiglu"},
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


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "mamba2",
            {"time_step_limit": [0.0, 0.5]},
            r"time_step_limit is \[0.0, 0.5\]; only models whose time steps have no limit",
        ),
        (
            "mamba2",
            {"expand": 4},
            "expand is 4, which times hidden_size is not the 64 of num_heads x head_dim",
        ),
        ("mamba2", {"conv_kernel": 3}, "conv_kernel is 3; only 4 can be loaded as mamba2"),
        ("mixtral", {}, None),
    ],
)
def test_settings_of_mixtures_and_mambas_are_checked(kind, settings, message):
    raw = {**MODELS[kind]().config.to_dict(), **settings}
    if message is None:
        del raw["num_local_experts"]
        assert config_from_hf(raw, "config.json").num_experts == 8
        return
    with pytest.raises(UserError, match=message):
        config_from_hf(raw, "config.json")


def test_a_settings_file_may_name_the_directory_and_override_it(source):
    tree = {
        "hf": str(source),
        "model": {"num_layers": 1},
        "data_path": ["x"],
        "tokenizer_type": "NullTokenizer",
        "tokenizer_vocab_size": 9,
        "seq_length": 16,
        "lr": 1,
        "train_iters": 1,
        "save": "y",
    }
    model = configure(TrainConfig, [("settings.yaml", tree)]).model
    assert (model.num_layers, model.hidden_size, model.num_query_groups, model.activation) == (
        1,
        32,
        2,
        "swiglu",
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3", "gpt_neox"])
def test_a_value_of_another_type_is_refused_or_means_what_transformers_takes_it_for(name):
    raw = DECODERS[name].to_dict()
    kind = raw.pop("model_type")
    architecture = ARCHITECTURES[kind]
    kinds = typing.get_type_hints(ModelConfig)
    accepted = 0
    for ours, key in architecture.keys.items():
        for value in (None, True, "x", "7", [], {}, -1, 2, 2.5, 1e30):
            changed = {**raw, key: value}
            try:
                found = getattr(config_from_hf({**changed, "model_type": kind}, "config.json"), ours)
            except UserError:
                continue
            if kinds[ours] is float and isinstance(value, int):
                continue  # transformers wants 2.0
            try:
                theirs = getattr(transformers.AutoConfig.for_model(kind, **changed), key)
            except StrictDataclassError:
                # null, which only transformers 4 takes for some keys; a width that the heads do not divide
                assert value is None or key in ("hidden_size", "initializer_range"), (key, value)
                continue
            if theirs is not None:  # they compute the default elsewhere
                assert found == theirs, (key, value)
                accepted += 1
    assert accepted > 4


@pytest.mark.parametrize("window", [None, 7])
def test_a_mistral_has_the_window_that_its_settings_say_or_none(window):
    """Mistral 7B v0.2 and later say null: attention to everything before, not v0.1's window."""
    raw = transformers.MistralConfig(**LLAMA, sliding_window=window).to_dict()
    assert raw["sliding_window"] == window
    assert config_from_hf(raw, "config.json").window_size == window
    del raw["sliding_window"]
    assert config_from_hf(raw, "config.json").window_size == transformers.MistralConfig().sliding_window
