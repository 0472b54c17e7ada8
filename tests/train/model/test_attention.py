"""Attention masks (windows, packed documents, padding), compared with loops; the choice of backends."""

import importlib.util
import itertools
import math
import sys
import types

import pytest
import torch
import torch.nn.attention.varlen
from torch.nn.attention.flex_attention import flex_attention

from mt.core.config import UserError
from mt.train.model import attention
from mt.train.model.attention import (
    AttentionMask,
    Documents,
    attend,
    attention_backend,
    bidirectional_mask,
    causal_mask,
)
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.positions import Alibi

pytestmark = pytest.mark.usefixtures("one_thread")
B, H, G, T, C = 2, 4, 2, 40, 16
LENGTHS = [[13, 1, 26], [40]]  # of the documents of each sample


def config(**settings) -> ModelConfig:
    return resolve(
        ModelConfig(num_layers=1, hidden_size=H * C, num_attention_heads=H, num_query_groups=G, **settings),
        vocab_size=1,
        seq_length=T,
    )


def queries_keys_values(dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(B, heads, T, C, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for heads in (H, G, G)
    ]


def documents(device="cpu") -> Documents:
    ids = torch.stack([torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in LENGTHS])
    ends = torch.tensor([n for row in LENGTHS for n in row]).cumsum(0)
    return Documents(ids.int().to(device), torch.cat([torch.zeros(1), ends]).int().to(device), 40)


def attend_by_loop(query, key, value, visible, change=lambda scores, h, distance: scores):
    """Attention one query at a time. visible(b, q, k): whether query q attends to key k.

    change(scores, h, distance): the scores of head h, for distances to keys (0 and less).
    """
    out = torch.zeros(B, T, H, C, dtype=query.dtype)
    for b in range(B):
        for q in range(T):
            keys = [k for k in range(T) if visible(b, q, k)]
            for h in range(H):
                scores = key[b, h // (H // G), keys] @ query[b, h, q] / math.sqrt(C)
                scores = change(scores, h, torch.tensor(keys) - q)
                out[b, q, h] = scores.softmax(0) @ value[b, h // (H // G), keys]
    return out.flatten(2)


def same_document(b, q, k):
    ends = torch.tensor(LENGTHS[b]).cumsum(0)
    return bool((ends > q).nonzero()[0] == (ends > k).nonzero()[0])


CASES = {
    "causal": ({}, False, lambda b, q, k: k <= q),
    "window": ({"window_size": 5}, False, lambda b, q, k: q - 5 < k <= q),
    "documents": ({}, True, lambda b, q, k: k <= q and same_document(b, q, k)),
    "window and documents": (
        {"window_size": 5},
        True,
        lambda b, q, k: q - 5 < k <= q and same_document(b, q, k),
    ),
    "window as long as the text": ({"window_size": T}, False, lambda b, q, k: k <= q),
}


@pytest.mark.parametrize("name", CASES)
def test_causal_attention_is_that_of_a_loop_over_queries(name):
    settings, packed, visible = CASES[name]
    inputs = queries_keys_values()
    mask = causal_mask(config(**settings), torch.zeros(B, T), torch.float64, documents() if packed else None)
    found, expected = attend(*inputs, mask, scale=None, dropout=0.0), attend_by_loop(*inputs, visible)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y.sin().sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


ALIBI = Alibi(H, 0, H)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    ("backend", "softcap"), [("sdpa", None), ("sdpa", 0.5), ("flex", None), ("flex", 0.5), ("flash", None)]
)
@pytest.mark.parametrize("name", CASES)
def test_alibi_subtracts_distances_under_every_mask(name, backend, softcap, monkeypatch):
    """The kernels of flex and flash need a GPU: uncompiled products, and a function, replace them."""
    settings, packed, visible = CASES[name]
    monkeypatch.setattr(attention, "_obstacle", lambda *_: None)
    monkeypatch.setattr(attention, "_flex_attention", lambda: flex_attention)
    flash_attn = types.SimpleNamespace(flash_attn_varlen_func=flash_attn_with_slopes)
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn)
    inputs = queries_keys_values()
    if backend == "flex":  # uncompiled on a CPU it has no backward pass
        inputs = [x.detach() for x in inputs]
    mask = causal_mask(
        config(
            position_embedding_type="alibi",
            attention_backend=backend,
            attn_logit_softcapping=softcap,
            **settings,
        ),
        torch.zeros(B, T),
        torch.float64,
        documents() if packed else None,
        alibi=ALIBI,
    )
    assert mask.backend == backend
    limit = lambda scores: scores if softcap is None else softcap * torch.tanh(scores / softcap)
    change = lambda scores, h, distance: limit(scores) + distance * 2.0 ** (-2 * (h + 1))
    found = attend(*inputs, mask, scale=None, dropout=0.0, softcap=softcap)
    expected = attend_by_loop(*inputs, visible, change)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if backend != "flex":
        gradients = [torch.autograd.grad(y.sin().sum(), inputs) for y in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def flash_attn_with_slopes(query, key, value, starts, _, longest, __, *, window_size, alibi_slopes, **how):
    """flash-attn's function, by its documentation: alibi_slopes (heads,) float32."""
    assert (alibi_slopes.dtype, alibi_slopes.shape, how["causal"]) == (torch.float32, (H,), True)
    distance = torch.arange(T) - torch.arange(T)[:, None]
    bias = alibi_slopes[:, None, None] * distance.double()
    return one_by_one(query, key, value, starts, window_size, causal=True, bias=bias)


def test_bidirectional_attention_masks_padding_only():
    inputs, present = queries_keys_values(), torch.arange(T) < torch.tensor([[T], [17]])
    found = attend(*inputs, bidirectional_mask(present), scale=None, dropout=0.0)
    torch.testing.assert_close(
        found, attend_by_loop(*inputs, lambda b, q, k: bool(present[b, k])), rtol=0, atol=1e-12
    )
    assert bidirectional_mask(None) == AttentionMask()


@pytest.mark.parametrize("scores", [1, 1 << 18])
def test_texts_packed_into_one_row_are_attended_to_separately(monkeypatch, scores):
    monkeypatch.setattr(attention, "SCORES", scores)  # 1: texts of equal length one by one, else together
    torch.manual_seed(0)
    lengths = [5, 5, 5, 3, 1, 3, 3]
    query, (key, value) = torch.randn(1, 4, sum(lengths), 8), torch.randn(2, 1, 2, sum(lengths), 8)
    ours = attention.attend(
        query, key, value, attention.packed_texts_mask(lengths, query.device), scale=None, dropout=0.0
    )
    parts = zip(*(x.split(lengths, 2) for x in (query, key, value)))
    expected = torch.cat(
        [torch.nn.functional.scaled_dot_product_attention(*part, enable_gqa=True) for part in parts], 2
    )
    torch.testing.assert_close(ours, expected.transpose(1, 2).flatten(2))


def test_attention_of_one_bfloat16_query_is_computed_in_float32_on_a_cpu():
    query, key, value = (
        x[:, :, :1] if n == 0 else x for n, x in enumerate(queries_keys_values(torch.bfloat16))
    )
    mask = AttentionMask(tensor=torch.arange(T).view(1, 1, 1, T) > 5)
    found = attend(query, key, value, mask, scale=None, dropout=0.0)
    torch.testing.assert_close(
        found,
        attend(query.float(), key.float(), value.float(), mask, scale=None, dropout=0.0).bfloat16(),
        rtol=0,
        atol=0,
    )
    exact = attend(query.double(), key.double(), value.double(), mask, scale=None, dropout=0.0)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def test_a_mask_is_made_only_if_needed_and_once_for_all_layers():
    assert causal_mask(config(), torch.zeros(B, T), torch.float32) == AttentionMask(causal=True)
    assert causal_mask(config(window_size=T), torch.zeros(B, T), torch.float32) == AttentionMask(causal=True)
    assert causal_mask(config(window_size=3), torch.zeros(B, T), torch.float32).tensor.shape == (1, 1, T, T)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("settings", "device", "dtype", "bounded", "chosen"),
    [
        ({}, CPU, torch.float32, False, "sdpa"),
        ({}, CPU, torch.bfloat16, True, "sdpa"),
        ({}, GPU, torch.bfloat16, False, "sdpa"),
        ({}, GPU, torch.bfloat16, True, "varlen"),
        ({}, GPU, torch.float32, True, "flex"),
        ({"attention_dropout": 0.1}, GPU, torch.bfloat16, True, "sdpa"),
        ({"attention_backend": "sdpa"}, GPU, torch.bfloat16, True, "sdpa"),
        ({"attention_backend": "flex"}, GPU, torch.bfloat16, False, "flex"),
        ({"position_embedding_type": "alibi"}, GPU, torch.bfloat16, True, "flex"),
        ({"position_embedding_type": "alibi"}, CPU, torch.bfloat16, True, "sdpa"),
    ],
)
def test_the_best_possible_backend_is_chosen(settings, device, dtype, bounded, chosen, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("flash_attn", "transformer_engine") else find(name),
    )
    assert attention_backend(config(**settings), device, dtype, bounded=bounded) == chosen
    if chosen == "varlen":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flash_attn" else True)
        assert attention_backend(config(**settings), device, dtype, bounded=bounded) == "transformer-engine"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    if chosen == "varlen":
        assert attention_backend(config(**settings), device, dtype, bounded=bounded) == "flash"


@pytest.mark.parametrize(
    ("settings", "device", "dtype", "message"),
    [
        (
            {"attention_backend": "flex"},
            CPU,
            torch.float32,
            "model.attention_backend = flex needs a GPU, and this runs on cpu; use auto",
        ),
        (
            {"attention_backend": "varlen"},
            GPU,
            torch.float32,
            "varlen needs bfloat16 or float16, not float32",
        ),
        (
            {"attention_backend": "varlen", "attention_dropout": 0.1},
            GPU,
            torch.bfloat16,
            "varlen has no dropout, and model.attention_dropout = 0.1",
        ),
        (
            {"attention_backend": "varlen", "kv_channels": 512},
            GPU,
            torch.bfloat16,
            "takes heads of at most 256 channels, not 512",
        ),
        (
            {"attention_backend": "flash"},
            GPU,
            torch.bfloat16,
            r"flash needs the package flash-attn \(pip install --no-build-isolation 'flash-attn'\)",
        ),
        (
            {"attention_backend": "transformer-engine"},
            GPU,
            torch.bfloat16,
            (
                r"needs the package transformer-engine \(pip install --no-build-isolation"
                r" 'transformer-engine\[pytorch\]'\)"
            ),
        ),
        (
            {"attention_backend": "transformer-engine"},
            CPU,
            torch.bfloat16,
            "transformer-engine needs a GPU, and this runs on cpu",
        ),
        *(
            (
                {"attention_backend": backend, "position_embedding_type": "alibi"},
                GPU,
                torch.bfloat16,
                f"attention_backend = {backend} adds no biases of distances to the scores, and"
                " model.position_embedding_type = alibi; use auto",
            )
            for backend in ("varlen", "transformer-engine")
        ),
    ],
)
def test_an_impossible_backend_is_refused_with_the_reason(settings, device, dtype, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        attention_backend(config(**settings), device, dtype, bounded=True)


def one_by_one(query, key, value, starts, window, *, causal, bias=None):
    """Attention over one document after another, (tokens, heads, C).

    window: how many tokens before and after the query; -1 means all. bias: (heads, T, T), of the scores.
    """
    outs = []
    for a, b in itertools.pairwise(starts):
        q, k, v = (x[a:b].transpose(0, 1)[None] for x in (query, key, value))
        distance = torch.arange(b - a)[:, None] - torch.arange(b - a)
        mask = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
        mask = mask & (distance <= window[0]) if window[0] >= 0 else mask
        if bias is not None:
            mask = bias[:, : b - a, : b - a].masked_fill(~mask, -torch.inf)
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[
                0
            ].transpose(0, 1)
        )
    return torch.cat(outs)


class DotProductAttention:
    """Replaces transformer-engine's module, which needs a GPU: the documented interface of version 2.20."""

    def __init__(
        self,
        num_attention_heads,
        kv_channels,
        num_gqa_groups=None,
        attention_dropout=0.0,
        *,
        softmax_scale=None,
    ):
        assert (kv_channels, attention_dropout, softmax_scale) == (C, 0.0, None)
        self.heads = num_attention_heads, num_gqa_groups or num_attention_heads

    def __call__(
        self,
        query_layer,
        key_layer,
        value_layer,
        *,
        qkv_format,
        attn_mask_type,
        window_size,
        cu_seqlens_q=None,
        cu_seqlens_kv=None,
        max_seqlen_q=None,
        max_seqlen_kv=None,
    ):
        assert (query_layer.shape[-2], key_layer.shape[-2]) == self.heads
        assert window_size[1] == 0
        if qkv_format == "thd":
            assert (attn_mask_type, cu_seqlens_q.dtype, max_seqlen_q, max_seqlen_kv) == (
                "padding_causal",
                torch.int32,
                40,
                40,
            )
            assert cu_seqlens_q.equal(cu_seqlens_kv)
            # (T, H x C)
            return one_by_one(
                query_layer, key_layer, value_layer, cu_seqlens_q, window_size, causal=True
            ).flatten(1)
        assert (qkv_format, attn_mask_type) == ("bshd", "causal")
        flat = [x.flatten(0, 1) for x in (query_layer, key_layer, value_layer)]
        # (B, T, H x C)
        return one_by_one(*flat, range(0, B * T + 1, T), window_size, causal=True).view(B, T, -1)


@pytest.mark.parametrize("name", CASES)
def test_transformer_engine_gets_the_mask(name, monkeypatch):
    settings, packed, visible = CASES[name]
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(
        sys.modules,
        "transformer_engine.pytorch",
        types.SimpleNamespace(DotProductAttention=DotProductAttention),
    )
    monkeypatch.setattr(attention, "_obstacle", lambda *_: None)
    attention._transformer_engine_layer.cache_clear()
    inputs = queries_keys_values()
    mask = causal_mask(
        config(attention_backend="transformer-engine", **settings),
        torch.zeros(B, T),
        torch.float64,
        documents() if packed else None,
    )
    assert mask.backend == "transformer-engine"
    torch.testing.assert_close(
        attend(*inputs, mask, scale=None, dropout=0.0), attend_by_loop(*inputs, visible), rtol=0, atol=1e-12
    )
    attention._transformer_engine_layer.cache_clear()


@pytest.mark.parametrize(
    "known",
    [frozenset({"window_size", "enable_gqa"}), frozenset({"window_size"}), frozenset({"is_causal"})],
    ids=["2.13", "2.11", "2.10"],
)
@pytest.mark.parametrize("name", ["documents", "window and documents"])
def test_the_variable_length_kernel_gets_the_same_mask_in_every_version_of_torch(name, known, monkeypatch):
    """The kernel needs a GPU. A function with its arguments replaces it, and reads documents one by one."""
    settings, _, visible = CASES[name]
    if "window_size" in settings and "window_size" not in known:
        monkeypatch.setattr(attention, "_varlen_options", lambda: known)
        with pytest.raises(UserError, match="knows no windows in torch"):
            attention_backend(
                config(attention_backend="varlen", **settings), GPU, torch.bfloat16, bounded=True
            )
        return

    def kernel(
        query, key, value, starts, _, longest, __, *, window_size=(-1, -1), is_causal=False, enable_gqa=False
    ):
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert longest == 40
        return one_by_one(query, key, value, starts, window_size, causal=is_causal or window_size[1] == 0)

    monkeypatch.setattr(attention, "_varlen_options", lambda: known)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    mask = AttentionMask("varlen", True, documents=documents(), window=settings.get("window_size"))
    inputs = queries_keys_values()
    torch.testing.assert_close(
        attend(*inputs, mask, scale=None, dropout=0.0), attend_by_loop(*inputs, visible), rtol=0, atol=1e-12
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "flex", "flash"])
def test_every_backend_that_takes_alibi_gives_the_same_result_on_a_gpu(backend):
    if backend in attention.PACKAGES:
        pytest.importorskip(attention.PACKAGES[backend][0], reason=f"{backend} is not installed")
    settings, _, visible = CASES["window and documents"]
    inputs = queries_keys_values(torch.bfloat16, "cuda")
    mask = causal_mask(
        config(attention_backend=backend, position_embedding_type="alibi", **settings),
        torch.zeros(B, T, device="cuda"),
        torch.bfloat16,
        documents("cuda"),
        alibi=ALIBI,
    )
    exact = [x.detach().double().cpu() for x in inputs]
    expected = attend_by_loop(*exact, visible, lambda s, h, distance: s + distance * 2.0 ** (-2 * (h + 1)))
    found = attend(*inputs, mask, scale=None, dropout=0.0)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "flex", "varlen", "flash", "transformer-engine"])
@pytest.mark.parametrize("name", CASES)
def test_every_backend_gives_the_same_result_on_a_gpu(backend, name):
    if backend in attention.PACKAGES:
        pytest.importorskip(attention.PACKAGES[backend][0], reason=f"{backend} is not installed")
    settings, packed, visible = CASES[name]
    inputs = queries_keys_values(torch.bfloat16, "cuda")
    mask = causal_mask(
        config(attention_backend=backend, **settings),
        torch.zeros(B, T, device="cuda"),
        torch.bfloat16,
        documents("cuda") if packed else None,
    )
    found = attend(*inputs, mask, scale=None, dropout=0.0)
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected = attend_by_loop(*exact, visible)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=3e-2)
    ours, theirs = torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), exact)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.double().cpu(), b, rtol=0, atol=1e-1)
