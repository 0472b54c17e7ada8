"""The tables of foreign names, compared with the models of the other libraries and with our models."""

import re

import pytest
import torch
import transformers

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import IN_FILES
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import FAMILIES, build_model
from mt.train.model.foreign_names import gpt_architecture, moe_layer_freq

ARCHITECTURES = {
    name: (family, architecture)
    for family, entry in FAMILIES.items()
    for name, architecture in entry.huggingface.items()
}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "n_embd": 16,
    "d_model": 16,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "n_inner": 32,
    "d_ff": 32,
    "d_kv": 4,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "n_positions": 32,
    "pad_token_id": 0,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_groups": 2,
    "state_size": 8,
    "expand": 2,
}


def library_model(name):
    kind = transformers.CONFIG_MAPPING[name]
    known = kind().to_dict()
    settings = {key: value for key, value in SMALL.items() if key in known}
    if name == "mamba2":
        settings |= {"num_heads": 8, "head_dim": 4}
    with torch.device("meta"):
        return getattr(transformers, ARCHITECTURES[name][1].loaded_by)(kind(**settings))


# Without mixtures: transformers 5 stacks experts in memory. Tests of loading cover their names in files.
@pytest.mark.parametrize(
    "name", [name for name, (_, a) in ARCHITECTURES.items() if "num_experts" not in a.keys]
)
def test_the_table_has_every_weight_of_a_model_of_transformers(name):
    names = ARCHITECTURES[name][1].weights
    known = set(names.top.values())
    blocks = [stack for stack, _ in names.stacks.values()]
    for _, block in names.stacks.values():
        known |= {n for value in block.values() for n in ([value] if isinstance(value, str) else value)}
    known = {re.escape(n).replace(r"\{expert\}", r"\d+") for n in known}
    known |= {n.removesuffix(suffix) for n in known for suffix in names.gated_suffix.values()}
    unknown = []
    for full in library_model(name).state_dict():
        inner = full = full.replace(*IN_FILES.get(name, ("", "")))
        for stack in blocks:
            inner = re.sub(rf"^{re.escape(stack)}\.\d+\.", "", inner)
        forms = [rf"{n}(?:\.\w+)?" for n in known]
        if not any(re.fullmatch(form, name) for form in forms for name in (full, inner)):
            unknown.append(full)
    # Copies of other weights, or constants; transformers lists them and does not load them.
    allowed = re.compile(
        r"embed_tokens|rotary_emb|position_ids|masked_bias|attn\.bias|cls\.predictions\.decoder"
    )
    assert not [n for n in unknown if not allowed.search(n)]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_keys_exist_in_the_librarys_configuration(name):
    architecture = ARCHITECTURES[name][1]
    known = transformers.CONFIG_MAPPING[name]().to_dict()
    attributes = set(known) | set(transformers.CONFIG_MAPPING[name].attribute_map)
    keys = set(architecture.keys.values()) | set(architecture.absent)
    optional = {"head_dim", "attention_dropout", "mlp_bias", "pretraining_tp"}
    assert keys - optional <= attributes
    fields = set(ModelConfig.__dataclass_fields__)
    assert set(architecture.keys) | set(architecture.always) | set(architecture.without) <= fields


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_defaults_of_absent_keys_are_those_of_the_librarys_configuration(name):
    known = transformers.CONFIG_MAPPING[name]().to_dict()
    for key, value in ARCHITECTURES[name][1].absent.items():
        if known.get(key) is not None and not (name == "gpt_bigcode" and key == "layer_norm_epsilon"):
            assert known[key] == value or (name, key) in LIBRARY_DIFFERS, (key, known[key], value)


# Here an absent key of a published config.json does not mean the default of the Python class.
LIBRARY_DIFFERS = {("gpt2", "n_inner")}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "gpt2"),
        ({"num_query_groups": 1}, "gpt_bigcode"),
        ({"position_embedding_type": "rope"}, "llama"),
        ({"position_embedding_type": "rope", "window_size": 8}, "mistral"),
        ({"position_embedding_type": "rope", "add_qkv_bias": True}, "qwen2"),
        ({"position_embedding_type": "rope", "qk_layernorm": True}, "qwen3"),
        ({"position_embedding_type": "rope", "num_experts": 4}, "mixtral"),
        ({"position_embedding_type": "rope", "num_experts": 4, "qk_layernorm": True}, "qwen3_moe"),
        (
            {
                "position_embedding_type": "rope",
                "num_experts": 4,
                "moe_shared_expert_intermediate_size": 8,
            },
            "qwen2_moe",
        ),
        ({"hybrid_override_pattern": "MM"}, "mamba2"),
    ],
)
def test_a_model_is_exported_as_the_nearest_architecture(settings, expected):
    config = resolve(ModelConfig(**settings), vocab_size=64, seq_length=16)
    assert gpt_architecture(config) == expected


def test_a_hybrid_has_no_architecture():
    config = resolve(ModelConfig(hybrid_override_pattern="M*"), vocab_size=64, seq_length=16)
    with pytest.raises(UserError, match=r"Hugging Face has no such model: hybrid_override_pattern = M\*"):
        gpt_architecture(config)


def test_layers_with_experts_are_written_in_one_form():
    assert moe_layer_freq([True, True]) == "1"
    assert moe_layer_freq([False, True, True]) == "[0,1,1]"


def test_the_table_of_megatrons_names_names_modules_of_our_gpt():
    def names_in(**settings):
        config = resolve(ModelConfig(num_layers=1, **settings), vocab_size=64, seq_length=16)
        with torch.device("meta"):
            model = build_model(config)
        return {name for name, _ in [*model.named_modules(), *model.named_parameters()]}

    def in_block(table):
        return {f"layers.0.{name}" for name in table}

    dense = names_in(qk_layernorm=True, untie_embeddings_and_output_weights=True)
    experts = names_in(
        num_experts=2, moe_shared_expert_intermediate_size=8, moe_shared_expert_gate=True, qk_layernorm=True
    )
    mamba = names_in(hybrid_override_pattern="M")
    latent = {"multi_latent_attention": True, "position_embedding_type": "rope", "qk_layernorm": True}
    latents = names_in(**latent) | names_in(q_lora_rank=8, **latent)
    names = FAMILIES["gpt"].megatron
    assert set(names.top) <= dense
    assert in_block(names.layer) <= dense | experts | latents
    assert in_block(names.parameters) <= experts | mamba
    assert in_block(names.mamba_layer) <= mamba
