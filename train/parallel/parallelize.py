"""Parallelism applied to a built model from outside: its weights are cut, its parts get collectives around
them.

The model is written for one process. `parallelize` walks it and

1. cuts weights over tensor- and expert-parallel ranks: each becomes a DTensor (which keeps its full shape and
    place, for
   the optimizer and for checkpoints), while the module that reads it sees this rank's plain tensor;
2. puts collectives where a part begins and ends: attention, feed-forward and Mamba layers take x as every
    rank has it
   (or, sequence parallel, every rank's tokens gathered) and give back a sum over ranks (or its own tokens of
       that sum);
   experts exchange rows; where sequences are cut, attention gathers keys and values, and Mamba layers
       exchange tokens for groups;
3. hands all weights to `fully_shard`, the one engine of data parallelism: each rank keeps and steps a part of
    them.

The model is built on the meta device, where it takes no memory, and cut there; then each rank makes room for
its pieces (`to_empty`) and fills them (layers.initialize, or a checkpoint). A model that has values already
keeps its slices of them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from ...core.config import check
from ..model.attention import Attention, CrossAttention
from ..model.base import Model
from ..model.bert import MaskedHead
from ..model.block import FeedForward
from ..model.config import ResolvedModelConfig
from ..model.family import family_of
from ..model.layers import Embedding, Linear, Norm
from ..model.mamba import Mamba
from ..model.moe import Experts, MoE, Router
from . import collectives, context_parallel
from .mesh import Axis, Mesh, ParallelConfig
from .stages import check_stages, own_blocks, stages_of

# weights whose gradients travel together at least: below, a collective's start costs more than its overlap
# saves
BUCKET = 4_000_000


def check_layout(parallel: ParallelConfig, model: ResolvedModelConfig, lengths: dict[str, int]) -> None:
    """Raises UserError where a model cannot be cut like this, before anything is built. model: resolved.

    lengths: tokens of a sequence by the setting that says so.
    """
    tensor, context_size, expert = (
        parallel.tensor_model_parallel_size,
        parallel.context_parallel_size,
        parallel.expert_model_parallel_size,
    )
    cut = {
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size,
        "padded_vocab_size": model.padded_vocab_size,
    }
    if model.num_experts:
        cut |= {
            "moe_ffn_hidden_size": model.moe_ffn_hidden_size,
            "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size or 0,
        }
    pattern = model.hybrid_override_pattern or ""
    if "M" in pattern:
        cut["mamba_num_groups"] = model.mamba_num_groups
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
                (
                    f"parallel.tensor_model_parallel_size = {tensor} does not divide model.{name} = {size};"
                    f" {remedy.get(name, 'use a size that does')}"
                ),
            )
            for name, size in cut.items()
        ),
        *(
            (
                length % unit == 0,
                (
                    f"data.{name} = {length} is not a multiple of {why}; use {length // unit * unit or unit}"
                    f" or {(length // unit + 1) * unit}"
                ),
            )
            for name, length in lengths.items()
        ),
        (
            expert == 1 or bool(model.num_experts),
            (
                f"parallel.expert_model_parallel_size = {expert}, and the model has no experts; give"
                " --num-experts, or leave it out"
            ),
        ),
        (
            not model.num_experts or model.num_experts % expert == 0,
            (
                f"parallel.expert_model_parallel_size = {expert} does not divide model.num_experts ="
                f" {model.num_experts}; use a size that does"
            ),
        ),
        (
            not model.retro_add_retriever or 2 * model.retro_chunk_length % over_tensor == 0,
            (
                f"parallel.tensor_model_parallel_size = {tensor} with --sequence-parallel does not divide a"
                f" neighbour of 2 x model.retro_chunk_length = {2 * model.retro_chunk_length} tokens; use a"
                " size that does"
            ),
        ),
        *(_context_rules(model, tensor, context_size) if context_size > 1 else []),
    )


def _context_rules(model: ResolvedModelConfig, tensor: int, context: int) -> list[tuple[bool, str]]:
    return [
        (
            family_of(model).causal,
            (
                "parallel.context_parallel_size cuts what a causal decoder reads, and model.family ="
                f" {model.family} looks both ways; use --tensor-model-parallel-size with --sequence-parallel"
            ),
        ),
        (
            "M" not in (model.hybrid_override_pattern or "")
            or model.mamba_num_groups % (tensor * context) == 0,
            (
                f"parallel.context_parallel_size = {context} (x parallel.tensor_model_parallel_size ="
                f" {tensor}) does not divide model.mamba_num_groups = {model.mamba_num_groups}, which these"
                " processes share; use sizes that do"
            ),
        ),
        (
            (model.rope_scaling or {}).get("rope_type") != "dynamic",
            (
                "parallel.context_parallel_size: the frequencies of rope_type dynamic go by a sequence's"
                " length, and no rank sees it all; use rope_type yarn"
            ),
        ),
        (
            not model.retro_add_retriever,
            (
                "parallel.context_parallel_size would cut the chunks that neighbours are read for; use"
                " --tensor-model-parallel-size with --sequence-parallel"
            ),
        ),
        (
            model.attention_backend in ("auto", "sdpa"),
            (
                "parallel.context_parallel_size: attention to gathered keys is computed by sdpa, not"
                f" model.attention_backend = {model.attention_backend}; leave that out"
            ),
        ),
    ]


def dropout_place(mesh: Mesh, config: ParallelConfig) -> str:
    """What sets a rank's dropout masks apart: its place among those that share a micro-batch's tokens;
    nothing where all have them all.
    """
    places = [mesh.cp.rank if mesh.cp.size > 1 else None, mesh.tp.rank if config.sequence_parallel else None]
    return "" if places == [None, None] else f":{places}"


def parallelize(model: nn.Module, mesh: Mesh, config: ParallelConfig, dtype: torch.dtype) -> None:
    """Spreads a model, built on the meta device or whole, over the ranks, in place; nothing at world size 1.

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
            stage.join_replicas(
                lambda rows: (collectives.gather_from(rows, mesh.dp, 0), mesh.dp.rank * len(rows))
            )
        _shard(stage, mesh, config.data_parallel_sharding == "full", dtype)


