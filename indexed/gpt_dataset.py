"""Datasets of token samples of a fixed length, in Megatron-LM's order.

In: one or more .bin/.idx pairs, a split, and the number of samples of every split. Out: datasets whose item k
is the k-th sample, `seq_length + 1` tokens. A model reads all but the last and predicts all but the first.

Sequences are repeated for as many epochs as the samples need, shuffled, and concatenated into one stream:

    document index  (epochs * sequences,) int32: the order of the sequences in the stream
    sample index    (samples + 1, 2) int32: start of sample j, (position in the document index, token offset)
    shuffle index   (samples,) uint32: item k is sample shuffle[k] of the stream

They are cached as .npy files. A file name has a digest of the data and of every setting that the index
depends on, so data that is tokenized again never uses a stale index. The files are memory-mapped, so the
ranks of one machine share them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
import xxhash

from ..core import manifest
from ..core.arrays import open_array
from ..core.config import UserError, check, check_each, configuration, option
from .blend import blending_indices, compile_if_long, exhaustive_blending_indices
from .format import IndexedDataset, check_pair_exists, number
from .remote import RemoteSettings, exclusive, is_remote
from .splits import SPLIT_NAMES, ranges, shares

PAD = -1  # fills the last sample if it is kept without being full; the loss is masked there
SURPLUS = 0.005  # share of samples that the datasets of a blend hold beyond their own, as in Megatron-LM


@configuration()
class DataConfig:
    """Which tokens to train on, and how they are cut into samples."""

    data_path: tuple[str, ...] = option(
        (),
        "prefixes of .bin/.idx pairs, all with a weight before them or none: 0.7 web_text_document 0.3"
        " wiki_text_document",
        role="input",
    )
    train_data_path: tuple[str, ...] = option(
        (), "prefixes of the training data, in place of --data-path and --split", role="input"
    )
    valid_data_path: tuple[str, ...] = option((), "prefixes of the validation data, likewise", role="input")
    test_data_path: tuple[str, ...] = option((), "prefixes of the test data, likewise", role="input")
    split: str = option("969,30,1", "shares of the sequences for training, validation and test")
    seq_length: int = option(1024, "tokens of a sample")
    seed: int = option(1234, "seed of the order of the samples")
    data_cache_path: str | None = option(
        None,
        "directory for sample indices, and for the .idx of remote data (default: `cache` beside the first"
        " pair; ~/.cache/mt for remote data)",
        role="runtime",
    )
    remote_block_bytes: int = option(
        1 << 20, "bytes of one read from s3://, gs://, hf:// ...", role="runtime"
    )
    remote_cache_bytes: int = option(
        1 << 28, "bytes of such blocks that each pair keeps in memory in each process", role="runtime"
    )

    def __post_init__(self) -> None:
        check(
            (self.seq_length >= 1, f"seq_length = {self.seq_length} must be at least 1"),
            (
                self.remote_block_bytes >= 1 << 12,
                f"remote_block_bytes = {self.remote_block_bytes} must be at least 4096",
            ),
            (
                self.remote_cache_bytes >= 2 * self.remote_block_bytes,
                f"remote_cache_bytes = {self.remote_cache_bytes} must hold two blocks of"
                f" remote_block_bytes = {self.remote_block_bytes}",
            ),
            (0 <= self.seed < 1 << 32, f"seed = {self.seed} must be in [0, 2**32)"),
            (
                bool(self.data_path) or self.per_split,
                "data_path must name at least one prefix of a .bin/.idx pair",
            ),
            (
                not (self.data_path and self.per_split),
                "data_path and paths of their own for train, valid or test are given; leave one of them out",
            ),
        )
        shares(self.split)
        for name in SPLIT_NAMES:
            self.sources(name)

    @property
    def per_split(self) -> bool:
        """Whether train, valid and test have their own paths; each then uses all sequences of them."""
        return any(getattr(self, f"{name}_data_path") for name in SPLIT_NAMES)

    def sources(self, name: str) -> tuple[tuple[float | None, str], ...]:
        """(weight or None, prefix) of every dataset of a split.

        Raises UserError if some prefixes have a weight and others have none, or if the weights make no sense.
        """
        key = f"{name}_data_path" if self.per_split else "data_path"
        path: tuple[str, ...] = getattr(self, key)
        numbers = [number(word) for word in path[::2]]
        weights = [w for w in numbers if w is not None]
        weighted = len(path) % 2 == 0 and bool(weights)
        for word in path[1::2] if weighted else path:
            # a pair may have a number for a name, such as a year
            if number(word) is not None and not os.path.exists(f"{word}.idx"):
                raise UserError(
                    f"{key}: {word} is a number where the prefix of a .bin/.idx pair must stand; weights and"
                    " prefixes must alternate, as in 0.7 a 0.3 b, or all weights be left out"
                )
        if not weighted:
            return tuple((None, prefix) for prefix in path)
        if None in numbers:
            bad = path[2 * numbers.index(None)]
            raise UserError(
                f"{key}: {bad!r} stands where a weight must, before its prefix; give a weight to every prefix"
                " or to none"
            )
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise UserError(f"{key}: the weights {weights} must not be negative and not all be 0")
        return tuple(zip(weights, path[1::2]))

    def check_inputs(self) -> None:
        """Raises UserError for pairs that are not there, before anything is read."""
        check_each(*(functools.partial(check_pair_exists, prefix) for prefix in self.prefixes()))

    def files(self) -> list[str]:
        """Every local file of the data, for `manifest.begin`; fingerprints cover the remote ones."""
        return pair_files(self.prefixes())

    def prefixes(self) -> list[str]:
        """The prefixes of all splits, each once."""
        return list(dict.fromkeys(prefix for name in SPLIT_NAMES for _, prefix in self.sources(name)))


def pair_files(prefixes: Iterable[str]) -> list[str]:
    """The two files of every local .bin/.idx pair."""
    return [f"{prefix}.{suffix}" for prefix in prefixes if not is_remote(prefix) for suffix in ("bin", "idx")]


class SourceRow(TypedDict):
    """One source of a dataset, as `Dataset.describe` counts it."""

    prefix: str
    weight: float | None
    sequences: int
    tokens: int | None  # of one epoch; None where they are not counted
    samples: int  # that are used
    epochs: float


class Dataset(Protocol):
    """The samples of a split, as training reads them.

    Those of GPT are arrays of tokens; those of other models are dicts of arrays and flags.
    """

    fingerprint: str  # hex digest of everything that determines the samples and their order

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> np.ndarray | Mapping[str, np.ndarray | int]:
        """Sample k: (seq_length + 1,) int64, or a dict."""
        ...

    def batch(self, indices: Sequence[int]) -> np.ndarray | dict[str, np.ndarray]:
        """Samples: (len(indices), seq_length + 1) int64, or a dict of arrays with a row for every sample."""
        ...

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[SourceRow]:
        """A row for every source; weight and samples: those that a blend gives to the dataset."""
        ...


def build_datasets(data: DataConfig, num_samples: Sequence[int | None]) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets of GPT.

    num_samples: of every split; 0 gives None, and None gives a dataset of one epoch. A dataset holds at least
    as many samples as requested. Raises UserError for a requested split that has no sequences, or too few
    tokens for one sample.
    """

    def make(
        indexed: IndexedDataset, sequences: tuple[int, int], count: int | None, name: str, cache: Path
    ) -> GPTDataset:
        return GPTDataset(indexed, sequences, count, data.seq_length, data.seed, name=name, cache=cache)

    return build_splits(data, num_samples, make, of="sequences")


