"""Shards of a tensor on every rank of a simulated mesh, joined again."""

import itertools

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from mt.train.model.dtensor import local_shard, num_replicas, shard_and_slices
from mt.train.parallel.mesh import ParallelConfig, pretend

WHOLE = torch.arange(60.0).view(10, 6)


def shard_of_rank(placements, sizes, coordinates):
    """A rank's shard by torch's rule: chunks of ceil(size / ranks)."""
    found = WHOLE
    for placement, size, coordinate in zip(placements, sizes, coordinates):
        if isinstance(placement, Shard):
            chunks = found.chunk(size, dim=placement.dim)
            found = chunks[coordinate] if coordinate < len(chunks) else chunks[0][:0]
    return found.contiguous()


@pytest.mark.parametrize(
    ("placements", "replicas"),
    [
        ((Shard(0), Shard(1)), 1),
        ((Shard(1), Shard(0)), 1),
        ((Replicate(), Shard(0)), 2),
        ((Shard(0), Replicate()), 3),
        ((Replicate(), Replicate()), 6),
    ],
)
def test_the_slices_of_all_ranks_cover_the_tensor_once_for_each_replica(placements, replicas):
    sizes, covered = (2, 3), torch.zeros(WHOLE.shape, dtype=torch.int64)
    for rank, coordinates in enumerate(itertools.product(*map(range, sizes))):
        with pretend(ParallelConfig(), 6, rank):
            mesh = init_device_mesh("cpu", sizes)
            local = shard_of_rank(placements, sizes, coordinates)
            tensor = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=WHOLE.shape, stride=WHOLE.stride()
            )
            shard, slices = shard_and_slices(tensor)
            assert torch.equal(shard, local)
            assert torch.equal(local_shard(tensor), local)
            assert torch.equal(WHOLE[slices], local)
            assert num_replicas(tensor) == replicas
            covered[slices] += 1
    assert (covered == replicas).all()


def test_a_plain_tensor_is_its_own_only_shard():
    assert local_shard(WHOLE) is WHOLE
    shard, slices = shard_and_slices(WHOLE)
    assert shard is WHOLE
    assert slices == (slice(0, 10), slice(0, 6))
    assert num_replicas(WHOLE) == 1
    assert shard_and_slices(torch.tensor(1.0))[1] == ()
