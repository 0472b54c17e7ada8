"""`mt train --dry-run`: one step of one process of a large job, on a machine without its GPUs and memory.

The training code itself builds the model, makes the groups, cuts the model, runs a micro-batch forwards and
backwards and steps the optimizer, on torch's fake tensors (shapes without values) and fake process group
(collectives that return at once). So what would fail for a shape or a group on a thousand GPUs fails here. It
reads only the configuration, and the tokenizer where the vocabulary size is not given. All ranks of a
pipeline stage do the same; the first and the last stage are tried.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from ..core.config import UserError
from .checkpoint.base import moment_names
from .config import TrainConfig, training_schedule
from .model.base import Model
from .model.config import ResolvedModelConfig
from .model.dtensor import local_shard, numel_without_data_parallelism
from .model.family import build_model, count_parameters, family_of, sequence_lengths
from .model.inputs import MicroBatch
from .model.training_cost import gibibytes
from .optimizer import build_optimizer
from .parallel.context_parallel import split_sequences
from .parallel.mesh import Mesh, pretend
from .parallel.parallelize import check_layout, parallelize
from .parallel.pipeline import Pipeline
from .parallel.stages import stages_of
from .plan import resolve_shape
from .precision import MasterWeights
from .recompute import recompute
from .step import forward_backward


def dry_run(config: TrainConfig) -> dict:
    """The memory of a rank of the job, and `text` for the user; raises UserError where it cannot run."""
    if config.world_size is None:
        raise UserError(
            "world_size is not given: --dry-run needs the number of processes of the job, --world-size N"
        )
    began = time.monotonic()
    shape = resolve_shape(config)
    # The first stage has the embedding, the last one the output layer.
    ranks = [0] if config.parallel.pipeline_model_parallel_size == 1 else [0, config.world_size - 1]
    found = []
    for rank in ranks:
        with pretend(config.parallel, config.world_size, rank) as mesh:
            check_layout(config.parallel, shape, sequence_lengths(shape, config.data))
            schedule = training_schedule(config, mesh)
            found.append({"rank": rank, **_step(config, shape, mesh)})
            sizes = {name: axis.size for name, axis in mesh.axes.items() if name != "dp_cp"}
    facts = max(found, key=lambda facts: facts["local_parameters"])
    facts |= {
        "world_size": config.world_size,
        "steps": schedule.total_steps,
        "micro_batches": schedule.batch_size.full // config.train.micro_batch_size // sizes["dp"],
        **sizes,
    }
    facts["parameters"] = count_parameters(shape)
    facts["seconds"] = round(time.monotonic() - began, 1)
    stored = ", ".join(f"{name} {gibibytes(facts[name])}" for name in ("weights", "gradients", "moments"))
    computed = f"this rank computes with {facts['computed_parameters'] / 1e6:,.1f} million of them"
    if facts["local_parameters"] == facts["computed_parameters"]:
        kept = f"{computed} and stores them ({stored})"
    else:
        kept = (
            f"{computed} ({gibibytes(facts['computed_bytes'])}"
            f"{', a block at a time' if config.parallel.data_parallel_sharding == 'full' else ''}) and stores"
            f" {facts['local_parameters'] / 1e6:,.1f} million, its part of the optimizer's state ({stored})"
        )
    stages = f"pipeline {sizes['pp']}, " if sizes["pp"] > 1 else ""
    checked = "; ".join(dict.fromkeys(f["checked"] for f in found))
    where = ", on the first stage and the last" if len(ranks) > 1 else ""
    facts["text"] = (
        f"rank {facts['rank']:,} of {config.world_size:,}: tensor {sizes['tp']}, context {sizes['cp']},"
        f" expert {sizes['ep']}, {stages}data {sizes['dp']}: {facts['micro_batches']}"
        f" micro-batch{'es' if facts['micro_batches'] > 1 else ''} of {config.train.micro_batch_size} in each"
        f" of {schedule.total_steps:,} steps\n{facts['parameters'] / 1e9:,.2f} billion parameters; {kept}\n"
        f"{checked}{where} ({facts['seconds']} s); `mt plan` with the same settings"
        " estimates memory and time"
    )
    return facts


def _step(config: TrainConfig, shape: ResolvedModelConfig, mesh: Mesh) -> dict:
    """The memory of this rank, from one step with fake tensors."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    dtype = config.precision.dtype
    dropouts = ["hidden_dropout", "attention_dropout"]
    if shape.retro_add_retriever:
        dropouts += ["retro_encoder_hidden_dropout", "retro_encoder_attention_dropout"]
    without_dropout: dict[str, Any] = dict.fromkeys(dropouts, 0.0)  # its masks change no shape
    with torch.device("meta"):
        whole = build_model(dataclasses.replace(shape, **without_dropout))
    data_dependent_part = whole.data_dependent_part
    if config.train.retro_freeze_decoder:
        whole.freeze()
    model: Model | Pipeline = whole
    if mesh.pp.size > 1:
        model = Pipeline(whole, mesh, config.parallel, sequence_lengths(shape, config.data), dtype)
    recompute(model, config.recompute)
    if mesh.tp.size == 1:
        for stage in stages_of(model):
            setattr(stage, "cross_entropy", _cross_entropy)  # noqa: B010  # every model has one, a function
    parallelize(model, mesh, config.parallel, dtype)
    with fake:
        model.to_empty(device="cpu")
    weights = MasterWeights(model, torch.float32 if mesh.world_size > 1 else dtype)
    optimizer = build_optimizer(weights.by_name, config.optimizer, shape)
    checked = "shapes and groups hold from the first layer to the optimizer's step"
    try:
        with fake:  # not earlier: device meshes need real tensors
            forward_backward(
                model,
                [_micro_batch(config, shape, mesh)],
                torch.ones((), dtype=torch.float64),
                seed="dry run",
                experts=bool(shape.num_experts),
            )
            optimizer.step()
            weights.refresh()
    except (DataDependentOutputException, DynamicOutputShapeException):
        where = "the first exchange between experts" if shape.num_experts else data_dependent_part
        assert where is not None, "the shapes of other models do not depend on values"
        checked = f"shapes and groups hold as far as {where}, whose sizes depend on the data"
    states = [
        state[name] for state in optimizer.state.values() for name in moment_names(optimizer) if name in state
    ]
    local = sum(local_shard(p).numel() for p in weights)
    computed = sum(numel_without_data_parallelism(p) for p in weights)
    return {
        "local_parameters": local,
        "computed_parameters": computed,
        "computed_bytes": computed * dtype.itemsize,
        "weights": _bytes(weights),
        "gradients": 4 * local,
        "moments": _bytes(states) or 4 * local * len(moment_names(optimizer)),
        "checked": checked,
    }


def _cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    """loss.cross_entropy by torch's operations alone, for fake tensors: on a CPU that one needs values."""
    logits = F.linear(hidden, weight, bias).float()
    return (F.cross_entropy(logits, labels, reduction="none") * loss_mask).sum()


def _bytes(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(local_shard(tensor).nbytes for tensor in tensors)


def _micro_batch(config: TrainConfig, shape: ResolvedModelConfig, mesh: Mesh) -> MicroBatch:
    """This rank's tokens of a micro-batch, without values."""
    lengths = sequence_lengths(shape, config.data)
    size = config.train.micro_batch_size
    micro = family_of(shape).empty(shape, size, lengths["seq_length"], lengths.get("decoder_seq_length", 0))
    return split_sequences(micro, mesh.cp)
