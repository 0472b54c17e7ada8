"""The watchdog: what it reports about a rank that hangs (test_launcher.py runs whole jobs)."""

import json
import pickle
import sys

import pytest
import torch.distributed as dist

from mt.train.parallel import watchdog
from mt.train.parallel.mesh import ParallelConfig, check_sizes
from mt.train.parallel.watchdog import LEFT, Collective, Watchdog, pending_collective, python_line


def test_python_line_is_the_innermost_frame_of_this_package():
    lines = []

    def inside() -> None:
        lines.append(python_line(sys._getframe()))

    list(map(lambda _: inside(), [0]))
    assert lines[0].endswith(" in inside")
    assert ".test_watchdog:" in lines[0]

    def check(*_):  # check_sizes of this package calls it
        lines.append(python_line(sys._getframe()))

    config = ParallelConfig()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mt.train.parallel.mesh.check", check)
        check.__globals__["__name__"], before = "outside.module", __name__
        try:
            check_sizes(config, 1)
        finally:
            check.__globals__["__name__"] = before
    assert lines[1].startswith("mt.train.parallel.mesh:")
    assert lines[1].endswith(" in check_sizes")
    assert python_line(None) == "no line of Python"


def test_a_collective_is_described_with_its_number_group_and_shape():
    assert str(Collective("all_reduce", 7, "0", [3, 5], False)) == (
        "all_reduce number 7 of process group 0 (3 x 5 numbers)"
    )
    assert str(Collective("barrier", 1, "tp", [], True)) == "barrier number 1 of process group tp (a number)"
    assert pending_collective() is None


@pytest.fixture
def report_of(monkeypatch):
    """report_of(rank, waited, beats): the report of a rank of 4 after `waited` seconds in a collective.

    beats: rank -> its last heartbeat.
    """

    def report(rank: int, waited: float, beats: dict[int, dict], begun: bool = False):
        store = dist.HashStore()
        for other, beat in beats.items():
            store.set(str(other), json.dumps(beat))
        watch = object.__new__(Watchdog)
        watch.rank, watch.world_size, watch.limit, watch.store = rank, 4, 10.0, store
        watch.activity, watch.collective = lambda: "step 3", Collective("all_reduce", 2, "0", [4], begun)
        watch._entered = 100.0 - waited
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: 100.0)
        found = []
        watch._report = lambda ranks, what: found.append((ranks, what))
        watch._report_hang(watch.collective)
        return found[0]

    return report


WHAT = "all_reduce number 2 of process group 0 (4 numbers), in which rank 0 has waited for 12 s at step 3"


def test_ranks_that_are_in_no_collective_or_entered_it_late_are_named(report_of):
    beats = {
        1: {"waited": 11.0, "begun": False},
        2: {"waited": 0.0, "begun": False},
        3: {"waited": 4.9, "begun": False},
    }
    assert report_of(0, 12.0, beats) == ([2, 3], f"has not come to {WHAT}")
    assert report_of(0, 12.0, {1: LEFT, 2: beats[1], 3: beats[1]}) == ([1], f"has not come to {WHAT}")


def test_a_rank_without_a_heartbeat_is_late(report_of):
    assert report_of(0, 12.0, {1: {"waited": 11.0, "begun": False}})[0] == [2, 3]


def test_on_a_gpu_a_rank_whose_kernel_has_not_started_is_late(report_of):
    beats = {rank: {"waited": 11.0, "begun": rank != 2} for rank in (1, 2, 3)}
    assert report_of(0, 12.0, beats, begun=True) == ([2], f"has not come to {WHAT}")


def test_if_all_ranks_wait_they_are_reported_in_different_collectives(report_of):
    beats = {rank: {"waited": 11.0, "begun": False} for rank in (1, 2, 3)}
    assert report_of(0, 12.0, beats) == ([1, 2, 3], f"is in another collective than {WHAT}")


def test_the_oldest_pending_collective_is_read_from_the_flight_recorder(monkeypatch):
    entry = {
        "retired": False,
        "state": "scheduled",
        "input_sizes": [[3, 5], [1]],
        "is_p2p": False,
        "p2p_seq_id": 9,
        "collective_seq_id": 4,
        "process_group": ("7", "tp"),
        "profiling_name": "nccl:all_reduce",
    }
    ended = [entry | {"retired": True}, entry | {"state": "completed"}]
    entries = [*ended, entry, entry | {"collective_seq_id": 5}]
    dump = lambda *_: pickle.dumps({"entries": entries})
    monkeypatch.setattr(watchdog._distributed_c10d, "_dump_fr_trace", dump, raising=False)
    assert pending_collective() == ("all_reduce", 4, "7", [3, 5], False)
    entries[2:] = [entry | {"is_p2p": True, "input_sizes": [], "state": "started"}]
    assert pending_collective() == ("all_reduce", 9, "7", [], True)
    entries[2:] = []
    assert pending_collective() is None


@pytest.mark.parametrize(("ranks", "more"), [(8, []), (9, ["mt: the same for 1 other ranks"])])
def test_at_most_eight_ranks_are_named_by_the_rank_that_reports_first(capsys, ranks, more):
    watch = object.__new__(Watchdog)
    watch.rank, watch.store = 20, dist.HashStore()
    ends = []
    watch._end = ends.append
    for rank in range(ranks):
        beat = {"host": "n1", "pid": 100 + rank, "activity": "step 3", "collective": None, "at": "a:1 in b"}
        watch.store.set(str(rank), json.dumps(beat))
    watch._report(list(range(ranks)), "has not come")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "mt: rank 0 (process 100 on n1) has not come; it was last seen at step 3, in no collective, at a:1 in"
        " b; the job ends: start it again, it resumes from the newest checkpoint"
    )
    assert (len(lines[:8]), lines[8:]) == (8, more)
    watch.rank = 21
    watch._report([0], "is late")
    assert capsys.readouterr().err == "", "another rank has reported"
    assert [len(end["processes"]) for end in ends] == [ranks, 1]
