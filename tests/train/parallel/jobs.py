"""Small jobs of several ranks for the tests of meshes and collectives: functions for processes.Pool."""

import os

import torch
import torch.distributed as dist

from mt.core.config import build
from mt.tests.train.parallel.sockets import listening
from mt.train.parallel import collectives
from mt.train.parallel.mesh import Axis, ParallelConfig, launch


def mesh_collectives(parallel: dict) -> dict:
    """What every collective of a mesh gives on this rank."""
    with launch(build(ParallelConfig, ("test", parallel))) as mesh:
        own = lambda: torch.tensor(mesh.rank)
        return {
            "sum": mesh.all_reduce(own()).item(),
            "sum_dp_cp": mesh.all_reduce_dp_cp(own()).item(),
            "sum_pp": mesh.all_reduce_pp(own()).item(),
            "any": [mesh.any_rank(mesh.rank == 3), mesh.any_rank(False)],
            "gathered": mesh.all_gather_object(mesh.rank),
            "gathered_pp": mesh.all_gather_object_pp(mesh.rank),
            "from_0": mesh.broadcast_object(mesh.rank),
            "on_rank_0": mesh.on_rank_0(lambda: "done"),
            "axes": (tuple(mesh.pp)[:2], tuple(mesh.dp)[:2]),
        }


def collective_and_gradient(
    name: str, inputs: list[torch.Tensor], gradients: list[torch.Tensor], *arguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the result of a collective on this rank, the gradient of its input).

    inputs: one tensor a rank. gradients: of the results, one tensor a rank. arguments: the collective's
    arguments after the tensor and the axis; for all_to_all, lists of counts by rank.
    """
    with launch(ParallelConfig()):
        axis = Axis(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)
        x = inputs[axis.rank].clone().requires_grad_()
        if name == "all_to_all":
            sent, received = (counts[axis.rank] for counts in arguments)
            y = collectives.all_to_all(x, sent, received, axis)
        else:
            y = getattr(collectives, name)(x, axis, *arguments)
        y.backward(gradients[axis.rank])
        return y.detach(), x.grad


def vocab_parallel(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    V: int,
) -> dict[str, torch.Tensor]:
    """Loss, gradients, logits, embeddings and likelihoods, with the rows of `weight` divided over ranks."""
    with launch(ParallelConfig()):
        axis = Axis(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)
        own = collectives.local_part(weight, axis, 0).clone().requires_grad_()
        own_bias = collectives.local_part(bias, axis, 0).clone().requires_grad_()
        hidden = hidden.clone().requires_grad_()
        loss = collectives.vocab_parallel_cross_entropy(hidden, own, labels, mask, V, own_bias, axis=axis)
        loss.backward()
        with torch.no_grad():
            logits = collectives.vocab_parallel_logits(hidden, own, V, axis=axis)
            embedded = collectives.reduce_from(collectives.vocab_parallel_embedding(labels, own, axis), axis)
            likelihoods = collectives.vocab_parallel_likelihoods(hidden, own, labels, V, axis=axis)
        return {
            "loss": loss.detach(),
            "hidden": hidden.grad,
            "weight": own.grad,
            "bias": own_bias.grad,
            "logits": logits,
            "embedded": embedded,
            "log_likelihood": likelihoods[0],
            "is_greedy": likelihoods[1],
        }


def listening_sockets() -> list[tuple]:
    """(address, port) on which this rank listens once all groups have communicated."""
    with launch(ParallelConfig(tensor_model_parallel_size=2)) as mesh:
        mesh.all_reduce(torch.ones(1))
        mesh.all_gather_object(mesh.rank)
        found = listening(os.getpid())
        mesh.barrier()
        return found
