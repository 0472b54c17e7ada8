"""Checks the values of torchrun's flags for `mt launch`: a wrong one is one line, before anything starts.

torchrun reads some of its flags only when processes start, or not at all: an unknown signal is skipped, an
unknown handler of events is a KeyError, and a log directory that is a file fails again in every restart. Its
flags may also come from the environment, as PET_NNODES and so on, whose values argparse does not check.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.config import UserError, shown

MOST_MACHINES = 1 << 20
MOST_PROCESSES = 4096  # on a machine
MOST_SECONDS = 1 << 31
BACKENDS = ("static", "c10d", "etcd", "etcd-v2")
SWITCHES = (
    "standalone",
    "module",
    "no_python",
    "run_path",
    "virtual_local_rank",
)  # also from the environment


def short(value: object) -> str:
    """A value in a message: as it was typed, unless it is long or would not print."""
    text = str(value)
    return text if text.isprintable() and len(text) <= 100 else shown(text[:1000])


def refuse(flag: str, value: object, rule: str) -> UserError:
    return UserError(f"mt launch: {flag} {short(value)}: {rule}")


def check_environment() -> None:
    """Raises UserError for a variable that torchrun's parser reads as a switch, and cannot."""
    for name in SWITCHES:
        variable = f"PET_{name.upper()}"
        if os.environ.get(variable, "0") not in ("0", "1"):
            raise UserError(
                f"mt launch: {variable} = {short(os.environ[variable])}: must be 0 or 1; unset it"
            )


def check_values(parsed: argparse.Namespace) -> None:
    """Raises UserError for the first flag of torchrun that has a wrong value."""
    processes = _check_numbers(parsed)
    within("--max-restarts", parsed.max_restarts, 0, MOST_SECONDS)
    machines = str(parsed.nnodes).rpartition(":")[2]
    within("--node-rank", parsed.node_rank, 0, int(machines) - 1)  # a higher one would wait for ever
    if parsed.master_port is not None:
        within("--master-port", parsed.master_port, 1, 65535)
    if parsed.shutdown_timeout is not None:
        within("--shutdown-timeout", parsed.shutdown_timeout, 0, MOST_SECONDS)
    if not 0 < parsed.monitor_interval <= 3600:  # not for NaN, either
        raise refuse("--monitor-interval", parsed.monitor_interval, "give seconds above 0, at most 3,600")
    one_of("--start-method", parsed.start_method, ("spawn", "fork", "forkserver"))
    one_of("--rdzv-backend", parsed.rdzv_backend, BACKENDS)
    for name in (
        "rdzv_endpoint",
        "rdzv_id",
        "role",
        "log_dir",
        "master_addr",
        "local_addr",
        "training_script",
    ):
        if "\0" in str(getattr(parsed, name) or ""):
            raise refuse(
                "--" + name.replace("_", "-"), getattr(parsed, name), "must not have a NUL character"
            )
    _check_signals(parsed.signals_to_handle)
    _check_ranks(parsed.local_ranks_filter, processes)
    _check_program(parsed)
    _ask_torch(parsed, processes)
    _check_log_dir(parsed.log_dir)


