"""`mt checkpoint inspect | convert | export`: shows a checkpoint, and writes it for another library.

Weights are converted one at a time, in float32; Megatron-LM's format needs all weights of one rank at once.
A converted checkpoint has weights, settings and tokenizer, but no optimizer moments and no position in the
data. So `mt train` starts from it with --finetune.
"""

from __future__ import annotations

import dataclasses
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ...core import manifest, paths
from ...core.config import UserError, check, configuration, option, to_dict
from ...core.progress import activity
from ...tokenizer.tokenizer import Tokenizer, TokenizerConfig, load
from ..model.config import ModelConfig, ResolvedModelConfig
from . import huggingface, megatron
from .base import Checkpoint, Progress, dcp_errors_unwrapped, weight_shapes
from .hf_settings import config_to_hf
from .megatron_arguments import check_export, loader_flags
from .native import NativeCheckpoint, seal
from .open import open_checkpoint
from .presence import check_presence

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {
    "hf": "Hugging Face",
    "torch_dist": "mt",
    "torch": "Megatron-LM",
    "megatron_torch_dist": "Megatron-LM",
}
MEGATRON = ("torch", "megatron_torch_dist")

CHECKPOINT_HELP = (
    "a run's directory, one of its step_* directories, or a directory of Hugging Face, Meta or Megatron-LM"
)


@configuration()
class InspectConfig:
    POSITIONAL = "checkpoint"

    checkpoint: str = option(help=CHECKPOINT_HELP, role="input")

    def check_inputs(self) -> None:
        check_presence(self.checkpoint)


def inspect(config: InspectConfig) -> dict[str, Any]:
    """The content of a checkpoint: progress, settings, and every tensor's name, shape and dtype."""
    checkpoint = open_checkpoint(config.checkpoint)
    if isinstance(checkpoint, NativeCheckpoint):
        return _inspect_native(checkpoint)
    return _inspect_foreign(checkpoint)


def _inspect_native(checkpoint: NativeCheckpoint) -> dict[str, Any]:
    state = checkpoint.state
    tensors = {
        name: {"shape": list(tensor.size), "dtype": str(tensor.properties.dtype).removeprefix("torch.")}
        for name, tensor in checkpoint.reader().read_metadata().state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
    }
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    size = sum(file["bytes"] for file in state["files"])
    what = "with the optimizer's moments" if len(tensors) > len(weights) else "without optimizer moments"
    lines = [
        f"{checkpoint}: step {state['step']:,}, {state['consumed_samples']:,} samples,"
        f" {state['consumed_tokens']:,} tokens",
        f"{_count(weights):,} parameters, {size / 1e6:,.1f} MB {what}",
        *_lines(weights),
    ]
    return {
        "text": "\n".join(lines),
        "path": str(checkpoint),
        "parameters": _count(weights),
        "bytes": size,
        **{k: state[k] for k in ("step", "consumed_samples", "consumed_tokens", "data")},
        "settings": checkpoint.run_settings,
        "tensors": tensors,
    }


def _inspect_foreign(checkpoint: Checkpoint) -> dict[str, Any]:
    weights = {
        name: {"shape": list(shape), "dtype": "float32"}
        for name, shape in weight_shapes(checkpoint.config).items()
    }
    lines = [
        f"{checkpoint}: a checkpoint of {checkpoint.library}, step {checkpoint.step:,}",
        f"{_count(weights):,} parameters, here under our names",
        *_lines(weights),
    ]
    return {
        "text": "\n".join(lines),
        "path": str(checkpoint),
        "library": checkpoint.library,
        "parameters": _count(weights),
        "step": checkpoint.step,
        "settings": {"model": to_dict(checkpoint.config)},
        "tensors": {f"model.{name}": t for name, t in weights.items()},
    }


def _count(weights: dict) -> int:
    return sum(torch.Size(t["shape"]).numel() for t in weights.values())


def _lines(weights: dict) -> list[str]:
    width = max(map(len, weights))
    return [
        f"  {name:<{width}}  {t['dtype']} {' x '.join(map(str, t['shape']))}" for name, t in weights.items()
    ]


@configuration()
class ExportConfig:
    """The settings of `mt checkpoint export`: a checkpoint, and the Hugging Face directory to write."""

    POSITIONAL = ("source", "output")

    source: str = option(help=CHECKPOINT_HELP, role="input")
    output: str = option(help="directory to write", role="output")
    dtype: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "dtype of the weights that are written; mt's own checkpoints always have fp32"
    )
    max_shard_size: float = option(5.0, "most gigabytes of weights in one file")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    overwrite: bool = option(False, "replace the files in the output directory", role="runtime")

    def __post_init__(self):
        check((self.max_shard_size > 0, f"max_shard_size = {self.max_shard_size} must be above 0"))

    def check_inputs(self) -> None:
        """Raises UserError for inputs that are not there, before anything is read."""
        check_presence(self.source)


