"""Reads JSON and YAML files that somebody else made, in bounded memory, and checks their values.

    class Point(TypedDict):
        step: Count
        loss: NotRequired[float | None]

    points = check_value(read_json(path), list[Point], path)

A file is read only if it is a regular file of at most so many bytes (128 MiB of JSON, 4 MiB of YAML), and
parsed only into so many values (4 million, 200,000) and levels (64). Every honest file that mt reads has
less: the largest tokenizer.json known have 60 MB, 3 million values and 10 levels. Numbers may not have more
digits than Python converts (4,300). The last of two equal keys of a JSON object counts, as in all JSON
libraries of Python; a key given twice in YAML is refused.

`check_value` compares a value with a type: bool, int, float, str, None, Literal, unions, list[X],
dict[str, X], tuple[X, Y] (a list of that length), TypedDict (a mapping; keys that it does not name are not
looked at) and Annotated[X, Range(...)]. Scalars are checked by config.mistake, as all settings are. A whole
number must fit into 64 bits, a number must be finite, and a text must be text that can be encoded.

Every mistake is a UserError of one line: file, place in it, value, rule, remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import operator
import os
import stat
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import yaml

from .config import UserError, mistake, shown
from .unicode import without_mark

JSON_BYTES = 128 << 20
SETTINGS_BYTES = 16 << 20  # of JSON; the largest config.json known, with the names of all labels, have 1 MB
YAML_BYTES = 4 << 20  # mt's own have some kB; with 10,000 prefixes of data 1 MB
MOST_VALUES = 4_000_000  # of JSON: at worst 232 bytes of memory each, so that one file takes less than 1 GB
MOST_NODES = 200_000  # of YAML: PyYAML takes 1 kB and 20 microseconds for each
MOST_DIGITS = 4_300  # of a number in YAML
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MOST_LEVELS = 64  # json, orjson and repr recurse, and end at 254 to 1,024 levels
FETCH = "fetch the file again"
MADE_BY_MT = "remove the output it belongs to and run its command again"

T = TypeVar("T")
Wrong = tuple[str, Any, str]  # a place in a value, the value there, the rule that it breaks


@dataclasses.dataclass(frozen=True)
class Range:
    """The least and the greatest number, for Annotated."""

    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f"must be at least {self.least:,}"
        return f"must be from {self.least:,} to {self.most:,}"


Count = Annotated[int, Range(0, (1 << 63) - 1)]
AnyFloat = typing.NewType("AnyFloat", float)  # a number that may be NaN or infinite, as losses are


def read_bytes(path: str | Path, most: int, remedy: str = FETCH, *, may_be_pipe: bool = False) -> bytes:
    """The bytes of a regular file; raises UserError if there are more than `most`, without reading them.

    may_be_pipe: for the path that a user typed, such as /dev/stdin; others would wait for ever.
    """
    try:
        # Opening a named pipe without O_NONBLOCK waits for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if may_be_pipe else os.O_NONBLOCK))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except ValueError:  # a NUL in the name
        raise UserError(f"{shown(str(path))}: is not a name of a file; check the path") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a directory, but a file is needed; check the path")
        if not (stat.S_ISREG(status.st_mode) or (may_be_pipe and stat.S_ISFIFO(status.st_mode))):
            raise UserError(f"{path}: is not a regular file; check the path")
        with open(handle, "rb", closefd=False) as file:
            # Python allocates as much as it is asked for. A pipe, and files of the kernel, have size 0.
            data = file.read((status.st_size or most) + 1) if status.st_size <= most else b""
    finally:
        os.close(handle)
    size = max(status.st_size, len(data))
    if size > most:
        raise UserError(
            f"{path}: has {'more than ' if not status.st_size else ''}{size:,} bytes; such a file has at most"
            f" {most:,}: {remedy}"
        )
    return data


def read_text(path: str | Path, most: int = JSON_BYTES, remedy: str = FETCH) -> str:
    """The text of a regular file of UTF-8 without a byte-order mark, its line ends as they are.

    Raises UserError as read_bytes does, or for another encoding.
    """
    return _decoded(without_mark(read_bytes(path, most, remedy)), str(path), remedy)


def _decoded(data: bytes, place: str, remedy: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start} is not UTF-8; {remedy}") from None


def read_json(path: str | Path, most: int = JSON_BYTES, remedy: str = FETCH) -> Any:
    """The value in a JSON file; raises UserError if it is not a whole one, or larger than any honest one."""
    return parse_json(without_mark(read_bytes(path, most, remedy)), str(path), remedy)


def parse_json(data: bytes, place: str, remedy: str = FETCH) -> Any:
    """The value of a JSON text, NaN and infinities as Python writes them included. place: begins messages."""
    values = data.count(b",") + data.count(b"[") + data.count(b"{")  # the brackets bound empty values
    if values > MOST_VALUES:
        raise UserError(f"{place}: has {values:,} values; such a file has at most {MOST_VALUES:,}: {remedy}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = _parse_slowly(data, place, remedy)
    _check_levels(value, place, remedy)
    return value


def _parse_slowly(data: bytes, place: str, remedy: str) -> Any:
    """As parse_json: json names the line, and reads NaN and lone surrogates, which some programs write."""
    text = _decoded(data, place, remedy)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}, line {error.lineno}: not valid JSON ({error.msg}); {remedy}") from None
    except RecursionError:
        raise _too_deep(place, remedy) from None
    except ValueError:  # int() refuses so many digits
        raise UserError(f"{place}: has a number of more than 4,300 digits; {remedy}") from None


def _check_levels(value: Any, place: str, remedy: str) -> None:
    """Raises UserError for more than MOST_LEVELS levels; no loop in Python goes over a level's values."""
    inside: list[Any] = [value]
    for _ in range(MOST_LEVELS + 1):
        kinds = set(map(type, inside))
        lists: Iterable[list[Any]] = inside if kinds == {list} else _of_type(list, inside)
        mappings = _of_type(dict, inside) if dict in kinds else ()
        if not kinds & {list, dict}:
            return
        values = itertools.chain.from_iterable(map(dict.values, mappings))
        inside = list(itertools.chain(itertools.chain.from_iterable(lists), values))
    raise _too_deep(place, remedy)


