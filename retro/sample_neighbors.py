"""retrieval database + training data -> the neighbours of every sample that a training run will draw.

    train.npy, valid.npy, test.npy   (samples, chunks of a sample, k) int64: the nearest chunks of each chunk
        of the
                                     sample's first seq_length tokens, -1 where there are fewer
    manifest.json                    the fact `samples` (indexed/neighbors.py: Samples); written last
    parts/                           blocks of them meanwhile: a killed run redoes one block a worker

With --project-hdf5 they are those that Megatron-LM's Retro found.

A chunk finds nothing of any document that its sample has tokens of (Retro, Borgeaud et al. 2022, section 2.1;
the last label counts too). Samples are cut anew in every epoch, so each costs the embedding of its chunks.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import numpy as np

from ..core import manifest
from ..core.config import UserError, build, check, configuration, option, to_dict
from ..core.executor import Workers
from ..indexed.format import IndexedDataset
from ..indexed.gpt_dataset import NAMES, BlendedDataset, DataConfig, GPTDataset, build_datasets
from ..indexed.neighbors import Database, Samples, describe_samples, read_database, sample_documents
from ..tokenizer.tokenizer import load_directory
from .chunks import check_data, document_ranges, texts_of
from .embed import open_same
from .index import SearchConfig, nearest
from .megatron_hdf5 import ExchangedNeighbors
from .row_blocks import (
    block_size,
    count_missing,
    join_blocks,
    map_blocks,
    once,
    open_embedder,
    open_searched,
    open_tokenizer,
    write_npy_header,
)


@configuration()
class NeighborsConfig(SearchConfig, DataConfig, Workers):
    """The settings of `mt retro neighbors`: those of the data as training has them, and the samples that it
    will want.
    """

    db: str = option(help="the database that `mt retro build-db` made", role="input")
    output: str = option(help="directory for the neighbours", role="output")
    train_samples: int = option(help="samples for training: iterations * global batch size")
    valid_samples: int = option(0, "samples for validation: --eval-iters * global batch size; 0: none")
    test_samples: int = option(0, "samples for test; 0: none")
    num_neighbors: int = option(20, "neighbours to keep for each chunk of a sample")
    bert_model: str | None = option(
        None, "where the BERT of the database lies now, if it has moved", role="input"
    )
    project_hdf5: str | None = option(
        None,
        "take the neighbours from this project of Megatron-LM's Retro, whose db/merged/train.hdf5 the"
        " database was made of (--chunks-hdf5), made for the same samples",
        role="input",
    )
    dry_run: bool = option(
        False, "print what would be made and its sizes, and write nothing but sample indices", role="runtime"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        DataConfig.__post_init__(self)
        Workers.__post_init__(self)
        SearchConfig.__post_init__(self)
        check(
            *((getattr(self, f"{n}_samples") >= 0, f"{n}_samples must not be negative") for n in NAMES),
            (
                any(getattr(self, f"{n}_samples") > 0 for n in NAMES),
                "train_samples, valid_samples and test_samples are all 0; ask for some",
            ),
            (self.num_neighbors >= 1, f"num_neighbors = {self.num_neighbors} must be at least 1"),
        )

    @property
    def num_samples(self) -> tuple[int, ...]:
        return tuple(getattr(self, f"{name}_samples") for name in NAMES)


def neighbors(config: NeighborsConfig) -> dict:
    """Finds the neighbours of samples; returns the manifest, or with dry_run what would be made."""
    root = Path(config.db)
    database = read_database(root)
    if config.seq_length % database["chunk_length"]:
        raise UserError(
            f"seq_length = {config.seq_length} is not a multiple of the {database['chunk_length']} tokens of"
            f" a chunk of {root}; change it, or build a database with another --chunk-length"
        )
    datasets = {
        name: d for name, d in zip(NAMES, build_datasets(config, config.num_samples)) if d is not None
    }
    tokenizer = load_directory(root / "tokenizer")
    for dataset in _pairs(datasets.values()):
        check_data(dataset, tokenizer)
    embedder = None if config.project_hdf5 else open_same(database, config.bert_model, root)
    splits = {name: describe_samples(d) for name, d in datasets.items()}
    shapes = {
        name: (s["samples"], config.seq_length // database["chunk_length"], config.num_neighbors)
        for name, s in splits.items()
    }
    exchanged = {}
    if config.project_hdf5:
        asked = {n: (getattr(config, f"{n}_samples") * s[1], s[0] * s[1]) for n, s in shapes.items()}
        exchanged = {
            n: ExchangedNeighbors(Path(config.project_hdf5), n, asked[n], s[2], len(_chunk_table(root)))
            for n, s in shapes.items()
        }
    if config.dry_run:
        return _plan(shapes)

    read = [root, *(file for found in exchanged.values() for file in found.files)]
    run = manifest.begin("retro neighbors", config, [*config.files(), *read], facts={"splits": splits})
    if run.finished:
        return run.manifest
    work = _Work(str(root), str(embedder.directory), database, config, run.key) if embedder else None
    for name, shape in shapes.items():
        path = run.output / f"{name}.npy"
        if path.exists():
            continue
        if work is None:
            _take(exchanged[name], path, shape, datasets[name], root, database)
            continue
        make = functools.partial(_search_samples, split=name, work=work)
        size = max(1, block_size(shape[0] * shape[1]) // shape[1])
        blocks = map_blocks(
            make,
            shape[0],
            size,
            run.output / "parts" / name,
            label=f"retro neighbors: {name}",
            where=config.where,
        )
        join_blocks(blocks, path, shape)
    shutil.rmtree(run.output / "parts", ignore_errors=True)
    files = [run.output / f"{name}.npy" for name in shapes]
    asked = sum(int(np.prod(shape)) for shape in shapes.values())
    missing = sum(count_missing(file) for file in files)
    counts = {
        **{f"{name}_samples": shape[0] for name, shape in shapes.items()},
        "chunks": asked // config.num_neighbors,
        "neighbors": asked - missing,
        "neighbors_missing": missing,
    }
    made = Samples(
        database=os.path.relpath(root, run.output),
        database_key=manifest.manifest_of(root)["key"],
        num_neighbors=config.num_neighbors,
        splits=splits,
    )
    return run.finish(
        [manifest.record(f, run.output) for f in files], counts, samples=made, draws=_draws(config)
    )


def _take(
    found: ExchangedNeighbors,
    path: Path,
    shape: tuple[int, int, int],
    dataset: GPTDataset | BlendedDataset,
    root: Path,
    database: Database,
) -> None:
    """Writes one split's neighbours as Megatron-LM found them.

    Nothing in its files says of which samples they are. What was found for other samples would now and then
    be of the sample's own document, which is looked for in each.
    """
    table, fingerprints, row = _chunk_table(root), [d["fingerprint"] for d in database["data"]], 0
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
        # samples of a mixture that nobody asked for
        file.write(np.full((shape[0] * shape[1] - row, shape[2]), -1, "<i8").tobytes())


def _draws(config: NeighborsConfig) -> dict:
    """What `drawn` needs to find the samples again."""
    names = {f.name for f in dataclasses.fields(DataConfig)}
    data = {name: value for name, value in to_dict(config).items() if name in names}
    there = {
        name: [os.path.abspath(w) if Path(f"{w}.idx").exists() else w for w in data[name]]
        for name in data
        if name.endswith("data_path")
    }
    return {"data": data | there, "num_samples": list(config.num_samples)}


def drawn(draws: dict, split: str) -> GPTDataset | BlendedDataset:
    """The samples of a split whose neighbours were found, from the fact `draws` of their manifest."""
    counts = [count if name == split else 0 for name, count in zip(NAMES, draws["num_samples"])]
    return build_datasets(build(DataConfig, ("samples", draws["data"])), counts)[NAMES.index(split)]


def _pairs(datasets) -> list[IndexedDataset]:
    return [
        pair
        for d in datasets
        for pair in (_pairs(d.datasets) if isinstance(d, BlendedDataset) else [d.indexed])
    ]


def _plan(shapes: dict[str, tuple[int, int, int]]) -> dict:
    sizes = {f"{name}.npy": 8 * int(np.prod(shape)) for name, shape in shapes.items()}
    lines = [
        f"{name}.npy  {' x '.join(f'{n:,}' for n in shape)}  {sizes[f'{name}.npy'] / 1e6:,.1f} MB"
        for name, shape in shapes.items()
    ]
    return {"text": "\n".join(lines), "bytes": sizes}


# --- what a worker does


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a worker needs to open the samples and the database. Equal where the keys are: for `once`."""

    root: str
    bert_model: str
    database: Database = dataclasses.field(hash=False)
    config: NeighborsConfig = dataclasses.field(hash=False)
    key: str  # of the run


