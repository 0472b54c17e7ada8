"""Checkpoints: torch.distributed.checkpoint directories that any parallel layout can load.

    SAVE/step_00000300/
        .metadata, __R_N.distcp     model and optimizer tensors, each rank's pieces
            (torch.distributed.checkpoint);
                                    their names: model.NAME, exp_avg.NAME, exp_avg_sq.NAME
                                        (momentum_buffer.NAME)
        config.yaml                 the resolved configuration
        tokenizer/                  the tokenizer
        state.json                  progress (step, samples and tokens consumed ...), the data's identity, and
            the size
                                    and digest of every other file; written last

A checkpoint is written beside, under a name with a leading dot, and renamed when it is whole. With
--async-save that is done by a thread from copies, while training goes on; the bytes are the same. Weights are
float32 whatever the model computes in. No state of a random generator is kept, because none lasts longer than
a micro-batch (step.forward_backward).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import os
import pickle
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, StorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from ...core import manifest
from ...core.config import Failure, UserError, build, check, configuration, option, read_yaml, to_dict
from ...tokenizer.tokenizer import Tokenizer, load_directory
from ..model.config import ModelConfig, ResolvedModelConfig
from ..model.family import build_model
from ..parallel.mesh import Mesh, ParallelConfig
from ..parallel.parallelize import check_layout, cut_for_use
from .foreign import ForeignReader, is_foreign, open_foreign


@configuration(group="checkpoint")
class CheckpointConfig:
    """Where checkpoints go and come from."""

    save: str = option(help="directory for checkpoints, log and manifest", role="output")
    load: str | None = option(
        None,
        "start from the checkpoint in another run's directory (or from one of its step_* directories); with"
        " --finetune also a directory of Hugging Face or Megatron-LM",
        role="input",
    )
    finetune: bool = option(
        False, "take only the weights from --load: steps, data position and optimizer start anew"
    )
    ckpt_step: int | None = option(None, "the step of --load to start from (default: its newest)")
    no_load_optim: bool = option(False, "take weights and position from --load, and begin with new moments")
    use_checkpoint_opt_param_scheduler: bool = option(
        False, "take all settings of the optimizer from --load (default: those given here count)"
    )
    exit_on_missing_checkpoint: bool = option(
        False, "end at once where there is nothing to go on from, instead of beginning anew", role="runtime"
    )
    save_interval: int = option(
        1000, "steps from one checkpoint to the next; the last step is always saved", role="runtime"
    )
    async_save: bool = option(
        False,
        "write checkpoints while training goes on; takes their size in memory once more",
        role="runtime",
    )
    no_save_optim: bool = option(
        False,
        "checkpoints without the optimizer's moments: a third of the size, but what goes on from one begins"
        " with new moments",
    )
    keep_last: int = option(2, "checkpoints kept; 0 keeps all", role="runtime")
    save_retain_interval: int | None = option(
        None, "checkpoints of steps that are multiples of this are kept for ever", role="runtime"
    )

    def __post_init__(self):
        check(
            (self.save_interval >= 1, f"checkpoint.save_interval = {self.save_interval} must be at least 1"),
            (self.keep_last >= 0, f"checkpoint.keep_last = {self.keep_last} must not be negative"),
            (
                self.save_retain_interval is None or self.save_retain_interval >= 1,
                f"checkpoint.save_retain_interval = {self.save_retain_interval} must be at least 1",
            ),
            (
                self.ckpt_step is None or self.load is not None,
                "checkpoint.ckpt_step needs --load: the run whose step it is",
            ),
            (
                not self.no_load_optim or self.load is not None,
                "checkpoint.no_load_optim needs --load: the checkpoint to start from",
            ),
            (
                not self.finetune or self.load is not None,
                "checkpoint.finetune needs --load: the checkpoint to start from",
            ),
        )


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    updates: int = 0  # steps that changed the weights since the moments began
    skipped_steps: int = 0  # that changed none
    skipped_samples: int = 0  # and what they consumed, which the schedules do not count
    loss_scale: dict = dataclasses.field(default_factory=dict)  # precision.LossScale.state
    # (loss, gradient norm) that spikes are measured against
    recent: list[list[float]] = dataclasses.field(default_factory=list)
    # of the steps since the last log line
    pending_losses: list[float] = dataclasses.field(default_factory=list)


class Saver:
    """Writes the checkpoints of one run, from all ranks; with --async-save in a thread, one at a time."""

    def __init__(self, config, *, tokenizer: Tokenizer, data: dict, mesh: Mesh):
        """config: the run's, resolved. data: the training data's batches.identity."""
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.folder = Path(config.checkpoint.save)
        self.mesh = mesh.with_gloo_group() if config.checkpoint.async_save else mesh
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        progress: Progress,
    ) -> None:
        """Writes `step_N`, then removes what is not to be kept.

        Waits for the one before; raises what that one raised.
        """
        self.wait()
        tensors = named_tensors(model, weights, None if self.config.checkpoint.no_save_optim else optimizer)
        if not self.config.checkpoint.async_save:
            self._write(tensors, progress)
            return
        copies = {name: t.clone() if t.device.type == "cpu" else t.cpu() for name, t in tensors.items()}
        self._thread = threading.Thread(
            target=self._write_aside, args=(copies, copy.deepcopy(progress)), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is whole."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_aside(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        try:
            self._write(tensors, progress)
        except BaseException as error:  # whatever it is, the next `wait` raises it where it is heard
            self._error = error

    def _write(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        final = self.folder / f"step_{progress.step:08d}"
        partial = self.folder / f".{final.name}.partial"
        self.mesh.on_rank_0(lambda: shutil.rmtree(partial, ignore_errors=True))
        writer = FileSystemWriter(partial)
        writer.save_id = final.name  # in place of a random one: the same run writes the same bytes
        try:
            with one_process_is_fine():
                dcp.save(
                    tensors,
                    storage_writer=writer,
                    process_group=self.mesh.group,
                    no_dist=self.mesh.world_size == 1,
                )
        except CheckpointException as error:  # no Exception: `except Exception` would miss it
            raise UserError(
                f"{final}: could not be written ({_cause(error)}); most likely the disk is full: free some"
                " space and run the same command again, it goes on from the checkpoint before"
            ) from None
        # Each rank reads back what it has written: rank 0 alone would take minutes over a large model, while
        # all wait.
        own = [manifest.record(path, partial) for path in sorted(partial.glob(f"__{self.mesh.rank}_*"))]
        records = [record for of_rank in self.mesh.all_gather_object(own) for record in of_rank]
        self.mesh.on_rank_0(lambda: self._seal(partial, final, records, progress))

    def _seal(self, partial: Path, final: Path, records: list[dict], progress: Progress) -> None:
        with manifest.atomic_write(partial / "config.yaml", "w") as file:
            yaml.safe_dump(to_dict(self.config), file, sort_keys=False)
        self.tokenizer.save(partial / "tokenizer")
        seal(partial, progress, self.data, records)
        shutil.rmtree(final, ignore_errors=True)  # a broken one that was fallen back from
        os.rename(partial, final)
        manifest.sync_directory(self.folder)
        for old in _superfluous(_steps(self.folder), progress.step, self.config.checkpoint):
            os.rename(old, doomed := self.folder / f".{old.name}.partial")
            shutil.rmtree(doomed)


def seal(folder: Path, progress: Progress, data: dict | None, records: list[dict] = []) -> None:  # noqa: B006 - only read
    """Writes state.json. data: batches.identity; None where there are weights alone.

    records: of files that have one already.
    """
    known = {record["name"]: record for record in records}
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("run.json", "state.json")]
    files = [known.get(p.name) or manifest.record(p, folder) for p in paths]
    files = [{k: f[k] for k in ("name", "bytes", "xxh3")} for f in files]
    manifest.write_json(folder / "state.json", {**dataclasses.asdict(progress), "data": data, "files": files})


def _superfluous(steps: list[Path], step: int, config: CheckpointConfig) -> list[Path]:
    """What goes once `step` is written. steps: newest first."""
    later = [p for p in steps if _step(p) > step]  # broken ones that were fallen back from
    mine = [p for p in steps if _step(p) <= step]
    every = config.save_retain_interval
    old = (
        [p for p in mine[config.keep_last :] if every is None or _step(p) % every] if config.keep_last else []
    )
    return later + old


def _cause(error: CheckpointException) -> str:
    """The first rank's error, in its own first line."""
    rank, (cause, _) = min(error.failures.items())
    return (
        f"rank {rank}:"
        f" {cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause).splitlines()[0]}"
    )


