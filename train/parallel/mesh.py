"""the one place that starts torch.distributed and makes groups.

`launch` reads torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK); without it, or with one process, nothing
of torch.distributed is started. All ranks stand in one grid, seen in two ways:

    dense   pipeline x (data x context) x tensor        weights of which every rank has a part
    sparse  pipeline x expert data x expert x tensor    weights of experts; expert data x expert = data x context

Tensor-parallel ranks are neighbours (rank 0, 1, ... of a machine), then context-parallel ones, then
data-parallel ones; pipeline stages, which exchange least, stand furthest apart. Ranks that differ in their
data-parallel place alone read different samples; all others of a replica read the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ...core.config import Failure, UserError, check, configuration, option
from .watchdog import Watchdog


@configuration(group="parallel")
class ParallelConfig:
    """How processes work together. Their number is torchrun's; what the other sizes leave is data parallel.

    None of this changes a result but by rounding (and which masks dropout draws), so a run may go on at
    another layout.
    """

    tensor_model_parallel_size: int = option(1, "processes among which every matrix is cut", role="runtime")
    sequence_parallel: bool = option(
        False,
        "cut also what lies between the matrices, along the sequence, over the tensor-parallel processes",
        role="runtime",
    )
    context_parallel_size: int = option(
        1, "processes among which a sequence is cut; attention gathers keys and values", role="runtime"
    )
    pipeline_model_parallel_size: int = option(
        1,
        "pipeline stages: processes among which the blocks are dealt out, one after the other",
        role="runtime",
    )
    num_layers_per_virtual_pipeline_stage: int | None = option(
        None,
        "interleave: every pipeline process has several stages of so many blocks each, and waits less"
        " (default: one stage)",
        role="runtime",
    )
    pipeline_schedule: Literal["1f1b", "gpipe", "zero-bubble"] = option(
        "1f1b",
        "order of the stages' work: forward and backward passes in turns; all forward passes first; or turns"
        " with the gradients of weights put off to where a stage would wait",
        role="runtime",
    )
    expert_model_parallel_size: int = option(
        1,
        "data- and context-parallel processes among which experts are dealt out; tokens travel to them",
        role="runtime",
    )
    data_parallel_sharding: Literal["optimizer", "full"] = option(
        "optimizer",
        "what is cut over data- and context-parallel processes beside the optimizer: nothing (ZeRO-1), or"
        " weights and gradients too (ZeRO-3)",
        role="runtime",
    )
    distributed_timeout_minutes: float = option(
        10.0,
        "how long a rank waits for the others; who has not come then is named, and the job ends",
        role="runtime",
    )

    def __post_init__(self):
        sizes = (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "expert_model_parallel_size",
        )
        check(
            *(
                (getattr(self, n) >= 1, f"parallel.{n} = {getattr(self, n)} must be at least 1")
                for n in sizes
            ),
            (
                self.distributed_timeout_minutes > 0,
                f"parallel.distributed_timeout_minutes = {self.distributed_timeout_minutes} must be above 0",
            ),
            (
                not self.sequence_parallel or self.tensor_model_parallel_size > 1,
                (
                    "parallel.sequence_parallel cuts sequences over tensor-parallel processes, and there is"
                    " one; give --tensor-model-parallel-size, or leave it out"
                ),
            ),
            (
                self.pipeline_model_parallel_size > 1
                or (self.num_layers_per_virtual_pipeline_stage is None and self.pipeline_schedule == "1f1b"),
                (
                    "parallel.num_layers_per_virtual_pipeline_stage and parallel.pipeline_schedule say how"
                    " pipeline stages work, and there is one; give --pipeline-model-parallel-size, or leave"
                    " them out"
                ),
            ),
            (
                self.pipeline_schedule != "zero-bubble" or self.data_parallel_sharding == "optimizer",
                (
                    "parallel.pipeline_schedule = zero-bubble keeps whole gradients until the end of a step,"
                    " and parallel.data_parallel_sharding = full cuts them in every micro-batch; leave one of"
                    " them out"
                ),
            ),
            (
                self.num_layers_per_virtual_pipeline_stage is None
                or self.num_layers_per_virtual_pipeline_stage >= 1,
                (
                    "parallel.num_layers_per_virtual_pipeline_stage ="
                    f" {self.num_layers_per_virtual_pipeline_stage} must be at least 1"
                ),
            ),
        )


class Axis(NamedTuple):
    """One direction of the grid, from where this rank stands."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None  # the ranks in this direction; None where there is this one alone


