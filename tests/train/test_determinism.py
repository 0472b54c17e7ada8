"""Seeds of dropout, which depend on the micro-batch and the block only, and deterministic mode."""

import os

import pytest
import torch

from mt.core.config import UserError
from mt.train.determinism import RULES, enable_deterministic_mode, seed_dropout_per_block, seed_generators
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model


def random_number_of_each_block(
    blocks: int, text: str, *, dropout: float = 0.1, disturbed: bool = False
) -> list[float]:
    """The number that each block draws first in a micro-batch seeded by `text`.

    disturbed: other random numbers are drawn before each block.
    """
    shape = ModelConfig(num_layers=blocks, hidden_size=8, num_attention_heads=2, hidden_dropout=dropout)
    model = build_model(resolve(shape, vocab_size=16, seq_length=4))
    for block in model.layers:
        block.forward = lambda x: found.append(torch.rand(()).item()) or x
    seed_dropout_per_block(model)
    found: list[float] = []
    seed_generators(text)
    for block in model.layers:
        if disturbed:
            torch.rand(7)
        block(torch.zeros(1))
    return found


def test_the_random_numbers_of_a_block_depend_on_the_micro_batch_and_the_block_only():
    numbers = random_number_of_each_block(4, "1:0:0")
    assert numbers == random_number_of_each_block(4, "1:0:0", disturbed=True)
    assert numbers[:2] == random_number_of_each_block(2, "1:0:0"), (
        "a pipeline stage draws the numbers of its blocks"
    )
    assert (
        len({*numbers, *random_number_of_each_block(4, "1:0:1"), *random_number_of_each_block(4, "1:1:0")})
        == 12
    )


def test_a_model_without_dropout_gets_no_hooks():
    shape = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
    model = build_model(resolve(shape, vocab_size=16, seq_length=4))
    seed_dropout_per_block(model)
    assert not any(block._forward_pre_hooks for block in model.layers)


def test_unset_variables_get_deterministic_values_and_others_are_kept(monkeypatch):
    for name in RULES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        enable_deterministic_mode()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert {name: os.environ[name] for name in RULES} == {
            "CUBLAS_WORKSPACE_CONFIG": ":16:8",
            "NCCL_ALGO": "Ring",
            "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
        }
        monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
        with pytest.raises(UserError, match=r"NVTE_ALLOW_NONDETERMINISTIC_ALGO = 1 is not deterministic"):
            enable_deterministic_mode()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
