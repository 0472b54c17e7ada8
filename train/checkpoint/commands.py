"""`mt checkpoint inspect | convert | export`: what a checkpoint holds, and the same weights for another
library.

Weights pass through memory one at a time, in float32, but for Megatron-LM's format, which holds all of a
rank's in one file. A checkpoint that was converted holds weights, settings and tokenizer; moments and the
place in the data stay behind, so that `mt train` starts from it with --finetune.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

from ...core import manifest
from ...core.config import UserError, check, configuration, option, read_yaml, to_dict
from ...tokenizer.tokenizer import Tokenizer, TokenizerConfig, load, load_directory
from ..model.config import ModelConfig
from . import huggingface, megatron
from . import native as checkpoint
from .foreign import is_foreign, open_foreign, weight_shapes, with_rows
from .hf_settings import settings_out

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"hf": "Hugging Face", "torch_dist": "mt", "torch": "Megatron-LM"}


@configuration()
class InspectConfig:
    POSITIONAL = "checkpoint"

    checkpoint: str = option(
        help=(
            "a run's directory, one of its step_* directories, or a directory of Hugging Face or Megatron-LM"
        ),
        role="input",
    )


def inspect(config: InspectConfig) -> dict:
    """What a checkpoint holds: progress, settings, and every tensor's name, shape and dtype."""
    path = checkpoint.find(config.checkpoint)
    if is_foreign(path):
        return _inspect_foreign(path)
    state = manifest.read_json(path / "state.json")
    held = checkpoint.Reader(path).read_metadata().state_dict_metadata
    tensors = {
        name: {"shape": list(m.size), "dtype": str(m.properties.dtype).removeprefix("torch.")}
        for name, m in held.items()
    }
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    size = sum(f["bytes"] for f in state["files"])
    progress = (
        f"step {state['step']:,}, {state['consumed_samples']:,} samples, {state['consumed_tokens']:,} tokens"
    )
    what = "with the optimizer's moments" if len(tensors) > len(weights) else "without an optimizer's moments"
    return {
        "text": "\n".join(
            [
                f"{path}: {progress}",
                f"{_count(weights):,} parameters, {size / 1e6:,.1f} MB {what}",
                *_lines(weights),
            ]
        ),
        "path": str(path),
        "parameters": _count(weights),
        "bytes": size,
        **{k: state[k] for k in ("step", "consumed_samples", "consumed_tokens", "data")},
        "settings": read_yaml(path / "config.yaml"),
        "tensors": tensors,
    }


def _inspect_foreign(path: Path) -> dict:
    foreign = open_foreign(path)
    weights = {
        name: {"shape": list(shape), "dtype": "float32"}
        for name, shape in weight_shapes(foreign.config).items()
    }
    lines = [
        f"{path}: a checkpoint of {foreign.library}, step {foreign.step:,}",
        f"{_count(weights):,} parameters, here under our names",
        *_lines(weights),
    ]
    return {
        "text": "\n".join(lines),
        "path": str(path),
        "library": foreign.library,
        "parameters": _count(weights),
        "step": foreign.step,
        "settings": {"model": to_dict(foreign.config)},
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
    """A checkpoint, and the Hugging Face directory to make of it."""

    POSITIONAL = ("source", "output")

    source: str = option(
        help=(
            "a run's directory, one of its step_* directories, or a directory of Hugging Face or Megatron-LM"
        ),
        role="input",
    )
    output: str = option(help="directory to write", role="output")
    dtype: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "numbers that weights are written in; mt's own checkpoints always have fp32"
    )
    max_shard_size: float = option(5.0, "gigabytes of weights in one file")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    overwrite: bool = option(False, "replace what is in the output", role="runtime")

    def __post_init__(self):
        check((self.max_shard_size > 0, f"max_shard_size = {self.max_shard_size} must be above 0"))