ALONE = Axis()


@dataclasses.dataclass
class Mesh:
    """This process's place among all of them."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # None: torch.distributed's own, of all ranks
    dp: Axis | None = None  # replicas of the model, each with samples of its own; by default all ranks are
    cp: Axis = ALONE
    tp: Axis = ALONE
    ep: Axis = ALONE
    pp: Axis = ALONE
    dp_cp: Axis | None = None  # data x context: the ranks that cut the global batch's tokens among them
    dense: DeviceMesh | None = None  # "pp", "dp_cp", "tp"; None at world size 1
    sparse: DeviceMesh | None = None  # "pp", "edp", "ep", "tp"
    activity: str = "its start"  # what this rank works at, for who must say where it hangs

    def __post_init__(self):
        self.dp = self.dp or Axis(self.world_size, self.rank)
        self.dp_cp = self.dp_cp or self.dp

    def with_gloo_group(self) -> Mesh:
        """The same ranks with a group of their own, on the CPU, for a thread that works beside the training."""
        if self.world_size == 1:
            return self
        return Mesh(self.rank, self.world_size, torch.device("cpu"), group=dist.new_group(backend="gloo"))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on all ranks; in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_dp_cp(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that cut the global batch's tokens among them, on all ranks; in place."""
        return _all_reduce_along(self.dp_cp, tensor)

    def all_reduce_pp(self, tensor: Tensor) -> Tensor:
        """The sum over pipeline stages, on all of them; in place."""
        return _all_reduce_along(self.pp, tensor)

    def any_rank(self, flag: object) -> bool:
        """Whether a flag is set on any rank; the same answer on all."""
        return (
            bool(flag)
            if self.world_size == 1
            else bool(self.all_reduce(torch.tensor(int(bool(flag)), device=self.device)))
        )

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(self.group)

    def on_rank_0(self, function: Callable[[], Any]) -> Any:
        """Runs a function on rank 0 while the others wait; its result there, None on the others.

        A mistake of the user's that it raises is raised on rank 0, which says it; the other ranks end
        quietly.
        """
        if self.world_size == 1:
            return function()
        error = result = None
        if self.rank == 0:
            try:
                result = function()
            except (UserError, Failure, OSError) as caught:
                error = caught
        failed = self.broadcast_object(error is not None)
        if error is not None:
            raise error
        if failed:
            _leave(0)  # torchrun reports the ranks that fail: rank 0 will, with its message
        return result

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value (anything that pickles) on all ranks."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def all_gather_object(self, value: Any) -> list:
        """Every rank's value (anything that pickles), in the order of the ranks, on all of them."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def all_gather_object_pp(self, value: Any) -> list:
        """The values of all pipeline stages (anything that pickles), in their order, on all of them."""
        values: list = [value] * self.pp.size
        if self.pp.size > 1:
            dist.all_gather_object(values, value, group=self.pp.group)
        return values

    def exit_quietly(self) -> None:
        """Ends this process quietly, after a mistake that all ranks have found and rank 0 will say."""
        _leave(0)


@contextlib.contextmanager
def launch(config: ParallelConfig) -> Iterator[Mesh]:
    """The mesh of this job, for the length of a `with` block; shuts torch.distributed down cleanly at its
    end.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        check_sizes(config, world)
        check(
            (
                world == 1 or os.environ.get("MASTER_PORT") != "0",
                (
                    "torchrun --master-port 0: processes cannot find each other at port 0; leave it out, or"
                    " give --standalone"
                ),
            )
        )
    except UserError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        _leave(0)  # rank 0 says it
    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world == 1:
        yield Mesh(0, 1, device)
        return
    limit = 60 * config.distributed_timeout_minutes
    # Torch's own timeout ends a job that is not watched any more, without a name.
    timeout = datetime.timedelta(seconds=1.25 * limit + 30)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "200")  # of the last collectives, which Watchdog reads
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None
    )
    mesh = _lay_out(config, dist.get_rank(), world, device)
    watch = Watchdog(mesh.rank, world, limit, lambda: mesh.activity)
    watch.start()
    try:
        yield mesh
    except (UserError, Failure, OSError) as error:
        # Whoever shows the message keeps the exception; its frames must not keep the mesh.
        traceback.clear_frames(error.__traceback__)
        watch.stop()
        _shut_down(mesh)
        raise error.with_traceback(None) from None
    except BaseException:
        traceback.print_exc()
        _leave(1)  # the other ranks may wait for this one for ever: torchrun ends them when it sees this exit
    watch.stop()
    mesh.barrier()
    _shut_down(mesh)


