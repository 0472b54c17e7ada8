"""Mamba-2 (Dao and Gu 2024), a state-space layer: a recurrent state in place of attention.

    x (B, T, D) -> projection to z, x, B, C, dt -> short causal convolution of x, B, C -> SiLU -> `scan`
                -> RMS norm of each group, gated by SiLU(z) -> projection to (B, T, D)

    state_t = exp(dt_t A) state_{t-1} + dt_t x_t B_t^T   y_t = state_t C_t + D x_t   (per head; state P x S)

`scan` computes this chunk by chunk as matrix products, or by the kernels of the package mamba-ssm where they
can run. The rows of the projection go group by group: the group's z, x, B, C, then dt of its heads; those of
the convolution likewise: x, B, C. So tensor parallelism cuts every parameter by a plain slice of dimension 0
(of the output projection: 1), which is a slice of the groups, and a module with cut weights computes its
share. Only the convolution has a bias.

Legend: B batch, T sequence, D hidden, H heads, G groups, R heads of a group, P channels of a head, S size of
the state, W width of the convolution, Q tokens of a chunk, N chunks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Documents
from .block import Mixer
from .config import ResolvedModelConfig
from .layers import Linear

CHUNK = 128  # tokens, as in Megatron-LM; on a CPU 64 takes the same time, 32 and 256 more than twice that
WIDTH = 4  # of the convolution, tokens
TIME_STEPS = (1e-3, 0.1)  # initial range of dt, without the input's part
DECAYS = (1.0, 16.0)  # initial range of -A


def _same(x: Tensor) -> Tensor:
    return x


class Exchange(NamedTuple):
    """Exchanges between ranks, which parallel/ replaces where sequences are cut over ranks: all tokens of
    some groups on each rank. Here on one rank: nothing to exchange.
    """

    # (B, this rank's tokens, all groups, ...) -> (B, all tokens, its groups, ...)
    to_groups: Callable[[Tensor], Tensor] = _same
    to_tokens: Callable[[Tensor], Tensor] = _same  # and back
    own: Callable[[Tensor], Tensor] = _same  # of a weight whose rows go by groups, those of this rank's


class Mamba(Mixer):
    """x (B, T, D) -> (B, T, D)."""

    # For precision.MasterWeights: rounding A would round the decay of every step (as in Megatron-LM).
    keeps_float32 = ("A_log", "D")

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        heads, groups = config.mamba_heads, config.mamba_num_groups
        self.channels, self.state = config.mamba_head_dim, config.mamba_state_dim
        self.heads_per_group = heads // groups
        self.epsilon = config.layernorm_epsilon
        inner, both = heads * self.channels, 2 * groups * self.state
        self.projection = Linear(
            config.hidden_size,
            2 * inner + both + heads,
            bias=False,
            std=config.init_method_std,
            split="column",
        )
        self.convolution = nn.Parameter(torch.empty(inner + both, WIDTH))
        self.convolution_bias = nn.Parameter(torch.empty(inner + both))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm_weight = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, config.hidden_size, bias=False, std=config.residual_std, split="row")
        self.exchange = Exchange()

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """For layers.initialize, as in the paper's code: time steps log-uniform, decays uniform."""
        if name in ("D", "norm_weight"):
            return torch.ones(shape)
        uniform = torch.rand(shape, generator=generator)
        if name == "A_log":
            return (DECAYS[0] + uniform * (DECAYS[1] - DECAYS[0])).log()
        if name == "dt_bias":
            low, high = map(math.log, TIME_STEPS)
            dt = (low + uniform * (high - low)).exp()
            return dt + (-(-dt).expm1()).log()  # the inverse of softplus
        return (2 * uniform - 1) / WIDTH**0.5

    def forward(
        self,
        x: Tensor,
        *,
        documents: Documents | None = None,
        cache: MambaCache | None = None,
        lengths: Tensor | None = None,
        **_,
    ) -> Tensor:
        """documents: the state is reset at the start of each.

        cache: of `new_cache`; its state continues, and is updated. lengths: (B,), with a cache: a row's
        tokens from there on are padding, which does not change the state.
        """
        assert documents is None or cache is None, "a cache continues one text per row"
        ids = None if documents is None else documents.ids
        per_head = 2 * self.channels + 1
        # From here to the output projection each group is by itself: T is the whole sequence, G this rank's
        # groups. parts: (B, T, G, ...)
        parts = self.exchange.to_groups(
            self.projection(x).unflatten(-1, (-1, self.heads_per_group * per_head + 2 * self.state))
        )
        kernel, kernel_bias, dt_bias, A_log, D, norm_weight = (
            self.exchange.own(weight)
            for weight in (
                self.convolution,
                self.convolution_bias,
                self.dt_bias,
                self.A_log,
                self.D,
                self.norm_weight,
            )
        )
        inner = self.heads_per_group * self.channels
        z, mixed, dt = parts.split((inner, inner + 2 * self.state, self.heads_per_group), dim=-1)
        mixed = mixed.flatten(2)
        before, state = (None, None) if cache is None else (cache.inputs, cache.state)
        convolved = F.silu(convolve(mixed, kernel, kernel_bias, before=before, documents=ids))
        values, keys, queries = convolved.unflatten(-1, (-1, inner + 2 * self.state)).split(
            (inner, self.state, self.state), dim=-1
        )
        values = values.reshape(*parts.shape[:2], -1, self.channels)  # (B, T, H, P)

        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.flatten(2).to(wide) + dt_bias.to(wide))
        if lengths is not None:
            dt = dt * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        y, state = scan(values, dt, -A_log.to(wide).exp(), keys, queries, state=state, documents=ids)
        if cache is not None:
            cache.keep(mixed, state, lengths)
        y = y.to(wide) + values * D.to(wide)[:, None]
        y = y.unflatten(2, (-1, self.heads_per_group)).flatten(3) * F.silu(z.to(wide))  # (B, T, G, R x P)
        y = F.rms_norm(y, y.shape[-1:], eps=self.epsilon) * norm_weight.view(y.shape[-2:])
        return self.out(self.exchange.to_tokens(y.to(x.dtype)).flatten(2))

    def new_cache(self, batch: int, max_length: int) -> MambaCache:
        """An empty cache for `batch` rows of any length: a state does not grow with the text."""
        weight, heads = self.projection.weight, len(self.A_log)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return MambaCache(
            weight.new_zeros(batch, self.convolution.shape[1] - 1, len(self.convolution)),
            weight.new_zeros(batch, heads, self.channels, self.state, dtype=wide),
        )


