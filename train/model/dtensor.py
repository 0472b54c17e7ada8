"""A rank's own part of a DTensor: its shard, the shard's place in the whole tensor, and how many ranks hold
the same one.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_and_slices(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """(this rank's shard of a DTensor, its place in the whole tensor: a slice for each dimension).

    Any other tensor is its own only shard.
    """
    if not isinstance(tensor, DTensor):
        return tensor, tuple(slice(0, size) for size in tensor.shape)
    (chunk,) = tensor.__create_chunk_list__()
    return tensor.to_local(), tuple(
        slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes)
    )


def num_replicas(weight: Tensor) -> int:
    """How many ranks hold the same shard of a weight."""
    if not isinstance(weight, DTensor):
        return 1
    return math.prod(
        weight.device_mesh.size(i)
        for i, placement in enumerate(weight.placements)
        if isinstance(placement, Replicate)
    )
