"""Applies parallelism to a built model: divides its weights, and puts collectives around its modules.

The model is written for one process. `parallelize` goes through its modules and

1. divides weights over tensor- and expert-parallel ranks. Each becomes a DTensor, whose full shape the
   optimizer and checkpoints need; the module that computes with it reads this rank's plain tensor;
2. puts collectives before and after modules. Attention, feed-forward and Mamba layers take x, the same on all
   ranks, and return a sum over ranks; with sequence parallelism they gather every rank's tokens and return
   each rank's tokens of the sum. Experts exchange rows. With context parallelism attention gathers keys and
   values, and Mamba layers exchange tokens for groups of heads;
3. gives all weights to `fully_shard` (FSDP2), which does all data parallelism: each rank stores and steps a
   part of every weight.

The model is built and divided on the meta device, without memory. Then each rank allocates its parts
(`to_empty`) and fills them (layers.initialize, or a checkpoint). A model that has values keeps its parts of
them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from ...core.config import check
from ..model.attention import Attention, CrossAttention
from ..model.base import Model
from ..model.bert import MaskedHead
from ..model.block import FeedForward
from ..model.config import ResolvedModelConfig
from ..model.family import family_of
from ..model.latent_attention import MultiLatentAttention
from ..model.layers import AllHeadsNorm, Embedding, Linear, Norm
from ..model.mamba import Mamba
from ..model.moe import Experts, MoE, Router
from ..model.positions import Alibi, depends_on_length
from . import collectives, context_parallel
from .mesh import Axis, Mesh, ParallelConfig
from .stages import check_stages, own_blocks, stages_of

# Minimum weights of one gradient collective: for smaller ones the latency costs more than the overlap saves.
BUCKET = 4_000_000


def check_layout(parallel: ParallelConfig, model: ResolvedModelConfig, lengths: dict[str, int]) -> None:
    """Raises UserError, before anything is built, if a model cannot be divided like this. model: resolved.

    lengths: setting -> tokens of a sequence, as sequence_lengths gives them.
    """
    tensor, context_size, expert = (
        parallel.tensor_model_parallel_size,
        parallel.context_parallel_size,
        parallel.expert_model_parallel_size,
    )
    divided = {
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size,
        "padded_vocab_size": model.padded_vocab_size,
    }
    if model.num_experts:
        divided |= {
            "moe_ffn_hidden_size": model.expert_size,
            "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size or 0,
        }
    pattern = model.hybrid_override_pattern or ""
    if "M" in pattern:
        divided["mamba_num_groups"] = model.mamba_num_groups
    remedy = {"padded_vocab_size": "give a --make-vocab-size-divisible-by that is"}
    over_tensor = tensor if parallel.sequence_parallel else 1
    unit = 2 * context_size * over_tensor if context_size > 1 else over_tensor
    factors = (["2", f"parallel.context_parallel_size = {context_size}"] if context_size > 1 else []) + (
        [f"parallel.tensor_model_parallel_size = {tensor}"] if over_tensor > 1 else []
    )
    why = " x ".join(factors) + (f" = {unit}" if len(factors) > 1 else "")
    check_stages(parallel, model, lengths)
    check(
        *(
            (
                size % tensor == 0,
                f"parallel.tensor_model_parallel_size = {tensor} does not divide model.{name} = {size};"
                f" {remedy.get(name, 'use a size that does')}",
            )
            for name, size in divided.items()
        ),
        *(
            (
                length % unit == 0,
                f"data.{name} = {length} is not a multiple of {why}; use {length // unit * unit or unit}"
                f" or {(length // unit + 1) * unit}",
            )
            for name, length in lengths.items()
        ),
        (
            model.moe_router_load_balancing_type != "sinkhorn" or context_size == 1,
            "model.moe_router_load_balancing_type = sinkhorn balances all tokens of a micro-batch together;"
            " leave --context-parallel-size out",
        ),
        (
            expert == 1 or bool(model.num_experts),
            f"parallel.expert_model_parallel_size = {expert}, and the model has no experts; give"
            " --num-experts, or leave it out",
        ),
        (
            not model.num_experts or model.num_experts % expert == 0,
            f"parallel.expert_model_parallel_size = {expert} does not divide model.num_experts ="
            f" {model.num_experts}; use a size that does",
        ),
        (
            not model.retro_add_retriever or 2 * model.retro_chunk_length % over_tensor == 0,
            f"parallel.tensor_model_parallel_size = {tensor} with --sequence-parallel does not divide a"
            f" neighbour of 2 x model.retro_chunk_length = {2 * model.retro_chunk_length} tokens; use a"
            " size that does",
        ),
        *(_context_rules(model, tensor, context_size) if context_size > 1 else []),
    )


def _context_rules(model: ResolvedModelConfig, tensor: int, context: int) -> list[tuple[bool, str]]:
    return [
        (
            family_of(model).causal,
            "parallel.context_parallel_size cuts what a causal decoder reads, and model.family ="
            f" {model.family} looks both ways; use --tensor-model-parallel-size with --sequence-parallel",
        ),
        (
            "M" not in (model.hybrid_override_pattern or "")
            or model.mamba_num_groups % (tensor * context) == 0,
            f"parallel.context_parallel_size = {context} (x parallel.tensor_model_parallel_size ="
            f" {tensor}) does not divide model.mamba_num_groups = {model.mamba_num_groups}, which these"
            " processes share; use sizes that do",
        ),
        (
            not depends_on_length(model.rope_scaling),
            "parallel.context_parallel_size: the frequencies of rope_type"
            f" {(model.rope_scaling or {}).get('rope_type')} depend on the length of the whole sequence, of"
            " which each rank has a part; use rope_type yarn",
        ),
        (
            not model.retro_add_retriever,
            "parallel.context_parallel_size would cut the chunks that neighbours are read for; use"
            " --tensor-model-parallel-size with --sequence-parallel",
        ),
        (
            model.attention_backend in ("auto", "sdpa"),
            "parallel.context_parallel_size: attention to gathered keys is computed by sdpa, not"
            f" model.attention_backend = {model.attention_backend}; leave that out",
        ),
    ]


def dropout_place(mesh: Mesh, config: ParallelConfig) -> str:
    """A rank's part of the dropout seed: its position among the ranks that divide a micro-batch's tokens.

    Empty where every rank has all tokens.
    """
    places = [mesh.cp.rank if mesh.cp.size > 1 else None, mesh.tp.rank if config.sequence_parallel else None]
    return "" if places == [None, None] else f":{places}"


def parallelize(model: nn.Module, mesh: Mesh, config: ParallelConfig, dtype: torch.dtype) -> None:
    """Divides a model, on the meta device or with values, over the ranks, in place; no-op at world size 1.

    The model must have `layers`, its blocks, and `loss`, or be a Pipeline of stages that have. dtype: what it
    computes in; what each rank keeps of a weight stays as wide as it is. Gradients are summed, not averaged:
    the loss is already divided by the tokens of the whole global batch.
    """
    if mesh.world_size == 1:
        return
    for stage in stages_of(model):
        if mesh.tp.size > 1:
            _cut_matrices(stage, mesh, config.sequence_parallel)
        if mesh.tp.size > 1 or mesh.ep.size > 1:
            _cut_experts(stage, mesh)
        if mesh.cp.size > 1:
            _cut_sequences(stage, mesh.cp)
        if mesh.dp.size > 1:
            for module in stage.modules():
                if isinstance(module, Router):
                    module.sum_counts_of_step = functools.partial(collectives.reduce_from, axis=mesh.dp)
            stage.join_replicas(
                lambda rows: (collectives.gather_from(rows, mesh.dp, 0), mesh.dp.rank * len(rows))
            )
        _shard(stage, mesh, config.data_parallel_sharding == "full", dtype)


def divide_for_inference(model: nn.Module, mesh: Mesh) -> None:
    """Divides a model over tensor-parallel ranks only, in place; no-op if there is one.

    For inference, or for callers that sum gradients themselves: replicas are independent, and may process
    different numbers of batches. See parallelize.
    """
    if mesh.tp.size > 1:
        _cut_matrices(model, mesh, sequence_parallel=False)
        _cut_experts(model, mesh)


# Tensor and sequence parallelism


def _cut_matrices(model: nn.Module, mesh: Mesh, sequence_parallel: bool) -> None:
    assert mesh.dense is not None, "several ranks have meshes"
    # all ranks compute these in the same way, with sequence parallelism too
    replicated = _replicated_modules(model)
    of_heads = {
        norm for m in model.modules() if isinstance(m, Attention) for norm in (m.query_norm, m.key_norm)
    }.union(*(m.of_latents() for m in model.modules() if isinstance(m, MultiLatentAttention)))
    for module in [m for m in model.modules() if not isinstance(m, Experts)]:
        split = sequence_parallel and module not in replicated
        kind, attributes = _behaviour(module, mesh.tp, split)
        if isinstance(module, MoE) and sequence_parallel:
            kind, attributes = _WholeSequenceMoE, {"tensor_axis": mesh.tp}
        placements = {name: [_placement(module, name)] for name, _ in module.named_parameters(recurse=False)}
        # A rank's gradient of an undivided weight is that of its own tokens, or heads: a part of a sum.
        partial = {
            name
            for name, (placement,) in placements.items()
            if isinstance(placement, Replicate) and (split or module in of_heads)
        }
        _become(module, kind, mesh.dense["tp"], placements, partial, **attributes)
        if isinstance(module, AllHeadsNorm):
            # each rank's gradient of the sum is a part of one too
            module.sum_over_heads = lambda squares: collectives.copy_to(
                collectives.reduce_from(squares, mesh.tp), mesh.tp
            )
    parallel_functions: dict[str, Callable[..., object]] = {
        "cross_entropy": collectives.vocab_parallel_cross_entropy,
        "likelihoods": collectives.vocab_parallel_likelihoods,
        "logits_of": collectives.vocab_parallel_logits,
    }
    for name, function in parallel_functions.items():
        _set(model, **{name: functools.partial(function, axis=mesh.tp)})
    alibi = getattr(model, "alibi", None)
    if isinstance(alibi, Alibi):
        _set(model, alibi=alibi.part(mesh.tp.rank, mesh.tp.size))
    if isinstance(model, Model):
        _join_states(model, mesh.tp, sequence_parallel)


def _behaviour(module: nn.Module, tp: Axis, split: bool) -> tuple[type | None, dict]:
    """(mixin class that adds collectives to a module, its attributes).

    split: between the parts each rank has its own tokens.
    """
    enter = (
        functools.partial(collectives.gather_from, axis=tp, dim=1)
        if split
        else functools.partial(collectives.copy_to, axis=tp)
    )
    leave = (
        functools.partial(collectives.reduce_scatter_to, axis=tp, dim=1)
        if split
        else functools.partial(collectives.reduce_from, axis=tp)
    )
    if isinstance(module, Attention | MultiLatentAttention | CrossAttention):
        return _ParallelAttention, {"enter": enter, "tensor_axis": None if split else tp}
    if isinstance(module, FeedForward | Mamba):
        return _ParallelRegion, {"enter": enter}
    if isinstance(module, Linear) and module.split == "row":
        return _RowParallelLinear, {"leave": leave}
    if isinstance(module, Embedding) and module.split == "column":
        return _VocabParallelEmbedding, {"leave": leave, "tensor_axis": tp}
    if isinstance(module, Embedding) and module.split is None and split:
        return _SequenceParallelEmbedding, {"tensor_axis": tp}
    return None, {}


def _replicated_modules(model: nn.Module) -> set[nn.Module]:
    """The modules that read whole sequences even where sequences are cut: mixtures of experts, and some
    heads.
    """
    roots: list[nn.Module] = [module for module in model.modules() if isinstance(module, MoE)]
    if isinstance(model, Model):
        roots += model.whole_sequence_modules()
    return {module for root in roots for module in root.modules()}


def _placement(module: nn.Module, name: str) -> Placement:
    """Which dimension of a weight is cut over tensor-parallel ranks."""
    split = getattr(module, "split", None)
    if split == "column" or isinstance(module, Mamba | MaskedHead | AllHeadsNorm):
        return Shard(0)
    if split == "row" and name == "weight":
        return Shard(1)
    return Replicate()


def _join_states(model: Model, tp: Axis, sequence_parallel: bool) -> None:
    """Gathers the last hidden states on every rank, and those of an encoder, which several modules read,
    once.

    What goes from one pipeline stage to the next stays as it is.
    """
    enter = (
        functools.partial(collectives.gather_from, axis=tp, dim=1)
        if sequence_parallel
        else functools.partial(collectives.copy_to, axis=tp)
    )
    for norm in model.encoder_norms():
        if isinstance(norm, Norm):  # and not another stage's
            norm.register_forward_hook(lambda _module, _inputs, states: enter(states))
    if sequence_parallel and getattr(model, "is_last", True):
        for depth in model.prediction_depths():
            _set(depth, enter=functools.partial(collectives.scatter_to, axis=tp, dim=1))
        for norm in model.last_norms():
            norm.register_forward_hook(
                lambda _module, _inputs, states: collectives.gather_from(states, tp, 1, "split")
            )


def _become(
    module: nn.Module,
    kind: type | None,
    mesh: DeviceMesh,
    placements: dict[str, list[Placement]],
    partial: set[str],
    **attributes,
) -> None:
    """Mixes `kind` into a module's class, and divides its weights; reading one gives this rank's tensor.

    partial: weights of whose gradients a rank computes a part of a sum over the ranks of `mesh`.
    """
    if kind is None and not placements:
        return
    weights = dict(module.named_parameters(recurse=False))
    for name, placement in placements.items():
        weight = weights.pop(name)  # not kept: its memory is free once it is divided
        # src_data_rank=None: every rank has the whole weight, nothing is sent
        cut = distribute_tensor(weight.detach(), mesh, placement, src_data_rank=None)
        module._parameters[name] = nn.Parameter(cut, requires_grad=weight.requires_grad)
    own: type = type(module)
    module.__class__ = _parallel_class(kind, own, tuple(placements))
    _set(module, cut_dimensions=mesh.ndim, partial=partial, **attributes)


def _set(module: nn.Module, **attributes: object) -> None:
    """Sets attributes that are no tensors or modules, which is all that nn.Module declares."""
    for name, value in attributes.items():
        setattr(module, name, value)


class _Divided(nn.Module):
    """What `_become` gives a module beside its mixin."""

    cut_dimensions: int  # of the mesh that its weights are divided over
    partial: set[str]  # weights of whose gradients a rank computes a part of a sum
    _parameters: dict[str, DTensor]  # type: ignore[assignment]  # nn.Module declares plain parameters


@functools.cache  # one class for equal modules: torch.compile guards on classes, so their blocks share code
def _parallel_class(kind: type | None, own: type, weights: tuple[str, ...]) -> type:
    readers = {
        name: property(
            functools.partial(
                _withhold if kind is _RowParallelLinear and name == "bias" else _read, name=name
            )
        )
        for name in weights
    }
    return type(f"Parallel{own.__name__}", (own,) if kind is None else (kind, own), readers)


def _read(module: _Divided, name: str) -> Tensor:
    """This rank's tensor of a weight; the DTensor itself while fully_shard has it sharded."""
    weight = module._parameters[name]
    if _is_sharded(module, weight):
        return weight
    return weight.to_local(grad_placements=[Partial()] if name in module.partial else None)


