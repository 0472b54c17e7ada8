"""Data on other file systems: fsspec's memory and local file systems, and an S3 server on this machine."""

import os
import socket
import threading

import fsspec
import numpy as np
import pytest

from mt.core import config
from mt.indexed import remote
from mt.indexed.build_indices import IndexConfig, index
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.gpt_dataset import DataConfig, build_datasets
from mt.indexed.remote import RemoteSettings, RemoteTokens


@pytest.fixture
def pair(tmp_path):
    random = np.random.RandomState(2)
    lengths = random.randint(0, 3000, size=120)
    (tmp_path / "here").mkdir()
    writer = IndexedWriter(tmp_path / "here/p", np.uint16, tmp_path / "work")
    writer.add(random.randint(0, 60000, size=lengths.sum()), lengths, [1] * 120)
    writer.finish()
    return tmp_path / "here/p"


@pytest.fixture
def memory(pair):
    """The pair at memory://bucket/p."""
    files = fsspec.filesystem("memory")
    for suffix in (".bin", ".idx"):
        files.pipe_file(f"/bucket/p{suffix}", pair.with_suffix(suffix).read_bytes())
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def settings(tmp_path):
    return RemoteSettings(tmp_path / "cache", block_bytes=4096, cache_bytes=5 * 4096)


def same(distant, local):
    assert len(distant) == len(local)
    for i in np.random.RandomState(0).permutation(len(local)):
        assert distant[i].tolist() == local[i].tolist()
        assert distant[i].dtype == local.dtype
    assert distant.get(7, 3, 20).tolist() == local.get(7, 3, 20).tolist()


def test_remote_data_equal_local_data_and_the_index_is_copied_once(pair, memory, settings, monkeypatch):
    local, distant = IndexedDataset(pair), IndexedDataset("memory://bucket/p", remote=settings)
    same(distant, local)
    assert distant.fingerprint == local.fingerprint, (
        "an index made for the data here is found for the data there"
    )
    copies = list(settings.folder.rglob("p.idx"))
    assert len(copies) == 1
    assert distant.local_folder == copies[0].parent
    stamp = copies[0].stat().st_mtime_ns
    IndexedDataset("memory://bucket/p", remote=settings)
    assert (list(settings.folder.rglob("p.idx")), copies[0].stat().st_mtime_ns) == (copies, stamp)


def test_data_on_the_local_file_system_by_its_protocol_equal_local_data(pair, settings):
    same(IndexedDataset(f"file://{pair}", remote=settings), IndexedDataset(pair))


def test_slices_and_positions_equal_those_of_an_array_and_few_blocks_stay_in_memory(pair, memory, settings):
    here = IndexedDataset(pair).tokens
    tokens = RemoteTokens("memory://bucket/p.bin", np.dtype("<u2"), settings)
    assert (len(tokens), tokens.nbytes) == (len(here), here.nbytes)
    random = np.random.RandomState(1)
    for a, b in random.randint(-10, len(here) + 10, size=(200, 2)).tolist():
        assert np.array_equal(tokens[a:b], here[a:b])
        assert len(tokens._blocks) <= 5
    assert np.array_equal(tokens[:], here)
    places = random.randint(0, len(here), size=(30, 7))
    assert np.array_equal(tokens[places], here[places])
    with pytest.raises(IndexError, match="a slice of tokens has step 1, not 2"):
        tokens[::2]
    with pytest.raises(ValueError, match="read-only"):
        tokens[:3][0] = 1


