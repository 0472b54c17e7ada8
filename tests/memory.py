"""How much memory a function takes, measured in a process of its own."""

import importlib
import multiprocessing
import resource
import sys

RSS_BYTES = 1 if sys.platform == "darwin" else 1024  # of a unit in which getrusage counts


def peak_growth(module: str, function: str, *arguments) -> tuple[object, int]:
    """(what a function returns, bytes by which the process grew while it ran).

    The function is called twice: first on arguments whose work is small, which loads libraries and compiles
    loops. arguments: pairs (small, large).
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, module, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure(sender, module, function, arguments):
    call = getattr(importlib.import_module(module), function)
    call(*(small for small, _ in arguments))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = call(*(large for _, large in arguments))
    sender.send((result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * RSS_BYTES))