def _withhold(module: _Divided, name: str) -> Tensor | None:
    """None in place of a bias while its module computes: _RowParallelLinear adds it after the sum."""
    weight = module._parameters[name]
    return weight if _is_sharded(module, weight) else None


def _is_sharded(module: _Divided, weight: DTensor) -> bool:
    """Whether fully_shard has a weight sharded: its mesh then has one more dimension."""
    return weight.device_mesh.ndim != module.cut_dimensions


class _ParallelRegion(nn.Module):
    """A module that begins with matrices divided by rows and ends with one divided by columns."""

    enter: Callable[[Tensor], Tensor]  # copy_to or gather_from

    def forward(self, x: Tensor, *arguments, **context) -> Tensor:
        return super().forward(self.enter(x), *arguments, **context)


class _ParallelAttention(_ParallelRegion):
    """Attention with this rank's heads, whose dropout masks differ from those of other ranks' heads."""

    dropout: float
    tensor_axis: Axis | None  # None with sequence parallelism: then all random numbers differ by rank

    def forward(self, x: Tensor, *arguments, **context) -> Tensor:
        if self.dropout and self.training and self.tensor_axis is not None:
            with _random_numbers_of_rank(self.tensor_axis, x.device):
                return super().forward(x, *arguments, **context)
        return super().forward(x, *arguments, **context)


