"""Biencoder: two BERTs that embed queries and blocks of text (Lee et al. 2019; Guu et al. 2020).

An embedding is the last state of the first token, [CLS], or a projection of it. In training the other blocks
of the global batch are the negatives, so the loss is one of whole global batches: see
Biencoder.forward_backward.

B samples, N samples of the global batch, T tokens, D hidden, E elements of an embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionMask
from .base import Model
from .bert import Bert
from .block import Block
from .config import ResolvedModelConfig
from .inputs import MicroBatch
from .layers import Linear
from .warm_start import WarmStart


class Biencoder(Model):
    """The model of the family "ict", trained on the inverse cloze task."""

    methods = ("loss", "embed")

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.config = config
        self.query = Tower(config)
        self.context = None if config.biencoder_shared_query_context_model else Tower(config)
        # join_replicas replaces this where ranks have parts of the global batch.
        self.gather_blocks = lambda blocks: (blocks, 0)

    @property
    def towers(self) -> list[Tower]:
        return [self.query] if self.context is None else [self.query, self.context]

    @property
    def layers(self) -> list[Block]:
        return [layer for tower in self.towers for layer in tower.bert.layers]

    @property
    def embedding_size(self) -> int:
        return self.config.biencoder_projection_dim or self.config.hidden_size

    def embed_queries(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, E) of tokens (B, T) int64. padding_mask: (B, T), true for tokens, false for padding."""
        return self.query(tokens, padding_mask)

    def embed_blocks(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, E) of blocks, likewise."""
        return self.towers[-1](tokens, padding_mask)

    def embed(
        self,
        tokens: Tensor,
        padding_mask: Tensor,
        encoder_tokens: Tensor,
        encoder_padding_mask: Tensor,
        **_labels,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, E) of queries and of their blocks, encoder_tokens (B, T) int64."""
        return self.embed_queries(tokens, padding_mask), self.embed_blocks(
            encoder_tokens, encoder_padding_mask
        )

    def contrast(self, queries: Tensor, blocks: Tensor) -> Tensor:
        """Summed negative log-likelihood in nats, a scalar, of each query's block among the global batch.

        queries, blocks: (n, E), this rank's, in the same order.
        """
        wide = torch.promote_types(queries.dtype, torch.float32)
        everywhere, first = self.gather_blocks(blocks.to(wide))  # (N, E); this rank's begin at row `first`
        scores = queries.to(wide) @ everywhere.T
        if self.config.retriever_score_scaling:
            scores = scores * self.config.hidden_size**-0.5
        own = torch.arange(first, first + len(queries), device=scores.device)
        return F.cross_entropy(scores, own, reduction="sum")

    def loss(self, **arguments) -> Tensor:
        """`contrast` of one micro-batch, as if it were this rank's only one. arguments: of `embed`."""
        return self.contrast(*Biencoder.embed(self, **arguments))  # not self(...): see GPT.loss

    def losses(self, batch: Sequence[MicroBatch]) -> Tensor:
        queries, blocks = zip(*(self.embed(**micro.arguments()) for micro in batch))
        return self.contrast(torch.cat(queries), torch.cat(blocks)).double()

    def forward_backward(
        self,
        batch: Sequence[MicroBatch],
        factor: Tensor,
        prepare: Callable[[MicroBatch], None],
        synchronise: Callable[[bool], None],
    ) -> Tensor:
        """As Model.forward_backward, for a loss of the whole batch: other samples are the negatives.

        Embeddings are small, and the activations that they are computed from are large. So a rank embeds its
        micro-batches without keeping activations, computes the gradient of the whole loss with respect to the
        embeddings, and runs each micro-batch a second time, forward and backward from the gradient of its
        embeddings (Gao et al. 2021, GradCache). The numbers are those of one large batch, dropout masks
        included. A single micro-batch runs once.
        """
        once = len(batch) == 1
        pairs: list[tuple[Tensor, Tensor]] = []
        for micro in batch:
            prepare(micro)
            with torch.set_grad_enabled(once):
                pairs.append(self.embed(**micro.arguments()))
        leaves = [torch.cat(side).detach().requires_grad_() for side in zip(*pairs)]
        loss = self.contrast(*leaves)
        (loss * factor).backward()
        sizes = [len(queries) for queries, _ in pairs]
        gradients = zip(*(leaf.grad.split(sizes) for leaf in leaves if leaf.grad is not None))
        for position, (micro, pair, gradient) in enumerate(zip(batch, pairs, gradients)):
            synchronise(position == len(batch) - 1)
            if not once:
                prepare(micro)
                pair = self.embed(**micro.arguments())
            torch.autograd.backward(pair, gradient)
        return loss.detach().double()

    def join_replicas(self, gather: Callable[[Tensor], tuple[Tensor, int]]) -> None:
        self.gather_blocks = gather

    def last_norms(self) -> list[nn.Module]:
        return [norm for tower in self.towers for norm in tower.bert.last_norms()]

    def whole_sequence_modules(self) -> list[nn.Module]:
        return [tower.projection for tower in self.towers if tower.projection is not None]

    def seeded_modules(self) -> list[nn.Module]:
        return []  # a micro-batch runs each block twice: see forward_backward

    @property
    def runs_per_block(self) -> int:
        return 2 if self.context is None else 1

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        return {"mask": AttentionMask()}, []


def _share_projection(weights: Mapping[str, Tensor]) -> None:
    """Both projections start from the same values."""
    for name, weight in weights.items():
        if name.startswith("context.projection."):
            weight.copy_(weights[name.replace("context.", "query.", 1)])


FROM_BERT = WarmStart(
    "a BERT, whose weights both towers can begin with",
    parts=lambda model: {
        f"{name}.bert.": tower.get_submodule("bert") for name, tower in model.named_children()
    },
    allow_extra=True,
    finish=_share_projection,
)


class Tower(nn.Module):
    """A BERT without its heads, and a projection where biencoder_projection_dim is set."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        plain: dict[str, Any] = {
            f.name: f.default
            for f in dataclasses.fields(config)
            if f.name.startswith(("biencoder_", "retriever_"))
        }
        self.bert = Bert(
            dataclasses.replace(config, family="bert", bert_binary_head=False, **plain), heads=False
        )
        size = config.biencoder_projection_dim
        self.projection = (
            Linear(config.hidden_size, size, bias=True, std=config.init_method_std) if size else None
        )

    def forward(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        first = self.bert(tokens, padding_mask)[:, 0].clone()  # fully_shard's hooks warn of a view
        return first if self.projection is None else self.projection(first)
