"""The blocks of a decoder: `layer_kinds` lists them, `build_block` builds one.

By default each block has attention and a feed-forward layer (or experts). With a pattern, as in Megatron-LM's
hybrid models, each has one part.
"""

from __future__ import annotations

from torch import nn

from .attention import Attention
from .block import Block, FeedForward, Mixer
from .chunked_cross_attention import ChunkedCrossAttention
from .config import ResolvedModelConfig, expert_layers, retro_layers
from .latent_attention import MultiLatentAttention
from .mamba import Mamba
from .moe import MoE


def layer_kinds(config: ResolvedModelConfig) -> list[str]:
    """The symbols of the parts of each block of a decoder.

    * attention, M Mamba-2, - feed-forward, E experts, x Retro's chunked cross-attention, X the first of
    these, which owns the encoder of neighbours. "*-" is a block of attention and a feed-forward layer.
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
    mixer: Mixer | None = None
    ffn: nn.Module | None = None
    if "*" in kind:
        mixer = MultiLatentAttention(config) if config.multi_latent_attention else Attention(config)
    elif "M" in kind:
        mixer = Mamba(config)
    cross = ChunkedCrossAttention(config, encodes="X" in kind) if "x" in kind.lower() else None
    if "-" in kind:
        ffn = FeedForward(config)
    elif "E" in kind:
        ffn = MoE(config)
    return Block(config, mixer=mixer, cross=cross, ffn=ffn)
