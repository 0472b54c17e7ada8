"""Rules of the user's own: `python:my_filters.too_many_tables max=3`.

The function stands in a Python file that the user names: `my_filters.py` in the current directory or, for a
rule in a YAML file, beside that file. `python:FOLDER/my_filters.too_many_tables` names another folder.

    def too_many_tables(document, max=5):
        if document.text.count("<table") > max:
            return "too_many_tables"

It is called with a Document (text as edited so far, id, and the other fields in `meta`, all only to be read)
and the parameters of the item as keywords. It returns the reason to drop the document, or None; True drops it
with the name of the function as the reason. Nothing in data can name a function: only rules can.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from ...core.config import UserError, shown
from ...core.parsing import parse_yaml
from ...documents.reader import Document
from ..stage import DocumentError

PREFIX = "python:"
REASON_CHARS = 100


class OwnRule:
    """A function of the user's own, with its parameters.

    name: `python:my_filters.too_many_tables`. digest: of the file, for the key of a run. Raises UserError if
    there is no such file or function, if the file cannot be run, or if the function does not take the
    parameters.
    """

    def __init__(self, item: str, name: str, pairs: list[str]):
        path, self.function_name = _split(item, name)
        self.name = name
        try:
            source = path.read_bytes()
        except OSError as error:
            looked = path.parent.resolve()
            raise UserError(
                f"rules: {item!r}: {looked / path.name} cannot be read ({error.strerror}); rules are looked"
                " for in the current directory and beside the YAML file that names them"
            ) from None
        self.digest = xxhash.xxh3_128(source).hexdigest()
        module = _module(item, str(path.resolve()), source)
        function = module.get(self.function_name)
        if not callable(function):
            raise UserError(
                f"rules: {item!r}: {path} has no function {self.function_name!r}; define it there"
            )
        parameters = dict(_parse(item, pair) for pair in pairs)
        try:
            inspect.signature(function).bind(None, **parameters)
        except TypeError as error:
            raise UserError(
                f"rules: {item!r}: {error}; the function takes {inspect.signature(function)}, of which the"
                " first is the document"
            ) from None
        except ValueError:
            pass  # a function in C without a signature
        self.call: Callable[[Document], Any] = functools.partial(function, **parameters)

    def __call__(self, document: Document) -> str | None:
        """The reason to drop a document, or None; raises DocumentError where the function fails."""
        read_only: Any = types.MappingProxyType(document.meta)
        try:
            outcome = self.call(Document(document.id, document.text, read_only))
        except (Exception, SystemExit) as error:
            raise DocumentError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if outcome is None or outcome is False:
            return None
        if outcome is True:
            return self.function_name
        if not isinstance(outcome, str) or not 0 < len(outcome) <= REASON_CHARS or not outcome.isprintable():
            raise DocumentError(
                f"{self.name} returned {shown(outcome)}; it must return the reason to drop the document, in"
                f" at most {REASON_CHARS} characters, or None to keep it"
            )
        return outcome


def beside(items: Any, folder: Path) -> Any:
    """The rules of a YAML file, where those that are only beside it name its folder."""
    if not isinstance(items, list):
        return items
    return [_beside(item, folder) if isinstance(item, str) else item for item in items]


def _beside(item: str, folder: Path) -> str:
    if not item.startswith(PREFIX):
        return item
    name, space, rest = item.partition(" ")
    place, _, dotted = name.removeprefix(PREFIX).rpartition("/")
    file = Path(place, *dotted.split(".")[:-1]).with_suffix(".py")
    if file.is_absolute() or file.exists() or not (folder / file).exists():
        return item
    return f"{PREFIX}{os.path.normpath(folder / place)}/{dotted}{space}{rest}"


def _split(item: str, name: str) -> tuple[Path, str]:
    """(the file, the name of the function)."""
    place, _, dotted = name.removeprefix(PREFIX).rpartition("/")
    *modules, function = dotted.split(".")
    if not modules or not all(part.isidentifier() for part in (*modules, function)):
        raise UserError(
            f"rules: {item!r}: name a function in a file, as {PREFIX}my_filters.too_many_tables for"
            " too_many_tables in my_filters.py"
        )
    return Path(place, *modules).with_suffix(".py"), function


@functools.lru_cache(maxsize=64)
def _run(path: str, source: bytes) -> dict[str, Any]:
    """The names that a file defines. It is compiled from the bytes of which the digest is taken."""
    module = types.ModuleType(f"mt_rules_{Path(path).stem}_{xxhash.xxh3_64(source).hexdigest()}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end, so that a file there does not stand for an installed package
    exec(compile(source, path, "exec"), module.__dict__)
    return module.__dict__


def _module(item: str, path: str, source: bytes) -> dict[str, Any]:
    try:
        return _run(path, source)
    except (Exception, SystemExit) as error:
        line = next((f" in line {t.lineno}" for t in reversed(_frames(error)) if t.filename == path), "")
        raise UserError(f"rules: {item!r}: {path} raised {type(error).__name__}{line}: {error}") from error


def _frames(error: BaseException) -> list[Any]:
    import traceback

    return list(traceback.extract_tb(error.__traceback__))


def _parse(item: str, pair: str) -> tuple[str, bool | int | float | str]:
    """(name, value) of `max=3`: a number, true or false, or else a text."""
    key, equals, text = pair.partition("=")
    if not equals or not key.isidentifier():
        raise UserError(f"rules: {item!r}: {pair!r} is no parameter; write NAME=VALUE, as in max=3")
    try:
        value = parse_yaml(text) if text else text
    except ValueError:
        value = text
    return key, value if isinstance(value, bool | int | float) else text
