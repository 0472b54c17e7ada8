"""a hung rank is named, and the job ends instead of hanging: a thread of every rank that tells and looks what
the ranks do.

Every few seconds the thread puts a line under the rank's number into the store by which torch.distributed
found itself: a count, what the rank works at (`Mesh.doing`), and since when it has been in a collective, as
torch's flight recorder knows it, on gloo as on NCCL. It ends the job

    when a rank's own collective has lasted `limit` seconds     the ranks that have not come to one are named,
        each with
                                                                the line of Python at which it is
    when its neighbour's line has not changed for SILENT        that one is named: it is stopped, swapped out
        or dead

The rank that finds something first says it, for all; then every rank ends with exit code 1, a hung one too,
which a rank of the same machine kills where it does not do it itself. Whatever started the processes sees
that, and may start them again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pickle
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import torch.distributed as dist
from torch._C import _distributed_c10d

LEFT = {"left": True}  # the line of a rank that has done its part
SILENT = 60.0  # seconds without a sign of life, or the limit if that is shorter


class Watchdog:
    """From start to stop a job is watched. doing: says what this rank works at."""

    def __init__(self, rank: int, world_size: int, limit: float, doing: Callable[[], str]):
        """limit: seconds that a rank may wait for another."""
        self.rank, self.world_size, self.limit, self.doing = rank, world_size, limit, doing
        self.interval = min(5.0, limit / 5)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: the main thread blocks in torch's. Restarts by torchrun share a store.
        store = dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=60)
        )
        self.store = dist.PrefixStore(
            f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{os.environ.get('TORCHELASTIC_RUN_ID', '')}",
            store,
        )
        self.neighbour = (rank + 1) % world_size
        self.collective: Collective | None = None
        self._entered = time.monotonic()
        self._beats = 0
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """This rank has done its part."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            line, seen = None, time.monotonic()
            while not self._ended.wait(self.interval):
                self._tell()
                if self.store.check(["over"]):
                    self._end(json.loads(self.store.get("over")))
                before, line = line, self._line_of(self.neighbour)
                if line != before or line == LEFT:
                    seen = time.monotonic()
                elif (silent := time.monotonic() - seen) > min(SILENT, self.limit) + 2 * self.interval:
                    self._report([self.neighbour], f"has given no sign of life for {silent:.0f} s")
                if self.waited > self.limit:
                    self._find_late()
            self.store.set(str(self.rank), json.dumps(LEFT))
        except (dist.DistError, RuntimeError):
            return  # the store has gone: the job has ended

    def _tell(self) -> None:
        now = outstanding()
        if now is None or now != self.collective:
            self.collective, self._entered = now, time.monotonic()
        self._beats += 1
        line = {
            "beats": self._beats,
            "doing": self.doing(),
            "host": platform.node(),
            "pid": os.getpid(),
            "at": place_of(sys._current_frames().get(self._main)),
            "collective": now and str(now),
            "begun": now is not None and now.begun,
            "waited": self.waited,
        }
        self.store.set(str(self.rank), json.dumps(line))

    @property
    def waited(self) -> float:
        """Seconds since this rank was first seen in the collective that it is in; by a clock that stands
        still while the machine sleeps.
        """
        return time.monotonic() - self._entered if self.collective else 0.0

    def _line_of(self, rank: int) -> dict:
        return json.loads(self.store.get(str(rank))) if self.store.check([str(rank)]) else {}

    def _find_late(self) -> None:
        """Whom the others wait for: who is in no collective, or came to one later; on GPUs, whose has not
        begun there.
        """
        lines = {rank: self._line_of(rank) for rank in range(self.world_size) if rank != self.rank}
        late = [rank for rank, line in lines.items() if line.get("waited", 0.0) < self.limit / 2]
        late = late or [rank for rank, line in lines.items() if self.collective.begun and not line["begun"]]
        what = (
            f"{self.collective}, in which rank {self.rank} has waited for {self.waited:.0f} s at"
            f" {self.doing()}"
        )
        if late:
            self._report(late, f"has not come to {what}")
        else:
            self._report(list(lines), f"is in another collective than {what}")

    def _report(self, ranks: list[int], what: str) -> None:
        lines = {rank: self._line_of(rank) for rank in ranks}
        over = json.dumps(
            {"by": self.rank, "processes": [[line.get("host"), line.get("pid")] for line in lines.values()]}
        )
        if json.loads(self.store.compare_set("over", "", over))["by"] == self.rank:
            for rank, line in list(lines.items())[:8]:
                inside = (
                    f"in {line['collective']} for {line['waited']:.0f} s"
                    if line.get("collective")
                    else "in no collective"
                )
                print(
                    f"mt: rank {rank} (process {line.get('pid')} on {line.get('host')}) {what}; it was last"
                    f" seen at {line.get('doing')}, {inside}, at {line.get('at')}; the job ends: start it"
                    " again, it goes on from the newest checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            if len(ranks) > 8:
                print(f"mt: and so {len(ranks) - 8} other ranks", file=sys.stderr, flush=True)
        self._end(json.loads(over))

    def _end(self, over: dict) -> None:
        time.sleep(self.interval)  # in which the named ones that can, end by themselves
        for host, pid in over["processes"]:
            if host == platform.node() and pid not in (None, os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        sys.stderr.flush()
        os._exit(1)


class Collective(NamedTuple):
    """One that this process has entered and not left."""

    name: str
    sequence: int  # in its process group, from 1
    group: str
    shape: list[int]
    begun: bool  # NCCL: its kernel runs; gloo never says so

    def __str__(self) -> str:
        return (
            f"{self.name} number {self.sequence} of process group {self.group}"
            f" ({' x '.join(map(str, self.shape)) + ' numbers' if self.shape else 'a number'})"
        )


def outstanding() -> Collective | None:
    """The oldest collective that this process is in, by torch's flight recorder; None where there is none, or
    no recorder.
    """
    dump = getattr(_distributed_c10d, "_dump_fr_trace", None)
    # a pickle of this process's own
    entries = pickle.loads(dump(True, False, False)).get("entries", []) if dump else []
    for entry in entries:
        if not entry["retired"] and entry["state"] != "completed":
            shape = entry["input_sizes"][0] if entry["input_sizes"] else []
            number = entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]
            return Collective(
                entry["profiling_name"].split(":")[-1],
                number,
                entry["process_group"][0],
                shape,
                entry["state"] == "started",
            )
    return None


def place_of(frame: FrameType | None) -> str:
    """`train.loop:88 in step`: the innermost line of this package that a frame is in, or of whatever else it
    is in.
    """
    inner, package = frame, __package__.split(".")[0]
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] != package:
        frame = frame.f_back
    frame = frame or inner
    if frame is None:
        return "no line of Python"
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno} in {frame.f_code.co_name}"
