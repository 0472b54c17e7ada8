"""Pipeline parallelism: each rank has some of a model's blocks, and micro-batches go from stage to stage.

`Pipeline` stands in for the model: it holds this rank's stages (stages.py) under the names of one process,
and goes through the rank's program (schedules.py) with a global batch. Every stage reads the same
micro-batches, so that only hidden states travel, and their gradients.

A stage adds up the gradients of micro-batches in their order, as one process does, and draws dropout as it
would: the numbers are those of one process to the last bit. But where a weight is on two stages (an embedding
that is also the head), the sums of its two gradients are added at the end of a step instead of micro-batch by
micro-batch.

torch.distributed.pipelining has most of this, but by its source (torch 2.13) it keeps buffers for the inputs
and gradients of every micro-batch of a step (5 GB a stage for GPT-3 on 16 stages, of which 1F1B needs an
eighth), refuses fewer micro-batches than stages, sums gradients over data-parallel ranks only after the last
backward pass, and splits backward passes by walking the graph, which neither compiled blocks nor
fully_shard's hooks survive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ..model.dtensor import local_shard
from ..model.inputs import MicroBatch
from ..model.layers import Linear
from .mesh import Axis, Mesh, ParallelConfig
from .parallelize import finish_gradients, synchronise_gradients
from .schedules import Action, PipelinePlan, Recv, Send, forward_programs, programs
from .stages import bounds, cut_stage, owners, stage_rules


class Pipeline(nn.Module):
    """This rank's stages of a model.

    whole: the model on the meta device; lengths: see sharding.check_layout.
    """

    def __init__(
        self,
        whole: nn.Module,
        mesh: Mesh,
        parallel: ParallelConfig,
        lengths: dict[str, int],
        dtype: torch.dtype,
    ):
        super().__init__()
        self.config, self.axis, self.mesh, self.dtype, self.schedule = (
            whole.config,
            mesh.pp,
            mesh,
            dtype,
            parallel.pipeline_schedule,
        )
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
        self.put_off = _PutOff() if self.schedule == "zero-bubble" else None
        if self.put_off is not None:
            for module in self.modules():
                if isinstance(module, Linear):
                    module.product = functools.partial(_put_off_product, put_off=self.put_off)

    def stage(self, index: int) -> nn.Module:
        return self.stages[index // self.axis.size]

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """By the names of the whole model."""
        for stage in self.stages:
            yield from stage.named_modules(memo, prefix, remove_duplicate)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that this rank steps and saves: copies of other stages' weights are left out."""
        for index, stage in zip(self.indices, self.stages):
            for name, weight in stage.named_parameters(prefix, recurse, remove_duplicate):
                if self.shared.get(name, [index])[0] == index:
                    yield name, weight

    def forward_backward(
        self, batch: list[MicroBatch], factor: Tensor, begin: Callable[[MicroBatch], None]
    ) -> Tensor:
        """As loop.forward_backward, with the loss of the replica on all stages.

        begin: called before a micro-batch's forward pass.
        """
        plan = programs(self.schedule, self.axis.size, len(self.stages), len(batch))
        loss = _Step(self, batch, factor, begin).run(plan)
        self._sum_shared_gradients()
        return loss

    def losses(self, batch: list[MicroBatch]) -> Tensor:
        """The summed loss of micro-batches, on all stages; no gradients."""
        with torch.no_grad():
            return _Step(self, batch, torch.ones(()), lambda micro: None).run(
                forward_programs(self.axis.size, len(self.stages), len(batch))
            )

    @torch.no_grad()
    def share_weights(self) -> None:
        """After owners of shared weights have changed them: fills the copies."""
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
        """put(taken, given) where stage `source` has the one and stage `target` the other; None for what is
        not on this rank.
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
        """(weight, the stage that owns it, another that has it), in the same order on all ranks."""
        for name, (owner, *others) in self.shared.items():
            for other in others:
                yield name, owner, other

    def _own(self, name: str, index: int) -> nn.Parameter | None:
        """A weight of a stage, if that is this rank's."""
        return dict(self.stage(index).named_parameters())[name] if index in self.indices else None