# (pair, [start, end) of its elements, number of samples, name of the split, cache directory) -> dataset
MakeDataset = Callable[[IndexedDataset, tuple[int, int], int | None, str, Path], "Dataset"]


def build_splits(
    data: DataConfig,
    num_samples: Sequence[int | None],
    make: MakeDataset,
    *,
    of: Literal["sequences", "documents"],
) -> tuple[Dataset | None, ...]:
    """`build_datasets` for any kind of sample. of: the elements that a split is a share of."""
    opened: dict[str, IndexedDataset] = {}
    built: list[Dataset | None] = []
    for s, (name, count) in enumerate(zip(SPLIT_NAMES, num_samples, strict=True)):
        if count == 0:
            built.append(None)
            continue
        parts: list[tuple[float | None, IndexedDataset, tuple[int, int]]] = []
        for weight, prefix in data.sources(name):
            if prefix not in opened:
                opened[prefix] = open_pair(prefix, data)
            indexed = opened[prefix]
            total = len(indexed) if of == "sequences" else indexed.num_documents
            start, end = (0, total) if data.per_split else ranges(data.split, total)[s] or (0, 0)
            if weight == 0:
                continue
            if start == end:
                why = "" if data.per_split else f"split = {data.split} of "
                raise UserError(
                    f"{indexed.prefix}: {why}its {total:,} {of} leaves none for {name}; give {name} a larger"
                    f" share or ask for no {name} samples"
                )
            parts.append((weight, indexed, (start, end)))
        if not parts:
            raise UserError(
                f"{name}_data_path names nothing, but {name} samples are asked for; give it, or ask for no"
                f" {name} samples"
            )
        cache = Path(data.data_cache_path) if data.data_cache_path else parts[0][1].local_folder / "cache"
        makers = [
            (weight, functools.partial(_make_part, make, indexed, where, name, cache))
            for weight, indexed, where in parts
        ]
        built.append(blend_datasets(makers, count, name, cache))
    return tuple(built)


