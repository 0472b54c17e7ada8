"""BERT (Devlin et al. 2018): an encoder that predicts masked tokens and the order of two segments.

With config.post_norm it is the original and Hugging Face's: a norm on the embedding and after every sum.
Without it is Megatron-LM's: a norm before every part and after the last block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, AttentionMask, bidirectional_mask
from .base import Model
from .block import Block, FeedForward, activate, block_list
from .config import GATED, ResolvedModelConfig
from .layers import Embedding, Linear, Norm
from .loss import cross_entropy, logits_of
from .stage import PipelineStage, StageRules, end_modules, states_shape

TOKEN_TYPES = 2  # first and second segment


class Bert(Model):
    """BERT, or its encoder alone (heads=False)."""

    layers: Sequence[Block]
    data_dependent_part = "BERT's output layer"
    head_rows_per_token = 0.15 * 5  # 15 % of the tokens are masked; the output layer keeps five rows of each

    def __init__(self, config: ResolvedModelConfig, *, heads: bool = True):
        super().__init__()
        self.config = config
        std, D, embedding_std = config.init_method_std, config.hidden_size, config.embedding_std
        self.embedding = Embedding(config.padded_vocab_size, D, std=embedding_std, split="column")
        self.positions = Embedding(config.max_position_embeddings, D, std=embedding_std)
        self.token_types = Embedding(TOKEN_TYPES, D, std=embedding_std)
        self.norm = Norm(config)  # with post_norm of the embedding, else of the last hidden states
        self.layers = block_list(
            Block(config, mixer=Attention(config), ffn=FeedForward(config)) for _ in range(config.num_layers)
        )
        self.head = MaskedHead(config) if heads else None
        binary = heads and config.bert_binary_head
        self.pooler = Linear(D, D, bias=True, std=std) if binary else None
        self.binary_head = Linear(D, 2, bias=True, std=std) if binary else None
        # parallel/ replaces this where ranks have parts of the vocabulary.
        self.cross_entropy = cross_entropy

    def forward(
        self,
        tokens: Tensor,
        padding_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T) int64.

        padding_mask: (B, T), true for tokens, false for padding. token_types: (B, T) int64, by default 0.
        mask: of packed_texts_mask, where one row holds several texts.
        """
        starts: Tensor | int = 0
        if mask is not None and mask.documents is not None:
            starts = mask.documents.cu_seqlens[mask.documents.ids]
        x = self.embed(tokens, torch.zeros_like(tokens) if token_types is None else token_types, starts)
        mask = mask or bidirectional_mask(padding_mask)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x if self.config.post_norm else self.norm(x)

    def embed(self, tokens: Tensor, token_types: Tensor, starts: Tensor | int = 0) -> Tensor:
        """The input of the first block, (B, T, D), for tokens and their types (B, T) int64.

        starts: index of the first token of each token's text, where a row holds several texts.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device) - starts
        x = self.embedding(tokens) + self.token_types(token_types) + self.positions(positions)
        if self.config.post_norm:
            x = self.norm(x)
        return F.dropout(x, self.config.hidden_dropout, self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the masked tokens, (..., V), from hidden states (..., D); minus infinity for the padding
        of the vocabulary.
        """
        assert self.head is not None, "an encoder alone has no heads"
        return logits_of(self.head(hidden), self.embedding.weight, self.config.vocab_size, self.head.bias)

    def order_logits(self, hidden: Tensor) -> Tensor:
        """(B, 2) from hidden states (B, T, D): logits of segments in order, and of swapped segments."""
        assert self.binary_head is not None, "this BERT has no binary head"
        assert self.pooler is not None, "this BERT has no binary head"
        return self.binary_head(self.pooler(hidden[:, 0]).tanh())

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        *,
        token_types: Tensor | None = None,
        padding_mask: Tensor | None = None,
        swapped: Tensor | None = None,
    ) -> Tensor:
        """Summed negative log-likelihood in nats, a scalar, of the masked tokens and, with a binary head, of
        the order of the segments.

        tokens, labels: (B, T) int64. loss_mask: (B, T), weights of the labels. swapped: (B,) int64. The order
        of a sample weighs as much as all its masked tokens together: the sum is later divided by the number
        of masked tokens, which makes it the mean over tokens plus the mean over samples, whatever the
        batches.
        """
        assert self.head is not None, "an encoder alone has no loss"
        hidden = self.forward(tokens, padding_mask, token_types)  # not self(...): see GPT.loss
        # Only the masked tokens, one in seven: the output layer costs as much as several blocks.
        rows = loss_mask.flatten().nonzero()[:, 0]
        masked = self.head(hidden.flatten(0, 1)[rows])
        loss = self.cross_entropy(
            masked,
            self.embedding.weight,
            labels.flatten()[rows],
            loss_mask.flatten()[rows],
            self.config.vocab_size,
            self.head.bias,
        )
        if self.binary_head is None:
            return loss
        assert swapped is not None, "samples for a binary head say which segments are swapped"
        order = self.order_logits(hidden).to(loss.dtype)
        return loss + (F.cross_entropy(order, swapped, reduction="none") * loss_mask.sum(1)).sum()

    def last_norms(self) -> list[nn.Module]:
        return [self.layers[-1]] if self.config.post_norm else [self.norm]

    def whole_sequence_modules(self) -> list[nn.Module]:
        return [module for module in (self.head, self.pooler, self.binary_head) if module is not None]

    def block_inputs(
        self, block: Block, length: int, seq_length: int, ranks: int, dtype: torch.dtype
    ) -> tuple[dict, list[Tensor]]:
        return {"mask": AttentionMask()}, []


class MaskedHead(nn.Module):
    """(..., D) -> (..., D), the input of the output layer: the embedding's weight and `bias` (V,)."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.activation = "gelu" if config.activation in GATED else config.activation
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=True, std=config.init_method_std)
        self.norm = Norm(config)
        # Tensor parallelism cuts it as the rows of the embedding.
        self.bias = nn.Parameter(torch.empty(config.padded_vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(activate(self.dense(hidden), self.activation))


def bert_stage_modules(config: ResolvedModelConfig, begin: int, end: int, total: int) -> set[str]:
    """See stage.StageRules."""
    names = end_modules(config, begin, end, total)
    if config.post_norm:  # `norm` is then the embedding's
        return names | {"norm"} if begin == 0 else names - {"norm"}
    return names


BERT_STAGES = StageRules(lambda config: PipelineStage, bert_stage_modules, states_shape)
