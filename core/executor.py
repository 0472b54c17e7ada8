"""Runs a function over shards, in local processes or on Ray, and resumes after the last finished shard.

A shard's result is a small JSON value: counts, and records of the files that the shard wrote. It is saved
beside the output as soon as the shard is finished, with the digests of these files, so a run that was killed
and started again works on the unfinished shards only. A shard whose result or files have changed since, or
are of another kind, is worked on again: somebody else may have made the folder. Results come back in the
order of the shards, whatever the number of workers and wherever they run. On Ray every shard is a task; its
input and output must lie on a file system that all nodes mount at the same paths, and `mt` must be installed
on all of them.

While local processes work, each tells by a small file, mapped into memory, how far it is (`working_on`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import importlib.util
import itertools
import json
import logging
import mmap
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import xxhash

from . import paths
from .config import Failure, UserError, check, configuration, option
from .extras import needs_package
from .manifest import FileRecord, is_as_recorded, noting_files, read_json, write_json
from .parsing import check_value
from .progress import duration, progress
from .terminal import escape_line

NAMED_SECONDS = 5.0  # of work on one document, after which progress names it
S = TypeVar("S")  # a shard, of any type that can be pickled
Result = dict[str, Any]  # a JSON value
Work = Callable[[S], Result]


class Finished(TypedDict):
    """The file of a finished shard. xxh3: of the other two."""

    result: Result
    files: list[FileRecord]  # names relative to the folder of this file
    xxh3: str


def default_workers() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@configuration()
class Workers:
    """The settings of every stage that works on shards: who runs them. They cannot change a byte."""

    workers: int = option(default_workers(), "number of processes", role="runtime")
    executor: Literal["local", "ray"] = option(
        "local",
        "where shards run: in processes on this machine, or as tasks on a Ray cluster that mounts the same"
        " files",
        role="runtime",
    )
    ray_address: str = option(
        "local",
        "the Ray cluster: HOST:PORT, auto for one that is running, local to start one on this machine",
        role="runtime",
    )

    def __post_init__(self) -> None:
        check(
            (self.workers >= 1, f"workers = {self.workers} must be at least 1"),
            (
                self.executor == "local" or importlib.util.find_spec("ray") is not None,
                needs_package("executor = ray", "ray"),
            ),
            (
                self.executor == "ray" or self.ray_address == "local",
                f"ray_address = {self.ray_address} has no effect with executor = local; pass --executor ray",
            ),
        )

    @property
    def where(self) -> dict[str, Any]:
        """The arguments of map_shards that say where shards run."""
        return {"workers": self.workers, "ray_address": self.ray_address if self.executor == "ray" else None}


def map_shards(
    function: Work[S],
    shards: Sequence[S],
    *,
    done: Path,
    workers: int,
    label: str,
    sizes: Sequence[int] | None = None,
    unit: str = "shards",
    ray_address: str | None = None,
    kinds: Mapping[str, Any] | None = None,
    agrees: Callable[[Result], bool] = lambda _: True,
) -> list[Result]:
    """`[function(shard) for shard in shards]` on `workers` processes, without the shards that are in `done`.

    function: can be pickled; writes whole files (manifest.atomic_write) and returns a JSON value.
    done: the directory of the saved results, `NNNNN.json`.
    label, unit: for the progress bar, which counts shards in `unit`, or bytes if there are `sizes`.
    sizes: the shards' sizes in bytes.
    ray_address: run on this Ray cluster instead: `local` starts one here with `workers` processors, `auto`
        finds one that is running.
    kinds: {key: type (core/parsing.py)} of what is used of a result. agrees: whether its values agree. A
        saved result that does not fit is not used.

    An exception in one shard ends the run at once and is raised here. A worker that dies (out of memory,
    killed) raises Failure.
    """
    done.mkdir(parents=True, exist_ok=True)
    results: dict[int, Result] = {}
    for index in range(len(shards)):
        if (found := _saved(done, index, kinds or {}, agrees)) is not None:
            results[index] = found
    unfinished = [i for i in range(len(shards)) if i not in results]
    weight = sizes if sizes is not None else [1] * len(shards)
    places = done / "at"
    if sizes is not None and ray_address is None:
        paths.remove(places, ignore_errors=True)  # of a run that was killed
        places.mkdir()
        function = functools.partial(_told, function, places)
    function = functools.partial(_noted, function, done)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, places, ignore_errors=True)
        begun = functools.partial(_begun, places)
        advance = cleanup.enter_context(
            progress(label, sum(weight), "B" if sizes is not None else unit, begun)
        )
        advance(sum(weight[i] for i in results))

        def keep(index: int, finished: Result) -> None:
            write_json(_marker(done, index), {**finished, "xxh3": _digest(finished)})
            results[index] = finished["result"]
            advance(weight[index])

        if ray_address is not None and unfinished:
            _map_ray(function, shards, unfinished, workers, ray_address, keep)
        elif workers <= 1 or len(unfinished) <= 1:
            for index in unfinished:
                keep(index, function(shards[index]))
        else:
            _map_processes(function, shards, unfinished, min(workers, len(unfinished)), keep)
    return [results[i] for i in range(len(shards))]


def once(step: Callable[[], None], done: Path, name: str) -> None:
    """Runs a step, unless an earlier process has finished it and its files are as it left them.

    done: the directory of the file NAME.json, which says so.
    """
    if _saved(done, name) is None:

        def work(_: None) -> Result:
            step()
            return {}

        finished = _noted(work, done, None)
        write_json(_marker(done, name), {**finished, "xxh3": _digest(finished)})


def _marker(done: Path, index: int | str) -> Path:
    return done / f"{index:05d}.json" if isinstance(index, int) else done / f"{index}.json"


def _saved(
    done: Path,
    index: int | str,
    kinds: Mapping[str, Any] = types.MappingProxyType({}),
    agrees: Callable[[Result], bool] = lambda _: True,
) -> Result | None:
    """The result of a shard that an earlier process finished; None if the shard is to be worked on."""
    marker = _marker(done, index)
    if not os.path.lexists(marker):
        return None
    try:
        saved: Finished = check_value(read_json(marker), Finished, marker)
        if saved["xxh3"] != _digest(saved):
            raise UserError(f"{marker}: has changed since it was written")
        for file in saved["files"]:
            path = paths.named(done, file["name"], str(marker), outside=True)
            if not is_as_recorded(path, file):
                raise UserError(f"{path}: has changed since it was written")
        for key, kind in kinds.items():
            if key not in saved["result"]:
                raise UserError(f"{marker}: has no {key}")
            check_value(saved["result"][key], kind, f"{marker}: {key}")
        if not agrees(saved["result"]):
            raise UserError(f"{marker}: has counts that do not add up")
    except UserError as error:
        what = escape_line(str(error).partition(";")[0])
        print(f"mt: {what}; this part of the unfinished run is made again", file=sys.stderr)
        paths.remove(marker)
        return None
    return saved["result"]


def _digest(finished: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps([finished["result"], finished["files"]]).encode()).hexdigest()


def _noted(function: Work[S], done: Path, shard: S) -> Result:
    """The shard's result, and records of the files that it has written."""
    with noting_files() as written:
        result = function(shard)
    files = [
        {key: value for key, value in record.items() if key in ("bytes", "mtime_ns", "xxh3")}
        | {"name": os.path.relpath(path, done)}
        for path, record in written().items()
    ]
    return {"result": result, "files": files}


