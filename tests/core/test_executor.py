"""Work over shards: order, resuming, dead workers, and Ray."""

import itertools
import json
import os
import socket
import subprocess
import sys

import pytest

from mt.core import executor
from mt.core.config import Failure, UserError
from mt.core.executor import map_shards, once, working_on
from mt.core.parsing import Count
from mt.dataprep.stats import StatsConfig
from mt.tests.core import shard_functions
from mt.tests.core.shard_functions import (
    die,
    die_on_ray,
    refuse,
    refuse_in_a_worker,
    show_progress,
    square,
    write_square,
)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_the_order_of_the_shards_and_finished_shards_are_not_repeated(tmp_path, workers):
    shards = [(str(tmp_path), n) for n in range(5)]
    first = map_shards(square, shards, done=tmp_path / "parts", workers=workers, label="x")
    assert [r["value"] for r in first] == [0, 1, 4, 9, 16]
    (tmp_path / "parts" / "00003.json").unlink()
    for ran in tmp_path.glob("ran-*"):
        ran.unlink()
    assert map_shards(square, shards, done=tmp_path / "parts", workers=workers, label="x") == first
    assert [p.name for p in tmp_path.glob("ran-*")] == ["ran-3"]


def _set(marker, **changes):
    saved = json.loads(marker.read_text()) | changes
    saved["xxh3"] = executor._digest(saved)
    marker.write_text(json.dumps(saved))


