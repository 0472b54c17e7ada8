"""BERT (Devlin et al.

2018): tokens -> hidden states that look both ways -> what was masked, and which segment came first.

With config.post_norm it is the original and Hugging Face's, a norm on the embedding and after every sum;
without, Megatron-LM's, a norm before every part and after the last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, AttentionMask, bidirectional_mask
from .base import Model
from .block import Block, FeedForward, activate
from .config import GATED, ResolvedModelConfig
from .layers import Embedding, Linear, Norm
from .loss import cross_entropy, logits_of
from .stage import PipelineStage, StageRules, end_modules, states_shape

TOKEN_TYPES = 2  # first and second segment


class Bert(Model):
    """heads: false for the encoder alone."""

    data_dependent_part = "BERT's output layer"
    head_rows_per_token = 0.15 * 5  # 15 % of the tokens are masked; the output layer keeps five rows of each

    def __init__(self, config: ResolvedModelConfig, *, heads: bool = True):
        super().__init__()
        self.config = config
        std, D = config.init_method_std, config.hidden_size
        self.embedding = Embedding(config.padded_vocab_size, D, std=std, split="column")
        self.positions = Embedding(config.max_position_embeddings, D, std=std)
        self.token_types = Embedding(TOKEN_TYPES, D, std=std)
        self.norm = Norm(config)  # of the embedding where norms stand after the parts, else of the last layer
        self.layers = nn.ModuleList(
            Block(config, mixer=Attention(config), ffn=FeedForward(config)) for _ in range(config.num_layers)
        )
        self.head = MaskedHead(config) if heads else None
        binary = heads and config.bert_binary_head
        self.pooler = Linear(D, D, bias=True, std=std) if binary else None
        self.binary_head = Linear(D, 2, bias=True, std=std) if binary else None
        # the parallel floor puts another here, where ranks have parts of the vocabulary
        self.cross_entropy = cross_entropy

    def forward(
        self,
        tokens: Tensor,
        padding_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T) int64.

        padding_mask: (B, T), true where there is a token and not padding. token_types: (B, T) int64, by
        default 0. mask: of packed_texts_mask, where the one row is several texts.
        """
        starts = 0 if mask is None else mask.documents.cu_seqlens[mask.documents.ids]
        x = self.embed(tokens, torch.zeros_like(tokens) if token_types is None else token_types, starts)
        mask = mask or bidirectional_mask(padding_mask)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x if self.config.post_norm else self.norm(x)

    def embed(self, tokens: Tensor, token_types: Tensor, starts: Tensor | int = 0) -> Tensor:
        """(B, T, D): what goes into the first block, of tokens and their types (B, T) int64.

        starts: where each one's text begins.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device) - starts
        x = self.embedding(tokens) + self.token_types(token_types) + self.positions(positions)
        if self.config.post_norm:
            x = self.norm(x)
        return F.dropout(x, self.config.hidden_dropout, self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) from hidden states (..., D): what stands there; the padding of the vocabulary has minus
        infinity.
        """
        return logits_of(self.head(hidden), self.embedding.weight, self.config.vocab_size, self.head.bias)

    def order_logits(self, hidden: Tensor) -> Tensor:
        """(B, 2) from hidden states (B, T, D): that the segments stand in their order, that they are swapped."""
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
        the order.

        tokens, labels: (B, T) int64. loss_mask: (B, T), weights of the labels. swapped: (B,) int64. The order
        of a sample weighs as much as its masked tokens do together: the sum is divided by their number later
        on, and so becomes the mean over tokens plus the mean over samples, however samples are cut into
        batches.
        """
        hidden = self.forward(tokens, padding_mask, token_types)  # not self(...): see GPT.loss
        # the head costs as much as several layers, and one token in seven is asked
        rows = loss_mask.flatten().nonzero()[:, 0]
        asked = self.head(hidden.flatten(0, 1)[rows])
        loss = self.cross_entropy(
            asked,
            self.embedding.weight,
            labels.flatten()[rows],
            loss_mask.flatten()[rows],
            self.config.vocab_size,
            self.head.bias,
        )
        if self.binary_head is None:
            return loss
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
    """(..., D) -> (..., D), to be compared with the embedding; `bias` (V,) comes on top of that."""

    def __init__(self, config: ResolvedModelConfig):
        super().__init__()
        self.activation = "gelu" if config.activation in GATED else config.activation
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=True, std=config.init_method_std)
        self.norm = Norm(config)
        self.bias = nn.Parameter(torch.empty(config.padded_vocab_size))  # cut as the embedding's rows are

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(activate(self.dense(hidden), self.activation))


def bert_stage_modules(config: ResolvedModelConfig, begin: int, end: int, total: int) -> set[str]:
    """See stage.StageRules."""
    names = end_modules(config, begin, end, total)
    if config.post_norm:  # `norm` is then the embedding's
        return names | {"norm"} if begin == 0 else names - {"norm"}
    return names


BERT_STAGES = StageRules(lambda config: PipelineStage, bert_stage_modules, states_shape)