@configuration()
class ConvertConfig(ExportConfig):
    """The settings of `mt checkpoint convert`: a checkpoint, and the format to write."""

    format: Literal["hf", "torch_dist", "torch", "megatron_torch_dist"] | None = option(
        None,
        "hf: Hugging Face; torch_dist: mt; torch and megatron_torch_dist: Megatron-LM's formats (default: hf"
        " from a checkpoint of mt, torch_dist from others)",
    )
    make_vocab_size_divisible_by: int | None = option(
        None,
        "torch_dist, torch: pad the rows of the vocabulary to a multiple of this (default: the source's, but"
        " 128 from Hugging Face and Meta)",
    )
    target_tensor_parallel_size: int = option(1, "torch: tensor-parallel ranks to write for")
    target_pipeline_parallel_size: int = option(1, "torch: pipeline stages to write for")
    transformer_impl: Literal["transformer_engine", "local"] = option(
        "transformer_engine",
        "torch: the implementation of layers that Megatron-LM will load it with; they name norms differently",
    )

    def __post_init__(self):
        super().__post_init__()
        target_sizes = ("target_tensor_parallel_size", "target_pipeline_parallel_size")
        for_megatron = self.format == "torch"
        check(
            *(
                (value is None or value >= 1, f"{name} = {value} must be at least 1")
                for name in ("make_vocab_size_divisible_by", *target_sizes)
                for value in [getattr(self, name)]
            ),
            *(
                (
                    getattr(self, name) == 1 or for_megatron,
                    f"{name} is for --format torch; mt loads its checkpoints at any layout: leave it out",
                )
                for name in target_sizes
            ),
        )


def convert(config: ConvertConfig) -> dict:
    """Writes the weights, settings and tokenizer of a checkpoint in the format of another library."""
    return _convert("checkpoint convert", config, config.format)


def export(config: ExportConfig) -> dict:
    """Writes a checkpoint for Hugging Face's from_pretrained."""
    return _convert("checkpoint export", config, "hf")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint to convert, and its tokenizer."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    config: ResolvedModelConfig  # the model's, with the tokenizer's vocabulary
    copies_tokenizer: bool  # the tokenizer is the checkpoint's own, so that its files can be copied


def _convert(command: str, config: ExportConfig, format: str | None) -> dict:
    source = _open_source(config)
    checkpoint = source.checkpoint
    format = format or ("hf" if checkpoint.library == "mt" else "torch_dist")
    if format == "torch_dist" and config.dtype != "fp32":
        raise UserError(f"dtype = {config.dtype}: checkpoints of mt hold float32; leave it out")
    if format == "hf":
        config_to_hf(source.config)
    if format in MEGATRON:
        assert isinstance(config, ConvertConfig), "export writes Hugging Face's format alone"
        check_export(
            source.config,
            config.target_tensor_parallel_size,
            config.target_pipeline_parallel_size,
            local=config.transformer_impl == "local",
        )
    identity = {"tokenizer": source.tokenizer.fingerprint}
    run = manifest.begin(command, config, [checkpoint.path], facts=identity)
    if run.finished:
        return run.manifest
    folder = Path(config.output)
    try:
        with activity(f"converting {checkpoint} for {FORMATS[format]}"):
            _WRITERS[format](source, folder, config)
    except UserError:
        run.abandon()  # the remedy is another source, or a repaired one
        raise
    except (OSError, RuntimeError, CheckpointException) as error:
        if not _could_not_write(error):
            raise
        run.abandon()
        raise UserError(
            f"{folder}: could not be written; most likely the disk is full: free some space and run the same"
            " command again"
        ) from None
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.name != "run.json" and not p.name.endswith(".partial")
    )
    facts: dict[str, Any] = {}
    if format in MEGATRON:
        facts["megatron_flags"] = loader_flags(source.config)
        print(
            f"mt: {folder}: load it with --load {folder} --use-checkpoint-args --finetune"
            f" {' '.join(facts['megatron_flags'])}",
            file=sys.stderr,
        )
    parameters = sum(shape.numel() for shape in weight_shapes(source.config).values())
    records = [manifest.record(p, folder) for p in files]
    return run.finish(
        records,
        {"parameters": parameters, "files": len(files), "bytes": sum(r["bytes"] for r in records)},
        source=str(checkpoint),
        from_library=checkpoint.library,
        to_library=FORMATS[format],
        step=checkpoint.step,
        **facts,
    )


