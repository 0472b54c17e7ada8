"""document, sample and shuffle index: from sequences of tokens to samples of a fixed length, in Megatron-LM's order.

In: one or more .bin/.idx pairs, a split and the number of samples that each split shall give. Out: datasets whose item
k is the k-th sample, `seq_length + 1` tokens, of which a model reads all but the last and predicts all but the first.

Sequences are repeated for as many epochs as the samples need, shuffled, and laid end to end into one stream:

    document index  (epochs * sequences,) int32: the order in which sequences enter the stream
    sample index    (samples + 1, 2) int32: (position in the document index, token offset) where sample j begins
    shuffle index   (samples,) uint32: item k is sample shuffle[k] of the stream

They are cached as .npy files, named by a digest of the data itself and of every setting that they depend on, so that
data which is tokenized again never meets a stale index; and they are memory-mapped, so that the ranks of one machine
share them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from .. import manifest
from ..config import UserError, check, option
from .blend import blending_indices, exhaustive_blending_indices
from .format import IndexedDataset
from .splits import NAMES, ranges, shares

SURPLUS = 0.005  # what a mixture's datasets hold beyond their share, as in Megatron-LM


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which tokens to train on, and how they are cut into samples."""

    data_path: tuple[str, ...] = option(help="prefixes of .bin/.idx pairs, each after a weight or none of them: 0.7 web_text_document 0.3 wiki_text_document", role="input")
    split: str = option("969,30,1", "shares of the sequences for training, validation and test")
    seq_length: int = option(1024, "tokens of a sample")
    seed: int = option(1234, "seed of the order of the samples")
    data_cache_path: str | None = option(None, "directory for sample indices (default: `cache` beside the first pair)", role="runtime")

    def __post_init__(self):
        check(
            (self.seq_length >= 1, f"seq_length = {self.seq_length} must be at least 1"),
            (0 <= self.seed < 1 << 32, f"seed = {self.seed} must be in [0, 2**32)"),
            (len(self.data_path) > 0, "data_path must name at least one prefix of a .bin/.idx pair"),
        )
        shares(self.split)
        _ = self.sources

    @property
    def sources(self) -> tuple[tuple[float | None, str], ...]:
        """(weight or None, prefix) of every dataset; raises UserError for weights that are mixed with prefixes."""
        path = self.data_path
        heads = [_number(word) for word in path[::2]]
        if len(path) % 2 or all(h is None for h in heads):
            return tuple((None, prefix) for prefix in path)
        if None in heads:
            bad = path[2 * heads.index(None)]
            raise UserError(f"data_path: {bad!r} stands where a weight must, before its prefix; give a weight to every prefix or to none")
        if min(heads) < 0 or not 0 < sum(heads) < math.inf:
            raise UserError(f"data_path: the weights {heads} must not be negative and not all be 0")
        return tuple(zip(heads, path[1::2]))

    def files(self) -> list[str]:
        """Every file that is read, for `manifest.begin`."""
        return [f"{prefix}.{suffix}" for _, prefix in self.sources for suffix in ("bin", "idx")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexConfig(DataConfig):
    """The settings of `mt data index`: those of the data as training has them, and the samples that it will want."""

    output: str = option(help="directory for the manifest; the indices go where training looks for them", role="output")
    train_samples: int = option(help="samples for training: iterations * global batch size")
    valid_samples: int = option(0, "samples for validation; 0: none")
    test_samples: int = option(0, "samples for test; 0: none")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(*((getattr(self, f"{n}_samples") >= 0, f"{n}_samples must not be negative") for n in NAMES))


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
        """A row for each source: prefix, weight, sequences, tokens (in one epoch), samples (that will be used), epochs."""
        ...


def build_datasets(data: DataConfig, num_samples: Sequence[int | None]) -> tuple[Dataset | None, ...]:
    """The train, valid and test datasets: None where 0 samples are asked for, one epoch where None is.

    A dataset holds at least the samples that are asked for. Raises UserError for a split that is asked for and has
    no sequences, or too few tokens for one sample.
    """
    sources = [(weight, _open(prefix)) for weight, prefix in data.sources]
    splits = [ranges(data.split, len(indexed)) for _, indexed in sources]
    cache = Path(data.data_cache_path) if data.data_cache_path else Path(sources[0][1].prefix).parent / "cache"
    built: list[Dataset | None] = []
    for s, (name, count) in enumerate(zip(NAMES, num_samples, strict=True)):
        if count == 0:
            built.append(None)
            continue
        parts = [(weight, indexed, splits[i][s] or (0, 0)) for i, (weight, indexed) in enumerate(sources)]
        parts = [p for p in parts if p[0] != 0]
        for _, indexed, (start, end) in parts:
            if start == end:
                raise UserError(f"{indexed.prefix}: split = {data.split} of its {len(indexed):,} sequences leaves none for {name}; give {name} a larger share or ask for no {name} samples")

        def make(indexed, document_range, n, name=name):
            return GPTDataset(indexed, document_range, n, data.seq_length, data.seed, name=name, cache=cache)

        built.append(_blend(parts, count, name, make))
    return tuple(built)


def index(config: IndexConfig) -> dict:
    """Builds the sample indices of all splits ahead of training, which finds them by the same data settings."""
    counts = (config.train_samples, config.valid_samples, config.test_samples)
    datasets = build_datasets(config, counts)
    built = [(name, d) for name, d in zip(NAMES, datasets) if d is not None]
    rows = [{"split": name, **row} for name, d in built for row in d.describe()]
    run = manifest.begin("data index", config, config.files(), facts={"weights": [w for w, _ in config.sources]})
    if not run.finished:
        totals = {f"{name}_samples": len(d) for name, d in built}
        run.finish([], totals, sources=rows, fingerprints={name: d.fingerprint for name, d in built})
    return {**run.manifest, "text": format_rows(rows)}


def format_rows(rows: Sequence[dict]) -> str:
    """A table of `describe` rows for people."""
    cells = [("split", "weight", "sequences", "tokens", "samples", "epochs", "source")]
    cells += [
        (r["split"], "" if r["weight"] is None else f"{r['weight']:.4g}", f"{r['sequences']:,}", f"{r['tokens']:,}", f"{r['samples']:,}", f"{r['epochs']:.2f}", r["prefix"])
        for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:6], widths[1:])), row[6]]) for row in cells)