@dataclasses.dataclass
class MambaCache:
    """A layer's state after each row's tokens so far."""

    inputs: Tensor  # (B, W - 1, channels): the last inputs of the convolution
    state: Tensor  # (B, H, P, S)

    def keep(self, inputs: Tensor, state: Tensor, lengths: Tensor | None) -> None:
        """Appends tokens: their inputs of the convolution (B, T, channels), the state after them."""
        last = torch.cat([self.inputs, inputs.to(self.inputs.dtype)], dim=1)
        if lengths is None:
            self.inputs = last[:, inputs.shape[1] :]
        else:
            places = lengths[:, None] + torch.arange(self.inputs.shape[1], device=lengths.device)
            self.inputs = last.gather(1, places[..., None].expand(-1, -1, last.shape[2]))
        self.state = state


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, *, before: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """The causal depthwise convolution of x, (B, T, C); the current token is multiplied by weight[:, -1].

    x: (B, T, C). weight: (C, W). bias: (C,). before: (B, W - 1, C), the inputs before x; zeros by default.
    documents: (B, T), the document of each token; tokens of other documents count as zeros.

    Computed as W shifted sums, because torch's convolution has no documents: on a CPU an eighth slower than
    that, forward and backward, and compiled four times as fast.
    """
    T, W = x.shape[1], weight.shape[1]
    x = F.pad(x, (0, 0, W - 1, 0)) if before is None else torch.cat([before.to(x.dtype), x], dim=1)
    if documents is not None:
        documents = F.pad(documents, (W - 1, 0), value=-1)
    y = bias
    for i, column in enumerate(weight.unbind(1)):
        shifted = x[:, i : i + T]
        if documents is not None and i < W - 1:
            shifted = shifted * (documents[:, i : i + T] == documents[:, W - 1 :])[..., None]
        y = torch.addcmul(y, shifted, column)
    return y


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """(y (B, T, H, P), the state after them (B, H, P, S)): section 6 of the paper.

    x: (B, T, H, P). dt: (B, T, H), time steps. A: (H,), negative. B, C: (B, T, G, S), by which the heads of a
    group write and read the state. state: (B, H, P, S) before the first token; zeros by default. documents:
    (B, T) in ascending order, the document of each token; the state is reset at the start of each. dt, A and
    the state are float32 or float64.
    """
    if scan_backend(x.device.type) == "mamba_ssm":
        return _fused()(
            x,
            dt,
            A,
            B,
            C,
            chunk_size=chunk,
            initial_states=state,
            return_final_states=True,
            seq_idx=None if documents is None else documents.to(torch.int32),
        )
    batch, T, heads, channels = x.shape
    groups, size = B.shape[2:]
    Q = min(chunk, T)
    padding = -T % Q  # with time steps 0, which change no state
    x = x * dt.to(x.dtype)[..., None]
    chunked = [
        F.pad(t, (0, 0) * (t.ndim - 2) + (0, padding)).unflatten(1, (-1, Q)) for t in (x, dt * A, B, C)
    ]
    x, B, C = chunked[0].unflatten(3, (groups, -1)), *chunked[2:]  # x: (B, N, Q, G, R, P)
    # (B, N, G, R, Q): logarithm of the decay since the chunk's start
    decay = _running_sum(chunked[1].unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2))
    same = _Same(documents, padding, Q) if documents is not None else None

    # Within a chunk, token q reads what tokens k <= q wrote.
    between = (
        (decay[..., :, None] - decay[..., None, :])
        .masked_fill(_later(Q, x.device) if same is None else same.hidden, float("-inf"))
        .exp()
    )
    scores = torch.einsum("bnqgs,bnkgs->bngqk", C, B)
    y = torch.einsum("bngrqk,bnkgrp->bnqgrp", (scores[:, :, :, None] * between).to(x.dtype), x)

    # The state that each chunk adds at its end, and the state before each chunk.
    to_end = (decay[..., -1:] - decay).exp()
    whole, from_start = decay[..., -1].exp(), decay.exp()
    if same is not None:
        to_end, whole, from_start = to_end * same.to_end, whole * same.whole, from_start * same.from_start
    written = torch.einsum(
        "bnqgs,bnqgrp->bngrps", B, x * to_end.permute(0, 1, 4, 2, 3).to(x.dtype)[..., None]
    )
    state = x.new_zeros(batch, heads, channels, size, dtype=dt.dtype) if state is None else state
    state, before = state.unflatten(1, (groups, -1)), []
    for n in range(written.shape[1]):
        before.append(state)
        state = state * whole[:, n, :, :, None, None] + written[:, n]

    # The tokens of a chunk also read the state before it.
    read = torch.einsum("bnqgs,bngrps->bnqgrp", C, torch.stack(before, dim=1).to(x.dtype))
    y = y + read * from_start.permute(0, 1, 4, 2, 3)[..., None]
    return y.flatten(1, 2)[:, :T].flatten(2, 3), state.flatten(1, 2)


