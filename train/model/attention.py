"""Grouped-query attention, cross-attention, attention masks and backends, and the key-value cache.

The projection to queries, keys and values is one matrix whose rows go group by group: the group's query
heads, its key head, its value head (Megatron-LM's order), so that a slice of its rows is a slice of the
groups. The number of heads comes from the weights, not from the configuration, so that a module with cut
weights computes its share.

An attention mask is made once for a batch (`causal_mask`), not in every layer.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import UserError
from ...core.manifest import keep_compiled_code_private
from .block import Mixer
from .config import ResolvedModelConfig
from .layers import AllHeadsNorm, Linear, Norm
from .positions import Alibi, rotate, rotate_pairs

PREFERRED = "flash", "transformer-engine", "varlen", "flex", "sdpa"
PACKAGES = {  # backend: module, package
    "flash": ("flash_attn", "flash-attn"),
    "transformer-engine": ("transformer_engine", "transformer-engine[pytorch]"),
}
SCORES = 1 << 18  # scores of the texts that _each computes together


class Documents(NamedTuple):
    """The documents that are packed into B samples of T tokens."""

    ids: Tensor  # (B, T) int32: 0, 0, ..., 1, 1, ...: the index of each token's document in its sample
    cu_seqlens: Tensor  # (n + 1,) int32: start of each of the n documents in the flattened batch, then B x T
    max_seqlen: int  # tokens of the longest document


class AttentionMask(NamedTuple):
    """The attention mask of a batch, in the form that its backend takes."""

    backend: str = "sdpa"
    causal: bool = False  # mask later keys; with sdpa only where `tensor` is None
    # sdpa: (B or 1, H or 1, T, keys), bool, True where attention is allowed, or float, added to the scores
    tensor: Tensor | None = None
    block_mask: Any = None  # flex: its BlockMask
    # flash, varlen, each, transformer-engine (there None: every sample is one document)
    documents: Documents | None = None
    window: int | None = None  # flash, varlen, transformer-engine: tokens, the query's own included
    alibi: Alibi | None = None  # flash, flex: biases of distances; with sdpa they are in `tensor`

    @property
    def window_size(self) -> tuple[int, int]:
        """(left, right) as the kernels take it: tokens before the query's own, -1 for all, and after it."""
        return (-1 if self.window is None else self.window - 1, 0)


def causal_mask(
    config: ResolvedModelConfig,
    tokens: Tensor,
    dtype: torch.dtype,
    documents: Documents | None = None,
    *,
    windowed: bool = True,
    alibi: Alibi | None = None,
) -> AttentionMask:
    """The mask of causal attention: masks later tokens, other documents, tokens outside the window.

    tokens: (B, T), for its shape and device. dtype: of the queries. windowed: of the layers that have the
    window, if the model has one. alibi: of this rank's heads. Positions count from the sample's beginning:
    only their differences within a document matter.
    """
    B, T = tokens.shape
    window = config.window_size if windowed and config.window_size and config.window_size < T else None
    bounded = documents is not None or window is not None or config.attn_logit_softcapping is not None
    bounded = bounded or alibi is not None
    backend = attention_backend(config, tokens.device, dtype, bounded=bounded)
    if backend == "transformer-engine":
        return AttentionMask(backend, True, documents=documents, window=window)
    if backend in ("flash", "varlen"):
        if documents is None:  # every sample is one document
            starts = torch.arange(0, B * T + 1, T, device=tokens.device, dtype=torch.int32)
            documents = Documents(torch.zeros_like(tokens), starts, T)
        return AttentionMask(backend, True, documents=documents, window=window, alibi=alibi)
    if documents is None and window is None and alibi is None and backend == "sdpa":
        return AttentionMask(causal=True)
    ids = None if documents is None else documents.ids
    if backend == "flex":
        block_mask = _block_mask(ids, B, T, window, tokens.device)
        return AttentionMask(backend, True, block_mask=block_mask, alibi=alibi)
    # One mask for all layers: on a CPU attention takes 1.4 times as long as without a mask (float32, T =
    # 1024); document by document it would take 0.9 to 4.4 times as long, depending on the documents' lengths.
    order = torch.arange(T, device=tokens.device)
    mask = order <= order[:, None]
    if window is not None:
        mask &= order > order[:, None] - window
    mask = mask[None] if ids is None else mask & (ids[:, :, None] == ids[:, None, :])
    mask = mask[:, None]
    return AttentionMask(tensor=mask if alibi is None else alibi.bias(order, order, mask, dtype))


