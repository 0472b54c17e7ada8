"""A .bin/.idx pair and its samples for torch's DataLoader: `mt.open_dataset` and `mt.gpt_dataset`.

Both are map-style datasets: `len`, and an item for an index. The tokens are int64 arrays of their own, which
torch makes tensors of without a copy and without a warning; what training reads are read-only views of the
files in their dtype. Both can be pickled, so that a DataLoader may have workers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from ..core.config import build, check, shown
from .format import IndexedDataset, prefix_of
from .gpt_dataset import DataConfig, build_datasets
from .splits import SPLIT_NAMES


class TokenSequences:
    """The sequences of a .bin/.idx pair. Item k is an array of the tokens of sequence k, (length,) int64.

    A slice gives a list of such arrays. `mt data tokenize` writes a document as one sequence, or with
    `--split-sentences` as one sequence for each sentence; `document` returns the tokens of a whole document.
    Attributes: prefix, lengths (tokens of every sequence), num_tokens, num_documents, indexed (the
    IndexedDataset, with read-only views).
    """

    def __init__(self, indexed: IndexedDataset):
        self.indexed, self.prefix, self.lengths = indexed, indexed.prefix, indexed.lengths
        self.num_tokens = int(self.lengths.sum(dtype=np.int64))
        self.num_documents = indexed.num_documents

    def __len__(self) -> int:
        return len(self.indexed)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return self.indexed[_within(index, len(self), self.prefix, "sequences")].astype(np.int64)

    def document(self, index: int) -> np.ndarray:
        """The tokens of a document, (length,) int64."""
        at = _within(index, self.num_documents, self.prefix, "documents")
        first, last = (int(n) for n in self.indexed.document_indices[at : at + 2])
        return np.concatenate([np.empty(0, np.int64), *self[first:last]])

    def __repr__(self) -> str:
        return (
            f"<{self.prefix}: {len(self):,} sequences of {self.num_documents:,} documents,"
            f" {self.num_tokens:,} tokens, {self.indexed.dtype}>"
        )


def _within(index: int, size: int, prefix: str, unit: str) -> int:
    """The index from 0, where it may count from the end; raises IndexError beyond the end."""
    number = operator.index(index)
    if not -size <= number < size:
        raise IndexError(f"{prefix}: has {size:,} {unit}, no {number:,}")
    return number % size


def open_dataset(prefix: str | Path) -> TokenSequences:
    """Opens a .bin/.idx pair, memory-mapped.

    Args:
        prefix: the path without `.bin` or `.idx`. The pair may be one of Megatron-LM, and may be on `s3://`.

    Raises UserError for a pair that does not exist or is damaged.
    """
    return TokenSequences(IndexedDataset(prefix_of(str(prefix)), multimodal=None))


class TokenSamples:
    """Samples of a fixed length: item k is {"tokens": (seq_length,) int64, "labels": (seq_length,) int64}.

    labels: for every token the token that follows it. The order is that of `mt train` with the same settings.
    """

    def __init__(self, samples: Any, seq_length: int, description: str):
        self.samples, self.seq_length, self._description = samples, seq_length, description

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        sample = self.samples[_within(index, len(self), self._description, "samples")]
        return {"tokens": sample[:-1], "labels": sample[1:]}

    def __repr__(self) -> str:
        return f"<{self._description}: {len(self):,} samples of {self.seq_length:,} tokens>"


def gpt_dataset(
    data_path: str | Path | Sequence[str | float | Path],
    seq_length: int = 1024,
    *,
    name: Literal["train", "valid", "test"] = "train",
    num_samples: int | None = None,
    split: str = "969,30,1",
    seed: int = 1234,
    data_cache_path: str | Path | None = None,
) -> TokenSamples:
    """Opens the samples with which a GPT is pre-trained, in the order of `mt train` and Megatron-LM.

    Args:
        data_path: the prefix of a .bin/.idx pair, or a blend: `[0.7, "web", 0.3, "wiki"]`.
        seq_length: number of tokens in a sample.
        name: the part of the split.
        num_samples: at least this many samples, from as many epochs as they need; None: those of one epoch.
        split: shares of the sequences for training, validation and test.
        seed: seed of the order of the samples.
        data_cache_path: the folder of the sample indices; default: `cache` beside the first pair.

    Raises UserError for wrong settings or data.
    """
    paths = [data_path] if isinstance(data_path, str | Path) else list(data_path)
    settings = {
        "data_path": [prefix_of(str(path)) for path in paths],
        "seq_length": seq_length,
        "split": split,
        "seed": seed,
        "data_cache_path": None if data_cache_path is None else str(data_cache_path),
    }
    check(
        (name in SPLIT_NAMES, f"name = {shown(name)} must be one of {', '.join(SPLIT_NAMES)}"),
        (num_samples is None or num_samples >= 1, f"num_samples = {num_samples} must be at least 1"),
    )
    counts: list[int | None] = [num_samples if part == name else 0 for part in SPLIT_NAMES]
    config = build(DataConfig, ("mt.gpt_dataset", settings))
    samples = next(made for made in build_datasets(config, counts) if made is not None)
    return TokenSamples(samples, seq_length, f"{name} of {' '.join(map(str, paths))}")