@contextlib.contextmanager
def one_process_is_fine():
    """Without torch.distributed's warning that it is not started; a mistake of the user's that it wraps comes
    out as itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, UserError)), error) from None


def named_tensors(
    model: nn.Module,
    weights: Mapping[str, Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Tensor]:
    """Name -> tensor (or DTensor) of everything kept, zeros where the optimizer has not stepped yet.

    weights: the float32 ones by name, where the model computes in others; the optimizer steps these.
    """
    weights = dict(model.named_parameters()) if weights is None else weights
    tensors = {f"model.{name}": p.detach() for name, p in weights.items()}
    tensors |= {f"model.{name}": b for name, b in _buffers(model).items()}
    for name, weight in weights.items() if optimizer is not None else ():
        if not weight.requires_grad:  # frozen: it has none
            continue
        state = optimizer.state[weight]
        for moment in moments(optimizer):
            if state.get(moment) is None:
                state[moment] = torch.zeros_like(weight)
                state.setdefault("step", torch.zeros((), device=weight.device))
            tensors[f"{moment}.{name}"] = state[moment]
    return tensors


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that last longer than a step."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _steps(folder: Path) -> list[Path]:
    """The step directories of a run, newest first."""
    return sorted(
        (p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)), key=_step, reverse=True
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def newest_whole(folder: Path, mesh: Mesh | None = None) -> Path | None:
    """The newest checkpoint of a run whose files are all there and unchanged; says so when it passes over a
    broken one.

    The same on all ranks of `mesh`, each of which reads a part of the files. Raises Failure when there are
    checkpoints but all are broken.
    """
    mesh = mesh or Mesh(0, 1, torch.device("cpu"))
    steps = mesh.broadcast_object(_steps(folder))
    for path in steps:
        wrong = next(
            filter(None, mesh.all_gather_object(whats_wrong(path, mesh.rank, mesh.world_size))), None
        )
        if wrong is None:
            return path
        if mesh.rank == 0 and path != steps[-1]:
            print(f"mt: {path}: {wrong}; falling back to the checkpoint before it", file=sys.stderr)
    if steps:
        raise Failure(
            f"{folder}: none of its checkpoints is whole ({steps[-1].name}: {wrong}); start again with"
            " --overwrite, or with --load from elsewhere"
        )
    return None


def whats_wrong(path: Path, first: int = 0, every: int = 1) -> str | None:
    """Why a checkpoint cannot be trusted, or None.

    Of its files every `every`-th is read, from the first one on.
    """
    if not (path / "state.json").exists():
        return "has no state.json: not a whole checkpoint"
    try:
        files = manifest.read_json(path / "state.json")["files"]
    except (UserError, KeyError):
        return "its state.json is not whole"
    for file in files[first::every]:
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
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}


class Reader(FileSystemReader):
    """torch's reader of checkpoint directories, which makes nothing of a pickle but what its writer puts
    there.

    torch itself unpickles `.metadata` without restraint, so that a stranger's checkpoint could run any code.
    """

    def read_metadata(self, *args, **kwargs) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ValueError) as error:
            raise UserError(
                f"{file}: not the metadata of a checkpoint ({error}); do not use it, take another checkpoint"
            ) from None
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if name in _METADATA.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def find(path: str | Path, step: int | None = None) -> Path:
    """The step directory meant by a path: itself, or in a run's directory that of a step, by default the
    newest whole one.

    Another library's checkpoint is what it is: see convert.foreign.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; check the path")
    if is_foreign(path) and step is None:
        return path
    if step is not None:
        run, path = path, path / f"step_{step:08d}"
        if not path.exists():
            raise UserError(
                f"{run}: has no checkpoint of step {step}, only of"
                f" {', '.join(str(_step(p)) for p in reversed(_steps(run))) or 'none'}; choose one with"
                " --ckpt-step"
            )
    if (path / "state.json").exists() or re.fullmatch(r"step_\d+", path.name):
        if wrong := whats_wrong(path):
            raise UserError(f"{path}: {wrong}; use another checkpoint")
        return path
    try:
        found = newest_whole(path) if path.is_dir() else None
    except Failure as failure:
        raise UserError(f"{str(failure).partition('; start')[0]}; use another run's") from None
    if found is None:
        raise UserError(f"{path}: holds no checkpoint of mt train (step_NNNNNNNN); check the path")
    return found


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    mesh: Mesh | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    part: bool = False,
    beyond: Callable[[str], bool] | None = None,
) -> Progress:
    """Fills a model and, if given, its optimizer from a step directory written at any layout; returns its
    progress.

    weights: see named_tensors. part: whether the checkpoint may hold weights that the model lacks. beyond:
    tells by the name which weights of the model the checkpoint lacks; they stay as they are. Raises UserError
    when the checkpoint is of another shape, or has no moments for the optimizer.
    """
    state = {} if is_foreign(path) else manifest.read_json(path / "state.json")
    check_shapes(path, model, part=part, beyond=beyond)
    if optimizer is not None and (missing := [m for m in moments(optimizer) if m not in held_moments(path)]):
        raise UserError(
            f"{path}: has no {missing[0]} for the optimizer; give --no-load-optim to begin with new moments"
        )
    tensors = named_tensors(model, weights, optimizer)
    if beyond is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not beyond(name)}
    if optimizer is not None and (
        missing := sorted(tensors.keys() - Reader(path).read_metadata().state_dict_metadata)
    ):
        raise UserError(
            f"{path}: has no {missing[0]}, as a run leaves it that did not train all weights; give"
            " --no-load-optim to begin with new moments"
        )
    with one_process_is_fine():
        dcp.load(
            tensors, storage_reader=reader(path, model.config), no_dist=mesh is None or mesh.world_size == 1
        )
    progress = Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress) if f.name in state})
    progress.updates = state.get("updates", progress.step) if optimizer is not None else 0
    for own in optimizer.state.values() if optimizer is not None else ():
        if "step" in own:
            own["step"].fill_(progress.updates)
    return progress


