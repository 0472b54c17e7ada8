"""Programs that read lines: all of their output, and what ends them."""

import sys

import pytest

from mt.core.config import UserError
from mt.dataprep.programs import run_program

COPY = [sys.executable, "-c", "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"]


def test_more_lines_than_a_pipe_holds_are_answered():
    lines = [b"%d " % n + b"x" * 1000 + b"\n" for n in range(3000)]
    assert run_program(COPY, iter(lines)) == (b"".join(lines), 0, "no error message")


def test_a_program_that_ends_early_gives_its_exit_code_and_last_line():
    code = "import sys; print('out'); sys.stderr.write('first\\nlast\\n'); sys.exit(7)"
    lines = (b"x" * 1000 + b"\n" for _ in range(3000))
    assert run_program([sys.executable, "-c", code], lines) == (b"out\n", 7, "last")


def test_an_error_message_that_is_not_utf8_is_told():
    code = "import sys; sys.stdin.read(); sys.stderr.buffer.write(b'caf\\xe9 failed\\n'); sys.exit(3)"
    assert run_program([sys.executable, "-c", code], [b"x\n"]) == (b"", 3, "caf\ufffd failed")


def test_an_error_in_making_the_lines_is_raised():
    def lines():
        yield b"one\n"
        raise UserError("line 2 cannot be read")

    with pytest.raises(UserError, match="line 2 cannot be read"):
        run_program(COPY, lines())
