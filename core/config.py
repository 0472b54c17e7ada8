"""dataclass <-> YAML <-> flags; unknown names refused with the nearest known one.

A configuration is a frozen dataclass whose fields are made by `option`, beside the code that reads it. That
one declaration is the YAML key (`model.num_layers`, or `num_layers` for short), the flag (`--num-layers`) and
the help text. Dataclasses nest; leaf names are unique within a tree, so that neither needs the prefix.
Precedence: defaults < preset < `--config` files < flags. Everything wrong with a configuration is said at
once, before anything is built.

This is the lowest floor of the house: it also holds the two exceptions that end a command in one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml


class UserError(Exception):
    """The user's mistake: shown as one red line (file, place, value, rule, remedy) and exit code 2, no
    traceback.
    """

    exit_code = 2


class Failure(Exception):
    """Something outside the user's settings went wrong (a worker was killed): one red line and exit code 1."""

    exit_code = 1


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


def settings(cls, prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every leaf of a configuration class, in the order of declaration."""
    hints = typing.get_type_hints(cls)
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
    hints = typing.get_type_hints(cls)
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
    """`value` (from YAML or a flag) as the annotated type; raises ValueError that says what was expected."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        if value is None or (value == "none" and str not in inner):
            return None
        return convert(value, inner[0])
    if origin is Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if value == choice or str(value) == str(choice):
                return choice
        raise ValueError(
            f"must be one of {', '.join(map(str, choices))}{nearest(str(value), map(str, choices))}"
        )
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(item, typing.get_args(kind)[0]) for item in items)
    if kind is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping")
        return dict(value)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ValueError("must be true or false")
    if kind is str:
        if isinstance(value, list | tuple | Mapping) or value is None:
            raise ValueError("must be a text")
        return str(value)
    if isinstance(value, bool):
        raise ValueError(f"must be {'a whole number' if kind is int else 'a number'}")
    digits = str(value).replace("_", "")
    try:
        return int(digits) if kind is int else float(digits)  # YAML 1.1 reads 1e-3 as a text: accept it
    except ValueError:
        pass
    try:
        number = float(digits)  # 1e6 is a whole number
    except ValueError:
        number = float("nan")
    if kind is int and number.is_integer():
        return int(number)
    raise ValueError(f"must be {'a whole number' if kind is int else 'a number'}")


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