class _RowParallelLinear(_Divided):
    """A linear layer divided by columns: its products are parts of a sum, to which the bias is added once."""

    leave: Callable[[Tensor], Tensor]  # reduce_from or reduce_scatter_to

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(super().forward(x))  # without the bias: _withhold
        return y if self._parameters.get("bias") is None else y + _read(self, "bias")


class _VocabParallelEmbedding(nn.Module):
    """An embedding divided by the vocabulary."""

    leave: Callable[[Tensor], Tensor]  # reduce_from or reduce_scatter_to
    tensor_axis: Axis
    weight: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        return self.leave(collectives.vocab_parallel_embedding(ids, self.weight, self.tensor_axis))


class _SequenceParallelEmbedding(nn.Module):
    """An embedding of this rank's tokens only, out of ids (..., T)."""

    tensor_axis: Axis

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(collectives.local_part(ids, self.tensor_axis, -1))


class _WholeSequenceMoE(nn.Module):
    """A mixture of experts with sequence parallelism: all ranks gather and route the whole sequence alike."""

    tensor_axis: Axis

    def forward(self, x: Tensor) -> Tensor:
        return collectives.scatter_to(
            super().forward(collectives.gather_from(x, self.tensor_axis, 1, "split")), self.tensor_axis, 1
        )


