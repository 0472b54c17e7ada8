"""run a function over shards, here (processes) or on Ray; resume at shard level.

A shard's result is a small JSON value (counts, records of the files it wrote). It is kept beside the output
as soon as the shard is whole, so that a killed run, run again, redoes only the unfinished shards. Results
come back in the order of the shards, whatever the number of workers and wherever they run. On Ray every shard
is a task; what it reads and writes must lie on a file system that all nodes see under the same names, and
`mt` must be installed on all of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import importlib.util
import itertools
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from .config import Failure, UserError, check, configuration, option
from .manifest import read_json, write_json
from .progress import progress


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@configuration()
class Workers:
    """The settings of every stage that works on shards: who does it, which cannot change a byte."""

    workers: int = option(default_workers(), "processes", role="runtime")
    executor: Literal["local", "ray"] = option(
        "local",
        "where shards are worked on: processes here, or tasks on a Ray cluster that sees the same files",
        role="runtime",
    )
    ray_address: str = option(
        "local", "the Ray cluster: HOST:PORT, auto for one that runs, local to start one here", role="runtime"
    )

    def __post_init__(self):
        check(
            (self.workers >= 1, f"workers = {self.workers} must be at least 1"),
            (
                self.executor == "local" or importlib.util.find_spec("ray") is not None,
                "executor = ray needs the package ray; install it with: pip install 'mt[ray]'",
            ),
            (
                self.executor == "ray" or self.ray_address == "local",
                f"ray_address = {self.ray_address} has no effect with executor = local; pass --executor ray",
            ),
        )

    @property
    def where(self) -> dict:
        """The arguments of map_shards that say who does the work."""
        return {"workers": self.workers, "ray_address": self.ray_address if self.executor == "ray" else None}


def map_shards(
    function: Callable[[object], dict],
    shards: Sequence,
    *,
    done: Path,
    workers: int,
    label: str,
    sizes: Sequence[int] | None = None,
    unit: str = "shards",
    ray_address: str | None = None,
) -> list[dict]:
    """`[function(shard) for shard in shards]` on `workers` processes, skipping shards whose result is in
    `done`.

    function: picklable; writes its files whole (manifest.atomic_write) and returns a JSON value. done: a
    directory of `NNNNN.json` results. sizes: the shards' sizes in bytes, for the progress bar; without them
    it counts `unit`s. ray_address: run on this Ray cluster instead: `local` starts one here of `workers`
    processors, `auto` finds one. An exception in one shard ends the map at once and is raised here. A worker
    that dies (out of memory, killed) raises Failure.
    """
    done.mkdir(parents=True, exist_ok=True)
    results: dict[int, dict] = {}
    for index in range(len(shards)):
        marker = done / f"{index:05d}.json"
        if marker.exists():
            results[index] = read_json(marker)
    waiting = [i for i in range(len(shards)) if i not in results]
    weight = sizes if sizes is not None else [1] * len(shards)
    with progress(label, sum(weight), "B" if sizes is not None else unit) as advance:
        advance(sum(weight[i] for i in results))

        def keep(index: int, result: dict) -> None:
            write_json(done / f"{index:05d}.json", result)
            results[index] = result
            advance(weight[index])

        if ray_address is not None and waiting:
            _map_ray(function, shards, waiting, workers, ray_address, keep)
        elif workers <= 1 or len(waiting) <= 1:
            for index in waiting:
                keep(index, function(shards[index]))
        else:
            _map_processes(function, shards, waiting, min(workers, len(waiting)), keep)
    return [results[i] for i in range(len(shards))]


def _map_processes(function, shards, waiting, workers, keep) -> None:
    """On so many processes, this one among them: one more would cost as much to start as a small shard's
    work.

    A thread for each of the others hands it the next shard and keeps its result at once.
    """
    left, failures, lock = iter(waiting), [], threading.Lock()

    def work(call: Callable[[object], dict]) -> None:
        while True:
            with lock:
                index = next(left, None)
            if index is None or failures:
                return
            try:
                result = call(shards[index])
                with lock:
                    keep(index, result)
            except BaseException as error:  # raised below: a thread's own exception would be lost
                failures.append(error)

    with processes(workers - 1) as pool:
        with concurrent.futures.ThreadPoolExecutor(workers - 1, "shards") as threads:
            for _ in range(workers - 1):
                threads.submit(work, lambda shard: pool.submit(function, shard).result())
            work(function)
        if failures:
            raise failures[0]


def _map_ray(function, shards, waiting, workers, address, keep) -> None:
    """Tasks on a Ray cluster, as many at a time as keep its processors busy."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    import ray

    if not ray.is_initialized():  # one cluster serves all maps of a process; Ray itself ends it at exit
        own = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        try:
            if address not in ("local", "auto"):  # Ray itself would try for many minutes
                host, _, port = address.rpartition("/")[2].rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"ray_address = {address}: no Ray cluster answers ({str(error).splitlines()[0]}); start one"
                " with `ray start --head`, or use local"
            ) from None
    task = ray.remote(num_cpus=1)(_in_folder)
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    queue, running = iter(waiting), {}
    try:
        while True:
            for index in itertools.islice(queue, at_once - len(running)):
                running[task.remote(function, shards[index], os.getcwd())] = index
            if not running:
                return
            for done in ray.wait(list(running))[0]:
                keep(running.pop(done), ray.get(done))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)  # of a task that raised
        if not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        raise Failure(
            f"a Ray worker failed ({str(cause).splitlines()[0]}). Finished work is kept: run the same command"
            " again"
        ) from None
    finally:
        for unneeded in running:
            ray.cancel(unneeded)


def _in_folder(function, shard, folder: str) -> dict:
    """One task: relative paths mean on every node what they mean where the command was given."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return function(shard)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Python's search for cycles off: it would walk millions of new texts, arrays and pieces, none of them in
    a cycle (6 % of tokenising).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def processes(workers: int, **how) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of processes that ends with its block, whatever ends that; a worker that died raises Failure.

    how: further arguments of ProcessPoolExecutor.
    """
    # spawn, not fork: the parent may hold threads (torch, pyarrow), whose locks a fork would copy in any
    # state.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, **how) as pool:
        try:
            yield pool
        except concurrent.futures.process.BrokenProcessPool:
            raise Failure(
                "a worker process died, possibly killed for want of memory. Finished work is kept: run the"
                " same command again, with fewer --workers if memory was short"
            ) from None
        except BaseException:
            # What is at work is waited for: a pool left to itself can leave processes that nothing ends, and
            # an interpreter that waits for them for ever at its exit.
            pool.shutdown(cancel_futures=True)
            raise