def within(flag: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise refuse(flag, value, f"give a number from {least} to {most:,}")


def one_of(flag: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise refuse(flag, value, f"give one of {', '.join(known)}")


def _check_numbers(parsed: argparse.Namespace) -> int:
    """The processes on this machine; raises UserError for impossible numbers of machines or processes."""
    from torch.distributed.run import determine_local_world_size, parse_min_max_nnodes

    try:
        fewest, most = parse_min_max_nnodes(parsed.nnodes)
    except (ValueError, RuntimeError):
        fewest = most = 0
    if not 1 <= fewest <= most:
        raise refuse(
            "--nnodes",
            parsed.nnodes,
            "the number of machines must be at least 1; give a number, or FEWEST:MOST",
        )
    if most > MOST_MACHINES:
        raise refuse("--nnodes", parsed.nnodes, f"give at most {MOST_MACHINES:,} machines")
    try:
        processes = determine_local_world_size(parsed.nproc_per_node)
    except (ValueError, RuntimeError) as error:
        what = short(str(error).rstrip("."))
        raise refuse(
            "--nproc-per-node", parsed.nproc_per_node, f"{what}; give a number of processes"
        ) from None
    if processes < 1:
        raise refuse(
            "--nproc-per-node",
            parsed.nproc_per_node,
            "a job has at least 1 process on a machine; give a number of processes",
        )
    if processes > MOST_PROCESSES:
        raise refuse("--nproc-per-node", parsed.nproc_per_node, f"give at most {MOST_PROCESSES:,} processes")
    return int(processes)


def _check_signals(names: str) -> None:
    for name in names.split(","):
        known = getattr(signal.Signals, name, None) if name.startswith("SIG") else None
        if known is None or known in (signal.SIGKILL, signal.SIGSTOP):
            rule = f"{short(name)} is no signal that can be handled; give names such as SIGTERM,SIGINT"
            raise refuse("--signals-to-handle", names, rule)


def _check_ranks(ranks: str, processes: int) -> None:
    known = set(map(str, range(processes)))
    for rank in ranks.split(",") if ranks else ():
        if rank.strip() not in known:
            rule = f"{short(rank)} is no rank of this machine, which has 0 to {processes - 1}"
            raise refuse("--local-ranks-filter", ranks, f"{rule}; separate them by commas")


def _check_program(parsed: argparse.Namespace) -> None:
    if parsed.no_python and parsed.module:
        raise UserError("mt launch: --no-python and --module exclude each other; leave one of them out")
    program = parsed.training_script
    if parsed.run_path and not Path(program).is_file():
        raise refuse("--run-path", program, "is no file; check the path")
    if parsed.no_python and not parsed.run_path and shutil.which(program) is None:
        raise refuse("--no-python", program, "is no program; check the path")


def _ask_torch(parsed: argparse.Namespace, processes: int) -> None:
    """Calls torch's own readers of values, which raise before processes are started."""
    from torch.distributed.elastic.events import get_logging_handler
    from torch.distributed.elastic.multiprocessing.api import Std
    from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config
    from torch.distributed.run import _get_logs_specs_class

    readers: list[tuple[str, Any, Callable[[Any], Any], str]] = [
        ("--redirects", parsed.redirects, Std.from_str, "give 0 to 3, or RANK:N,RANK:N"),
        ("--tee", parsed.tee, Std.from_str, "give 0 to 3, or RANK:N,RANK:N"),
        ("--rdzv-conf", parsed.rdzv_conf, _parse_rendezvous_config, "give NAME=VALUE,NAME=VALUE"),
        ("--event-log-handler", parsed.event_log_handler, get_logging_handler, "give null or console"),
        (
            "--logs-specs",
            parsed.logs_specs,
            _get_logs_specs_class,
            "give an entry point of torchrun.logs_specs",
        ),
    ]
    if parsed.numa_binding is not None:
        one_of("--numa-binding", parsed.numa_binding, ("node", "socket", "exclusive", "core-complex"))
        import torch

        if not torch.cuda.is_available():
            raise refuse(
                "--numa-binding", parsed.numa_binding, "needs GPUs, and there are none; leave it out"
            )
    for flag, value, read, rule in readers:
        try:
            found = read(value)
        except Exception:  # each raises something else
            raise refuse(flag, value, rule) from None
        ranks = found if flag in ("--redirects", "--tee") and isinstance(found, dict) else ()
        if any(rank >= processes for rank in ranks):
            raise refuse(flag, value, f"this machine has the ranks 0 to {processes - 1}")
    for name, value in _parse_rendezvous_config(parsed.rdzv_conf).items():
        if "timeout" in name or name.endswith("_interval"):
            try:
                fine = math.isfinite(float(value)) and 0 < float(value) <= MOST_SECONDS
            except ValueError:
                fine = False
            if not fine:
                raise refuse("--rdzv-conf", parsed.rdzv_conf, f"{short(name)} must be seconds above 0")


def _check_log_dir(place: str | None) -> None:
    if not place or place == os.devnull:
        return
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        fine = os.access(place, os.W_OK | os.X_OK)
    except OSError:
        fine = False
    if not fine:
        raise refuse("--log-dir", place, "is no directory that can be written; give another one")
