"""This rank's shard of a DTensor, the shard's slices of the whole tensor, and the number of its replicas."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

DATA_PARALLEL_AXES = ("dp_cp", "edp")  # of the device meshes of parallel/mesh.py


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_and_slices(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """(this rank's shard of a DTensor, its slices of the whole tensor, one for each dimension).

    A plain tensor is its own only shard.
    """
    if not isinstance(tensor, DTensor):
        return tensor, tuple(slice(0, size) for size in tensor.shape)
    (chunk,) = tensor.__create_chunk_list__()
    return tensor.to_local(), tuple(
        slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes)
    )


def numel_without_data_parallelism(weight: Tensor) -> int:
    """Elements of the shard that this rank computes with, once data-parallel ranks have exchanged theirs."""
    if not isinstance(weight, DTensor):
        return weight.numel()
    names = weight.device_mesh.mesh_dim_names
    assert names is not None, "mesh.py names the axes"
    divided = math.prod(
        weight.device_mesh.size(i)
        for i, placement in enumerate(weight.placements)
        if not isinstance(placement, Replicate) and names[i] not in DATA_PARALLEL_AXES
    )
    return weight.numel() // divided


def num_replicas(weight: Tensor) -> int:
    """How many ranks have the same shard of a weight."""
    if not isinstance(weight, DTensor):
        return 1
    return math.prod(
        weight.device_mesh.size(i)
        for i, placement in enumerate(weight.placements)
        if isinstance(placement, Replicate)
    )
