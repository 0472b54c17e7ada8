"""Checkpoints: torch.distributed.checkpoint directories that any parallel layout can load.

    SAVE/step_00000300/
        .metadata, __R_N.distcp     model and optimizer tensors, each rank's pieces (torch.distributed.checkpoint);
                                    their names: model.NAME, exp_avg.NAME, exp_avg_sq.NAME
        config.yaml                 the resolved configuration
        tokenizer/                  the tokenizer
        state.json                  step, samples and tokens consumed, the data's identity, what of the log is
                                    pending, and the size and digest of every other file; written last

A checkpoint is written beside, under a name with a leading dot, and renamed when it is whole. No state of a random
generator is kept, because none lasts longer than a micro-batch (loop.forward_backward).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import re
import shutil
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from .. import manifest
from ..config import Failure, UserError, build, check, option, read_yaml, to_dict
from ..indexed.gpt import DataConfig
from ..tokenizer import Tokenizer, TokenizerConfig, load_directory
from .model.gpt import GPT
from .model.layers import ModelConfig
from .parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where checkpoints go and come from."""

    save: str = option(help="directory for checkpoints, log and manifest", role="output")
    load: str | None = option(None, "start from the checkpoint in another run's directory (or from one of its step_* directories)", role="input")
    finetune: bool = option(False, "take only the weights from --load: steps, data position and optimizer start anew")
    save_interval: int = option(1000, "steps from one checkpoint to the next; the last step is always saved", role="runtime")
    keep_last: int = option(2, "checkpoints kept; 0 keeps all", role="runtime")

    def __post_init__(self):
        check(
            (self.save_interval >= 1, f"checkpoint.save_interval = {self.save_interval} must be at least 1"),
            (self.keep_last >= 0, f"checkpoint.keep_last = {self.keep_last} must not be negative"),
            (not self.finetune or self.load is not None, "checkpoint.finetune needs --load: the checkpoint to start from"),
        )


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    pending_losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last log line


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, config, tokenizer: Tokenizer, data: dict, keep_last: int, mesh: Mesh) -> Path:
    """Writes `folder/step_N` whole, from all ranks, then removes all but the newest `keep_last`; returns its path.

    config: the resolved configuration. data: the training data's batches.identity.
    """
    final = folder / f"step_{progress.step:08d}"
    partial = folder / f".{final.name}.partial"
    mesh.on_main(lambda: shutil.rmtree(partial, ignore_errors=True))
    writer = FileSystemWriter(partial)
    writer.save_id = final.name  # in place of a random one: the same run writes the same bytes
    try:
        with _one_process_is_fine():
            dcp.save(_tensors(model, optimizer), storage_writer=writer, no_dist=mesh.world_size == 1)
    except CheckpointException as error:  # no Exception: `except Exception` would miss it
        raise UserError(f"{final}: could not be written ({_cause(error)}); most likely the disk is full: free some space and run the same command again, it goes on from the checkpoint before") from None

    def seal() -> None:
        with manifest.atomic_write(partial / "config.yaml", "w") as file:
            yaml.safe_dump(to_dict(config), file, sort_keys=False)
        tokenizer.save(partial / "tokenizer")
        files = [manifest.record(p, partial) for p in sorted(partial.rglob("*")) if p.is_file()]
        files = [{k: f[k] for k in ("name", "bytes", "xxh3")} for f in files]
        manifest.write_json(partial / "state.json", {**dataclasses.asdict(progress), "data": data, "files": files})
        shutil.rmtree(final, ignore_errors=True)  # a broken one that was fallen back from
        os.rename(partial, final)
        manifest.sync_directory(folder)
        later = [p for p in _steps(folder) if _step(p) > progress.step]  # broken ones that were fallen back from
        mine = [p for p in _steps(folder) if _step(p) <= progress.step]
        for old in later + (mine[keep_last:] if keep_last else []):
            os.rename(old, doomed := folder / f".{old.name}.partial")
            shutil.rmtree(doomed)

    mesh.on_main(seal)
    return final


def _cause(error: CheckpointException) -> str:
    """The first rank's error, in its own first line."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause).splitlines()[0]}"


@contextlib.contextmanager
def _one_process_is_fine():
    """Without torch.distributed's warning that it is not started."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Name -> tensor (or DTensor) of everything kept; made with zeros where the optimizer has not stepped yet."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment not in moments:
                    moments[moment] = torch.zeros_like(parameter)
                tensors[f"{moment}.{name}"] = moments[moment]
    return tensors