def _of_type(kind: type[T], values: list[Any]) -> Iterator[T]:
    return itertools.compress(values, map(operator.is_, map(type, values), itertools.repeat(kind)))


def _too_deep(place: str, remedy: str) -> UserError:
    return UserError(f"{place}: is nested more than {MOST_LEVELS} levels deep; {remedy}")


def read_yaml(path: str | Path, *, may_be_pipe: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; raises UserError with file and line for anything else."""
    remedy = "mend the file, or fetch it again"
    try:
        text = without_mark(read_bytes(path, YAML_BYTES, remedy, may_be_pipe=may_be_pipe)).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        tree = _load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {_problem(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `name: value` lines, not a {type(tree).__name__}")
    return tree


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, such as a flag's; raises ValueError that says what is wrong."""
    try:
        return _load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from None


def _load_yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError) as error:  # chr() in PyYAML's scanner, of "\\UFFFFFFFF"
        raise yaml.YAMLError(str(error)) from None


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, on one line; it may quote the file, so control characters are escaped."""
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return "".join(c if c.isprintable() else " " if c == "\n" else ascii(c)[1:-1] for c in text)[:300]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, deep or endless nesting, and aliases that explode.

    PyYAML takes the last of two equal keys. Aliases (`*name`) share one value, so that 10 lines can stand for
    10^9 values once somebody walks over them, or merges them with `<<`. So every alias counts as all that it
    stands for. PyYAML's conversions of scalars raise whatever Python raises (2026-99-99 is a ValueError,
    `!!int ''` an IndexError); here all are the file's mistake, with its line.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._open: list[str | None] = []  # the anchors of the collections around the current node
        self._count = 0  # nodes so far, aliases as many as they stand for
        self._counts: dict[str, int] = {}  # of each anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.events.AliasEvent)
        if alias and event.anchor in self._open:
            raise _composer_error(f"*{event.anchor} stands inside of what it names", event)
        if len(self._open) > MOST_LEVELS:
            raise _composer_error(f"nested more than {MOST_LEVELS} levels deep", event)
        before = self._count
        self._count += self._counts.get(event.anchor, 1) if alias else 1
        if self._count > MOST_NODES:
            raise _composer_error(
                f"more than {MOST_NODES:,} values, each alias counted as what it names", event
            )
        self._open.append(event.anchor if not alias else None)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._open.pop()
        if not alias and event.anchor is not None:
            self._counts[event.anchor] = self._count - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:  # base 60 takes quadratic time
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            kind = str(node.tag).rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(getattr(node, 'value', None))} is no {kind}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a text, not a list or a mapping", key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown(key)} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _composer_error(problem: str, event: Any) -> yaml.composer.ComposerError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)


def check_value(value: Any, kind: Any, place: str | Path, remedy: str = FETCH) -> Any:
    """The value, if it has the type `kind` (see the top of this file); raises UserError if it does not.

    place: begins the message: the file, perhaps with a place in it.
    """
    if wrong := problem(value, kind):
        raise UserError(f"{place}: {wrong}; {remedy}")
    return value


def problem(value: Any, kind: Any) -> str | None:
    """`PLACE = VALUE: RULE` of the first leaf of a value that breaks its type, or None if none does."""
    wrong = _kind(kind).wrong(value)
    if wrong is None:
        return None
    where, found, rule = wrong
    where = where.removeprefix(".")
    if rule == _MISSING:
        return f"has no {where}"
    return f"{where} = {shown(found)}: {rule}" if where else f"is {shown(found)}: {rule}"


_MISSING = "is missing"


@functools.cache
def _kind(kind: Any) -> _Kind:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.NotRequired, typing.Required):
        return _kind(arguments[0])
    if origin is Annotated:
        return _Ranged(_kind(arguments[0]), arguments[1])
    if origin in (typing.Union, types.UnionType):
        return _OneOf([_kind(choice) for choice in arguments])
    if origin is list:
        return _ListOf(_kind(arguments[0]))
    if origin is tuple:
        return _TupleOf([_kind(item) for item in arguments])
    if origin is dict:
        assert arguments[0] is str, "the keys of JSON objects are texts"
        return _MappingOf(_kind(arguments[1]))
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return _Record({name: _kind(hint) for name, hint in hints.items()}, required_keys(kind))
    return _Kind() if kind is Any else _Scalar(kind)


def required_keys(kind: Any) -> frozenset[str]:
    """Those of a TypedDict. Its own attribute is wrong where annotations are texts, before Python 3.14."""
    hints = typing.get_type_hints(kind, include_extras=True)
    optional = {name for name, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired}
    return frozenset(hints.keys() - optional) if kind.__total__ else frozenset()


class _Kind:
    """A type to compare values with; this one fits every value."""

    def wrong(self, value: Any) -> Wrong | None:
        """The first leaf of a value that breaks the type."""
        return None

    def all_fit(self, values: list[Any]) -> bool:
        """Whether no value breaks the type. Much faster for the million texts and ids of a tokenizer.json."""
        return all(self.wrong(value) is None for value in values)


class _Scalar(_Kind):
    """What config.mistake knows, None, and AnyFloat."""

    def __init__(self, kind: Any):
        self.kind = kind

    def wrong(self, value: Any) -> Wrong | None:
        if self.kind in (None, type(None)):
            return None if value is None else ("", value, "must be null")
        kind = self.kind
        if kind is AnyFloat:
            if isinstance(value, float):
                return None
            kind = float
        if type(value) is str and not _can_be_encoded(value):
            return "", value, "must be text without lone surrogates"
        rule = mistake(value, kind)
        return ("", value, rule) if rule else None

    def all_fit(self, values: list[Any]) -> bool:
        found = set(map(type, values))
        if found == {str} == {self.kind}:
            return _can_be_encoded("".join(values))
        if found == {int} == {self.kind}:
            return mistake(min(values), int) is mistake(max(values), int) is None
        return super().all_fit(values)


def _can_be_encoded(text: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        return text.isascii() or bool(text.encode())
    return False


class _Ranged(_Kind):
    def __init__(self, inner: _Kind, bounds: Range):
        self.inner, self.bounds = inner, bounds

    def wrong(self, value: Any) -> Wrong | None:
        if wrong := self.inner.wrong(value):
            return wrong
        if value is None or self.bounds.least <= value <= self.bounds.most:
            return None
        return "", value, str(self.bounds)

    def all_fit(self, values: list[Any]) -> bool:
        if not self.inner.all_fit(values):
            return False
        numbers = [value for value in values if value is not None]
        return not numbers or self.bounds.least <= min(numbers) <= max(numbers) <= self.bounds.most


class _OneOf(_Kind):
    def __init__(self, choices: list[_Kind]):
        self.choices = choices

    def wrong(self, value: Any) -> Wrong | None:
        found = []
        for choice in self.choices:
            wrong = choice.wrong(value)
            if wrong is None:
                return None
            found.append(wrong)
        inside = [wrong for wrong in found if wrong[0]]  # of the right container, with a wrong leaf
        if inside:
            return inside[0]
        rules = [rule.removeprefix("must be ") for _, _, rule in found]
        return "", value, f"must be {' or '.join(dict.fromkeys(rules))}"

    def all_fit(self, values: list[Any]) -> bool:
        return any(choice.all_fit(values) for choice in self.choices) or super().all_fit(values)


class _ListOf(_Kind):
    def __init__(self, item: _Kind):
        self.item = item

    def wrong(self, value: Any) -> Wrong | None:
        if not isinstance(value, list):
            return "", value, "must be a list"
        if self.item.all_fit(value):
            return None
        places = (_inside(f"[{n}]", self.item, element) for n, element in enumerate(value))
        return next(filter(None, places), None)

    def all_fit(self, values: list[Any]) -> bool:
        if set(map(type, values)) != {list}:
            return not values
        return self.item.all_fit(list(itertools.chain.from_iterable(values)))


class _TupleOf(_Kind):
    def __init__(self, items: list[_Kind]):
        self.items = items

    def wrong(self, value: Any) -> Wrong | None:
        if not isinstance(value, list) or len(value) != len(self.items):
            return "", value, f"must be a list of {len(self.items)}"
        pairs = enumerate(zip(self.items, value))
        return next(filter(None, (_inside(f"[{n}]", item, element) for n, (item, element) in pairs)), None)

    def all_fit(self, values: list[Any]) -> bool:
        if set(map(type, values)) != {list} or set(map(len, values)) != {len(self.items)}:
            return not values
        if len(set(map(id, self.items))) == 1:  # one type: pairs of texts
            return self.items[0].all_fit(list(itertools.chain.from_iterable(values)))
        return all(item.all_fit([v[n] for v in values]) for n, item in enumerate(self.items))


class _MappingOf(_Kind):
    def __init__(self, item: _Kind):
        self.item = item

    def wrong(self, value: Any) -> Wrong | None:
        if not isinstance(value, dict):
            return "", value, "must be a mapping"
        if set(map(type, value)) - {str} or not _can_be_encoded("".join(value)):
            wrong = next(key for key in value if type(key) is not str or not _can_be_encoded(key))
            return "", wrong, "must have keys of text without lone surrogates"
        if self.item.all_fit(list(value.values())):
            return None
        places = (_inside(_key(key), self.item, element) for key, element in value.items())
        return next(filter(None, places), None)


class _Record(_Kind):
    """A TypedDict."""

    def __init__(self, items: dict[str, _Kind], required: frozenset[str]):
        self.items, self.required = items, required

    def wrong(self, value: Any) -> Wrong | None:
        if not isinstance(value, dict):
            return "", value, "must be a mapping"
        for key, item in self.items.items():
            if key not in value:
                if key in self.required:
                    return f".{key}", None, _MISSING
            elif wrong := _inside(f".{key}", item, value[key]):
                return wrong
        return None

    def all_fit(self, values: list[Any]) -> bool:
        """Key by key, as a list of tokens or files has thousands of records with the same keys."""
        if set(map(type, values)) != {dict}:
            return not values
        for key, item in self.items.items():
            found = [value[key] for value in values if key in value]
            if (key in self.required and len(found) < len(values)) or not item.all_fit(found):
                return False
        return True


def _inside(place: str, kind: _Kind, value: Any) -> Wrong | None:
    wrong = kind.wrong(value)
    return (place + wrong[0], *wrong[1:]) if wrong else None


def _key(key: str) -> str:
    return f".{key}" if key.isidentifier() and key.isascii() else f"[{shown(key)}]"
