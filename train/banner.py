"""The first lines of a training run: model, data, steps, devices, memory, output."""

from __future__ import annotations

import torch

from ..indexed.gpt_dataset import Dataset, even_sequences, token_share, tokens_of
from ..indexed.splits import shares
from .config import TrainConfig, TrainingSchedule
from .model.config import ResolvedModelConfig
from .model.family import count_parameters, family_of, sequence_lengths
from .model.training_cost import Bytes, gibibytes, large_number, training_bytes
from .parallel.mesh import Mesh

UNEVEN = 2  # times as many tokens, or as few, as --split asks for are worth a warning


def banner(
    config: TrainConfig,
    shape: ResolvedModelConfig,
    schedule: TrainingSchedule,
    mesh: Mesh,
    train_data: Dataset,
    valid_data: Dataset | None = None,
) -> str:
    """A row for the model, the data, the steps, the devices, the memory and the output."""
    parameters = count_parameters(shape)
    needed = memory_of_a_process(config, shape, parameters, mesh)
    parts = ", ".join(f"{name} {gibibytes(size)}" for name, size in needed._asdict().items())
    checkpoints = f"a checkpoint every {config.checkpoint.save_interval:,} steps"
    layers = f"{family_of(shape).num_blocks(shape)} layers of {shape.hidden_size:,}"
    rows = {
        "model": (
            f"{shape.family}, {large_number(parameters)} parameters: {layers},"
            f" {shape.padded_vocab_size:,} tokens in the vocabulary"
        ),
        "data": _data(config, shape, schedule, train_data),
        **_split(config, train_data, valid_data),
        "steps": _steps(config, shape, schedule, mesh),
        "devices": _devices(config, mesh),
        "memory": f"about {gibibytes(needed.total)} on each process, and torch itself: {parts}",
        "output": f"{config.checkpoint.save}: log.jsonl, {checkpoints}",
    }
    return "\n".join(["mt train", *(f"  {name:<9}{row}" for name, row in rows.items())])


def memory_of_a_process(
    config: TrainConfig, shape: ResolvedModelConfig, parameters: int, mesh: Mesh
) -> Bytes:
    """An estimate of the memory that each process needs; `mt plan` counts more exactly.

    Tensor and pipeline ranks divide all of it, context ranks the activations, and the ranks that compute on
    other samples or tokens the moments (with sharding `full` also weights and gradients). A pipeline stage
    keeps the activations of as many micro-batches as there are stages.
    """
    lengths = sequence_lengths(shape, config.data)
    whole = training_bytes(
        shape,
        parameters,
        tokens=config.train.micro_batch_size * sum(lengths.values()),
        dtype=config.precision.dtype,
        num_moments=config.optimizer.num_moments,
        granularity=config.recompute.recompute_granularity,
    )
    model = mesh.tp.size * mesh.pp.size
    replicas = mesh.world_size // model
    sharded = replicas if config.parallel.data_parallel_sharding == "full" else 1
    return Bytes(
        whole.weights // (model * sharded),
        whole.gradients // (model * sharded),
        whole.moments // (model * replicas),
        whole.activations // (mesh.tp.size * mesh.cp.size),
    )


def _data(
    config: TrainConfig, shape: ResolvedModelConfig, schedule: TrainingSchedule, train_data: Dataset
) -> str:
    lengths = sequence_lengths(shape, config.data)
    tokens = schedule.total_samples * (lengths.get("decoder_seq_length") or config.data.seq_length)
    rows = train_data.describe()
    counts = [row["tokens"] for row in rows]
    counted = sum(count or 0 for count in counts)
    there = f"{large_number(counted)} tokens there" if None not in counts else "questions there"
    epochs = [row["epochs"] for row in rows]
    low, high = (f"{value:.3g}" for value in (min(epochs), max(epochs)))
    if len(rows) == 1:
        return f"{large_number(tokens)} tokens, {low} epochs of the {there}"
    return f"{large_number(tokens)} tokens, {low} to {high} epochs of {len(rows)} sources with {there}"


def _split(config: TrainConfig, train_data: Dataset, valid_data: Dataset | None) -> dict[str, str]:
    """A row with the shares of the tokens that --split gives, where they are known."""
    found = token_share(train_data), token_share(valid_data)
    if config.data.per_split or found[0] is None:
        return {}
    named = (("training", found[0]), ("validation", found[1]))
    parts = ", ".join(f"{name} {share:.1%}" for name, share in named if share is not None)
    return {"split": f"{config.data.split}: {parts} of the tokens"}


def uneven_split(config: TrainConfig, train_data: Dataset, valid_data: Dataset | None) -> str:
    """What to do where the shares of tokens are far from those of --split; or ""."""
    found = token_share(valid_data)
    asked = shares(config.data.split)[1]
    if config.data.per_split or found is None or token_share(train_data) is None:
        return ""
    if asked / UNEVEN <= found <= asked * UNEVEN:
        return ""
    remedy = "write the data again with `mt data tokenize --shuffle-seed 1`"
    # in a random order the standard deviation of a share s is about sqrt(s / number): at most s / 2 here
    if even_sequences(valid_data) < 4 / asked:
        # of pieces of this length there are enough; a token is about 4 characters
        chars = int(min(20_000, max(1000, tokens_of(valid_data) * asked)))
        chars -= chars % 10 ** (len(str(chars)) - 1)
        remedy = (
            f"a few documents have most of the text; cut them by `mt data split --max-chars {chars}`, and"
            " write the data again with `mt data tokenize --shuffle-seed 1`"
        )
    return (
        f"mt: --split {config.data.split} divides the sequences in their order, and the last ones are"
        f" {'longer' if found > asked else 'shorter'}: validation has {found:.1%} of the tokens, not"
        f" {asked:.1%}; {remedy}"
    )


def _steps(config: TrainConfig, shape: ResolvedModelConfig, schedule: TrainingSchedule, mesh: Mesh) -> str:
    sizes = list(schedule.batch_size.sizes())
    low, high = min(sizes), max(sizes)
    samples = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    length = " + ".join(f"{length:,}" for length in sequence_lengths(shape, config.data).values())
    micro = config.train.micro_batch_size
    count = high // (micro * mesh.dp.size)
    times = f"{count:,} micro-batches" if count > 1 else "one micro-batch"
    return (
        f"{schedule.total_steps:,} of {samples} samples of {length} tokens ({times} of {micro} on each"
        " replica)"
    )


def _devices(config: TrainConfig, mesh: Mesh) -> str:
    if mesh.device.type == "cuda":
        name = torch.cuda.get_device_name(mesh.device)
        devices = f"{mesh.world_size:,} {name}"
    else:
        threads = torch.get_num_threads()
        processes = "one process" if mesh.world_size == 1 else f"{mesh.world_size:,} processes"
        devices = f"{processes} with {threads} thread{'s' if threads > 1 else ''} on processors"
    names = {"tp": "tensor", "cp": "context", "ep": "expert", "pp": "pipeline", "dp": "data"}
    layout = ", ".join(
        f"{name} {mesh.axes[axis].size:,}" for axis, name in names.items() if mesh.axes[axis].size > 1
    )
    return f"{devices}, {str(config.precision.dtype).removeprefix('torch.')}" + (
        f"; {layout}" if layout else ""
    )
