"""Start torch.distributed and make the process groups (meshes) of all kinds of parallelism.

`launch` reads torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK). Without it, or with one process,
torch.distributed is not started. Two meshes contain all ranks:

    dense   pipeline x (data x context) x tensor        weights of which every rank has a part
    sparse  pipeline x expert data x expert x tensor    weights of experts

where expert data x expert = data x context.

Ranks of a tensor-parallel group have adjacent numbers (0, 1, ... of one machine). Context-parallel groups
come next, then data-parallel groups. Pipeline stages communicate least, so their ranks are furthest apart.
Ranks with different data-parallel indices read different samples; all ranks of one replica read the same
samples. No other module makes process groups.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ...core.config import Failure, UserError, check, configuration, option, shown
from .rendezvous import job_store, keep_to_loopback, on_one_machine
from .stage_layout import stage_lengths
from .watchdog import Watchdog

# The settings that are sizes of groups, in the order in which `_sizes` returns them.
SIZES = (
    "tensor_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "pipeline_model_parallel_size",
)


@configuration(group="parallel")
class ParallelConfig:
    """Sizes of the parallel groups. torchrun sets the number of processes; the rest of it is data parallel.

    These settings change results by rounding and by dropout masks only, so a run may resume with others.
    """

    tensor_model_parallel_size: int = option(
        1, "tensor-parallel processes: they divide every weight matrix", role="runtime"
    )
    sequence_parallel: bool = option(
        False,
        "divide activations between matrices along the sequence over the tensor-parallel processes",
        role="runtime",
    )
    context_parallel_size: int = option(
        1,
        "context-parallel processes: they divide every sequence; attention gathers keys and values",
        role="runtime",
    )
    pipeline_model_parallel_size: int = option(
        1,
        "pipeline stages: processes that divide the blocks in their order",
        role="runtime",
    )
    num_layers_per_virtual_pipeline_stage: int | None = option(
        None,
        "interleaved schedule: every pipeline process has several stages of this many blocks, which makes the"
        " pipeline bubble smaller (default: one stage)",
        role="runtime",
    )
    pipeline_model_parallel_layout: str | None = option(
        None,
        "the blocks t of every stage, with | between stages, as Megatron-LM writes it: Et*3|(tt|)*6tL"
        " (default: divided evenly by FLOPs)",
        role="runtime",
    )
    pipeline_schedule: Literal["1f1b", "gpipe", "zero-bubble"] = option(
        "1f1b",
        "pipeline schedule: 1f1b alternates forward and backward passes; gpipe runs all forward passes first;"
        " zero-bubble is 1f1b that computes weight gradients where a stage would wait",
        role="runtime",
    )
    expert_model_parallel_size: int = option(
        1,
        "expert-parallel processes, out of the data- and context-parallel ones: they divide the experts",
        role="runtime",
    )
    data_parallel_sharding: Literal["optimizer", "full"] = option(
        "optimizer",
        "state divided over data- and context-parallel processes: optimizer state (ZeRO-1), or also weights"
        " and gradients (full, ZeRO-3)",
        role="runtime",
    )
    distributed_timeout_minutes: float = option(
        10.0,
        "minutes that a rank waits in a collective; then the job names the missing ranks and ends",
        role="runtime",
    )

    def _read_layout(self) -> tuple[list[int] | None, str | None]:
        """(stage_lengths, what is wrong with them)."""
        try:
            return self.stage_lengths, None
        except ValueError as error:
            return None, f"= {shown(self.pipeline_model_parallel_layout)} {error}"

    @property
    def stage_lengths(self) -> list[int] | None:
        """The numbers of blocks of the stages of pipeline_model_parallel_layout, in the order of blocks."""
        layout = self.pipeline_model_parallel_layout
        return None if layout is None else stage_lengths(layout)

    def __post_init__(self):
        lengths, mistake = self._read_layout()
        stages = self.pipeline_model_parallel_size
        check(
            (mistake is None, f"parallel.pipeline_model_parallel_layout {mistake}"),
            (
                lengths is None or stages < 1 or len(lengths) % stages == 0,
                f"parallel.pipeline_model_parallel_layout has {len(lengths or [])} stages, which"
                f" parallel.pipeline_model_parallel_size = {stages} does not divide",
            ),
            (
                lengths is None or (stages > 1 and self.num_layers_per_virtual_pipeline_stage is None),
                "parallel.pipeline_model_parallel_layout needs --pipeline-model-parallel-size above 1, and"
                " says itself how many stages each process has; leave"
                " --num-layers-per-virtual-pipeline-stage out",
            ),
            *(
                (getattr(self, n) >= 1, f"parallel.{n} = {getattr(self, n)} must be at least 1")
                for n in SIZES
            ),
            (
                self.distributed_timeout_minutes > 0,
                f"parallel.distributed_timeout_minutes = {self.distributed_timeout_minutes} must be above 0",
            ),
            (
                not self.sequence_parallel or self.tensor_model_parallel_size > 1,
                "parallel.sequence_parallel divides sequences over tensor-parallel processes, and there"
                " is one; give --tensor-model-parallel-size, or leave it out",
            ),
            (
                self.pipeline_model_parallel_size > 1
                or (self.num_layers_per_virtual_pipeline_stage is None and self.pipeline_schedule == "1f1b"),
                "parallel.num_layers_per_virtual_pipeline_stage and parallel.pipeline_schedule need"
                " several pipeline stages, and there is one; give --pipeline-model-parallel-size,"
                " or leave them out",
            ),
            (
                self.pipeline_schedule != "zero-bubble" or self.data_parallel_sharding == "optimizer",
                "parallel.pipeline_schedule = zero-bubble keeps unsharded gradients until the end of a"
                " step, and parallel.data_parallel_sharding = full shards them after every micro-batch;"
                " leave one of them out",
            ),
            (
                self.num_layers_per_virtual_pipeline_stage is None
                or self.num_layers_per_virtual_pipeline_stage >= 1,
                "parallel.num_layers_per_virtual_pipeline_stage ="
                f" {self.num_layers_per_virtual_pipeline_stage} must be at least 1",
            ),
        )


class Axis(NamedTuple):
    """One dimension of a mesh, and this rank's position in it."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None  # the ranks along this dimension; None if size is 1


