"""Rotary positions (RoPE, Su et al. 2021), ALiBi (Press et al. 2021), T5's biases (Raffel et al. 2020).

Legend: B batch, T sequence, C channels of a head, H heads.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple, TypedDict

import torch
from torch import Tensor

from ...core.parsing import Range, problem
from .yarn import yarn_attention_factor

Positive = Annotated[float, Range(1e-9, 1e9)]  # so that no quotient overflows


class RopeScaling(TypedDict, total=False):
    """The values of Hugging Face's `rope_scaling` (`rope_parameters`)."""

    rope_type: str
    factor: Positive
    original_max_position_embeddings: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    attention_factor: Positive | None
    beta_fast: Positive | None
    beta_slow: Positive | None
    mscale: Annotated[float | None, Range(0, 1e9)]
    mscale_all_dim: Annotated[float | None, Range(0, 1e9)]
    truncate: bool
    short_factor: list[Positive]
    long_factor: list[Positive]


# Keys of Hugging Face's `rope_scaling` (`rope_parameters`) beside rope_type: required, optional.
SCALING_KEYS = {
    "linear": (("factor",), ()),
    "dynamic": (("factor", "original_max_position_embeddings"), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        ("factor", "original_max_position_embeddings", "short_factor", "long_factor"),
        ("attention_factor",),
    ),
}


def scaling_mistake(scaling: dict) -> str | None:
    """The error in a rope_scaling mapping, for a message, or None."""
    if wrong := problem(scaling, RopeScaling):
        return wrong
    kind = scaling.get("rope_type")
    if kind not in SCALING_KEYS:
        return f"has rope_type {kind!r}; use {', '.join(SCALING_KEYS)}"
    needed, allowed = SCALING_KEYS[kind]
    if missing := [key for key in needed if key not in scaling]:
        return f"has no {missing[0]}, which rope_type {kind} needs"
    if unknown := [key for key in scaling if key not in ("rope_type", *needed, *allowed)]:
        return f"has {unknown[0]}, which rope_type {kind} does not know; use {', '.join((*needed, *allowed))}"
    if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        return f"has low_freq_factor {scaling['low_freq_factor']}, which must be below high_freq_factor"
    return None


def depends_on_length(scaling: dict | None) -> bool:
    """Whether the frequencies depend on the length of a text."""
    return scaling is not None and scaling["rope_type"] in ("dynamic", "longrope")


