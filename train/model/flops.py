"""FLOPs of every block and output layer, from the configuration alone, and the peak FLOP/s of devices.

A multiplication and an addition are two FLOPs. Forward and backward pass together are three forward passes;
recomputed FLOPs are never counted. Embedding look-ups, norms and activations are left out; the output layer
counts, tied or not. Per token of a decoder, forward (legend of layers.py; S keys that a query attends to; E
experts, K of them per token):

    *  attention       2 D (H + 2 G) C + 2 H C D  +  4 H C S
    x  cross           2 D H C + 2 H C D + 4 H C S', and for each token of the other sequence 4 D G C
       Retro's         S' = k r, the other sequence has k r / m tokens for each token and is the
                       output of an encoder: attention (S = r), feed-forward, first also a cross (S' = m)
    -  feed-forward    4 D F, gated 6 D F
    E  experts         2 D E + K (4 or 6) D F, and the shared expert's
    M  Mamba-2         2 D (2 I + 2 G N + H) + 2 I D + 7 I N    (I inner width, N state, G groups, H heads)
       output layer    2 D V
       multi-token     for each depth 4 D D, a block, and the output layer
       prediction

Multi-latent attention (legend of latent_attention.py; Q is the rank of the queries' latent) has 2 D Q +
2 Q H (C + P) for queries, or 2 D H (C + P) without their latent, 2 D (R + P) + 2 R H (C + V) for keys and
values, 2 H V D for the output, and 2 H (C + P + V) S.

There are two conventions for S under a causal mask, which differ by 6 to 11 % of a whole model: `full` counts
all T keys (PaLM, torchtitan, nanotron, nanochat, Megatron-LM's README), `causal` half of them (Megatron-LM
since 2025). With a sliding window both count its width.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from .config import GATED, ResolvedModelConfig
from .decoder_blocks import layer_kinds


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by both conventions for causal attention."""

    full: float
    causal: float

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.full + other.full, self.causal + other.causal)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.full * factor, self.causal * factor)


def causal_block_flops(
    config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0
) -> list[Flops]:
    """Forward FLOPs of one sample in each block of a decoder, in the order in which they run."""
    kinds = list(zip(layer_kinds(config), config.windowed))
    costs = {
        (kind, windowed): sum(
            (_part(config, symbol, seq_length, windowed=windowed) for symbol in kind), Flops(0, 0)
        )
        for kind, windowed in set(kinds)
    }
    return [costs[kind] for kind in kinds]


def encoder_block_flops(
    config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0
) -> list[Flops]:
    """Forward FLOPs of one sample in each block of a bidirectional encoder."""
    products = (_projections(config) + _feed_forward(config, config.ffn_hidden_size)) * seq_length
    return [_same(products + _scores(config, seq_length, seq_length))] * config.num_layers


def biencoder_block_flops(
    config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0
) -> list[Flops]:
    """Forward FLOPs of one query and its block in each block of the towers; a shared tower runs twice."""
    tower = encoder_block_flops(config, seq_length)
    return [cost * 2 for cost in tower] if config.biencoder_shared_query_context_model else tower * 2


def encoder_decoder_block_flops(
    config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0
) -> list[Flops]:
    """Forward FLOPs of one sample in each block: those of the encoder, then those of the decoder."""
    D, T = config.hidden_size, decoder_seq_length
    HC, GC = config.num_attention_heads * config.kv_channels, config.num_query_groups * config.kv_channels
    cross = 4 * D * HC * T + 4 * D * GC * seq_length + _scores(config, T, seq_length)
    decoder = _part(config, "*", T) + _same(cross + _feed_forward(config, config.ffn_hidden_size) * T)
    return encoder_block_flops(config, seq_length) + [decoder] * config.decoder_layers


def lm_head_flops(config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0) -> Flops:
    """Forward FLOPs of one sample in the output layer of a decoder, and in multi-token prediction."""
    D, depths = config.hidden_size, config.mtp_num_layers
    head = _same(2 * D * config.padded_vocab_size * seq_length)
    if not depths:
        return head
    block = (
        _part(config, symbol, seq_length, windowed=config.mtp_windowed) for symbol in layer_kinds(config)[-1]
    )
    return head + sum(block, head + _same(4 * D * D * seq_length)) * depths


def encoder_decoder_head_flops(
    config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0
) -> Flops:
    """Forward FLOPs of one sample in the output layer of an encoder-decoder's decoder."""
    return lm_head_flops(config, decoder_seq_length)


def bert_head_flops(config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0) -> Flops:
    """Forward FLOPs of one sample in BERT's heads: masked tokens, and the order of the segments."""
    D, V = config.hidden_size, config.padded_vocab_size
    order = 2 * D * D + 4 * D if config.bert_binary_head else 0
    return _same((2 * D * D + 2 * D * V) * seq_length + order)


def biencoder_head_flops(config: ResolvedModelConfig, seq_length: int, decoder_seq_length: int = 0) -> Flops:
    """Forward FLOPs of one sample in the projections of both towers."""
    return _same(4 * config.hidden_size * config.biencoder_projection_dim)