def cut_for_use(model: nn.Module, mesh: Mesh) -> None:
    """Cuts a model's matrices over tensor-parallel ranks and leaves it at that; in place, nothing where there
    is one.

    For who uses the model, or sums gradients himself: replicas know nothing of each other, and may work on
    different numbers of batches. See parallelize for the rest.
    """
    if mesh.tp.size > 1:
        _cut_matrices(model, mesh, sequence_parallel=False)
        _cut_experts(model, mesh)


# Tensor and sequence parallelism


def _cut_matrices(model: nn.Module, mesh: Mesh, sequence_parallel: bool) -> None:
    # what they compute, all ranks compute alike, sequence parallel or not
    replicated = _replicated_modules(model)
    of_heads = {
        norm for m in model.modules() if isinstance(m, Attention) for norm in (m.query_norm, m.key_norm)
    }
    for module in [m for m in model.modules() if not isinstance(m, Experts)]:
        split = sequence_parallel and module not in replicated
        kind, attributes = _behaviour(module, mesh.tp, split)
        if isinstance(module, MoE) and sequence_parallel:
            kind, attributes = _Whole, {"tensor_axis": mesh.tp}
        placements = {name: [_placement(module, name)] for name, _ in module.named_parameters(recurse=False)}
        # Whatever is not cut gets its gradient from this rank's tokens, or heads, alone.
        partial = {
            name
            for name, (placement,) in placements.items()
            if isinstance(placement, Replicate) and (split or module in of_heads)
        }
        _become(module, kind, mesh.dense["tp"], placements, partial, **attributes)
    ours = {
        "cross_entropy": collectives.vocab_parallel_cross_entropy,
        "likelihoods": collectives.vocab_parallel_likelihoods,
        "logits_of": collectives.vocab_parallel_logits,
    }
    for name, function in ours.items():
        setattr(model, name, functools.partial(function, axis=mesh.tp))
    if isinstance(model, Model):
        _join_states(model, mesh.tp, sequence_parallel)


