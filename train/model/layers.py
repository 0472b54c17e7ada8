"""Linear, Embedding, Norm, rotary positions and the cross-entropy of the head; the model's settings; how weights start.

Every layer at world size one is plain torch. A weight's first value depends on the seed, its name and its full shape
alone (`initialize`), so that every parallel layout starts from the same numbers.

Legend: B batch, T sequence, D hidden, H heads, G key-value groups, C channels of a head, F width of the feed-forward
layer, V padded vocabulary, N rows (B x T).
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import check, option


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A transformer's shape. `resolve` fills in what is None."""

    num_layers: int = option(12, "transformer layers")
    hidden_size: int = option(768, "width of the residual stream")
    ffn_hidden_size: int | None = option(None, "width of the feed-forward layer (default: 4 x hidden-size; for swiglu 8/3 of it, rounded down to a multiple of 64)")
    num_attention_heads: int = option(12, "attention heads")
    num_query_groups: int | None = option(None, "key-value heads, each shared by heads / groups query heads (default: one per head)")
    kv_channels: int | None = option(None, "channels of a head (default: hidden-size / num-attention-heads)")
    max_position_embeddings: int | None = option(None, "longest sequence (default: seq-length)")
    position_embedding_type: Literal["learned", "rope"] = option("learned", "how positions enter")
    rotary_base: float = option(10000.0, "base of the rotary frequencies")
    normalization: Literal["LayerNorm", "RMSNorm"] = option("LayerNorm", "kind of normalisation")
    layernorm_epsilon: float = option(1e-5, "added to the variance by the normalisation")
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = option("gelu", "of the feed-forward layer; gelu_tanh is GPT-2's approximation")
    add_bias_linear: bool = option(True, "biases in linear layers")
    untie_embeddings_and_output_weights: bool = option(False, "an output matrix of its own instead of the embedding's")
    init_method_std: float = option(0.02, "standard deviation of the first weights")
    hidden_dropout: float = option(0.0, "dropout on the embedding and on what each layer adds")
    attention_dropout: float = option(0.0, "dropout on attention weights")
    vocab_size: int | None = option(None, "tokens in the vocabulary (default: the tokenizer's)")
    make_vocab_size_divisible_by: int = option(128, "rows of the embedding are padded to a multiple of this")

    def __post_init__(self):
        heads, groups = self.num_attention_heads, self.num_query_groups
        sizes = ("num_layers", "hidden_size", "num_attention_heads", "make_vocab_size_divisible_by")
        check(
            *((getattr(self, n) >= 1, f"model.{n} = {getattr(self, n)} must be at least 1") for n in sizes),
            *((0 <= getattr(self, n) < 1, f"model.{n} = {getattr(self, n)} must be at least 0 and below 1") for n in ("hidden_dropout", "attention_dropout")),
        )
        check(
            (
                self.kv_channels is not None or self.hidden_size % heads == 0,
                f"model.num_attention_heads = {heads} does not divide model.hidden_size = {self.hidden_size}; use {_divisors(self.hidden_size, heads)}, or give --kv-channels",
            ),
            (
                groups is None or (groups >= 1 and heads % groups == 0),
                f"model.num_query_groups = {groups} does not divide model.num_attention_heads = {heads}; use {_divisors(heads, groups or 1)}",
            ),
        )
        channels = self.kv_channels or self.hidden_size // heads
        check(
            (
                self.position_embedding_type != "rope" or channels % 2 == 0,
                f"model.position_embedding_type = rope needs an even number of channels a head, not {channels}; change --num-attention-heads or --kv-channels",
            )
        )

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.make_vocab_size_divisible_by) * self.make_vocab_size_divisible_by


def _divisors(number: int, near: int) -> str:
    """`4, 8 or 16`: the divisors of a number nearest to the one that was given."""
    found = sorted(sorted((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))[:4])
    return " or ".join([", ".join(map(str, found[:-1])), str(found[-1])] if len(found) > 1 else map(str, found))


