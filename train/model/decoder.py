"""The blocks of a decoder, from the configuration.

`layer_kinds` tells which: by default attention and a feed-forward layer (or experts) in each, or one of them
in each, as the pattern of one of Megatron-LM's hybrid models has it. `build_block` makes one of them.
"""

from __future__ import annotations

from .attention import Attention
from .block import Block, FeedForward
from .chunked_cross_attention import ChunkedCrossAttention
from .config import ResolvedModelConfig, expert_layers, retro_layers
from .mamba import Mamba
from .moe import MoE


def layer_kinds(config: ResolvedModelConfig) -> list[str]:
    """The symbols of each block of a decoder: "*-" for attention and a feed-forward layer in one, "M" for
    Mamba-2 ...

    Where neighbours are read "x" stands between, and "X" in the first of these layers, whose the encoder is.
    """
    if config.hybrid_override_pattern:
        return list(config.hybrid_override_pattern)
    experts = (
        [False] * config.num_layers
        if config.num_experts is None
        else expert_layers(config.moe_layer_freq, config.num_layers)
    )
    reading = retro_layers(config.num_layers) if config.retro_add_retriever else range(0)
    cross = ["" if i not in reading else "X" if i == reading[0] else "x" for i in range(config.num_layers)]
    return [f"*{x}{'E' if e else '-'}" for x, e in zip(cross, experts)]


def build_block(config: ResolvedModelConfig, kind: str) -> Block:
    """The block of an entry of `layer_kinds`."""
    mixer = cross = ffn = None
    if "*" in kind:
        mixer = Attention(config)
    elif "M" in kind:
        mixer = Mamba(config)
    if "x" in kind.lower():
        cross = ChunkedCrossAttention(config, encodes="X" in kind)
    if "-" in kind:
        ffn = FeedForward(config)
    elif "E" in kind:
        ffn = MoE(config)
    return Block(config, mixer=mixer, cross=cross, ffn=ffn)
