"""One residual block: a mixer over the sequence, then a feed-forward layer, with the norm before or after each."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear, ModelConfig, Norm


class Block(nn.Module):
    """x (B, T, D) -> (B, T, D).

    mixer, ffn: modules from (B, T, D) to (B, T, D). post_norm: normalise the sum (BERT, Devlin et al. 2018) instead
    of what goes in (GPT-2).
    """

    def __init__(self, config: ModelConfig, mixer: nn.Module, ffn: nn.Module, *, post_norm: bool = False):
        super().__init__()
        self.post_norm, self.dropout = post_norm, config.hidden_dropout
        self.mixer_norm, self.mixer = Norm(config), mixer
        self.ffn_norm, self.ffn = Norm(config), ffn

    def forward(self, x: Tensor, **context) -> Tensor:
        """context: what the mixer needs beside x (positions, mask, cache)."""
        if self.post_norm:
            x = self.mixer_norm(x + self._drop(self.mixer(x, **context)))
            return self.ffn_norm(x + self._drop(self.ffn(x)))
        x = x + self._drop(self.mixer(self.mixer_norm(x), **context))
        return x + self._drop(self.ffn(self.ffn_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class FeedForward(nn.Module):
    """Two layers with a GELU between, or the gated SwiGLU of Shazeer 2020 (gate and up stay two matrices, so that slices of their rows match)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size, inner, bias, std = config.hidden_size, config.ffn_hidden_size, config.add_bias_linear, config.init_method_std
        self.activation = config.activation
        self.gate = Linear(size, inner, bias=bias, std=std) if self.activation == "swiglu" else None
        self.up = Linear(size, inner, bias=bias, std=std)
        self.down = Linear(inner, size, bias=bias, std=std / (2 * config.num_layers) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.up(x), approximate="tanh" if self.activation == "gelu_tanh" else "none"))