def reader(path: Path, config: ModelConfig) -> StorageReader:
    """What reads a step directory, or another library's checkpoint. config: of the model to fill."""
    return ForeignReader(open_foreign(path), config) if is_foreign(path) else Reader(path)


# of an optimizer's state, those that are tensors like their weight
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer keeps for every weight, by torch's names."""
    if isinstance(optimizer, torch.optim.AdamW):
        return MOMENTS[:2]
    return MOMENTS[2:] if optimizer.defaults["momentum"] else ()


def held_moments(path: Path) -> set[str]:
    """Which of an optimizer's moments a step directory holds."""
    return {name.split(".", 1)[0] for name in Reader(path).read_metadata().state_dict_metadata} & set(MOMENTS)


def position(path: Path) -> tuple[dict, int] | None:
    """(identity of the data, samples consumed of it) of a step directory; None where it holds weights alone."""
    if is_foreign(path) or manifest.read_json(path / "state.json")["data"] is None:
        return None
    state = manifest.read_json(path / "state.json")
    return state["data"], state["consumed_samples"]


def check_shapes(
    path: Path, model: nn.Module, *, part: bool = False, beyond: Callable[[str], bool] | None = None
) -> None:
    """Raises UserError, with the first difference, where a step directory holds another model's weights.

    part, beyond: see load.
    """
    held = reader(path, model.config).read_metadata().state_dict_metadata
    held = {
        name.removeprefix("model."): tuple(m.size) for name, m in held.items() if name.startswith("model.")
    }
    wanted = {
        name: tuple(p.shape)
        for name, p in [*model.named_parameters(), *_buffers(model).items()]
        if beyond is None or not beyond(name)
    }
    for name in [*wanted, *(held if not part else ())]:
        if held.get(name) != wanted.get(name):
            there, here = (f"{shapes[name]}" if name in shapes else "absent" for shapes in (held, wanted))
            remedy = (
                f"--hf {path}"
                if (path / "config.json").exists()
                else f"the model's settings as in {path / 'config.yaml'}"
            )
            raise UserError(
                f"{path}: holds another model: {name} is {there} there and {here} here; give {remedy}"
            )


