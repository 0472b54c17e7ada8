"""Evaluate the functions of MediaWiki in an article, `{{#if: a | b | c}}`, where it has all that they need.

In articles they are left by substituted templates. A function is evaluated by MediaWiki's rules (the
extension ParserFunctions, and CoreParserFunctions). One that depends on what is not in the article, as on
other pages, the time, or a template whose words are not known, is not evaluated; the caller drops and counts
it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from .editions import Edition
from .expression import ExpressionError, evaluate, value
from .template_call import WHITE
from .wikitext_tags import REMOVED, SHOWN

MAX_PADDING = 500  # characters; MediaWiki's limit
NUMERIC = re.compile(r"\s*[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?\s*")
Text = Callable[[], str]  # made when it is asked for: not all branches are


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument between two bars. key: what stands before its `=`, or None."""

    key: Text | None
    value: Text

    def text(self) -> str:
        return self.value() if self.key is None else f"{self.key()}={self.value()}"


class _Unknown(Exception):
    """Something that the function needs is not in the article."""


def is_function(name: str) -> bool:
    """Whether `{{name: ...}}` is one of FUNCTIONS. name: lower-case."""
    return name in FUNCTIONS


def call(name: str, first: str, arguments: Sequence[Argument], edition: Edition) -> str | None:
    """The text of `{{name:first|...}}`, or None if the article does not tell it. name: lower-case."""
    try:
        return FUNCTIONS[name](first, arguments, edition)
    except (_Unknown, ExpressionError):
        return None


def _known(text: str) -> str:
    """A text that decides; without white space around it."""
    if REMOVED in text:
        raise _Unknown
    return text.strip(WHITE)


def _branch(arguments: Sequence[Argument], place: int) -> str:
    return arguments[place].text().strip(WHITE) if place < len(arguments) else ""


def _if(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return _branch(arguments, 0 if _known(first) else 1)


def _ifeq(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return _branch(arguments, 1 if _equal(_known(first), _known(_branch_raw(arguments, 0))) else 2)


def _ifexpr(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return _branch(arguments, 0 if value(_known(first).translate(SHOWN)) else 1)


def _iferror(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    """Errors of MediaWiki are never in a text here."""
    text = _known(first)
    return _branch(arguments, 1) if len(arguments) > 1 else text


def _expr(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return evaluate(_known(first).translate(SHOWN))


def _switch(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    """The value of the first case that equals the text; cases without a value have that of the next one."""
    wanted, default = _known(first), ""
    matched = is_default = False
    for place, argument in enumerate(arguments):
        if argument.key is None:
            case = _known(argument.value())
            if place == len(arguments) - 1:
                return case
            matched = matched or _equal(wanted, case)
            is_default = is_default or case == "#default"
            continue
        case = _known(argument.key())
        if matched or _equal(wanted, case):
            return argument.value().strip(WHITE)
        if is_default or case == "#default":
            default, is_default = argument.value().strip(WHITE), False
    return default


def _branch_raw(arguments: Sequence[Argument], place: int) -> str:
    return arguments[place].text() if place < len(arguments) else ""


def _equal(one: str, other: str) -> bool:
    """As PHP's == of two texts: numbers are compared as numbers."""
    if NUMERIC.fullmatch(one) and NUMERIC.fullmatch(other):
        return float(one) == float(other)
    return one.translate(SHOWN) == other.translate(SHOWN)


def _padded(first: str, arguments: Sequence[Argument]) -> tuple[str, str]:
    """(a text, what is missing of it)."""
    text, size = _known(first), _known(_branch_raw(arguments, 0))
    filling = _known(_branch_raw(arguments, 1)) or "0"
    missing = min(int(size), MAX_PADDING) - len(text) if size.isdecimal() and len(size) < 10 else 0
    return text, (filling[:MAX_PADDING] * MAX_PADDING)[: max(0, missing)]


def _padleft(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    text, padding = _padded(first, arguments)
    return padding + text


def _padright(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    text, padding = _padded(first, arguments)
    return text + padding


def _plural(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    """`{{plural:2|page|pages}}`, also with forms for a number alone: `{{plural:0|0=none|page|pages}}`."""
    count = _known(first)
    forms = [argument for argument in arguments if argument.key is None]
    for argument in arguments:
        if argument.key is not None and _equal(count, _known(argument.key())):
            return argument.value().strip(WHITE)
    try:
        number = abs(float(count.replace(",", "")))
    except ValueError:
        raise _Unknown from None
    form = edition.plural_form(number)
    return forms[min(form, len(forms) - 1)].text().strip(WHITE) if forms else ""


def _gender(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    """The form for somebody of whom nothing is known: the third, or the first."""
    return _branch(arguments, 2 if len(arguments) > 2 else 0)


def _formatnum(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    text = first.strip()
    raw = any(_known(argument.text()) == "R" for argument in arguments)
    return text.replace(edition.thousands, "") if raw else edition.number(text)


def _upper(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return first.strip().upper()


def _lower(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return first.strip().lower()


def _upper_first(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return first.strip()[:1].upper() + first.strip()[1:]


def _lower_first(first: str, arguments: Sequence[Argument], edition: Edition) -> str:
    return first.strip()[:1].lower() + first.strip()[1:]


FUNCTIONS: dict[str, Callable[[str, Sequence[Argument], Edition], str]] = {
    "#if": _if, "#ifeq": _ifeq, "#ifexpr": _ifexpr, "#iferror": _iferror, "#switch": _switch, "#expr": _expr,
    "padleft": _padleft, "padright": _padright, "plural": _plural, "gender": _gender,
    "formatnum": _formatnum, "uc": _upper, "lc": _lower, "ucfirst": _upper_first, "lcfirst": _lower_first,
}  # fmt: skip