@configuration()
class ConvertConfig(ExportConfig):
    """A checkpoint, and what to make of it."""

    format: Literal["hf", "torch_dist", "torch"] | None = option(
        None,
        "hf: Hugging Face; torch_dist: mt; torch: Megatron-LM (default: hf from a checkpoint of mt,"
        " torch_dist from others)",
    )
    make_vocab_size_divisible_by: int | None = option(
        None,
        "torch_dist, torch: rows of the vocabulary are padded to a multiple of this (default: the source's"
        " own, but 128 from Hugging Face)",
    )
    target_tensor_parallel_size: int = option(1, "torch: tensor-parallel ranks to write for")
    target_pipeline_parallel_size: int = option(1, "torch: pipeline stages to write for")
    transformer_impl: Literal["transformer_engine", "local"] = option(
        "transformer_engine",
        "torch: which of Megatron-LM's layers are to read it; they name norms differently",
    )

    def __post_init__(self):
        super().__post_init__()
        sizes = (
            "make_vocab_size_divisible_by",
            "target_tensor_parallel_size",
            "target_pipeline_parallel_size",
        )
        check(
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 1,
                    f"{n} = {getattr(self, n)} must be at least 1",
                )
                for n in sizes
            ),
            *(
                (
                    getattr(self, n) == 1 or self.format == "torch",
                    f"{n} is for --format torch; mt loads its checkpoints at any layout: leave it out",
                )
                for n in sizes[1:]
            ),
        )


def convert(config: ConvertConfig) -> dict:
    """Writes the weights, settings and tokenizer of a checkpoint as another library reads them."""
    return _convert("checkpoint convert", config, config.format)


def export(config: ExportConfig) -> dict:
    """Writes a checkpoint as Hugging Face's from_pretrained reads it."""
    return _convert("checkpoint export", config, "hf")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint of any kind."""

    config: ModelConfig  # resolved
    seq_length: int
    step: int
    # one of our weights, float32, with as many rows as the shape has
    read: Callable[[str, torch.Size], Tensor]
    tokenizer: Tokenizer
    library: str  # "mt", "Hugging Face", "Megatron-LM"


def _convert(verb: str, config: ExportConfig, format: str | None) -> dict:
    path = checkpoint.find(config.source)
    source = _open(path, config.tokenizer)
    format = format or ("hf" if source.library == "mt" else "torch_dist")
    if format == "torch_dist" and config.dtype != "fp32":
        raise UserError(f"dtype = {config.dtype}: checkpoints of mt hold float32; leave it out")
    if format == "hf":
        settings_out(source.config)
    if format == "torch":
        megatron.check_export(
            source.config, config.target_tensor_parallel_size, config.target_pipeline_parallel_size
        )
    run = manifest.begin(verb, config, [path], facts={"tokenizer": source.tokenizer.fingerprint})
    if run.finished:
        return run.manifest
    folder = Path(config.output)
    try:
        {"hf": _to_hf, "torch_dist": _to_mt, "torch": _to_megatron}[format](source, folder, config, path)
    except UserError:
        run.abandon()  # another source, or this one mended, is the remedy
        raise
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.name != "run.json" and not p.name.endswith(".partial")
    )
    parameters = sum(shape.numel() for shape in weight_shapes(source.config).values())
    records = [manifest.record(p, folder) for p in files]
    return run.finish(
        records,
        {"parameters": parameters, "files": len(files), "bytes": sum(r["bytes"] for r in records)},
        source=str(path),
        from_library=source.library,
        to_library=FORMATS[format],
        step=source.step,
    )


def _open(path: Path, tokenizer: TokenizerConfig) -> Source:
    """tokenizer: in place of the source's own, where it names one."""
    if is_foreign(path):
        foreign = open_foreign(path)
        words = load(tokenizer) if tokenizer.kind else foreign.tokenizer()
        config = foreign.config
        # whose checkpoints do not say where the padding of the vocabulary begins
        if foreign.library == "Megatron-LM":
            config = dataclasses.replace(config, vocab_size=words.vocab_size)
        elif words.vocab_size > config.vocab_size:
            raise UserError(
                f"{path}: has {config.vocab_size} rows of vocabulary, and the tokenizer {words.vocab_size}"
                " tokens; give the model's own tokenizer"
            )
        return Source(config, foreign.seq_length, foreign.step, foreign.read, words, foreign.library)
    settings = checkpoint.saved_settings(path)
    config, own = settings.model, weight_shapes(settings.model)
    reader = checkpoint.Reader(path)

    def read(name: str, shape: torch.Size) -> Tensor:
        tensors = {f"model.{name}": torch.empty(own[name])}
        with checkpoint.one_process_is_fine():
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        (tensor,) = tensors.values()
        return tensor if tensor.shape == shape else with_rows(tensor, shape[0], config.vocab_size)

    words = load(tokenizer) if tokenizer.kind else load_directory(path / "tokenizer")
    return Source(
        config, settings.data.seq_length, manifest.read_json(path / "state.json")["step"], read, words, "mt"
    )