def _same(flops: float) -> Flops:
    return Flops(flops, flops)


def _part(config: ResolvedModelConfig, symbol: str, T: int, *, windowed: bool = False) -> Flops:
    """FLOPs of the part of a block with this symbol, over a sequence of T tokens, causal."""
    D = config.hidden_size
    if symbol == "*":
        window = config.window_size if windowed and config.window_size and config.window_size < T else None
        full = _scores(config, T, window or T)
        return _same(_projections(config) * T) + Flops(full, full if window else full / 2)
    if symbol == "-":
        return _same(_feed_forward(config, config.ffn_hidden_size) * T)
    if symbol == "E":
        assert config.num_experts is not None, "ModelConfig refuses E without num_experts"
        experts = config.moe_router_topk * _feed_forward(config, config.expert_size)
        shared = _feed_forward(config, config.moe_shared_expert_intermediate_size or 0)
        return _same((2 * D * config.num_experts + experts + shared) * T)
    if symbol in "xX":
        return _same(_neighbors(config, T, encodes=symbol == "X"))
    inner = config.mamba_heads * config.mamba_head_dim
    projections = (
        2 * D * (2 * inner + 2 * config.mamba_num_groups * config.mamba_state_dim + config.mamba_heads)
        + 2 * inner * D
    )
    return _same((projections + 7 * inner * config.mamba_state_dim) * T)


def _neighbors(config: ResolvedModelConfig, T: int, *, encodes: bool) -> float:
    """FLOPs of Retro's chunked cross-attention. encodes: with the encoder of neighbours."""
    D = config.hidden_size
    HC, GC = config.num_attention_heads * config.kv_channels, config.num_query_groups * config.kv_channels
    m, k = config.retro_chunk_length, config.retro_num_neighbors
    chunks, r = -(-T // m), 2 * m
    tokens = chunks * k * r
    flops = 4 * D * HC * T + _scores(config, chunks * m, k * r) + 4 * D * GC * tokens
    if not encodes:
        return flops
    layer = (
        _projections(config) * tokens
        + _scores(config, tokens, r)
        + _feed_forward(config, config.ffn_hidden_size) * tokens
    )
    return (
        flops
        + config.retro_encoder_layers * layer
        + 4 * D * HC * tokens
        + _scores(config, tokens, m)
        + 4 * D * GC * chunks * m
    )


def _projections(config: ResolvedModelConfig) -> int:
    """FLOPs of the projections to queries, keys and values and of the output projection, per token."""
    H, G, C = config.num_attention_heads, config.num_query_groups, config.kv_channels
    if config.multi_latent_attention:
        D, Q, R, V = config.hidden_size, config.q_lora_rank, config.kv_lora_rank, config.v_head_dim
        queries = D * H * C if Q is None else D * Q + Q * H * C
        keys_and_values = D * (R + config.qk_pos_emb_head_dim) + R * H * (config.qk_head_dim + V)
        return 2 * (queries + keys_and_values + H * V * D)
    return 2 * config.hidden_size * (H + 2 * G) * C + 2 * H * C * config.hidden_size


def _scores(config: ResolvedModelConfig, queries: int, keys: int) -> int:
    """FLOPs of the products of queries with keys, and of attention weights with values."""
    values = config.v_head_dim if config.multi_latent_attention else config.kv_channels
    return 2 * config.num_attention_heads * (config.kv_channels + values) * queries * keys


def _feed_forward(config: ResolvedModelConfig, inner: int) -> int:
    """FLOPs of a feed-forward layer of width `inner`, per token."""
    return (6 if config.activation in GATED else 4) * config.hidden_size * inner


# Dense bfloat16 (float16 before Ampere) in TFLOP/s, from the makers' data sheets, without sparsity. The first
# name that is part of the device's name counts.
PEAKS = {
    "GB200": 2500, "B200": 2250, "B100": 1750, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835,
    "H100": 989, "H800": 989, "H20": 148, "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10G": 70,
    "A10": 125, "A6000": 155, "L40S": 362,
    "L40": 181, "L4": 121, "RTX 4090": 165, "RTX 3090": 71, "V100": 125, "T4": 65,
    "MI355": 2500, "MI325": 1307, "MI300": 1307, "MI250": 383,
}  # fmt: skip


def device_name(device: torch.device) -> str:
    """The name of a device: "NVIDIA H100 80GB HBM3", "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a device in 16-bit dtypes, its maker's figure.

    None where it is not known: for other dtypes, and for a CPU, whose makers give none (`measured_flops` is
    what one product reaches, and training has reached more). float8 runs are measured against the 16-bit
    peak too.
    """
    if device.type == "cpu" or dtype == torch.float32:
        return None
    name = device_name(device)
    return next((tera * 1e12 for part, tera in PEAKS.items() if part in name), None)


def measured_flops() -> float:
    """FLOP/s of this machine's processors: the best of twenty float32 products of 1024 x 1024 matrices.

    They take half a second on two cores. The best counts, because other programs slow some of them down.
    """
    a, b = (torch.ones(1024, 1024) for _ in "ab")
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)
