"""Finds the neighbours of every sample that a training run will draw (`mt retro neighbors`).

    train.npy, valid.npy, test.npy   (samples, chunks of a sample, k) int64: the nearest chunks of every chunk
                                     of the sample's first seq_length tokens; -1: missing
    manifest.json                    `samples` (SamplesInfo in indexed/neighbors.py) and more; written last
    parts/                           temporary blocks of neighbours; a resumed run computes at most one block
                                     of each worker again

With --project-hdf5 the neighbours are those that Megatron-LM's Retro found.

A chunk has no neighbour from any document that its sample has tokens of, the last label included (Retro,
Borgeaud et al. 2022, section 2.1). Every epoch cuts new samples, so the chunks of each of them are embedded.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..core import manifest
from ..core.config import UserError, build, check, configuration, option, to_dict
from ..core.executor import Workers, once
from ..core.parsing import MADE_BY_MT, Count, check_value
from ..indexed.format import IndexedDataset
from ..indexed.gpt_dataset import BlendedDataset, DataConfig, Dataset, GPTDataset, build_datasets
from ..indexed.neighbors import (
    DatabaseInfo,
    SamplesInfo,
    describe_samples,
    open_table,
    read_database,
    sample_documents,
)
from ..indexed.splits import SPLIT_NAMES
from ..tokenizer.tokenizer import load_directory
from .chunks import check_data, document_ranges, texts_of
from .embed import open_same
from .index import SearchConfig, nearest
from .megatron_hdf5 import MegatronNeighbors
from .row_blocks import (
    block_size,
    cached_in_worker,
    count_missing,
    discard_parts,
    join_blocks,
    map_blocks,
    open_embedder,
    open_search_index,
    open_tokenizer,
    write_npy_header,
)


@configuration()
class NeighborsConfig(SearchConfig, DataConfig, Workers):
    """The settings of `mt retro neighbors`: the data settings and numbers of samples of the training run."""

    db: str = option(help="a database of `mt retro build-db`", role="input")
    output: str = option(help="directory for the neighbours", role="output")
    train_samples: int = option(help="samples for training: iterations * global batch size")
    valid_samples: int = option(0, "samples for validation: --eval-iters * global batch size; 0: none")
    test_samples: int = option(0, "samples for test; 0: none")
    num_neighbors: int = option(20, "number of neighbours of each chunk of a sample")
    bert_model: str | None = option(
        None, "present directory of the database's BERT, if it has moved", role="input"
    )
    project_hdf5: str | None = option(
        None,
        "take the neighbours from this project of Megatron-LM's Retro, made for the same samples; the"
        " database must have the chunks of its db/merged/train.hdf5 (--chunks-hdf5)",
        role="input",
    )
    dry_run: bool = option(
        False, "print the sizes of the output, and write nothing but sample indices", role="runtime"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        Workers.__post_init__(self)
        SearchConfig.__post_init__(self)
        check(
            *((getattr(self, f"{n}_samples") >= 0, f"{n}_samples must not be negative") for n in SPLIT_NAMES),
            (
                any(getattr(self, f"{n}_samples") > 0 for n in SPLIT_NAMES),
                "train_samples, valid_samples and test_samples are all 0; raise one of them",
            ),
            (self.num_neighbors >= 1, f"num_neighbors = {self.num_neighbors} must be at least 1"),
        )

    @property
    def num_samples(self) -> tuple[int, ...]:
        return tuple(getattr(self, f"{name}_samples") for name in SPLIT_NAMES)


def neighbors(config: NeighborsConfig) -> dict[str, Any]:
    """Finds the neighbours of samples; returns the manifest, or with dry_run the sizes of the output."""
    root = Path(config.db)
    database = read_database(root)
    if config.seq_length % database["chunk_length"]:
        raise UserError(
            f"seq_length = {config.seq_length} is not a multiple of the {database['chunk_length']} tokens of"
            f" a chunk of {root}; change it, or build a database with another --chunk-length"
        )
    built = zip(SPLIT_NAMES, build_datasets(config, config.num_samples))
    datasets = {name: dataset for name, dataset in built if dataset is not None}
    tokenizer = load_directory(root / "tokenizer")
    for pair in _pairs(datasets.values()):
        check_data(pair, tokenizer)
    embedder = None if config.project_hdf5 else open_same(database, config.bert_model, root)
    splits = {name: describe_samples(d) for name, d in datasets.items()}
    shapes = {
        name: (s["samples"], config.seq_length // database["chunk_length"], config.num_neighbors)
        for name, s in splits.items()
    }
    exchanged = {}
    if config.project_hdf5:
        for name, (samples, per_sample, k) in shapes.items():
            rows = getattr(config, f"{name}_samples") * per_sample, samples * per_sample
            exchanged[name] = MegatronNeighbors(
                Path(config.project_hdf5), name, rows, k, len(open_table(root))
            )
    if config.dry_run:
        return _plan(shapes)

    read = [root, *(file for found in exchanged.values() for file in found.files)]
    run = manifest.begin("retro neighbors", config, [*config.files(), *read], facts={"splits": splits})
    if run.finished:
        discard_parts(run.output)
        return run.manifest
    task = _SearchTask(str(root), str(embedder.directory), database, config, run.key) if embedder else None
    for name, shape in shapes.items():
        path = run.output / f"{name}.npy"
        if task is None:
            write = functools.partial(
                _import_neighbors, exchanged[name], path, shape, datasets[name], root, database
            )
            once(write, run.output / "parts", name)
            continue
        make = functools.partial(_search_samples, split=name, task=task)
        size = max(1, block_size(shape[0] * shape[1]) // shape[1])
        blocks = map_blocks(
            make,
            shape[0],
            size,
            run.output / "parts" / name,
            label=f"retro neighbors: {name}",
            where=config.where,
        )
        once(functools.partial(join_blocks, blocks, path, shape), run.output / "parts", f"{name}_joined")
    files = [run.output / f"{name}.npy" for name in shapes]
    entries = sum(int(np.prod(shape)) for shape in shapes.values())
    missing = sum(count_missing(file) for file in files)
    counts = {
        **{f"{name}_samples": shape[0] for name, shape in shapes.items()},
        "chunks": entries // config.num_neighbors,
        "neighbors": entries - missing,
        "neighbors_missing": missing,
    }
    database_manifest = manifest.manifest_of(root)
    assert database_manifest is not None, "read_database found it"
    info = SamplesInfo(
        database=os.path.relpath(root, run.output),
        database_key=database_manifest["key"],
        num_neighbors=config.num_neighbors,
        splits=splits,
    )
    sealed = run.finish(
        [manifest.record(f, run.output) for f in files], counts, samples=info, draws=_draws(config)
    )
    discard_parts(run.output)
    return sealed


def _import_neighbors(
    found: MegatronNeighbors,
    path: Path,
    shape: tuple[int, int, int],
    dataset: Dataset,
    root: Path,
    database: DatabaseInfo,
) -> None:
    """Writes the neighbours of a split that Megatron-LM found.

    Its files do not say which samples they are for. Neighbours of other samples would sooner or later be from
    a sample's own document, so every sample is checked for that.
    """
    table, fingerprints, row = open_table(root), [d["fingerprint"] for d in database["data"]], 0
    with manifest.atomic_write(path) as file:
        write_npy_header(file, np.dtype("<i8"), shape)
        for ids in found:
            file.write(ids.tobytes())
            samples = range(row // shape[1], (row + len(ids) - 1) // shape[1] + 1)
            for sample, first, stop in own_documents(dataset, samples, table, fingerprints).tolist():
                start = max(0, samples[sample] * shape[1] - row)
                here = ids[start : max(0, (samples[sample] + 1) * shape[1] - row)]
                if ((here >= first) & (here < stop)).any():
                    raise UserError(
                        f"{found.folder}: gives sample {samples[sample]} a neighbour of a document of its"
                        " own, so it was made for other samples; give the data settings and numbers of"
                        " samples that it was made with"
                    )
            row += len(ids)
        # a blend has more samples than requested
        file.write(np.full((shape[0] * shape[1] - row, shape[2]), -1, "<i8").tobytes())


def _draws(config: NeighborsConfig) -> dict[str, Any]:
    """What `rebuild_dataset` needs: the data settings, with absolute paths, and the numbers of samples."""
    names = {f.name for f in dataclasses.fields(DataConfig)}
    data = {name: value for name, value in to_dict(config).items() if name in names}
    absolute = {
        name: [os.path.abspath(word) if Path(f"{word}.idx").exists() else word for word in data[name]]
        for name in data
        if name.endswith("data_path")
    }
    return {"data": data | absolute, "num_samples": list(config.num_samples)}


class Draws(TypedDict):
    """`draws` in the manifest of the neighbours of samples."""

    data: dict[str, Any]
    num_samples: list[Count]


def rebuild_dataset(draws: dict[str, Any], split: str, cache: str | None = None) -> Dataset:
    """The dataset of a split whose neighbours were found, from `draws` in their manifest.

    cache: folder for what is cached if the manifest names one, which is not written to: a stranger may have
    named it. The dataset reads from there.
    """
    check_value(draws, Draws, "`draws` of the neighbours' manifest.json", MADE_BY_MT)
    if draws["data"].get("data_cache_path") is not None:
        draws = {**draws, "data": {**draws["data"], "data_cache_path": cache}}
    counts = [count if name == split else 0 for name, count in zip(SPLIT_NAMES, draws["num_samples"])]
    datasets = build_datasets(build(DataConfig, ("samples", draws["data"])), counts)
    dataset = datasets[SPLIT_NAMES.index(split)]
    assert dataset is not None, f"{split} has neighbours, so it has samples"
    return dataset


def _pairs(datasets: Iterable[Dataset]) -> Iterator[IndexedDataset]:
    """The .bin/.idx pairs of datasets."""
    for dataset in datasets:
        if isinstance(dataset, BlendedDataset):
            yield from _pairs(dataset.datasets)
        elif isinstance(dataset, GPTDataset):
            yield dataset.indexed


def _plan(shapes: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """The shapes and sizes of the output: what dry_run prints."""
    sizes = {f"{name}.npy": 8 * int(np.prod(shape)) for name, shape in shapes.items()}
    lines = [
        f"{name}.npy  {' x '.join(f'{n:,}' for n in shape)}  {sizes[f'{name}.npy'] / 1e6:,.1f} MB"
        for name, shape in shapes.items()
    ]
    return {"text": "\n".join(lines), "bytes": sizes}


# --- in a worker process


@dataclasses.dataclass(frozen=True)
class _SearchTask:
    """The arguments of a worker: the samples and the database. Hashable, for `cached_in_worker`."""

    root: str
    bert_model: str
    database: DatabaseInfo = dataclasses.field(hash=False)
    config: NeighborsConfig = dataclasses.field(hash=False)
    key: str  # of the run


def _search_samples(start: int, stop: int, *, split: str, task: _SearchTask) -> np.ndarray:
    """The neighbours of samples [start, stop): (n, chunks of a sample, k) int64."""
    dataset, table, database = _dataset(task, split), _table(task), task.database
    length = database["chunk_length"]
    per_sample = task.config.seq_length // length
    batch = dataset.batch(range(start, stop))
    assert isinstance(batch, np.ndarray), "describe_samples refuses samples that are not arrays of tokens"
    tokens = batch[:, : per_sample * length].reshape(-1, length)
    place = f"one of the {split} samples {start} to {stop - 1}"
    texts = texts_of(tokens, np.ones(tokens.shape, bool), open_tokenizer(task.root), place)
    vectors = open_embedder(task.bert_model, database["embedder"]["bf16"])(texts)
    own = own_documents(dataset, range(start, stop), table, [d["fingerprint"] for d in database["data"]])
    # No chunk of a sample may find the sample's documents.
    samples, rows = own[:, 0], np.arange(per_sample)
    own = np.column_stack(
        [(samples[:, None] * per_sample + rows).ravel(), np.repeat(own[:, 1:], per_sample, axis=0)]
    )
    own = own[np.lexsort((own[:, 1], own[:, 0]))]
    index = open_search_index(task.root, *task.config.search_width(database), vectors.shape[1])
    _, ids = nearest(index, vectors, task.config.num_neighbors, own)
    return ids.reshape(stop - start, per_sample, -1)


def own_documents(dataset: Dataset, samples: range, table: np.ndarray, fingerprints: list[str]) -> np.ndarray:
    """The chunks of each sample's documents: (m, 3) int64, (sample, first id, one past the last).

    fingerprints: of the database's pairs, in its order. Data that is not in the database has no chunks.
    """
    rows = []
    for i, k in enumerate(samples):
        indexed, documents = sample_documents(dataset, k)
        for number, fingerprint in enumerate(fingerprints):  # a pair may occur twice
            if fingerprint == indexed.fingerprint:
                rows.append(
                    np.column_stack([np.full(len(documents), i), np.full(len(documents), number), documents])
                )
    if not rows:
        return np.empty((0, 3), np.int64)
    found = np.concatenate(rows).astype(np.int64)
    return np.column_stack([found[:, 0], document_ranges(table, found[:, 1:])])


@cached_in_worker
def _dataset(task: _SearchTask, split: str) -> Dataset:
    """The samples of a split; the main process has cached their indices."""
    return rebuild_dataset(_draws(task.config), split)


@cached_in_worker
def _table(task: _SearchTask) -> np.ndarray:
    return open_table(task.root)
