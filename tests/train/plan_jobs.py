"""Job of tests/train/test_plan.py: a rank trains one step of two micro-batches and counts its bytes."""

import torch
from torch.autograd.graph import saved_tensors_hooks

from mt.tests.train.parallel_jobs import micro_batch, model_config
from mt.train.model.dtensor import local_shard
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.optimizer import OptimizerConfig, build_optimizer
from mt.train.parallel.mesh import ParallelConfig, launch
from mt.train.parallel.parallelize import parallelize
from mt.train.step import forward_backward


def bytes_of_a_step(family: str, parallel: dict, changes: dict) -> dict[str, int]:
    """Bytes on this rank: weights, gradients, moments, activations that autograd keeps of a micro-batch."""
    parallel = ParallelConfig(**parallel, distributed_timeout_minutes=1)
    with launch(parallel) as mesh:
        config = model_config(family, **changes)
        model = build_model(config)
        initialize(model, 1234)
        parallelize(model, mesh, parallel, torch.float32)
        optimizer = build_optimizer(dict(model.named_parameters()), OptimizerConfig())
        batch = [micro_batch(config, index) for index in range(2)]
        forward_backward(model, batch, torch.ones((), dtype=torch.float64), seed="0")
        optimizer.step()
        moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        sizes = {
            "weights": sum(local_shard(p).nbytes for p in model.parameters()),
            "gradients": sum(local_shard(p.grad).nbytes for p in model.parameters()),
            "moments": sum(local_shard(m).nbytes for m in moments),
        }
        del moments
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.loss(**batch[0].arguments())
        # autograd keeps weights too; they are no activations
        whole = {local_shard(p).untyped_storage()._cdata for p in model.parameters()}
        sizes["activations"] = sum(
            t.untyped_storage().nbytes() for key, t in kept.items() if key not in whole
        )
        del loss
        return sizes
