"""mt's own checkpoint format: torch.distributed.checkpoint directories, which any parallel layout can load.

    SAVE/step_00000300/
        .metadata, __R_N.distcp   model and optimizer tensors, each rank's shards; their names are model.NAME,
                                  exp_avg.NAME and exp_avg_sq.NAME, or momentum_buffer.NAME
        config.yaml               the resolved configuration
        tokenizer/                the tokenizer
        state.json                progress (step, samples and tokens consumed ...), identity of the data, size
                                  and digest of every other file; written last

A checkpoint is written under a name that begins with a dot, and renamed when it is complete. With
--async-save a thread writes it from copies while training continues; the bytes are the same. Weights are
float32, whatever dtype the model computes in. States of random generators are not saved: each micro-batch
seeds its own (step.py).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
import torch.distributed.checkpoint as dcp
import xxhash
import yaml
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ...core import manifest, paths
from ...core.config import Failure, UserError, build, check, configuration, option, to_dict
from ...core.parsing import MADE_BY_MT, AnyFloat, Count, check_value, read_yaml
from ...tokenizer.tokenizer import Tokenizer, load_directory
from ..model.base import Model
from ..model.config import ModelConfig, ResolvedModelConfig
from ..model.family import build_model
from ..parallel.mesh import Mesh
from .base import (
    MOMENT_NAMES,
    Checkpoint,
    Progress,
    dcp_errors_unwrapped,
    named_tensors,
    pad_vocabulary,
    shapes_within,
    weight_shapes,
)
from .safe_reader import SafeFileSystemReader


@configuration(group="checkpoint")
class CheckpointConfig:
    """Where checkpoints are written and read."""

    save: str = option(help="directory for checkpoints, log and manifest", role="output")
    load: str | None = option(
        None,
        "start from the checkpoint in another run's directory, or from one of its step_* directories; with"
        " --finetune also from a directory of Hugging Face, Meta or Megatron-LM",
        role="input",
    )
    finetune: bool = option(
        False, "take only the weights from --load: steps, data position and optimizer start anew"
    )
    ckpt_step: int | None = option(None, "the step of --load to start from (default: its newest)")
    no_load_optim: bool = option(
        False, "take weights and data position from --load, but start with new optimizer moments"
    )
    use_checkpoint_opt_param_scheduler: bool = option(
        False, "take all settings of the optimizer from --load (default: those given here apply)"
    )
    exit_on_missing_checkpoint: bool = option(
        False,
        "stop at once if there is no checkpoint to resume from, instead of starting anew",
        role="runtime",
    )
    save_interval: int = option(
        1000, "steps from one checkpoint to the next; the last step is always saved", role="runtime"
    )
    async_save: bool = option(
        False,
        "write checkpoints while training goes on; needs memory for one more copy of their tensors",
        role="runtime",
    )
    no_save_optim: bool = option(
        False,
        "save checkpoints without the optimizer's moments: a third of the size, but a run that starts from"
        " one has new moments",
    )
    keep_last: int = option(2, "number of newest checkpoints to keep; 0 keeps all", role="runtime")
    save_retain_interval: int | None = option(
        None, "always keep the checkpoints of steps that are multiples of this", role="runtime"
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


class Saver:
    """Writes the checkpoints of one run, from all ranks.

    With --async-save a thread writes them, one checkpoint at a time.
    """

    def __init__(self, config: Any, *, tokenizer: Tokenizer, data: dict, mesh: Mesh):
        """config: the run's, resolved, with a CheckpointConfig in `checkpoint`.

        data: batches.identity of its data.
        """
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
        """Writes `step_N`, then removes checkpoints that need not be kept (keep_last, save_retain_interval).

        Waits until the previous checkpoint is written, and raises the error of its thread if there was one.
        """
        self.wait()
        tensors = named_tensors(model, weights, None if self.config.checkpoint.no_save_optim else optimizer)
        if not self.config.checkpoint.async_save:
            self._write(tensors, progress)
            return
        copies = {name: t.clone() if t.device.type == "cpu" else t.cpu() for name, t in tensors.items()}
        self._thread = threading.Thread(
            target=self._write_in_thread, args=(copies, copy.deepcopy(progress)), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last checkpoint is complete."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_in_thread(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        try:
            self._write(tensors, progress)
        except BaseException as error:  # the main thread raises it in its next `wait`
            self._error = error

    def _write(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        final = self.folder / f"step_{progress.step:08d}"
        partial = self.folder / f".{final.name}.partial"
        self.mesh.on_rank_0(lambda: paths.remove(partial, ignore_errors=True))
        writer = FileSystemWriter(partial)
        writer.save_id = final.name  # by default random; so the same run writes the same bytes
        try:
            with dcp_errors_unwrapped():
                dcp.save(
                    tensors,
                    storage_writer=writer,
                    process_group=self.mesh.group,
                    no_dist=self.mesh.world_size == 1,
                )
        except CheckpointException as error:  # a BaseException: `except Exception` would miss it
            raise UserError(
                f"{final}: could not be written ({_cause(error)}); most likely the disk is full: free some"
                " space and run the same command again, it resumes from the checkpoint before"
            ) from None
        # Each rank reads back what it has written. Rank 0 alone would take minutes for a large model, while
        # all wait.
        own = [manifest.record(path, partial) for path in sorted(partial.glob(f"__{self.mesh.rank}_*"))]
        records = [record for of_rank in self.mesh.all_gather_object(own) for record in of_rank]
        self.mesh.on_rank_0(lambda: self._seal(partial, final, records, progress))

    def _seal(self, partial: Path, final: Path, records: list[dict], progress: Progress) -> None:
        with manifest.atomic_write(partial / "config.yaml", "w") as file:
            yaml.safe_dump(to_dict(self.config), file, sort_keys=False)
        self.tokenizer.save(partial / "tokenizer")
        seal(partial, progress, self.data, records)
        # a damaged one, if this run fell back to the previous one
        paths.remove(final, ignore_errors=True)
        os.rename(partial, final)
        manifest.sync_directory(self.folder)
        for old in _superfluous(_steps(self.folder), progress.step, self.config.checkpoint):
            os.rename(old, doomed := self.folder / f".{old.name}.partial")
            paths.remove(doomed)


def seal(folder: Path, progress: Progress, data: dict | None, records: Iterable[dict] = ()) -> None:
    """Writes state.json. data: batches.identity; None for a checkpoint of weights only.

    records: manifest.record of the files whose digests are known already.
    """
    known = {record["name"]: record for record in records}
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("run.json", "state.json")]
    files = [known.get(p.name) or manifest.record(p, folder) for p in found]
    files = [{k: f[k] for k in ("name", "bytes", "xxh3")} for f in files]
    manifest.write_json(folder / "state.json", {**dataclasses.asdict(progress), "data": data, "files": files})


def _superfluous(steps: list[Path], step: int, config: CheckpointConfig) -> list[Path]:
    """The step directories to remove once `step` is written. steps: newest first."""
    later = [p for p in steps if _step(p) > step]  # damaged ones, if this run fell back to an earlier one
    mine = [p for p in steps if _step(p) <= step]
    every = config.save_retain_interval
    old = mine[config.keep_last :] if config.keep_last else []
    return later + [p for p in old if every is None or _step(p) % every]


def _cause(error: CheckpointException) -> str:
    """The first line of the first rank's error."""
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, OSError) and cause.strerror:
        return f"rank {rank}: {cause.strerror}"
    return f"rank {rank}: {str(cause).splitlines()[0]}"


