import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mt.tests.train.model.small_models import LATENTS
from mt.tests.train.parallel_jobs import random_neighbors
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.flops import device_name, measured_flops, peak_flops
from mt.train.model.layers import initialize
from mt.train.model.training_cost import (
    forward_flops,
    training_flops,
)

T = 32
MODELS = {
    "gpt": {},
    "grouped queries, a gate, an output of its own": {
        "num_query_groups": 2,
        "activation": "swiglu",
        "position_embedding_type": "rope",
        "untie_embeddings_and_output_weights": True,
    },
    "wide heads": {"kv_channels": 24, "ffn_hidden_size": 80},
    "mixture": {
        "num_experts": 4,
        "moe_ffn_hidden_size": 48,
        "moe_shared_expert_intermediate_size": 40,
        "activation": "swiglu",
    },
    # limited scores are computed by plain products, whose values are as wide as they are
    "latents": {**LATENTS, "attn_logit_softcapping": 3.0},
    "latents, none of queries": {**LATENTS, "attn_logit_softcapping": 3.0, "q_lora_rank": None},
    "later tokens": {"mtp_num_layers": 2, "num_experts": 4, "moe_layer_freq": "[1,0]"},
    "pattern": {"hybrid_override_pattern": "*--*", "num_layers": None},
    "bert": {"family": "bert"},
    "Retro": {"num_layers": 9, "num_query_groups": 2, "retro_add_retriever": True, "retro_chunk_length": 8},
    "t5": {"family": "t5", "position_embedding_type": "relative", "decoder_num_layers": 3},
}


def flops_counted_by_torch(config: ModelConfig) -> int:
    """FLOPs of a forward pass counted by torch, in float64: it does not count float32's grouped product."""
    model = build_model(config)
    initialize(model, 1)
    model.double().train(config.mtp_num_layers > 0)  # which predicts later tokens in training only
    tokens = torch.zeros(1, T, dtype=torch.int64)
    arguments = {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(1, T)}
    if config.family == "bert":
        arguments |= {
            "padding_mask": torch.ones(1, T, dtype=torch.bool),
            "token_types": tokens,
            "swapped": torch.zeros(1, dtype=torch.int64),
        }
    if config.family == "t5":
        arguments |= {
            "encoder_tokens": tokens.repeat(1, 2),
            "padding_mask": torch.ones(1, 2 * T, dtype=torch.bool),
        }
    if config.retro_add_retriever:
        arguments |= random_neighbors(config, 1, T)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(**arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_the_formulas_give_the_flops_that_torch_counts(name):
    config = resolve(
        ModelConfig(**{"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, **MODELS[name]}),
        vocab_size=200,
        seq_length=T,
    )
    lengths = (2 * T, T) if name == "t5" else (T,)
    assert forward_flops(config, *lengths).full == flops_counted_by_torch(config)
    assert training_flops(config, *lengths).full == 3 * flops_counted_by_torch(config)


def test_flops_of_attention_are_limited_by_a_window_and_halved_by_a_causal_mask():
    shape = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    plain, window = (
        resolve(ModelConfig(**shape, **extra), vocab_size=128, seq_length=T)
        for extra in ({}, {"window_size": 8})
    )
    scores = 2 * 4 * 64 * T * T
    assert forward_flops(plain, T).full - forward_flops(plain, T).causal == scores / 2
    assert forward_flops(plain, T).full - forward_flops(window, T).full == scores * 3 / 4
    assert forward_flops(window, T).full == forward_flops(window, T).causal


@pytest.mark.parametrize(
    ("shape", "length", "full", "causal"),
    [
        ({"num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16}, 2048, 2.725, 2.423),
        ({"num_layers": 24, "hidden_size": 2048, "num_attention_heads": 16}, 2048, 9.074, 8.470),
        (
            {
                "num_layers": 32,
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "num_query_groups": 8,
                "ffn_hidden_size": 14336,
                "activation": "swiglu",
                "untie_embeddings_and_output_weights": True,
                "vocab_size": 128256,
            },
            4096,
            51.47,
            48.25,
        ),
    ],
)
def test_published_models_have_the_flops_of_published_formulas(shape, length, full, causal):
    """GFLOP per token by torchtitan's formula (full) and Megatron-LM's (causal), worked out by hand."""
    ours = training_flops(resolve(ModelConfig(**shape), vocab_size=50304, seq_length=length), length)
    assert ours.full / length / 1e9 == pytest.approx(full, rel=2e-4)
    assert ours.causal / length / 1e9 == pytest.approx(causal, rel=2e-4)


def test_flops_of_mamba_follow_megatrons_formula():
    config = resolve(
        ModelConfig(
            hybrid_override_pattern="MM",
            hidden_size=64,
            num_attention_heads=4,
            mamba_num_groups=2,
            mamba_state_dim=16,
            mamba_head_dim=32,
        ),
        vocab_size=128,
        seq_length=T,
    )
    h, heads = 64, config.mamba_num_heads
    layer = T * (6 * (h * (4 * h + 2 * 2 * 16 + heads) + 2 * h * h) + 21 * 2 * h * 16)
    assert training_flops(config, T).full == 2 * layer + 6 * T * h * 128


def test_the_peak_depends_on_the_name_of_the_device(monkeypatch):
    names = {
        "NVIDIA H200": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA GB200": 2500e12,
        "Acme 1": None,
    }
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak
        assert peak_flops(torch.device("cuda"), torch.float32) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None
    assert device_name(torch.device("cpu")) == "cpu"


def test_the_speed_of_the_processors_is_that_of_a_product():
    a = torch.ones(1024, 1024)
    began = time.perf_counter()
    a @ a
    assert measured_flops() > 0.5 * 2 * 1024**3 / (time.perf_counter() - began)
