"""Grouped-query self-attention, causal or bidirectional, through torch's SDPA; the cache of keys and values.

The projection to queries, keys and values is one matrix whose rows go group by group: the group's query heads, then
its key head, then its value head (Megatron-LM's order), so that a slice of its rows is a slice of the groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear, ModelConfig, rotate


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D). config must be resolved."""

    def __init__(self, config: ModelConfig, *, causal: bool):
        super().__init__()
        self.heads, self.groups, self.channels = config.num_attention_heads, config.num_query_groups, config.kv_channels
        self.causal, self.dropout = causal, config.attention_dropout
        std, bias = config.init_method_std, config.add_bias_linear
        self.qkv = Linear(config.hidden_size, (self.heads + 2 * self.groups) * self.channels, bias=bias, std=std)
        self.out = Linear(self.heads * self.channels, config.hidden_size, bias=bias, std=std / (2 * config.num_layers) ** 0.5)

    def forward(self, x: Tensor, *, rotary=None, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """rotary: (cos, sin), each (B or 1, 1, T, C). mask: bool, True where a query may look, broadcast to (B, H, T, keys).

        Without a mask a causal layer looks at what came before, a bidirectional one at everything.
        """
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, self.groups, self.heads // self.groups + 2, self.channels)
        query = qkv[..., :-2, :].reshape(B, T, self.heads, self.channels).transpose(1, 2)  # (B, H, T, C)
        key, value = qkv[..., -2, :].transpose(1, 2), qkv[..., -1, :].transpose(1, 2)  # (B, G, T, C)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.extend(key, value)
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.causal and mask is None,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=self.groups != self.heads,
        )
        return self.out(y.transpose(1, 2).reshape(B, T, self.heads * self.channels))


class KVCache:
    """Keys and values of every layer. The slot of a token is its position.

    So rows of different lengths need no offsets: pad prompts on the right, and what the padding wrote is overwritten
    by the row's own later tokens before any of them may look there (a query at position p sees slots 0 to p).
    """

    def __init__(self, config: ModelConfig, batch: int, max_length: int, *, dtype: torch.dtype, device: torch.device):
        shape = (batch, max_length, config.num_query_groups, config.kv_channels)
        self.layers = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        ]
        self.max_length = max_length
        self.length = 0  # slots that any row has filled

    def at(self, positions: Tensor) -> tuple[list[LayerCache], Tensor]:
        """Each layer's view for tokens at positions (B, T), and the mask (B, 1, T, slots) of what they may see."""
        self.length = max(self.length, int(positions.max()) + 1)
        assert self.length <= self.max_length, f"position {self.length - 1} in a cache of {self.max_length} slots"
        slots = torch.arange(self.length, device=positions.device)
        mask = slots <= positions[:, None, :, None]
        return [LayerCache(k, v, positions, self.length) for k, v in self.layers], mask


class LayerCache:
    """One layer's keys and values, for tokens at given positions."""

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, length: int):
        self.keys, self.values, self.positions, self.length = keys, values, positions, length

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps key and value (B, G, T, C) in their slots; returns the first `length` slots, (B, G, length, C)."""
        rows = torch.arange(len(key), device=key.device)[:, None]
        self.keys[rows, self.positions] = key.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, self.positions] = value.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, : self.length].transpose(1, 2).to(key.dtype), self.values[:, : self.length].transpose(1, 2).to(value.dtype)
