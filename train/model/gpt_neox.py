"""GPT-NeoX (Black et al. 2022) and Pythia: parallel attention and feed-forward, partial rotary.

A block adds both to the residual stream at once, each of its own norm: x + attention(norm(x)) +
ffn(ffn_norm(x)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .attention import Attention
from .block import Block, FeedForward, block_list
from .config import ResolvedModelConfig
from .foreign_names import ACTIVATIONS, ROPE_KEYS, Architecture, WeightNames, read_rope, read_tied, write_rope
from .gpt import GPT


class ParallelBlock(Block):
    """x (B, T, D) -> (B, T, D): x + attention(norm(x)) + ffn(ffn_norm(x))."""

    def forward(self, x: Tensor, *, at: tuple[Tensor, Tensor] | None = None, **context) -> Tensor:
        """As Block.forward."""
        assert self.mixer is not None, "GPTNeoX gives every block attention"
        assert self.mixer_norm is not None, "GPTNeoX gives every block attention"
        assert self.ffn is not None, "GPTNeoX gives every block a feed-forward layer"
        assert self.ffn_norm is not None, "GPTNeoX gives every block a feed-forward layer"
        attended = F.dropout(self.mixer(self.mixer_norm(x), **context), self.dropout, self.training)
        if at is not None:
            x, attended = x[at], attended[at]
        return F.dropout(self.ffn(self.ffn_norm(x)), self.dropout, self.training) + attended + x


class GPTNeoX(GPT):
    """A GPT of ParallelBlocks, which rotates the first rotary_percent of a head's channels."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__(config)
        self.layers = block_list(
            ParallelBlock(config, mixer=Attention(config), ffn=FeedForward(config))
            for _ in range(config.num_layers)
        )


NEOX_BLOCK = {
    "mixer_norm": "input_layernorm",
    "mixer.qkv": "attention.query_key_value",  # head by head, as ours
    "mixer.out": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}
NEOX_NAMES = WeightNames(
    {"embedding": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
    {"layers": ("gpt_neox.layers", NEOX_BLOCK)},
    "gpt_neox.",
    {"embed_out.weight": "gpt_neox.embed_in.weight", "lm_head.weight": "gpt_neox.embed_in.weight"},
)
NEOX_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "layer_norm_eps",
    "vocab_size": "vocab_size",
    "activation": "hidden_act",
    "init_method_std": "initializer_range",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}


def _read(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    """transformers 4 keeps rotary_pct and rotary_emb_base, transformers 5 both in rope_parameters."""
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    rope.setdefault("partial_rotary_factor", raw.get("rotary_pct", 0.25))
    rope.setdefault("rope_theta", raw.get("rotary_emb_base", 10000.0))
    rotary = read_rope({**raw, "rope_scaling": None, "rope_parameters": rope}, place, partial=True)
    return {**read_tied(raw, default=False), **rotary}


def _write(config: ResolvedModelConfig) -> dict[str, Any]:
    written = write_rope(config)
    written["rope_parameters"]["partial_rotary_factor"] = config.rotary_percent
    return {
        **written,
        "rotary_pct": config.rotary_percent,
        "rotary_emb_base": config.rotary_base,
        "use_parallel_residual": True,
        "attention_bias": True,
    }


NEOX_ARCHITECTURES = {
    "gpt_neox": Architecture(
        NEOX_NAMES,
        "GPTNeoXForCausalLM",
        NEOX_KEYS,
        ACTIVATIONS,
        {"family": "gpt_neox", "position_embedding_type": "rope"},
        {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "initializer_range": 0.02},
        {"use_parallel_residual": True, "attention_bias": True, "is_decoder": False},
        _read,
        _write,
        reads=ROPE_KEYS | {"rotary_pct", "rotary_emb_base"},
    ),
}