class GPTDataset:
    """Samples of a range of the sequences of one .bin/.idx pair.

    num_samples: how many are wanted (None: what one epoch gives); there may be more of them. cache: directory of the
    indices, or None to keep them in memory.
    """

    def __init__(
        self, indexed: IndexedDataset, document_range: tuple[int, int], num_samples: int | None, seq_length: int, seed: int,
        *, name: str = "train", cache: Path | None = None,
    ):
        self.indexed, self.range, self.seq_length = indexed, document_range, seq_length
        self.num_tokens = int(indexed.lengths[slice(*document_range)].sum(dtype=np.int64))
        if self.num_tokens == 0:
            raise UserError(f"{indexed.prefix}: the sequences {document_range} of the {name} split have no tokens; give {name} a larger share")
        if num_samples is None and self.num_tokens <= seq_length:
            raise UserError(f"{indexed.prefix}: the {name} split has {self.num_tokens:,} tokens, fewer than the {seq_length + 1:,} of one sample; give {name} a larger share")
        key = ("gpt 1", indexed.fingerprint, document_range, num_samples, seq_length, seed)
        self.fingerprint = xxhash.xxh3_128(repr(key).encode()).hexdigest()
        build = functools.partial(build_indices, indexed.lengths, np.arange(*document_range, dtype=np.int32), num_samples, seq_length, seed)
        stem = f"{Path(indexed.prefix).name}-{name}-{self.fingerprint}"
        arrays = build() if cache is None else cached(cache, stem, ("document_index", "sample_index", "shuffle_index"), build)
        self.document_index, self.sample_index, self.shuffle_index = arrays
        self.num_samples = len(self) if num_samples is None else num_samples

    def __len__(self) -> int:
        return len(self.shuffle_index)

    def __getitem__(self, k: int) -> np.ndarray:
        out = np.empty(self.seq_length + 1, np.int64)
        self._read(k, out)
        return out

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        out = np.empty((len(indices), self.seq_length + 1), np.int64)
        for row, k in zip(out, indices):
            self._read(k, row)
        return out

    def _read(self, k: int, out: np.ndarray) -> None:
        """Sample k: from its first token to the first token of the next sample, which both hold."""
        j = int(self.shuffle_index[k])
        (position, offset), (last, stop) = self.sample_index[j : j + 2].tolist()
        documents, get, filled = self.document_index, self.indexed.get, 0
        while position < last:
            piece = get(documents[position], offset)
            out[filled : filled + len(piece)] = piece
            filled, position, offset = filled + len(piece), position + 1, 0
        out[filled:] = get(documents[last], offset, stop + 1 - offset)

    def describe(self, weight: float | None = None, samples: int | None = None) -> list[dict]:
        samples = self.num_samples if samples is None else samples
        sequences = self.range[1] - self.range[0]
        epochs = samples * self.seq_length / self.num_tokens
        return [{"prefix": self.indexed.prefix, "weight": weight, "sequences": sequences, "tokens": self.num_tokens, "samples": samples, "epochs": round(epochs, 4)}]


