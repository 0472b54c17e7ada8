"""Configuration classes, made from YAML files, flags or Python and checked against their types.

A configuration is a class decorated with `configuration`, whose fields are made by `option`, beside the code
that reads it. That one declaration is the YAML key (`model.num_layers`, or `num_layers` for short), the flag
(`--num-layers`), the type that every value must have, and the help text. Configurations nest; leaf names are
unique within a tree, so that neither needs the prefix. Precedence: defaults < preset < `--config` files <
flags. All mistakes in a configuration are reported at once, before anything is built; an unknown name with
the nearest known one.

This is the lowest layer of the package. It also defines the two exceptions that end a command with one line.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal


class UserError(Exception):
    """A mistake in the input or the settings. The command line shows it in one red line; exit code 2."""

    exit_code = 2


class Failure(Exception):
    """A failure of mt or the machine, such as a killed worker, shown in one red line; exit code 1."""

    exit_code = 1


T = typing.TypeVar("T")
Hint = Callable[[str, list[str]], str]
Group = tuple[str, ...]  # a place in a configuration tree: () for the whole, ("model",) for a group in it


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    role: Literal["setting", "input", "output", "runtime"] = "setting",
    added: bool = False,
) -> Any:
    """A field of a configuration.

    role: "setting" can change the result, so a new value makes finished work stale; "input" is the path of
    what is read (its content matters, not its path); "output" is the one field that says where the result
    goes; "runtime" cannot change a byte of the result (workers, logging).

    added: for a setting that runs of earlier versions did not have, and whose default is what they did. It is
    part of a run's key only if it has another value, so that those runs stay up to date.
    """
    return dataclasses.field(default=default, metadata={"help": help, "role": role, "added": added})


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def configuration(*, group: str = "") -> Callable[[type[T]], type[T]]:
    """Makes a class a configuration: a frozen dataclass with keyword arguments whose values have their types.

    Making one with values that its annotations forbid raises one UserError that names all of them, before the
    class's own `__post_init__` runs; `dataclasses.replace` checks likewise. Defaults are not checked again: a
    test does that once.

    group: the name of the field that holds this class in a larger configuration. Messages put it before the
    names of the settings: `optimizer.lr`.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        generated = made.__init__

        @functools.wraps(generated)
        def __init__(self: T, **values: Any) -> None:
            kinds = _annotations(made)
            wrong = [
                f"{'.'.join(filter(None, (group, name)))} = {shown(value)}: {problem}"
                for name, value in values.items()
                if name in kinds and (problem := mistake(value, kinds[name]))
            ]
            if wrong:
                raise UserError("\n".join(wrong))
            generated(self, **values)

        made.__init__ = __init__
        made.GROUP = group
        return cls

    return decorate


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of a configuration tree."""

    path: Group  # ("model", "num_layers")
    type: Any  # the resolved annotation
    default: Any  # dataclasses.MISSING where it must be given
    help: str
    role: str
    added: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + self.path[-1].replace("_", "-")


@functools.cache
def _annotations(cls: Hashable) -> dict[str, Any]:
    """The resolved annotations of a configuration class. Resolving takes time: it waits for the first use."""
    return typing.get_type_hints(cls)


def settings(cls: Any, prefix: Group = ()) -> Iterator[Setting]:
    """Every leaf of a configuration class, in the order of declaration."""
    hints = _annotations(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from settings(kind, (*prefix, field.name))
        else:
            meta = field.metadata
            yield Setting(
                (*prefix, field.name),
                kind,
                field.default,
                meta.get("help", ""),
                meta.get("role", "setting"),
                meta.get("added", False),
            )


def build(cls: type[T], *layers: tuple[str, Mapping[str, Any]], hint: Hint | None = None) -> T:
    """A configuration from layers of settings, where a later layer wins.

    layers: (origin, tree) pairs. Messages name the origin ("demo.yaml", "command line").
    hint: of an unknown name and the known ones, the end of the message: `; did you mean X?`.
    Raises one UserError that names every mistake.
    """
    merged, origins, errors = merge(cls, layers, hint)
    known = {s.path: s for s in settings(cls)}
    values: dict[Group, Any] = {}
    wrong: set[Group] = set()  # not of their types, or not given
    for path, value in merged.items():
        try:
            values[path] = convert(value, known[path].type)
        except ValueError as error:
            errors.append(f"{origins[path]}: {known[path].name} = {shown(value)}: {error}")
            wrong.add(path)
    for path, setting in known.items():
        if setting.default is dataclasses.MISSING and path not in merged:
            errors.append(f"{setting.name} must be given ({setting.flag}): {setting.help}")
            wrong.add(path)
    broken: list[str] = []
    config: T | None = _construct(cls, values, (), broken, wrong)
    # The rules were checked with the defaults of wrong settings, so what they say of those is not true.
    errors += [message for message in broken if not any(_mentions(message, path[-1]) for path in wrong)]
    if errors or config is None:
        raise UserError("\n".join(errors))
    return config


def merge(
    cls: Any, layers: Iterable[tuple[str, Mapping[str, Any]]], hint: Hint | None = None
) -> tuple[dict[Group, Any], dict[Group, str], list[str]]:
    """(value of each setting that a layer gives, the layer's origin, a message for each unknown name)."""
    merged: dict[Group, Any] = {}
    origins: dict[Group, str] = {}
    errors: list[str] = []
    known = {s.path: s for s in settings(cls)}
    short = {path[-1:]: path for path in known}
    groups = {path[:n] for path in known for n in range(1, len(path))}
    for origin, tree in layers:
        for path, value in _leaves(tree, groups):
            path = path if path in known or path in groups else short.get(path, path)
            if path in known:
                merged[path], origins[path] = value, origin
                continue
            name = ".".join(map(str, path))
            if path in groups:
                errors.append(f"{origin}: {name} is a group of settings, not a value")
            else:
                told = (hint or nearest)(name, [s.name for s in known.values()])
                errors.append(f"{origin}: unknown setting {name}{told}")
    return merged, origins, errors


def _mentions(message: str, name: str) -> bool:
    """Whether a message names a setting, as `micro_batch_size` or `--micro-batch-size`."""
    spelled = name.replace("_", "[-_]")
    return re.search(rf"(?<![\w-])(?:--)?{spelled}(?![\w-])", message) is not None


def _construct(
    cls: Any, values: Mapping[Group, Any], prefix: Group, errors: list[str], wrong: set[Group]
) -> Any:
    """A configuration and those nested in it, or None where a rule of one is broken, told in `errors`.

    wrong: settings that have no valid value. Their groups are None too, after a check with their defaults.
    """
    arguments = {}
    own = {(*prefix, field.name): field.default for field in dataclasses.fields(cls)}
    hints = _annotations(cls)
    for field in dataclasses.fields(cls):
        path = (*prefix, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _construct(hints[field.name], values, path, errors, wrong)
        elif path in values:
            arguments[field.name] = values[path]
    if any(value is None and dataclasses.is_dataclass(hints[name]) for name, value in arguments.items()):
        return None  # a group inside is wrong: checks across groups would only add noise
    if any(own[path] is dataclasses.MISSING for path in wrong & own.keys()):
        return None
    try:
        made = cls(**arguments)
    except UserError as error:
        errors.extend(str(error).split("\n"))
        return None
    return None if wrong & own.keys() else made


def _leaves(tree: Mapping[str, Any], groups: set[Group], prefix: Group = ()) -> Iterator[tuple[Group, Any]]:
    """(path, value) of every setting in a tree of nested groups."""
    for key, value in tree.items():
        path = (*prefix, *str(key).split("."))  # `model.num_layers: 4` and nested keys mean the same
        if isinstance(value, Mapping) and path in groups:
            yield from _leaves(value, groups, path)
        else:
            yield path, value


def convert(value: Any, kind: Any) -> Any:
    """A value from YAML or from a flag as the annotated type; raises ValueError that says what it must be.

    A text that spells a number, true or false, or a member of a Literal becomes that value. A list, or a
    single value, becomes a tuple.
    """
    value = _parse(value, kind)
    if problem := mistake(value, kind):
        raise ValueError(problem)
    return value


def mistake(value: object, kind: Any) -> str | None:
    """The rule that a value breaks ("must be a number"), or None if it has the annotated type.

    A bool is not a number; a text or a list is not a tuple; an int must fit into 64 bits, signed or unsigned;
    a float must be finite. An int is a valid float.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in arguments if k is not type(None)]
        assert len(inner) == 1, f"the only union that a setting may have is with None, not {kind}"
        return None if value is None else mistake(value, inner[0])
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return None
        return f"must be one of {', '.join(map(str, arguments))}{nearest(str(value), map(str, arguments))}"
    if origin is tuple:
        if isinstance(value, tuple):
            return next(filter(None, (mistake(item, arguments[0]) for item in value)), None)
        items = tuple(value) if isinstance(value, list) else (value,)
        written = "" if any(mistake(item, arguments[0]) for item in items) else f", such as {items!r}"
        return f"must be a tuple{written}"
    if kind is dict or origin is dict:
        return None if isinstance(value, dict) else "must be a mapping"
    if kind is bool:
        return None if isinstance(value, bool) else "must be true or false"
    if kind is str:
        if isinstance(value, Path):
            return f"must be a text, such as {str(value)!r}"
        return None if isinstance(value, str) else "must be a text"
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool):
            return "must be a whole number"
        return None if -(1 << 63) <= value < 1 << 64 else "must be a whole number of 64 bits"
    if kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "must be a number"
        # an int beyond the largest float is no finite number either; math.isfinite raises there
        return None if abs(value) <= sys.float_info.max else "must be a finite number"
    assert dataclasses.is_dataclass(kind), f"a setting cannot have the type {kind}"
    assert isinstance(kind, type)
    return None if isinstance(value, kind) else f"must be a {kind.__name__}"


def _parse(value: Any, kind: Any) -> Any:
    """A value from YAML or a flag as the annotated type, or unchanged if it spells no value of that type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in arguments if k is not type(None)]
        return None if value is None or (value == "none" and str not in inner) else _parse(value, inner[0])
    if origin is Literal:
        return next((choice for choice in arguments if str(value) == str(choice)), value)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_parse(item, arguments[0]) for item in items)
    if kind is dict or origin is dict:
        return dict(value) if isinstance(value, Mapping) else value
    if kind is bool:
        return {"true": True, "false": False}.get(str(value).lower(), value)
    if kind is str:
        return value if isinstance(value, list | tuple | Mapping) or value is None else str(value)
    return value if isinstance(value, bool) else _number(value, kind)