def _search_samples(start: int, stop: int, *, split: str, work: _Work) -> np.ndarray:
    """Neighbours of samples [start, stop): (n, chunks of a sample, k) int64."""
    dataset, table = _dataset(work, split), _table(work)
    length = work.database["chunk_length"]
    per_sample = dataset_seq_length(dataset) // length
    tokens = dataset.batch(range(start, stop))[:, : per_sample * length].reshape(-1, length)
    texts = texts_of(
        tokens,
        np.ones(tokens.shape, bool),
        open_tokenizer(work.root),
        f"{split} sample {start} or one soon after",
    )
    vectors = open_embedder(work.bert_model, work.database["embedder"]["bf16"])(texts)
    own = own_documents(dataset, range(start, stop), table, [d["fingerprint"] for d in work.database["data"]])
    # Every chunk of a sample shuns what its sample does.
    samples, rows = own[:, 0], np.arange(per_sample)
    own = np.column_stack(
        [(samples[:, None] * per_sample + rows).ravel(), np.repeat(own[:, 1:], per_sample, axis=0)]
    )
    own = own[np.lexsort((own[:, 1], own[:, 0]))]
    ids = nearest(
        open_searched(work.root, *work.config.of(work.database)), vectors, work.config.num_neighbors, own
    )[1]
    return ids.reshape(stop - start, per_sample, -1)


