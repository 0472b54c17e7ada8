"""Hugging Face's BLOOM (BigScience Workshop 2022): names of weights, and settings.

It is a decoder of family gpt with ALiBi, a norm after the embedding, biases, and feed-forward layers four
times as wide as the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import ResolvedModelConfig
from .foreign_names import Architecture, WeightNames, because, read_tied

BLOCK = {
    "mixer_norm": "input_layernorm",
    "mixer.qkv": "self_attention.query_key_value",  # head by head, as ours
    "mixer.out": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}
NAMES = WeightNames(
    {
        "embedding": "transformer.word_embeddings",
        "embedding_norm": "transformer.word_embeddings_layernorm",
        "norm": "transformer.ln_f",
        "output": "lm_head",
    },
    {"layers": ("transformer.h", BLOCK)},
    "transformer.",
    {"lm_head.weight": "transformer.word_embeddings.weight"},
)
KEYS = {
    "num_layers": "n_layer",
    "hidden_size": "hidden_size",
    "num_attention_heads": "n_head",
    "layernorm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
    "init_method_std": "initializer_range",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}
UNUSED = because(
    {
        "ranks of the training, whose sums transformers takes only with slow_but_exact": "pretraining_tp",
        "of Megatron-DeepSpeed, read by nothing": (
            "n_inner offset_alibi masked_softmax_fusion bias_dropout_fusion attention_softmax_in_fp32"
            " skip_bias_add skip_bias_add_qkv"
        ),
    }
)


def _read(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    # Files of BigScience say how long the training's sequences were; transformers reads any length.
    return {**read_tied(raw, default=True), "max_position_embeddings": raw.get("seq_length", 2048)}


def _write(config: ResolvedModelConfig) -> dict[str, Any]:
    return {
        "seq_length": config.max_position_embeddings,
        "apply_residual_connection_post_layernorm": False,
        "slow_but_exact": False,
    }


BLOOM_ARCHITECTURES = {
    "bloom": Architecture(
        NAMES,
        "BloomForCausalLM",
        KEYS,
        {},
        {"position_embedding_type": "alibi", "embed_layernorm": True, "activation": "gelu_tanh"},
        {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
        # slow_but_exact leaves biases out, for weights that several ranks trained
        {"apply_residual_connection_post_layernorm": False, "slow_but_exact": False},
        _read,
        _write,
        reads=frozenset({"seq_length"}),
        unused=UNUSED,
        aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    ),
}
