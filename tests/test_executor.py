"""Work over shards: order, resume, and workers that die."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from mt.config import Failure, UserError
from mt.dataprep.dedup import DedupConfig, dedup
from mt.executor import map_shards, progress


def square(item):
    folder, number = item
    (Path(folder) / f"ran-{number}").touch()
    return {"value": number * number}


def die(item):
    os.kill(os.getpid(), 9)


def refuse(item):
    raise UserError("line 3 is bad")


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_shards_and_finished_ones_are_not_redone(tmp_path, workers):
    shards = [(str(tmp_path), n) for n in range(5)]
    first = map_shards(square, shards, done=tmp_path / "parts", workers=workers, label="x")
    assert [r["value"] for r in first] == [0, 1, 4, 9, 16]
    (tmp_path / "parts" / "00003.json").unlink()
    for ran in tmp_path.glob("ran-*"):
        ran.unlink()
    assert map_shards(square, shards, done=tmp_path / "parts", workers=workers, label="x") == first
    assert [p.name for p in tmp_path.glob("ran-*")] == ["ran-3"]


def test_a_killed_worker_ends_the_run_with_a_message_and_no_hang(tmp_path):
    with pytest.raises(Failure, match="a worker process died"):
        map_shards(die, [1, 2, 3], done=tmp_path, workers=2, label="x")


def test_a_users_mistake_in_a_worker_reaches_the_user(tmp_path):
    with pytest.raises(UserError, match="line 3 is bad"):
        map_shards(refuse, [1, 2, 3], done=tmp_path, workers=2, label="x")


def test_progress_off_a_terminal_says_plain_lines(capsys, monkeypatch):
    clock = iter([0.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr("mt.executor.time.monotonic", lambda: next(clock))
    with progress("clean", 4_000_000, "B") as advance:
        advance(1_000_000)
        advance(1_000_000)
        advance(1_000_000)
    assert capsys.readouterr().err.splitlines()[0] == "clean: 1 of 4 MB, 0.1 MB/s, 33 s left"


@pytest.fixture
def ray_cluster():
    """A Ray cluster is started by the work itself, and ends with the test."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mt[ray]'")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its workers cannot import the tests
    yield
    ray.shutdown()


def test_on_ray_a_stage_writes_the_same_bytes_and_mistakes_reach_the_user(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": str(i), "text": f"words of document {i // 2} " + " ".join(str(i // 2 * n) for n in range(40))}) for i in range(1200)]
    Path("in.jsonl").write_text("\n".join(lines))
    common = {"input": ("in.jsonl",), "shard_bytes": 1 << 16, "workers": 2}
    here = dedup(DedupConfig(output="here", **common))
    there = dedup(DedupConfig(output="there", executor="ray", **common))
    assert there["key"] == here["key"]
    assert [o["xxh3"] for o in there["outputs"]] == [o["xxh3"] for o in here["outputs"]]
    assert len(there["outputs"]) > 4
    assert there["counts"]["removed"] == {"exact": 600}
    with pytest.raises(UserError, match=r"^line 3 is bad$"):
        map_shards(refuse, [1, 2, 3], done=tmp_path / "parts", workers=2, label="x", ray_address="local")
    shards = [(str(tmp_path), n) for n in range(5)]
    assert [r["value"] for r in map_shards(square, shards, done=tmp_path / "squares", workers=2, label="x", ray_address="local")] == [0, 1, 4, 9, 16]
    (tmp_path / "squares/00003.json").unlink()
    (tmp_path / "ran-2").unlink()
    map_shards(square, shards, done=tmp_path / "squares", workers=2, label="x", ray_address="local")
    assert not (tmp_path / "ran-2").exists()


def test_an_address_where_no_cluster_is_and_one_without_ray_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mt[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    for address in ("auto", closed, f"ray://{closed}", "cluster"):
        with pytest.raises(UserError, match=rf"ray_address = {address}: no Ray cluster answers \(.*\); start one with `ray start --head`, or use local"):
            map_shards(square, [(str(tmp_path), 1)], done=tmp_path / "parts", workers=2, label="x", ray_address=address)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="executor = ray needs the package ray; install it with: pip install 'mt"):
        DedupConfig(input=("x",), output="y", executor="ray")
    with pytest.raises(UserError, match="ray_address = auto has no effect with executor = local; pass --executor ray"):
        DedupConfig(input=("x",), output="y", ray_address="auto")


def test_progress_counts_in_the_unit_it_is_given(tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 11.0, 12.0, 13.0, 25.0])
    monkeypatch.setattr("mt.executor.time.monotonic", lambda: next(clock))
    map_shards(square, [(str(tmp_path), n) for n in range(3)], done=tmp_path / "parts", workers=1, label="retro", unit="chunks")
    assert "3 chunks" in capsys.readouterr().err
