import resource

import pytest

from mt.core.config import UserError
from mt.train.model.config import ModelConfig, expert_layers, resolve
from mt.train.model.decoder_blocks import layer_kinds
from mt.train.model.family import build_model
from mt.train.model.moe import (
    MoE,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_size": 768, "num_attention_heads": 10},
            r"num_attention_heads = 10 does not divide model.hidden_size = 768; use 4, 6, 8 or 12",
        ),
        (
            {"num_query_groups": 5},
            "num_query_groups = 5 does not divide model.num_attention_heads = 12; use 2, 3, 4 or 6",
        ),
        (
            {"hidden_size": 7, "num_attention_heads": 8},
            r"num_attention_heads = 8 does not divide model.hidden_size = 7; use 1 or 7",
        ),
        (
            {"hidden_size": 36, "num_attention_heads": 12, "position_embedding_type": "rope"},
            "rope needs an even number of rotated channels a head, not 3",
        ),
        ({"hidden_dropout": 1.0}, "hidden_dropout = 1.0 must be at least 0 and below 1"),
        ({"num_layers": 0}, "num_layers = 0 must be at least 1"),
        ({"window_size": 0}, "window_size = 0 must be at least 1"),
        (
            {"position_embedding_type": "rope", "rope_scaling": {"rope_type": "su"}},
            "rope_scaling has rope_type 'su'; use linear, dynamic, llama3, yarn",
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
                "window_size limits causal attention to the last tokens, and the attention of model.family ="
                " t5 is bidirectional; leave it out"
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
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings)


def shape(**settings) -> ModelConfig:
    base = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_experts": 4,
        "activation": "swiglu",
        "moe_ffn_hidden_size": 24,
        "init_method_std": 0.3,
    }
    return resolve(ModelConfig(**{**base, **settings}), vocab_size=61, seq_length=24)


@pytest.mark.parametrize(
    ("frequency", "layers"),
    [("1", "EEEE"), ("2", "E-E-"), ("[0,1]*2", "-E-E"), ("([0]*1+[1]*3)", "-EEE"), ("2*[1, 0]", "E-E-")],
)
def test_moe_layer_freq_is_read_as_megatron_reads_it(frequency, layers):
    assert ["E" if e else "-" for e in expert_layers(frequency, 4)] == list(layers)
    config = shape(num_layers=4, moe_layer_freq=frequency)
    assert layer_kinds(config) == ["*" + symbol for symbol in layers]
    assert ["E" if isinstance(layer.ffn, MoE) else "-" for layer in build_model(config).layers] == list(
        layers
    )


@pytest.mark.parametrize(
    ("frequency", "told"),
    [
        ("([1]*10**9)", "whole number"),
        ("[1]*100000*100000*100000", "list of more than 100,000"),
        ("+".join(["[1]*100000"] * 500), "list of more than 100,000"),
        ("[" * 2_000_000, "whole number"),
        ("9" * 5000, "whole number"),
        ("\N{SUPERSCRIPT TWO}", "whole number"),
    ],
)
def test_a_list_of_layers_of_any_length_costs_no_memory(frequency, told):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for settings in ({"num_experts": 2, "moe_layer_freq": frequency}, {"window_attn_skip_freq": frequency}):
        with pytest.raises(UserError, match=told) as caught:
            ModelConfig(num_layers=4, window_size=8, **settings)
        assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("name", ["num_layers", "decoder_num_layers", "retro_encoder_layers", "num_experts"])
def test_counts_have_a_limit_before_anything_is_made_for_each(name):
    with pytest.raises(UserError, match=f"model.{name} = 1000000000 must be at most 100,000"):
        ModelConfig(**{"num_layers": 2, name: 10**9})
    with pytest.raises(UserError, match="has 100,001 symbols; it may have 100,000"):
        ModelConfig(hybrid_override_pattern="M" * 100_001)


def test_top_1_of_several_experts_with_a_softmax_after_the_choice_is_refused():
    assert ModelConfig(num_experts=1, moe_router_topk=1).num_experts == 1
    with pytest.raises(
        UserError, match="moe_router_topk = 1: a softmax over the one chosen expert is always 1"
    ):
        ModelConfig(num_experts=2, moe_router_topk=1)
