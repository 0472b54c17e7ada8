"""Linear, Embedding and Norm, the layers of all models, and `initialize`, which fills weights.

On one rank every layer is plain torch. The initial values of a weight depend only on the seed, its name and
its full shape (`initialize`), so that every parallel layout starts from the same numbers.

Legend: B batch, T sequence, D hidden, H heads, G key-value groups, C channels of a head, F width of the
feed-forward layer, V padded vocabulary, N rows (B x T).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResolvedModelConfig
from .dtensor import shard_and_slices

BLOCK = 1 << 22  # elements of a weight that are drawn at once


class Linear(nn.Module):
    """x (..., in) -> (..., out).

    std: standard deviation of the weight's initial values. split: which dimension of the weight tensor
    parallelism may cut, in Megatron-LM's names: "column" the output (and the bias), "row" the input (the
    ranks' products are summed before the bias is added), None neither.
    """

    def __init__(
        self,
        size_in: int,
        size_out: int,
        *,
        bias: bool,
        std: float,
        split: Literal["column", "row"] | None = None,
    ):
        super().__init__()
        self.std, self.split = std, split
        self.weight = nn.Parameter(torch.empty(size_out, size_in))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None
        # Replaced by float8 products, and by pipelines that compute the weight gradients later.
        self.product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class Embedding(nn.Module):
    """ids (...) int64 -> (..., D). split: as in Linear; "column" cuts the ids, "row" the vectors."""

    def __init__(self, rows: int, size: int, *, std: float, split: Literal["column", "row"] | None = None):
        super().__init__()
        self.std, self.split = std, split
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Norm(nn.Module):
    """LayerNorm or RMSNorm (Zhang and Sennrich 2019) over the last dimension, by default of D elements.

    Its weight is never cut. Where its input is (over heads or along the sequence), its gradient is the sum
    over the ranks.
    """

    def __init__(self, config: ResolvedModelConfig, size: int | None = None, epsilon: float | None = None):
        super().__init__()
        self.epsilon = config.layernorm_epsilon if epsilon is None else epsilon
        self.adds_one = config.apply_layernorm_1p
        size = size or config.hidden_size
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if config.normalization == "LayerNorm" else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1 if self.adds_one else self.weight
        if self.bias is None:
            return F.rms_norm(x, weight.shape, weight, self.epsilon)
        return F.layer_norm(x, weight.shape, weight, self.bias, self.epsilon)


class AllHeadsNorm(Norm):
    """RMSNorm over all heads together, (..., heads, C). Tensor parallelism cuts it over the heads."""

    def __init__(self, config: ResolvedModelConfig, heads: int):
        super().__init__(config, heads * config.kv_channels)
        self.size = heads * config.kv_channels
        # parallel/ replaces this where ranks have parts of the heads
        self.sum_over_heads: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.sum_over_heads is None:
            return super().forward(x.flatten(-2)).view_as(x)
        weight = self.weight + 1 if self.adds_one else self.weight
        wide = x.flatten(-2).to(torch.promote_types(x.dtype, torch.float32))
        squares = self.sum_over_heads(wide.square().sum(-1, keepdim=True))
        normed = wide * torch.rsqrt(squares / self.size + self.epsilon) * weight
        return normed.to(x.dtype).view_as(x)


@torch.no_grad()
def initialize(model: nn.Module, seed: int, *, parameters: bool = True) -> None:
    """Fills every weight, or this rank's shard: matrices normal by sha256(seed:name), norms 1, biases 0.

    The model may be cut already (parallel/parallelize.py). A rank draws only the blocks of rows that overlap
    its shard, so that no rank ever has more than one block of a weight beside its shard. Other kinds of
    modules have a method `first_value(name, shape, generator) -> Tensor`, which is called for blocks of each
    of their own parameters and buffers (buffers have no values after a model was built on the meta device).

    parameters: False fills only buffers, where a checkpoint fills the rest.
    """
    for prefix, module in model.named_modules():
        first_value = getattr(module, "first_value", None) or functools.partial(_first_value, module)
        own = dict(module.named_parameters(recurse=False)) if parameters else {}
        if hasattr(module, "first_value"):
            own |= module.named_buffers(recurse=False)
        for name, tensor in own.items():
            fill(tensor, f"{prefix}.{name}", seed, functools.partial(first_value, name))


def _first_value(module: nn.Module, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name == "bias":
        return torch.zeros(shape)
    if isinstance(module, Norm):
        return torch.zeros(shape) if module.adds_one else torch.ones(shape)
    std = module.std
    assert isinstance(std, float), f"{type(module).__name__}.{name} has neither std nor first_value"
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def fill(
    tensor: Tensor, name: str, seed: int, value: Callable[[torch.Size, torch.Generator], Tensor]
) -> None:
    """Fills a weight, or this rank's shard of it, with `value(shape, generator)` for each block of its rows.

    A block has at most BLOCK elements, but at least one row, and a random generator of its own, so that it
    can be drawn without the blocks before it. The generator of the first block depends on the name alone.
    """
    piece, place = shard_and_slices(tensor)
    if not tensor.ndim:
        piece.copy_(value(tensor.shape, generator_of(name, seed)))
        return
    first, last = place[0].start, place[0].stop
    rows = max(1, BLOCK // max(1, tensor.shape[1:].numel()))
    for block in range(first // rows, -(-last // rows)):
        start, stop = block * rows, min((block + 1) * rows, tensor.shape[0])
        values = value(
            torch.Size([stop - start, *tensor.shape[1:]]),
            generator_of(f"{name}:{block}" if block else name, seed),
        )
        here = slice(max(first, start), min(last, stop))
        piece[here.start - first : here.stop - first] = values[
            (slice(here.start - start, here.stop - start), *place[1:])
        ]


def generator_of(name: str, seed: int) -> torch.Generator:
    """The random generator of a weight's name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of x is computed: autocast's, or its own."""
    device = x.device.type
    return (
        torch.get_autocast_dtype(device)
        if device != "meta" and torch.is_autocast_enabled(device)
        else x.dtype
    )


def chunks_of(count: int, most: int) -> Iterator[slice]:
    """Slices of 0 to `count` of nearly equal length, at most `most`: a short last one is inefficient."""
    pieces = -(-count // most)
    size = -(-count // pieces) if pieces else 1
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