def _number(value: Any, kind: type[int] | type[float]) -> Any:
    """A number from its text, or the value unchanged. YAML 1.1 reads 1e-3 as a text."""
    digits = str(value).replace("_", "")
    try:
        return kind(digits)
    except ValueError:
        pass
    try:
        number = float(digits)  # 1e6 is a whole number
    except ValueError:
        return value
    return int(number) if number.is_integer() else value


MOST_SHOWN = 500  # characters
SHOWN_NAMES = 8


class _Shown(reprlib.Repr):
    """repr, shortened where a value is long, wide or deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlong = 40
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 12
        self.maxlevel = 3  # of nested values: with 12 in each, 1,728

    def repr_int(self, number: int, level: int) -> str:
        try:
            return super().repr_int(number, level)  # type: ignore[attr-defined, no-any-return, unused-ignore]
        except ValueError:  # Python writes no more than 4,300 digits
            return f"a number of {number.bit_length():,} bits"


def shown(value: object) -> str:
    """A value for a message: its repr, in which control characters are escaped, shortened if it is long."""
    text = _Shown().repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def shown_names(names: Collection[str]) -> str:
    """The first names for a message, each shortened: `'a', 'b' and 3 more`. A file can have millions."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(shown, itertools.islice(names, SHOWN_NAMES))) + more


