"""A command of mt in a fork of the test's process, which has imported the libraries: a start takes seconds.

Tests about the start of a process, or about signals that come while it runs, start one.
"""

import atexit
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable

from mt import cli


def run(
    *arguments: object, stdin: bytes = b"", before: Callable[[], object] = lambda: None
) -> subprocess.CompletedProcess[bytes]:
    """The ended command, with what it printed. before: called in the fork first, to limit it."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        given.write(stdin)
        given.seek(0)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code: object = 70
            try:
                for number, file in enumerate((given, out, said)):
                    os.dup2(file.fileno(), number)
                # pytest has replaced all three
                sys.stdin = os.fdopen(0, closefd=False)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
                if "torch" in sys.modules:
                    sys.modules["torch"].set_num_threads(1)  # threads of the parent are not there
                atexit._clear()  # what the parent's libraries do at its end
                before()
                cli.main(list(map(str, arguments)))
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 1)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        said.seek(0)
        ended = os.waitstatus_to_exitcode(status)
        return subprocess.CompletedProcess(list(arguments), ended, out.read(), said.read())
