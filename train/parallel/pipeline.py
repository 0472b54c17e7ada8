"""Pipeline parallelism: each rank has some of a model's blocks, and micro-batches go from stage to stage.

`Pipeline` replaces the model: it has this rank's stages (stages.py), with the weights' names of one process,
and executes the rank's program (schedules.py) on a global batch. Every stage reads the same micro-batches, so
only hidden states and their gradients are sent.

A stage accumulates the gradients of micro-batches in their order and draws dropout as one process does, so
results are bitwise those of one process. The exception is a weight on two stages (an embedding that is also
the output layer): its two gradients are added at the end of a step, not after every micro-batch.

torch.distributed.pipelining is not used. By its source (torch 2.13) it keeps buffers for the inputs and
gradients of all micro-batches of a step (5 GB a stage for GPT-3 on 16 stages, of which 1F1B needs an eighth),
refuses fewer micro-batches than stages, sums gradients over data-parallel ranks only after the last backward
pass, and splits backward passes by walking the graph, which breaks compiled blocks and fully_shard's hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ..model.base import Model
from ..model.config import ResolvedModelConfig
from ..model.dtensor import local_shard
from ..model.inputs import MicroBatch
from ..model.layers import Linear
from ..model.stage import PipelineStage
from .mesh import Axis, Mesh, ParallelConfig
from .parallelize import finish_gradients, synchronise_gradients
from .schedules import Action, PipelinePlan, Recv, Send, forward_programs, programs
from .stages import bounds, cut_stage, owners, stage_rules


class Pipeline(nn.Module):
    """This rank's stages of a model.

    whole: the model on the meta device; lengths: see parallelize.check_layout.
    """

    def __init__(
        self,
        whole: Model,
        mesh: Mesh,
        parallel: ParallelConfig,
        lengths: dict[str, int],
        dtype: torch.dtype,
    ):
        super().__init__()
        self.config: ResolvedModelConfig = whole.config
        self.mesh, self.axis, self.dtype = mesh, mesh.pp, dtype
        self.schedule = parallel.pipeline_schedule
        self.bounds = bounds(parallel, whole.config, lengths)
        self.indices = range(self.axis.rank, len(self.bounds), self.axis.size)
        self.stages = nn.ModuleList(cut_stage(whole, *self.bounds[index]) for index in self.indices)
        self.cut_between = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        shared = owners(whole.config, self.bounds)
        # Weight -> the stages that have it, its owner first.
        self.shared = {
            name: shared[name.split(".")[0]]
            for name, _ in whole.named_parameters()
            if name.split(".")[0] in shared
        }
        self.deferred = _DeferredGradients() if self.schedule == "zero-bubble" else None
        if self.deferred is not None:
            for module in self.modules():
                if isinstance(module, Linear):
                    module.product = functools.partial(_linear_with_deferred_gradient, deferred=self.deferred)

    def stage(self, index: int) -> PipelineStage:
        return cast(PipelineStage, self.stages[index // self.axis.size])

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """With the names of the undivided model."""
        for stage in self.stages:
            yield from stage.named_modules(memo, prefix, remove_duplicate)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that this rank steps and saves, without copies of other stages' weights."""
        for index, stage in zip(self.indices, self.stages):
            for name, weight in stage.named_parameters(prefix, recurse, remove_duplicate):
                if self.shared.get(name, [index])[0] == index:
                    yield name, weight

    def forward_backward(
        self, batch: list[MicroBatch], factor: Tensor, begin: Callable[[MicroBatch], None]
    ) -> Tensor:
        """Like Model.forward_backward, with the loss of the replica on all stages.

        begin: called before a micro-batch's forward pass.
        """
        plan = programs(self.schedule, self.axis.size, len(self.stages), len(batch))
        loss = _Step(self, batch, factor, begin).run(plan)
        self._sum_shared_gradients()
        return loss

    def losses(self, batch: list[MicroBatch]) -> Tensor:
        """The summed loss of micro-batches, on all stages, without gradients."""
        with torch.no_grad():
            return _Step(self, batch, torch.ones(()), lambda micro: None).run(
                forward_programs(self.axis.size, len(self.stages), len(batch))
            )

    @torch.no_grad()
    def share_weights(self) -> None:
        """Copies shared weights from the stage that owns them to the others, after an optimizer step."""
        for name, owner, other in self._shared_pairs():
            self._move(self._own(name, owner), self._own(name, other), owner, other, Tensor.copy_)

    @torch.no_grad()
    def _sum_shared_gradients(self) -> None:
        for name, owner, other in self._shared_pairs():
            here, there = self._own(name, owner), self._own(name, other)
            self._move(
                None if there is None else there.grad,
                None if here is None else here.grad,
                other,
                owner,
                Tensor.add_,
            )
            if there is not None:
                there.grad = None

    def _move(
        self,
        given: Tensor | None,
        taken: Tensor | None,
        source: int,
        target: int,
        put: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Sends `given` from stage `source` to stage `target`, and does put(taken, given) there.

        given, taken: None on ranks without that stage.
        """
        given, taken = (None if tensor is None else local_shard(tensor) for tensor in (given, taken))
        if given is not None and taken is not None:
            put(taken, given)
        elif given is not None and given.numel():
            dist.send(given.contiguous(), group=self.axis.group, group_dst=target % self.axis.size)
        elif taken is not None and taken.numel():
            received = torch.empty_like(taken, memory_format=torch.contiguous_format)
            dist.recv(received, group=self.axis.group, group_src=source % self.axis.size)
            put(taken, received)

    def _shared_pairs(self) -> Iterator[tuple[str, int, int]]:
        """(weight, stage that owns it, stage with a copy), in the same order on all ranks."""
        for name, (owner, *others) in self.shared.items():
            for other in others:
                yield name, owner, other

    def _own(self, name: str, index: int) -> nn.Parameter | None:
        """A weight of a stage; None if the stage is on another rank."""
        return dict(self.stage(index).named_parameters())[name] if index in self.indices else None


class _Step:
    """Executes a rank's program on one global batch."""

    def __init__(
        self, pipeline: Pipeline, batch: list[MicroBatch], factor: Tensor, begin: Callable[[MicroBatch], None]
    ):
        self.pipeline, self.batch, self.factor, self.begin = pipeline, batch, factor, begin
        self.messages = _Messages(pipeline.axis, pipeline.dtype, pipeline.mesh.device)
        self.loss = torch.zeros((), dtype=torch.float64, device=pipeline.mesh.device)
        # (stage, micro-batch) -> its input, and where its gradient enters
        self.kept: dict[tuple[int, int], tuple] = {}
        # (stage, micro-batch) -> weights and their deferred gradients
        self.deferred: dict[tuple[int, int], list[tuple[Tensor, Callable[[], Tensor]]]] = {}
        self.results: dict[Action, tuple[Tensor, ...]] = {}  # action -> result, until it is sent

    def run(self, plan: PipelinePlan) -> Tensor:
        do = {"F": self.forward, "B": self.backward, "W": self.weights}
        for step in plan.programs[self.pipeline.axis.rank]:
            match step:
                case Send(action, peer):
                    self.messages.send(self.results.pop(action), peer)
                case Recv(action, peer):
                    self.messages.expect(action, peer, self._shapes(action))
                case Action(kind, stage, micro):
                    do[kind](stage, micro)
        self.messages.finish()
        return self.pipeline.mesh.all_reduce_pp(self.loss)

    def forward(self, index: int, micro: int) -> None:
        stage = self.pipeline.stage(index)
        received = () if stage.is_first else self.messages.take(Action("F", index - 1, micro))
        if torch.is_grad_enabled():
            received = tuple(tensor.requires_grad_() for tensor in received)
        self.begin(self.batch[micro])
        results = stage.run(self.batch[micro], received)
        if stage.is_last:
            self.loss += results[0].detach()
            results = (results[0] * self.factor,) if torch.is_grad_enabled() else ()
        else:
            self.results[Action("F", index, micro)] = tuple(tensor.detach() for tensor in results)
        if torch.is_grad_enabled():
            # gradient edges, not tensors: sent tensors need not be kept
            seeds = (torch.ones_like(results[0]),) if stage.is_last else ()
            self.kept[index, micro] = received, tuple(get_gradient_edge(tensor) for tensor in results), seeds

    def backward(self, index: int, micro: int) -> None:
        stage, deferred = self.pipeline.stage(index), self.pipeline.deferred
        received, edges, seeds = self.kept.pop((index, micro))
        gradients = seeds if stage.is_last else self.messages.take(Action("B", index + 1, micro))
        synchronise_gradients(stage, last=deferred is None and micro == len(self.batch) - 1)
        if deferred is not None:
            deferred.begin()
        torch.autograd.backward(edges, gradients)
        if deferred is not None:
            self.deferred[index, micro] = deferred.end()
        if not stage.is_first:
            self.results[Action("B", index, micro)] = tuple(tensor.grad for tensor in received)

    def weights(self, index: int, micro: int) -> None:
        """Computes the weight gradients that a backward pass deferred."""
        for weight, gradient in self.deferred.pop((index, micro)):
            weight.backward(gradient())
        finish_gradients(self.pipeline.stage(index), last=micro == len(self.batch) - 1)

    def _shapes(self, action: Action) -> list[torch.Size]:
        """Shapes of the tensors that an action sends: states to the next stage, or gradients to the one
        before.
        """
        pipeline, stage = self.pipeline, action.stage + 1 if action.kind == "F" else action.stage
        return stage_rules(pipeline.config).shapes(
            pipeline.config, pipeline.bounds[stage][0], self.batch[action.micro], pipeline.cut_between
        )


class _Messages:
    """Point-to-point messages between the ranks of a pipeline, in the order of their programs."""

    def __init__(self, axis: Axis, dtype: torch.dtype, device: torch.device):
        self.axis, self.dtype, self.device = axis, dtype, device
        self.coming: dict[Action, list[tuple[dist.Work, Tensor]]] = {}
        self.going: list[tuple[dist.Work, Tensor]] = []

    def send(self, tensors: tuple[Tensor, ...], peer: int) -> None:
        self.going = [sent for sent in self.going if not sent[0].is_completed()]
        for tensor in map(Tensor.contiguous, tensors):
            work = dist.isend(tensor, group=self.axis.group, group_dst=peer)
            assert work is not None, "this rank is in the group"
            self.going.append((work, tensor))

    def expect(self, action: Action, peer: int, shapes: list[torch.Size]) -> None:
        buffers = [torch.empty(shape, dtype=self.dtype, device=self.device) for shape in shapes]
        self.coming[action] = []
        for buffer in buffers:
            work = dist.irecv(buffer, group=self.axis.group, group_src=peer)
            assert work is not None, "this rank is in the group"
            self.coming[action].append((work, buffer))

    def take(self, action: Action) -> tuple[Tensor, ...]:
        coming = self.coming.pop(action)
        for work, _ in coming:
            work.wait()
        return tuple(tensor for _, tensor in coming)

    def finish(self) -> None:
        for work, _ in self.going:
            work.wait()


class _DeferredGradients:
    """Collects the deferred weight gradients of the backward pass that is running."""

    def __init__(self):
        self.products: list[tuple[Tensor, Callable[[], Tensor]]] | None = None

    def begin(self) -> None:
        self.products = []

    def end(self) -> list[tuple[Tensor, Callable[[], Tensor]]]:
        assert self.products is not None, "begin comes first"
        products, self.products = self.products, None
        return products


def _linear_with_deferred_gradient(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, deferred: _DeferredGradients
) -> Tensor:
    """F.linear whose weight gradient is deferred."""
    if not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return _DeferredWeightGradient.apply(x, weight, bias, deferred)


class _DeferredWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, deferred):
        ctx.save_for_backward(x, weight)
        ctx.weight, ctx.has_bias, ctx.deferred = weight, bias is not None, deferred
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        ctx.deferred.products.append((ctx.weight, lambda: rows.T @ inputs))
        return (
            (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None,
            None,
            rows.sum(0) if ctx.has_bias else None,
            None,
        )
