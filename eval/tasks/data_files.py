"""Finds the files of a task's `--valid-data` and `--train-data`, and applies --on-error to bad rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ...core.config import UserError
from ...documents.rejects import Reject

T = TypeVar("T")
# Called with a row that is no example: raises UserError, or sets the row aside.
Refuse = Callable[[Reject], None]
Reader = Callable[[Path, Refuse], Iterator[T]]


def files_in(place: str, suffixes: tuple[str, ...]) -> list[Path]:
    """A file itself, or the sorted files of a folder whose names end with one of `suffixes`.

    Raises UserError where nothing is found.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or directory; check the path")
    found = [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes))
    if not found:
        raise UserError(f"{place}: holds no files that end in {' or '.join(suffixes)}; check the path")
    return found


def with_error_policy(
    read: Reader[T], reject: Callable[[Reject], None], on_error: str
) -> Callable[[Path], Iterator[T]]:
    """`read` as a function of the path alone.

    A bad row raises UserError where on_error is "fail", and goes to `reject` where it is "skip".
    """

    def refuse(bad: Reject) -> None:
        if on_error == "fail":
            raise UserError(
                f"{bad.file}, {bad.place}: {bad.reason}; mend it, or pass --on-error skip to set such rows"
                " aside"
            )
        reject(bad)

    return lambda path: read(path, refuse)