def working_on(name: str, done: int) -> None:
    """Tells the process that shows progress what the shard of this process has come to.

    name: what is worked on from now on. done: of the shard's size in bytes, how much is done.
    """
    global _name
    if _place is not None:
        if name != _name:
            _NAME.pack_into(_place, _STATE.size, name.encode("utf-8", "replace"))
            _name = name
        _STATE.pack_into(_place, 0, done, time.time())


_STATE, _NAME = struct.Struct("<qd"), struct.Struct("240s")  # bytes done, time; what is worked on
_place: mmap.mmap | None = None  # of this process, while it works on a shard
_name = ""


def _told(function: Work[S], places: Path, shard: S) -> Result:
    """Runs the function, while `working_on` writes to a file of this process."""
    global _place, _name
    path = places / str(os.getpid())
    with open(path, "w+b") as file:
        file.write(bytes(_STATE.size + _NAME.size))
        file.flush()
        _place, _name = mmap.mmap(file.fileno(), 0), ""
    try:
        return function(shard)
    finally:
        _place = None
        path.unlink(missing_ok=True)


def _begun(places: Path) -> tuple[int, str]:
    """(bytes done of the shards that processes work on, what takes longest now, if it takes long)."""
    done, longest, text = 0, NAMED_SECONDS, ""
    for path in places.glob("*"):
        with contextlib.suppress(OSError, struct.error):
            state = path.read_bytes()
            size, since = _STATE.unpack_from(state)
            done += size
            if since and (seconds := time.time() - since) > longest:
                name = _NAME.unpack_from(state, _STATE.size)[0].rstrip(b"\0").decode("utf-8", "ignore")
                longest, text = seconds, f"{duration(seconds)} on {escape_line(name)}"
    return done, text


