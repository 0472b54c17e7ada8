import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mt import cli
from mt.core import config, manifest
from mt.core.config import UserError
from mt.indexed.fim import FimDataset
from mt.indexed.gpt_dataset import DataConfig, build_datasets
from mt.indexed.neighbors import SampleNeighbors, sample_documents
from mt.retro import sample_neighbors
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.embed import Embedder
from mt.retro.sample_neighbors import NeighborsConfig, neighbors
from mt.tests.retro.small_databases import (
    LENGTH,
    SEQ,
    datasets,
    neighbor_settings,
    texts,
    write,
)


def documents_by_loop(dataset, k):
    """(pair, document) of every token of a sample, by a loop over the stream of tokens."""
    inner, j = dataset.datasets[dataset.dataset_index[k]], dataset.sample_index[k]
    lengths, starts = inner.indexed.lengths, inner.indexed.document_indices
    owner = [
        next(d for d in range(len(starts) - 1) if starts[d] <= s < starts[d + 1]) for s in range(len(lengths))
    ]
    stream = [owner[s] for s in inner.document_index for _ in range(lengths[s])]
    at = int(inner.shuffle_index[j]) * SEQ
    return Path(inner.indexed.prefix).name, set(stream[at : at + SEQ + 1])


def test_the_documents_of_a_sample_are_those_of_its_tokens(folder):
    train, _, _ = datasets(folder)
    for k in range(60):
        indexed, found = sample_documents(train, k)
        assert (Path(indexed.prefix).name, set(found.tolist())) == documents_by_loop(train, k)


