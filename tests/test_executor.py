"""Work over shards: order, resume, and workers that die."""

import os
from pathlib import Path

import pytest

from mt.config import Failure, UserError
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
