"""here tokens become batches: order, this rank's share, inputs, targets, loss mask, position to resume from.

The only position is the number of samples consumed. A global batch of size b after c samples is samples c to
c + b of the dataset's shuffled order, cut into micro-batches one after the other; replica r of w takes
micro-batches r, r + w, r + 2w, ... (Megatron-LM's order). So every data-parallel size sees the same global
batches. The ranks of a replica read the same samples, and context-parallel ones keep their tokens of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..core.config import UserError, option
from ..indexed.fim import FimDataset
from ..indexed.gpt_dataset import BlendedDataset, DataConfig, Dataset, GPTDataset, build_datasets, layout
from ..indexed.ict_dataset import IctConfig, build_ict_datasets
from ..indexed.instruct_dataset import InstructConfig, QuestionDataset, build_instruct_datasets
from ..indexed.masked_dataset import (
    BertConfig,
    SentenceSamples,
    T5Config,
    build_bert_datasets,
    build_t5_datasets,
)
from ..indexed.neighbors import SampleNeighbors
from ..indexed.remote import is_remote
from ..tokenizer.tokenizer import Tokenizer
from .model.attention import Documents
from .model.config import ModelConfig
from .model.inputs import MicroBatch
from .parallel.context_parallel import cut
from .parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(T5Config, IctConfig, InstructConfig):
    """The data settings of training: those of every family, and those that only the samples of some have."""

    retro_project_dir: str | None = option(
        None, "Retro: the neighbours of the samples, as `mt retro neighbors` made them", role="input"
    )

    def __post_init__(self):
        DataConfig.__post_init__(self)  # the rest is checked where such samples are built


def build_samples(
    model: ModelConfig, data: SampleConfig, tokenizer: Tokenizer, num_samples: Sequence[int | None]
) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of a family of models: see indexed.gpt.build_datasets."""
    if data.data_folder is not None:
        return build_instruct_datasets(data, tokenizer, num_samples)
    if model.family == "gpt":
        return build_datasets(data, num_samples)
    if model.family == "t5":
        return build_t5_datasets(_of_family(T5Config, data), tokenizer, num_samples)
    if model.family == "ict":
        return build_ict_datasets(_of_family(IctConfig, data), tokenizer, num_samples)
    return build_bert_datasets(
        _of_family(BertConfig, data, bert_binary_head=model.bert_binary_head), tokenizer, num_samples
    )


def _of_family(kind: type[DataConfig], data: SampleConfig, **more) -> DataConfig:
    """The settings that a family's samples have, checked."""
    return kind(
        **{f.name: getattr(data, f.name) for f in dataclasses.fields(kind) if f.name not in more}, **more
    )


# indices of B samples -> MicroBatch's neighbors and neighbor_mask
Neighbors = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def open_neighbors(model: ModelConfig, data: SampleConfig, dataset: Dataset | None) -> Neighbors | None:
    """What looks up the neighbours of a dataset's samples; None where none are read, or there is no dataset.

    A Retro that is tuned on questions reads passages as text, and nothing beside (Wang et al. 2023, section
    4.2).

    Raises UserError where they are not there, or do not fit the model or the dataset.
    """
    if not model.retro_add_retriever or data.data_folder is not None or dataset is None:
        return None
    directory = data.retro_project_dir
    if directory is None:
        raise UserError(
            "model.retro_add_retriever needs the neighbours of the samples: give --retro-project-dir, the"
            " output of `mt retro neighbors` with the same data settings"
        )
    found = SampleNeighbors(directory, dataset)
    if found.chunk_length != model.retro_chunk_length:
        raise UserError(
            f"{directory}: has neighbours of chunks of {found.chunk_length} tokens, and"
            f" model.retro_chunk_length = {model.retro_chunk_length}; give --retro-chunk-length"
            f" {found.chunk_length}"
        )
    found.tokens(0, model.retro_num_neighbors)  # that so many are kept is found out now
    return functools.partial(found.tokens, k=model.retro_num_neighbors)


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """What becomes of the several documents in a sample. By default they are one text to the model."""

    reset_position_ids: bool = option(False, "positions start anew at every document")
    reset_attention_mask: bool = option(False, "tokens do not see the documents before their own")
    eod_mask_loss: bool = option(False, "what follows the end of a document is not asked of the model")

    def any(self) -> bool:
        return self.reset_position_ids or self.reset_attention_mask or self.eod_mask_loss

    def check_against(self, eod: int | None) -> None:
        """Raises UserError where documents cannot be told apart.

        eod: the token that ends them, if the tokenizer has one.
        """
        if self.any() and eod is None:
            raise UserError(
                "reset_position_ids, reset_attention_mask and eod_mask_loss go by the token that ends"
                " documents, and this tokenizer has none; leave them out"
            )