@contextlib.contextmanager
def _random_numbers_of_rank(axis: Axis, device: torch.device) -> Iterator[None]:
    """A context with another generator state on every rank, derived from the state that all ranks have.

    Afterwards the common state is back, advanced by one draw. So recomputation, which restores the common
    state, draws the same numbers again.
    """
    if device.type == "cuda":  # from the generator's counters: a draw would synchronise with the GPU
        generator = torch.cuda.default_generators[device.index]
        key = f"{generator.initial_seed()}:{generator.get_offset()}"
        generator.set_offset(generator.get_offset() + 4)
    else:
        generator = torch.default_generator
        key = str(torch.randint(2**62, (), generator=generator).item())
    state = generator.get_state()
    generator.manual_seed(
        int.from_bytes(hashlib.sha256(f"{key}:{axis.rank}".encode()).digest()[:8], "little") % 2**63
    )
    try:
        yield
    finally:
        generator.set_state(state)


# Expert parallelism


def _cut_experts(model: nn.Module, mesh: Mesh) -> None:
    """Divides experts over expert-parallel ranks, and the width of each over tensor-parallel ranks."""
    assert mesh.dense is not None, "several ranks have meshes"
    assert mesh.sparse is not None, "several ranks have meshes"
    for module in [m for m in model.modules() if isinstance(m, Experts)]:
        placements: dict[str, list[Placement]] = {
            name: [Shard(0), Shard(2 if name == "down" else 1)]
            for name, _ in module.named_parameters(recurse=False)
        }
        view = mesh.sparse["ep", "tp"]
        if mesh.ep.size == 1:  # sharded like all other weights, over the dense mesh
            placements = {name: placement[1:] for name, placement in placements.items()}
            view = mesh.dense["tp"]
        _become(module, _ParallelExperts, view, placements, set(), expert_axis=mesh.ep, tensor_axis=mesh.tp)


