"""BERT (Devlin et al. 2018): tokens -> hidden states that look both ways, as Hugging Face's BertModel computes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention
from .block import Block, FeedForward
from .layers import Embedding, ModelConfig, Norm

TOKEN_TYPES = 2  # first and second sentence


class Bert(nn.Module):
    """The encoder without heads. config must be resolved and say LayerNorm, learned positions, biases."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        std, D = config.init_method_std, config.hidden_size
        self.embedding = Embedding(config.padded_vocab_size, D, std=std)
        self.positions = Embedding(config.max_position_embeddings, D, std=std)
        self.token_types = Embedding(TOKEN_TYPES, D, std=std)
        self.norm = Norm(config)
        self.layers = nn.ModuleList(
            Block(config, Attention(config, causal=False), FeedForward(config), post_norm=True)
            for _ in range(config.num_layers)
        )

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T) int64.

        attention_mask: (B, T), true where there is a token and not padding. token_types: (B, T) int64, by default 0.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        types = torch.zeros_like(tokens) if token_types is None else token_types
        x = self.norm(self.embedding(tokens) + self.token_types(types) + self.positions(positions))
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x