def check(*rules: tuple[bool, str]) -> None:
    """Raises one UserError with the messages of all broken rules, for `__post_init__`.

    rules: (whether it holds, message) pairs.
    """
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise UserError("\n".join(broken))


def check_each(*checks: Callable[[], None]) -> None:
    """Calls all; raises one UserError with the messages of those that raise it."""
    broken = []
    for each in checks:
        try:
            each()
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError("\n".join(broken))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest known name, or an empty text: a wrong guess is worse than none.

    Names are compared without case, leading dashes, and the groups before the last dot. Some characters may
    differ (a wrong, missing or additional one, or two in the wrong order): one in short names, three in long.
    A name that only one known name begins with is an abbreviation.
    """
    known = list(known)
    written = _spelling(name)
    most = 0 if len(written) < 3 else 1 if len(written) < 6 else 2 if len(written) < 12 else 3
    found = [(_distance(written, _spelling(k), most), k) for k in known]
    distance, best = min(found, key=lambda pair: pair[0], default=(most + 1, ""))
    if distance > most:
        longer = [k for k in known if len(written) > 3 and _spelling(k).startswith(written + "-")]
        best = longer[0] if len(longer) == 1 else ""
    return f"; did you mean {best}?" if best else ""


def _spelling(name: str) -> str:
    if re.fullmatch(r"\w+(\.\w+)+", name):  # a setting with its group; `llama3.2-1b` is none
        name = name.rsplit(".", 1)[1]
    return name.lstrip("-").replace("_", "-").lower()


def _distance(one: str, other: str, most: int) -> int:
    """The optimal string alignment distance of two texts, or a number above `most` if it is above that."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        earlier, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts of YAML and JSON values, tuples as lists.

    `build(type(config), ("", to_dict(config)))` gives the configuration back.
    """
    tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        tree[field.name] = list(value) if isinstance(value, tuple) else value
    return tree