class _ParallelExperts(nn.Module):
    """Experts divided over ranks: rows (M, D) sorted by expert, counts (E,) of all experts -> (M, D)."""

    expert_axis: Axis
    tensor_axis: Axis

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        if self.expert_axis.size == 1:
            return self._compute(rows, counts)
        ranks = self.expert_axis.size
        # (sending rank, expert of this rank): rows
        received_counts = collectives.gather_from(counts, self.expert_axis, 0, "split").view(
            ranks, ranks, -1
        )[:, self.expert_axis.rank]
        sent, received = counts.view(ranks, -1).sum(1).tolist(), received_counts.sum(1).tolist()
        rows = collectives.all_to_all(rows, sent, received, self.expert_axis)
        experts = (
            torch.arange(received_counts.shape[1], device=rows.device)
            .repeat(ranks)
            .repeat_interleave(received_counts.flatten())
        )
        order = experts.argsort(stable=True)  # they arrive sorted by rank, then by expert
        rows = self._compute(rows.index_select(0, order), received_counts.sum(0))
        return collectives.all_to_all(rows.index_select(0, order.argsort()), received, sent, self.expert_axis)

    def _compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        if self.tensor_axis.size == 1:
            return super().forward(rows, counts)
        return collectives.reduce_from(
            super().forward(collectives.copy_to(rows, self.tensor_axis), counts), self.tensor_axis
        )


# Context parallelism


