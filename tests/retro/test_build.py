import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mt.core import manifest
from mt.core.config import UserError
from mt.indexed.neighbors import Neighbors, read_database
from mt.retro import build, chunks, embed, index, row_blocks
from mt.retro.build import build_db
from mt.retro.embed import Embedder
from mt.retro.query import QueryConfig, query
from mt.tests.retro.small_databases import (
    FILES,
    LENGTH,
    contents,
    database_settings,
    texts,
)


def test_a_database_has_every_chunk_and_its_counts(built):
    sealed = manifest.manifest_of(built / "db")
    filled = [t for t in texts(60) if t]
    total = sum(-(-len(t) // LENGTH) for t in filled)
    assert sealed["counts"] == {
        "documents_in": 60,
        "documents_outside_split": 0,
        "empty_documents": 60 - len(filled),
        "documents": len(filled),
        "chunks_in": total,
        "chunks_left_out": 0,
        "chunks": total,
        "neighbors": 4 * total,
        "neighbors_missing": 0,
    }
    assert {o["name"] for o in sealed["outputs"]} == set(FILES)
    assert sealed["database"]["index"] == "Flat"
    assert not (built / "db" / "parts").exists()


def test_neighbours_equal_those_of_a_brute_force_search_outside_the_own_document(built):
    table, found = np.load(built / "db" / "chunks.npy"), np.load(built / "db" / "neighbors.npy")
    pieces = [texts(60)[row["document"]][row["start"] : row["end"]] for row in table]
    vectors = Embedder()(pieces).astype(np.float64)
    distances = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    distances[table["document"][:, None] == table["document"][None]] = np.inf
    assert found.shape == (len(table), 4)
    np.testing.assert_allclose(
        np.take_along_axis(distances, found, 1), np.sort(distances, 1)[:, :4], atol=1e-5
    )


def test_training_reads_each_neighbour_with_its_continuation(built):
    neighbors = Neighbors(built / "db")
    chosen = np.array([3, 0, 3, len(neighbors) - 1])
    tokens, mask = neighbors.tokens(chosen, 2)
    assert tokens.shape == mask.shape == (4, 2, 2 * LENGTH)
    table, corpus = np.load(built / "db" / "chunks.npy"), texts(60)
    for i, chunk in enumerate(chosen):
        for j, neighbor in enumerate(np.load(built / "db" / "neighbors.npy")[chunk, :2]):
            text = corpus[table[neighbor]["document"]][table[neighbor]["start"] :][: 2 * LENGTH]
            assert bytes(tokens[i, j][mask[i, j]].tolist()).decode() == text
    with pytest.raises(
        UserError,
        match="5 neighbours are requested, but the database has 4; build it again with --num-neighbors 5",
    ):
        neighbors.tokens(chosen, 5)


def test_a_second_run_is_up_to_date_and_other_settings_are_refused(built):
    assert build_db(database_settings(built, workers=2)) == manifest.manifest_of(built / "db")
    with pytest.raises(
        UserError, match=r"db: holds another run of `mt retro build-db` \(num_neighbors was 4, is 5\)"
    ):
        build_db(database_settings(built, num_neighbors=5))


@pytest.mark.slow  # 12 s of a CPU: both import torch; test_sample_neighbors.py runs two workers
def test_two_workers_write_the_same_bytes(built, tmp_path, monkeypatch):
    monkeypatch.setattr(row_blocks, "block_size", lambda chunks: 128)
    build_db(database_settings(built, output=tmp_path / "again", workers=2))
    assert contents(tmp_path / "again") == contents(built / "db")


@pytest.mark.slow  # 6 s: Ray's workers import torch; tests/core/test_executor.py runs Ray
def test_ray_writes_the_same_bytes(built, tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(row_blocks, "block_size", lambda chunks: 128)
    build_db(database_settings(built, output=tmp_path / "again", workers=2, executor="ray"))
    assert contents(tmp_path / "again") == contents(built / "db")


class Killed(BaseException):
    pass


class QuickEmbedder:
    """Counts letters instead of running a model; tests of interrupted runs may use any vectors."""

    digest, dimension = "letters", 26

    def __init__(self, directory=None, bf16=False):
        self.directory = directory

    def __call__(self, pieces):
        return np.array([[piece.count(chr(97 + i)) for i in range(26)] for piece in pieces], np.float32)


def test_a_run_interrupted_in_any_of_its_writes_resumes_to_the_same_bytes(built, tmp_path, monkeypatch):
    """For every n: the n-th write fails and leaves half a file under its temporary name."""
    whole_write, left = manifest.atomic_write, [10**9]

    @contextlib.contextmanager
    def dying_write(path, mode="wb"):
        left[0] -= 1
        if left[0] < 0:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).with_name(f".{Path(path).name}.partial").write_bytes(b"half a fi")
            raise Killed
        with whole_write(path, mode) as file:
            yield file

    for module in (manifest, chunks, index):
        monkeypatch.setattr(module, "atomic_write", dying_write)
    for module in (build, row_blocks):
        monkeypatch.setattr(module, "Embedder", QuickEmbedder)
    build_db(database_settings(built, output=tmp_path / "whole"))
    writes = 10**9 - left[0]
    assert writes >= 12
    for allowed in range(writes):
        db = tmp_path / str(allowed)
        left[0] = allowed
        with pytest.raises(Killed):
            build_db(database_settings(built, output=db))
        assert not (db / "manifest.json").exists()
        # only the failed write and the other writes of its step are repeated
        left[0] = writes - allowed + 3
        build_db(database_settings(built, output=db))
        assert contents(db) == contents(tmp_path / "whole")
        assert sorted(p.name for p in db.rglob("*") if p.name.startswith(".")) == []


@pytest.mark.slow  # 6 s of a CPU: a process; the test above interrupts every write
def test_a_run_killed_while_it_embeds_resumes_to_the_same_bytes(built, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mt",
        "retro",
        "build-db",
        "--data-path",
        str(built / "data"),
        "--output",
        str(tmp_path / "db"),
        "--tokenizer-type",
        "ByteLevelTokenizer",
        "--chunk-length",
        str(LENGTH),
        "--num-neighbors",
        "4",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "db" / "parts" / "embeddings").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    build_db(database_settings(built, output=tmp_path / "db"))
    assert contents(tmp_path / "db") == contents(built / "db")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_block_is_computed_again(built, tmp_path, monkeypatch, damage):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_index", die)
        with pytest.raises(KeyboardInterrupt):
            build_db(database_settings(built, output=tmp_path / "db"))
    blocks = sorted((tmp_path / "db" / "parts" / "embeddings").glob("*.npy"))
    assert len(blocks) == 2
    if damage == "cut":
        os.truncate(blocks[1], 1000)
    else:
        blocks[1].unlink()
    kept = blocks[0].stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_index", die)
        with pytest.raises(KeyboardInterrupt):
            build_db(database_settings(built, output=tmp_path / "db"))
    assert blocks[0].stat().st_mtime_ns == kept
    build_db(database_settings(built, output=tmp_path / "db"))
    assert contents(tmp_path / "db") == contents(built / "db")


def test_planted_copies_are_each_others_first_neighbours(write_texts, tmp_path):
    copied = "the violin waits for the winter garden"
    write_texts("data", [*texts(20), copied])
    write_texts("other", [*texts(20, seed=1), copied])
    build_db(database_settings(tmp_path, data=("data", "other")))
    table = np.load(tmp_path / "db" / "chunks.npy")
    ids = np.load(tmp_path / "db" / "neighbors.npy")
    first, second = (np.flatnonzero((table["dataset"] == d) & (table["document"] == 20)) for d in (0, 1))
    assert len(first) == 3
    assert (ids[first, 0] == second).all()
    assert (ids[second, 0] == first).all()


def test_there_are_fewer_neighbours_than_requested_if_there_are_fewer_chunks(write_texts, tmp_path):
    write_texts("data", ["one chunk", "two chunks are in this text", ""])
    sealed = build_db(database_settings(tmp_path, num_neighbors=20))
    assert (sealed["counts"]["neighbors"], sealed["counts"]["neighbors_missing"]) == (2 + 1 + 1, 60 - 4)
    tokens, mask = Neighbors(tmp_path / "db").tokens(np.arange(3), 3)
    assert mask.any(-1).tolist() == [[True, True, False], [True, False, False], [True, False, False]]
    assert (tokens[~mask] == 0).all()


def test_a_dry_run_prints_sizes_and_writes_nothing(built, tmp_path):
    plan = build_db(database_settings(built, output=tmp_path / "new", dry_run=True))
    assert not (tmp_path / "new").exists()
    for name in ("chunks.npy", "index.faiss", "neighbors.npy"):
        assert plan["bytes"][name] == pytest.approx((built / "db" / name).stat().st_size, abs=200)
    assert "index" in plan["text"]
    assert plan["seconds"]["embedding"] > 0
    assert plan["seconds"]["neighbours"] > 0


def test_chunks_beyond_max_chunks_are_counted(built, tmp_path):
    counts = build_db(database_settings(built, output=tmp_path / "db", max_chunks=30))["counts"]
    assert 20 <= counts["chunks"] <= 30
    assert counts["chunks_left_out"] == counts["chunks_in"] - counts["chunks"]


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat", "SQ8"])
def test_an_extended_database_equals_one_built_from_all_data_at_once(
    write_texts, tmp_path, monkeypatch, index
):
    for module in (build, row_blocks, embed):
        monkeypatch.setattr(module, "Embedder", QuickEmbedder)
    counts = []
    counting = lambda self, pieces: (counts.append(len(pieces)), plain(self, pieces))[1]
    plain = QuickEmbedder.__call__
    monkeypatch.setattr(QuickEmbedder, "__call__", counting)
    write_texts("old", texts(60))
    write_texts("new", texts(25, seed=1))
    build_db(database_settings(tmp_path, output="first", data=("old",), index=index))
    counts.clear()
    sealed = build_db(
        database_settings(
            tmp_path,
            output="both",
            data=("new",),
            extend=str(tmp_path / "first"),
            chunk_length=None,
            num_neighbors=None,
        )
    )
    assert sealed["database"]["num_neighbors"] == 4
    old = sealed["counts"]["chunks_extended"]
    assert sum(counts) == sealed["counts"]["chunks"] - (0 if index == "SQ8" else old)
    build_db(database_settings(tmp_path, output="whole", data=("old", "new"), index=index))
    # indices that need training are trained on the first data only
    names = ("chunks.npy", "neighbors.npy", "index.faiss") if index == "Flat" else ("chunks.npy",)
    for name in names:
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    found = np.load(tmp_path / "both" / "neighbors.npy")
    assert (found[:old] >= old).any(), "old chunks find new ones"
    assert (found[old:] < old).any(), "new chunks find old ones"
    assert len(Neighbors(tmp_path / "both").tokens(np.arange(old, old + 3), 1)[0]) == 3
    assert len(np.load(tmp_path / "first" / "chunks.npy")) == old, "the old database stays as it is"


def test_only_documents_of_the_training_split_are_in_the_database(built, tmp_path, monkeypatch):
    for module in (build, row_blocks):
        monkeypatch.setattr(module, "Embedder", QuickEmbedder)
    counts = build_db(database_settings(built, output=tmp_path / "db", split="50,50"))["counts"]
    filled = [i for i, t in enumerate(texts(60)) if t]
    table = np.load(tmp_path / "db" / "chunks.npy")
    assert set(table["document"].tolist()) == set(filled[: round(len(filled) / 2)])
    assert counts["documents_outside_split"] == 60 - (max(table["document"]) + 1)
    assert counts["documents_in"] == 60


def test_impossible_settings_are_refused_before_anything_is_written(write_data, write_texts, tmp_path):
    write_data("ids", [[[1, 2, 600]]])
    write_texts("empty", ["", ""])
    write_texts("data", ["a text"])
    for changed, message in [
        ({"data": ("nowhere",)}, r"nowhere\.idx: no such file"),
        (
            {"data": ("ids",)},
            "ids: has the token 600, but the tokenizer has only 512; give the tokenizer that made the data",
        ),
        ({"data": ("empty",)}, r"empty: has no token in 2 documents"),
        ({"index": "IVF256,Flat"}, "there are 1; use --index Flat"),
        ({"bert_model": str(tmp_path)}, r"no checkpoint of mt train .*; check the path"),
        (
            {"num_neighbors": 0, "chunk_length": 0},
            "chunk_length = 0 must be at least 1\nnum_neighbors = 0 must be at least 1",
        ),
        ({"chunk_length": 65_537}, "chunk_length = 65537 must be at most 65536"),
        (
            {"tokenizer.tokenizer_type": "NullTokenizer", "tokenizer.tokenizer_vocab_size": 300},
            "data: retrieval needs texts, and NullTokenizer cannot decode tokens",
        ),
        ({"extend": str(tmp_path / "no"), "chunk_length": None}, "no: is not a finished retrieval database"),
        (
            {"extend": str(tmp_path / "db"), "index": "Flat"},
            (
                "chunk_length = 16, index = Flat: an extended database keeps its own; leave them out, or"
                " build a new database\noutput = .*db is the database to extend"
            ),
        ),
        ({"data": ()}, "data_path must name at least one prefix"),
    ]:
        with pytest.raises(UserError, match=message):
            build_db(database_settings(tmp_path, **changed))
        assert not (tmp_path / "db").exists()


def test_data_of_another_tokenizer_is_refused(write_texts, tmp_path):
    data = write_texts("data", ["a text"])
    run = manifest.Run(tmp_path / "data", True, "data tokenize", "key", {}, [], False, None, time.time())
    run.finish(
        [manifest.record(f"{data.prefix}.{s}", tmp_path) for s in ("bin", "idx")],
        {},
        tokenizer={"fingerprint": "another", "vocab_size": 257, "eod": 0},
    )
    with pytest.raises(UserError, match="data: was written with another tokenizer"):
        build_db(database_settings(tmp_path))


def copy_of(built, folder):
    """A copy of the database and its data in another folder."""
    for name in ("data.bin", "data.idx", "db/manifest.json", *(f"db/{f}" for f in FILES)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((built / name).read_bytes())
    return folder / "db"


def test_a_database_can_be_moved_with_its_data_and_refuses_other_data(built, write_texts, tmp_path):
    db = copy_of(built, tmp_path)
    assert len(Neighbors(db)) == len(Neighbors(built / "db"))
    (tmp_path / "data.idx").rename(tmp_path / "moved.idx")
    with pytest.raises(
        UserError,
        match=(
            r"data\.idx: no such file, but the database .* was built from it; give the present prefixes"
            r" of the data with --data-path"
        ),
    ):
        Neighbors(db)
    (tmp_path / "data.bin").rename(tmp_path / "moved.bin")
    assert len(Neighbors(db, [str(tmp_path / "moved")]).tokens(np.arange(3), 1)[0]) == 3
    write_texts("data", ["other data"])
    with pytest.raises(UserError, match=r"data: is not the data that the database .* was built from"):
        Neighbors(db)
    with pytest.raises(UserError, match="was built from --data-path of length 1, not 2"):
        Neighbors(db, ["a", "b"])


@pytest.mark.parametrize("name", ["chunks.npy", "neighbors.npy", "index.faiss"])
def test_a_database_with_a_truncated_file_is_refused(built, tmp_path, name):
    db = copy_of(built, tmp_path)
    os.truncate(db / name, 200)
    with pytest.raises(
        UserError,
        match=rf"{name}: has 200 bytes where the manifest records .*; run the command that made it again",
    ):
        read_database(db)


def test_another_embedding_model_than_that_of_the_database_is_refused(built, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (model / name).symlink_to(Path(Embedder().directory) / name)
    with pytest.raises(
        UserError,
        match=r"model: is not the model that made the vectors of .*; give that one with --bert-model",
    ):
        query(QueryConfig(db=str(built / "db"), text=("x",), bert_model=str(model)))


@pytest.mark.parametrize("more", [{"max_chunks": 3}, {"split": "90,10"}, {"extend": "old"}])
def test_settings_of_chunks_are_refused_with_chunks_from_hdf5(tmp_path, more):
    given = {"chunks_hdf5": "train.hdf5", "chunk_length": None}
    assert database_settings(tmp_path, **given).chunks_hdf5 == "train.hdf5"
    with pytest.raises(UserError, match="chunks_hdf5 determines all chunks; leave out --extend"):
        database_settings(tmp_path, **given, **more)
