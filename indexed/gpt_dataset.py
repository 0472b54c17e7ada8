"""document, sample and shuffle index: from sequences of tokens to samples of a fixed length, in Megatron-LM's
order.

In: one or more .bin/.idx pairs, a split and the number of samples that each split shall give. Out: datasets
whose item k is the k-th sample, `seq_length + 1` tokens, of which a model reads all but the last and predicts
all but the first.

Sequences are repeated for as many epochs as the samples need, shuffled, and laid end to end into one stream:

    document index  (epochs * sequences,) int32: the order in which sequences enter the stream
    sample index    (samples + 1, 2) int32: (position in the document index, token offset) where sample j
        begins
    shuffle index   (samples,) uint32: item k is sample shuffle[k] of the stream

They are cached as .npy files, named by a digest of the data itself and of every setting that they depend on,
so that data which is tokenized again never meets a stale index; and they are memory-mapped, so that the ranks
of one machine share them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import xxhash

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from .blend import blending_indices, compiled, exhaustive_blending_indices
from .format import IndexedDataset
from .remote import Remote, exclusive, is_remote
from .splits import NAMES, ranges, shares

# what fills the last sample of a dataset that keeps it though it is not full; no loss is asked there
PAD = -1
SURPLUS = 0.005  # what a mixture's datasets hold beyond their share, as in Megatron-LM


@configuration()
class DataConfig:
    """Which tokens to train on, and how they are cut into samples."""

    data_path: tuple[str, ...] = option(
        (),
        "prefixes of .bin/.idx pairs, each after a weight or none of them: 0.7 web_text_document 0.3"
        " wiki_text_document",
        role="input",
    )
    train_data_path: tuple[str, ...] = option(
        (), "instead of --data-path and --split: prefixes for training alone, likewise", role="input"
    )
    valid_data_path: tuple[str, ...] = option((), "prefixes for validation alone", role="input")
    test_data_path: tuple[str, ...] = option((), "prefixes for test alone", role="input")
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
        1 << 20, "bytes that are read at once from s3://, gs://, hf:// ...", role="runtime"
    )
    remote_cache_bytes: int = option(
        1 << 28, "bytes of such blocks that are kept in memory, for each pair and process", role="runtime"
    )

    def __post_init__(self):
        check(
            (self.seq_length >= 1, f"seq_length = {self.seq_length} must be at least 1"),
            (
                self.remote_block_bytes >= 1 << 12,
                f"remote_block_bytes = {self.remote_block_bytes} must be at least 4096",
            ),
            (
                self.remote_cache_bytes >= 2 * self.remote_block_bytes,
                (
                    f"remote_cache_bytes = {self.remote_cache_bytes} must hold two blocks of"
                    f" remote_block_bytes = {self.remote_block_bytes}"
                ),
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
        for name in NAMES:
            self.sources(name)

    @property
    def per_split(self) -> bool:
        """Whether train, valid and test have paths of their own, all of whose sequences they use."""
        return any(getattr(self, f"{name}_data_path") for name in NAMES)

    def sources(self, name: str) -> tuple[tuple[float | None, str], ...]:
        """(weight or None, prefix) of every dataset of a split; raises UserError for weights that are mixed
        with prefixes.
        """
        key = f"{name}_data_path" if self.per_split else "data_path"
        path = getattr(self, key)
        heads = [_number(word) for word in path[::2]]
        if len(path) % 2 or all(h is None for h in heads):
            return tuple((None, prefix) for prefix in path)
        if None in heads:
            bad = path[2 * heads.index(None)]
            raise UserError(
                f"{key}: {bad!r} stands where a weight must, before its prefix; give a weight to every prefix"
                " or to none"
            )
        if min(heads) < 0 or not 0 < sum(heads) < math.inf:
            raise UserError(f"{key}: the weights {heads} must not be negative and not all be 0")
        return tuple(zip(heads, path[1::2]))

    def files(self) -> list[str]:
        """Every file that is read and lies here, for `manifest.begin`; the fingerprint of a dataset knows of
        all.
        """
        return with_suffixes(dict.fromkeys(prefix for name in NAMES for _, prefix in self.sources(name)))


def with_suffixes(prefixes: Iterable[str]) -> list[str]:
    """The files of .bin/.idx pairs that lie here."""
    return [f"{prefix}.{suffix}" for prefix in prefixes if not is_remote(prefix) for suffix in ("bin", "idx")]


class Dataset(Protocol):
    """What training sees of a split."""

    fingerprint: str  # hex digest of everything that decides the samples and their order

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> np.ndarray:
        """(seq_length + 1,) int64"""
        ...

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        """(len(indices), seq_length + 1) int64"""
        ...

    def describe(self) -> list[dict]:
        """A row for each source: prefix, weight, sequences, tokens (in one epoch), samples (that will be
        used), epochs.
        """
        ...


def build_datasets(data: DataConfig, num_samples: Sequence[int | None]) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets: None where 0 samples are asked for, one epoch where None is.

    A dataset holds at least the samples that are asked for. Raises UserError for a split that is asked for
    and has no sequences, or too few tokens for one sample.
    """

    def make(
        indexed: IndexedDataset, sequences: tuple[int, int], count: int | None, name: str, cache: Path
    ) -> GPTDataset:
        return GPTDataset(indexed, sequences, count, data.seq_length, data.seed, name=name, cache=cache)

    return build_splits(data, num_samples, make, of="sequences")


