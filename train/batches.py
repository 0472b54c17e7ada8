"""Batches, this rank's share of every global batch; unigram entropy and identity of datasets.

The only position in the data is the number of consumed samples. A global batch of size b after c samples is
samples c to c + b of the dataset's shuffled order, cut into consecutive micro-batches; replica r of w takes
micro-batches r, r + w, r + 2w, ... (Megatron-LM's order). So global batches are the same at every
data-parallel size. The ranks of a replica read the same samples, and context-parallel ranks keep their tokens
of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import torch

from ..core.config import UserError
from ..indexed.fim import FimDataset
from ..indexed.gpt_dataset import BlendedDataset, DataConfig, Dataset, GPTDataset
from ..indexed.instruct_dataset import QuestionDataset
from ..indexed.masked_dataset import SentenceDataset
from ..indexed.neighbors import SampleNeighbors
from ..indexed.remote import is_remote
from .model.config import ModelConfig
from .model.datasets import SampleConfig
from .model.family import Collate
from .model.inputs import Collator, MicroBatch, PackingConfig, check_range, collate_causal
from .parallel.context_parallel import split_sequences
from .parallel.mesh import Mesh

# indices of B samples -> MicroBatch's neighbors and neighbor_mask
Neighbors = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def open_neighbors(model: ModelConfig, data: SampleConfig, dataset: Dataset | None) -> Neighbors | None:
    """The function that looks up the neighbours of a dataset's samples, or None.

    A Retro that is tuned on questions reads retrieved passages as text, without neighbours (Wang et al. 2023,
    section 4.2). Raises UserError where the neighbours are missing or do not fit the model or the dataset.
    """
    if not model.retro_add_retriever or data.data_folder is not None or dataset is None:
        return None
    directory = data.retro_project_dir
    if directory is None:
        raise UserError(
            "model.retro_add_retriever needs the neighbours of the samples: give --retro-project-dir, the"
            " output of `mt retro neighbors` with the same data settings"
        )
    assert isinstance(dataset, GPTDataset | BlendedDataset), "TrainConfig refuses other samples for Retro"
    found = SampleNeighbors(directory, dataset)
    if found.chunk_length != model.retro_chunk_length:
        raise UserError(
            f"{directory}: has neighbours of chunks of {found.chunk_length} tokens, and"
            f" model.retro_chunk_length = {model.retro_chunk_length}; give --retro-chunk-length"
            f" {found.chunk_length}"
        )
    found.tokens(0, model.retro_num_neighbors)  # raises now where there are fewer neighbours of a chunk
    return functools.partial(found.tokens, k=model.retro_num_neighbors)


class Batches:
    """This rank's share of a dataset's global batches.

    eod: id of the end-of-document token, for `packing`. collate: of the model's family. neighbors: looks up
    the neighbours of Retro's samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        micro_batch_size: int,
        vocab_size: int,
        mesh: Mesh,
        packing: PackingConfig,
        eod: int | None,
        collate: Collate = collate_causal,
        neighbors: Neighbors | None = None,
    ):
        self.dataset, self.mesh = dataset, mesh
        self.micro_batch_size = micro_batch_size
        self.collate, self.collator = collate, Collator(vocab_size, mesh.device, packing, eod)
        self.neighbors = neighbors

    def over(self, steps: Iterable[tuple[int, int]]) -> Iterator[list[MicroBatch]]:
        """The global batches of (consumed samples, size) pairs, each read while the one before is in use."""
        # A new thread uses GPU 0, and pinning memory from it would leave a context of every rank there.
        on_gpu = self.mesh.device.type == "cuda"
        select = functools.partial(torch.cuda.set_device, self.mesh.device) if on_gpu else None
        with ThreadPoolExecutor(1, "batches", select) as pool:
            reading = None
            for consumed, size in steps:
                following = pool.submit(self.global_batch, consumed, size)
                if reading is not None:
                    yield reading.result()
                reading = following
            if reading is not None:
                yield reading.result()

    def global_batch(self, consumed: int, size: int) -> list[MicroBatch]:
        """This rank's micro-batches of the `size` samples after the first `consumed`.

        size: a multiple of micro-batch x replicas.
        """
        count = size // self.micro_batch_size
        return [
            self._micro_batch(consumed, index) for index in range(self.mesh.dp.rank, count, self.mesh.dp.size)
        ]

    def _micro_batch(self, consumed: int, index: int) -> MicroBatch:
        start = consumed + index * self.micro_batch_size
        indices = np.arange(start, start + self.micro_batch_size)
        micro = self.collate(self.collator, index, self.dataset.batch(cast("Sequence[int]", indices)))
        if self.neighbors is not None:
            tokens, mask = self.neighbors(indices)
            micro = dataclasses.replace(
                micro, neighbors=self.collator.tokens(tokens), neighbor_mask=self.collator.tensor(mask)
            )
        return split_sequences(micro, self.mesh.cp)