def own_documents(
    dataset: GPTDataset | BlendedDataset, samples: range, table: np.ndarray, fingerprints: list[str]
) -> np.ndarray:
    """(m, 3) int64, rows (number in `samples`, first id, past the last): the chunks of all documents of each
    sample.

    fingerprints: of the pairs of the database, in its order. Data that the database has not have none.
    """
    rows = []
    for i, k in enumerate(samples):
        indexed, documents = sample_documents(dataset, k)
        for number, fingerprint in enumerate(fingerprints):  # a pair may be there twice
            if fingerprint == indexed.fingerprint:
                rows.append(
                    np.column_stack([np.full(len(documents), i), np.full(len(documents), number), documents])
                )
    if not rows:
        return np.empty((0, 3), np.int64)
    found = np.concatenate(rows).astype(np.int64)
    return np.column_stack([found[:, 0], document_ranges(table, found[:, 1:])])


def dataset_seq_length(dataset: GPTDataset | BlendedDataset) -> int:
    return (
        dataset_seq_length(dataset.datasets[0]) if isinstance(dataset, BlendedDataset) else dataset.seq_length
    )


@once
def _dataset(work: _Work, split: str) -> GPTDataset | BlendedDataset:
    """The samples of a split, whose indices the run's own process has left in the cache."""
    return drawn(_draws(work.config), split)


@once
def _table(work: _Work) -> np.ndarray:
    return _chunk_table(work.root)


def _chunk_table(root: str | Path) -> np.ndarray:
    return np.asarray(np.load(Path(root) / "chunks.npy", mmap_mode="r"))
