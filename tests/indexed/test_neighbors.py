"""Chunks and neighbours as tokens, compared with tables worked by hand."""

import json

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.neighbors import CHUNK, Chunks, document_offsets, open_data, read_database, read_fact

EOD, PAD, LENGTH = 0, 99, 4
DOCUMENTS = [
    [[[1, 2, 3, 4, 5, EOD]], [], [[6, 7, 8, 9]]],
    [[[10, 11], [12, 13, 14, 15, 16, 17, 18, EOD]], []],
]
# (dataset, document, start, end)
TABLE = [(0, 0, 0, 4), (0, 0, 4, 5), (0, 2, 0, 4), (1, 0, 0, 4), (1, 0, 4, 8), (1, 0, 8, 9)]


@pytest.fixture
def data(tmp_path):
    datasets = []
    for number, documents in enumerate(DOCUMENTS):
        writer = IndexedWriter(tmp_path / f"d{number}", np.uint16, tmp_path / f"work{number}")
        for sequences in documents:
            writer.add([t for s in sequences for t in s], [len(s) for s in sequences], [len(sequences)])
        writer.finish()
        datasets.append(IndexedDataset(tmp_path / f"d{number}"))
    return datasets


@pytest.fixture
def chunks(data):
    """Chunks 0: 1 2 3 4, 1: 5, 2: 6 7 8 9, 3: 10..13, 4: 14..17, 5: 18."""
    return Chunks(np.array(TABLE, CHUNK), data, LENGTH, PAD)


def kept(tokens, mask):
    assert (tokens[~mask] == PAD).all()
    return [row[keep].tolist() for row, keep in zip(tokens, mask)]


def test_chunks_are_the_tokens_of_the_documents_and_padding(chunks):
    tokens, mask = chunks.tokens(np.array([5, 0, 1, 4, -1]))
    assert tokens.dtype == np.int64
    assert kept(tokens, mask) == [[18], [1, 2, 3, 4], [5], [14, 15, 16, 17], []]


def test_a_continuation_is_the_next_chunk_of_the_same_document_and_never_of_another(chunks):
    tokens, mask = chunks.tokens(np.arange(-1, 6), continued=True)
    assert tokens.shape == (7, 2 * LENGTH)
    assert kept(tokens, mask) == [
        [],
        [1, 2, 3, 4, 5],
        [5],
        [6, 7, 8, 9],
        list(range(10, 18)),
        [14, 15, 16, 17, 18],
        [18],
    ]


def test_tokens_keep_the_shape_of_the_ids(chunks):
    ids = np.array([[0, -1, 3], [2, 2, 5]])
    tokens, mask = chunks.tokens(ids)
    assert tokens.shape == mask.shape == (2, 3, LENGTH)
    assert (tokens[1, 2] == chunks.tokens(np.array([5]))[0][0]).all()
    assert chunks.tokens(np.empty(0, np.int64))[0].shape == (0, LENGTH)


def test_offsets_of_documents_count_every_token_before_them(data):
    assert document_offsets(data[0], np.arange(4)).tolist() == [0, 6, 6, 10]
    assert document_offsets(data[1], np.array([2, 0, 1])).tolist() == [10, 0, 10]


def test_facts_are_read_only_from_a_finished_directory_with_files_of_the_right_size(tmp_path):
    with pytest.raises(UserError, match=r"none: is not there$"):
        read_fact(tmp_path / "none", "thing", "not there")
    manifest = {
        "verb": "test",
        "key": "k",
        "mt_version": "0",
        "settings": {},
        "inputs": [],
        "outputs": [{"name": "a.npy", "bytes": 3, "mtime_ns": 0, "xxh3": ""}],
        "counts": {},
        "thing": {"n": 1},
        "seconds": 0.0,
        "finished": "2026-01-01T00:00:00Z",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"a\.npy: has 0 bytes where the manifest records 3; run the command"):
        read_fact(tmp_path, "thing", "not there")
    (tmp_path / "a.npy").write_bytes(b"abc")
    assert read_fact(tmp_path, "thing", "not there") == {"n": 1}
    with pytest.raises(UserError, match=r"is not there$"):
        read_fact(tmp_path, "another", "not there")


@pytest.mark.parametrize(("length", "accepted"), [(1 << 16, True), ((1 << 16) + 1, False), (0, False)])
def test_a_manifest_cannot_ask_for_more_memory_than_long_chunks_take(tmp_path, length, accepted):
    database = {
        "data": [],
        "chunk_length": length,
        "pad_id": 0,
        "num_neighbors": 1,
        "index": "Flat",
        "nprobe": 1,
        "ef_search": 1,
        "embedder": {"directory": None, "digest": "", "bf16": False},
    }
    facts = {"verb": "test", "key": "k", "mt_version": "0", "settings": {}, "inputs": [], "outputs": []}
    more = {"counts": {}, "database": database, "seconds": 0.0, "finished": "2026-01-01T00:00:00Z"}
    (tmp_path / "manifest.json").write_text(json.dumps(facts | more))
    if accepted:
        assert read_database(tmp_path)["chunk_length"] == length
    else:
        with pytest.raises(UserError, match=rf"chunk_length = {length}: must be from 1 to 65,536"):
            read_database(tmp_path)


def test_data_is_found_beside_the_database_or_at_a_new_path_and_compared(data, tmp_path):
    known = [{"prefix": f"../d{i}", "fingerprint": d.fingerprint} for i, d in enumerate(data)]
    folder = tmp_path / "db"
    assert [d.fingerprint for d in open_data(folder, known)] == [k["fingerprint"] for k in known]
    for suffix in ("bin", "idx"):
        (tmp_path / f"d1.{suffix}").rename(tmp_path / f"moved.{suffix}")
    with pytest.raises(UserError, match=r"d1\.idx: no such file, but the database .*db was built from it"):
        open_data(folder, known)
    paths = [str(tmp_path / "d0"), str(tmp_path / "moved")]
    assert open_data(folder, known, paths)[1].fingerprint == known[1]["fingerprint"]
    with pytest.raises(UserError, match=r"moved: is not the data that the database .*db was built from"):
        open_data(folder, known, paths[::-1][:1] + paths[:1])
    with pytest.raises(UserError, match="was built from --data-path of length 2, not 1"):
        open_data(folder, known, paths[:1])
