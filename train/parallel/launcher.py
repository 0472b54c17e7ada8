"""`mt launch`: starts processes with torchrun, and restarts them after a failure, but not after a user's
mistake.

    mt launch --nproc-per-node 8 train --config run.yaml          torchrun's flags, then a command of mt
    mt launch --nproc-per-node 8 -m mt train --config run.yaml    the same, as for torchrun

torchrun alone restarts after every failure, also after a mistake in the settings, in processes that keep a
rendezvous which may be broken, and always exits with code 1. Here every attempt has a new rendezvous. An exit
code that is meant to be final ends the job, and is the exit code of this command: 2 (a mistake), 16 (training
has diverged), 128 + a signal's number. Any other failure restarts the job, up to --max-restarts (3) times in
a row, and `mt train` resumes from the newest checkpoint. An attempt longer than LONG_ATTEMPT resets the
count.

On one machine nothing listens beyond the loopback address (rendezvous.py). On several, the rendezvous is an
address or a file in a shared folder, which the user names. Processes end with their launcher (worker.py).

The machines of a multi-node job must restart together. The batch script does that, with --max-restarts 0. It
reads from the file named by the variable FINAL_EXIT_CODE whether an exit code is final, because srun's exit
code does not tell. See examples/slurm.
"""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
import time
import uuid
from pathlib import Path
from typing import NoReturn

from ...core.config import UserError
from ...core.extras import needs_package
from . import worker
from .launch_flags import check_environment, check_values, short

# exit codes after which a restart would fail in the same way
FINAL = (2, 16, *(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)))
LONG_ATTEMPT = 3600.0  # seconds


def launch(arguments: list[str]) -> None:
    """Runs torchrun with these arguments until it succeeds, or a failure is final or has had all its
    restarts.

    Exits with that failure's exit code. Raises UserError for wrong arguments.
    """
    parsed = _parse(arguments)
    os.environ[worker.LAUNCHER] = str(os.getpid())
    restarts, parsed.max_restarts = parsed.max_restarts, 0
    failures = 0
    while True:
        began = time.monotonic()
        code, what = _attempt(parsed)
        if code == 0:
            return
        if code in FINAL:
            if file := os.environ.get("FINAL_EXIT_CODE"):
                Path(file).write_text(f"{code}\n")
            sys.exit(code)
        failures = 1 if time.monotonic() - began > LONG_ATTEMPT else failures + 1
        last = failures > restarts
        outcome = (
            f"given up after {failures} in a row" if last else f"starting again ({failures} of {restarts})"
        )
        print(f"mt: {what}; {outcome}", file=sys.stderr, flush=True)
        if last:
            sys.exit(code)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """torchrun's arguments, with the command of mt as its module."""
    try:
        from torch.distributed.run import get_args_parser
    except ModuleNotFoundError:
        raise UserError(needs_package("`mt launch`", "torch")) from None
    check_environment()
    parser = get_args_parser()
    parser.prog, parser.description = "mt launch", __doc__
    parser.error = _usage_error  # type: ignore[method-assign]  # argparse has no other hook
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if "PET_MAX_RESTARTS" not in os.environ:
        parser.set_defaults(max_restarts=3)
    parsed = parser.parse_args(arguments)
    if str(parsed.master_port) == "0":
        raise UserError(
            "mt launch: --master-port 0: processes cannot find each other at port 0; leave it out, and"
            " torchrun takes a free one"
        )
    check_values(parsed)
    one_machine = parsed.nnodes in ("1", "1:1") or parsed.standalone
    if not one_machine and parsed.max_restarts:
        raise UserError(
            f"mt launch: --nnodes {parsed.nnodes}: the machines must restart together; give --max-restarts 0,"
            " and see examples/slurm/train.sbatch"
        )
    if one_machine:
        _meet_on_this_machine(parsed, arguments)
    else:
        _meet_on_several_machines(parsed, arguments)
    if parsed.run_path or parsed.no_python:
        return parsed
    module = [parsed.training_script] if parsed.module else [__name__.split(".")[0], parsed.training_script]
    parsed.training_script_args = [*module, *parsed.training_script_args]
    parsed.module, parsed.training_script = True, worker.__name__
    return parsed


def _is_given(flag: str, arguments: list[str]) -> bool:
    """Whether a flag of torchrun is given, or its environment variable is set."""
    variable = f"PET_{flag.strip('-').replace('-', '_').upper()}"
    return variable in os.environ or any(a.replace("_", "-").startswith(flag) for a in arguments)


def _meet_on_this_machine(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Sets the rendezvous of a job on one machine; an address or a kind of rendezvous has no effect there."""
    from . import rendezvous

    port = 0  # a free one, so that two jobs on one machine do not collide
    if _is_given("--master-port", arguments):
        port = int(parsed.master_port)
    rendezvous.register()
    rendezvous.keep_to_loopback(os.environ)
    parsed.standalone, parsed.rdzv_backend = False, rendezvous.BACKEND
    parsed.rdzv_endpoint, parsed.rdzv_id = f"127.0.0.1:{port}", str(uuid.uuid4())


def _meet_on_several_machines(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Sets the rendezvous of a job on several machines: an address or a file, which the user names."""
    if "/" in parsed.rdzv_endpoint:
        _check_file(Path(parsed.rdzv_endpoint))
        parsed.rdzv_backend = "c10d"
        parsed.rdzv_conf = ",".join(filter(None, ["store_type=file", parsed.rdzv_conf]))
    elif not parsed.rdzv_endpoint and not _is_given("--master-addr", arguments):
        raise UserError(
            f"mt launch: --nnodes {parsed.nnodes}: the machines do not know where to meet; give"
            " --rdzv-endpoint: the path of a file in a folder that all of them mount, or HOST:PORT in a"
            " network that you trust"
        )


def _check_file(path: Path) -> None:
    """Raises UserError unless this user alone can write the file of a rendezvous: torchrun unpickles it."""
    place = path if path.exists() else path.parent
    if not path.parent.is_dir():
        raise UserError(f"mt launch: --rdzv-endpoint {path}: {path.parent} is no folder; make it first")
    found = place.stat()
    own = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
    if not own or not (path.is_file() or not path.exists()):
        raise UserError(
            f"mt launch: --rdzv-endpoint {path}: others can write {place}, and whoever writes there can run"
            " code in this job; name a file in a folder of your own (mode 0755 or 0700)"
        )


def _usage_error(message: str) -> NoReturn:
    raise UserError(
        f"mt launch: {short(message)}; torchrun's flags come first, then a command of mt: mt launch"
        " --nproc-per-node 2 train ..."
    )


def _attempt(parsed: argparse.Namespace) -> tuple[int, str]:
    """Runs all processes once; returns (exit code, what happened)."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import run

    try:
        run(parsed)
        return 0, ""
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        for code in codes.values():
            if code in FINAL:
                return code, ""
        # A process killed by a signal (a negative code) is the cause of the failures of the others.
        rank, code = min(codes.items(), key=lambda found: found[1])
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return (128 - code if code < 0 else code), f"rank {rank} {how}"
    except SignalException as stop:
        return 128 + stop.sigval, ""
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, ""
    except (ValueError, TypeError, LookupError, AssertionError, ImportError) as error:  # a flag's value
        raise UserError(f"mt launch: torchrun cannot start with these flags ({short(error)})") from None
    except (RuntimeError, OSError) as error:  # the rendezvous failed
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return 1, f"processes could not be started ({reason})"


def _signal_name(number: int) -> str:
    """Real-time signals but the first and the last have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