def _make_part(
    make: MakeDataset,
    indexed: IndexedDataset,
    where: tuple[int, int],
    name: str,
    cache: Path,
    count: int | None,
) -> Dataset:
    return make(indexed, where, count, name, cache)


class GPTDataset:
    """Token samples of a range of the sequences of one .bin/.idx pair.

    num_samples: how many are requested (None: one epoch); there may be more. add_extra_token: 1 if a sample
    has one token more than seq_length, so that every token has its successor as label; else 0. drop_last:
    drop a last sample that is not full; otherwise it is filled with PAD. cache: directory of the indices, or
    None to keep them in memory.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        document_range: tuple[int, int],
        num_samples: int | None,
        seq_length: int,
        seed: int,
        *,
        add_extra_token: int = 1,
        drop_last: bool = True,
        name: str = "train",
        cache: Path | None = None,
    ):
        self.indexed, self.range = indexed, document_range
        self.seq_length, self.extra = seq_length, add_extra_token
        self.num_tokens = int(indexed.lengths[slice(*document_range)].sum(dtype=np.int64))
        if self.num_tokens == 0:
            raise UserError(
                f"{indexed.prefix}: the sequences {document_range} of the {name} split have no tokens; give"
                f" {name} a larger share"
            )
        if num_samples is None and drop_last and self.num_tokens < seq_length + add_extra_token:
            raise UserError(
                f"{indexed.prefix}: the {name} split has {self.num_tokens:,} tokens, fewer than the"
                f" {seq_length + add_extra_token:,} of one sample; give {name} a larger share"
            )
        key = (
            "gpt 2",
            indexed.fingerprint,
            document_range,
            num_samples,
            seq_length,
            seed,
            add_extra_token,
            drop_last,
        )
        self.fingerprint = xxhash.xxh3_128(repr(key).encode()).hexdigest()
        build = functools.partial(
            build_indices,
            indexed.lengths,
            np.arange(*document_range, dtype=np.int32),
            num_samples,
            seq_length,
            seed,
            add_extra_token=add_extra_token,
            drop_last=drop_last,
        )
        stem = f"{Path(indexed.prefix).name}-{name}-{self.fingerprint}"
        names = ("document_index", "sample_index", "shuffle_index")
        arrays = build() if cache is None else cached(cache, stem, names, build)
        self.document_index, self.sample_index, self.shuffle_index = arrays
        self.num_samples = len(self) if num_samples is None else num_samples

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_views"}

    def __len__(self) -> int:
        return len(self.shuffle_index)

    def __getitem__(self, k: int) -> np.ndarray:
        sample: np.ndarray = self.batch([k])[0]
        return sample

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        out = np.empty((len(indices), self.seq_length + self.extra), np.int64)
        if len(indices):
            np.concatenate(
                list(itertools.chain.from_iterable(map(self._pieces, indices))), out=out.reshape(-1)
            )
        return out

    def _pieces(self, k: int) -> list[np.ndarray]:
        """The tokens of sample k in pieces, a piece a sequence.

        With the extra token the last one is the first of the next sample too.
        """
        documents, samples, shuffle = self._views
        j, get = shuffle[k], self.indexed.get
        position, offset, last, stop = samples[2 * j : 2 * j + 4]
        pieces = []
        while position < last:
            pieces.append(get(documents[position], offset))
            position, offset = position + 1, 0
        pieces.append(get(documents[last], offset, stop + self.extra - offset))
        if j == len(shuffle) - 1:  # the last of the stream, the only one that may not be full
            missing = self.seq_length + self.extra - sum(map(len, pieces))
            pieces.append(np.full(missing, PAD, np.int64))
        return pieces

    @functools.cached_property
    def _views(self) -> tuple[memoryview, memoryview, memoryview]:
        """The three indices, flat: indexing a memoryview is three times as fast as indexing an array."""
        flat = [
            np.ascontiguousarray(index).reshape(-1).data
            for index in (self.document_index, self.sample_index, self.shuffle_index)
        ]
        return flat[0], flat[1], flat[2]

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[SourceRow]:
        samples = self.num_samples if samples is None else samples
        sequences = self.range[1] - self.range[0]
        epochs = samples * self.seq_length / self.num_tokens
        return [
            {
                "prefix": self.indexed.prefix,
                "weight": weight,
                "sequences": sequences,
                "tokens": self.num_tokens,
                "samples": samples,
                "epochs": round(epochs, 4),
            }
        ]


def _sources(dataset: Dataset | None) -> list[GPTDataset]:
    """The datasets of GPT of which a dataset consists; none if there are others."""
    parts = dataset.datasets if isinstance(dataset, BlendedDataset) else [dataset]
    found = [part for part in parts if isinstance(part, GPTDataset)]
    return found if len(found) == len(parts) else []


def token_share(dataset: Dataset | None) -> float | None:
    """The share of the tokens of its pairs that a dataset reads; None where that is not known."""
    if not (parts := _sources(dataset)):
        return None
    return sum(p.num_tokens for p in parts) / tokens_of(dataset)


def tokens_of(dataset: Dataset | None) -> int:
    """The tokens of the pairs of a dataset."""
    return sum(len(part.indexed.tokens) for part in _sources(dataset))


def even_sequences(dataset: Dataset | None) -> float:
    """How many sequences of equal length would vary as much in a random order as those of its pairs do.

    It is (sum of the lengths)^2 / sum of their squares: about 2 if two books have nearly all tokens.
    """
    lengths = [part.indexed.lengths.astype(np.float64) for part in _sources(dataset)]
    squares = sum(float(np.square(each).sum()) for each in lengths)
    return sum(float(each.sum()) for each in lengths) ** 2 / squares if squares else 0.0


class BlendedDataset:
    """A weighted blend of datasets.

    dataset_index, sample_index: (samples,), the dataset of item k and the sample of that dataset (blend.py).
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float],
        dataset_index: np.ndarray,
        sample_index: np.ndarray,
    ):
        self.datasets, self.weights = list(datasets), list(weights)
        self.dataset_index, self.sample_index = dataset_index, sample_index
        key = ("blend 1", [d.fingerprint for d in datasets], self.weights, len(dataset_index))
        self.fingerprint = xxhash.xxh3_128(repr(key).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, k: int) -> np.ndarray | Mapping[str, np.ndarray | int]:
        return self.datasets[int(self.dataset_index[k])][int(self.sample_index[k])]

    def batch(self, indices: Sequence[int]) -> np.ndarray | dict[str, np.ndarray]:
        items = np.asarray(indices)
        sources, samples = self.dataset_index[items], self.sample_index[items]
        used = np.unique(sources).tolist()
        parts: list[Any] = [self.datasets[d].batch(samples[sources == d]) for d in used]  # all of one kind
        place = np.argsort(np.concatenate([np.flatnonzero(sources == d) for d in used]))
        if isinstance(parts[0], dict):
            return {name: np.concatenate([p[name] for p in parts])[place] for name in parts[0]}
        rows: np.ndarray = np.concatenate(parts)[place]
        return rows

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[SourceRow]:
        """Weights and samples are the blend's own; the arguments are not used."""
        counts = np.bincount(self.dataset_index, minlength=len(self.datasets)).tolist()
        return [row for d, w, n in zip(self.datasets, self.weights, counts) for row in d.describe(w, n)]


