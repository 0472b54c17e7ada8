"""A template in an article: its name and its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .editions import Edition
from .wikitext_tags import BREAK, REMOVED

WHITE = " \t\n\u00a0" + BREAK + REMOVED  # around an argument
_YES = frozenset(("y", "yes", "on", "1", "true", "t", "ja", "oui"))


class Call:
    """A template in an article: its name, and its arguments, each read when it is first asked for.

    written: the name as it is in the article; `name` is its form in the table. arguments: functions that
    return the text of an argument.
    """

    def __init__(self, written: str, arguments: Mapping[str, Callable[[], str]], edition: Edition):
        self.written = " ".join(written.replace("_", " ").replace(REMOVED, "").split())
        self.name, self.edition = normalize_name(written), edition
        self._arguments = arguments
        self._texts: dict[str, str] = {}

    def get(self, *names: str) -> str:
        """The first of the arguments that is given and not empty, without white space around it."""
        for name in names:
            if name in self._arguments:
                if name not in self._texts:
                    self._texts[name] = self._arguments[name]().strip(WHITE)
                if self._texts[name]:
                    return self._texts[name]
        return ""

    def positional(self) -> list[str]:
        """The arguments 1, 2, ... up to the last that is given; empty ones too."""
        found: list[str] = []
        while str(len(found) + 1) in self._arguments:
            found.append(self.get(str(len(found) + 1)))
        return found

    def is_set(self, *names: str) -> bool:
        """Whether one of the arguments has a value that means yes."""
        return any(
            self.get(name).lower() in ("y", "yes", "on", "1", "true", "t", "ja", "oui") for name in names
        )


def normalize_name(name: str) -> str:
    """A template's name as the table has it: its first letter is lower-case, `_` is a space."""
    name = re.sub(r"[\s_]+", " ", name.replace(REMOVED, "")).strip()
    if name[:9].lower() == "template:":
        name = name[9:].lstrip()
    return name[:1].lower() + name[1:]