ALONE = Axis()


@dataclasses.dataclass
class Mesh:
    """The position of this process in the meshes, and collectives over all ranks or one dimension."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # None: torch.distributed's own, of all ranks
    tp: Axis = ALONE
    cp: Axis = ALONE
    ep: Axis = ALONE
    pp: Axis = ALONE
    dp: Axis = ALONE  # replicas of the model, each with its own samples; default: all ranks
    dp_cp: Axis = ALONE  # data x context: the ranks that divide the tokens of a global batch
    dense: DeviceMesh | None = None  # "pp", "dp_cp", "tp"; None at world size 1
    sparse: DeviceMesh | None = None  # "pp", "edp", "ep", "tp"
    activity: str = "its start"  # what this rank is doing, for the watchdog's messages

    def __post_init__(self):
        if self.dp is ALONE:
            self.dp = Axis(self.world_size, self.rank)
        if self.dp_cp is ALONE:
            self.dp_cp = self.dp

    @property
    def axes(self) -> dict[str, Axis]:
        """Every axis by its name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Axis)}

    def with_gloo_group(self) -> Mesh:
        """The same ranks with another group, on the CPU (gloo), for a thread that runs during training."""
        if self.world_size == 1:
            return self
        return Mesh(self.rank, self.world_size, torch.device("cpu"), group=dist.new_group(backend="gloo"))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on all ranks; in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_dp_cp(self, tensor: Tensor) -> Tensor:
        """The sum over the data- and context-parallel ranks, on each of them; in place."""
        return _all_reduce_along(self.dp_cp, tensor)

    def all_reduce_pp(self, tensor: Tensor) -> Tensor:
        """The sum over pipeline ranks, on each of them; in place."""
        return _all_reduce_along(self.pp, tensor)

    def any_rank(self, flag: object) -> bool:
        """Whether a flag is set on any rank; the same result on all ranks."""
        if self.world_size == 1:
            return bool(flag)
        return bool(self.all_reduce(torch.tensor(int(bool(flag)), device=self.device)))

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(self.group)

    def on_rank_0(self, function: Callable[[], Any]) -> Any:
        """Runs a function on rank 0 while the others wait; returns its result there and None on the others.

        UserError, Failure and OSError are raised on rank 0, which shows the message; the other processes
        then exit without one.
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
            _exit(0)  # torchrun reports the ranks that fail: rank 0 will, with its message
        return result

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value (any picklable object), on all ranks."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def all_gather_object(self, value: Any) -> list:
        """The values of all ranks (picklable objects), in the order of the ranks, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def all_gather_object_pp(self, value: Any) -> list:
        """The values of all pipeline ranks (picklable objects), in their order, on each of them."""
        values: list = [value] * self.pp.size
        if self.pp.size > 1:
            dist.all_gather_object(values, value, group=self.pp.group)
        return values

    def exit_quietly(self) -> None:
        """Exits without a message, after a UserError that all ranks found and rank 0 shows."""
        _exit(0)