@contextlib.contextmanager
def pretend(config: ParallelConfig, world: int, rank: int = 0) -> Iterator[Mesh]:
    """The mesh of a rank in a job of `world` processes of which no other is there: collectives return at
    once, with no numbers.
    """
    check_sizes(config, world)
    if world == 1:
        yield Mesh(0, 1, torch.device("cpu"))
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = _lay_out(config, rank, world, torch.device("cpu"))
    try:
        yield mesh
    finally:
        _shut_down(mesh)


def check_sizes(config: ParallelConfig, world: int) -> None:
    """Raises UserError where so many processes cannot be laid out like this."""
    tensor, context, expert, stages = _sizes(config)
    replica = tensor * context * stages
    shards = world // (tensor * stages)
    pipeline = f" x parallel.pipeline_model_parallel_size = {stages}" if stages > 1 else ""
    check(
        (
            world % replica == 0,
            (
                f"{world} process{'es' if world > 1 else ''} cannot be cut into replicas of"
                f" parallel.tensor_model_parallel_size = {tensor} x parallel.context_parallel_size ="
                f" {context}{pipeline} = {replica}; start {-(-world // replica) * replica} with torchrun"
                " --nproc-per-node, or make the sizes smaller"
            ),
        ),
        (
            world % replica != 0 or shards % expert == 0,
            (
                f"parallel.expert_model_parallel_size = {expert} does not divide the {shards} data- and"
                f" context-parallel processes ({world} / parallel.tensor_model_parallel_size ="
                f" {tensor}{pipeline.replace(' x ', ' / ', 1)}); use one of"
                f" {', '.join(str(n) for n in range(1, shards + 1) if shards % n == 0)}"
            ),
        ),
    )


def _sizes(config: ParallelConfig) -> tuple[int, int, int, int]:
    """Tensor, context, expert, pipeline."""
    return (
        config.tensor_model_parallel_size,
        config.context_parallel_size,
        config.expert_model_parallel_size,
        config.pipeline_model_parallel_size,
    )


def _lay_out(config: ParallelConfig, rank: int, world: int, device: torch.device) -> Mesh:
    """The grid of a started torch.distributed."""
    tensor, context, expert, stages = _sizes(config)
    shards = world // (tensor * stages)
    grid = init_device_mesh(
        device.type, (stages, shards // context, context, tensor), mesh_dim_names=("pp", "dp", "cp", "tp")
    )
    dense = init_device_mesh(device.type, (stages, shards, tensor), mesh_dim_names=("pp", "dp_cp", "tp"))
    sparse = init_device_mesh(
        device.type, (stages, shards // expert, expert, tensor), mesh_dim_names=("pp", "edp", "ep", "tp")
    )
    axis = lambda view, name: Axis(view[name].size(), view[name].get_local_rank(), view[name].get_group())
    return Mesh(
        rank,
        world,
        device,
        dp=axis(grid, "dp"),
        cp=axis(grid, "cp"),
        tp=axis(dense, "tp"),
        ep=axis(sparse, "ep"),
        pp=axis(dense, "pp"),
        dp_cp=axis(dense, "dp_cp"),
        dense=dense,
        sparse=sparse,
    )


def _all_reduce_along(axis: Axis, tensor: Tensor) -> Tensor:
    if axis.size > 1:
        dist.all_reduce(tensor, group=axis.group)
    return tensor


def _shut_down(mesh: Mesh) -> None:
    # A process group that a DeviceMesh still holds at the interpreter's exit aborts it ("terminate called
    # without an active exception"): 12 of 26 runs with torch 2.13 and gloo on 4 processes, 0 of 36 once the
    # mesh is dropped.
    mesh.dense = mesh.sparse = None
    mesh.dp = mesh.cp = mesh.tp = mesh.ep = mesh.pp = mesh.dp_cp = ALONE
    gc.collect()
    dist.destroy_process_group()


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