class Batches:
    """This rank's share of a dataset's global batches.

    eod: the token that ends documents, which `packing` goes by. neighbors: what looks up those of Retro's
    samples.
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
        neighbors: Neighbors | None = None,
    ):
        self.neighbors = neighbors
        self.dataset, self.micro_batch_size, self.vocab_size, self.mesh = (
            dataset,
            micro_batch_size,
            vocab_size,
            mesh,
        )
        self.packing, self.eod = packing, eod

    def over(self, steps: Iterable[tuple[int, int]]) -> Iterator[list[MicroBatch]]:
        """The global batches of (consumed samples, size) pairs, each read while the one before it is in use."""
        # A thread begins on GPU 0, and pinning memory there would leave a context of every rank on it.
        on_gpu = self.mesh.device.type == "cuda"
        with ThreadPoolExecutor(
            1, "batches", torch.cuda.set_device if on_gpu else None, (self.mesh.device,) if on_gpu else ()
        ) as pool:
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
        samples = self.dataset.batch(indices)
        if isinstance(samples, dict):
            return self._answers(index, samples) if "answer_mask" in samples else self._masked(index, samples)
        micro = self._causal(index, samples)
        if self.neighbors is None:
            return micro
        tokens, mask = self.neighbors(indices)
        _check_range(tokens, self.vocab_size)
        return dataclasses.replace(
            micro, neighbors=self._to_device(tokens), neighbor_mask=self._to_device(mask)
        )

    def _causal(self, index: int, samples: np.ndarray) -> MicroBatch:
        """samples: (B, T + 1) int64."""
        _check_range(samples, self.vocab_size)
        packed = layout(samples[:, :-1], self.eod) if self.packing.any() else None
        samples = self._to_device(samples)
        tokens, labels = samples[:, :-1], samples[:, 1:]
        loss_mask = (
            (tokens != self.eod).float()
            if self.packing.eod_mask_loss
            else torch.ones(labels.shape, device=labels.device)
        )
        positions = self._to_device(packed.position_ids) if self.packing.reset_position_ids else None
        documents = None
        if self.packing.reset_attention_mask:
            documents = Documents(
                self._to_device(packed.document_ids), self._to_device(packed.cu_seqlens), packed.max_seqlen
            )
        return cut(MicroBatch(index, tokens, labels, loss_mask, positions, documents), self.mesh.cp)

    def _answers(self, index: int, samples: dict[str, np.ndarray]) -> MicroBatch:
        """samples: as indexed.instruct gives them."""
        _check_range(samples["text"], self.vocab_size)
        text, mask = self._to_device(samples["text"]), self._to_device(samples["answer_mask"])
        return cut(MicroBatch(index, text[:, :-1], text[:, 1:], mask[:, 1:].float()), self.mesh.cp)

    def _masked(self, index: int, samples: dict[str, np.ndarray]) -> MicroBatch:
        """samples: as indexed.masked and indexed.ict give them."""
        bert = "text" in samples
        for name in ("text", "text_enc", "text_dec", "query_tokens", "context_tokens"):
            if name in samples:
                _check_range(samples[name], self.vocab_size)
        here = {name: self._to_device(array) for name, array in samples.items()}
        if "query_tokens" in here:
            tokens, blocks = here["query_tokens"], here["context_tokens"]
            return MicroBatch(
                index,
                tokens,
                None,
                torch.ones(len(tokens), device=tokens.device),
                padding_mask=here["query_pad_mask"].bool(),
                encoder_tokens=blocks,
                encoder_padding_mask=here["context_pad_mask"].bool(),
            )
        labels = here["labels"].clamp(min=0)  # -1 stands where the loss mask is 0
        if bert:
            return MicroBatch(
                index,
                here["text"],
                labels,
                here["loss_mask"].float(),
                token_types=here["types"],
                padding_mask=here["padding_mask"].bool(),
                swapped=here["is_random"],
            )
        return MicroBatch(
            index,
            here["text_dec"],
            labels,
            here["loss_mask"].float(),
            padding_mask=here["enc_mask"].bool(),
            encoder_tokens=here["text_enc"],
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(self.mesh.device, non_blocking=True)
            if self.mesh.device.type == "cuda"
            else tensor
        )


def _check_range(tokens: np.ndarray, vocab_size: int) -> None:
    for token in (int(tokens.max()), int(tokens.min())):
        if not 0 <= token < vocab_size:
            raise UserError(
                f"the data holds token {token}, but model.vocab_size = {vocab_size}; "
                "give the tokenizer that the data was made with, or another --vocab-size"
            )


def unigram_entropy(dataset: Dataset, vocab_size: int) -> float:
    """Entropy in nats of the frequencies of the tokens that a dataset draws from: the loss of a model that
    knows no more.

    Reads each source once, up to COUNTED_TOKENS of it. Raises UserError for a token that is not in the
    vocabulary, so it is done before the first step; what lies beyond is checked batch by batch.
    """
    share = np.zeros(vocab_size)
    for weight, source in _sources(dataset):
        counts = np.zeros(vocab_size, np.int64)
        for block in _tokens(source):
            _check_range(block, vocab_size)
            counts += np.bincount(block, minlength=vocab_size)
        share += weight * counts / counts.sum()
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


COUNTED_TOKENS = 1 << 30  # some five seconds
COUNTED_REMOTE_TOKENS = 1 << 25  # what a network gives in that time
COUNTED_ANSWERS = 1 << 14
COUNTED_AT_A_TIME = 1 << 22


def _tokens(source: GPTDataset | SentenceSamples | QuestionDataset) -> Iterator[np.ndarray]:
    """The first tokens of the source's range, which lie back to back in its file, in blocks; of questions the
    answers to the first.
    """
    if isinstance(source, QuestionDataset):
        yield from itertools.islice(source.answer_tokens(), COUNTED_ANSWERS)
        return
    indexed, (first, end) = source.indexed, source.range
    if isinstance(source, SentenceSamples):  # whose range is one of documents
        first, end = (int(indexed.document_indices[i]) for i in (first, end))
    start = int(indexed.pointers[first]) // indexed.dtype.itemsize
    most = COUNTED_REMOTE_TOKENS if is_remote(indexed.prefix) else COUNTED_TOKENS
    stop = start + min(most, int(indexed.lengths[first:end].sum(dtype=np.int64)))
    for at in range(start, stop, COUNTED_AT_A_TIME):
        yield indexed.tokens[at : min(stop, at + COUNTED_AT_A_TIME)]


def _sources(dataset: Dataset) -> list[tuple[float, GPTDataset | SentenceSamples | QuestionDataset]]:
    if isinstance(dataset, FimDataset):
        return _sources(dataset.dataset)
    return (
        list(zip(dataset.weights, dataset.datasets))
        if isinstance(dataset, BlendedDataset)
        else [(1.0, dataset)]
    )


def identity(dataset: Dataset, config: DataConfig) -> dict:
    """What a position in a dataset depends on, for a checkpoint.

    `order` is the exact order of the samples, which also depends on how many are asked for; with the rest
    equal, a longer run continues a shorter one on the same data.
    """
    held = lambda source: (
        source.file_digest if isinstance(source, QuestionDataset) else source.indexed.fingerprint
    )
    sources = [[weight, held(source)] for weight, source in _sources(dataset)]
    return {
        "sources": sources,
        "split": config.split,
        "seq_length": config.seq_length,
        "seed": config.seed,
        "order": dataset.fingerprint,
    }