def _running_sum(x: Tensor) -> Tensor:
    """The cumulative sum along the last dimension: torch.cumsum on a GPU is not deterministic."""
    step = 1
    while step < x.shape[-1]:
        x = x + F.pad(x[..., :-step], (step, 0))
        step *= 2
    return x


def _later(Q: int, device: torch.device) -> Tensor:
    """(Q, Q) bool: where the key comes after the query."""
    return torch.ones(Q, Q, dtype=torch.bool, device=device).triu(1)


class _Same:
    """Which tokens of a chunk share a document with each other, with the chunk's last token, and with the
    token before the chunk.
    """

    def __init__(self, documents: Tensor, padding: int, Q: int):
        # (B, N, Q)
        ids = torch.cat([documents, documents[:, -1:].expand(-1, padding)], dim=1).unflatten(1, (-1, Q))
        ends = ids[..., -1]
        previous = torch.cat([ids[:, :1, 0], ends[:, :-1]], dim=1)
        shaped = lambda t: t[:, :, None, None]  # (B, N, 1, 1, ...), beside G and R
        self.hidden = shaped((ids[..., :, None] != ids[..., None, :]) | _later(Q, ids.device))
        self.to_end = shaped(ids == ends[..., None])
        self.from_start = shaped(ids == previous[..., None])
        self.whole = shaped(ends == previous)


def scan_backend(device: str) -> str:
    """The backend of `scan` on a kind of device: "mamba_ssm" or "torch"."""
    return "mamba_ssm" if device == "cuda" and _fused() is not None else "torch"


@functools.cache
def _fused():
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return mamba_chunk_scan_combined
