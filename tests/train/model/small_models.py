"""Small models for the tests of training."""

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
LATENTS = {
    "multi_latent_attention": True,
    "q_lora_rank": 24,
    "kv_lora_rank": 40,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 20,
    "qk_layernorm": True,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
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


def assert_cached_tokens_are_those_of_one_pass(model: GPT) -> None:
    """Hidden states of 2 x 7 tokens in one pass, in pieces with a cache, and at two places only."""
    initialize(model, 1)
    model.eval()
    tokens = torch.arange(14).reshape(2, 7)
    with torch.no_grad():
        expected = model(tokens)
        cache = model.new_cache(2, 7)
        pieces = [model(tokens[:, start:end], cache=cache) for start, end in ((0, 4), (4, 5), (5, 7))]
        last = model(tokens, at=(torch.tensor([0, 1]), torch.tensor([3, 6])))
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)
    torch.testing.assert_close(last, expected[[0, 1], [3, 6]])
