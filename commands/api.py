"""Commands as functions of Python: `mt.run("data tokenize", input=..., output_prefix=...)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.config import UserError, nearest
from ..core.parsing import read_yaml
from ..core.progress import notes_as_warnings
from . import table
from .configure import configure, from_file

# They start other processes, or keep the one that they run in.
IN_A_SHELL = {*table.RAW, ("serve",)}


def run(
    command: str,
    /,
    *,
    preset: str | None = None,
    hf: str | None = None,
    config: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    verbose: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Runs a command of mt in this process, and returns its summary: what `--json` prints.

    Args:
        command: as on the command line, without `mt`: `"data clean"`, `"train"`.
        preset: named settings to start from.
        hf: for a training, the Hugging Face directory that gives the model's settings.
        config: YAML files of settings; `settings` override them.
        verbose: print progress and notes on standard error, as the command line does. Otherwise notes are
            Python warnings.
        settings: the command's settings by name, as in a YAML file: `input="my.jsonl"`, `vocab_size=8192`. A
            setting with its group is given as `**{"optimizer.lr": 1e-3}`. A path may be a text or a
            pathlib.Path.

    If the output is up to date, the command does nothing, as on the command line. Worker processes import the
    script that is running, so a script must call this under `if __name__ == "__main__":`. Raises UserError
    for a mistake in the settings or the input, with the message of the command line, and Failure for a
    failure of mt or the machine.
    """
    path = tuple(command.split())
    if path not in table.COMMANDS:
        known = [" ".join(name) for name in table.COMMANDS]
        raise UserError(f"{command!r} is not a command of mt{nearest(command, known)}; `mt --help` lists all")
    if path in IN_A_SHELL:
        raise UserError(f"`mt {command}` starts processes that keep running: run it in a shell")
    if verbose:
        return _run(path, preset, hf, config, settings)
    with notes_as_warnings():
        return _run(path, preset, hf, config, settings)


def _run(
    path: tuple[str, ...],
    preset: str | None,
    hf: str | None,
    config: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    given: dict[str, Any],
) -> dict[str, Any]:
    function, cls = table.load(path)
    files = [config] if isinstance(config, str | os.PathLike) else config
    layers = [(str(file), from_file(cls, read_yaml(file), file)) for file in map(Path, files)]
    layers.append((f"mt.run({' '.join(path)!r})", given))
    return function(configure(cls, layers, preset, hf)) or {}