def _to_hf(source: Source, folder: Path, config: ExportConfig, path: Path) -> None:
    shapes = weight_shapes(source.config)
    copied = path if source.library == "Hugging Face" and not config.tokenizer.kind else None
    huggingface.write_directory(
        folder,
        source.config,
        lambda name: source.read(name, shapes[name]),
        source.tokenizer,
        dtype=DTYPES[config.dtype],
        file_bytes=int(config.max_shard_size * 1e9),
        source=copied,
    )


def _to_megatron(source: Source, folder: Path, config: ConvertConfig, path: Path) -> None:
    megatron.write_directory(
        folder,
        _padded(source, config),
        source.read,
        step=source.step,
        seq_length=source.seq_length,
        dtype=DTYPES[config.dtype],
        tensor_parallel=config.target_tensor_parallel_size,
        pipeline_parallel=config.target_pipeline_parallel_size,
        local=config.transformer_impl == "local",
    )


def _padded(source: Source, config: ConvertConfig) -> ModelConfig:
    default = (
        ModelConfig.make_vocab_size_divisible_by
        if source.library == "Hugging Face"
        else source.config.make_vocab_size_divisible_by
    )
    return dataclasses.replace(
        source.config, make_vocab_size_divisible_by=config.make_vocab_size_divisible_by or default
    )


class _FromSource(DefaultSavePlanner):
    """Reads a tensor when its turn to be written comes; what it is asked to save has no values."""

    def __init__(self, read: Callable[[str], Tensor]):
        super().__init__()
        self.read = read

    def lookup_object(self, index) -> Tensor:
        return self.read(index.fqn)


def _to_mt(source: Source, folder: Path, config: ConvertConfig, path: Path) -> None:
    """A step directory: see checkpoint.py. It holds no moments, and no place in any data."""
    model = _padded(source, config)
    shapes = weight_shapes(model)
    blank = {f"model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    (folder / ".metadata").unlink(missing_ok=True)  # of a run that was killed: torch would warn of it
    # torch keeps in memory what goes into one file until that is whole
    writer = FileSystemWriter(folder, single_file_per_rank=False)
    writer.save_id = "converted"  # in place of a random one: the same source gives the same bytes
    planner = _FromSource(
        lambda name: source.read(name.removeprefix("model."), shapes[name.removeprefix("model.")])
    )
    with checkpoint.one_process_is_fine():
        dcp.save(blank, storage_writer=writer, planner=planner, no_dist=True)
    with manifest.atomic_write(folder / "config.yaml", "w") as file:
        yaml.safe_dump(
            {"model": to_dict(model), "data": {"seq_length": source.seq_length}}, file, sort_keys=False
        )
    source.tokenizer.save(folder / "tokenizer")
    checkpoint.seal(folder, checkpoint.Progress(), None)
