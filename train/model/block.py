"""Block, the residual block of all models: sequence mixer, cross-attention, feed-forward layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import GATED, ResolvedModelConfig
from .layers import Linear, Norm


class Mixer(nn.Module):
    """A layer that mixes along the sequence, (B, T, D) -> (B, T, D): attention or Mamba-2."""

    def new_cache(self, batch: int, max_length: int) -> Any:
        """An empty cache for `batch` rows of up to `max_length` tokens, which `forward` takes and updates."""
        raise NotImplementedError


class Block(nn.Module):
    """x (B, T, D) -> (B, T, D): x plus the output of each part, in the order mixer, cross, ffn.

    mixer, cross, ffn: modules from (B, T, D) to (B, T, D), or None. The norm is before each part or, with
    config.post_norm, after each sum (BERT, Devlin et al. 2018). config.sublayer_norms: a norm on the output
    of mixer and ffn, before it is added, in place of that on their input, or beside it.
    """

    def __init__(
        self,
        config: ResolvedModelConfig,
        *,
        mixer: Mixer | None = None,
        cross: nn.Module | None = None,
        ffn: nn.Module | None = None,
    ):
        super().__init__()
        self.post_norm, self.dropout = config.post_norm, config.hidden_dropout
        self.multiplier = config.residual_multiplier
        before, after = config.sublayer_norms != "output", config.sublayer_norms != "input"
        self.mixer_norm, self.mixer = Norm(config) if mixer is not None and before else None, mixer
        self.mixer_output_norm = Norm(config) if mixer is not None and after else None
        self.cross_norm, self.cross = Norm(config) if cross is not None else None, cross
        self.ffn_norm, self.ffn = Norm(config) if ffn is not None and before else None, ffn
        self.ffn_output_norm = Norm(config) if ffn is not None and after else None

    def forward(self, x: Tensor, *, at: tuple[Tensor, Tensor] | None = None, **context) -> Tensor:
        """x (B, T, D) -> (B, T, D), or (N, D) with `at`.

        at: (rows, columns), each (N,): return only the states at these places; the feed-forward layer skips
        the others. context: inputs of mixer and cross beside x; each takes those it needs and ignores the
        rest:

        mask: the attention mask. rotary: cosines and sines. documents: attention.Documents or None. cache: of
        mixer.new_cache, or None. lengths: (B,), tokens of each row that are not padding, or None. memory,
        memory_mask: another sequence (B, S, D) and its attention mask. retrieved: Retro's neighbours
        (chunked_cross_attention.Retrieved). Without memory and retrieved, cross adds nothing.
        """
        if self.mixer is not None:
            x = self._add(x, self.mixer_norm, self.mixer, context, self.mixer_output_norm)
        if self.cross is not None and (
            context.get("memory") is not None or context.get("retrieved") is not None
        ):
            x = self._add(x, self.cross_norm, self.cross, context)
        # Not for a mixture of experts, whose capacity counts all tokens.
        if at is not None and isinstance(self.ffn, FeedForward):
            x, at = x[at], None
        x = x if self.ffn is None else self._add(x, self.ffn_norm, self.ffn, {}, self.ffn_output_norm)
        return x if at is None else x[at]

    def _add(
        self, x: Tensor, norm: Norm | None, part: nn.Module, context: dict, output_norm: Norm | None = None
    ) -> Tensor:
        added = part(x if self.post_norm or norm is None else norm(x), **context)
        added = F.dropout(added if output_norm is None else output_norm(added), self.dropout, self.training)
        if self.multiplier != 1:
            added = added * self.multiplier
        # Without gradients add in place: a new tensor costs 1 % of BERT's time.
        x = x + added if torch.is_grad_enabled() else added.add_(x)
        return norm(x) if self.post_norm and norm is not None else x


def block_list(blocks: Iterable[Block]) -> Sequence[Block]:
    """An nn.ModuleList of blocks, which torch does not know to be a sequence of Blocks."""
    return cast("Sequence[Block]", nn.ModuleList(blocks))


class FeedForward(nn.Module):
    """Two linear layers with an activation between, or gated (Shazeer 2020).

    Gate and up are two matrices, so that tensor parallelism cuts both at the same rows.
    """

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        size, inner = config.hidden_size, config.ffn_hidden_size
        bias, std = config.add_bias_linear, config.init_method_std
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
    """The activation of that name in ModelConfig; of a gated one, the activation of the gate."""
    if activation == "swiglu":
        return F.silu(x)
    if activation in ("gelu_tanh", "geglu"):
        return F.gelu(x, approximate="tanh")
    if activation == "gelu":
        return F.gelu(x)
    return F.relu(x) if activation == "relu" else F.relu(x).square()
