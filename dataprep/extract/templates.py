"""Expand the templates of Wikipedia whose words are a part of the text, as `{{nowrap|12 m}}`.

The pages of templates are not in the tables of this package, and many are programs; wiki/templates.yaml says
what a reader sees in place of the most used ones. Most are a pattern of arguments; the others are a function
of template_rules.py or unit_conversion.py. wiki/editions.yaml has what depends on the language. A template
without an entry has no words that are known, and the caller drops and counts it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

from . import editions, template_rules
from .template_call import Call, normalize_name
from .wikitext_tags import BREAK, HIDDEN

Expand = Callable[[Call], str | None]


def expand(call: Call) -> str | None:
    """The text in place of a template; None if its words are not known."""
    table = _table(call.edition.code)
    if (entry := table.by_name.get(call.name)) is not None:
        return entry(call)
    for prefix, suffix, entry in table.by_affix:
        if call.name.startswith(prefix) and call.name.endswith(suffix):
            return entry(call)
    return None


def is_known(name: str, edition: str) -> bool:
    """Whether the table of an edition has a template; name: as `normalize_name` gives it."""
    table = _table(edition)
    return name in table.by_name or any(
        name.startswith(prefix) and name.endswith(suffix) for prefix, suffix, _ in table.by_affix
    )


@dataclasses.dataclass(frozen=True)
class _Table:
    by_name: dict[str, Expand]
    by_affix: list[tuple[str, str, Expand]]  # (beginning of a name, its end, entry), the longest end first


@functools.cache
def _table(code: str) -> _Table:
    by_name: dict[str, Expand] = {}
    by_affix: list[tuple[str, str, Expand]] = []
    for entry in editions.load("templates.yaml"):
        if code not in entry.get("editions", (code,)):
            continue
        for name, text in entry.get("words", {}).items():
            by_name[normalize_name(name)] = functools.partial(_constant, text=_literal(text))
        if "words" in entry:
            continue
        if "rule" in entry:
            rule: Expand = template_rules.RULES[entry["rule"]]
        elif "constant" in entry:
            rule = functools.partial(_constant, text=_literal(entry["constant"]))
        else:
            rule = Pattern(entry["text"], entry.get("join", " "), entry.get("otherwise"))
        for name in entry["names"]:
            by_name[normalize_name(name)] = rule
        if "prefix" in entry:
            by_affix.append((normalize_name(entry["prefix"]), entry.get("suffix", ""), rule))
    by_affix.sort(key=lambda affix: len(affix[1]), reverse=True)
    return _Table(by_name, by_affix)


def _constant(call: Call, *, text: str) -> str:
    return text


def _literal(text: str) -> str:
    """A text of the table in which nothing is markup."""
    return text.translate(HIDDEN).replace("\n", BREAK)


class Pattern:
    """A text with arguments in braces: see wiki/templates.yaml.

    join: what stands between those of `{*}`. otherwise: the text where no argument is given.
    """

    def __init__(self, text: str, join: str = " ", otherwise: str | None = None):
        self._join = _literal(join)
        self._otherwise = None if otherwise is None else _literal(otherwise)
        tokens = re.findall(r"[<>]|\{[^{}]*\}|[^<>{}]+", text)
        self._parts, rest = self._parse(tokens)
        assert not rest, f"{text!r} closes a part that it does not open"

    def _parse(self, tokens: list[str]) -> tuple[list[Part], list[str]]:
        parts: list[Part] = []
        while tokens and tokens[0] != ">":
            token, *tokens = tokens
            if token == "<":
                inner, tokens = self._parse(tokens)
                assert tokens, "a part is not closed"
                parts.append(inner)
                tokens = tokens[1:]
            elif token[0] == "{":
                parts.append(tuple(tuple(names.split("|")) for names in token[1:-1].split(";")))
            else:
                parts.append(_literal(token))
        return parts, tokens

    def __call__(self, call: Call) -> str | None:
        """`otherwise` if no argument of the pattern is given, so that there is nothing to show."""
        text, given, _ = self._render(self._parts, call)
        return text if given else self._otherwise

    def _render(self, parts: list[Part], call: Call) -> tuple[str, bool, bool]:
        """(text, whether an argument is given, whether one outside `<...>` is missing)."""
        pieces: list[str] = []
        any_given = any_missing = False
        for part in parts:
            if isinstance(part, str):
                pieces.append(part)
            elif isinstance(part, list):
                text, given, missing = self._render(part, call)
                if not missing:
                    pieces.append(text)
                    any_given |= given
            else:
                value = self._values(part, call)
                pieces.append(value)
                any_given |= bool(value)
                any_missing |= not value
        return "".join(pieces), any_given, any_missing

    def _values(self, alternatives: tuple[tuple[str, ...], ...], call: Call) -> str:
        if alternatives == (("*",),):
            return self._join.join(filter(None, call.positional()))
        if alternatives == (("0",),):
            return call.written
        return ", ".join(filter(None, (call.get(*names) for names in alternatives)))


Part = str | tuple[tuple[str, ...], ...] | list["Part"]  # a text, an argument, a part that may vanish
