"""Checkpoint, the interface of all checkpoint formats, and how a model loads from one.

`open.open_checkpoint(path)` returns one. A Checkpoint has settings and a tokenizer, reads weights on demand,
and loads them into a model at any parallel layout through torch.distributed.checkpoint. Each format has a
subclass: native.py, huggingface.py, meta.py, megatron.py.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ...core.config import UserError
from ...core.progress import activity
from ...tokenizer.tokenizer import Tokenizer
from ..model.base import Model
from ..model.config import ResolvedModelConfig
from ..model.family import build_model
from ..parallel.mesh import Mesh, ParallelConfig
from ..parallel.parallelize import check_layout, divide_for_inference


@dataclasses.dataclass
class Progress:
    """How far a training run has come."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    updates: int = 0  # steps that updated the weights since the optimizer's moments were zero
    skipped_steps: int = 0  # steps that changed no weights
    skipped_samples: int = 0  # samples of the skipped steps; the schedules do not count them
    loss_scale: dict = dataclasses.field(default_factory=dict)  # precision.LossScale.state
    # (loss, gradient norm) of the last steps, which spikes are compared with
    recent: list[list[float]] = dataclasses.field(default_factory=list)
    # losses of the steps since the last log line
    pending_losses: list[float] = dataclasses.field(default_factory=list)


