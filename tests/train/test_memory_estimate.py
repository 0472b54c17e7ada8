import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from mt.tests.train.model.small_models import LATENTS
from mt.tests.train.parallel_jobs import random_neighbors
from mt.train.memory_estimate import Cut, count_parts
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize

pytestmark = pytest.mark.usefixtures("one_thread")


T = 64


MODELS = {
    "gpt": {},
    "grouped queries, a gate, rotations": {
        "num_query_groups": 2,
        "activation": "swiglu",
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
    },
    "dropout": {"hidden_dropout": 0.1},
    "dropout of attention too": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "mixture": {"num_experts": 4, "activation": "swiglu"},
    "latents": LATENTS,
    "latents, none of queries": {**LATENTS, "q_lora_rank": None},
    "hybrid": {"num_layers": None, "hybrid_override_pattern": "M*-M", "mamba_head_dim": 32},
    "later tokens": {"mtp_num_layers": 2},
    "later tokens, latents and experts": {
        **LATENTS,
        "num_experts": 4,
        "mtp_num_layers": 1,
        "untie_embeddings_and_output_weights": True,
    },
    "bert": {"family": "bert"},
    "Retro": {"num_layers": 6, "retro_add_retriever": True, "retro_chunk_length": 16},
    "t5": {"family": "t5"},
    "t5, relative positions": {"family": "t5", "position_embedding_type": "relative"},
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in MODELS), ("gpt", torch.bfloat16), ("mixture", torch.bfloat16)],
)
def test_parameters_equal_the_models_and_activations_are_within_a_tenth_of_those_that_autograd_keeps(
    name, dtype
):
    config = resolve(
        ModelConfig(**{"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, **MODELS[name]}),
        vocab_size=256,
        seq_length=2 * T,
    )
    model = build_model(config)
    initialize(model, 1)
    model.to(dtype)
    tokens = torch.zeros(2, T, dtype=torch.int64)
    arguments = {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(2, T)}
    if config.family == "bert":
        arguments |= {
            "padding_mask": torch.ones(2, T).bool(),
            "token_types": tokens,
            "swapped": tokens[:, 0],
            "loss_mask": (torch.arange(T) % 7 == 0).float().expand(2, T),
        }
    if config.family == "t5":
        arguments |= {"encoder_tokens": tokens.repeat(1, 2), "padding_mask": torch.ones(2, 2 * T).bool()}
    if config.retro_add_retriever:
        arguments |= random_neighbors(config, 2, T)
    weights, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(**arguments)
    counted = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)

    lengths = (2 * T, T) if config.family == "t5" else (T, 0)
    parts = count_parts(config, Cut(), seq_length=lengths[0], decoder_seq_length=lengths[1], dtype=dtype)
    whole = parts.stage(0, len(parts.blocks))
    assert whole.parameters == sum(p.numel() for p in model.parameters())
    # autograd keeps a gradient of the output layer's weight for each loss, which the plan counts as workspace
    head = config.padded_vocab_size * config.hidden_size * dtype.itemsize * (1 + config.mtp_num_layers)
    assert 2 * whole.activations[None] + head == pytest.approx(counted, rel=0.1)
    assert whole.activations[None] > whole.activations["selective"] > whole.activations["full"]
    assert whole.activations["full"] - parts.last.activations["full"] == sum(
        (128 * dtype.itemsize) * (lengths[0] if config.family != "t5" or i < 4 else T)
        for i in range(len(parts.blocks))
    )


@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
def test_a_gpus_activations_are_those_of_megatrons_formula(tensor, sequence_parallel, attention_dropout):
    """Korthikanti et al. 2022: s b h (10 + 24 / t) bytes a layer in 16 bits, attention's weights recomputed.

    With sequence parallelism theirs are s b h 34 / t: the inputs of column-parallel layers are gathered
    again in the backward pass. mt keeps them, 4 s b h (test_ranks_use_the_estimated_memory counts that).
    """
    T, D = 2048, 1024
    config = resolve(
        ModelConfig(
            num_layers=1,
            hidden_size=D,
            num_attention_heads=16,
            hidden_dropout=0.1,
            attention_dropout=attention_dropout,
        ),
        vocab_size=256,
        seq_length=T,
    )
    cut = Cut(tensor=tensor, sequence_parallel=sequence_parallel)
    parts = count_parts(config, cut, seq_length=T, dtype=torch.bfloat16, gpu=True)
    formula = 34 / tensor + 4 * (1 - 1 / tensor) if sequence_parallel else 10 + 24 / tensor
    assert parts.blocks[0].activations[None] == pytest.approx(T * D * formula, rel=0.01)
