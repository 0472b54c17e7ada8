"""What a command prints: its summary on standard output, errors and everything else on standard error."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ..core import terminal
from . import table

# Flags of every command: they say what is printed, not what is done.
FLAGS = {
    "--json": "print the summary as JSON; a failure too",
    "--quiet": "print nothing but the summary and errors",
    "--verbose": "print every setting that is not at its default, and where it comes from",
    "--no-color": "print without colours, as with the variable NO_COLOR",
}


@dataclasses.dataclass(frozen=True)
class Output:
    """What is printed: the flags that every command has."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @staticmethod
    def split(arguments: Sequence[str]) -> tuple[Output, list[str]]:
        """(what is printed, the other arguments). --no-color sets NO_COLOR, for libraries and for processes.

        `mt launch` and `mt megatron` read their arguments themselves, so only flags before them are taken.
        """
        given: dict[str, bool] = {}
        rest: list[str] = []
        for index, argument in enumerate(arguments):
            if argument == "--" or (rest and rest[0] in ("launch", "megatron")):
                rest += arguments[index:]
                break
            if argument == "--no-color":
                os.environ["NO_COLOR"] = "1"
                os.environ.pop("FORCE_COLOR", None)
            elif argument in ("--json", "--quiet", "--verbose"):
                given[argument[2:]] = True
            else:
                rest.append(argument)
        return Output(**given), rest

    def print_summary(self, path: table.Path, summary: dict[str, Any]) -> None:
        """Prints the summary of a command, as JSON or as text."""
        from .summary import format_summary  # late: `mt --help` needs no library of manifests

        command = table.COMMANDS[path]
        if summary.pop("standard_output", None) is not None:  # it has the result, as of a stream
            text = self._as_json(summary) if self.json else format_summary(summary)
            print(text, file=sys.stderr)
        elif self.json:
            print(self._as_json(summary))
        elif command.layout:
            layout = table.imported(*command.layout)
            print(layout(summary, terminal.screen(sys.stdout)), file=terminal.unescaped(sys.stdout))
        elif command.prints_text and not sys.stdout.isatty():
            print(format_summary(summary), file=terminal.unescaped(sys.stdout))
        else:
            print(format_summary(summary, terminal.unescaped(sys.stdout)))

    @staticmethod
    def _as_json(value: object) -> str:
        return terminal.escape_json(json.dumps(value, ensure_ascii=False, default=str))

    def print_error(self, message: object, code: int) -> int:
        """Prints a message on standard error, in red on a terminal; returns the exit code.

        With --json it is also an object on standard output.
        """
        if self.json:
            lines = str(message).split("\n")
            error = {"message": lines[0], "exit_code": code, "messages": lines}
            print(self._as_json({"error": error}))
        red, plain = ("\033[31m", "\033[0m") if terminal.screen(sys.stderr).colours else ("", "")
        # further lines are indented, so that none passes for a message of its own
        shown = terminal.MESSAGE + terminal.escape(str(message)).replace("\n", "\n    ")
        stream = terminal.unescaped(sys.stderr)
        print(f"{red}{terminal.fold(shown, stream, indent=' ' * 8)}{plain}", file=stream, flush=True)
        return code

    def print_crash(self) -> int:
        """Prints the traceback of an error in mt; returns the exit code."""
        print_traceback()
        return self.print_error("an error in mt: please report the lines above", 1)


def print_traceback() -> None:
    """Prints the traceback of the current exception on standard error, with --quiet too."""
    stream = terminal.unescaped(sys.stderr)
    print(terminal.escape(traceback.format_exc()), end="", file=stream, flush=True)
