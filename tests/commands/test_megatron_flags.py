"""Flags of Megatron-LM that mt names otherwise, or does not need."""

import subprocess
import sys

import pytest

from mt import cli
from mt.core.config import UserError


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The configurations that `mt train` is called with, where a pair p is; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    for suffix in ("bin", "idx"):
        (tmp_path / f"p.{suffix}").touch()
    loop = pytest.importorskip("mt.train.loop", reason="torch is not installed")
    configs = []

    def train(config: loop.TrainConfig) -> dict:
        configs.append(config)
        return {}

    monkeypatch.setattr(loop, "train", train)
    return configs


def test_flags_of_megatron_with_another_name_here_set_the_same_setting(trained, capsys):
    given = (
        "--family t5 --encoder-num-layers 3 --encoder-seq-length 64 --decoder-seq-length=32 --swiglu"
        " --disable-bias-linear --norm-epsilon 1e-6 --use-flash-attn --bert-no-binary-head"
        " --tokenizer-type ByteLevelTokenizer"
    )
    cli.call(("train",), [*given.split(), "--data-path", "p", "--train-iters", "1", "--save", "s"])
    (config,) = trained
    model = config.model
    assert (model.num_layers, config.data.seq_length, config.data.decoder_seq_length) == (3, 64, 32)
    assert (model.activation, model.add_bias_linear, model.layernorm_epsilon, model.bert_binary_head) == (
        "swiglu",
        False,
        1e-6,
        False,
    )
    assert (
        "--use-flash-attn is accepted and not needed: the fastest attention on this machine"
        in capsys.readouterr().err
    )


def test_flags_of_megatron_without_a_setting_here_are_accepted_with_a_reason(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "ab"}\n')
    flags = [
        "--input",
        tmp_path / "in.jsonl",
        "--output-prefix",
        tmp_path / "p",
        "--tokenizer-type",
        "ByteLevelTokenizer",
        "--workers",
        "1",
    ]
    command = [
        "data",
        "tokenize",
        "--partitions",
        "4",
        "--json-key",
        "body",
        "--keep-sequential-samples",
        *flags,
        "--pad-vocab-size",
        "--padded-vocab-size=512",
        "--workers-to-check",
        "16",
        "32",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "mt", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "p_body_document.bin").exists()
    lines = ended.stderr.splitlines()
    assert (
        lines[0] == "mt: --partitions is accepted and not needed: one pass with --workers processes needs no"
        " partitions"
    )
    assert sum("the model pads the vocabulary" in line for line in lines) == 1, "a reason is printed once"


def test_a_mapping_is_given_as_key_value_pairs(trained):
    given = ["--data-path", "p", "--train-iters", "1", "--save", "s", "--position-embedding-type", "rope"]
    given += ["--tokenizer-type", "ByteLevelTokenizer"]
    cli.call(("train",), [*given, "--rope-scaling", "rope_type=linear,factor=2"])
    cli.call(("train",), [*given, "--use-rope-scaling"])
    assert trained[0].model.rope_scaling == {"rope_type": "linear", "factor": 2}
    # Megatron-LM's --use-rope-scaling: RotaryEmbedding._apply_scaling
    assert trained[1].model.rope_scaling == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with pytest.raises(
        UserError, match="--rope-scaling: linear must be key=value pairs, separated by commas"
    ):
        cli.call(("train",), [*given, "--rope-scaling", "linear"])
