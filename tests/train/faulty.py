"""`mt` with a planted fault: `mt launch -m mt.tests.train.faulty ...`.

The variable FAULT is WHAT@RANK@STEP: in that step, that rank does WHAT, once (it makes the file ONCE).
`kill`: SIGKILL; `sleep`: for an hour; `stop`: SIGSTOP; `kill_in_save`: SIGKILL when the checkpoint is written
and not yet renamed.
"""

import os
import signal
import sys
import time
from pathlib import Path

from mt import cli
from mt.train import loop
from mt.train.checkpoint.native import Saver


def act(what: str) -> None:
    once = Path(os.environ["ONCE"])
    if once.exists():
        return
    once.touch()
    if what == "sleep":
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGSTOP if what == "stop" else signal.SIGKILL)


def main() -> None:
    what, rank, step = os.environ["FAULT"].split("@")
    if os.environ["RANK"] == rank:
        target, name = (Saver, "_seal") if what == "kill_in_save" else (loop.Trainer, "update")
        original = getattr(target, name)

        def faulty(self, *arguments):
            now = arguments[-1].step if what == "kill_in_save" else self.progress.step + 1
            if now == int(step):
                act(what)
            return original(self, *arguments)

        setattr(target, name, faulty)
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