def rotary_table(
    positions: Tensor,
    channels: int,
    base: float,
    scaling: dict | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (B, T, channels) float32, of positions (B, T); halves as in HF's Llama.

    lengths: (B,), tokens of each row without its padding, where frequencies depend on them; by default all
    positions count.
    """
    if depends_on_length(scaling):
        lengths = positions.amax(-1) + 1 if lengths is None else lengths
        frequencies, factor = rotary_frequencies(
            channels, base, scaling, device=positions.device, length=lengths[:, None]
        )
        frequencies = frequencies[:, None]  # (B, 1, channels / 2)
    else:
        frequencies, factor = rotary_frequencies(channels, base, scaling, device=positions.device)
    angles = positions[..., None].double() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return (angles.cos() * factor).float(), (angles.sin() * factor).float()


def rotary_frequencies(
    channels: int,
    base: float,
    scaling: dict | None = None,
    *,
    device: torch.device | None = None,
    length: Tensor | None = None,
) -> tuple[Tensor, float]:
    """((channels / 2,) float64 radians per position, the factor of cosine and sine).

    scaling: see SCALING_KEYS. linear: all frequencies are divided by the factor (Chen et al. 2023). llama3:
    only those with a wavelength that is long against the original length, with a ramp between (Dubey et al.
    2024). yarn: likewise, by the rotations over that length, with a larger attention factor (Peng et al.
    2023). dynamic: the base grows once the sequence is longer than the original length (section 3.3 of the
    YaRN paper). longrope: each is divided by a factor of its own, by one of two lists: that of texts within
    the original length, or of longer ones (Ding et al. 2024). length: () or (B, 1) int64, tokens of a text;
    with (B, 1) the frequencies are (B, channels / 2).
    """
    if scaling is not None and scaling["rope_type"] == "dynamic":
        assert length is not None, "dynamic scaling depends on the sequence length"
        stretch = length.double() / scaling["original_max_position_embeddings"]
        base = base * (scaling["factor"] * stretch.clamp(min=1) - (scaling["factor"] - 1)) ** (
            channels / (channels - 2)
        )
        scaling = None
    frequencies = base ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels)
    if scaling is None:
        return frequencies, 1.0
    kind, factor = scaling["rope_type"], scaling["factor"]
    if kind == "longrope":
        assert length is not None, "longrope depends on the sequence length"
        short, long = (
            torch.tensor(scaling[name], dtype=torch.float64, device=device)
            for name in ("short_factor", "long_factor")
        )
        chosen = torch.where(length > scaling["original_max_position_embeddings"], long, short)
        return frequencies / chosen, _longrope_attention_factor(scaling)
    if kind == "linear":
        return frequencies / factor, 1.0
    original = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        # 1: unchanged, 0: divided by the factor
        kept = ((original * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / factor), 1.0

    def channel_of(turns: float) -> float:
        """The pair of channels, a fraction, that makes this number of rotations over the original length."""
        return channels * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = channel_of(scaling.get("beta_fast") or 32), channel_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    divided = (
        (torch.arange(channels // 2, dtype=torch.float64, device=device) - first) / (last - first or 0.001)
    ).clamp(0, 1)
    return frequencies * (1 - divided + divided / factor), yarn_attention_factor(scaling)


def _longrope_attention_factor(scaling: dict) -> float:
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    if scaling["factor"] <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling["factor"]) / math.log(scaling["original_max_position_embeddings"]))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, C) rotated by the angles of its positions. cos, sin (..., T, R) broadcast to it.

    R < C: only the first R channels of a head are rotated (GPT-NeoX).
    """
    if cos.shape[-1] < x.shape[-1]:
        rotated, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([rotate(rotated, cos, sin), rest], dim=-1)
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, C) rotated as by `rotate`, with neighbouring channels as pairs (GPT-J, DeepSeek).

    The result has the first channels of all pairs, then the second ones: scores do not depend on the order.
    """
    if cos.shape[-1] < x.shape[-1]:
        rotated, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([rotate_pairs(rotated, cos, sin), rest], dim=-1)
    return rotate(torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1), cos, sin)


def distance_buckets(
    queries: Tensor, keys: Tensor, *, both_ways: bool, buckets: int, max_distance: int
) -> Tensor:
    """(..., T, K) int64: the bucket of the distance from each query to each key.

    queries (..., T), keys (K,): positions. The first half of the buckets are single distances, the others
    grow logarithmically up to max_distance. both_ways: keys after the query have half of all buckets to
    themselves; otherwise they count as distance 0 (they are masked anyway).
    """
    ahead = keys - queries[..., None]
    first = torch.zeros_like(ahead)
    if both_ways:
        buckets //= 2
        first = (ahead > 0) * buckets
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp(min=0)
    single = buckets // 2
    # In float32 and in the original's order of operations: a bucket's edge may depend on the last bit.
    grown = (
        torch.log(distance.float().clamp(min=1) / single)
        / math.log(max_distance / single)
        * (buckets - single)
    )
    return first + torch.where(distance < single, distance, (single + grown.long()).clamp(max=buckets - 1))


class Alibi(NamedTuple):
    """ALiBi: head h adds slope(h) x (key - query) to its scores (Press et al. 2021, arXiv 2108.12409).

    Of a model's `total` heads, `heads` from `first` on: tensor parallelism divides them.
    """

    total: int
    first: int
    heads: int

    def part(self, rank: int, size: int) -> Alibi:
        """The heads of one of `size` ranks."""
        heads = self.heads // size
        return self._replace(first=self.first + rank * heads, heads=heads)

    def slope(self, head: Tensor) -> Tensor:
        """The slopes of heads, counted from `first`, as BLOOM has them for any number of heads.

        For 2^k heads they are 2^(-8/2^k), 2^(-16/2^k) ... 2^-8. Heads beyond the largest power of two have
        every second slope of twice as many, from the first on.
        """
        power = 1 << (self.total.bit_length() - 1)
        head = head + self.first
        beyond = 2 * (head - power) + 1
        return torch.exp2(-torch.where(head < power, (head + 1) * (8 / power), beyond * (4 / power)))

    def bias(self, queries: Tensor, keys: Tensor, allowed: Tensor, dtype: torch.dtype) -> Tensor:
        """(1 or B, heads, T, K): the bias where attention is allowed, minus infinity elsewhere.

        queries: (T,) or (B, T), keys: (K,) int64 positions. allowed: (1 or B, 1, T, K) bool.
        """
        distance = keys - queries[..., None]  # exact, where slope x key loses the low bits of late keys
        distance = distance if distance.ndim == 3 else distance[None]
        slopes = self.slope(torch.arange(self.heads, device=keys.device))
        bias = (slopes[:, None, None] * distance[:, None]).to(dtype)
        return bias.masked_fill(~allowed, float("-inf"))