@contextlib.contextmanager
def launch(config: ParallelConfig) -> Iterator[Mesh]:
    """The mesh of this job, inside a `with` block; shuts torch.distributed down at its end."""
    world = _world_size()
    try:
        check_sizes(config, world)
        check(
            (
                world == 1 or os.environ.get("MASTER_PORT") != "0",
                "torchrun --master-port 0: processes cannot find each other at port 0; leave it out, or"
                " give --standalone",
            )
        )
    except UserError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        _exit(0)  # rank 0 shows the message
    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world == 1:
        yield Mesh(0, 1, device)
        return
    limit = 60 * config.distributed_timeout_minutes
    # Longer than the watchdog's limit: torch's own timeout does not name the missing rank.
    timeout = datetime.timedelta(seconds=1.25 * limit + 30)
    os.environ.setdefault(
        "TORCH_FR_BUFFER_SIZE", "200"
    )  # entries of the flight recorder, which the watchdog reads
    if on_one_machine(os.environ):
        keep_to_loopback(os.environ)
    rank = int(os.environ["RANK"])
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timeout,
        device_id=device if on_gpu else None,
        store=job_store(rank, timeout),
        rank=rank,
        world_size=world,
    )
    mesh = _make_mesh(config, dist.get_rank(), world, device)
    watch = Watchdog(mesh.rank, world, limit, lambda: mesh.activity)
    watch.start()
    try:
        yield mesh
    except (UserError, Failure, OSError) as error:
        # The exception is kept until its message is shown; its frames must not keep the mesh alive.
        traceback.clear_frames(error.__traceback__)
        watch.stop()
        _shut_down(mesh)
        raise error.with_traceback(None) from None
    except BaseException:
        traceback.print_exc()
        _exit(1)  # other ranks may wait for this one forever: torchrun ends them when it sees this exit
    watch.stop()
    mesh.barrier()
    _shut_down(mesh)


def _world_size() -> int:
    """The number of processes of this job, 1 without torchrun.

    Raises UserError if a variable that torchrun sets is missing or wrong.
    """
    remedy = "start the processes with `mt launch` or torchrun, which set it, or unset WORLD_SIZE"

    def number(name: str, low: int, high: float) -> int:
        text = os.environ.get(name)
        if text is None:
            raise UserError(f"WORLD_SIZE = {os.environ['WORLD_SIZE']}, but {name} is not set; {remedy}")
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
            raise UserError(f"{name} = {text!r} must be a number from {low}{_up_to(high)}; {remedy}")
        return int(text)

    if "WORLD_SIZE" not in os.environ:
        return 1
    world = number("WORLD_SIZE", 1, math.inf)
    if world > 1:
        number("RANK", 0, world - 1)
        number("MASTER_PORT", 0, 65535)
        if not os.environ.get("MASTER_ADDR"):
            raise UserError(f"WORLD_SIZE = {world}, but MASTER_ADDR is not set; {remedy}")
    return world


