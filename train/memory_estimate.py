"""Parameters, activations and FLOPs of every part of a model on one rank of a parallel layout, by counting.

A part is one block, or the modules before the blocks, or those after them. Its parameters are those of a
model with a rank's share of heads, widths and vocabulary; its activations are the bytes that autograd keeps
of one forward pass. Both are counted on torch's fake tensors, which have shapes and no values, so that a
model of any size takes a second.

Fake tensors take the kernels of processors. Those of GPUs keep less of dropout, and are imitated
(`_DropoutOfGPUs`): without, attention with dropout would seem to keep its weights, T x T for each head.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .model.attention import Attention, AttentionMask, attend
from .model.base import Model
from .model.block import Block
from .model.config import ResolvedModelConfig
from .model.family import build_model, family_of
from .model.latent_attention import MultiLatentAttention
from .model.moe import Experts
from .recompute import kept_operations

# names of the modules after the blocks
LAST = ("norm", "decoder_norm", "output", "head", "pooler", "binary_head", "projection", "mtp")


@dataclasses.dataclass(frozen=True)
class Cut:
    """The sizes of the parallel groups that cut a model's parts."""

    tensor: int = 1
    context: int = 1
    expert: int = 1
    sequence_parallel: bool = False


class PartCosts(NamedTuple):
    """A part on one rank; activations and FLOPs are of one sample, or of this rank's share of its tokens."""

    parameters: int
    expert_parameters: int  # of these, those of experts
    activations: dict[str | None, int]  # bytes by granularity of recomputation
    flops: float  # forward, full convention
    attention: bool = False
    experts: bool = False


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model's parts in the order in which they run."""

    first: PartCosts
    blocks: tuple[PartCosts, ...]
    last: PartCosts
    tied: int  # parameters of the embedding that the last part has too: as output layer, or to predict
    workspace: int  # temporary bytes of the output layer's gradient
    # Bytes of a sample's logits with the tensors computed from them; the loss has loss.chunk_bytes of them at
    # a time.
    logits: int

    def stage(self, begin: int, end: int) -> PartCosts:
        """The sum of blocks `begin` to `end`, with the parts before the first and after the last block."""
        parts = list(self.blocks[begin:end])
        if begin == 0:
            parts.append(self.first)
        if end == len(self.blocks):
            parts.append(self.last)
            if begin > 0:
                parts.append(PartCosts(self.tied, 0, dict.fromkeys((None, "selective", "full"), 0), 0.0))
        activations = {
            granularity: sum(p.activations[granularity] for p in parts)
            for granularity in (None, "selective", "full")
        }
        return PartCosts(
            sum(p.parameters for p in parts),
            sum(p.expert_parameters for p in parts),
            activations,
            sum(p.flops for p in parts),
        )