def unigram_entropy(dataset: Dataset, vocab_size: int) -> float:
    """Entropy in nats of a dataset's token frequencies: the loss of a model that predicts these frequencies.

    Reads each source once, up to COUNTED_TOKENS of it. Raises UserError for a token outside the vocabulary,
    before the first step; later tokens are checked batch by batch.
    """
    share = np.zeros(vocab_size)
    for weight, source in _sources(dataset):
        counts = np.zeros(vocab_size, np.int64)
        for block in _tokens(source):
            check_range(block, vocab_size)
            counts += np.bincount(block, minlength=vocab_size)
        share += weight * counts / counts.sum()
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


COUNTED_TOKENS = 1 << 30  # some five seconds
COUNTED_REMOTE_TOKENS = 1 << 25  # what a network reads in that time
COUNTED_ANSWERS = 1 << 14
COUNTED_AT_A_TIME = 1 << 22


def _tokens(source: GPTDataset | SentenceDataset | QuestionDataset) -> Iterator[np.ndarray]:
    """The first tokens of the source's range, in blocks; of questions the first answers."""
    if isinstance(source, QuestionDataset):
        yield from itertools.islice(source.answer_tokens(), COUNTED_ANSWERS)
        return
    indexed, (first, end) = source.indexed, source.range
    if isinstance(source, SentenceDataset):  # whose range is one of documents
        first, end = (int(indexed.document_indices[i]) for i in (first, end))
    start = int(indexed.pointers[first]) // indexed.dtype.itemsize
    most = COUNTED_REMOTE_TOKENS if is_remote(indexed.prefix) else COUNTED_TOKENS
    stop = start + min(most, int(indexed.lengths[first:end].sum(dtype=np.int64)))
    for at in range(start, stop, COUNTED_AT_A_TIME):
        yield indexed.tokens[at : min(stop, at + COUNTED_AT_A_TIME)]


def _sources(dataset: Dataset) -> list[tuple[float, GPTDataset | SentenceDataset | QuestionDataset]]:
    """(weight, dataset) of each source of a dataset."""
    if isinstance(dataset, FimDataset):
        return _sources(dataset.dataset)
    if isinstance(dataset, BlendedDataset):
        return [(weight, _plain(source)) for weight, source in zip(dataset.weights, dataset.datasets)]
    return [(1.0, _plain(dataset))]


def _plain(dataset: Dataset) -> GPTDataset | SentenceDataset | QuestionDataset:
    assert isinstance(dataset, GPTDataset | SentenceDataset | QuestionDataset), type(dataset).__name__
    return dataset


def identity(dataset: Dataset, config: DataConfig) -> dict:
    """What a position in a dataset depends on, for checkpoints.

    `order` identifies the exact order of the samples, which also depends on how many there are. Where only
    `order` differs, a longer run continues a shorter one on the same data.
    """
    fingerprint = lambda source: (
        source.file_digest if isinstance(source, QuestionDataset) else source.indexed.fingerprint
    )
    sources = [[weight, fingerprint(source)] for weight, source in _sources(dataset)]
    return {
        "sources": sources,
        "split": config.split,
        "seq_length": config.seq_length,
        "seed": config.seed,
        "order": dataset.fingerprint,
    }
