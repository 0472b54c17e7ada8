"""`mt launch`: processes by torchrun, started again after a failure, but not after a mistake.

    mt launch --nproc-per-node 8 train --config run.yaml          torchrun's flags, then a command of mt
    mt launch --nproc-per-node 8 -m mt train --config run.yaml    the same, as torchrun has it

torchrun tries everything again that fails, the user's mistakes too, in processes that keep a rendezvous which
may be broken, and ends with exit code 1 whatever the cause. Here every attempt is a new rendezvous, and what
was meant to end the job ends it, with the exit code of the process that said so: a mistake (2), training that
has diverged (16), a signal (128 + its number). Anything else is started again up to --max-restarts times in a
row (3), and `mt train` goes on from the newest checkpoint; an attempt that lasted LONG counts as no failure
in a row.

On several machines all must start again together: that is the batch script's part, with --max-restarts 0. It
learns from the file that FINAL_EXIT_CODE names whether an exit code was meant, which srun's own does not
tell. See examples/slurm.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from ...core.config import UserError

# exit codes that are meant
FINAL = (2, 16, *(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)))
LONG = 3600.0  # seconds


def launch(arguments: list[str]) -> None:
    """Runs torchrun's arguments until they end well or are not to be tried again; ends with the exit code
    where that is not 0.
    """
    parsed = _parse(arguments)
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
        failures = 1 if time.monotonic() - began > LONG else failures + 1
        last = failures > restarts
        print(
            f"mt: {what};"
            f" {f'given up after {failures} in a row' if last else f'starting again ({failures} of {restarts})'}",
            file=sys.stderr,
            flush=True,
        )
        if last:
            sys.exit(code)


def _parse(arguments: list[str]):
    try:
        from torch.distributed.run import get_args_parser
    except ModuleNotFoundError:
        raise UserError(
            "`mt launch` needs the package torch; install it with: pip install 'mt[train]'"
        ) from None
    parser = get_args_parser()
    parser.prog, parser.description, parser.error = "mt launch", __doc__, _mistake
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(max_restarts=3)
    parsed = parser.parse_args(arguments)
    if str(parsed.master_port) == "0":
        raise UserError(
            "mt launch: --master-port 0: processes cannot find each other at port 0; leave it out, and a free"
            " one is found"
        )
    alone = parsed.nnodes in ("1", "1:1")
    if not alone and parsed.max_restarts:
        raise UserError(
            f"mt launch: --nnodes {parsed.nnodes}: machines must start again together; give --max-restarts 0,"
            " and see examples/slurm/train.sbatch"
        )
    if (
        alone
        and not parsed.rdzv_endpoint
        and not any(a.replace("_", "-").startswith("--master-port") for a in arguments)
    ):
        parsed.standalone = True  # at a free port, so that two jobs do not meet
    if not parsed.module:
        parsed.training_script_args = [parsed.training_script, *parsed.training_script_args]
        parsed.module, parsed.training_script = True, __package__.split(".")[0]
    return parsed


def _mistake(message: str):
    raise UserError(
        f"mt launch: {message}; torchrun's flags come first, then a command of mt: mt launch --nproc-per-node"
        " 2 train ..."
    )


def _attempt(parsed) -> tuple[int, str]:
    """(exit code, what happened) of one start of all processes."""
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
        # Who was killed comes before those who then missed it.
        rank, code = min(codes.items(), key=lambda found: found[1])
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return (128 - code if code < 0 else code), f"rank {rank} {how}"
    except SignalException as stop:
        return 128 + stop.sigval.value, ""
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, ""
    except (RuntimeError, OSError) as error:  # the rendezvous itself
        return (
            1,
            (
                "processes could not be started"
                f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ),
        )
