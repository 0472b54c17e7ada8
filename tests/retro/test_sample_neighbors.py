import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mt import cli
from mt.core import config, manifest
from mt.core.config import UserError
from mt.indexed.fim import FimDataset
from mt.indexed.format import IndexedWriter
from mt.indexed.gpt_dataset import DataConfig, build_datasets
from mt.indexed.neighbors import SampleNeighbors, sample_documents
from mt.retro import sample_neighbors
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.embed import Embedder
from mt.retro.inspect import InspectConfig, inspect
from mt.retro.sample_neighbors import NeighborsConfig, neighbors

LENGTH, SEQ = 16, 64  # bytes, which are the tokens here
NOUNS = [
    "river",
    "mountain",
    "violin",
    "engine",
    "planet",
    "garden",
    "letter",
    "bridge",
    "winter",
    "soldier",
    "island",
    "horse",
]
VERBS = ["sings", "falls", "grows", "waits", "turns", "burns", "sleeps", "shines", "travels", "breaks"]


def write(prefix, texts):
    """Documents of up to two sequences each, of bytes, ended by 0; an empty text is an empty document."""
    writer = IndexedWriter(prefix, np.uint16, Path(f"{prefix}.parts"))
    for i, text in enumerate(texts):
        tokens = [*text.encode(), 0] if text else []
        cut = len(tokens) // 2 if i % 3 == 0 else 0
        lengths = [n for n in (cut, len(tokens) - cut) if n]
        writer.add(np.array(tokens, np.uint16), lengths, [len(lengths)])
    writer.finish()


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [
        (
            ""
            if i % 11 == 5
            else " ".join(f"{rng.choice(NOUNS)} {rng.choice(VERBS)}." for _ in range(rng.integers(1, 9)))
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data `a` and `b`, the database `db` of both, and the neighbours `near` of a mixture of them and of `c`."""
    folder = tmp_path_factory.mktemp("samples")
    for seed, name in enumerate("abc"):
        write(folder / name, texts(40, seed))
    build_db(
        config.build(
            BuildDbConfig,
            (
                "test",
                {
                    "data_path": [str(folder / "a"), str(folder / "b")],
                    "output": str(folder / "db"),
                    "tokenizer.tokenizer_type": "ByteLevelTokenizer",
                    "chunk_length": LENGTH,
                    "num_neighbors": 2,
                    "workers": 1,
                },
            ),
        )
    )
    neighbors(settings(folder))
    return folder


def settings(folder, **more):
    given = {
        "data_path": ["2", str(folder / "a"), "1", str(folder / "b"), "1", str(folder / "c")],
        "split": "80,20",
        "seq_length": SEQ,
        "db": str(folder / "db"),
        "output": str(folder / "near"),
        "train_samples": 150,
        "valid_samples": 9,
        "num_neighbors": 3,
        "workers": 1,
    }
    return config.build(NeighborsConfig, ("test", given | more))


def datasets(folder, counts=(150, 9, 0), **more):
    data = {
        "data_path": ("2", str(folder / "a"), "1", str(folder / "b"), "1", str(folder / "c")),
        "split": "80,20",
        "seq_length": SEQ,
    }
    return build_datasets(DataConfig(**(data | more)), counts)


def documents_by_loop(dataset, k):
    """(pair, document) of every token of a sample, told by walking along the stream."""
    inner, j = dataset.datasets[dataset.dataset_index[k]], dataset.sample_index[k]
    lengths, starts = inner.indexed.lengths, inner.indexed.document_indices
    owner = [
        next(d for d in range(len(starts) - 1) if starts[d] <= s < starts[d + 1]) for s in range(len(lengths))
    ]
    stream = [owner[s] for s in inner.document_index for _ in range(lengths[s])]
    at = int(inner.shuffle_index[j]) * SEQ
    return Path(inner.indexed.prefix).name, set(stream[at : at + SEQ + 1])


def test_the_documents_of_a_sample_are_those_that_its_tokens_are_of(folder):
    train, _, _ = datasets(folder)
    for k in range(60):
        indexed, found = sample_documents(train, k)
        assert (Path(indexed.prefix).name, set(found.tolist())) == documents_by_loop(train, k)


@pytest.mark.parametrize(("split", "count"), [("train", 150), ("valid", 9)])
def test_neighbours_of_a_sample_are_those_of_a_brute_force_search_outside_its_documents(folder, split, count):
    dataset = datasets(folder)[("train", "valid").index(split)]
    table, found = np.load(folder / "db" / "chunks.npy"), np.load(folder / "near" / f"{split}.npy")
    assert found.shape == (len(dataset), SEQ // LENGTH, 3)
    assert found.dtype == np.int64
    assert len(dataset) >= count
    corpus = [texts(40, 0), texts(40, 1)]
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
        [texts(40, 0), texts(40, 1)],
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
            "4 neighbours are asked for, but 3 are kept for every chunk; run `mt retro neighbors` again with"
            " --num-neighbors 4"
        ),
    ):
        read.tokens(7, 4)


def test_a_sample_whose_own_document_is_all_the_database_finds_nothing_and_it_is_masked(tmp_path):
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


def test_a_run_that_draws_fewer_of_the_same_samples_is_served_and_one_that_draws_more_is_not(
    folder, tmp_path
):
    alone = {"data_path": (str(folder / "a"),), "split": "80,20"}
    given = alone | {
        "data_path": [str(folder / "a")],
        "output": str(tmp_path / "near"),
        "train_samples": 10,
        "valid_samples": 0,
    }
    neighbors(settings(folder, **given))
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


def test_neighbours_of_another_database_and_samples_that_are_rearranged_are_refused(folder, tmp_path):
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
        match=r"is not the database that the neighbours in .* are of: it has been built anew or extended",
    ):
        SampleNeighbors(tmp_path / "near", train)
    with pytest.raises(UserError, match="not for those of a FimDataset"):
        SampleNeighbors(folder / "near", FimDataset.__new__(FimDataset))
    with pytest.raises(
        UserError, match="is not the finished neighbours of samples; make them with `mt retro neighbors"
    ):
        SampleNeighbors(folder / "db", train)
    (tmp_path / "near" / "train.npy").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train\.npy: has 5 bytes where the manifest promises"):
        SampleNeighbors(tmp_path / "near", train)


def test_bytes_are_the_same_in_other_blocks_on_two_workers_and_after_an_interruption(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample_neighbors, "block_size", lambda chunks: 256)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample_neighbors, "join_blocks", die)
        with pytest.raises(KeyboardInterrupt):
            neighbors(settings(folder, output=str(tmp_path / "near"), workers=2))
    blocks = sorted((tmp_path / "near" / "parts" / "train").glob("*.npy"))
    assert len(blocks) == 3
    blocks[1].write_bytes(b"cut short")
    kept = blocks[0].stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(sample_neighbors, "join_blocks", die)
        with pytest.raises(KeyboardInterrupt):
            neighbors(settings(folder, output=str(tmp_path / "near")))
    assert blocks[0].stat().st_mtime_ns == kept
    neighbors(settings(folder, output=str(tmp_path / "near")))
    for name in ("train.npy", "valid.npy"):
        assert (tmp_path / "near" / name).read_bytes() == (folder / "near" / name).read_bytes()
    assert neighbors(settings(folder, output=str(tmp_path / "near"), workers=2)) == manifest.manifest_of(
        tmp_path / "near"
    )


def test_mistakes_end_in_one_line_before_anything_is_written(folder, tmp_path):
    for changed, message in [
        (
            {"seq_length": 60},
            r"seq_length = 60 is not a multiple of the 16 tokens of a chunk of .*db; change it",
        ),
        ({"db": str(folder / "near")}, "is not a finished retrieval database"),
        ({"train_samples": 0, "valid_samples": 0}, "are all 0; ask for some"),
        ({"num_neighbors": 0}, "num_neighbors = 0 must be at least 1"),
        ({"bert_model": str(tmp_path)}, r"has no config\.json"),
    ]:
        with pytest.raises(UserError, match=message):
            neighbors(settings(folder, **({"output": str(tmp_path / "new")} | changed)))
        assert not (tmp_path / "new").exists()


def test_the_command_says_what_it_would_make_and_what_it_made(folder, tmp_path):
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


def test_a_sample_is_shown_chunk_by_chunk_with_its_neighbours(folder):
    train, valid, _ = datasets(folder)
    shown = inspect(InspectConfig(directory=str(folder / "near"), sample=7, num_neighbors=3))
    assert (
        "".join(c["text"] for c in shown["chunks"]) == bytes(t for t in train[7][:SEQ].tolist() if t).decode()
    )
    ids = np.load(folder / "near" / "train.npy")[7]
    assert [[n["chunk"] for n in c["neighbors"]] for c in shown["chunks"]] == ids.tolist()
    tokens, mask = SampleNeighbors(folder / "near", train).tokens(7, 3)
    assert (
        shown["chunks"][1]["neighbors"][2]["text"]
        == bytes(tokens[1, 2][mask[1, 2] & (tokens[1, 2] > 0)].tolist()).decode()
    )
    assert shown["text"].splitlines()[1].startswith(f"    chunk {ids[0, 0]}: ")
    first = inspect(InspectConfig(directory=str(folder / "near"), sample=0, sample_split="valid"))["chunks"][
        0
    ]["text"]
    assert first == bytes(t for t in valid[0][:LENGTH].tolist() if t).decode()
    assert inspect(InspectConfig(directory=str(folder / "near")))["facts"]["train_samples"] >= 150


def test_a_database_shows_its_facts_and_a_chunk_with_its_neighbours(folder):
    shown = inspect(InspectConfig(directory=str(folder / "db"), chunk=(5,)))
    row = np.load(folder / "db" / "chunks.npy")[5]
    assert shown["facts"]["chunks"] == len(np.load(folder / "db" / "chunks.npy"))
    assert shown["chunks"][0]["text"] == texts(40, 0)[row["document"]][row["start"] : row["end"]]
    assert [n["chunk"] for n in shown["chunks"][0]["neighbors"]] == np.load(folder / "db" / "neighbors.npy")[
        5
    ].tolist()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"directory": "near", "chunk": (1,)}, "holds the neighbours of samples; ask it with --sample"),
        ({"directory": "db", "sample": 1}, "is not the finished neighbours of samples"),
        ({"directory": "db", "chunk": (9999,)}, r"chunk 9999: .*db has the chunks 0 to"),
        ({"directory": "near", "sample": 9999}, r"sample 9999: .*near has the train samples 0 to"),
        (
            {"directory": "near", "sample": 1, "sample_split": "test"},
            "sample_split = test: .*near has train, valid",
        ),
        ({"directory": "nowhere"}, "is not a finished retrieval database"),
    ],
)
def test_what_cannot_be_shown_is_said(folder, asked, message):
    with pytest.raises(UserError, match=message):
        inspect(InspectConfig(**(asked | {"directory": str(folder / asked["directory"])})))
