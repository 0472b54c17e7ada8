"""Reads megatron_flags.yaml: what each flag of Megatron-LM is here, its scripts, and their defaults.

`mt megatron` (megatron.py) reads whole command lines by this table. The other commands read a flag by it that
they do not have themselves (flags.py): it sets another setting, or has no effect, for a reason that is
printed, or is refused, for a reason too.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ..core.parsing import read_yaml


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a flag is here. One of `setting` and `settings`, `computed`, `no_effect` and `cannot` is given."""

    takes: int | None = 1  # values: 0, 1, or None for any number
    setting: str | None = None  # the name of the setting that gets the value, without its group
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # others that the flag sets
    values: dict[str, Any] = dataclasses.field(default_factory=dict)  # a value here for one there
    refused: dict[str, str] = dataclasses.field(default_factory=dict)  # why a value is not possible
    computed: str | None = None
    no_effect: str | None = None
    cannot: str | None = None
    unless: tuple[str, ...] = ()  # values of a flag that cannot be with which it changes nothing


@dataclasses.dataclass(frozen=True)
class Script:
    """A program of Megatron-LM, and the command that does the same; or why there is none."""

    command: tuple[str, ...] = ()
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    cannot: str | None = None


@functools.cache
def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml"))
    return tree


def _usage(text: str) -> tuple[str, int | None]:
    """(flag, number of its values) of `--flag`, `--flag X` and `--flag X...`."""
    flag, _, value = text.partition(" ")
    return flag, {"": 0, "X": 1}.get(value)


def _setting(takes: int | None, what: str | dict[str, Any]) -> Entry:
    if isinstance(what, str):
        return Entry(takes, what)
    return Entry(
        takes,
        what.get("to"),
        what.get("set", {}),
        what.get("values", {}),
        what.get("cannot", {}),
        no_effect=what.get("why"),
    )


@functools.cache
def entries() -> dict[str, Entry]:
    """The entry of every flag."""
    found: dict[str, Entry] = {}
    for text, what in _tree()["translated"].items():
        flag, takes = _usage(text)
        found[flag] = _setting(takes, what)
    for text, why in _tree()["computed"].items():
        flag, takes = _usage(text)
        found[flag] = Entry(takes, computed=why)
    for kind in ("no_effect", "cannot"):
        for group in _tree()[kind]:
            for flag, takes in map(_usage, group["flags"]):
                unless = tuple(group.get("unless", ()))
                found[flag] = Entry(takes, unless=unless, **{kind: group["why"]})
    return found


@functools.cache
def _elsewhere() -> dict[str, Entry]:
    return {
        flag: _setting(takes, what)
        for text, what in _tree()["elsewhere"].items()
        for flag, takes in [_usage(text)]
    }


def for_other_commands(flag: str) -> Entry | None:
    """The entry by which a command of mt reads a flag that it does not have, or None."""
    found = _elsewhere().get(flag) or entries().get(flag)
    return None if found is None or found.computed else found


@functools.cache
def scripts() -> dict[str, Script]:
    """The scripts, by the end of their paths."""
    return {
        name: Script(
            tuple(what.get("command", "").split()),
            {**_tree()["defaults"].get(what.get("defaults"), {}), **what.get("set", {})},
            what.get("cannot"),
        )
        for name, what in _tree()["scripts"].items()
    }