def _steps(folder: Path) -> list[Path]:
    """The step directories of a run, newest first."""
    return sorted((p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose files are all there and unchanged; says so when it passes over a broken one.

    Raises Failure when there are checkpoints but all are broken.
    """
    steps = _steps(folder)
    for path in steps:
        wrong = whats_wrong(path)
        if wrong is None:
            return path
        print(f"mt: {path}: {wrong}; falling back to the checkpoint before it", file=sys.stderr)
    if steps:
        raise Failure(f"{folder}: none of its {len(steps)} checkpoints is whole; start again with --overwrite, or with --load from elsewhere")
    return None


def whats_wrong(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    if not (path / "state.json").exists():
        return "has no state.json: not a whole checkpoint"
    try:
        files = manifest.read_json(path / "state.json")["files"]
    except (UserError, KeyError):
        return "its state.json is not whole"
    for file in files:
        part = path / file["name"]
        if not part.exists():
            return f"{file['name']} is missing"
        if part.stat().st_size != file["bytes"]:
            return f"{file['name']} has {part.stat().st_size:,} bytes, not {file['bytes']:,}"
        if manifest.file_digest(part) != file["xxh3"]:
            return f"{file['name']} has changed since it was written"
    return None


# What torch's writer puts into `.metadata`, as pickle names it; beside these, dtypes of torch.
_METADATA = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}


class Reader(FileSystemReader):
    """torch's reader of checkpoint directories, which makes nothing of a pickle but what its writer puts there.

    torch itself unpickles `.metadata` without restraint, so that a stranger's checkpoint could run any code.
    """

    def read_metadata(self, *args, **kwargs) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ValueError) as error:
            raise UserError(f"{file}: not the metadata of a checkpoint ({error}); do not use it, take another checkpoint") from None
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if name in _METADATA.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def find(path: str | Path) -> Path:
    """The step directory meant by a path: itself, or the newest whole one in a run's directory."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; check the path")
    if (path / "state.json").exists() or re.fullmatch(r"step_\d+", path.name):
        if wrong := whats_wrong(path):
            raise UserError(f"{path}: {wrong}; use another checkpoint")
        return path
    try:
        found = newest_whole(path) if path.is_dir() else None
    except Failure:
        raise UserError(f"{path}: none of its checkpoints is whole; use another run's") from None
    if found is None:
        raise UserError(f"{path}: holds no checkpoint of mt train (step_NNNNNNNN); check the path")
    return found


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, mesh: Mesh | None = None) -> Progress:
    """Fills a model and, if given, its optimizer from a step directory written at any layout; returns its progress.

    Raises UserError when the checkpoint is of another shape.
    """
    state = manifest.read_json(path / "state.json")
    check_shapes(path, model)
    tensors = _tensors(model, optimizer)
    with _one_process_is_fine():
        dcp.load(tensors, storage_reader=Reader(path), no_dist=mesh is None or mesh.world_size == 1)
    if optimizer is not None:
        for moments in optimizer.state.values():
            moments["step"] = torch.tensor(float(state["step"]), device=moments["exp_avg"].device)
    return Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress)})


def position(path: Path) -> tuple[dict, int]:
    """(identity of the data, samples consumed of it) of a step directory."""
    state = manifest.read_json(path / "state.json")
    return state["data"], state["consumed_samples"]


def check_shapes(path: Path, model: nn.Module) -> None:
    """Raises UserError, with the first difference, where a step directory holds another model's weights."""
    held = Reader(path).read_metadata().state_dict_metadata
    held = {name.removeprefix("model."): tuple(m.size) for name, m in held.items() if name.startswith("model.")}
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name in [*wanted, *held]:
        if held.get(name) != wanted.get(name):
            there, here = (f"{shapes[name]}" if name in shapes else "absent" for shapes in (held, wanted))
            raise UserError(f"{path}: holds another model: {name} is {there} there and {here} here; give the model's settings as in {path / 'config.yaml'}")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The part of a saved configuration that a model's users need."""

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig


def saved_settings(path: Path) -> ModelSettings:
    """From a step directory's config.yaml."""
    tree = read_yaml(path / "config.yaml")
    return build(ModelSettings, (str(path / "config.yaml"), {k: tree.get(k, {}) for k in ("model", "data", "tokenizer")}))


def load_model(path: str | Path) -> tuple[GPT, Tokenizer, ModelSettings]:
    """(model in eval mode on the GPU if there is one, its tokenizer, its settings) from a run's or a step's directory."""
    path = find(path)
    settings = saved_settings(path)
    model = GPT(settings.model).eval().requires_grad_(False)
    load(path, model, None)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), load_directory(path / "tokenizer"), settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    POSITIONAL = "checkpoint"

    checkpoint: str = option(help="a run's directory, or one of its step_* directories", role="input")


def inspect(config: InspectConfig) -> dict:
    """What a checkpoint holds: progress, settings, and every tensor's name, shape and dtype."""
    path = find(config.checkpoint)
    state = manifest.read_json(path / "state.json")
    held = Reader(path).read_metadata().state_dict_metadata
    tensors = {name: {"shape": list(m.size), "dtype": str(m.properties.dtype).removeprefix("torch.")} for name, m in held.items()}
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    parameters = sum(torch.Size(t["shape"]).numel() for t in weights.values())
    size = sum(f["bytes"] for f in state["files"])
    width = max(map(len, weights))
    lines = [
        f"{path}: step {state['step']:,}, {state['consumed_samples']:,} samples, {state['consumed_tokens']:,} tokens",
        f"{parameters:,} parameters, {size / 1e6:,.1f} MB with the optimizer's moments",
        *(f"  {name:<{width}}  {t['dtype']} {' x '.join(map(str, t['shape']))}" for name, t in weights.items()),
    ]
    return {
        "text": "\n".join(lines), "path": str(path), "parameters": parameters, "bytes": size,
        **{k: state[k] for k in ("step", "consumed_samples", "consumed_tokens", "data")},
        "settings": read_yaml(path / "config.yaml"), "tensors": tensors,
    }
