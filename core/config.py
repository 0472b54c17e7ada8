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
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml


class UserError(Exception):
    """The user's mistake: shown as one red line (file, place, value, rule, remedy) and exit code 2, no
    traceback.
    """

    exit_code = 2


class Failure(Exception):
    """Something outside the settings went wrong (a worker was killed): one red line and exit code 1."""

    exit_code = 1


T = typing.TypeVar("T")


def option(
    default=dataclasses.MISSING,
    help: str = "",
    *,
    role: Literal["setting", "input", "output", "runtime"] = "setting",
):
    """A field of a configuration.

    role: "setting" can change the result, so that changing it makes finished work stale; "input" is the place
    of what is read (its content counts, not its place); "output" is the one field that names where the result
    goes; "runtime" cannot change a byte of the result (workers, logging).
    """
    return dataclasses.field(default=default, metadata={"help": help, "role": role})


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
        cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        generated = cls.__init__

        @functools.wraps(generated)
        def __init__(self, **values):
            kinds = _annotations(cls)
            wrong = [
                f"{'.'.join(filter(None, (group, name)))} = {value!r}: {problem}"
                for name, value in values.items()
                if name in kinds and (problem := mistake(value, kinds[name]))
            ]
            if wrong:
                raise UserError("\n".join(wrong))
            generated(self, **values)

        cls.__init__ = __init__
        cls.GROUP = group
        return cls

    return decorate


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of a configuration tree."""

    path: tuple[str, ...]  # ("model", "num_layers")
    type: Any  # the resolved annotation
    default: Any  # dataclasses.MISSING where it must be given
    help: str
    role: str

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + self.path[-1].replace("_", "-")


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    """The annotations of a configuration class, resolved: only when they are needed, as that takes time."""
    return typing.get_type_hints(cls)


def settings(cls, prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every leaf of a configuration class, in the order of declaration."""
    hints = _annotations(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from settings(kind, (*prefix, field.name))
        else:
            meta = field.metadata
            yield Setting(
                (*prefix, field.name), kind, field.default, meta.get("help", ""), meta.get("role", "setting")
            )


def build(cls, *layers: tuple[str, Mapping]):
    """A configuration from layers of settings, later ones winning; raises UserError that names every mistake.

    layers: (origin, tree) pairs, where origin ("demo.yaml", "command line") is what a message names.
    """
    merged: dict = {}
    origins: dict[tuple, str] = {}
    errors: list[str] = []
    known = {s.path: s for s in settings(cls)}
    short = {path[-1:]: path for path in known}
    groups = {path[:n] for path in known for n in range(1, len(path))}
    for origin, tree in layers:
        for path, value in _leaves(tree, groups):
            path = path if path in known or path in groups else short.get(path, path)
            if path not in known:
                name = ".".join(map(str, path))
                if path in groups:
                    errors.append(f"{origin}: {name} is a group of settings, not a value")
                else:
                    errors.append(
                        f"{origin}: unknown setting {name}{nearest(name, [s.name for s in known.values()])}"
                    )
                continue
            merged[path], origins[path] = value, origin
    values: dict[tuple, Any] = {}
    for path, value in merged.items():
        try:
            values[path] = convert(value, known[path].type)
        except ValueError as error:
            errors.append(f"{origins[path]}: {known[path].name} = {value!r}: {error}")
    for path, setting in known.items():
        if setting.default is dataclasses.MISSING and path not in merged:
            errors.append(f"{setting.name} must be given ({setting.flag}): {setting.help}")
    if errors:
        raise UserError("\n".join(errors))
    config = _construct(cls, values, (), errors)
    if errors:
        raise UserError("\n".join(errors))
    return config


def _construct(cls, values: Mapping[tuple, Any], prefix: tuple, errors: list[str]):
    arguments = {}
    hints = _annotations(cls)
    for field in dataclasses.fields(cls):
        path = (*prefix, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _construct(hints[field.name], values, path, errors)
        elif path in values:
            arguments[field.name] = values[path]
    if any(value is None and dataclasses.is_dataclass(hints[name]) for name, value in arguments.items()):
        return None  # a group inside is wrong: checks across groups would only add noise
    try:
        return cls(**arguments)
    except UserError as error:
        errors.extend(str(error).split("\n"))
        return None


def _leaves(tree: Mapping, groups, prefix: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    for key, value in tree.items():
        path = (*prefix, *str(key).split("."))  # `model.num_layers: 4` and nested keys mean the same
        if isinstance(value, Mapping) and path in groups:
            yield from _leaves(value, groups, path)
        else:
            yield path, value


def convert(value, kind):
    """A value from YAML or from a flag as the annotated type; raises ValueError that says what it must be.

    Texts of numbers, of truth values and of members of a Literal become these; a list, or a single value,
    becomes a tuple.
    """
    value = _parse(value, kind)
    if problem := mistake(value, kind):
        raise ValueError(problem)
    return value


def mistake(value, kind) -> str | None:
    """What a value must be to have the annotated type, or None where it has it.

    A bool is no number, a text or a list is no tuple, a float is finite. An int stands for a float.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in arguments if k is not type(None)]
        assert len(inner) == 1, f"a setting has one type, or that or None, not {kind}"
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
        return None if isinstance(value, int) and not isinstance(value, bool) else "must be a whole number"
    if kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "must be a number"
        return None if math.isfinite(value) else "must be a finite number"
    assert dataclasses.is_dataclass(kind), f"no rule says what has the type {kind}"
    return None if isinstance(value, kind) else f"must be a {kind.__name__}"


def _parse(value, kind):
    """A value from YAML or from a flag, changed to the annotated type where it spells one of its values."""
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


def _number(value, kind: type[int] | type[float]):
    """A number from its text, or the value itself where it is none: YAML 1.1 reads 1e-3 as a text."""
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


def check(*rules: tuple[bool, str]) -> None:
    """Raises one UserError with the message of every rule that does not hold; for `__post_init__`."""
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise UserError("\n".join(broken))


def nearest(name: str, known) -> str:
    """`; did you mean X?`, or nothing when no known name is near."""
    known = list(known)
    leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    found = difflib.get_close_matches(name, known, 1, 0.6)
    if not found:
        found = [leaf[k] for k in difflib.get_close_matches(name.rsplit(".", 1)[-1], leaf, 1, 0.7)]
    return f"; did you mean {found[0]}?" if found else ""


def to_dict(config) -> dict:
    """A configuration as plain YAML/JSON values, tuples as lists; `build(type(config), ("",
    to_dict(config)))` gives it back.
    """
    return {
        field.name: (
            to_dict(value)
            if dataclasses.is_dataclass(value)
            else list(value)
            if isinstance(value, tuple)
            else value
        )
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }


def read_yaml(path: str | Path) -> dict:
    """A YAML file's mapping; raises UserError with file and line for anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        tree = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `name: value` lines, not a {type(tree).__name__}")
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently let the last one win."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