def blend_datasets(
    parts: Sequence[tuple[float | None, Callable[[int | None], Dataset]]],
    count: int | None,
    name: str,
    cache: Path,
) -> Dataset:
    """The dataset of one split of one or several sources.

    parts: (weight or None, number of samples -> dataset) of every source; all of them have a weight, or none.
    count: samples of the blend. With weights a dataset repeats as often as the blend needs. Without, each is
    used for one epoch, in proportion to its size.
    """
    weights = [weight for weight, _ in parts if weight is not None]
    if not weights:
        if len(parts) == 1:
            return parts[0][1](count)
        datasets = [make(None) for _, make in parts]
        sizes = [len(d) for d in datasets]
        total = sum(sizes)
        if count is not None and count > total:
            raise UserError(
                f"data_path: one epoch of its {len(parts)} prefixes has {total:,} {name} samples, fewer than"
                f" the {count:,} asked for; give every prefix a weight, and they repeat as needed"
            )
        by_size = [n / total for n in sizes]
        order = _exhaustive_order(cache, sizes) if count is None else _order(cache, by_size, count)
        return BlendedDataset(datasets, by_size, *order)
    if count is None:
        raise UserError(f"data_path: a blend with weights has no end; give the number of {name} samples")
    by_weight = [weight / sum(weights) for weight in weights]
    targets = [math.ceil(count * share) for share in by_weight]
    order = _order(cache, by_weight, sum(targets))
    used = np.bincount(order[0], minlength=len(parts)).tolist()
    datasets = [
        make(max(math.ceil(target * (1 + SURPLUS)), n, 1))
        for (_, make), target, n in zip(parts, targets, used)
    ]
    return BlendedDataset(datasets, by_weight, *order)


