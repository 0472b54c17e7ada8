"""One step of one process of a large job, on a machine that has neither the others nor the memory: `mt train
--dry-run`.

The real code builds the model, cuts it, lays out the groups, runs a micro-batch forwards and backwards and
steps the optimizer, on torch's fake tensors (shapes without numbers) and its fake process group (collectives
that return at once). What would fail for a shape or a group on a thousand GPUs fails here. Nothing is read
but the configuration, and the tokenizer where the vocabulary is not given; the ranks of a pipeline stage do
alike, and of the stages the first and the last are tried.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

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
from .model.config import ResolvedModelConfig
from .model.dtensor import local_shard
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
    """What a rank of the job would hold; raises UserError where the job cannot be."""
    if config.world_size is None:
        raise UserError(
            "world_size is not given: --dry-run needs the number of processes of the job, --world-size N"
        )
    began = time.monotonic()
    shape = resolve_shape(config)
    # Ranks of one pipeline stage do alike; the first stage has the embedding, the last one the head.
    ranks = [0] if config.parallel.pipeline_model_parallel_size == 1 else [0, config.world_size - 1]
    found = []
    for rank in ranks:
        with pretend(config.parallel, config.world_size, rank) as mesh:
            check_layout(config.parallel, shape, sequence_lengths(shape, config.data))
            schedule = training_schedule(config, mesh)
            found.append({"rank": rank, **_step(config, shape, mesh)})
            sizes = {name: getattr(mesh, name).size for name in ("tp", "cp", "ep", "pp", "dp")}
    facts = max(found, key=lambda facts: facts["local_parameters"])
    facts |= {
        "world_size": config.world_size,
        "steps": schedule.total_steps,
        "micro_batches": schedule.batch_size.full // config.train.micro_batch_size // sizes["dp"],
        **sizes,
    }
    facts["parameters"] = count_parameters(shape)
    facts["seconds"] = round(time.monotonic() - began, 1)
    held = ", ".join(f"{name} {gibibytes(facts[name])}" for name in ("weights", "gradients", "moments"))
    stages = f"pipeline {sizes['pp']}, " if sizes["pp"] > 1 else ""
    facts["text"] = (
        f"rank {facts['rank']:,} of {config.world_size:,}: tensor {sizes['tp']}, context {sizes['cp']},"
        f" expert {sizes['ep']}, {stages}data {sizes['dp']}: {facts['micro_batches']}"
        f" micro-batch{'es' if facts['micro_batches'] > 1 else ''} of {config.train.micro_batch_size} in each"
        f" of {schedule.total_steps:,} steps\n{facts['parameters'] / 1e9:,.2f} billion parameters; this rank"
        f" keeps {facts['local_parameters'] / 1e6:,.1f} million of them"
        f" ({held})\n{'; '.join(dict.fromkeys(f['checked'] for f in found))}{', on the first stage and the last' if len(ranks) > 1 else ''}"
        f" ({facts['seconds']} s); `mt plan` with the same settings says what it takes"
    )
    return facts


def _step(config: TrainConfig, shape: ResolvedModelConfig, mesh: Mesh) -> dict:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    dtype = config.precision.dtype
    with torch.device("meta"):
        dropouts = (
            "hidden_dropout",
            "attention_dropout",
            *(
                ("retro_encoder_hidden_dropout", "retro_encoder_attention_dropout")
                if shape.retro_add_retriever
                else ()
            ),
        )
        # masks change no shape
        model = build_model(dataclasses.replace(shape, **dict.fromkeys(dropouts, 0.0)))
    data_dependent_part = model.data_dependent_part
    if config.train.retro_freeze_decoder:
        model.freeze_gpt()
    if mesh.pp.size > 1:
        model = Pipeline(model, mesh, config.parallel, sequence_lengths(shape, config.data), dtype)
    recompute(model, config.recompute)
    if mesh.tp.size == 1:
        for stage in stages_of(model):
            stage.cross_entropy = _cross_entropy
    parallelize(model, mesh, config.parallel, dtype)
    with fake:
        model.to_empty(device="cpu")
    weights = MasterWeights(model, torch.float32 if mesh.world_size > 1 else dtype)
    optimizer = build_optimizer(weights.by_name, config.optimizer)
    checked = "shapes and groups hold from the first layer to the optimizer's step"
    try:
        with fake:  # not before: meshes are made of real tensors
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
        assert where is not None, "no other model's shapes depend on values, which fake tensors do not have"
        checked = f"shapes and groups hold as far as {where}, whose sizes depend on the data"
    states = [
        state[name] for state in optimizer.state.values() for name in moment_names(optimizer) if name in state
    ]
    kept = sum(local_shard(p).numel() for p in weights)
    return {
        "local_parameters": kept,
        "weights": _bytes(weights),
        "gradients": 4 * kept,
        "moments": _bytes(states) or 4 * kept * len(moment_names(optimizer)),
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
    """loss.cross_entropy in torch alone: on a CPU that one works on numbers in place."""
    return (
        F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none") * loss_mask
    ).sum()


def _bytes(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(local_shard(tensor).nbytes for tensor in tensors)


def _micro_batch(config: TrainConfig, shape: ResolvedModelConfig, mesh: Mesh) -> MicroBatch:
    """This rank's tokens of a micro-batch, with shapes and without values."""
    lengths = sequence_lengths(shape, config.data)
    size = config.train.micro_batch_size
    micro = family_of(shape).empty(shape, size, lengths["seq_length"], lengths.get("decoder_seq_length", 0))
    return split_sequences(micro, mesh.cp)
