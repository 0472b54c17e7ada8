"""A checkpoint of another library: which model it is, and its weights one at a time, at any parallel layout.

In: a directory of Hugging Face (config.json and safetensors) or of Megatron-LM (iter_NNNNNNN/mp_rank_NN/...).
Out: our settings, and what torch.distributed.checkpoint reads as if it were a checkpoint of ours that holds
weights alone.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from ...tokenizer.tokenizer import Tokenizer
from ..model.config import ModelConfig
from ..model.family import build_model


@dataclasses.dataclass(frozen=True)
class Foreign:
    """One checkpoint of another library."""

    path: Path
    library: str  # "Hugging Face", "Megatron-LM"
    config: ModelConfig  # resolved, with as many rows of vocabulary as are there
    seq_length: int  # tokens that the model was trained on at a time, as far as its settings tell
    read: Callable[[str, torch.Size], Tensor]  # one of our weights, by its name and shape; float32
    tokenizer: Callable[[], Tokenizer]  # raises UserError where there is none
    step: int = 0


def is_foreign(path: Path) -> bool:
    """Whether a directory looks like one of another library's."""
    return _library_of(path) is not None


def open_foreign(path: Path) -> Foreign:
    """Raises UserError, with the reason, for a model that is not one of ours and for files that are not
    whole.
    """
    return importlib.import_module(f".{_library_of(path)}", __package__).open_directory(path)


def _library_of(path: Path) -> str | None:
    """The module of this package that reads it."""
    if (path / "state.json").exists():
        return None
    if (
        (path / "config.json").exists()
        or (path / "model.safetensors").exists()
        or (path / "model.safetensors.index.json").exists()
    ):
        return "huggingface"
    tracked = (path / "latest_checkpointed_iteration.txt").exists()
    return (
        "megatron"
        if tracked
        or any(path.glob("mp_rank_*"))
        or (path.parent / "latest_checkpointed_iteration.txt").exists()
        else None
    )


def weight_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name -> shape of every weight of a model."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in build_model(config).named_parameters()}


def with_rows(tensor: Tensor, rows: int, vocab_size: int) -> Tensor:
    """A weight whose rows are the vocabulary's with another number of rows in all: those that pad it come or
    go.
    """
    if len(tensor) == rows:
        return tensor
    tensor = tensor[:vocab_size]
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


class ForeignReader(StorageReader):
    """What torch.distributed.checkpoint loads from: each weight is read whole and cut as the plan says, then
    forgotten.

    config: of the model that is to be filled; its vocabulary may be padded to more rows.
    """

    def __init__(self, foreign: Foreign, config: ModelConfig):
        padding = config.make_vocab_size_divisible_by
        self.shapes = weight_shapes(dataclasses.replace(foreign.config, make_vocab_size_divisible_by=padding))
        self.foreign = foreign

    def read_metadata(self, *args, **kwargs) -> Metadata:
        properties = TensorProperties(dtype=torch.float32)
        whole = {
            f"model.{name}": TensorStorageMetadata(
                properties, shape, [ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)]
            )
            for name, shape in self.shapes.items()
        }
        return Metadata(whole, storage_meta=StorageMeta())

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items: dict[str, list] = {}
        for item in plan.items:
            items.setdefault(item.storage_index.fqn.removeprefix("model."), []).append(item)
        for name, parts in items.items():
            tensor = self.foreign.read(name, self.shapes[name])
            for part in parts:
                piece = tensor[
                    tuple(
                        slice(start, start + length)
                        for start, length in zip(part.storage_offsets, part.lengths)
                    )
                ]
                target = planner.resolve_tensor(part).detach()
                target.copy_(piece)
                planner.commit_tensor(part, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id=None) -> None:
        pass

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args, **kwargs) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id) -> bool:
        return True