# (pair, [start, end) of its elements, samples wanted, name of the split, directory for indices) -> their
# dataset
Make = Callable[[IndexedDataset, tuple[int, int], int | None, str, Path], "Dataset"]


def build_splits(
    data: DataConfig, num_samples: Sequence[int | None], make: Make, *, of: Literal["sequences", "documents"]
) -> tuple[Dataset | None, ...]:
    """`build_datasets` for any kind of sample. of: what a split is a share of."""
    opened: dict[str, IndexedDataset] = {}
    built: list[Dataset | None] = []
    for s, (name, count) in enumerate(zip(NAMES, num_samples, strict=True)):
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
        built.append(
            mixture(
                [
                    (weight, functools.partial(_make, make, indexed, where, name, cache))
                    for weight, indexed, where in parts
                ],
                count,
                name,
                cache,
            )
        )
    return tuple(built)


def _make(
    make: Make, indexed: IndexedDataset, where: tuple[int, int], name: str, cache: Path, count: int | None
) -> Dataset:
    return make(indexed, where, count, name, cache)


class GPTDataset:
    """Samples of a range of the sequences of one .bin/.idx pair.

    num_samples: how many are wanted (None: what one epoch gives); there may be more of them. add_extra_token:
    1 where a sample has one token more than seq_length, so that every token has the one after it as its
    label. drop_last: whether a last sample that is not full is left out; else it is filled up with PAD.
    cache: directory of the indices, or None to keep them in memory.
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
        self.indexed, self.range, self.seq_length, self.extra = (
            indexed,
            document_range,
            seq_length,
            add_extra_token,
        )
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
        arrays = (
            build()
            if cache is None
            else cached(cache, stem, ("document_index", "sample_index", "shuffle_index"), build)
        )
        self.document_index, self.sample_index, self.shuffle_index = arrays
        self.num_samples = len(self) if num_samples is None else num_samples

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_views"}

    def __len__(self) -> int:
        return len(self.shuffle_index)

    def __getitem__(self, k: int) -> np.ndarray:
        return self.batch([k])[0]

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        out = np.empty((len(indices), self.seq_length + self.extra), np.int64)
        if len(indices):
            np.concatenate(
                list(itertools.chain.from_iterable(map(self._pieces, indices))), out=out.reshape(-1)
            )
        return out

    def _pieces(self, k: int) -> list[np.ndarray]:
        """Sample k, piece by piece: from its first token to the first token of the next sample, which both
        hold.
        """
        documents, samples, shuffle = self._views
        j, get = shuffle[k], self.indexed.get
        position, offset, last, stop = samples[2 * j : 2 * j + 4]
        pieces = []
        while position < last:
            pieces.append(get(documents[position], offset))
            position, offset = position + 1, 0
        pieces.append(get(documents[last], offset, stop + self.extra - offset))
        if j == len(shuffle) - 1:  # the last of the stream, the only one that need not be full
            missing = self.seq_length + self.extra - sum(map(len, pieces))
            pieces.append(np.full(missing, PAD, np.int64))
        return pieces

    @functools.cached_property
    def _views(self) -> tuple[memoryview, memoryview, memoryview]:
        """The three indices, flat: a memoryview gives Python integers three times faster than an array."""
        return tuple(
            np.ascontiguousarray(a).reshape(-1).data
            for a in (self.document_index, self.sample_index, self.shuffle_index)
        )

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[dict]:
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


class BlendedDataset:
    """A mixture of datasets in the order of blend.py.

    dataset_index, sample_index: which dataset, and which of its samples, is item k.
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

    def __getitem__(self, k: int) -> np.ndarray:
        return self.datasets[self.dataset_index[k]][self.sample_index[k]]

    def batch(self, indices: Sequence[int]) -> np.ndarray | dict[str, np.ndarray]:
        indices = np.asarray(indices)
        sources, samples = self.dataset_index[indices], self.sample_index[indices]
        used = np.unique(sources).tolist()
        parts = [self.datasets[d].batch(samples[sources == d]) for d in used]
        place = np.argsort(np.concatenate([np.flatnonzero(sources == d) for d in used]))
        if isinstance(parts[0], dict):
            return {name: np.concatenate([p[name] for p in parts])[place] for name in parts[0]}
        return np.concatenate(parts)[place]

    def describe(self) -> list[dict]:
        counts = np.bincount(self.dataset_index, minlength=len(self.datasets)).tolist()
        return [row for d, w, n in zip(self.datasets, self.weights, counts) for row in d.describe(w, n)]


