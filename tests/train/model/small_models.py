"""Small models for the tests of this folder."""

import torch

from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize

LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "add_bias_linear": False,
    "num_query_groups": 2,
    "untie_embeddings_and_output_weights": True,
}


def gpt(seed=0, **settings) -> GPT:
    config = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "init_method_std": 0.2,
        "make_vocab_size_divisible_by": 16,
        **settings,
    }
    model = GPT(resolve(ModelConfig(**config), vocab_size=61, seq_length=24))
    initialize(model, seed)
    return model


def random_tokens(rows=3, length=24):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))