class BlendedDataset:
    """A mixture of datasets in the order of blend.py.

    dataset_index, sample_index: which dataset, and which of its samples, is item k.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], dataset_index: np.ndarray, sample_index: np.ndarray):
        self.datasets, self.weights = list(datasets), list(weights)
        self.dataset_index, self.sample_index = dataset_index, sample_index
        key = ("blend 1", [d.fingerprint for d in datasets], self.weights, len(dataset_index))
        self.fingerprint = xxhash.xxh3_128(repr(key).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, k: int) -> np.ndarray:
        return self.datasets[self.dataset_index[k]][self.sample_index[k]]

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        return np.stack([self[k] for k in indices])

    def describe(self) -> list[dict]:
        counts = np.bincount(self.dataset_index, minlength=len(self.datasets)).tolist()
        return [row for d, w, n in zip(self.datasets, self.weights, counts) for row in d.describe(w, n)]


def _blend(parts: list[tuple[float | None, IndexedDataset, tuple[int, int]]], count: int | None, name: str, make: Callable) -> Dataset:
    """The dataset of one split of one or several sources; make(indexed, range, num_samples) gives that of one source.

    With weights the datasets repeat as the mixture needs. Without, each is used for one epoch, in shares of its size.
    """
    weights = [weight for weight, _, _ in parts]
    if weights[0] is None:
        if len(parts) == 1:
            return make(parts[0][1], parts[0][2], count)
        datasets = [make(indexed, where, None) for _, indexed, where in parts]
        sizes = [len(d) for d in datasets]
        total = sum(sizes)
        if count is not None and count > total:
            raise UserError(f"data_path: one epoch of its {len(parts)} prefixes has {total:,} {name} samples, fewer than the {count:,} asked for; give every prefix a weight, and they repeat as needed")
        order = exhaustive_blending_indices(sizes) if count is None else blending_indices([n / total for n in sizes], count)
        return BlendedDataset(datasets, [n / total for n in sizes], *order)
    if count is None:
        raise UserError(f"data_path: a mixture with weights has no natural end; say how many {name} samples are wanted")
    shares_ = [weight / sum(weights) for weight in weights]
    targets = [math.ceil(count * share) for share in shares_]
    order = blending_indices(shares_, sum(targets))
    used = np.bincount(order[0], minlength=len(parts)).tolist()
    datasets = [
        make(indexed, where, max(math.ceil(target * (1 + SURPLUS)), n, 1))
        for (_, indexed, where), target, n in zip(parts, targets, used)
    ]
    return BlendedDataset(datasets, shares_, *order)


def build_indices(
    lengths: np.ndarray, indices: np.ndarray, num_samples: int | None, seq_length: int, seed: int,
    *, add_extra_token: int = 1, drop_last: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document index, sample index, shuffle index) as Megatron-LM builds them, dtypes and random numbers included.

    lengths: (S,) int32 tokens of every sequence. indices: (n,) int32 the sequences to use. num_samples: None for one
    epoch. add_extra_token: 1 where a sample holds one token more than seq_length, which the next one begins with.
    drop_last: whether a last sample that is not full is left out.
    """
    tokens = int(lengths[indices].sum(dtype=np.int64))
    epochs = 1 if num_samples is None else max(1, -(-(num_samples * seq_length + add_extra_token) // tokens))
    separate_last_epoch = False
    if epochs > 1:
        before = ((epochs - 1) * tokens - add_extra_token) // seq_length
        per_epoch = (tokens - add_extra_token) // seq_length
        # A last epoch that is used for less than 80 % is shuffled apart: else early samples would come from it.
        separate_last_epoch = num_samples - before < int(0.80 * per_epoch)
    random = np.random.RandomState(seed)
    document_index = _document_index(indices, epochs, separate_last_epoch, random)
    sample_index = _sample_index(lengths, document_index, epochs * tokens, seq_length, add_extra_token, drop_last)
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


def _sample_index(lengths: np.ndarray, document_index: np.ndarray, tokens: int, seq_length: int, extra: int, drop_last: bool) -> np.ndarray:
    """Where sample j > 0 begins: with extra = 1, at the place of token j * seq_length of the stream.

    With extra = 0 it is one past the token before, so that an offset may be a sequence's length, as in the original.
    """
    fits = max(len(document_index), int(lengths.max())) <= np.iinfo(np.int32).max
    # The original counts a last part in single precision; so do we, or the counts differ beyond 16 million tokens.
    count = (tokens - extra) // seq_length if drop_last else math.ceil(np.float32(tokens - extra) / np.float32(seq_length))
    ends = np.cumsum(lengths[document_index], dtype=np.int64)
    places = np.arange(1, count + 1, dtype=np.int64) * seq_length - (1 - extra)
    position = np.searchsorted(ends, places, side="right")
    index = np.zeros((count + 1, 2), np.int32 if fits else np.int64)
    inside = position < len(ends)
    position[~inside] = len(ends) - 1
    starts = ends[position] - lengths[document_index[position]]
    index[1:, 0] = position
    index[1:, 1] = np.where(inside, places - starts + (1 - extra), lengths[document_index[-1]] - extra)
    return index


def cached(folder: Path, stem: str, names: Sequence[str], build: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Arrays `folder/stem-name.npy`, memory-mapped; built and written first where they are not all there.

    The processes that want them at once wait for the one that builds them.
    """
    paths = [folder / f"{stem}-{name}.npy" for name in names]
    if not all(p.exists() for p in paths):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / ".lock", "a")  # noqa: SIM115 - closed below
        except OSError as error:
            raise UserError(f"{folder}: the sample index cannot be kept there ({error.strerror}); name another place with --data-cache-path") from None
        with lock:
            with contextlib.suppress(OSError):  # a file system without locks: the writes are still whole
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not all(p.exists() for p in paths):
                for path, array in zip(paths, build()):
                    with manifest.atomic_write(path) as file:
                        np.save(file, array)
    try:
        return [np.asarray(np.load(p, mmap_mode="r")) for p in paths]
    except (ValueError, EOFError) as error:
        raise UserError(f"{folder}/{stem}-*.npy: not whole ({error}); remove the file, and it is built again") from None


def _open(prefix: str) -> IndexedDataset:
    if prefix.endswith((".bin", ".idx")):
        raise UserError(f"data_path: {prefix}: give the prefix alone, {prefix[:-4]}")
    return IndexedDataset(prefix)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
