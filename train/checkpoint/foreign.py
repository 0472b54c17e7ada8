"""ForeignCheckpoint: a checkpoint of another library, from which only weights are read, one at a time.

torch.distributed.checkpoint loads from it as from a native checkpoint, at any parallel layout.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.futures import Future

from ..model.config import ResolvedModelConfig
from .base import Checkpoint, Progress, weight_shapes


class ForeignCheckpoint(Checkpoint):
    """Weights, settings and perhaps a tokenizer; no optimizer moments, and no position in the data."""

    @property
    def run_settings(self) -> dict[str, Any]:
        return {}

    @property
    def data_identity(self) -> None:
        return None

    def progress(self) -> Progress:
        return Progress()

    def moment_names(self) -> tuple[str, ...]:
        return ()

    def reader(self, config: ResolvedModelConfig) -> StorageReader:
        return WeightReader(self, config)


class WeightReader(StorageReader):
    """Reads a checkpoint weight by weight: reads each whole, copies the slices of the load plan, frees it.

    config: of the model that loads it; its vocabulary may be padded to another number of rows.
    """

    def __init__(self, checkpoint: Checkpoint, config: ResolvedModelConfig):
        multiple = config.make_vocab_size_divisible_by
        self.checkpoint = checkpoint
        self.shapes = weight_shapes(
            dataclasses.replace(checkpoint.config, make_vocab_size_divisible_by=multiple)
        )

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        properties = TensorProperties(dtype=torch.float32)
        unsharded = {
            f"model.{name}": TensorStorageMetadata(
                properties, shape, [ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)]
            )
            for name, shape in self.shapes.items()
        }
        return Metadata(dict(unsharded), storage_meta=StorageMeta())

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            items.setdefault(item.storage_index.fqn.removeprefix("model."), []).append(item)
        for name, pieces in items.items():
            weight = self.checkpoint.read_weight(name, self.shapes[name])
            for piece in pieces:
                bounds = zip(piece.storage_offsets, piece.lengths)
                source = weight[tuple(slice(start, start + length) for start, length in bounds)]
                target = planner.resolve_tensor(piece).detach()
                target.copy_(source)
                planner.commit_tensor(piece, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: object = None) -> None:
        pass

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object
    ) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        return True