def _cut_sequences(model: nn.Module, cp: Axis) -> None:
    for name in ("causal_mask", "next_tokens"):
        _set(model, **{name: functools.partial(getattr(context_parallel, name), axis=cp)})
    for module in model.modules():
        if isinstance(module, Attention | MultiLatentAttention):
            module.attend = functools.partial(context_parallel.attend, axis=cp)
        elif isinstance(module, Mamba):
            module.exchange = context_parallel.exchange_groups(cp)
        elif isinstance(module, MoE):
            module.within_capacity = functools.partial(context_parallel.within_capacity, axis=cp)
        elif isinstance(module, Router):
            module.sum_counts = functools.partial(collectives.reduce_from, axis=cp)


# Data parallelism


def _shard(model: Model, mesh: Mesh, full: bool, dtype: torch.dtype) -> None:
    """Shards every weight over the data- and context-parallel ranks, experts over those with the same
    experts.

    full: weights are freed after each block and gathered again (ZeRO-3). Otherwise they stay unsharded from
    the first forward to the last backward pass of a step: one all-gather and one reduce-scatter a step, like
    Megatron-LM's distributed optimizer.
    """
    assert mesh.dense is not None, "several ranks have meshes"
    assert mesh.sparse is not None, "several ranks have meshes"
    # Inputs are not cast: loss masks and rotary tables are float32 everywhere.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.promote_types(dtype, torch.float32), cast_forward_inputs=False
    )
    if mesh.ep.size > 1:
        for module in list(model.modules()):
            if isinstance(module, Experts):
                fully_shard(module, mesh=mesh.sparse["edp"], reshard_after_forward=full, mp_policy=policy)
    dp_cp, blocks = mesh.dense["dp_cp"], own_blocks(model)
    groups: list[list[nn.Module]] = [[block] for block in blocks] if full else _buckets(blocks)
    # depths of multi-token prediction do not run in validation: no group of theirs may wait for them
    groups += [[depth] for depth in model.prediction_depths()]
    for group in groups:
        fully_shard(group, mesh=dp_cp, reshard_after_forward=full, mp_policy=policy)
    # the weights outside the blocks are read first and last in the forward pass
    fully_shard(model, mesh=dp_cp, reshard_after_forward=False, mp_policy=policy)
    for method in model.methods:
        register_fsdp_forward_method(model, method)
    _set(model, sharded_fully=full)
    for sharded in _sharded(model):
        sharded.set_gradient_divide_factor(1.0)
        # else the factor makes it a PREMUL_SUM, which gloo lacks
        sharded.set_force_sum_reduction_for_comms(True)


def _buckets(blocks: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Groups of consecutive blocks, one gradient collective each, of at least BUCKET weights except the
    first.
    """
    buckets: list[list[nn.Module]] = []
    weights = BUCKET
    for block in reversed(blocks):  # in the order in which gradients are computed
        if weights >= BUCKET:
            buckets.append([])
            weights = 0
        buckets[-1].insert(0, block)
        weights += sum(parameter.numel() for parameter in block.parameters())
    return buckets[::-1]


def synchronise_gradients(model: nn.Module, last: bool) -> None:
    """Call before a micro-batch's backward pass: only the step's last one sums gradients over ranks.

    It also frees unsharded weights. Where weights and gradients are sharded (ZeRO-3), every backward pass
    does both, because unsharded gradients would take the memory that is to be saved.
    """
    if isinstance(model, FSDPModule):
        each_pass = last or bool(model.sharded_fully)
        model.set_requires_gradient_sync(each_pass)
        model.set_reshard_after_backward(each_pass)
        model.set_is_last_backward(last)


def finish_gradients(model: nn.Module, last: bool) -> None:
    """Does what fully_shard does at the end of a backward pass, for weight gradients that a pipeline
    deferred.

    There is no public function for it; torch.distributed.pipelining uses the same private ones (stage.py,
    perform_reduce_grad).
    """
    state = fully_shard.state(model)  # type: ignore[attr-defined]  # torch's decorator of fully_shard adds it
    # First they are added to the sums of earlier micro-batches, which may have a higher precision.
    for last_pass in (False, True) if last else (False,):
        synchronise_gradients(model, last_pass)
        for each in state._state_ctx.all_states:
            # the name since torch 2.13, else the older one
            groups = (
                each._fsdp_param_groups if hasattr(each, "_fsdp_param_groups") else [each._fsdp_param_group]
            )
            for group in groups:
                if group is not None:
                    group.post_backward()
    if last:
        state._root_post_backward_final_callback()


def reshard(model: nn.Module) -> None:
    """Frees the unsharded weights that a forward pass without a backward pass has gathered."""
    for module in _sharded(model):
        module.reshard()


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