class SavedFile(TypedDict):
    """A file of a checkpoint, in its state.json."""

    name: str
    bytes: Count
    xxh3: str


class State(TypedDict):
    """The content of a state.json: the fields of Progress, `data` and `files`."""

    step: Count
    consumed_samples: Count
    consumed_tokens: Count
    updates: NotRequired[Count]  # these are not in older checkpoints
    skipped_steps: NotRequired[Count]
    skipped_samples: NotRequired[Count]
    loss_scale: NotRequired[dict[str, float]]
    recent: NotRequired[list[tuple[AnyFloat, AnyFloat]]]
    pending_losses: NotRequired[list[AnyFloat]]
    data: dict[str, Any] | None
    files: list[SavedFile]


@configuration(group="data")
class SavedDataSettings:
    """The settings of the group `data` that are read from a saved configuration."""

    seq_length: int = option(help="tokens of a sample")


class SavedGroups(TypedDict, total=False):
    """The groups of a saved configuration."""

    model: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]


@configuration()
class SavedSettings:
    """The settings that are read from a saved configuration to use its model."""

    model: ResolvedModelConfig
    data: SavedDataSettings


class NativeCheckpoint(Checkpoint):
    """A step directory.

    Its files are read on demand: config.yaml may be that of a classifier (eval/).
    """

    library = "mt"

    @functools.cached_property
    def run_settings(self) -> dict[str, Any]:
        return check_value(read_yaml(self.path / "config.yaml"), SavedGroups, self.path / "config.yaml")

    @functools.cached_property
    def _settings(self) -> SavedSettings:
        data = self.run_settings.get("data", {})
        tree = {
            "model": known_settings(ModelConfig, self.run_settings.get("model", {}), self.path),
            "data": {name: value for name, value in data.items() if name == "seq_length"},
        }
        return build(SavedSettings, (str(self.path / "config.yaml"), tree))

    @functools.cached_property
    def config(self) -> ResolvedModelConfig:  # type: ignore[override]
        config = self._settings.model
        tensors = self._model_sizes()
        shapes_within(config, len(tensors), sum(map(math.prod, tensors)), self.path)
        return config

    def _model_sizes(self) -> list[torch.Size]:
        """The sizes of the model's tensors, by .metadata."""
        described = self.reader().read_metadata().state_dict_metadata.items()
        return [
            tensor.size
            for name, tensor in described
            if name.startswith("model.") and isinstance(tensor, TensorStorageMetadata)
        ]

    def load_model(self, mesh: Mesh | None = None) -> Model:
        with torch.device("meta"):  # before anything is allocated
            self.check_shapes(build_model(self.config))
        return super().load_model(mesh)

    @functools.cached_property
    def seq_length(self) -> int:  # type: ignore[override]
        return self._settings.data.seq_length

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """The content of state.json; raises UserError for a value that mt does not write."""
        return read_state(self.path)

    @functools.cached_property
    def step(self) -> int:  # type: ignore[override]
        return self.state["step"]

    @property
    def data_identity(self) -> dict[str, Any] | None:
        return self.state["data"]

    @property
    def settings_remedy(self) -> str:
        return f"the model's settings as in {self.path / 'config.yaml'}"

    def progress(self) -> Progress:
        names = {field.name for field in dataclasses.fields(Progress)}
        saved = {name: copy.deepcopy(value) for name, value in self.state.items() if name in names}
        return Progress(**{"updates": self.step, **saved})  # older checkpoints do not tell the updates

    def moment_names(self) -> set[str]:
        names = self.reader().read_metadata().state_dict_metadata
        return {name.split(".", 1)[0] for name in names} & set(MOMENT_NAMES)

    def load_tokenizer(self) -> Tokenizer:
        return load_directory(self.path / "tokenizer")

    def read_weight(self, name: str, shape: torch.Size) -> Tensor:
        reader = self.reader()
        # dcp.load logs a traceback and looks for other files if it is the first to read a broken .metadata
        reader.read_metadata()
        weight = torch.empty(self._shapes[name])
        with dcp_errors_unwrapped():
            dcp.load({f"model.{name}": weight}, storage_reader=reader, no_dist=True)
        return weight if weight.shape == shape else pad_vocabulary(weight, shape[0], self.config.vocab_size)

    @functools.cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return weight_shapes(self.config)

    def reader(self, config: ResolvedModelConfig | None = None) -> SafeFileSystemReader:
        return self._reader

    @functools.cached_property
    def _reader(self) -> SafeFileSystemReader:
        return SafeFileSystemReader(self.path)

    def weights_digest(self) -> str:
        """A digest of the files of tensors, independent of their folder."""
        files = [file for file in self.state["files"] if file["name"].endswith(".distcp")]
        return xxhash.xxh3_128(repr(files).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a step directory; raises UserError for a value that mt does not write."""
    file = path / "state.json"
    return check_value(manifest.read_json(file), State, file, MADE_BY_MT)


def known_settings(cls: type, tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a group of config.yaml that this version has; prints those that it does not have.

    check_shapes finds out whether such a setting changed the weights' shapes.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if gone := [f"{name} = {value}" for name, value in tree.items() if name not in known]:
        print(
            f"mt: {path / 'config.yaml'}: {', '.join(gone)}: no setting of this version of mt, and left out",
            file=sys.stderr,
        )
    return {name: value for name, value in tree.items() if name in known}


def find_step(path: Path, step: int | None = None) -> Path:
    """The step directory of a path: the path itself, or a step of a run's directory.

    step: None for the newest complete one. Raises UserError if there is none, or if a file is damaged or
    missing.
    """
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
        newest = newest_whole(path) if path.is_dir() else None
    except Failure as failure:
        raise UserError(f"{str(failure).partition('; start')[0]}; use another run's") from None
    if newest is None:
        raise UserError(
            f"{path}: holds no checkpoint of mt train (step_NNNNNNNN), Hugging Face, Meta or Megatron-LM;"
            " check the path"
        )
    return newest.path


def _steps(folder: Path) -> list[Path]:
    """The step directories of a run, newest first."""
    return sorted(
        (p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)), key=_step, reverse=True
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def newest_whole(folder: Path, mesh: Mesh | None = None) -> NativeCheckpoint | None:
    """The newest undamaged checkpoint of a run; prints which damaged ones it skips.

    All ranks of `mesh` return the same; each rank reads a share of the files. Raises Failure if all are
    damaged.
    """
    mesh = mesh or Mesh(0, 1, torch.device("cpu"))
    steps = mesh.broadcast_object(_steps(folder))
    for path in steps:
        found = mesh.all_gather_object(whats_wrong(path, mesh.rank, mesh.world_size))
        wrong = next(filter(None, found), None)
        if wrong is None:
            return NativeCheckpoint(path)
        if mesh.rank == 0 and path != steps[-1]:
            print(f"mt: {path}: {wrong}; falling back to the checkpoint before it", file=sys.stderr)
    if steps:
        raise Failure(
            f"{folder}: none of its checkpoints is whole ({steps[-1].name}: {wrong}); start again with"
            " --overwrite, or with --load from elsewhere"
        )
    return None


def whats_wrong(path: Path, first: int = 0, stride: int = 1) -> str | None:
    """The reason why a checkpoint is damaged, or None.

    Reads every stride-th of its files, from number `first` on.
    """
    if not (path / "state.json").exists():
        return "has no state.json: not a whole checkpoint"
    try:
        files = read_state(path)["files"]
    except UserError as error:
        return f"its state.json is not whole ({error})"
    for file in files[first::stride]:
        try:
            saved = paths.named(path, file["name"], f"{path / 'state.json'}, files")
        except UserError as error:
            return str(error)
        if not saved.exists():
            return f"{file['name']} is missing"
        if saved.stat().st_size != file["bytes"]:
            return f"{file['name']} has {saved.stat().st_size:,} bytes, not {file['bytes']:,}"
        if manifest.file_digest(saved) != file["xxh3"]:
            return f"{file['name']} has changed since it was written"
    return None