def mixture(
    parts: Sequence[tuple[float | None, Callable[[int | None], Dataset]]],
    count: int | None,
    name: str,
    cache: Path,
) -> Dataset:
    """The dataset of one split of one or several sources, each a weight or None and what builds its dataset
    of so many samples.

    With weights the datasets repeat as the mixture needs. Without, each is used for one epoch, in shares of
    its size.
    """
    weights = [weight for weight, _ in parts]
    if weights[0] is None:
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
        shares_ = [n / total for n in sizes]
        order = _order(cache, sizes, None) if count is None else _order(cache, shares_, count)
        return BlendedDataset(datasets, shares_, *order)
    if count is None:
        raise UserError(
            f"data_path: a mixture with weights has no natural end; say how many {name} samples are wanted"
        )
    shares_ = [weight / sum(weights) for weight in weights]
    targets = [math.ceil(count * share) for share in shares_]
    order = _order(cache, shares_, sum(targets))
    used = np.bincount(order[0], minlength=len(parts)).tolist()
    datasets = [
        make(max(math.ceil(target * (1 + SURPLUS)), n, 1))
        for (_, make), target, n in zip(parts, targets, used)
    ]
    return BlendedDataset(datasets, shares_, *order)


def _order(cache: Path, weights: Sequence[float], size: int | None) -> list[np.ndarray]:
    """The order of a mixture, cached; without a size every sample comes once, and the weights are the
    datasets' sizes.
    """
    build = lambda: exhaustive_blending_indices(weights) if size is None else blending_indices(weights, size)
    stem = f"blend-{xxhash.xxh3_128(repr(('blend 1', list(weights), size)).encode()).hexdigest()}"
    return cached(cache, stem, ("dataset_index", "dataset_sample_index"), build)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the documents of a batch lie. B samples of T tokens."""

    # (B, T) int32: 0, 0, ..., 1, 1, ...: the documents of a sample, counted from its start
    document_ids: np.ndarray
    position_ids: np.ndarray  # (B, T) int64: the place of a token in its document's part of the sample
    # (n + 1,) int32: where the n documents begin in the batch laid end to end, then B * T
    cu_seqlens: np.ndarray
    max_seqlen: int  # tokens of the longest of them


def layout(tokens: np.ndarray, eod: int) -> Layout:
    """The documents that were packed into samples, told by the token that ends each of them.

    tokens: (B, T), what the model reads. As Megatron-LM's --reset-position-ids and --reset-attention-mask
    have it, a document goes from the token after an `eod` to its own, included. A query sees a key of the
    same sample where `document_ids` are the same and the key is not later; or let a variable-length attention
    read `cu_seqlens`. With --eod-mask-loss, the loss of a label counts where the token before it is not
    `eod`: `tokens != eod`.
    """
    size = tokens.shape[1]
    begins = np.zeros(tokens.shape, bool)
    begins[:, 0] = True
    begins[:, 1:] = tokens[:, :-1] == eod
    columns = np.arange(size)
    firsts = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    cu_seqlens = np.append(np.flatnonzero(begins), tokens.size).astype(np.int32)
    return Layout(
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
    """(document index, sample index, shuffle index) as Megatron-LM builds them, dtypes and random numbers
    included.

    lengths: (S,) int32 tokens of every sequence. indices: (n,) int32 the sequences to use. num_samples: None
    for one epoch. add_extra_token: 1 where a sample holds one token more than seq_length, which the next one
    begins with. drop_last: whether a last sample that is not full is left out.
    """
    tokens = int(lengths[indices].sum(dtype=np.int64))
    epochs = 1 if num_samples is None else max(1, -(-(num_samples * seq_length + add_extra_token) // tokens))
    separate_last_epoch = False
    if epochs > 1:
        before = ((epochs - 1) * tokens - add_extra_token) // seq_length
        per_epoch = (tokens - add_extra_token) // seq_length
        # A last epoch that is used for less than 80 % is shuffled apart: else early samples would come from
        # it.
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


def _document_index(indices: np.ndarray, epochs: int, separate_last_epoch: bool, random) -> np.ndarray:
    order = np.tile(indices.astype(np.int32), epochs)
    cut = len(order) - len(indices) if separate_last_epoch else len(order)
    random.shuffle(order[:cut])
    if separate_last_epoch:
        random.shuffle(order[cut:])
    return order


def _sample_index(
    lengths: np.ndarray, document_index: np.ndarray, tokens: int, seq_length: int, extra: int, drop_last: bool
) -> np.ndarray:
    """Where sample j > 0 begins: with extra = 1, at the place of token j * seq_length of the stream.

    With extra = 0 it is one past the token before, so that an offset may be a sequence's length, as in the
    original.
    """
    fits = max(len(document_index), int(lengths.max())) <= np.iinfo(np.int32).max
    # The original counts a last part in single precision; so do we, or the counts differ beyond 16 million
    # tokens.
    count = (
        (tokens - extra) // seq_length
        if drop_last
        else math.ceil(np.float32(tokens - extra) / np.float32(seq_length))
    )
    index = np.empty((count + 1, 2), np.int32 if fits else np.int64)
    # each a quarter of a microsecond: below 800,000 they take less than numba to load
    steps = (len(document_index) + count) // 16
    found = compiled(_walk, steps)(lengths, document_index, seq_length, extra, index)
    index[found:] = len(document_index) - 1, lengths[document_index[-1]] - extra
    return index


def _walk(lengths, document_index, seq_length, extra, index):
    """Fills the rows of a sample index from the stream; returns how many begin before its end.

    numba compiles it.

    The lengths are looked up a block at a time, so that the processor fetches many at once: a third faster.
    """
    index[0, 0] = index[0, 1] = 0
    found, distance = 1, seq_length  # of the next sample's place from the start of the sequence
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
    """Arrays `folder/stem-name.npy`, memory-mapped; built and written first where they are not all there.

    The processes that want them at once wait for the one that builds them.
    """
    paths = [folder / f"{stem}-{name}.npy" for name in names]
    if not all(p.exists() for p in paths):
        with _held(folder):
            if not all(p.exists() for p in paths):
                for path, array in zip(paths, build()):
                    with manifest.atomic_write(path) as file:
                        np.save(file, array)
    try:
        return [np.asarray(np.load(p, mmap_mode="r")) for p in paths]
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{folder}/{stem}-*.npy: not whole ({error}); remove the file, and it is built again"
        ) from None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Makes the folder of a cache and lets one process at a time build in it; raises UserError where that is
    not possible.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except OSError as error:
            raise UserError(
                f"{folder}: the sample index cannot be kept there ({error.strerror}); name another place with"
                " --data-cache-path"
            ) from None
        yield


def open_pair(prefix: str, data: DataConfig) -> IndexedDataset:
    """A pair that lies here or far away, read as the settings say."""
    if prefix.endswith((".bin", ".idx")):
        raise UserError(f"data_path: {prefix}: give the prefix alone, {prefix[:-4]}")
    folder = Path(data.data_cache_path) if data.data_cache_path else None
    return IndexedDataset(prefix, remote=Remote(folder, data.remote_block_bytes, data.remote_cache_bytes))


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
