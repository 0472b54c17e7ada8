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
    loader_flags,
    model_config,
)

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