def _map_processes(
    function: Work[S],
    shards: Sequence[S],
    unfinished: Sequence[int],
    workers: int,
    keep: Callable[[int, Result], None],
) -> None:
    """Runs shards on `workers` processes, one of them this one: starting one costs as much as a small shard.

    One thread for each other process hands it the next shard and saves the result at once.
    """
    queue = iter(unfinished)
    failures: list[BaseException] = []
    lock = threading.Lock()

    def work(call: Work[S]) -> None:
        while True:
            with lock:
                index = next(queue, None)
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


def _map_ray(
    function: Work[S],
    shards: Sequence[S],
    unfinished: Sequence[int],
    workers: int,
    address: str,
    keep: Callable[[int, Result], None],
) -> None:
    """Runs shards as tasks on a Ray cluster, at most two for each of its processors at a time."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage statistics to its makers
    import ray

    if not ray.is_initialized():  # one cluster serves all calls of a process; Ray ends it at exit
        own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        try:
            if address not in ("local", "auto"):  # Ray itself would retry for many minutes
                host, _, port = address.rpartition("/")[2].rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"ray_address = {address}: no Ray cluster answers ({str(error).splitlines()[0]}); start one"
                " with `ray start --head`, or use local"
            ) from None
    task: Any = ray.remote(num_cpus=1)(_in_folder)
    processors = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]  # ray has no types here
    at_once = 2 * max(1, int(processors))
    queue = iter(unfinished)
    running: dict[Any, int] = {}  # ray.ObjectRef -> index of the shard
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


def _in_folder(function: Work[S], shard: S, folder: str) -> Result:
    """Runs a task in the directory of the command, so that relative paths mean the same on every node."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return function(shard)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Turns Python's cyclic garbage collector off for the block.

    It would walk millions of new strings, arrays and lists, none of them in a cycle: 6 % of tokenising.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Process(SpawnProcess):
    """A process that never sees Ctrl-C, not even while it starts: its parent does, and ends it."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new process inherits it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Spawns, does not fork: the parent may have threads (torch, pyarrow), and a fork would copy their locks,
    some of them taken.
    """

    Process = _Process


@contextlib.contextmanager
def processes(workers: int, **how: Any) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of processes that ends with the block, whatever ends the block.

    how: further arguments of ProcessPoolExecutor. Raises Failure where a worker died.
    """
    context = _Context()
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, **how) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise Failure(
                "a worker process died, possibly killed for want of memory. Finished work is kept: run the"
                " same command again, with fewer --workers if memory was short"
            ) from None
        except KeyboardInterrupt:
            # The workers do not see Ctrl-C. What they write is whole or absent.
            for process in list(pool._processes.values()):
                process.terminate()
            raise
        except BaseException:
            # Wait for the running tasks. A pool that is not shut down can leave processes that nothing ends,
            # and an interpreter that waits for them for ever at exit.
            pool.shutdown(cancel_futures=True)
            raise