def bidirectional_mask(present: Tensor | None) -> AttentionMask:
    """The mask of bidirectional attention. present: (B, keys), false for padding; None: no padding."""
    return AttentionMask(tensor=None if present is None else present.bool()[:, None, None, :])


def packed_texts_mask(lengths: list[int], device: torch.device) -> AttentionMask:
    """The mask of bidirectional attention within each of the texts packed into one row; inference only.

    lengths: tokens of each text. On a CPU it saves the padding of a batch and the mask, and scores stay in
    the cache.
    """
    ends = torch.tensor([0, *lengths], device=device).cumsum(0)
    ids = torch.arange(len(lengths), device=device).repeat_interleave(ends.diff())
    return AttentionMask("each", documents=Documents(ids[None].int(), ends.int(), max(lengths)))


def attention_backend(
    config: ResolvedModelConfig, device: torch.device, dtype: torch.dtype, *, bounded: bool
) -> str:
    """The backend of causal attention: flash, transformer-engine, varlen, flex or sdpa.

    bounded: whether documents or a window mask more than later tokens, or ALiBi adds to the scores, for which
    sdpa needs a T x T mask.
    dtype: of the queries. Raises UserError where the backend of the configuration cannot be used.
    """
    asked = config.attention_backend
    if asked == "auto":
        return (
            next(name for name in PREFERRED if _obstacle(name, config, device, dtype) is None)
            if bounded
            else "sdpa"
        )
    if obstacle := _obstacle(asked, config, device, dtype):
        raise UserError(f"model.attention_backend = {asked} {obstacle}; use auto")
    return asked


def _obstacle(name: str, config: ResolvedModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot be used here, or None."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return f"needs a GPU, and this runs on {device.type}"
    if name not in PACKAGES and config.attention_dropout:
        return f"has no dropout, and model.attention_dropout = {config.attention_dropout}"
    if name == "flex":
        return None
    if name != "flash" and config.position_embedding_type == "alibi":
        return "adds no biases of distances to the scores, and model.position_embedding_type = alibi"
    if config.attn_logit_softcapping is not None:
        return f"does not limit scores, and model.attn_logit_softcapping = {config.attn_logit_softcapping}"
    if name == "varlen" and config.softmax_scale is not None and "scale" not in _varlen_options():
        return f"takes no model.softmax_scale in torch {torch.__version__}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    channels = max(config.kv_channels, config.v_head_dim if config.multi_latent_attention else 0)
    if channels > 256:
        return f"takes heads of at most 256 channels, not {channels}"
    if name in PACKAGES:
        module, package = PACKAGES[name]
        if importlib.util.find_spec(module):
            return None
        return f"needs the package {package.partition('[')[0]} (pip install --no-build-isolation '{package}')"
    if config.window_size is not None and "window_size" not in _varlen_options():
        return f"knows no windows in torch {torch.__version__}"
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    scale: float | None,
    dropout: float,
    softcap: float | None = None,
) -> Tensor:
    """(B, T, H x C) from query (B, H, T, C), key and value (B, G, keys, C).

    Values may have another number of channels. scale: of the scores; None: C^-0.5. softcap: their limit, see
    ModelConfig.attn_logit_softcapping.
    """
    grouped = query.shape[1] != key.shape[1]
    if value.shape[-1] != key.shape[-1] and mask.backend != "flex" and softcap is None:
        return _with_equal_channels(query, key, value, mask, scale, dropout)
    if mask.backend == "each":
        assert mask.documents is not None, "packed_texts_mask sets it"
        return _each(query[0], key[0], value[0], mask.documents.cu_seqlens.tolist(), scale)
    if mask.backend == "transformer-engine":
        return _transformer_engine(query, key, value, mask, scale, dropout)
    if mask.backend in ("flash", "varlen"):
        B, _, T, _ = query.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B x T, heads, C)
        y = (_flash if mask.backend == "flash" else _varlen)(q, k, v, mask, scale, dropout)
        return y.reshape(B, T, -1)
    if mask.backend == "flex":
        change = None if softcap is None and mask.alibi is None else _score_change(softcap, mask.alibi)
        y = _flex_attention()(
            query, key, value, change, block_mask=mask.block_mask, scale=scale, enable_gqa=grouped
        )
    elif softcap is not None:
        y = _limited(query, key, value, mask, scale, dropout, softcap)
    else:
        if query.shape[2] == 1 and query.dtype == torch.bfloat16 and query.device.type == "cpu":
            # For one query torch's kernel takes three times as long as the copies and float32 together.
            return attend(
                query.float(), key.float(), value.float(), mask, scale=scale, dropout=dropout
            ).bfloat16()
        attn_mask = mask.tensor
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(query.dtype)
        y = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            is_causal=mask.causal and attn_mask is None,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=grouped,
        )
    return y.transpose(1, 2).flatten(2)


