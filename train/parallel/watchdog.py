"""A watchdog thread on every rank: names a rank that hangs, and ends the job.

Every few seconds the thread writes its rank's heartbeat to torch.distributed's key-value store: a counter,
what the rank is doing (`Mesh.activity`), and how long it has been in a collective, from torch's flight
recorder (for gloo as for NCCL). It ends the job

    - if this rank has been in one collective for `limit` seconds. It names the ranks that have not reached
      that collective, each with the line of Python that it runs;
    - if the heartbeat of the next rank has not changed for SILENT seconds. That rank is stopped, swapped out
      or dead.

The rank that first finds a fault prints the message for all. Then every rank exits with code 1. A hung
process that does not is killed by a rank on the same machine. torchrun or `mt launch` notices the exit and
may restart the job.
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

LEFT = {"left": True}  # the last heartbeat of a rank that has finished
SILENT = 60.0  # seconds without a new heartbeat, or the limit if that is shorter


class Watchdog:
    """Watches the job from `start` to `stop`."""

    def __init__(self, rank: int, world_size: int, limit: float, activity: Callable[[], str]):
        """limit: seconds that a rank may wait for another. activity: returns what this rank is doing."""
        self.rank, self.world_size, self.limit, self.activity = rank, world_size, limit, activity
        self.interval = min(5.0, limit / 5)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # Its own connection: the main thread blocks in torch's. The prefix, because restarts share a store.
        store = dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=60)
        )
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"watch/{restart}/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", store)
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
        """This rank has finished."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            heartbeat, changed = None, time.monotonic()
            while not self._ended.wait(self.interval):
                self._write_heartbeat()
                if self.store.check(["over"]):
                    self._end(json.loads(self.store.get("over")))
                before, heartbeat = heartbeat, self._heartbeat_of(self.neighbour)
                if heartbeat != before or heartbeat == LEFT:
                    changed = time.monotonic()
                elif (silent := time.monotonic() - changed) > min(SILENT, self.limit) + 2 * self.interval:
                    self._report([self.neighbour], f"has given no sign of life for {silent:.0f} s")
                if self.collective is not None and self.waited > self.limit:
                    self._report_hang(self.collective)
            self.store.set(str(self.rank), json.dumps(LEFT))
        except (dist.DistError, RuntimeError):
            return  # the store is gone: the job has ended

    def _write_heartbeat(self) -> None:
        now = pending_collective()
        if now is None or now != self.collective:
            self.collective, self._entered = now, time.monotonic()
        self._beats += 1
        heartbeat = {
            "beats": self._beats,
            "activity": self.activity(),
            "host": platform.node(),
            "pid": os.getpid(),
            "at": python_line(sys._current_frames().get(self._main)),
            "collective": now and str(now),
            "begun": now is not None and now.begun,
            "waited": self.waited,
        }
        self.store.set(str(self.rank), json.dumps(heartbeat))

    @property
    def waited(self) -> float:
        """Seconds since this thread first saw the collective that this rank is in; 0 in no collective.

        By a clock that stops while the machine is suspended.
        """
        return time.monotonic() - self._entered if self.collective else 0.0

    def _heartbeat_of(self, rank: int) -> dict:
        return json.loads(self.store.get(str(rank))) if self.store.check([str(rank)]) else {}

    def _report_hang(self, collective: Collective) -> None:
        """Names the ranks that the others wait for.

        These are in no collective or entered one later. On GPUs also those whose kernel has not started.
        """
        beats = {rank: self._heartbeat_of(rank) for rank in range(self.world_size) if rank != self.rank}
        late = [rank for rank, beat in beats.items() if beat.get("waited", 0.0) < self.limit / 2]
        late = late or [rank for rank, beat in beats.items() if collective.begun and not beat["begun"]]
        what = (
            f"{collective}, in which rank {self.rank} has waited for {self.waited:.0f} s at {self.activity()}"
        )
        if late:
            self._report(late, f"has not come to {what}")
        else:
            self._report(list(beats), f"is in another collective than {what}")

    def _report(self, ranks: list[int], what: str) -> None:
        """Prints a message about ranks, unless another rank has found a fault first, and ends the job."""
        beats = {rank: self._heartbeat_of(rank) for rank in ranks}
        over = json.dumps(
            {"by": self.rank, "processes": [[beat.get("host"), beat.get("pid")] for beat in beats.values()]}
        )
        if json.loads(self.store.compare_set("over", "", over))["by"] == self.rank:
            for rank, beat in list(beats.items())[:8]:
                inside = (
                    f"in {beat['collective']} for {beat['waited']:.0f} s"
                    if beat.get("collective")
                    else "in no collective"
                )
                print(
                    f"mt: rank {rank} (process {beat.get('pid')} on {beat.get('host')}) {what}; it was last"
                    f" seen at {beat.get('activity')}, {inside}, at {beat.get('at')}; the job ends: start it"
                    " again, it resumes from the newest checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            if len(ranks) > 8:
                print(f"mt: the same for {len(ranks) - 8} other ranks", file=sys.stderr, flush=True)
        self._end(json.loads(over))

    def _end(self, over: dict) -> None:
        """Kills the named processes of this machine, then exits with code 1."""
        time.sleep(self.interval)  # the named processes that still run exit by themselves meanwhile
        for host, pid in over["processes"]:
            if host == platform.node() and pid not in (None, os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        sys.stderr.flush()
        os._exit(1)


class Collective(NamedTuple):
    """A collective that this process has entered and not left."""

    name: str
    sequence: int  # its number in the process group, from 1
    group: str
    shape: list[int]
    begun: bool  # NCCL: its kernel has started; always false for gloo

    def __str__(self) -> str:
        return (
            f"{self.name} number {self.sequence} of process group {self.group}"
            f" ({' x '.join(map(str, self.shape)) + ' numbers' if self.shape else 'a number'})"
        )


def pending_collective() -> Collective | None:
    """The oldest collective that this process is in, by torch's flight recorder.

    None if it is in none, or if this build of torch has no flight recorder.
    """
    dump = getattr(_distributed_c10d, "_dump_fr_trace", None)
    # the pickle was made by this process
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


def python_line(frame: FrameType | None) -> str:
    """Like `mt.train.loop:88 in step`: the innermost frame of this package, else the innermost of all."""
    inner, package = frame, __name__.split(".")[0]
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] != package:
        frame = frame.f_back
    frame = frame or inner
    if frame is None:
        return "no line of Python"
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno} in {frame.f_code.co_name}"
