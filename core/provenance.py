"""How an output was made: the command line of a configuration, and the machine that ran it.

manifest.py saves both in the manifest of every output; `mt report` shows them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import platform
import re
import sys
from typing import Any

from .config import Setting, settings

CREDENTIALS = re.compile(r"(\b[a-z0-9+.-]+://)[^/@\s]+@", re.IGNORECASE)
ROLES = ("input", "output", "setting", "runtime")  # in this order
MOST_WORDS = 1000  # of a command line: a glob can name half a million files


def command_line(verb: str, config: Any) -> list[str]:
    """The words of a command that makes a configuration again: ["mt", "data", "clean", "--input", "a.jsonl"].

    It gives the settings that differ from their defaults, but for `overwrite`, which another run should not
    get by copying. A preset or a file of settings is not named: what it sets is given. After MOST_WORDS words
    the rest is left out, with "..." in its place. Names and passwords in URLs are replaced by "***".
    """
    words = ["mt", *verb.split()]
    for setting in sorted(settings(type(config)), key=lambda s: ROLES.index(s.role)):
        value = functools.reduce(getattr, setting.path, config)
        if setting.path[-1] == "overwrite":
            continue
        if setting.default is dataclasses.MISSING or value != setting.default:
            words += _flag(setting, value)
    words = words if len(words) <= MOST_WORDS else [*words[:MOST_WORDS], "..."]
    return [CREDENTIALS.sub(r"\1***@", _as_text(word)) for word in words]


def directory() -> str:
    """The current directory, where relative paths of a command start; "" if it has been removed."""
    try:
        return _as_text(os.getcwd())
    except FileNotFoundError:
        return ""


def _as_text(word: str) -> str:
    """A word of the command line; bytes that are not UTF-8 are written as escapes."""
    return word.encode("utf-8", "backslashreplace").decode()


def _flag(setting: Setting, value: Any) -> list[str]:
    """The words that give a setting a value."""
    if isinstance(value, bool):
        return [setting.flag if value else f"--no-{setting.flag[2:]}"]
    if isinstance(value, dict):
        return [setting.flag, ",".join(f"{k}={_word(v)}" for k, v in value.items())]
    if isinstance(value, list | tuple):
        return [setting.flag, *map(_word, value)]
    word = _word(value)
    # a word that begins with a dash would be read as another flag
    return [f"{setting.flag}={word}"] if word.startswith("-") and word != "-" else [setting.flag, word]


def _word(value: object) -> str:
    """A value as a flag spells it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def machine() -> dict[str, Any]:
    """This machine: {"system", "python", "processor", "processors", "memory_bytes"}; None what it hides."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
        "python": platform.python_version(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
    }


def _processor() -> str | None:
    """The name of the processor."""
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
                for line in itertools.islice(file, 64):
                    name, _, value = line.partition(":")
                    if name.strip() == "model name":
                        return value.strip()
        except OSError:
            pass
    return platform.processor() or None


def memory_bytes() -> int | None:
    """The memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