def count_parts(
    config: ResolvedModelConfig,
    cut: Cut,
    *,
    seq_length: int,
    decoder_seq_length: int = 0,
    dtype: torch.dtype,
    gpu: bool = False,
) -> Parts:
    """config: resolved, and such that `cut` divides it. dtype: what the model computes in.

    gpu: count what the kernels of GPUs keep.
    """
    share = _share_of(config, cut)
    family = family_of(config)
    with torch.device("meta"):
        model = build_model(share)
    # Grouped products of fake tensors work in bfloat16 only; sizes in other dtypes are in proportion.
    counted = torch.bfloat16 if config.num_experts else dtype
    seen: dict[tuple, PartCosts] = {}  # equal blocks are counted once

    def costs_of(block: Block, flops: float) -> PartCosts:
        key = (tuple((name, p.shape) for name, p in block.named_parameters()), flops)
        if key not in seen:
            experts = sum(
                p.numel() for m in block.modules() if isinstance(m, Experts) for p in m.parameters()
            )
            parameters = sum(p.numel() for p in block.parameters()) - experts + experts // cut.expert
            with FakeTensorMode(), _DropoutOfGPUs() if gpu else contextlib.nullcontext():
                kept = _count_block(model, block, cut, seq_length, decoder_seq_length, counted, gpu)
            if experts and dtype != counted:
                # without the router's float32 copy of bfloat16 tokens
                kept[None] -= 4 * seq_length // cut.context * config.hidden_size
            kept = {granularity: model.runs_per_block * size for granularity, size in kept.items()}
            seen[key] = PartCosts(
                parameters,
                experts // cut.expert,
                {name: size * dtype.itemsize // counted.itemsize for name, size in kept.items()},
                flops / (cut.tensor * cut.context),
                isinstance(block.mixer, Attention | MultiLatentAttention),
                experts > 0,
            )
        return seen[key]

    blocks = tuple(
        costs_of(block, cost.full)
        for block, cost in zip(model.layers, family.block_flops(config, seq_length, decoder_seq_length))
    )
    # The depths of multi-token prediction are of the last part, whose FLOPs have theirs.
    depths = [costs_of(depth.block, 0.0) for depth in model.prediction_depths()]
    own = {id(p) for block in model.layers for p in block.parameters()}
    ends = [
        (bool(set(LAST) & set(name.split("."))), p.numel())
        for name, p in model.named_parameters()
        if id(p) not in own
    ]
    first, last = (sum(n for is_last, n in ends if is_last == which) for which in (False, True))
    V, D, width = share.padded_vocab_size, config.hidden_size, dtype.itemsize
    tokens = (decoder_seq_length or seq_length) // cut.context
    rows = tokens * model.head_rows_per_token  # of the output layer's input
    residual = tokens // (cut.tensor if cut.sequence_parallel else 1)
    memory = model.encoder_output_size(seq_length) * width
    at_end = int((residual + rows) * D * width) + memory
    # The embedding, and with the state of the depth before; eh_proj makes the input of the block of them
    joined = 3 * residual * D * width
    kept_at_end = {
        name: at_end + sum(depth.activations[name] + joined + at_end for depth in depths)
        for name in (None, "selective", "full")
    }
    experts = sum(depth.expert_parameters for depth in depths)
    last -= experts * (cut.expert - 1)
    tied = 0 if config.untie_embeddings_and_output_weights and not depths else V * D
    if depths:
        tied += sum(
            p.numel()
            for name, p in model.named_parameters()
            if name.startswith(("positions.", "embedding_norm."))
        )
    return Parts(
        PartCosts(first, 0, dict.fromkeys((None, "selective", "full"), 0), 0.0),
        blocks,
        PartCosts(
            last,
            experts,
            kept_at_end,
            family.head_flops(config, seq_length, decoder_seq_length).full / (cut.tensor * cut.context),
        ),
        tied,
        workspace=V * D * (4 + width * (1 + len(depths))),
        logits=int(rows) * V * (8 + width),
    )


def _share_of(config: ResolvedModelConfig, cut: Cut) -> ResolvedModelConfig:
    """The configuration of a model of the size of one tensor-parallel rank's share."""
    divided = (
        "num_attention_heads",
        "num_query_groups",
        "ffn_hidden_size",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
    )
    mamba = ("mamba_num_groups", "mamba_num_heads") if "M" in (config.hybrid_override_pattern or "") else ()
    names = [name for name in (*divided, *mamba) if getattr(config, name) is not None]
    share: dict[str, Any] = {name: getattr(config, name) // cut.tensor for name in names}
    share |= {"vocab_size": config.padded_vocab_size // cut.tensor, "make_vocab_size_divisible_by": 1}
    return dataclasses.replace(config, **share)


def _make_fake(module: nn.Module | None, dtype: torch.dtype) -> None:
    """Replaces a module's weights and buffers on the meta device by fake ones on the CPU."""
    for part in module.modules() if module is not None else ():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device="cpu"))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _count_block(
    model: Model,
    block: Block,
    cut: Cut,
    seq_length: int,
    decoder_seq_length: int,
    dtype: torch.dtype,
    gpu: bool,
) -> dict[str | None, int]:
    """Bytes that autograd keeps of one sample's pass through a block, by recompute granularity."""
    for module in (block, getattr(model, "encoder_bias", None), getattr(model, "decoder_bias", None)):
        _make_fake(module, dtype)
    length = model.block_length(block, seq_length, decoder_seq_length)
    x = torch.empty(1, length // cut.context, model.config.hidden_size, dtype=dtype, requires_grad=True)
    context, shared = model.block_inputs(block, length, seq_length, cut.context, dtype)
    if cut.context > 1 and isinstance(block.mixer, Attention | MultiLatentAttention):
        block.mixer.attend = functools.partial(_attend_to_all, ranks=cut.context)
    foreign = {_storage(p) for p in block.parameters()} | {_storage(t) for t in shared}
    everything = _Kept(foreign)
    with saved_tensors_hooks(everything.add, lambda tensor: tensor):
        block(x, **context)
    products = _Products(foreign)
    with torch.no_grad(), products:
        block(x, **context)
    kept = {None: everything.bytes, "selective": x.nbytes + products.kept.bytes, "full": x.nbytes}
    if cut.sequence_parallel:  # the inputs of norms and the masks of dropout are cut along the sequence
        norms = sum(norm is not None for norm in _norms(block))
        # torch keeps a mask of one byte on GPUs, of the dtype of x on processors
        mask_bytes = x.numel() if gpu else x.nbytes
        masks = norms * mask_bytes if block.dropout else 0
        saved = 1 - 1 / cut.tensor
        kept = {
            None: kept[None] - int((norms * x.nbytes + masks) * saved),
            "selective": kept["selective"] - int(x.nbytes * saved),
            "full": kept["full"] - int(x.nbytes * saved),
        }
    return kept


class _DropoutOfGPUs(TorchFunctionMode):
    """Dropout and attention that keep for the backward pass what torch's kernels of GPUs keep.

    Dropout keeps a mask of one byte a number. Attention (FlashAttention, memory-efficient attention) keeps
    the seed of its mask, where that of processors keeps its weights and their mask.
    """

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is F.dropout:
            return _dropout(*arguments, **(keywords or {}))
        if function is F.scaled_dot_product_attention:
            keywords = {**(keywords or {}), "dropout_p": 0.0}
        return function(*arguments, **(keywords or {}))


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not p:
        return x
    return torch.where(torch.empty(x.shape, dtype=torch.bool), x * (1 / (1 - p)), 0.0)


def _norms(block: Block) -> list[nn.Module | None]:
    """The norms of a block, or None for those that it lacks."""
    return [
        block.mixer_norm,
        block.mixer_output_norm,
        block.cross_norm,
        block.ffn_norm,
        block.ffn_output_norm,
    ]


def _attend_to_all(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, ranks: int, **how
) -> Tensor:
    """Attention of this rank's queries to the keys of all context-parallel ranks."""
    return attend(query, torch.cat([key] * ranks, dim=2), torch.cat([value] * ranks, dim=2), mask, **how)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Kept:
    """The bytes of kept tensors, each storage counted once. foreign: storages that do not count."""

    def __init__(self, foreign: set[int]):
        self.foreign, self.bytes = foreign, 0
        self.tensors: dict[int, Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self.foreign and key not in self.tensors:
            self.tensors[key] = tensor  # a reference, so that no other tensor gets its address
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


class _Products(TorchDispatchMode):
    """Adds up the outputs of the operations that selective recomputation keeps."""

    def __init__(self, foreign: set[int]):
        super().__init__()
        self.kept = _Kept(foreign)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function in kept_operations():
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    self.kept.add(tensor)
        return result
