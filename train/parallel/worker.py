"""A process of `mt launch`: runs a module, and is killed when the launcher ends.

    python -m mt.train.parallel.worker MODULE ARGS...       as python -m MODULE ARGS...

A launcher that is killed by SIGKILL cannot stop its processes. They would go on, hold the GPUs and write to
the output. So each first asks the kernel (Linux) for SIGKILL at the end of its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys

LAUNCHER = "MT_LAUNCHER_PID"  # the environment variable with the process id of the launcher
PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with_launcher() -> None:
    """Asks for SIGKILL at the end of the parent process; ends at once if the launcher has ended already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(PermissionError):
        try:
            os.kill(int(os.environ[LAUNCHER]), 0)  # sends nothing
        except ProcessLookupError:
            os._exit(1)


if __name__ == "__main__":
    die_with_launcher()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
