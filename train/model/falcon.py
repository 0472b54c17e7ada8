"""Falcon (Almazrouei et al. 2023): parallel attention and feed-forward, of one norm or of two.

Falcon 40B has a norm for each, as GPT-NeoX does. Falcon 7B and Falcon 2 11B have one norm for both: x +
attention(norm(x)) + ffn(norm(x)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...core.config import UserError
from .attention import Attention
from .block import Block, FeedForward, Mixer, block_list
from .config import ResolvedModelConfig
from .foreign_names import ACTIVATIONS, ROPE_KEYS, Architecture, WeightNames, read_rope, read_tied, write_rope
from .gpt import GPT
from .gpt_neox import ParallelBlock
from .layers import Norm


class SharedNormBlock(Block):
    """x (B, T, D) -> (B, T, D): x + mixer(shared_norm(x)) + ffn(shared_norm(x))."""

    def __init__(self, config: ResolvedModelConfig, *, mixer: Mixer, ffn: FeedForward):
        super().__init__(config, mixer=mixer, ffn=ffn)
        self.mixer_norm = self.ffn_norm = None
        self.shared_norm = Norm(config)

    def forward(self, x: Tensor, *, at: tuple[Tensor, Tensor] | None = None, **context) -> Tensor:
        """As Block.forward."""
        assert self.mixer is not None, "Falcon gives every block attention"
        assert self.ffn is not None, "Falcon gives every block a feed-forward layer"
        normed = self.shared_norm(x)
        attended = F.dropout(self.mixer(normed, **context), self.dropout, self.training)
        if at is not None:
            x, normed, attended = x[at], normed[at], attended[at]
        return F.dropout(self.ffn(normed), self.dropout, self.training) + attended + x


class Falcon(GPT):
    """A GPT of blocks with parallel attention and feed-forward, and `parallel_norms` norms in each."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__(config)
        kind = SharedNormBlock if config.parallel_norms == 1 else ParallelBlock
        self.layers = block_list(
            kind(config, mixer=Attention(config), ffn=FeedForward(config)) for _ in range(config.num_layers)
        )


FALCON_BLOCK = {
    "shared_norm": "input_layernorm",
    "mixer_norm": "ln_attn",
    "mixer.qkv": "self_attention.query_key_value",  # group by group, as ours
    "mixer.out": "self_attention.dense",
    "ffn_norm": "ln_mlp",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}
FALCON_NAMES = WeightNames(
    {"embedding": "transformer.word_embeddings", "norm": "transformer.ln_f", "output": "lm_head"},
    {"layers": ("transformer.h", FALCON_BLOCK)},
    "transformer.",
    {"lm_head.weight": "transformer.word_embeddings.weight"},
)
FALCON_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
    "activation": "activation",
    "init_method_std": "initializer_range",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "add_bias_linear": "bias",
}


def _read(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    heads, new = raw["num_attention_heads"], raw.get("new_decoder_architecture", False)
    norms = raw.get("num_ln_in_parallel_attn") or (2 if new else 1)
    if not new and (norms == 2 or not raw.get("parallel_attn", True)):
        raise UserError(
            f"{place}: parallel_attn is {raw.get('parallel_attn', True)} and num_ln_in_parallel_attn is"
            f" {norms} without new_decoder_architecture; only models whose attention and feed-forward layers"
            " are parallel and share a norm can be loaded"
        )
    groups = (raw.get("num_kv_heads") or heads) if new else 1 if raw.get("multi_query", True) else heads
    return {
        **read_tied(raw, default=True),
        **read_rope(raw, place),
        "num_query_groups": groups,
        "parallel_norms": norms,
    }


def _write(config: ResolvedModelConfig) -> dict[str, Any]:
    return {
        **write_rope(config),
        "new_decoder_architecture": True,
        "num_kv_heads": config.num_query_groups,
        "num_ln_in_parallel_attn": config.parallel_norms,
        "parallel_attn": True,
        "multi_query": False,
        "alibi": False,
    }


FALCON_ARCHITECTURES = {
    "falcon": Architecture(
        FALCON_NAMES,
        "FalconForCausalLM",
        FALCON_KEYS,
        ACTIVATIONS,
        {"family": "falcon", "position_embedding_type": "rope"},
        {
            "layer_norm_epsilon": 1e-5,
            "activation": "gelu",
            "initializer_range": 0.02,
            "max_position_embeddings": 2048,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "bias": False,
        },
        {"alibi": False, "apply_residual_connection_post_layernorm": False},
        _read,
        _write,
        reads=ROPE_KEYS
        | {"new_decoder_architecture", "num_ln_in_parallel_attn", "parallel_attn", "num_kv_heads"}
        | {"multi_query"},
    ),
}
