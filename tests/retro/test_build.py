import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mt import cli
from mt.core import config, manifest
from mt.core.config import UserError
from mt.indexed.neighbors import Neighbors, read_database
from mt.retro import build, chunks, embed, index, row_blocks
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.embed import Embedder
from mt.retro.query import QueryConfig, query

LENGTH = 16  # bytes, which are the tokens here
FILES = ("chunks.npy", "index.faiss", "neighbors.npy", "tokenizer/tokenizer_config.json")
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


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (
            ""
            if i % 11 == 5
            else " ".join(f"{rng.choice(NOUNS)} {rng.choice(VERBS)}." for _ in range(rng.integers(1, 8)))
        )
        for i in range(count)
    ]


def settings(tmp_path, *, output="db", data=("data",), **more):
    given = {
        "data_path": [str(tmp_path / d) for d in data],
        "output": str(tmp_path / output),
        "tokenizer.tokenizer_type": "ByteLevelTokenizer",
        "chunk_length": LENGTH,
        "num_neighbors": 4,
        "workers": 1,
    }
    return config.build(BuildDbConfig, ("test", given | more))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with `data`, 60 texts, and the database `db` of it."""
    folder = tmp_path_factory.mktemp("retro")
    from mt.indexed.format import IndexedWriter

    writer = IndexedWriter(folder / "data", np.uint16, folder / "writing")
    for text in texts(60):
        tokens = [*text.encode(), 0] if text else []
        writer.add(np.array(tokens, np.uint16), [len(tokens)] if tokens else [], [1 if tokens else 0])
    writer.finish()
    build_db(settings(folder))
    return folder


def test_a_database_holds_every_chunk_and_says_what_it_counted(built):
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


def test_neighbours_are_those_of_a_brute_force_search_outside_the_own_document(built):
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
        match="5 neighbours are asked for, but the database keeps 4; rebuild it with --num-neighbors 5",
    ):
        neighbors.tokens(chosen, 5)


def test_a_second_run_returns_the_first_ones_manifest_and_other_settings_are_refused(built):
    assert build_db(settings(built, workers=2)) == manifest.manifest_of(built / "db")
    with pytest.raises(
        UserError, match=r"db: holds another run of `mt retro build-db` \(num_neighbors was 4, is 5\)"
    ):
        build_db(settings(built, num_neighbors=5))


def test_the_bytes_are_the_same_for_two_workers(built, tmp_path, monkeypatch):
    monkeypatch.setattr(row_blocks, "block_size", lambda chunks: 128)
    build_db(settings(built, output=tmp_path / "again", workers=2))
    assert contents(tmp_path / "again") == contents(built / "db")


def test_the_bytes_are_the_same_on_ray(built, tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setattr(row_blocks, "block_size", lambda chunks: 128)
    build_db(settings(built, output=tmp_path / "again", workers=2, executor="ray"))
    assert contents(tmp_path / "again") == contents(built / "db")


class Killed(BaseException):
    pass


class QuickEmbedder:
    """Counts letters; where the vectors come from is of no matter for what a kill leaves behind."""

    digest, dimension = "letters", 26

    def __init__(self, directory=None, bf16=False):
        self.directory = directory

    def __call__(self, pieces):
        return np.array([[piece.count(chr(97 + i)) for i in range(26)] for piece in pieces], np.float32)


def test_a_run_interrupted_in_any_of_its_writes_goes_on_to_the_same_bytes(built, tmp_path, monkeypatch):
    """The n-th write dies and leaves half a file under its working name, for every n."""
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
    build_db(settings(built, output=tmp_path / "whole"))
    writes = 10**9 - left[0]
    assert writes >= 12
    for allowed in range(writes):
        db = tmp_path / str(allowed)
        left[0] = allowed
        with pytest.raises(Killed):
            build_db(settings(built, output=db))
        assert not (db / "manifest.json").exists()
        # what is done is not done again, but for the write that died and those of its step
        left[0] = writes - allowed + 3
        build_db(settings(built, output=db))
        assert contents(db) == contents(tmp_path / "whole")
        assert sorted(p.name for p in db.rglob("*") if p.name.startswith(".")) == []


def test_a_run_killed_while_it_embeds_goes_on_to_the_same_bytes(built, tmp_path):
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
    build_db(settings(built, output=tmp_path / "db"))
    assert contents(tmp_path / "db") == contents(built / "db")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_block_that_was_cut_short_is_made_again(built, tmp_path, monkeypatch, damage):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_index", die)
        with pytest.raises(KeyboardInterrupt):
            build_db(settings(built, output=tmp_path / "db"))
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
            build_db(settings(built, output=tmp_path / "db"))
    assert blocks[0].stat().st_mtime_ns == kept
    build_db(settings(built, output=tmp_path / "db"))
    assert contents(tmp_path / "db") == contents(built / "db")


def test_planted_copies_are_each_others_first_neighbours(write_texts, tmp_path):
    copied = "the violin waits for the winter garden"
    write_texts("data", [*texts(20), copied])
    write_texts("other", [*texts(20, seed=1), copied])
    build_db(settings(tmp_path, data=("data", "other")))
    table = np.load(tmp_path / "db" / "chunks.npy")
    ids = np.load(tmp_path / "db" / "neighbors.npy")
    first, second = (np.flatnonzero((table["dataset"] == d) & (table["document"] == 20)) for d in (0, 1))
    assert len(first) == 3
    assert (ids[first, 0] == second).all()
    assert (ids[second, 0] == first).all()


def test_there_are_fewer_neighbours_where_there_are_fewer_chunks_than_asked_for(write_texts, tmp_path):
    write_texts("data", ["one chunk", "two chunks are in this text", ""])
    sealed = build_db(settings(tmp_path, num_neighbors=20))
    assert (sealed["counts"]["neighbors"], sealed["counts"]["neighbors_missing"]) == (2 + 1 + 1, 60 - 4)
    tokens, mask = Neighbors(tmp_path / "db").tokens(np.arange(3), 3)
    assert mask.any(-1).tolist() == [[True, True, False], [True, False, False], [True, False, False]]
    assert (tokens[~mask] == 0).all()


def test_a_dry_run_tells_sizes_and_writes_nothing(built, tmp_path):
    plan = build_db(settings(built, output=tmp_path / "new", dry_run=True))
    assert not (tmp_path / "new").exists()
    for name in ("chunks.npy", "index.faiss", "neighbors.npy"):
        assert plan["bytes"][name] == pytest.approx((built / "db" / name).stat().st_size, abs=200)
    assert "index" in plan["text"]
    assert plan["seconds"]["embedding"] > 0
    assert plan["seconds"]["neighbours"] > 0


def test_a_limit_says_what_is_left_out(built, tmp_path):
    counts = build_db(settings(built, output=tmp_path / "db", max_chunks=30))["counts"]
    assert 20 <= counts["chunks"] <= 30
    assert counts["chunks_left_out"] == counts["chunks_in"] - counts["chunks"]


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat", "SQ8"])
def test_an_extended_database_is_the_one_that_is_built_from_all_data_at_once(
    write_texts, tmp_path, monkeypatch, index
):
    for module in (build, row_blocks, embed):
        monkeypatch.setattr(module, "Embedder", QuickEmbedder)
    asked = []
    counting = lambda self, pieces: (asked.append(len(pieces)), plain(self, pieces))[1]
    plain = QuickEmbedder.__call__
    monkeypatch.setattr(QuickEmbedder, "__call__", counting)
    write_texts("old", texts(60))
    write_texts("new", texts(25, seed=1))
    build_db(settings(tmp_path, output="first", data=("old",), index=index))
    asked.clear()
    sealed = build_db(
        settings(
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
    assert sum(asked) == sealed["counts"]["chunks"] - (0 if index == "SQ8" else old)
    build_db(settings(tmp_path, output="whole", data=("old", "new"), index=index))
    # others are trained on the first data alone
    names = ("chunks.npy", "neighbors.npy", "index.faiss") if index == "Flat" else ("chunks.npy",)
    for name in names:
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    found = np.load(tmp_path / "both" / "neighbors.npy")
    assert (found[:old] >= old).any(), "old chunks find new ones"
    assert (found[old:] < old).any(), "new chunks find old ones"
    assert len(Neighbors(tmp_path / "both").tokens(np.arange(old, old + 3), 1)[0]) == 3
    assert len(np.load(tmp_path / "first" / "chunks.npy")) == old, "the old database stays as it is"


def test_only_documents_of_the_training_share_go_into_the_database(built, tmp_path, monkeypatch):
    for module in (build, row_blocks):
        monkeypatch.setattr(module, "Embedder", QuickEmbedder)
    counts = build_db(settings(built, output=tmp_path / "db", split="50,50"))["counts"]
    filled = [i for i, t in enumerate(texts(60)) if t]
    table = np.load(tmp_path / "db" / "chunks.npy")
    assert set(table["document"].tolist()) == set(filled[: round(len(filled) / 2)])
    assert counts["documents_outside_split"] == 60 - (max(table["document"]) + 1)
    assert counts["documents_in"] == 60


def test_mistakes_end_in_one_line_before_anything_is_written(write_data, write_texts, tmp_path):
    write_data("ids", [[[1, 2, 600]]])
    write_texts("empty", ["", ""])
    write_texts("data", ["a text"])
    for changed, message in [
        ({"data": ("nowhere",)}, r"nowhere\.idx: no such file"),
        (
            {"data": ("ids",)},
            "ids: has the token 600, but the tokenizer has only 512; give the tokenizer that made the data",
        ),
        ({"data": ("empty",)}, r"empty: holds no token, in 2 documents"),
        ({"index": "IVF256,Flat"}, "there are 1; use --index Flat"),
        ({"bert_model": str(tmp_path)}, r"has no config\.json"),
        (
            {"num_neighbors": 0, "chunk_length": 0},
            "chunk_length = 0 must be at least 1\nnum_neighbors = 0 must be at least 1",
        ),
        (
            {"tokenizer.tokenizer_type": "NullTokenizer", "tokenizer.tokenizer_vocab_size": 300},
            "data: retrieval works on texts, and NullTokenizer cannot turn tokens into any",
        ),
        ({"extend": str(tmp_path / "no"), "chunk_length": None}, "no: is not a finished retrieval database"),
        (
            {"extend": str(tmp_path / "db"), "index": "Flat"},
            (
                "chunk_length = 16, index = Flat: are the extended database's own; leave them out, or build a"
                " new database\noutput = .*db is the database to extend"
            ),
        ),
        ({"data": ()}, "data_path must name at least one prefix"),
    ]:
        with pytest.raises(UserError, match=message):
            build_db(settings(tmp_path, **changed))
        assert not (tmp_path / "db").exists()


def test_data_that_another_tokenizer_made_are_refused(write_texts, tmp_path):
    data = write_texts("data", ["a text"])
    run = manifest.Run(tmp_path / "data", True, "data tokenize", "key", {}, [], False, None, time.time())
    run.finish(
        [manifest.record(f"{data.prefix}.{s}", tmp_path) for s in ("bin", "idx")],
        {},
        tokenizer={"fingerprint": "another"},
    )
    with pytest.raises(UserError, match="data: was tokenised with another tokenizer than the one given"):
        build_db(settings(tmp_path))


def test_a_query_finds_its_own_text_first_and_a_chunk_never_its_own_document(built):
    table = np.load(built / "db" / "chunks.npy")
    chunk = len(table) // 2
    row = table[chunk]
    text = texts(60)[row["document"]][row["start"] : row["end"]]
    by_text, by_chunk = query(
        QueryConfig(db=str(built / "db"), text=(text,), chunk=(chunk,), num_neighbors=4)
    )["queries"]
    assert by_text["neighbors"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert by_text["neighbors"][0]["text"] == by_chunk["text"] == text
    assert [n["chunk"] for n in by_chunk["neighbors"]] == np.load(built / "db" / "neighbors.npy")[
        chunk
    ].tolist()
    assert row["document"] not in {n["document"] for n in by_chunk["neighbors"]}


def test_a_query_looks_as_widely_as_it_is_told(built, tmp_path):
    build_db(settings(built, output=tmp_path / "cells", index="IVF4,Flat", nprobe=4))
    count = lambda **how: len(
        query(QueryConfig(db=str(tmp_path / "cells"), chunk=(17,), num_neighbors=10_000, **how))["queries"][
            0
        ]["neighbors"]
    )
    chunks = len(np.load(tmp_path / "cells" / "chunks.npy"))
    assert count(nprobe=1) < count(nprobe=2) < count() < chunks
    with pytest.raises(UserError, match="nprobe = 0 must be at least 1"):
        count(nprobe=0)


def test_a_query_is_a_table_for_people_and_its_data_for_programs(built):
    summary = cli.call(
        ("retro", "query"), ["a river falls", "--db", str(built / "db"), "--num-neighbors", "2"]
    )
    lines = cli.format_summary(summary).splitlines()
    assert lines[0] == "a river falls"
    assert lines[1].split() == ["distance", "chunk", "document", "text"]
    shown = json.loads(json.dumps(summary))["queries"][0]["neighbors"]
    assert [n["chunk"] for n in shown] == [int(line.split()[1]) for line in lines[2:]]
    assert len(shown) == 2


def test_token_ids_are_looked_up_as_the_text_they_are(built):
    ids = " ".join(map(str, b"a river falls"))
    by_text, by_tokens = query(QueryConfig(db=str(built / "db"), text=("a river falls",), tokens=(ids,)))[
        "queries"
    ]
    assert by_text == by_tokens
    for wrong, message in [
        ("12 x", "must be token ids"),
        ("9999", "has the token 9999, but the tokenizer has only 512"),
        ("-1", "is not negative"),
    ]:
        with pytest.raises(UserError, match=message):
            query(QueryConfig(db=str(built / "db"), tokens=(wrong,)))


def test_a_question_that_cannot_be_answered_is_refused(built, tmp_path):
    db = str(built / "db")
    with pytest.raises(UserError, match="there is nothing to look up; give --text, --tokens or --chunk"):
        QueryConfig(db=db)
    with pytest.raises(UserError, match=r"chunk 9999: .*db has the chunks 0 to"):
        query(QueryConfig(db=db, chunk=(9999,)))
    with pytest.raises(
        UserError, match="is not a finished retrieval database; make one with `mt retro build-db"
    ):
        query(QueryConfig(db=str(tmp_path), text=("x",)))


def copy_of(built, folder):
    """The database and its data, moved together."""
    for name in ("data.bin", "data.idx", "db/manifest.json", *(f"db/{f}" for f in FILES)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((built / name).read_bytes())
    return folder / "db"


def test_a_database_moves_with_its_data_and_refuses_other_data(built, write_texts, tmp_path):
    db = copy_of(built, tmp_path)
    assert len(Neighbors(db)) == len(Neighbors(built / "db"))
    (tmp_path / "data.idx").rename(tmp_path / "moved.idx")
    with pytest.raises(
        UserError,
        match=(
            r"data\.idx: no such file, but the database .* was built from it; say where the data are now with"
            r" --data-path"
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
def test_a_database_with_a_file_cut_short_is_refused_and_built_again(built, tmp_path, name):
    db = copy_of(built, tmp_path)
    os.truncate(db / name, 200)
    with pytest.raises(
        UserError,
        match=rf"{name}: has 200 bytes where the manifest promises .*; run the command that made it again",
    ):
        read_database(db)


def test_a_model_that_did_not_make_the_vectors_is_refused(built, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (model / name).symlink_to(Path(Embedder().directory) / name)
    with pytest.raises(
        UserError,
        match=r"model: is not the model that made the vectors of .*; name that one with --bert-model",
    ):
        query(QueryConfig(db=str(built / "db"), text=("x",), bert_model=str(model)))
