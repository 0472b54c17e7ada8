"""One residual block: a mixer over the sequence, a look at another sequence, a feed-forward layer, each of
them or not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import GATED, ResolvedModelConfig
from .layers import Linear, Norm


class Block(nn.Module):
    """x (B, T, D) -> (B, T, D): x plus what each part adds, in the order mixer, cross, ffn.

    mixer, cross, ffn: modules from (B, T, D) to (B, T, D), or None. The norm stands before each part, or,
    with config.post_norm, after each sum (BERT, Devlin et al. 2018).
    """

    def __init__(
        self,
        config: ResolvedModelConfig,
        *,
        mixer: nn.Module | None = None,
        cross: nn.Module | None = None,
        ffn: nn.Module | None = None,
    ):
        super().__init__()
        self.post_norm, self.dropout = config.post_norm, config.hidden_dropout
        self.mixer_norm, self.mixer = Norm(config) if mixer is not None else None, mixer
        self.cross_norm, self.cross = Norm(config) if cross is not None else None, cross
        self.ffn_norm, self.ffn = Norm(config) if ffn is not None else None, ffn

    def forward(self, x: Tensor, *, at: tuple[Tensor, Tensor] | None = None, **context) -> Tensor:
        """at: (rows, columns), each (N,): the places of x that are wanted, (N, D); the feed-forward layer is
        spared the others.

        context: what mixer and cross want to know beside x; each takes what it needs and ignores the rest.

        mask: which keys a query attends to. rotary: cosines and sines. documents: attention.Documents or
        None. cache: this layer's, or None: what mixer.new_cache(batch, max_length) made. lengths: (B,), how
        many tokens of a row are no padding, or None. memory, memory_mask: the other sequence (B, S, D), and
        its mask. retrieved: what was retrieved (retro.Retrieved). Without another sequence or
        something retrieved, cross adds nothing.
        """
        if self.mixer is not None:
            x = self._add(x, self.mixer_norm, self.mixer, context)
        if self.cross is not None and (
            context.get("memory") is not None or context.get("retrieved") is not None
        ):
            x = self._add(x, self.cross_norm, self.cross, context)
        if at is not None and isinstance(self.ffn, FeedForward):  # a mixture's capacity counts all tokens
            x, at = x[at], None
        x = x if self.ffn is None else self._add(x, self.ffn_norm, self.ffn, {})
        return x if at is None else x[at]

    def _add(self, x: Tensor, norm: Norm, part: nn.Module, context: dict) -> Tensor:
        added = F.dropout(part(x if self.post_norm else norm(x), **context), self.dropout, self.training)
        # a sum of its own costs a hundredth of BERT's time
        x = x + added if torch.is_grad_enabled() else added.add_(x)
        return norm(x) if self.post_norm else x


class FeedForward(nn.Module):
    """Two layers with an activation between, or gated (Shazeer 2020); gate and up stay two matrices, so that
    slices of their rows match.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        size, inner, bias, std = (
            config.hidden_size,
            config.ffn_hidden_size,
            config.add_bias_linear,
            config.init_method_std,
        )
        self.activation = config.activation
        self.gate = (
            Linear(size, inner, bias=bias, std=std, split="column") if self.activation in GATED else None
        )
        self.up = Linear(size, inner, bias=bias, std=std, split="column")
        self.down = Linear(inner, size, bias=bias, std=config.residual_std, split="row")

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(activate(self.gate(x), self.activation) * self.up(x))
        return self.down(activate(self.up(x), self.activation))


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation of that name in ResolvedModelConfig; of a gated one, what is done to the gate."""
    if activation == "swiglu":
        return F.silu(x)
    if activation in ("gelu_tanh", "geglu"):
        return F.gelu(x, approximate="tanh")
    if activation == "gelu":
        return F.gelu(x)
    return F.relu(x) if activation == "relu" else F.relu(x).square()
