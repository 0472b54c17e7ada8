"""The command line `mt <group> <command>`: click commands, each imported only when it is called.

A command is a function that takes a configuration and returns its summary, a dict (commands/table.py). The
configuration's class gives the flags, their types and their help (commands/flags.py). Exit codes: 0 success,
1 an error in mt or a failure outside the settings, 2 a mistake of the user, 3 success, but some records were
set aside.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from . import __version__
from .commands import interrupt, table
from .commands.output import Output, print_traceback
from .core import terminal
from .core.config import Failure, UserError


def main(arguments: list[str] | None = None) -> None:
    """Runs one command line and exits with its code."""
    interrupt.install()
    output, rest = Output.split(sys.argv[1:] if arguments is None else arguments)
    if output.quiet:
        from .core import progress

        progress.set_quiet(True)
    with terminal.escape_output(quiet=output.quiet):
        code = _run(rest, output)
    interrupt.end_at_once()
    sys.exit(code)


def _run(arguments: list[str], output: Output) -> int:
    """Runs one command line, prints its error if it ends with one, and returns the exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for each other by spinning are ten times slower on a busy machine; threads that
        # sleep at once are a sixth slower on an idle one. So spin for about 50 microseconds, then sleep.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # torch allocates large blocks of memory in huge pages, on Linux
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = _invoke(arguments, output)
    except (UserError, Failure) as error:
        if output.verbose:
            print_traceback()
        code = error.exit_code if _another_rank_prints(error) else output.print_error(error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `mt ... | head` is not an error
        code = 0
    except OSError as error:
        message = None if interrupt.received else _system_error(error)
        code = output.print_error(message, 2) if message else _crash(output)
    except KeyboardInterrupt as error:
        code = output.print_error(str(error) or interrupt.MESSAGE, interrupt.CODE)
    except Exception:
        code = _crash(output)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def command(arguments: list[str]) -> int:
    """Runs one command line; returns its exit code. Errors are raised."""
    output, rest = Output.split(arguments)
    return _invoke(rest, output)


def call(path: table.Path, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs one command with its own command-line arguments; returns its summary."""
    config = _context(path, arguments).params["config"]
    summary: dict[str, Any] | None = table.load(path)[0](config)
    return summary


def _invoke(arguments: list[str], output: Output) -> int:
    """Runs one command line; returns its exit code."""
    try:
        with Commands().make_context("mt", _without_help_command(arguments), obj=output) as context:
            code: int | None = context.command.invoke(context)
    except click.exceptions.Exit as end:  # after the help
        return end.exit_code
    return code or 0


def _without_help_command(arguments: list[str]) -> list[str]:
    """`mt help train optimizer` as `mt train --help optimizer`."""
    if arguments[:1] != ["help"]:
        return arguments
    words = arguments[1:]
    for length in (2, 1):
        if tuple(words[:length]) in table.COMMANDS:
            return [*words[:length], "--help", *words[length:]]
    return [*words, "--help"]


def _context(path: table.Path, arguments: Sequence[str]) -> click.Context:
    found = Commands().get_path(path)
    assert found is not None, f"{path} is a command of the table"
    return found.make_context(" ".join(("mt", *path)), list(arguments))


class Commands(click.Group):
    """All commands, or those of a group as `mt data`; a command is imported only when it is called."""

    def __init__(self, words: table.Path = ()) -> None:
        settings = {"ignore_unknown_options": True}  # resolve_command tells of them
        super().__init__(" ".join(("mt", *words)), add_help_option=False, context_settings=settings)
        self.words = words

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] in ("-h", "--help"):
            from .commands import help

            text = help.overview(terminal.screen(sys.stdout), *self.words)
            print(text, file=terminal.unescaped(sys.stdout))
            ctx.exit()
        if args[0] == "--version" and not self.words:
            print(f"mt {__version__}")
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        depth = len(self.words)
        return list(dict.fromkeys(p[depth] for p in table.COMMANDS if p[:depth] == self.words))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.get_path((*self.words, cmd_name))

    def get_path(self, path: table.Path) -> click.Command | None:
        """The command or the group of a path, or None."""
        if path not in table.COMMANDS:
            return Commands(path) if any(p[: len(path)] == path for p in table.COMMANDS) else None
        from .commands import flags

        if path == ("launch",):  # its arguments include another command with its arguments
            return flags.RawCommand(path, table.load(path)[0])
        if path == ("megatron",):  # a command line of Megatron-LM
            return flags.RawCommand(path, _run_megatron)
        if (outline := table.outline_of(path)) is None:
            return flags.ConfigCommand(path, table.load(path)[1], _run_command, _print_help)
        load = lambda: table.load(path)[1]
        return flags.ConfigCommand(path, outline, _run_command, _print_help, load)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (found := self.get_command(ctx, args[0])) is not None:
            return args[0], found, args[1:]
        from .commands import hints

        words = [*self.words, args[0]]
        kind = "flag" if args[0].startswith("-") else "command"
        raise UserError(
            f"mt {' '.join(words)}: no such {kind}{hints.for_command(words)};"
            f" `{' '.join(('mt', *self.words))} --help` lists them"
        )


def _run_command(config: Any, layers: list[tuple[str, dict[str, Any]]]) -> int:
    """Runs the command of click's current context and prints its summary; returns the exit code."""
    context = click.get_current_context()
    output: Output = context.obj
    path = context.command.path  # type: ignore[attr-defined]  # it is a ConfigCommand
    function, cls = table.load(path)
    if output.verbose or any(origin.startswith("preset ") for origin, _ in layers):
        from .commands.configure import origins, replaced_lists

        for line in [*replaced_lists(cls, layers), *(origins(cls, layers) if output.verbose else ())]:
            print(f"mt: {line}", file=sys.stderr)
    summary = function(config)
    if summary is None:
        return 0
    output.print_summary(path, summary)
    code: int = summary.get("exit_code") or (3 if summary.get("counts", {}).get("rejected") else 0)
    return code


def _run_megatron(arguments: list[str]) -> int:
    """Runs the command line of mt that does what one of Megatron-LM does; returns the exit code."""
    words = table.imported("commands.megatron", "megatron")(arguments)
    return 0 if words is None else _invoke(words, click.get_current_context().obj)


def _print_help(command: Any, words: list[str]) -> None:
    from .commands import help

    text = help.page(command, words, terminal.screen(sys.stdout))
    print(text, file=terminal.unescaped(sys.stdout))


def _another_rank_prints(error: UserError | Failure) -> bool:
    """Whether another of torchrun's processes prints the error.

    All ranks find most mistakes. Rank 0 prints at once, and then torchrun ends the others. The others wait;
    one that is still running after that prints its own error, which rank 0 did not find.
    """
    texts = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    rank, local_rank = (int(text) if text.isdecimal() else 0 for text in texts)
    if rank != 0 and error.exit_code < 128:
        time.sleep(10 if local_rank else 5)
        return False
    return rank != 0  # a signal, which all ranks have received


def _system_error(error: OSError) -> str | None:
    """One line for an error of the operating system that a user can correct, else None."""
    place = f"{error.filename}: " if error.filename else ""
    again = "run the same command again"
    remedies = {
        errno.ENOSPC: f"the disk is full; free some space and {again}: finished work is kept",
        errno.EDQUOT: f"the disk quota is used up; free some space and {again}: finished work is kept",
        errno.EFBIG: f"the file would exceed the system's limit (ulimit -f); raise the limit and {again}",
        errno.EACCES: "permission denied; check who owns it",
        errno.EPERM: "operation not permitted; check who owns it",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOENT: "no such file or directory; check the path",
        errno.EISDIR: "is a directory, but a file is needed; check the path",
        errno.ENOTDIR: "is a file, but a directory is needed; check the path",
        errno.EEXIST: "exists already; choose another place",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.EMFILE: "too many open files (ulimit -n); raise the limit or use fewer --workers",
    }
    remedy = remedies.get(error.errno or 0)
    return place + remedy if remedy else None


def _crash(output: Output) -> int:
    """Ends an error in mt, or an interrupt that a library made an error of; returns the exit code."""
    if interrupt.received:
        return output.print_error(interrupt.MESSAGE, interrupt.CODE)
    return output.print_crash()