@configuration(group="data")
class Lengths:
    """Of the samples that a model was trained on."""

    seq_length: int = option(help="tokens of a sample")


@configuration()
class ModelSettings:
    """The part of a saved configuration that a model's users need."""

    model: ResolvedModelConfig
    data: Lengths


def saved_settings(path: Path) -> ModelSettings:
    """From a step directory's config.yaml, or from another library's settings."""
    if is_foreign(path):
        foreign = open_foreign(path)
        return ModelSettings(model=foreign.config, data=Lengths(seq_length=foreign.seq_length))
    tree = read_yaml(path / "config.yaml")
    data = {name: value for name, value in tree.get("data", {}).items() if name == "seq_length"}
    model = known_settings(ModelConfig, tree.get("model", {}), path)
    return build(ModelSettings, (str(path / "config.yaml"), {"model": model, "data": data}))


def known_settings(cls, tree: dict, path: Path) -> dict:
    """Of a checkpoint's settings of a group those that there still are; says which are gone, and what they
    were.

    What such a setting did to the weights' shapes is found by check_shapes.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if gone := [f"{name} = {value}" for name, value in tree.items() if name not in known]:
        print(
            f"mt: {path / 'config.yaml'}: {', '.join(gone)}: no setting of this version of mt, and left out",
            file=sys.stderr,
        )
    return {name: value for name, value in tree.items() if name in known}


def load_model(path: str | Path, mesh: Mesh | None = None) -> tuple[nn.Module, Tokenizer, ModelSettings]:
    """(model in eval mode on the GPU if there is one, its tokenizer, its settings) from a run's or a step's
    directory, or from Hugging Face's.

    mesh: its tensor-parallel ranks share the matrices, and each reads its own parts of them.
    """
    path = find(path)
    settings = saved_settings(path)
    tokenizer = open_foreign(path).tokenizer() if is_foreign(path) else load_directory(path / "tokenizer")
    if mesh is None or mesh.tp.size == 1:
        model = build_model(settings.model).eval().requires_grad_(False)
        load(path, model)
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, settings
    check_layout(ParallelConfig(tensor_model_parallel_size=mesh.tp.size), settings.model, {})
    with torch.device("meta"):
        model = build_model(settings.model).eval().requires_grad_(False)
    cut_for_use(model, mesh)
    model.to_empty(device=mesh.device)
    load(path, model, mesh=mesh)
    return model, tokenizer, settings