def _order(cache: Path, weights: Sequence[float], size: int) -> list[np.ndarray]:
    """The order of the first `size` items of a blend, cached."""
    return _cached_order(cache, weights, size, lambda: blending_indices(weights, size))


def _exhaustive_order(cache: Path, sizes: Sequence[int]) -> list[np.ndarray]:
    """The order of a blend in which every sample occurs once, cached."""
    return _cached_order(cache, sizes, None, lambda: exhaustive_blending_indices(sizes))


def _cached_order(
    cache: Path, weights: Sequence[float], size: int | None, build: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    stem = f"blend-{xxhash.xxh3_128(repr(('blend 1', list(weights), size)).encode()).hexdigest()}"
    return cached(cache, stem, ("dataset_index", "dataset_sample_index"), build)


@dataclasses.dataclass(frozen=True)
class DocumentLayout:
    """The documents that are packed into the B samples of a batch, of T tokens each."""

    document_ids: np.ndarray  # (B, T) int32: number of a token's document within its sample, from 0 on
    position_ids: np.ndarray  # (B, T) int64: position of a token within its document's part of the sample
    cu_seqlens: np.ndarray  # (n + 1,) int32: starts of the n documents in the flattened batch, then B * T
    max_seqlen: int  # tokens of the longest document


def document_layout(tokens: np.ndarray, eod: int) -> DocumentLayout:
    """The boundaries of the documents in a batch, from the end-of-document tokens.

    tokens: (B, T), the model's input. A document begins after an `eod` and includes its own, as with
    Megatron-LM's --reset-position-ids and --reset-attention-mask. A query attends to a key of the same sample
    if their `document_ids` are equal and the key is not later; a variable-length attention reads
    `cu_seqlens`. With --eod-mask-loss the loss is masked where the input token is `eod`.
    """
    begins = np.zeros(tokens.shape, bool)
    begins[:, 0] = True
    begins[:, 1:] = tokens[:, :-1] == eod
    columns = np.arange(tokens.shape[1])
    firsts = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    cu_seqlens = np.append(np.flatnonzero(begins), tokens.size).astype(np.int32)
    return DocumentLayout(
        np.cumsum(begins, axis=1, dtype=np.int32) - 1,
        columns - firsts,
        cu_seqlens,
        int(np.diff(cu_seqlens).max()),
    )


def build_indices(
    lengths: np.ndarray,
    indices: np.ndarray,
    num_samples: int | None,
    seq_length: int,
    seed: int,
    *,
    add_extra_token: int = 1,
    drop_last: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document index, sample index, shuffle index), equal to Megatron-LM's in dtype and order.

    lengths: (S,) int32 tokens of every sequence. indices: (n,) int32, the sequences to use. num_samples: None
    for one epoch. add_extra_token: 1 if a sample has one token more than seq_length, the first of the next
    sample. drop_last: drop a last sample that is not full.
    """
    tokens = int(lengths[indices].sum(dtype=np.int64))
    epochs = 1 if num_samples is None else max(1, -(-(num_samples * seq_length + add_extra_token) // tokens))
    before = 0  # samples of all epochs but the last
    separate_last_epoch = False
    if num_samples is not None and epochs > 1:
        before = ((epochs - 1) * tokens - add_extra_token) // seq_length
        per_epoch = (tokens - add_extra_token) // seq_length
        # If less than 80 % of the last epoch is used, it is shuffled separately: its sequences must not be
        # drawn more often than others early in training.
        separate_last_epoch = num_samples - before < int(0.80 * per_epoch)
    random = np.random.RandomState(seed)
    document_index = _document_index(indices, epochs, separate_last_epoch, random)
    sample_index = _sample_index(
        lengths, document_index, epochs * tokens, seq_length, add_extra_token, drop_last
    )
    total = len(sample_index) - 1
    shuffle_index = np.arange(total, dtype=np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64)
    if separate_last_epoch:
        random.shuffle(shuffle_index[:before])
        random.shuffle(shuffle_index[before:])
    else:
        random.shuffle(shuffle_index)
    return document_index, sample_index, shuffle_index


def _document_index(
    indices: np.ndarray, epochs: int, separate_last_epoch: bool, random: np.random.RandomState
) -> np.ndarray:
    order = np.tile(indices.astype(np.int32), epochs)
    cut = len(order) - len(indices) if separate_last_epoch else len(order)
    random.shuffle(order[:cut])
    if separate_last_epoch:
        random.shuffle(order[cut:])
    return order


def _sample_index(
    lengths: np.ndarray, document_index: np.ndarray, tokens: int, seq_length: int, extra: int, drop_last: bool
) -> np.ndarray:
    """(samples + 1, 2): the start of sample j, with extra = 1 at token j * seq_length of the stream if j > 0.

    With extra = 0 it is the place after the token before, so an offset may equal its sequence's length, as in
    Megatron-LM.
    """
    fits = max(len(document_index), int(lengths.max())) <= np.iinfo(np.int32).max
    # Megatron-LM counts a partial last sample in float32. So does this, or the counts would differ beyond 16
    # million tokens.
    count = (
        (tokens - extra) // seq_length
        if drop_last
        else math.ceil(np.float32(tokens - extra) / np.float32(seq_length))
    )
    index = np.empty((count + 1, 2), np.int32 if fits else np.int64)
    # a step takes a quarter of a microsecond: below 800,000 of them importing numba would take longer
    steps = (len(document_index) + count) // 16
    found = compile_if_long(_walk, steps)(lengths, document_index, seq_length, extra, index)
    index[found:] = len(document_index) - 1, lengths[document_index[-1]] - extra
    return index


def _walk(
    lengths: np.ndarray, document_index: np.ndarray, seq_length: int, extra: int, index: np.ndarray
) -> int:
    """Fills the rows of a sample index; returns how many samples begin before the end of the stream.

    numba compiles it. Lengths are gathered in blocks, which is a third faster: the processor loads many at
    once.
    """
    index[0, 0] = index[0, 1] = 0
    found, distance = 1, seq_length  # distance: from the start of the sequence to that of the next sample
    for block in range(0, len(document_index), 2048):
        sizes = lengths[document_index[block : block + 2048]]
        for i in range(len(sizes)):
            size = int(sizes[i])
            while distance <= size - extra and found < len(index):
                index[found, 0], index[found, 1] = block + i, distance
                found, distance = found + 1, distance + seq_length
            distance -= size
    return found


def cached(
    folder: Path, stem: str, names: Sequence[str], build: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Arrays `folder/stem-name.npy`, memory-mapped; built and written first unless all of them exist.

    One process builds them, and all others wait for it. Raises UserError for a file that is not whole.
    """
    paths = [folder / f"{stem}-{name}.npy" for name in names]
    if not all(p.exists() for p in paths):
        with _locked(folder):
            if not all(p.exists() for p in paths):
                for path, array in zip(paths, build()):
                    with manifest.atomic_write(path) as file:
                        np.save(file, array)
    return [open_array(path, None, None, remedy="remove the file, and it is built again") for path in paths]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder of a cache and locks it for one process; raises UserError if that fails."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except OSError as error:
            raise UserError(
                f"{folder}: the sample index cannot be written there ({error.strerror}); give another"
                " directory with --data-cache-path"
            ) from None
        yield


def open_pair(prefix: str, data: DataConfig) -> IndexedDataset:
    """Opens a local or remote pair, with the settings for remote reads."""
    if prefix.endswith((".bin", ".idx")):
        raise UserError(f"data_path: {prefix}: give the prefix alone, {prefix[:-4]}")
    folder = Path(data.data_cache_path) if data.data_cache_path else None
    return IndexedDataset(
        prefix, remote=RemoteSettings(folder, data.remote_block_bytes, data.remote_cache_bytes)
    )