def _behaviour(module: nn.Module, tp: Axis, split: bool) -> tuple[type | None, dict]:
    """(what a module does beside its own, with which attributes).

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
    if isinstance(module, Attention | CrossAttention):
        return _Attention, {"enter": enter, "tensor_axis": None if split else tp}
    if isinstance(module, FeedForward | Mamba):
        return _Part, {"enter": enter}
    if isinstance(module, Linear) and module.split == "row":
        return _Row, {"leave": leave}
    if isinstance(module, Embedding) and module.split == "column":
        return _VocabularyEmbedding, {"leave": leave, "tensor_axis": tp}
    if isinstance(module, Embedding) and module.split is None and split:
        return _SequenceEmbedding, {"tensor_axis": tp}
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
    if split == "column" or isinstance(module, Mamba | MaskedHead):
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
    """Gives a module the behaviour of `kind` around its own, and cuts its weights; whoever reads one gets
    this rank's tensor.

    partial: weights of whose gradients a rank computes a part of a sum over the ranks of `mesh`.
    """
    if kind is None and not placements:
        return
    for name, placement in placements.items():
        weight = module._parameters[name]
        # every rank has all of it: nothing is sent
        cut = distribute_tensor(weight.detach(), mesh, placement, src_data_rank=None)
        module._parameters[name] = nn.Parameter(cut, requires_grad=weight.requires_grad)
    module.__class__ = _parallel_class(kind, type(module), tuple(placements))
    module.cut_dimensions, module.partial = mesh.ndim, partial
    for name, value in attributes.items():
        setattr(module, name, value)


@functools.cache  # so that compiled blocks, which are told apart by the classes in them, share their code
def _parallel_class(kind: type | None, own: type, weights: tuple[str, ...]) -> type:
    readers = {
        name: property(functools.partial(_withhold if kind is _Row and name == "bias" else _read, name=name))
        for name in weights
    }
    return type(f"Parallel{own.__name__}", (own,) if kind is None else (kind, own), readers)


def _read(module: nn.Module, name: str) -> Tensor:
    """A weight as its module computes with it; while fully_shard has it in its keeping, as it keeps it."""
    weight = module._parameters[name]
    if _is_kept(module, weight):
        return weight
    return weight.to_local(grad_placements=[Partial()] if name in module.partial else None)


def _withhold(module: nn.Module, name: str) -> Tensor | None:
    """Nothing instead of a weight while its module computes, which then does without."""
    weight = module._parameters[name]
    return weight if _is_kept(module, weight) else None


def _is_kept(module: nn.Module, weight: Tensor) -> bool:
    """Whether fully_shard has cut a weight further: its mesh then has a dimension more."""
    return weight.device_mesh.ndim != module.cut_dimensions


class _Part(nn.Module):
    """A part that begins with matrices whose rows are cut and ends with one whose columns are."""

    def forward(self, x: Tensor, *arguments, **context) -> Tensor:
        return super().forward(self.enter(x), *arguments, **context)


class _Attention(_Part):
    """Attention to the heads that a rank has, whose dropout must not be that of the other ranks' heads."""

    def forward(self, x: Tensor, *arguments, **context) -> Tensor:
        if self.dropout and self.training and self.tensor_axis is not None:
            with _randomness_of_its_own(self.tensor_axis, x.device):
                return super().forward(x, *arguments, **context)
        return super().forward(x, *arguments, **context)


class _Row(nn.Module):
    """A linear layer whose columns are cut: its products are parts of a sum, and the bias comes once, after
    it.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(super().forward(x))  # without the bias: _withhold
        return y if self._parameters.get("bias") is None else y + _read(self, "bias")


class _VocabularyEmbedding(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return self.leave(collectives.vocab_parallel_embedding(ids, self.weight, self.tensor_axis))


class _SequenceEmbedding(nn.Module):
    """An embedding, ids (..., T), of this rank's tokens alone."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(collectives.local_part(ids, self.tensor_axis, -1))


class _Whole(nn.Module):
    """A mixture of experts between cut sequences: routed on whole ones, by all tensor-parallel ranks alike."""

    def forward(self, x: Tensor) -> Tensor:
        return collectives.scatter_to(
            super().forward(collectives.gather_from(x, self.tensor_axis, 1, "split")), self.tensor_axis, 1
        )


@contextlib.contextmanager
def _randomness_of_its_own(axis: Axis, device: torch.device) -> Iterator[None]:
    """Random numbers that differ from rank to rank and follow from the common ones, which go on afterwards as
    one draw later.

    So recomputation, which sets the common ones back, draws the same again.
    """
    if device.type == "cuda":  # told by the generator's counters: to draw would wait for the GPU
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
    """Deals out experts over expert-parallel ranks, and cuts each one's width over tensor-parallel ranks."""
    for module in [m for m in model.modules() if isinstance(m, Experts)]:
        placements = {
            name: [Shard(0), Shard(2 if name == "down" else 1)]
            for name, _ in module.named_parameters(recurse=False)
        }
        view = mesh.sparse["ep", "tp"]
        if mesh.ep.size == 1:  # then they are sharded with all others, over the dense view's ranks
            placements, view = (
                {name: placement[1:] for name, placement in placements.items()},
                mesh.dense["tp"],
            )
        _become(module, _ParallelExperts, view, placements, set(), expert_axis=mesh.ep, tensor_axis=mesh.tp)


