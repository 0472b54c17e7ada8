"""Multi-token prediction (DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.2), in training only.

After the model, depth k predicts from the state of token i and the embedding of token i + k the token that
comes k after the model's own label. The first state is the model's, after its last norm:

    state of depth k - 1 (B, T, D) -> hnorm \
    embedding of token i + k       -> enorm -> both (B, T, 2D) -> eh_proj -> block -> norm -> state of depth k

The block is one of the model's own kind, its last. Embedding and output layer are the model's. The sum of a
depth's losses is divided by the tokens of the model's own loss, as in equation 24 and by Megatron-LM with
--calculate-per-token-loss; the mean over the depths, times mtp_loss_scaling_factor, is added. Tokens after
the end of a sample, or of a document where attention to other documents is masked, have id 0 and no loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import Documents
from .config import ResolvedModelConfig
from .decoder_blocks import build_block, layer_kinds
from .layers import Linear, Norm


class PredictionDepth(nn.Module):
    """states (B, T, D) of the depth before, embeddings (B, T, D) of later tokens -> states (B, T, D)."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        size = config.hidden_size
        self.enorm, self.hnorm = Norm(config), Norm(config)
        self.eh_proj = Linear(2 * size, size, bias=False, std=config.init_method_std)
        self.block = build_block(config, layer_kinds(config)[-1])
        self.norm = Norm(config)
        # parallel/ replaces this where ranks have parts of a sequence between the blocks, and all of it here
        self.enter: Callable[[Tensor], Tensor] = _as_it_is

    def forward(self, states: Tensor, embeddings: Tensor, **context) -> Tensor:
        """context: inputs of the block beside x, see block.Block."""
        both = torch.cat([self.enorm(embeddings), self.hnorm(self.enter(states))], dim=-1)
        return self.norm(self.block(self.eh_proj(both), **context))


class MultiTokenPrediction(nn.Module):
    """The depths of a model, and the sums of their losses since they were last taken."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.layers = nn.ModuleList(PredictionDepth(config) for _ in range(config.mtp_num_layers))
        self.factor = config.mtp_loss_scaling_factor
        self.sums: Tensor | None = None  # (depths, 2) float64: loss, weights of its labels

    def depths(self) -> list[PredictionDepth]:
        return [depth for depth in self.layers if isinstance(depth, PredictionDepth)]

    def join(self, loss: Tensor, losses: list[Tensor], weights: list[Tensor]) -> Tensor:
        """The value of the model's summed loss, with the gradients of the scaled sums of the depths too.

        losses, weights: of each depth, its summed loss and the sum of the weights of its labels.
        """
        found = torch.stack([torch.stack([a.detach().double(), b.double()]) for a, b in zip(losses, weights)])
        self.sums = found if self.sums is None else self.sums + found
        added = self.factor / len(losses) * torch.stack(losses).sum()
        return loss + (added - added.detach())

    def take_sums(self) -> Tensor | None:
        """This rank's sums since the last call, (depths, 2) float64: summed loss, weights of its labels."""
        sums, self.sums = self.sums, None
        return sums


def _as_it_is(states: Tensor) -> Tensor:
    return states


def next_tokens(x: Tensor, documents: Documents | None = None) -> Tensor:
    """x (B, T) moved by one token to the left, with 0 at the end of a sample, or of each of the documents."""
    moved = x.roll(-1, dims=1)
    moved[:, -1] = 0
    if documents is None:
        return moved
    return moved.masked_fill(documents.ids.ne(documents.ids.roll(-1, dims=1)), 0)
