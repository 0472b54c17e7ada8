"""Megatron-LM's torch_dist format: two ranks of megatron-core save and load it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mt.tests.train.checkpoint.transformers_models import (
    assert_near,
    our_logits,
    random_model,
    their_logits,
    write,
)
from mt.tokenizer.tokenizer import TokenizerConfig
from mt.train.checkpoint.base import weight_shapes
from mt.train.checkpoint.commands import ConvertConfig, convert
from mt.train.checkpoint.megatron_names import split, written
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "mamba2", "llama", "deepseek_v3 without groups"])
def test_mixtures_and_mamba_come_back_from_torch_dist(kind, tmp_path):
    model = random_model(kind)
    write(model, tmp_path / "hf")
    out = tmp_path / "megatron"
    convert(ConvertConfig(source=str(tmp_path / "hf"), output=str(out), format="megatron_torch_dist"))
    assert_near(our_logits(open_checkpoint(out).load_model()), their_logits(model))


@pytest.mark.slow
def test_torch_dist_of_megatron_core_is_read_at_every_layout_and_ours_loads_there(tmp_path):
    """Two ranks of megatron-core save; mt reads and writes back; two ranks load that, cut as they were."""
    pytest.importorskip("megatron.core", reason="megatron-core is the oracle")
    program = Path(__file__).with_name("megatron_ranks.py")

    def ranks(*arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        every = [
            subprocess.Popen(
                [sys.executable, str(program), str(rank), *map(str, arguments)],
                stderr=subprocess.PIPE, text=True, env=environment,
            )
            for rank in range(2)
        ]  # fmt: skip
        said = [process.communicate()[1] for process in every]
        assert not any(process.returncode for process in every), "\n".join(said)

    ranks(tmp_path, "save")
    names = [file.stem for file in sorted(tmp_path.glob("*.pt"))]
    assert len(names) == 10
    for name in names:
        checkpoint, reference = open_checkpoint(tmp_path / name), torch.load(tmp_path / f"{name}.pt")
        shapes, config = weight_shapes(checkpoint.config), checkpoint.config
        found = set()
        for stored, ours in written(shapes, config):
            read = lambda n, c=checkpoint, s=shapes: c.read_weight(n, s[n])
            key = stored.name.replace(".experts.", ".experts.local_experts.")
            assert torch.equal(torch.cat(split(stored, ours, read, config)), reference[key]), (name, key)
            found.add(key)
        assert found == {key for key, tensor in reference.items() if isinstance(tensor, torch.Tensor)}
        convert(
            ConvertConfig(
                source=str(tmp_path / name),
                output=str(tmp_path / "ours" / name),
                format="megatron_torch_dist",
                transformer_impl="local",
                tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=64),
            )
        )
    ranks(tmp_path, "load", tmp_path / "ours")
