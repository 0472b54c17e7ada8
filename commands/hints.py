"""What is said after the name of an unknown flag, setting or command.

The table `hints.yaml` has the names that other programs use, and the answer to each. A name that is not
there is compared with the known ones, letter by letter (`core.config.nearest`). A wrong hint is worse than
none: an answer is given only if the command has every flag that it names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.config import nearest
from ..core.parsing import read_yaml
from .table import COMMANDS

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
QUOTED = re.compile(r"`[^`]*`")  # another command, with flags of its own


@functools.cache
def answers() -> dict[str, dict[str, list[str]]]:
    """{"flags" or "commands": {name: answers in the order of preference}}."""
    tree: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_name("hints.yaml"))
    return {
        kind: {name: found if isinstance(found, list) else [found] for name, found in names.items()}
        for kind, names in tree.items()
    }


def answer(name: str, known: Iterable[str]) -> str | None:
    """The first answer for a flag whose own flags are all known, "" if none is, None for another flag.

    `--train.epochs`, as litgpt writes groups, is `--epochs` where the table does not have it.
    """
    flags = set(known)
    name = name.lower().replace("_", "-")
    short = "--" + name.lstrip("-").rsplit(".", 1)[-1]
    for spelling in dict.fromkeys((name, short)):
        if "." in name and spelling in flags:
            return spelling
        if (found := answers()["flags"].get(spelling)) is not None:
            return next((a for a in found if flags.issuperset(FLAG.findall(QUOTED.sub("", a)))), "")
    return None


def for_flag(name: str, known: Iterable[str]) -> str:
    """The end of the message about an unknown flag, "" where there is nothing to say."""
    known = list(known)
    if (found := answer(name, known)) is None:
        return nearest(name, known)
    return _end(found, found)


def for_setting(name: str, known: list[str]) -> str:
    """The end of the message about an unknown setting of a file; known: names with their groups."""
    flags = {"--" + k.rsplit(".", 1)[-1].replace("_", "-"): k for k in known}
    found = answer("--" + name.rsplit(".", 1)[-1], flags)
    if found is None:
        return nearest(name, known)
    return _end(found, FLAG.sub(lambda flag: flags.get(flag[0], flag[0]), found))


def _end(found: str, shown: str) -> str:
    if not found:
        return ""
    return f"; did you mean {shown}?" if FLAG.fullmatch(found) else f"; {shown}"


def for_command(words: list[str]) -> str:
    """The end of the message about words that are no command: `dta`, or `data` and `clena`."""
    name = " ".join(words)
    found = answers()["commands"].get(name.lower().replace("_", "-"))
    if found is None:
        group, last = words[:-1], words[-1]
        names = {p[len(group)] for p in COMMANDS if list(p[: len(group)]) == group and len(p) > len(group)}
        return nearest(last, sorted(names))
    return f"; did you mean `mt {found[0]}`?" if tuple(found[0].split()) in COMMANDS else f"; {found[0]}"
