"""Megatron-LM's settings: each field of megatron-core is used, refused or harmless, and flags are told."""

import argparse
import dataclasses

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import random_model, write
from mt.train.checkpoint.commands import ConvertConfig, convert
from mt.train.checkpoint.megatron_arguments import (
    HARMLESS,
    REQUIRED,
    ModelArguments,
    check_export,
    loader_flags,
    model_config,
)
from mt.train.model.yarn import latent_scaling

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = "model_optim_rng.pt"


def test_the_flags_that_the_file_does_not_carry_are_said(tmp_path, capsys):
    write(random_model("mixtral"), tmp_path / "hf")
    convert(ConvertConfig(source=str(tmp_path / "hf"), output=str(tmp_path / "out"), format="torch"))
    said = capsys.readouterr().err
    assert "--use-checkpoint-args --finetune" in said
    assert "--rotary-base 10000" in said or "--rotary-base 1000000" in said
    assert "--moe-router-topk 2" in said
    config = model_config(
        argparse.Namespace(
            num_layers=2,
            hidden_size=32,
            num_attention_heads=4,
            padded_vocab_size=64,
            position_embedding_type="rope",
            use_rope_scaling=True,
            rope_scaling_factor=32.0,
            bias_gelu_fusion=False,
            qk_layernorm=True,
        ),
        "x",
    )
    flags = loader_flags(config)
    assert {"--use-rope-scaling --rope-scaling-factor 32", "--no-bias-gelu-fusion", "--qk-layernorm"} <= set(
        flags
    )


def test_every_field_of_megatron_cores_configurations_is_used_or_refused_or_harmless(megatron, tmp_path):
    """Each is altered: the model is refused, or the settings change, or there is a reason why not."""
    pytest.importorskip("megatron.core", reason="megatron-core is the oracle")
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    fields = {field.name: field.default for field in dataclasses.fields(MLATransformerConfig)}
    file = megatron / "llama" / "iter_0000007" / "mp_rank_00" / FILE
    args = vars(torch.load(file, weights_only=False)["args"])
    before = model_config(argparse.Namespace(**args), "x")
    assert not set(ModelArguments.__annotations__) & set(HARMLESS)
    for name, default in fields.items():
        if name in HARMLESS:
            assert HARMLESS[name]
            continue
        assert name in REQUIRED or name in ModelArguments.__annotations__, name
        if name in REQUIRED:
            value = True if isinstance(default, bool) else "other" if isinstance(default, str) else 7
            with pytest.raises(UserError, match=f"{name} is "):
                model_config(argparse.Namespace(**{**args, name: value}), "x")
    for name in ModelArguments.__annotations__:
        with pytest.raises(UserError, match=name):
            model_config(argparse.Namespace(**{**args, name: {"a": 1}}), "x")
    linear = model_config(argparse.Namespace(**{**args, "rotary_seq_len_interpolation_factor": 4}), "x")
    assert (before.rope_scaling, linear.rope_scaling) == (None, {"rope_type": "linear", "factor": 4.0})
    for name, value in {"softmax_scale": 0.5, "use_mup": True}.items():
        with pytest.raises(UserError, match=f"{name} is "):
            model_config(argparse.Namespace(**{**args, name: value}), "x")


LATENT = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "padded_vocab_size": 64, "swiglu": True,
    "add_bias_linear": False, "multi_latent_attention": True, "position_embedding_type": "rope",
    "normalization": "RMSNorm", "qk_layernorm": True, "qk_head_dim": 6, "qk_pos_emb_head_dim": 4,
    "bias_gelu_fusion": False, "rotary_base": 10000,
}  # fmt: skip


def latent(**changes):
    return model_config(argparse.Namespace(**{**LATENT, **changes}), "x")


def test_multi_latent_attention_has_megatrons_defaults_and_ignores_what_megatron_ignores():
    config = latent(qk_head_dim=None, qk_pos_emb_head_dim=None, kv_channels=5, use_rope_scaling=True)
    sizes = config.q_lora_rank, config.kv_lora_rank, config.qk_head_dim, config.v_head_dim, config.kv_channels
    assert sizes == (None, 32, 128, 128, 192)
    assert config.rope_scaling is None
    for change, message in (
        ({"hybrid_override_pattern": "**"}, "has multi_latent_attention and a pattern of layers"),
        ({"rope_type": "llama"}, "rope_type is 'llama'; only rope or yarn"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type is 'learned_absolute'"),
    ):
        with pytest.raises(UserError, match=message):
            latent(**change)


def test_latents_that_megatrons_flags_cannot_say_are_not_written():
    written = latent(rotary_scaling_factor=8.0, mscale_all_dim=0.5)
    assert loader_flags(written)[1:9] == [
        "--multi-latent-attention", "--kv-lora-rank 32", "--qk-head-dim 6", "--qk-pos-emb-head-dim 4",
        "--v-head-dim 128", "--rope-type yarn", "--rotary-scaling-factor 8.0", "--mscale 1.0",
    ]  # fmt: skip
    check_export(written, 4, 1, local=True)
    check_export(latent(kv_lora_rank=31), 2, 1, local=False)
    rule = r"does not divide model.kv_lora_rank \+ qk_pos_emb_head_dim = 35"
    with pytest.raises(UserError, match=rule):
        check_export(latent(kv_lora_rank=31), 2, 1, local=True)
    scaling = latent_scaling("yarn", 8.0, 1.0, 0.0, 10, {"original_max_position_embeddings": 4096})
    for change, message in (
        ({"rope_scaling": {**scaling["rope_scaling"], "beta_fast": 16}}, "rope_scaling = "),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling = "),
        ({"latent_layernorm_epsilon": 1e-6}, "latent_layernorm_epsilon = 1e-06; export it with --format hf"),
        ({"hybrid_override_pattern": "*-"}, "multi_latent_attention = True; export it with --format hf"),
        ({"add_attention_bias": True}, "add_attention_bias = True"),
    ):
        with pytest.raises(UserError, match=message):
            check_export(dataclasses.replace(written, **change), 1, 1, local=False)