class Checkpoint(abc.ABC):
    """A checkpoint for reading.

    Prints as its path; pickles as its class and path, so that ranks may exchange it.
    """

    library: ClassVar[str]  # "mt", "Hugging Face", "Meta" or "Megatron-LM"
    path: Path  # a step directory of mt, or the directory of another library
    config: ResolvedModelConfig  # the model's, resolved; the vocabulary has as many rows as the checkpoint
    seq_length: int  # tokens of a training sample, if the settings have it
    step: int

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)

    @property
    @abc.abstractmethod
    def run_settings(self) -> dict[str, Any]:
        """The settings of the run that wrote it, by group and name; {} for other libraries."""

    @property
    @abc.abstractmethod
    def data_identity(self) -> dict[str, Any] | None:
        """The training data that `progress` counts (batches.identity); None for weights only."""

    @property
    @abc.abstractmethod
    def settings_remedy(self) -> str:
        """The flags that give a model the settings of this checkpoint, for messages."""

    @abc.abstractmethod
    def progress(self) -> Progress:
        """The run's progress; zeros for a checkpoint of weights only."""

    @abc.abstractmethod
    def moment_names(self) -> Collection[str]:
        """The optimizer's moments in the checkpoint, by the names of MOMENT_NAMES."""

    @abc.abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """The model's tokenizer; raises UserError if there is none."""

    @abc.abstractmethod
    def read_weight(self, name: str, shape: torch.Size) -> Tensor:
        """One of the model's weights by mt's name, float32, with as many vocabulary rows as `shape` has."""

    @abc.abstractmethod
    def reader(self, config: ResolvedModelConfig) -> StorageReader:
        """The reader for torch.distributed.checkpoint. config: of the model that loads the weights."""

    def encoder_weights(self) -> Mapping[str, Tensor]:
        """The weights of a BERT by mt's names; those of its pretraining heads may be missing."""
        return self.load_model().state_dict()

    def check_shapes(
        self,
        model: nn.Module,
        *,
        allow_extra: bool = False,
        allow_missing: Callable[[str], bool] | None = None,
    ) -> None:
        """Raises UserError, with the first difference, if the checkpoint is of another model: see `load`."""
        self._check_shapes(self.reader(_config_of(model)), model, allow_extra, allow_missing)

    def _check_shapes(
        self,
        reader: StorageReader,
        model: nn.Module,
        allow_extra: bool,
        allow_missing: Callable[[str], bool] | None,
    ) -> None:
        there = {
            name.removeprefix("model."): tuple(tensor.size)
            for name, tensor in reader.read_metadata().state_dict_metadata.items()
            if name.startswith("model.") and isinstance(tensor, TensorStorageMetadata)
        }
        here = {
            name: tuple(tensor.shape)
            for name, tensor in [*model.named_parameters(), *persistent_buffers(model).items()]
            if allow_missing is None or not allow_missing(name)
        }
        for name in [*here, *(there if not allow_extra else ())]:
            if there.get(name) != here.get(name):
                found, wanted = (f"{s[name]}" if name in s else "absent" for s in (there, here))
                raise UserError(
                    f"{self}: holds another model: {name} is {found} there and {wanted} here; give"
                    f" {self.settings_remedy}"
                )

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        mesh: Mesh | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        allow_extra: bool = False,
        allow_missing: Callable[[str], bool] | None = None,
    ) -> Progress:
        """Loads a model and, if given, its optimizer, at any parallel layout; returns the run's progress.

        weights: see named_tensors. allow_extra: whether the checkpoint may hold weights that the model lacks.
        allow_missing: whether the checkpoint may lack the weight of a name; such weights stay as they
        are. Raises UserError if shapes differ, or if there are no moments for the optimizer.
        """
        reader = self.reader(_config_of(model))
        self._check_shapes(reader, model, allow_extra, allow_missing)
        if optimizer is not None:
            missing = [name for name in moment_names(optimizer) if name not in self.moment_names()]
            if missing:
                raise UserError(
                    f"{self}: has no {missing[0]} for the optimizer; give --no-load-optim to begin with new"
                    " moments"
                )
        tensors = named_tensors(model, weights, optimizer)
        if allow_missing is not None:
            of_weight = lambda name: name.split(".", 1)[1]  # without `model.`, `exp_avg.` ...
            tensors = {name: t for name, t in tensors.items() if not allow_missing(of_weight(name))}
        if optimizer is not None:
            missing = sorted(tensors.keys() - reader.read_metadata().state_dict_metadata)
            if missing:
                raise UserError(
                    f"{self}: has no {missing[0]}, as a run leaves it that did not train all weights; give"
                    " --no-load-optim to begin with new moments"
                )
        with activity(f"loading {self}"), dcp_errors_unwrapped():
            dcp.load(tensors, storage_reader=reader, no_dist=mesh is None or mesh.world_size == 1)
        progress = self.progress()
        if optimizer is None:
            progress.updates = 0
        else:
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(progress.updates)
        return progress

    def load_model(self, mesh: Mesh | None = None) -> Model:
        """The model in eval mode, on the GPU if there is one.

        mesh: its tensor-parallel ranks divide the matrices, and each reads its own shards.
        """
        if mesh is None or mesh.tp.size == 1:
            model = build_model(self.config).eval().requires_grad_(False)
            self.load(model)
            return model.to("cuda" if torch.cuda.is_available() else "cpu")
        check_layout(ParallelConfig(tensor_model_parallel_size=mesh.tp.size), self.config, {})
        with torch.device("meta"):
            model = build_model(self.config).eval().requires_grad_(False)
        divide_for_inference(model, mesh)
        model.to_empty(device=mesh.device)
        self.load(model, mesh=mesh)
        return model


def _config_of(model: nn.Module) -> ResolvedModelConfig:
    return cast(ResolvedModelConfig, model.config)