def resolve(config: ModelConfig, *, vocab_size: int, seq_length: int) -> ModelConfig:
    """The configuration with nothing left open. vocab_size, seq_length: what the tokenizer and the data say."""
    swiglu = config.activation == "swiglu"
    ffn = config.hidden_size * 8 // 3 // 64 * 64 or 64 if swiglu else 4 * config.hidden_size
    return dataclasses.replace(
        config,
        ffn_hidden_size=config.ffn_hidden_size or ffn,
        num_query_groups=config.num_query_groups or config.num_attention_heads,
        kv_channels=config.kv_channels or config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings or seq_length,
        vocab_size=config.vocab_size or vocab_size,
    )


class Linear(nn.Module):
    """x (..., in) -> (..., out). std: of the weight's first values."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(size_out, size_in))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """ids (...) int64 -> (..., D)."""

    def __init__(self, rows: int, size: int, *, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Norm(nn.Module):
    """Layer normalisation, or root-mean-square normalisation (Zhang and Sennrich 2019), over the last dimension."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.epsilon = config.layernorm_epsilon
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if config.normalization == "LayerNorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """First values of every weight, in full: matrices normal from sha256(seed:name), norms 1, biases 0."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, Norm):
                parameter.fill_(1.0)
            else:
                parameter.copy_(first_values(f"{prefix}.{name}", parameter.shape, module.std, seed))


def first_values(name: str, shape: torch.Size, std: float, seed: int) -> Tensor:
    """float32 normal values that depend on the seed, the weight's name and its full shape alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)


def rotary_table(positions: Tensor, channels: int, base: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (..., T, C) float32, of positions (..., T): RoPE (Su et al. 2021), halves split as in Hugging Face's Llama."""
    frequencies = base ** (-torch.arange(0, channels, 2, device=positions.device, dtype=torch.float64) / channels)
    angles = positions[..., None].double() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, C) turned by the angles of its positions; cos, sin broadcast to it."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, loss_mask: Tensor, vocab_size: int) -> Tensor:
    """Sum over rows of loss_mask x the negative log-likelihood of the labels; a float32 (float64) scalar.

    hidden: (N, D). weight: (V, D), the head. labels: (N,) int64. loss_mask: (N,). vocab_size: rows of `weight` that
    are tokens; the padding after them gets no probability.

    Works through the rows in chunks and makes the gradients in the forward pass, so that no (N, V) array ever exists:
    at N = 2048, V = 50304 this saves 1.5 GiB and is faster than F.linear_cross_entropy, which also breaks out of
    torch.compile.
    """
    return _CrossEntropy.apply(hidden, weight, labels, loss_mask, vocab_size)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, loss_mask, vocab_size):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wide = torch.promote_types(dtype, torch.float32)  # softmax and sums are never narrower than float32
        compute_weight = weight.to(dtype)
        needs_gradient = any(ctx.needs_input_grad[:2])
        if needs_gradient:
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(128, (1 << 24) // weight.shape[0])  # 64 MiB of float32 logits
        for chunk in range(0, len(hidden), rows):
            here = slice(chunk, chunk + rows)
            x, mask = hidden[here].to(dtype), loss_mask[here].to(wide)
            logits = logits_of(x, compute_weight, vocab_size).to(wide)
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            picked = logits.gather(-1, labels[here, None])
            total += ((normaliser - picked)[:, 0] * mask).sum(dtype=torch.float64)
            if needs_gradient:
                gradient = logits.sub_(normaliser).exp_()
                gradient.scatter_add_(-1, labels[here, None], gradient.new_full((len(x), 1), -1.0))
                gradient = gradient.mul_(mask[:, None]).to(dtype)
                hidden_gradient[here] = gradient @ compute_weight
                if wide == dtype:
                    weight_gradient.addmm_(gradient.T, x)
                else:
                    weight_gradient += gradient.T @ x
        if needs_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return total.to(wide)

    @staticmethod
    def backward(ctx, gradient):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradient, weight_gradient * gradient, None, None, None


def logits_of(hidden: Tensor, weight: Tensor, vocab_size: int) -> Tensor:
    """(..., V) from (..., D); minus infinity for the padding of the vocabulary.

    The product keeps the padding, because matrix units want round shapes.
    """
    logits = hidden @ weight.T
    if vocab_size < weight.shape[0]:
        logits[..., vocab_size:] = float("-inf")
    return logits