def _could_not_write(error: BaseException) -> bool:
    """Whether an error, or the one of torch.distributed.checkpoint in it, is of a file that cannot grow."""
    if isinstance(error, CheckpointException):
        return any(_could_not_write(cause) for cause, _ in error.failures.values())
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # of torch.save, which asks how far it has come; `write` is its other message
    return "unexpected pos" in str(error) or "failed writing file" in str(error)


def _open_source(config: ExportConfig) -> Source:
    checkpoint = open_checkpoint(config.source)
    own = not config.tokenizer.kind
    tokenizer = checkpoint.load_tokenizer() if own else load(config.tokenizer)
    model = checkpoint.config
    if isinstance(checkpoint, megatron.MegatronCheckpoint):
        # Its settings do not say where the padding of the vocabulary begins.
        model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    elif checkpoint.library != "mt" and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{checkpoint}: has {model.vocab_size} rows of vocabulary, and the tokenizer"
            f" {tokenizer.vocab_size} tokens; give the model's own tokenizer"
        )
    return Source(checkpoint, tokenizer, model, copies_tokenizer=own)


def _write_hf(source: Source, folder: Path, config: ExportConfig) -> None:
    shapes = weight_shapes(source.config)
    checkpoint = source.checkpoint
    huggingface.write_directory(
        folder,
        source.config,
        lambda name: checkpoint.read_weight(name, shapes[name]),
        source.tokenizer,
        dtype=DTYPES[config.dtype],
        file_bytes=int(config.max_shard_size * 1e9),
        source=checkpoint.path
        if source.copies_tokenizer and isinstance(checkpoint, huggingface.HuggingFaceCheckpoint)
        else None,
    )


def _write_megatron(source: Source, folder: Path, config: ConvertConfig) -> None:
    megatron.write_directory(
        folder,
        _with_padding(source, config),
        source.checkpoint.read_weight,
        step=source.checkpoint.step,
        seq_length=source.checkpoint.seq_length,
        dtype=DTYPES[config.dtype],
        tensor_parallel=config.target_tensor_parallel_size,
        pipeline_parallel=config.target_pipeline_parallel_size,
        local=config.transformer_impl == "local",
        dist=config.format == "megatron_torch_dist",
    )


def _with_padding(source: Source, config: ConvertConfig) -> ResolvedModelConfig:
    """The model's settings, with the vocabulary padding of the output."""
    default = source.config.make_vocab_size_divisible_by
    if source.checkpoint.library in ("Hugging Face", "Meta"):  # they have no padding
        default = ModelConfig.make_vocab_size_divisible_by
    multiple = config.make_vocab_size_divisible_by or default
    return dataclasses.replace(source.config, make_vocab_size_divisible_by=multiple)


class LazySavePlanner(DefaultSavePlanner):
    """Reads each tensor only when it is written; its input tensors have shapes but no values."""

    def __init__(self, read: Callable[[str], Tensor]):
        super().__init__()
        self.read = read

    def lookup_object(self, index) -> Tensor:
        return self.read(index.fqn)


def _write_native(source: Source, folder: Path, config: ConvertConfig) -> None:
    """A step directory as native.py describes it, without moments and without a position in any data."""
    model = _with_padding(source, config)
    shapes = {f"model.{name}": shape for name, shape in weight_shapes(model).items()}
    without_values = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    # Of a run that was killed: torch would warn of them, and write through links.
    for left in (folder / ".metadata", folder / ".metadata.tmp", *folder.glob("*.distcp")):
        paths.remove(left)
    # One file for each tensor: torch keeps the tensors of a file in memory until the file is complete.
    writer = FileSystemWriter(folder, single_file_per_rank=False)
    writer.save_id = "converted"  # by default random; so the same source gives the same bytes
    planner = LazySavePlanner(
        lambda name: source.checkpoint.read_weight(name.removeprefix("model."), shapes[name])
    )
    with dcp_errors_unwrapped():
        dcp.save(without_values, storage_writer=writer, planner=planner, no_dist=True)
    tree = {"model": to_dict(model), "data": {"seq_length": source.checkpoint.seq_length}}
    with manifest.atomic_write(folder / "config.yaml", "w") as file:
        yaml.safe_dump(tree, file, sort_keys=False)
    source.tokenizer.save(folder / "tokenizer")
    seal(folder, Progress(), None)


_WRITERS: dict[str, Callable[[Source, Path, Any], None]] = {
    "hf": _write_hf,
    "torch_dist": _write_native,
    "torch": _write_megatron,
    "megatron_torch_dist": _write_megatron,
}