def named_tensors(
    model: nn.Module,
    weights: Mapping[str, Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Tensor]:
    """Name -> tensor (or DTensor) of everything in a checkpoint.

    Moments are zeros before the optimizer's first step.

    weights: the float32 weights by name, if the model computes in another dtype; the optimizer updates
    these.
    """
    weights = dict(model.named_parameters()) if weights is None else weights
    tensors = {f"model.{name}": p.detach() for name, p in weights.items()}
    tensors |= {f"model.{name}": b for name, b in persistent_buffers(model).items()}
    if optimizer is None:
        return tensors
    for name, weight in weights.items():
        if not weight.requires_grad:  # the optimizer has no state for frozen weights
            continue
        state = optimizer.state[weight]
        for moment in moment_names(optimizer, weight):
            if state.get(moment) is None:
                state[moment] = torch.zeros_like(weight)
                state.setdefault("step", torch.zeros((), device=weight.device))
            tensors[f"{moment}.{name}"] = state[moment]
    return tensors


def weight_shapes(config: ResolvedModelConfig) -> dict[str, torch.Size]:
    """Name -> shape of every weight of a model, and of the buffers that are saved with them."""
    with torch.device("meta"):
        model = build_model(config)
    weights = {name: parameter.shape for name, parameter in model.named_parameters()}
    return weights | {name: buffer.shape for name, buffer in persistent_buffers(model).items()}


def stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight in files of `dtype` for others; name: ours, or Megatron-LM's.

    Both transformers and Megatron-LM keep the bias on the choice of experts in float32: its steps, 0.001, are
    smaller than the precision of bfloat16.
    """
    return torch.float32 if name.endswith("router.expert_bias") else dtype


def shapes_within(
    config: ResolvedModelConfig, tensors: int, numbers: int, place: object
) -> dict[str, torch.Size]:
    """As weight_shapes, for settings of others; raises UserError if they need more than their files hold.

    tensors, numbers: in all files of the checkpoint, from their headers. Settings may say 10^7 layers, or a
    width of 10^9: such a model takes hours to build, even without memory for its values.
    """
    layers = {"num_layers": config.num_layers, "decoder_num_layers": config.decoder_num_layers or 0}
    layers["mtp_num_layers"] = config.mtp_num_layers
    if config.retro_add_retriever:
        layers["retro_encoder_layers"] = config.retro_encoder_layers
    for name, count in layers.items():
        if count > tensors:
            raise UserError(
                f"{place}: its settings have {name} = {count:,}, and its files only {tensors:,} tensors;"
                " fetch it again"
            )
    try:
        shapes = weight_shapes(config)
    except (RuntimeError, OverflowError):  # torch: the product of a weight's sizes has more than 63 bits
        raise UserError(
            f"{place}: its settings ask for weights of more than 2^63 bytes, and its files hold"
            f" {numbers:,} numbers; fetch it again"
        ) from None
    for name, shape in shapes.items():
        if shape.numel() > numbers:
            raise UserError(
                f"{place}: its settings give {name} the shape {tuple(shape)}, and all of its files hold"
                f" {numbers:,} numbers; fetch it again"
            )
    return shapes


def pad_vocabulary(weight: Tensor, rows: int, vocab_size: int) -> Tensor:
    """A weight of (vocabulary rows, ...) with `rows` rows: zeros after vocab_size are added or removed."""
    if len(weight) == rows:
        return weight
    weight = weight[: min(vocab_size, rows)]
    return torch.cat([weight, weight.new_zeros(rows - len(weight), *weight.shape[1:])])


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model that are part of its state."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


@runtime_checkable
class MixedMoments(Protocol):
    """An optimizer whose moments differ from weight to weight (train/muon.py)."""

    def moment_names(self, weight: Tensor) -> tuple[str, ...]:
        """The moments of a weight."""


# The entries of torch's optimizers' state that are tensors of a weight's shape.
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
SGD_MOMENTS = ("momentum_buffer",)
MOMENT_NAMES = ADAM_MOMENTS + SGD_MOMENTS


def moment_names(optimizer: torch.optim.Optimizer, weight: Tensor | None = None) -> tuple[str, ...]:
    """The moments that an optimizer keeps for a weight, or for any weight, by torch's names."""
    if isinstance(optimizer, MixedMoments):
        return MOMENT_NAMES if weight is None else optimizer.moment_names(weight)
    if isinstance(optimizer, torch.optim.AdamW):
        return ADAM_MOMENTS
    return SGD_MOMENTS if optimizer.defaults["momentum"] else ()


@contextlib.contextmanager
def dcp_errors_unwrapped() -> Iterator[None]:
    """For calls of torch.distributed.checkpoint: raises a UserError instead of the error that wraps it.

    Suppresses its warning that torch.distributed is not started: one process is fine.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, UserError)), error) from None