def _with_equal_channels(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scale: float | None, dropout: float
) -> Tensor:
    """attend with values of other channels than keys: those of the narrower ones are filled up with zeros.

    The kernels that do not keep the scores need equal numbers, that of torch on processors too.
    """
    own, channels = value.shape[-1], max(key.shape[-1], value.shape[-1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (F.pad(x, (0, channels - x.shape[-1])) for x in (query, key, value))
    y = attend(query, key, value, mask, scale=scale, dropout=dropout)
    return y.unflatten(-1, (-1, channels))[..., :own].flatten(2)


def _limited(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    scale: float | None,
    dropout: float,
    softcap: float,
) -> Tensor:
    """(B, H, T, C): attention with limited scores by plain products, which build all of them."""
    heads, channels = query.shape[1], query.shape[-1]
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (channels**-0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    allowed = mask.tensor
    if allowed is None and mask.causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if allowed is not None:
        added = allowed.dtype != torch.bool
        scores = scores + allowed if added else scores.masked_fill(~allowed, float("-inf"))
    weights = scores.softmax(-1, torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return F.dropout(weights, dropout) @ value


@functools.cache  # one function for equal changes: torch.compile guards on it
def _score_change(softcap: float | None, alibi: Alibi | None):
    def change(score, b, h, query, key):
        score = score if softcap is None else softcap * torch.tanh(score / softcap)
        return score if alibi is None else score + alibi.slope(h) * (key - query)

    return change


def _each(query: Tensor, key: Tensor, value: Tensor, ends: list[int], scale: float | None) -> Tensor:
    """(1, T, H x C) from query, key and value (H, T, C) of packed texts, text i from ends[i] to ends[i + 1].

    No gradients. Plain products: for 60 tokens torch's own attention takes three times as long in float32.
    Consecutive texts of one length are computed together, at most SCORES scores, which stay in a core's
    cache.
    """
    heads, T, channels = query.shape
    if key.shape[0] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[0], 0) for x in (key, value))
    scale = channels**-0.5 if scale is None else scale
    y, nothing, start = query.new_empty(T, heads, channels), query.new_zeros(()), 0
    for length, run in itertools.groupby(end - begin for begin, end in itertools.pairwise(ends)):
        left = sum(1 for _ in run)
        together = max(1, SCORES // (heads * length**2))
        while left:
            count = min(together, left)
            places = slice(start, start + count * length)
            own = [x[:, places].reshape(heads * count, length, channels) for x in (query, key, value)]
            scores = torch.baddbmm(nothing, own[0], own[1].transpose(1, 2), beta=0, alpha=scale)
            # In float32: in bfloat16 torch takes twice as long.
            weights = scores.softmax(-1, torch.float32).to(value.dtype)
            y[places].view(count, length, heads, channels).copy_(
                torch.bmm(weights, own[2]).view(heads, count, length, channels).permute(1, 2, 0, 3)
            )
            start, left = places.stop, left - count
    return y.flatten(1)[None]


def _flash(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scale: float | None, dropout: float
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    assert mask.documents is not None, "causal_mask sets it"
    _, starts, longest = mask.documents
    alibi, heads = mask.alibi, torch.arange(query.shape[1], device=query.device)
    return flash_attn_varlen_func(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,
        window_size=mask.window_size,
        alibi_slopes=None if alibi is None else alibi.slope(heads),  # (H,) float32
    )


def _transformer_engine(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scale: float | None, dropout: float
) -> Tensor:
    """Transformer Engine's fused attention: it chooses cuDNN's or flash-attn's by the shapes."""
    B, heads, T, channels = query.shape
    samples = [x.transpose(1, 2) for x in (query, key, value)]  # (B, T, heads, C)
    how: dict = {"qkv_format": "bshd", "attn_mask_type": "causal"}
    if mask.documents is not None:
        samples = [x.flatten(0, 1) for x in samples]
        _, starts, longest = mask.documents
        how = {
            "qkv_format": "thd",
            "attn_mask_type": "padding_causal",
            "cu_seqlens_q": starts,
            "cu_seqlens_kv": starts,
            "max_seqlen_q": longest,
            "max_seqlen_kv": longest,
        }
    layer = _transformer_engine_layer(heads, channels, key.shape[1], dropout, scale)
    return layer(*(x.contiguous() for x in samples), window_size=mask.window_size, **how).reshape(B, T, -1)


@functools.cache
def _transformer_engine_layer(heads: int, channels: int, groups: int, dropout: float, scale: float | None):
    """Transformer Engine's attention, a module without weights."""
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(
        heads, channels, num_gqa_groups=groups, attention_dropout=dropout, softmax_scale=scale
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scale: float | None, dropout: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    assert not dropout, "_obstacle refuses this"
    assert mask.documents is not None, "causal_mask sets it"
    (_, starts, longest), known = mask.documents, _varlen_options()
    how: dict = {"window_size": mask.window_size} if "window_size" in known else {"is_causal": True}
    if scale is not None:
        how["scale"] = scale
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in known:
            how["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    y = varlen_attn(query, key, value, starts, starts, longest, longest, **how)
    assert isinstance(y, Tensor), "without return_aux the output comes alone"
    return y


@functools.cache
def _varlen_options() -> frozenset[str]:
    """The parameters of torch's variable-length attention, which differ between versions of torch."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@functools.cache
def _flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    keep_compiled_code_private()
    return torch.compile(flex_attention, dynamic=False)  # uncompiled it would build all T x T scores


def _block_mask(ids: Tensor | None, B: int, T: int, window: int | None, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b, h, query, key):
        allowed = query >= key
        if window is not None:
            allowed &= key > query - window
        return allowed if ids is None else allowed & (ids[b, query] == ids[b, key])

    return create_block_mask(visible, None if ids is None else B, None, T, T, device=str(device))


def attention_scale(config: ResolvedModelConfig) -> float | None:
    """The factor of the scores; None: kv_channels^-0.5. T5 with relative positions does not scale them."""
    return 1.0 if config.position_embedding_type == "relative" else config.softmax_scale


class Attention(Mixer):
    """Self-attention, x (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        heads, groups, std = config.num_attention_heads, config.num_query_groups, config.init_method_std
        self.channels, self.queries_per_group = config.kv_channels, heads // groups
        self.scale, self.dropout = attention_scale(config), config.attention_dropout
        self.softcap, self.interleaved = config.attn_logit_softcapping, config.rotary_interleaved
        out_bias = config.add_bias_linear or config.add_attention_bias
        qkv_bias = out_bias or config.add_qkv_bias
        self.qkv = Linear(
            config.hidden_size, (heads + 2 * groups) * self.channels, bias=qkv_bias, std=std, split="column"
        )
        norm = lambda heads: (
            AllHeadsNorm(config, heads)
            if config.qk_layernorm_scope == "all_heads"
            else Norm(config, self.channels)
        )
        self.query_norm = norm(heads) if config.qk_layernorm else None
        self.key_norm = norm(groups) if config.qk_layernorm else None
        self.out = Linear(
            heads * self.channels,
            config.hidden_size,
            bias=out_bias,
            std=config.residual_std,
            split="row",
        )
        self.attend = attend  # parallel/ replaces this where ranks have parts of a sequence

    def forward(
        self,
        x: Tensor,
        *,
        mask: AttentionMask,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        **_,
    ) -> Tensor:
        """rotary: (cos, sin), each (B or 1, 1, T, rotated channels)."""
        B, T = x.shape[:2]
        qkv = self.qkv(x).view(B, T, -1, self.queries_per_group + 2, self.channels)
        # (B, T, H or G, C)
        query, key, value = qkv[..., :-2, :].flatten(2, 3), qkv[..., -2, :], qkv[..., -1, :]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if rotary is not None:
            turn = rotate_pairs if self.interleaved else rotate
            query, key = turn(query, *rotary), turn(key, *rotary)
        if cache is not None:
            key, value = cache.extend(key, value)
        y = self.attend(
            query,
            key,
            value,
            mask,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            softcap=self.softcap,
        )
        return self.out(y)

    def new_cache(self, batch: int, max_length: int) -> LayerCache:
        groups = self.qkv.weight.shape[0] // (self.queries_per_group + 2) // self.channels
        return LayerCache(
            *(self.qkv.weight.new_zeros(batch, max_length, groups, self.channels) for _ in "kv")
        )


class CrossAttention(nn.Module):
    """Attention to another sequence: x (B, T, D), memory (B, S, D) -> (B, T, D)."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        heads, groups = config.num_attention_heads, config.num_query_groups
        size, std = config.hidden_size, config.init_method_std
        self.channels = config.kv_channels
        self.scale, self.dropout = attention_scale(config), config.attention_dropout
        qkv_bias = config.add_bias_linear or config.add_qkv_bias
        self.query = Linear(size, heads * self.channels, bias=qkv_bias, std=std, split="column")
        # rows: key, then value of each group
        self.key_value = Linear(size, 2 * groups * self.channels, bias=qkv_bias, std=std, split="column")
        self.out = Linear(
            heads * self.channels, size, bias=config.add_bias_linear, std=config.residual_std, split="row"
        )

    def forward(
        self, x: Tensor, *, memory: Tensor, memory_mask: AttentionMask, cache: LayerCache | None = None, **_
    ) -> Tensor:
        """memory: (B, S, D). With a cache its keys and values are computed once, at the first call."""
        B, T = x.shape[:2]
        query = self.query(x).view(B, T, -1, self.channels).transpose(1, 2)
        if cache is None or cache.memory is None:
            key, value = self.keys_and_values(memory)
            if cache is not None:
                cache.memory = key, value
        else:
            key, value = cache.memory
        y = attend(
            query, key, value, memory_mask, scale=self.scale, dropout=self.dropout if self.training else 0.0
        )
        return self.out(y)

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, S, C) each, of memory (B, S, D)."""
        key_value = self.key_value(memory).unflatten(-1, (-1, 2, self.channels))
        return key_value[..., 0, :].transpose(1, 2), key_value[..., 1, :].transpose(1, 2)

    def new_memory(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Empty keys and values (B, G, length, C)."""
        shape = (batch, self.key_value.weight.shape[0] // (2 * self.channels), length, self.channels)
        return self.key_value.weight.new_zeros(shape), self.key_value.weight.new_zeros(shape)


class LayerCache:
    """One layer's keys and values, (B, slots, G, C). memory: those of the encoder's states, (B, G, S, C)."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values
        self.positions, self.length = keys.new_zeros(0), 0  # of the next tokens: set by Cache.at
        self.memory: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes key and value (B, G, T, C) to their slots; returns the first `length` slots."""
        rows = torch.arange(len(key), device=key.device)[:, None]
        self.keys[rows, self.positions] = key.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, self.positions] = value.transpose(1, 2).to(self.values.dtype)
        keys, values = (kept[:, : self.length].transpose(1, 2) for kept in (self.keys, self.values))
        return keys.to(key.dtype), values.to(value.dtype)


class Cache:
    """The caches of all layers: of attention keys and values, of Mamba its state.

    The slot of a token is its position, so rows of different lengths need no offsets: pad prompts on the
    right. The row's own later tokens overwrite the slots of the padding before any of them attends there (a
    query at position p attends to slots 0 to p).
    """

    def __init__(self, layers: list, max_length: int, window: int | None = None):
        """layers: the caches of the mixers, None for a layer without a mixer. window: see ModelConfig."""
        self.layers, self.max_length, self.window = layers, max_length, window
        self.length = 0  # slots that any row has filled

    def at(self, positions: Tensor, *, windowed: bool = True, alibi: Alibi | None = None) -> AttentionMask:
        """Prepares the layers for tokens at positions (B, T); returns the mask over the slots in use.

        windowed: of the layers that have the window, if there is one. alibi: of this rank's heads.
        """
        self.length = max(self.length, int(positions.max()) + 1)
        assert self.length <= self.max_length, (
            f"position {self.length - 1} in a cache of {self.max_length} slots"
        )
        for layer in self.layers:
            if isinstance(layer, LayerCache):
                layer.positions, layer.length = positions, self.length
        slots, own = torch.arange(self.length, device=positions.device), positions[:, None, :, None]
        mask = slots <= own
        if self.window is not None and windowed:
            mask = mask & (slots > own - self.window)
        if alibi is not None:
            mask = alibi.bias(positions, slots, mask, torch.float32)
        return AttentionMask(tensor=mask)
