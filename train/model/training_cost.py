"""FLOPs and memory of a training step of any family, and the message of one that does not fit."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .config import GATED, ResolvedModelConfig
from .family import family_of
from .flops import Flops


def training_flops(config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0) -> Flops:
    """FLOPs of one sample, forward and backward.

    decoder_seq_length: tokens of the decoder of an encoder-decoder, whose encoder reads seq_length tokens.
    """
    return forward_flops(config, seq_length, decoder_seq_length) * 3


def forward_flops(config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0) -> Flops:
    """FLOPs of one sample, forward, with its output layer."""
    family = family_of(config)
    lengths = seq_length, decoder_seq_length
    return sum(family.block_flops(config, *lengths), family.head_flops(config, *lengths))


class Bytes(NamedTuple):
    """An estimate of the memory of a training step on one device."""

    weights: int  # with their bfloat16 or float16 copy
    gradients: int
    moments: int
    activations: int  # of one micro-batch

    @property
    def total(self) -> int:
        return sum(self)


def training_bytes(
    config: ResolvedModelConfig,
    parameters: int,
    *,
    tokens: int,
    dtype: torch.dtype,
    num_moments: int,
    granularity: str | None,
) -> Bytes:
    """The memory of a training step, good to some 20 %: without temporaries and buffers.

    tokens: of a micro-batch. granularity: of recomputation.
    """
    width = dtype.itemsize
    D = config.hidden_size
    inner = config.ffn_hidden_size
    if config.num_experts:
        inner = config.moe_router_topk * config.expert_size
    gated = config.activation in GATED
    attention = _attention_values(config)
    # Elements that a block keeps per token: the inputs of norms, matrix products and activations.
    values = {
        None: 4 * D + attention + (4 if gated else 2) * inner,
        "selective": 2 * D + attention + (2 if gated else 1) * inner,
        "full": D,
    }[granularity]
    layers = family_of(config).num_blocks(config) + config.mtp_num_layers
    if config.retro_add_retriever:  # the encoder of neighbours has k r = 2 k m tokens for each m
        layers += (
            2 * config.retro_num_neighbors * (1 if granularity == "full" else config.retro_encoder_layers)
        )
    # The output layer's gradient is computed in the forward pass.
    head = (2 * D * width * tokens + 4 * config.padded_vocab_size * D) * (1 + config.mtp_num_layers)
    narrow = 0 if dtype == torch.float32 else width
    return Bytes(
        parameters * (4 + narrow),
        parameters * 4,
        parameters * 4 * num_moments,
        layers * values * width * tokens + head,
    )


def _attention_values(config: ResolvedModelConfig) -> int:
    """Elements that attention keeps per token: queries, keys, values, output, and latents."""
    H, G, C = config.num_attention_heads, config.num_query_groups, config.kv_channels
    if config.multi_latent_attention:  # values and outputs are as wide as keys (attention.attend)
        latents = (config.q_lora_rank or 0) + config.kv_lora_rank
        return 4 * H * C + 2 * latents + H * (config.qk_head_dim + config.v_head_dim)
    return (2 * H + 2 * G) * C


def out_of_memory_message(
    config: ResolvedModelConfig,
    parameters: int,
    *,
    micro_batch_size: int,
    tokens_per_sample: int,
    dtype: torch.dtype,
    num_moments: int,
    granularity: str | None,
) -> str:
    """The memory of a run that does not fit, and the settings that save most, largest first."""

    def needed(size: int, granularity: str | None, dtype: torch.dtype = dtype) -> Bytes:
        return training_bytes(
            config,
            parameters,
            tokens=size * tokens_per_sample,
            dtype=dtype,
            num_moments=num_moments,
            granularity=granularity,
        )

    now = needed(micro_batch_size, granularity)
    savings: dict[str, int] = {}
    if granularity != "full":
        savings["--recompute-granularity full"] = now.total - needed(micro_batch_size, "full").total
    if micro_batch_size > 1:
        savings[f"--micro-batch-size {micro_batch_size // 2}"] = (
            now.total - needed(micro_batch_size // 2, granularity).total
        )
    savings[f"a --seq-length of {tokens_per_sample // 2}"] = now.activations // 2
    if dtype == torch.float32:
        savings["--bf16"] = now.total - needed(micro_batch_size, granularity, torch.bfloat16).total
    remedies = sorted(((gain, setting) for setting, gain in savings.items() if gain > 0), reverse=True)
    parts = ", ".join(f"{name} {gibibytes(size)}" for name, size in now._asdict().items())
    return (
        f"out of memory; this run holds about {gibibytes(now.total)} ({parts}); what would save most: "
        + "; ".join(f"{setting} (about {gibibytes(gain)})" for gain, setting in remedies)
        + "; a smaller model, or more processes, each of which then holds a share of it"
    )


def gibibytes(count: float) -> str:
    """A number of bytes as text: `1.5 GiB`, `36 MiB`."""
    return f"{count / 2**30:,.1f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:,.1f} MiB"


def large_number(count: float) -> str:
    """A count as text, with three digits: `2.5 billion`, `63 million`, `4,096`."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:,.3g} {name}"
    return f"{count:,.0f}"