def test_a_block_is_read_once_while_it_is_cached_and_the_least_recently_used_is_dropped(
    memory, settings, monkeypatch
):
    reads = []
    original = type(memory).cat_file
    monkeypatch.setattr(
        type(memory),
        "cat_file",
        lambda self, path, start=None, end=None, **k: (
            reads.append(start // 4096) or original(self, path, start, end, **k)
        ),
    )
    tokens = RemoteTokens("memory://bucket/p.bin", np.dtype("<u2"), settings)
    for block in (0, 1, 2, 3, 4, 0, 5, 0, 1):
        tokens[block * 2048 : block * 2048 + 10]
    assert reads == [0, 1, 2, 3, 4, 5, 1], "block 5 drove out 1, not 0, which was used after it"
    reads.clear()
    tokens[6 * 2048 : 7 * 2048]
    assert reads == [6], "nor is a block read of which nothing is wanted"


def test_threads_read_the_same_tokens(pair, memory, settings):
    local, distant = IndexedDataset(pair), IndexedDataset("memory://bucket/p", remote=settings)
    wrong = []

    def read(seed):
        for i in np.random.RandomState(seed).randint(0, 120, size=150):
            if not np.array_equal(distant[i], local[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_samples_and_their_order_equal_those_of_local_data(pair, memory, tmp_path):
    common = {"seq_length": 64, "split": "90,10", "seed": 5, "data_cache_path": str(tmp_path / "indices")}
    local = build_datasets(DataConfig(data_path=(str(pair),), **common), (100, 10, 0))
    made = list((tmp_path / "indices").glob("*.npy"))
    distant = build_datasets(
        DataConfig(
            data_path=("memory://bucket/p",), remote_block_bytes=4096, remote_cache_bytes=8192, **common
        ),
        (100, 10, 0),
    )
    assert list((tmp_path / "indices").glob("*.npy")) == made
    for ours, theirs in zip(local[:2], distant[:2]):
        assert ours.fingerprint == theirs.fingerprint
        assert np.array_equal(ours.batch(range(10)), theirs.batch(range(10)))


def test_indices_of_remote_data_can_be_built_before_and_changed_data_is_refused(pair, memory, tmp_path):
    settings = IndexConfig(
        data_path=("memory://bucket/p",),
        seq_length=64,
        split="1",
        train_samples=50,
        output=str(tmp_path / "out"),
        data_cache_path=str(tmp_path / "cache"),
    )
    first = index(settings)
    assert index(settings)["finished"] == first["finished"]
    data = bytearray(pair.with_suffix(".bin").read_bytes())
    data[0] ^= 1
    memory.pipe_file("/bucket/p.bin", bytes(data))
    with pytest.raises(config.UserError, match="holds another run"):
        index(settings)


def test_a_changed_or_truncated_remote_file_is_refused(pair, memory, settings):
    IndexedDataset("memory://bucket/p", remote=settings)
    good = pair.with_suffix(".idx").read_bytes()
    memory.pipe_file("/bucket/p.idx", good[:-1])
    with pytest.raises(config.UserError, match=r"memory://bucket/p.idx: has [\d,]+ bytes where its header"):
        IndexedDataset("memory://bucket/p", remote=settings)
    memory.pipe_file("/bucket/p.idx", good)
    memory.pipe_file("/bucket/p.bin", pair.with_suffix(".bin").read_bytes()[:-2])
    with pytest.raises(
        config.UserError, match=r"memory://bucket/p.bin: has [\d,]+ bytes where .* it is truncated"
    ):
        IndexedDataset("memory://bucket/p", remote=settings)


def test_a_failing_read_is_retried_and_then_reported(memory, settings, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    tokens = RemoteTokens("memory://bucket/p.bin", np.dtype("<u2"), settings)
    original, failures = type(memory).cat_file, [ConnectionResetError("gone")] * 3

    def cat_file(self, *arguments, **settings):
        if failures:
            raise failures.pop()
        return original(self, *arguments, **settings)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    assert len(tokens[:10]) == 10
    failures += [ConnectionResetError("gone")] * 4
    with pytest.raises(
        config.Failure,
        match=r"memory://bucket/p.bin: cannot be read after 4 tries \(gone\); run the same command again",
    ):
        tokens[100_000:100_010]
    monkeypatch.setattr(type(memory), "cat_file", lambda *a, **k: b"12")
    with pytest.raises(config.Failure, match=r"returned 2 bytes where 4,096 were requested"):
        tokens[50_000:50_010]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (
            "memory://bucket/none",
            r"memory://bucket/none.idx: no such file; give the prefix of a .bin/.idx pair",
        ),
        (
            "nothing://bucket/p",
            r"fsspec cannot read nothing://; check the path: it can read s3://, gs:// and hf://",
        ),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(memory, settings, prefix, message):
    with pytest.raises(config.UserError, match=message):
        IndexedDataset(prefix, remote=settings)


def test_impossible_block_sizes_are_refused():
    with pytest.raises(config.UserError, match="remote_block_bytes = 5 must be at least 4096"):
        DataConfig(data_path=("s3://b/p",), remote_block_bytes=5)
    with pytest.raises(
        config.UserError, match="remote_cache_bytes = 5 must hold two blocks of remote_block_bytes = 1048576"
    ):
        DataConfig(data_path=("s3://b/p",), remote_cache_bytes=5)


@pytest.fixture(scope="module")
def s3():
    """An S3 server on this machine; yields a fsspec file system with an empty bucket `data`."""
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e '.[dev]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    running = server.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    running.start()
    files = fsspec.filesystem("s3")
    files.mkdir("data")
    yield files
    running.stop()
    os.environ.clear()
    os.environ |= before


def test_data_on_s3_equal_local_data(pair, s3, settings):
    for suffix in (".bin", ".idx"):
        s3.put_file(str(pair) + suffix, f"data/folder/p{suffix}")
    local, distant = IndexedDataset(pair), IndexedDataset("s3://data/folder/p", remote=settings)
    same(distant, local)
    assert distant.fingerprint == local.fingerprint
    with pytest.raises(config.UserError, match=r"s3://data/folder/q.idx: no such file"):
        IndexedDataset("s3://data/folder/q", remote=settings)
    with pytest.raises(config.UserError, match=r"s3://nowhere/p.idx: "):
        IndexedDataset("s3://nowhere/p", remote=settings)
