import pytest
import torch

from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.model.training_cost import (
    out_of_memory_message,
    training_bytes,
)

T = 32


def test_the_memory_of_a_step_depends_on_dtype_recomputation_and_tokens():
    config = resolve(
        ModelConfig(num_layers=4, hidden_size=64, num_attention_heads=4), vocab_size=128, seq_length=T
    )
    how = {"tokens": 1024, "dtype": torch.float32, "num_moments": 2, "granularity": None}
    base = training_bytes(config, 1000, **how)
    assert base[:3] == (4000, 4000, 8000)
    # with the bfloat16 copy of the weights
    assert training_bytes(config, 1000, **{**how, "dtype": torch.bfloat16}).weights == 6000
    order = [
        training_bytes(config, 1000, **{**how, "granularity": g}).activations
        for g in ("full", "selective", None)
    ]
    assert order == sorted(order)
    assert training_bytes(config, 1000, **{**how, "tokens": 2048}).activations > 1.5 * base.activations


def test_the_estimate_of_activations_is_near_the_bytes_that_autograd_keeps():
    from torch.autograd.graph import saved_tensors_hooks

    config = resolve(
        ModelConfig(num_layers=6, hidden_size=128, num_attention_heads=4), vocab_size=128, seq_length=T
    )
    model = build_model(config)
    initialize(model, 1)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(4, T, dtype=torch.int64)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens=tokens, labels=tokens, loss_mask=torch.ones(4, T))
    estimate = training_bytes(
        config, 0, tokens=4 * T, dtype=torch.float32, num_moments=2, granularity=None
    ).activations
    assert estimate == pytest.approx(sum(kept.values()), rel=0.2)


def test_the_out_of_memory_message_lists_the_largest_saving_first():
    config = resolve(
        ModelConfig(num_layers=24, hidden_size=1024, num_attention_heads=16),
        vocab_size=50304,
        seq_length=2048,
    )
    how = {"tokens_per_sample": 2048, "num_moments": 2}
    large = out_of_memory_message(
        config, 354_000_000, micro_batch_size=64, dtype=torch.float32, granularity=None, **how
    )
    places = [
        large.index(flag_of_saving)
        for flag_of_saving in (
            "--recompute-granularity full",
            "--seq-length",
            "--micro-batch-size 32",
            "--bf16",
        )
    ]
    assert places == sorted(places)
    small = out_of_memory_message(
        config, 354_000_000, micro_batch_size=1, dtype=torch.bfloat16, granularity="full", **how
    )
    assert not any(flag in small for flag in ("--recompute", "--micro", "--bf16"))
    assert "weights 2.0 GiB, gradients 1.3 GiB, moments 2.6 GiB" in small
