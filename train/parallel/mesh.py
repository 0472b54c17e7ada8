"""the one place that starts torch.distributed and makes groups; data parallelism applied to a model from outside.

`launch` reads torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK); without it, or with one process, nothing of
torch.distributed is started. At more than one process a model's parameters are DTensors, cut over all ranks by
`fully_shard`, and every rank steps its own piece of the optimizer.
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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ...config import Failure, UserError, check, option


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How processes work together. Data parallel over all of them: their number is torchrun's."""

    distributed_timeout_minutes: int = option(10, "how long a rank waits for the others before it gives up", role="runtime")

    def __post_init__(self):
        check((self.distributed_timeout_minutes >= 1, f"parallel.distributed_timeout_minutes = {self.distributed_timeout_minutes} must be at least 1"))


@dataclasses.dataclass
class Mesh:
    """This process's place among all of them."""

    rank: int
    world_size: int
    device: torch.device
    data: DeviceMesh | None = None  # all ranks in one row; None at world size 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on all ranks; in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: object) -> bool:
        """Whether a flag is set on any rank; the same answer on all."""
        return bool(flag) if self.world_size == 1 else bool(self.sum(torch.tensor(int(bool(flag)), device=self.device)))

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Runs a function on rank 0 while the others wait; its result there, None on the others.

        A mistake of the user's that it raises is raised on rank 0, which says it; the other ranks end quietly.
        """
        if self.world_size == 1:
            return function()
        error = result = None
        if self.rank == 0:
            try:
                result = function()
            except (UserError, Failure, OSError) as caught:
                error = caught
        failed = self.broadcast(error is not None)
        if error is not None:
            raise error
        if failed:
            _leave(0)  # torchrun reports the ranks that fail: rank 0 will, with its message
        return result

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (anything that pickles) on all ranks."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


@contextlib.contextmanager
def launch(config: ParallelConfig) -> Iterator[Mesh]:
    """The mesh of this job, for the length of a `with` block; shuts torch.distributed down cleanly at its end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world == 1:
        yield Mesh(0, 1, device)
        return
    timeout = datetime.timedelta(minutes=config.distributed_timeout_minutes)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None)
    mesh = Mesh(dist.get_rank(), world, device, init_device_mesh(device.type, (world,), mesh_dim_names=("data",)))
    try:
        yield mesh
    except (UserError, Failure, OSError) as error:
        # Whoever shows the message keeps the exception; its frames must not keep the mesh.
        traceback.clear_frames(error.__traceback__)
        _shut_down(mesh)
        raise error.with_traceback(None) from None
    except BaseException:
        traceback.print_exc()
        _leave(1)  # the other ranks may wait for this one for ever: torchrun ends them when it sees this exit
    mesh.barrier()
    _shut_down(mesh)


def _shut_down(mesh: Mesh) -> None:
    # A process group that a DeviceMesh still holds at the interpreter's exit aborts it ("terminate called without an
    # active exception"): 12 of 26 runs with torch 2.13 and gloo on 4 processes, 0 of 36 once the mesh is dropped.
    mesh.data = None
    gc.collect()
    dist.destroy_process_group()


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_data_parallel(model: nn.Module, mesh: Mesh) -> None:
    """Cuts every parameter over the data-parallel ranks, in place; nothing at world size 1.

    The model must have `layers`, its blocks, and `loss`. Parameters stay whole from the first forward to the last
    backward of a step (Megatron's distributed optimizer: one all-gather and one reduce-scatter a step), and
    gradients are summed, not averaged: the loss is already divided by the tokens of the whole global batch.
    """
    if mesh.world_size == 1:
        return
    for layer in model.layers:
        fully_shard(layer, mesh=mesh.data, reshard_after_forward=False)
    fully_shard(model, mesh=mesh.data, reshard_after_forward=False)
    register_fsdp_forward_method(model, "loss")
    for module in _sharded(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # else a factor of one's own becomes PREMUL_SUM, which gloo lacks


def synchronise_gradients(model: nn.Module, last: bool) -> None:
    """Before a micro-batch's backward: only the last of a step sums gradients over the ranks and frees whole parameters."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
        model.set_is_last_backward(last)


def reshard(model: nn.Module) -> None:
    """Frees the whole parameters that a forward pass without a backward pass has gathered."""
    for module in _sharded(model):
        module.reshard()


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
