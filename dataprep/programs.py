"""Runs a program that reads lines on its standard input and answers on its standard output."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence

from ..core.config import UserError


def run_program(arguments: Sequence[str], lines: Iterable[bytes]) -> tuple[bytes, int, str]:
    """(all that a program wrote, its exit code, the last line of its standard error).

    lines: each with its end; they are made in another thread, while the program's output is read. A UserError
    in making one is raised here.
    """
    errors: list[UserError] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None, "stdin is a pipe"
        assert stdout is not None, "stdout is a pipe"

        def feed() -> None:
            try:
                with stdin:
                    for line in lines:
                        stdin.write(line)
            except BrokenPipeError:
                pass  # the exit code and the output of the program say why
            except UserError as error:
                errors.append(error)

        feeder = threading.Thread(target=feed)
        feeder.start()
        with stdout:
            data = stdout.read()
        status = process.wait()
        feeder.join()
        stderr.seek(0)
        last_line = (stderr.read().strip().splitlines() or ["no error message"])[-1]
    if errors:
        raise errors[0]
    return data, status, last_line
