"""Functions that the tests of the executor send to other processes, which import them from here."""

import multiprocessing
import os
import time
from pathlib import Path

from mt.core.config import UserError
from mt.core.executor import _begun, working_on
from mt.core.manifest import atomic_write


def square(item):
    folder, number = item
    (Path(folder) / f"ran-{number}").touch()
    return {"value": number * number}


def write_square(item):
    folder, number = item
    with atomic_write(Path(folder) / f"{number}.txt", "w") as file:
        file.write(str(number * number))
    return square(item)


def die(item):
    """Kills a worker process; takes half a second in the main process, which must notice the death."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), 9)
    time.sleep(0.5)
    return {}


def die_on_ray(item):
    os.kill(os.getpid(), 9)


def refuse(item):
    raise UserError("line 3 is bad")


def refuse_in_a_worker(item):
    if multiprocessing.parent_process() is not None:
        refuse(item)
    time.sleep(0.5)
    return {}


def show_progress(item):
    """Tells that 70 of 100 bytes of a shard are done, and what the first process then sees."""
    folder, name = item
    working_on("another", 10)
    working_on(name, 70)
    return {"seen": list(_begun(Path(folder)))}