def _up_to(high: float) -> str:
    return f" to {high}" if high < math.inf else ""


@contextlib.contextmanager
def pretend(config: ParallelConfig, world: int, rank: int = 0) -> Iterator[Mesh]:
    """The mesh of one rank in a job of `world` processes, without the other processes.

    The process group is torch's fake one: collectives return at once and move no data.
    """
    check_sizes(config, world)
    if world == 1:
        yield Mesh(0, 1, torch.device("cpu"))
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = _make_mesh(config, rank, world, torch.device("cpu"))
    try:
        yield mesh
    finally:
        _shut_down(mesh)


def check_sizes(config: ParallelConfig, world: int) -> None:
    """Raises UserError if `world` processes cannot be divided into groups of these sizes."""
    tensor, context, expert, stages = _sizes(config)
    replica = tensor * context * stages
    dp_cp = world // (tensor * stages)
    pipeline = f" x parallel.pipeline_model_parallel_size = {stages}" if stages > 1 else ""
    check(
        (
            world % replica == 0,
            f"{world} process{'es' if world > 1 else ''} cannot be divided into replicas of"
            f" parallel.tensor_model_parallel_size = {tensor} x parallel.context_parallel_size ="
            f" {context}{pipeline} = {replica}; start {-(-world // replica) * replica} with torchrun"
            " --nproc-per-node, or make the sizes smaller",
        ),
        (
            world % replica != 0 or dp_cp % expert == 0,
            f"parallel.expert_model_parallel_size = {expert} does not divide the {dp_cp} data- and"
            f" context-parallel processes ({world} / parallel.tensor_model_parallel_size ="
            f" {tensor}{pipeline.replace(' x ', ' / ', 1)}); use one of"
            f" {', '.join(str(n) for n in range(1, dp_cp + 1) if dp_cp % n == 0)}",
        ),
    )


def _sizes(config: ParallelConfig) -> list[int]:
    """The sizes that SIZES names: tensor-, context-, expert- and pipeline-parallel."""
    return [getattr(config, name) for name in SIZES]


def _make_mesh(config: ParallelConfig, rank: int, world: int, device: torch.device) -> Mesh:
    """The meshes, once torch.distributed is started."""
    tensor, context, expert, stages = _sizes(config)
    dp_cp = world // (tensor * stages)
    all_axes = init_device_mesh(
        device.type, (stages, dp_cp // context, context, tensor), mesh_dim_names=("pp", "dp", "cp", "tp")
    )
    dense = init_device_mesh(device.type, (stages, dp_cp, tensor), mesh_dim_names=("pp", "dp_cp", "tp"))
    sparse = init_device_mesh(
        device.type, (stages, dp_cp // expert, expert, tensor), mesh_dim_names=("pp", "edp", "ep", "tp")
    )
    axis = lambda mesh, name: Axis(mesh[name].size(), mesh[name].get_local_rank(), mesh[name].get_group())
    return Mesh(
        rank,
        world,
        device,
        dp=axis(all_axes, "dp"),
        cp=axis(all_axes, "cp"),
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
    # A process group that a DeviceMesh still references when the interpreter exits makes it abort ("terminate
    # called without an active exception"): 12 of 26 runs with torch 2.13 and gloo on 4 processes, 0 of 36
    # after the mesh is dropped.
    mesh.dense = mesh.sparse = None
    for name in mesh.axes:
        setattr(mesh, name, ALONE)
    gc.collect()
    dist.destroy_process_group()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
