"""This rank's shard of a DTensor, the shard's slices of the whole tensor, and the number of its replicas."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


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


def num_replicas(weight: Tensor) -> int:
    """How many ranks have the same shard of a weight."""
    if not isinstance(weight, DTensor):
        return 1
    return math.prod(
        weight.device_mesh.size(i)
        for i, placement in enumerate(weight.placements)
        if isinstance(placement, Replicate)
    )