@pytest.mark.parametrize(("split", "count"), [("train", 150), ("valid", 9)])
def test_neighbours_of_a_sample_equal_those_of_a_brute_force_search_outside_its_documents(
    folder, split, count
):
    dataset = datasets(folder)[("train", "valid").index(split)]
    table, found = np.load(folder / "db" / "chunks.npy"), np.load(folder / "near" / f"{split}.npy")
    assert found.shape == (len(dataset), SEQ // LENGTH, 3)
    assert found.dtype == np.int64
    assert len(dataset) >= count
    corpus = [texts(40, 0, 8), texts(40, 1, 8)]
    embed = Embedder()
    vectors = embed([corpus[r["dataset"]][r["document"]][r["start"] : r["end"]] for r in table]).astype(
        np.float64
    )
    for k in range(0, count, 3):
        sample = dataset[k][:SEQ].reshape(-1, LENGTH)
        queries = embed([bytes(row[row != 0].tolist()).decode() for row in sample]).astype(np.float64)
        distances = ((queries[:, None] - vectors) ** 2).sum(-1)
        name, own = documents_by_loop(dataset, k)
        if name in "ab":
            distances[:, (table["dataset"] == "ab".index(name)) & np.isin(table["document"], list(own))] = (
                np.inf
            )
        np.testing.assert_allclose(
            np.take_along_axis(distances, found[k], 1), np.sort(distances, 1)[:, :3], atol=1e-5
        )


def test_training_reads_the_neighbours_of_a_sample_with_their_continuations(folder):
    train, valid, _ = datasets(folder)
    read = SampleNeighbors(folder / "near", train)
    assert (read.chunk_length, len(read), read.split) == (LENGTH, len(train), "train")
    tokens, mask = read.tokens(7, 2)
    assert tokens.shape == mask.shape == (SEQ // LENGTH, 2, 2 * LENGTH)
    assert (tokens.dtype, mask.dtype) == (np.int64, bool)
    table, ids, corpus = (
        np.load(folder / "db" / "chunks.npy"),
        np.load(folder / "near" / "train.npy"),
        [texts(40, 0, 8), texts(40, 1, 8)],
    )
    for i in range(SEQ // LENGTH):
        for j in range(2):
            row = table[ids[7, i, j]]
            assert (
                bytes(tokens[i, j][mask[i, j]].tolist()).decode()
                == corpus[row["dataset"]][row["document"]][row["start"] :][: 2 * LENGTH]
            )
    several = read.tokens(np.array([7, 3]), 2)
    assert (several[0][0] == tokens).all()
    assert several[0].shape == (2, SEQ // LENGTH, 2, 2 * LENGTH)
    assert SampleNeighbors(folder / "near", valid).split == "valid"
    with pytest.raises(
        UserError,
        match=(
            "4 neighbours are requested, but every chunk has 3; run `mt retro neighbors` again with"
            " --num-neighbors 4"
        ),
    ):
        read.tokens(7, 4)


def test_a_sample_whose_document_is_the_whole_database_has_masked_neighbours(tmp_path):
    write(tmp_path / "a", ["the river falls and the garden grows while the violin sings in winter " * 3])
    common = {"data_path": [str(tmp_path / "a")], "workers": 1}
    build_db(
        config.build(
            BuildDbConfig,
            (
                "test",
                common
                | {
                    "output": str(tmp_path / "db"),
                    "tokenizer_type": "ByteLevelTokenizer",
                    "chunk_length": LENGTH,
                },
            ),
        )
    )
    given = common | {
        "split": "1",
        "seq_length": SEQ,
        "db": str(tmp_path / "db"),
        "output": str(tmp_path / "near"),
        "train_samples": 4,
    }
    sealed = neighbors(config.build(NeighborsConfig, ("test", given)))
    assert sealed["counts"] == {
        "train_samples": 4,
        "chunks": 16,
        "neighbors": 0,
        "neighbors_missing": 16 * 20,
    }
    train, *_ = build_datasets(
        DataConfig(data_path=(str(tmp_path / "a"),), split="1", seq_length=SEQ), (4, 0, 0)
    )
    tokens, mask = SampleNeighbors(tmp_path / "near", train).tokens(0, 2)
    assert not mask.any()
    assert (tokens == 0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"data_path": ("2", "b", "1", "a", "1", "c")},
            r"its neighbours \(train\) are of other data; give the same --data-path",
        ),
        ({"split": "70,30"}, "are of another part of the data; give the same --split"),
        ({"seq_length": 32}, "are of samples of 64 tokens, not 32; give the same --seq-length"),
        ({"seed": 5}, "are of the samples in another order; give the same --seed"),
        (
            {"data_path": ("1", "a", "1", "b", "1", "c")},
            "are of the samples in another order; give the same --seed, the same weights",
        ),
    ],
)
def test_neighbours_of_other_samples_are_refused(folder, changed, message):
    if "data_path" in changed:
        changed = {"data_path": tuple(str(folder / p) if p in "abc" else p for p in changed["data_path"])}
    train, *_ = datasets(folder, (150, 0, 0), **changed)
    with pytest.raises(UserError, match=message):
        SampleNeighbors(folder / "near", train)


def test_neighbours_serve_runs_with_fewer_of_the_same_samples_but_not_with_more(folder, tmp_path):
    alone = {"data_path": (str(folder / "a"),), "split": "80,20"}
    given = alone | {
        "data_path": [str(folder / "a")],
        "output": str(tmp_path / "near"),
        "train_samples": 10,
        "valid_samples": 0,
    }
    neighbors(neighbor_settings(folder, **given))
    read = SampleNeighbors(tmp_path / "near", datasets(folder, (6, 0, 0), **alone)[0])
    assert len(read) == 10
    with pytest.raises(
        UserError,
        match=(
            r"has neighbours of 10 train samples, fewer than the 12 of this run; run `mt retro neighbors`"
            r" with --train-samples 12"
        ),
    ):
        SampleNeighbors(tmp_path / "near", datasets(folder, (12, 0, 0), **alone)[0])
    with pytest.raises(UserError, match="and a number of samples that needs as many epochs"):
        SampleNeighbors(tmp_path / "near", datasets(folder, (100, 0, 0), **alone)[0])


def test_neighbours_of_another_database_and_transformed_samples_are_refused(folder, tmp_path):
    train, _, _ = datasets(folder)
    shutil.copytree(folder / "near", tmp_path / "near")
    shutil.copytree(folder / "db", tmp_path / "db")
    for name in ("a", "b"):
        for suffix in ("bin", "idx"):
            (tmp_path / f"{name}.{suffix}").symlink_to(folder / f"{name}.{suffix}")
    SampleNeighbors(tmp_path / "near", train)
    sealed = json.loads((tmp_path / "db" / "manifest.json").read_text())
    (tmp_path / "db" / "manifest.json").write_text(json.dumps(sealed | {"key": "another"}))
    with pytest.raises(
        UserError,
        match=r"is not the database that the neighbours in .* were found in: it was built again or extended",
    ):
        SampleNeighbors(tmp_path / "near", train)
    with pytest.raises(UserError, match="not for those of a FimDataset"):
        SampleNeighbors(folder / "near", FimDataset.__new__(FimDataset))
    with pytest.raises(
        UserError, match="is not the finished neighbours of samples; make them with `mt retro neighbors"
    ):
        SampleNeighbors(folder / "db", train)
    (tmp_path / "near" / "train.npy").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train\.npy: has 5 bytes where the manifest records"):
        SampleNeighbors(tmp_path / "near", train)


def test_bytes_do_not_depend_on_blocks_workers_and_interruptions(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_neighbors, "block_size", lambda chunks: 256)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample_neighbors, "join_blocks", die)
        with pytest.raises(KeyboardInterrupt):
            neighbors(neighbor_settings(folder, output=str(tmp_path / "near"), workers=2))
    blocks = sorted((tmp_path / "near" / "parts" / "train").glob("*.npy"))
    assert len(blocks) == 3
    blocks[1].write_bytes(b"cut short")
    kept = blocks[0].stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(sample_neighbors, "join_blocks", die)
        with pytest.raises(KeyboardInterrupt):
            neighbors(neighbor_settings(folder, output=str(tmp_path / "near")))
    assert blocks[0].stat().st_mtime_ns == kept
    neighbors(neighbor_settings(folder, output=str(tmp_path / "near")))
    for name in ("train.npy", "valid.npy"):
        assert (tmp_path / "near" / name).read_bytes() == (folder / "near" / name).read_bytes()
    assert neighbors(
        neighbor_settings(folder, output=str(tmp_path / "near"), workers=2)
    ) == manifest.manifest_of(tmp_path / "near")


