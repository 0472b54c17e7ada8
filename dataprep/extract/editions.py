"""The languages of Wikipedia: how each writes numbers, months and names of languages, and its magic words.

wiki/editions.yaml has them, and wiki/magic_words.txt the behaviour switches `__TOC__` ... of MediaWiki.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "wiki"
DEFAULT = "en"
_NUMBER = re.compile(r"([-+\u2212\u2013]?)([0-9]+)(?:\.([0-9]+))?")
_THOUSANDS = re.compile(r"(?<=[0-9])(?=(?:[0-9]{3})+$)")
MAX_DIGITS = 40  # a longer run of digits is no number that a reader wants grouped


def _slavic(number: float) -> int:
    """день, дня, дней"""
    if number % 10 == 1 and number % 100 != 11:
        return 0
    return 1 if number % 10 in (2, 3, 4) and number % 100 not in (12, 13, 14) else 2


PLURALS: dict[str, Callable[[float], int]] = {
    "english": lambda number: int(number != 1),
    "french": lambda number: int(number >= 2),
    "one form": lambda number: 0,
    "slavic": _slavic,
}


@dataclasses.dataclass(frozen=True)
class Edition:
    """What a language of Wikipedia needs: see wiki/editions.yaml. languages: {code: name}."""

    code: str
    thousands: str = ""
    decimal: str = "."
    group_from: int = 4
    months: tuple[str, ...] = ()
    language_label: str = "{language}: {text}"
    languages: dict[str, str] = dataclasses.field(default_factory=dict)
    short_languages: dict[str, str] = dataclasses.field(default_factory=dict)
    plural: str = "english"
    variants: tuple[str, ...] = ()

    def plural_form(self, number: float) -> int:
        """Which of the forms of a word a number takes, from 0; by the rules of Unicode's CLDR."""
        return PLURALS[self.plural](number)

    def number(self, text: str) -> str:
        """A number such as "-1234.5" as the language writes it; any other text as it is."""
        match = _NUMBER.fullmatch(text)
        if match is None:
            return text
        sign, whole, decimals = match.groups()
        if self.group_from <= len(whole) <= MAX_DIGITS:
            whole = _THOUSANDS.sub(self.thousands, whole)
        sign = "\u2212" if sign == "-" else sign
        return sign + whole + (self.decimal + decimals if decimals else "")


@functools.cache
def edition(code: str) -> Edition:
    """The settings of a language; of one without an entry its numbers stay as they are written."""
    found = load("editions.yaml")
    raw = found.get(code)
    if raw is None:
        return Edition(code)
    if "like" in raw:
        raw = found[raw["like"]]
    lists = {name: tuple(raw.get(name, ())) for name in ("months", "variants")}
    values = {**raw, **lists, "group_from": int(raw.get("group_from", 4))}
    return Edition(code, **values)


@functools.cache
def magic_words() -> re.Pattern[str]:
    """The behaviour switches `__TOC__` ... of MediaWiki."""
    lines = (FOLDER / "magic_words.txt").read_text(encoding="utf-8").split("\n")
    words = sorted((re.escape(line) for line in lines if line and line[0] != "#"), key=len, reverse=True)
    return re.compile(rf"__(?:{'|'.join(words)})__", re.IGNORECASE)


def load(name: str) -> Any:
    """A YAML file of wiki/, of which all scalars are texts."""
    import yaml

    # so that the language `no` and the template `0` are no booleans and numbers
    with open(FOLDER / name, encoding="utf-8") as file:
        return yaml.load(file, getattr(yaml, "CBaseLoader", yaml.BaseLoader))


def rules_digest() -> str:
    """Identifies the tables, so that outputs made with others are made again."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