class _ParallelExperts(nn.Module):
    """rows (M, D), sorted by expert, counts (E,) of all experts -> (M, D), each row from wherever its expert
    is.
    """

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        if self.expert_axis.size == 1:
            return self._compute(rows, counts)
        ranks = self.expert_axis.size
        # (from rank, of my experts): all ranks say how many rows each expert gets from them.
        everyones = collectives.gather_from(counts, self.expert_axis, 0, "split").view(ranks, ranks, -1)[
            :, self.expert_axis.rank
        ]
        sent, received = counts.view(ranks, -1).sum(1).tolist(), everyones.sum(1).tolist()
        rows = collectives.all_to_all(rows, sent, received, self.expert_axis)
        experts = (
            torch.arange(everyones.shape[1], device=rows.device)
            .repeat(ranks)
            .repeat_interleave(everyones.flatten())
        )
        order = experts.argsort(stable=True)  # they come by rank, and are computed by expert
        rows = self._compute(rows.index_select(0, order), everyones.sum(0))
        return collectives.all_to_all(rows.index_select(0, order.argsort()), received, sent, self.expert_axis)

    def _compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        if self.tensor_axis.size == 1:
            return super().forward(rows, counts)
        return collectives.reduce_from(
            super().forward(collectives.copy_to(rows, self.tensor_axis), counts), self.tensor_axis
        )


# Context parallelism


def _cut_sequences(model: nn.Module, cp: Axis) -> None:
    model.causal_mask = functools.partial(context_parallel.causal_mask, axis=cp)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = functools.partial(context_parallel.attend, axis=cp)
        elif isinstance(module, Mamba):
            module.exchange = context_parallel.exchange_groups(cp)
        elif isinstance(module, MoE):
            module.within_capacity = functools.partial(context_parallel.within_capacity, axis=cp)
        elif isinstance(module, Router):
            module.sum_counts = functools.partial(collectives.reduce_from, axis=cp)


# Data parallelism


def _shard(model: nn.Module, mesh: Mesh, full: bool, dtype: torch.dtype) -> None:
    """Cuts every weight over the data- and context-parallel ranks, those of experts over the ranks that have
    the same ones.

    full: weights are freed after each block and gathered again (ZeRO-3). Otherwise they stay whole from the
    first forward to the last backward of a step: one all-gather and one reduce-scatter a step, as with
    Megatron's distributed optimizer.
    """
    # Inputs are not cast: the loss's weights and the rotations are float32 everywhere.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.promote_types(dtype, torch.float32), cast_forward_inputs=False
    )
    how = {"mesh": mesh.dense["dp_cp"], "mp_policy": policy}
    if mesh.ep.size > 1:
        for module in list(model.modules()):
            if isinstance(module, Experts):
                fully_shard(module, reshard_after_forward=full, **(how | {"mesh": mesh.sparse["edp"]}))
    for blocks in [[block] for block in own_blocks(model)] if full else _buckets(own_blocks(model)):
        fully_shard(blocks, reshard_after_forward=full, **how)
    # its own weights begin the forward pass and end it
    fully_shard(model, reshard_after_forward=False, **how)
    for method in model.methods:
        register_fsdp_forward_method(model, method)
    model.sharded_fully = full
    for module in _sharded(model):
        module.set_gradient_divide_factor(1.0)
        # else a factor of one's own becomes PREMUL_SUM, which gloo lacks
        module.set_force_sum_reduction_for_comms(True)


def _buckets(blocks: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Neighbours whose gradients travel together, with BUCKET weights at least but for those at the beginning
    of the model.
    """
    buckets: list[list[nn.Module]] = []
    weights = BUCKET
    for block in reversed(blocks):  # as their gradients are made
        if weights >= BUCKET:
            buckets.append([])
            weights = 0
        buckets[-1].insert(0, block)
        weights += sum(parameter.numel() for parameter in block.parameters())
    return buckets[::-1]


def synchronise_gradients(model: nn.Module, last: bool) -> None:
    """Before a micro-batch's backward: only the last of a step sums gradients over the ranks and frees whole
    weights.

    Where weights and gradients are cut too, every one does: whole gradients are what is to be saved.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or model.sharded_fully)
        model.set_reshard_after_backward(last or model.sharded_fully)
        model.set_is_last_backward(last)


def finish_gradients(model: nn.Module, last: bool) -> None:
    """After gradients that no backward pass of the model has made (a pipeline puts them off): what
    fully_shard does at its end.

    There is no public call for it; torch.distributed.pipelining reaches for the same (stage.py,
    perform_reduce_grad).
    """
    state = fully_shard.state(model)
    # First they join the sums of earlier micro-batches, which may be wider than they are.
    for last_pass in (False, True) if last else (False,):
        synchronise_gradients(model, last_pass)
        for each in state._state_ctx.all_states:
            # since torch 2.13, and before
            groups = (
                each._fsdp_param_groups if hasattr(each, "_fsdp_param_groups") else [each._fsdp_param_group]
            )
            for group in groups:
                if group is not None:
                    group.post_backward()
    if last:
        state._root_post_backward_final_callback()


def reshard(model: nn.Module) -> None:
    """Frees the whole weights that a forward pass without a backward pass has gathered."""
    for module in _sharded(model):
        module.reshard()


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