def test_impossible_settings_are_refused_before_anything_is_written(folder, tmp_path):
    for changed, message in [
        (
            {"seq_length": 60},
            r"seq_length = 60 is not a multiple of the 16 tokens of a chunk of .*db; change it",
        ),
        ({"db": str(folder / "near")}, "is not a finished retrieval database"),
        ({"train_samples": 0, "valid_samples": 0}, "are all 0; raise one of them"),
        ({"num_neighbors": 0}, "num_neighbors = 0 must be at least 1"),
        ({"bert_model": str(tmp_path)}, r"no checkpoint of mt train .*; check the path"),
    ]:
        with pytest.raises(UserError, match=message):
            neighbors(neighbor_settings(folder, **({"output": str(tmp_path / "new")} | changed)))
        assert not (tmp_path / "new").exists()


def test_the_command_prints_its_plan_and_its_counts(folder, tmp_path):
    arguments = [
        "--db",
        str(folder / "db"),
        "--output",
        str(tmp_path / "near"),
        "--data-path",
        str(folder / "a"),
        "--seq-length",
        "64",
        "--split",
        "100",
        "--train-samples",
        "5",
        "--workers",
        "1",
    ]
    planned = cli.call(("retro", "neighbors"), [*arguments, "--dry-run"])
    assert planned["bytes"] == {"train.npy": 5 * 4 * 20 * 8}
    assert not (tmp_path / "near").exists()
    assert cli.call(("retro", "neighbors"), arguments)["counts"]["chunks"] == 20