class _Step:
    """A rank's way through its program with one batch."""

    def __init__(
        self, pipeline: Pipeline, batch: list[MicroBatch], factor: Tensor, begin: Callable[[MicroBatch], None]
    ):
        self.pipeline, self.batch, self.factor, self.begin = pipeline, batch, factor, begin
        self.messages = _Messages(pipeline.axis, pipeline.dtype, pipeline.mesh.device)
        self.loss = torch.zeros((), dtype=torch.float64, device=pipeline.mesh.device)
        # of a stage's micro-batch: what came in, and where its gradient enters
        self.kept: dict[tuple[int, int], tuple] = {}
        self.results: dict[Action, tuple[Tensor, ...]] = {}  # until they are sent

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
            # The edges, not the tensors: what has been sent need not be kept.
            seeds = (torch.ones_like(results[0]),) if stage.is_last else ()
            self.kept[index, micro] = received, tuple(get_gradient_edge(tensor) for tensor in results), seeds

    def backward(self, index: int, micro: int) -> None:
        stage, put_off = self.pipeline.stage(index), self.pipeline.put_off
        received, edges, seeds = self.kept.pop((index, micro))
        gradients = seeds if stage.is_last else self.messages.take(Action("B", index + 1, micro))
        synchronise_gradients(stage, last=put_off is None and micro == len(self.batch) - 1)
        if put_off is not None:
            put_off.begin()
        torch.autograd.backward(edges, gradients)
        if put_off is not None:
            self.kept[index, micro] = put_off.end()
        if not stage.is_first:
            self.results[Action("B", index, micro)] = tuple(tensor.grad for tensor in received)

    def weights(self, index: int, micro: int) -> None:
        """The gradients that a backward pass has put off."""
        for weight, gradient in self.kept.pop((index, micro)):
            weight.backward(gradient())
        finish_gradients(self.pipeline.stage(index), last=micro == len(self.batch) - 1)

    def _shapes(self, action: Action) -> list[torch.Size]:
        """Of what an action gives a neighbour: states for the stage after it, or gradients of those that it
        got itself.
        """
        pipeline, stage = self.pipeline, action.stage + 1 if action.kind == "F" else action.stage
        return stage_rules(pipeline.config).shapes(
            pipeline.config, pipeline.bounds[stage][0], self.batch[action.micro], pipeline.cut_between
        )


class _Messages:
    """What ranks of a pipeline send each other, in the order of their programs."""

    def __init__(self, axis: Axis, dtype: torch.dtype, device: torch.device):
        self.axis, self.dtype, self.device = axis, dtype, device
        self.coming: dict[Action, list[tuple[dist.Work, Tensor]]] = {}
        self.going: list[tuple[dist.Work, Tensor]] = []

    def send(self, tensors: tuple[Tensor, ...], peer: int) -> None:
        self.going = [sent for sent in self.going if not sent[0].is_completed()]
        for tensor in map(Tensor.contiguous, tensors):
            self.going.append((dist.isend(tensor, group=self.axis.group, group_dst=peer), tensor))

    def expect(self, action: Action, peer: int, shapes: list[torch.Size]) -> None:
        buffers = [torch.empty(shape, dtype=self.dtype, device=self.device) for shape in shapes]
        self.coming[action] = [
            (dist.irecv(buffer, group=self.axis.group, group_src=peer), buffer) for buffer in buffers
        ]

    def take(self, action: Action) -> tuple[Tensor, ...]:
        coming = self.coming.pop(action)
        for work, _ in coming:
            work.wait()
        return tuple(tensor for _, tensor in coming)

    def finish(self) -> None:
        for work, _ in self.going:
            work.wait()


class _PutOff:
    """The weights' gradients of the backward pass that is running."""

    def __init__(self):
        self.products: list[tuple[Tensor, Callable[[], Tensor]]] | None = None

    def begin(self) -> None:
        self.products = []

    def end(self) -> list[tuple[Tensor, Callable[[], Tensor]]]:
        products, self.products = self.products, None
        return products


def _put_off_product(x: Tensor, weight: Tensor, bias: Tensor | None, *, put_off: _PutOff) -> Tensor:
    """F.linear whose weight gets its gradient later."""
    if not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return _PutOffProduct.apply(x, weight, bias, put_off)


class _PutOffProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, put_off):
        ctx.save_for_backward(x, weight)
        ctx.weight, ctx.has_bias, ctx.put_off = weight, bias is not None, put_off
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        ctx.put_off.products.append((ctx.weight, lambda: rows.T @ inputs))
        return (
            (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None,
            None,
            rows.sum(0) if ctx.has_bias else None,
            None,
        )
