"""Multi-latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1).

Keys and values of all heads are made of one latent a token, which is much smaller than they are; queries may
have a latent too. Positions do not go through the latents: each head has some rotated channels of its queries
beside the others, and one rotated key serves all heads.

    x (B, T, D) -> query_down -> query_norm -> query_up  -> queries (H, C + P)     or query -> queries
                -> key_value_down -> latent (R), rotated key (P)
                   latent -> key_value_norm -> key_value_up -> keys (H, C), values (H, V)

Generation caches the normalised latent and the rotated key, R + P numbers a token in place of H (C + P + V).
For few queries keys and values are then not computed: key_value_up is applied to the queries and to the
output (section 2.1.2), so that all heads attend to the latents themselves.

Legend: B batch, T sequence, D hidden, H heads, R kv_lora_rank, C qk_head_dim, P qk_pos_emb_head_dim, V
v_head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import AttentionMask, LayerCache, attend
from .block import Mixer
from .config import ResolvedModelConfig
from .layers import Linear, Norm
from .positions import rotate_pairs
from .yarn import yarn_mscale


class MultiLatentAttention(Mixer):
    """Self-attention over latents, x (B, T, D) -> (B, T, D).

    Tensor parallelism cuts the heads; every rank computes the latents of all of them.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        size, heads, std = config.hidden_size, config.num_attention_heads, config.init_method_std
        self.rank, self.channels = config.kv_lora_rank, config.qk_head_dim
        self.rotated, self.value_channels = config.qk_pos_emb_head_dim, config.v_head_dim
        self.scale, self.dropout = latent_attention_scale(config), config.attention_dropout
        self.softcap = config.attn_logit_softcapping
        bias, queries = config.add_attention_bias, heads * (self.channels + self.rotated)
        norm = lambda size: (
            Norm(config, size, config.latent_layernorm_epsilon) if config.qk_layernorm else None
        )
        self.query = self.query_down = self.query_norm = self.query_up = None
        if config.q_lora_rank is None:
            self.query = Linear(size, queries, bias=False, std=std, split="column")
        else:
            self.query_down = Linear(size, config.q_lora_rank, bias=bias, std=std)
            self.query_norm = norm(config.q_lora_rank)
            self.query_up = Linear(config.q_lora_rank, queries, bias=False, std=std, split="column")
        self.key_value_down = Linear(size, self.rank + self.rotated, bias=bias, std=std)
        self.key_value_norm = norm(self.rank)
        self.key_value_up = Linear(
            self.rank, heads * (self.channels + self.value_channels), bias=False, std=std, split="column"
        )
        self.out = Linear(
            heads * self.value_channels,
            size,
            bias=config.add_bias_linear or bias,
            std=config.residual_std,
            split="row",
        )
        self.attend = attend  # parallel/ replaces this where ranks have parts of a sequence

    def forward(
        self,
        x: Tensor,
        *,
        mask: AttentionMask,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache | None = None,
        **_,
    ) -> Tensor:
        """rotary: (cos, sin), each (B or 1, 1, T, P)."""
        query = self._queries(x)
        flat, rotated = query.split([self.channels, self.rotated], dim=-1)
        rotated = rotate_pairs(rotated, *rotary)
        latent, key = self.key_value_down(x)[:, None].split([self.rank, self.rotated], dim=-1)
        if self.key_value_norm is not None:
            latent = self.key_value_norm(latent)
        key = rotate_pairs(key, *rotary)  # (B, 1, T, P)
        if cache is not None:
            cached = torch.cat([latent, key], dim=-1)
            cached = cache.extend(cached, cached[..., :0])[0]
            if self._absorbs(x.shape[1]):
                return self.out(self._attend_to_latents(flat, rotated, cached, mask))
            latent, key = cached.split([self.rank, self.rotated], dim=-1)
        key, value = self._keys_and_values(latent, key)
        y = self.attend(
            torch.cat([flat, rotated], dim=-1),
            key,
            value,
            mask,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            softcap=self.softcap,
        )
        return self.out(y)

    def _queries(self, x: Tensor) -> Tensor:
        """(B, H, T, C + P), not rotated yet."""
        if self.query is not None:
            queries = self.query(x)
        else:
            assert self.query_down is not None, "queries have a latent, or a matrix of their own"
            assert self.query_up is not None, "queries have a latent, or a matrix of their own"
            latent = self.query_down(x)
            queries = self.query_up(latent if self.query_norm is None else self.query_norm(latent))
        return queries.unflatten(-1, (-1, self.channels + self.rotated)).transpose(1, 2)

    def _keys_and_values(self, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, S, C + P) and (B, H, S, V) from latents (B, 1, S, R) and rotated keys (B, 1, S, P)."""
        both = self.key_value_up(latent[:, 0]).unflatten(-1, (-1, self.channels + self.value_channels))
        key, value = both.transpose(1, 2).split([self.channels, self.value_channels], dim=-1)
        return torch.cat([key, rotated.expand(-1, key.shape[1], -1, -1)], dim=-1), value

    def _absorbs(self, queries: int) -> bool:
        """Whether attending to latents takes fewer products than computing all keys and values.

        For every cached token and head they are R + P and R a query; with keys and values C + P and V a
        query, and once R (C + V). With DeepSeek's sizes the former are fewer up to 170 queries.
        """
        wide = 2 * self.rank - self.channels - self.value_channels
        return not self.training and queries * wide < self.rank * (self.channels + self.value_channels)

    def _attend_to_latents(
        self, query: Tensor, rotated: Tensor, cached: Tensor, mask: AttentionMask
    ) -> Tensor:
        """(B, T, H x V) from query (B, H, T, C), rotated (B, H, T, P) and cached latents (B, 1, S, R + P)."""
        weight = self.key_value_up.weight.unflatten(0, (query.shape[1], -1))  # (H, C + V, R)
        to_keys, to_values = weight.split([self.channels, self.value_channels], dim=1)
        query = torch.cat([query @ to_keys, rotated], dim=-1)
        # The latents are the values too: their last P channels are dropped after the sum.
        y = attend(query, cached, cached, mask, scale=self.scale, dropout=0.0, softcap=self.softcap)
        y = y.unflatten(-1, (query.shape[1], -1))[..., : self.rank].transpose(1, 2)
        return (y @ to_values.transpose(1, 2)).transpose(1, 2).flatten(2)

    def new_cache(self, batch: int, max_length: int) -> LayerCache:
        """Latents and rotated keys in one tensor, as the keys of one group; values have no channels."""
        cached = self.key_value_down.weight.new_zeros(batch, max_length, 1, self.rank + self.rotated)
        return LayerCache(cached, cached.new_zeros(batch, max_length, 1, 0))

    def of_latents(self) -> set[nn.Module]:
        """The modules that every tensor-parallel rank has whole, each with the gradients of its own heads."""
        modules = (self.query_down, self.query_norm, self.key_value_down, self.key_value_norm)
        return {module for module in modules if module is not None}


def latent_attention_scale(config: ResolvedModelConfig) -> float:
    """The factor of the scores: softmax_scale, or (C + P)^-0.5 times the square of YaRN's mscale_all_dim.

    YaRN multiplies the scores of all channels, but cosines and sines reach only the rotated ones (DeepSeek).
    """
    if config.softmax_scale is not None:
        return config.softmax_scale
    scaling = config.rope_scaling or {}
    return (
        config.kv_channels**-0.5
        * yarn_mscale(scaling.get("factor", 1.0), scaling.get("mscale_all_dim") or 0.0) ** 2
    )