@pytest.mark.parametrize(
    "damage",
    {
        "a file has other bytes": lambda out, marker: (out / "1.txt").write_text("7"),
        "a file is longer": lambda out, marker: (out / "1.txt").write_text("11"),
        "a file is missing": lambda out, marker: (out / "1.txt").unlink(),
        "the result has changed": lambda out, marker: marker.write_text(
            marker.read_text().replace('"value": 1', '"value": 2')
        ),
        "the result is of another type": lambda out, marker: _set(marker, result={"value": -1}),
        "the result lacks a key": lambda out, marker: _set(marker, result={}),
        "the result does not agree": lambda out, marker: _set(marker, result={"value": 2}),
        "a name leads to a device": lambda out, marker: _set(
            marker, files=[{"name": "../../../../../dev/zero", "bytes": 0, "mtime_ns": 0, "xxh3": ""}]
        ),
        "it is a folder": lambda out, marker: (marker.unlink(), marker.mkdir()),
        "it is no JSON": lambda out, marker: marker.write_text("{"),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_finished_shard_that_has_changed_is_worked_on_again(tmp_path, capsys, workers, damage):
    out, shards = tmp_path / "out", [(str(tmp_path / "out"), n) for n in range(3)]
    out.mkdir()
    run = lambda: map_shards(
        write_square,
        shards,
        done=tmp_path / "parts",
        workers=workers,
        label="x",
        kinds={"value": Count},
        agrees=lambda result: result["value"] != 2,
    )
    first = run()
    files = {path.name: path.read_bytes() for path in out.glob("*.txt")}
    for ran in out.glob("ran-*"):
        ran.unlink()
    assert (run(), list(out.glob("ran-*"))) == (first, [])
    damage[1](out, tmp_path / "parts/00001.json")
    assert run() == first
    assert [p.name for p in out.glob("ran-*")] == ["ran-1"]
    assert {path.name: path.read_bytes() for path in out.glob("*.txt")} == files
    assert capsys.readouterr().err.count("this part of the unfinished run is made again") == 1


def test_a_file_that_was_copied_with_another_time_is_not_made_again(tmp_path):
    run = lambda: map_shards(write_square, [(str(tmp_path), 3)], done=tmp_path / "p", workers=1, label="x")
    run()
    os.utime(tmp_path / "3.txt", (1, 1))
    (tmp_path / "ran-3").unlink()
    run()
    assert not (tmp_path / "ran-3").exists()


def test_a_step_is_done_once_unless_its_files_change(tmp_path):
    done = []

    def step():
        done.append(1)
        write_square((str(tmp_path), 3))

    for _ in range(2):
        once(step, tmp_path / "parts", "step")
    assert len(done) == 1
    (tmp_path / "3.txt").unlink()
    once(step, tmp_path / "parts", "step")
    assert (len(done), (tmp_path / "3.txt").read_text()) == (2, "9")


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_tell_how_far_they_are_and_on_what_they_work_long(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("mt.core.executor.NAMED_SECONDS", -1.0)
    done = tmp_path / "parts"
    (done / "at").mkdir(parents=True)
    (done / "at" / "1").write_bytes(bytes(256))  # of a run that was killed
    items = [(str(done / "at"), "big.html")] * 2
    found = map_shards(show_progress, items, done=done, workers=workers, label="x", sizes=[100, 100])
    assert all(r["seen"][0] in (70, 80, 140) for r in found)
    if workers == 1:
        assert [r["seen"] for r in found] == [[70, "0 s on big.html"]] * 2
    assert sorted(p.name for p in done.iterdir()) == ["00000.json", "00001.json"]
    working_on("nothing", 1)  # outside of a shard it does nothing


def test_a_killed_worker_ends_the_run_with_a_message(tmp_path):
    with pytest.raises(Failure, match="a worker process died"):
        map_shards(die, [1, 2, 3], done=tmp_path, workers=2, label="x")


@pytest.mark.parametrize("function", [refuse, refuse_in_a_worker])
def test_a_users_mistake_in_a_worker_reaches_the_user(function, tmp_path):
    with pytest.raises(UserError, match="line 3 is bad"):
        map_shards(function, [1, 2, 3], done=tmp_path, workers=2, label="x")


def test_a_failed_run_leaves_nothing_but_results(tmp_path):
    with pytest.raises(UserError, match="line 3 is bad"):
        map_shards(refuse, [1], done=tmp_path / "parts", workers=1, label="x", sizes=[100])
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_result_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mt.core.executor.write_json", full)
    with pytest.raises(OSError, match="No space"):
        map_shards(
            square, [(str(tmp_path), n) for n in range(3)], done=tmp_path / "parts", workers=2, label="x"
        )


def test_on_ray_results_are_in_order_finished_shards_are_not_repeated_and_mistakes_reach_the_user(
    tmp_path, ray_cluster
):
    # Ray's workers may not import the tests, so the functions are sent by value
    ray_cluster.cloudpickle.register_pickle_by_value(shard_functions)
    on_ray = {"workers": 2, "label": "x", "ray_address": "local"}
    with pytest.raises(UserError, match=r"^line 3 is bad$"):
        map_shards(refuse, [1, 2, 3], done=tmp_path / "parts", **on_ray)
    shards = [(str(tmp_path), n) for n in range(5)]
    assert [r["value"] for r in map_shards(square, shards, done=tmp_path / "squares", **on_ray)] == [
        0,
        1,
        4,
        9,
        16,
    ]
    (tmp_path / "squares/00003.json").unlink()
    (tmp_path / "ran-2").unlink()
    map_shards(square, shards, done=tmp_path / "squares", **on_ray)
    assert not (tmp_path / "ran-2").exists()
    with pytest.raises(
        Failure, match=r"a Ray worker failed \(.*\)\. Finished work is kept: run the same command again"
    ):
        map_shards(die_on_ray, [1], done=tmp_path / "dead", **on_ray)


def test_an_address_without_a_cluster_is_refused_and_auto_finds_the_running_cluster(tmp_path, ray_cluster):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    # in another process, because this one is connected to the tests' cluster already
    code = (
        "import sys; from mt.core.config import UserError; from mt.dataprep.stats import StatsConfig,"
        " stats\nfor address in sys.argv[3:]:\n  try: stats(StatsConfig(input=(sys.argv[1],),"
        " output=sys.argv[2], executor='ray', ray_address=address))\n  except UserError as error:"
        " print(error)\n"
    )
    addresses = [closed, f"ray://{closed}", "cluster", "auto"]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in.jsonl"), str(tmp_path / "out"), *addresses],
        capture_output=True,
        text=True,
    )
    lines = ended.stdout.splitlines()
    assert len(lines) == 3, ended.stderr
    assert (tmp_path / "out/manifest.json").exists()
    for line, address in zip(lines, addresses):
        assert line.startswith(f"ray_address = {address}: no Ray cluster answers (")
        assert line.endswith("start one with `ray start --head`, or use local")


def test_a_missing_ray_and_an_address_without_executor_ray_are_refused(monkeypatch):
    with pytest.raises(
        UserError, match="ray_address = auto has no effect with executor = local; pass --executor ray"
    ):
        StatsConfig(input=("x",), output="y", ray_address="auto")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"executor = ray needs the package ray; install it with: pip install 'mt-lm\[ray\]'"
    ):
        StatsConfig(input=("x",), output="y", executor="ray")


def test_progress_is_counted_in_the_given_unit(tmp_path, capsys, monkeypatch):
    # other threads may look at the clock too
    clock = itertools.chain([0.0, 11.0, 12.0, 13.0], itertools.repeat(25.0))
    monkeypatch.setattr("mt.core.progress.time.monotonic", lambda: next(clock))
    map_shards(
        square,
        [(str(tmp_path), n) for n in range(3)],
        done=tmp_path / "parts",
        workers=1,
        label="retro",
        unit="chunks",
    )
    assert "3 chunks" in capsys.readouterr().err
