"""Paths that a stranger may have chosen: names that are read from files, and links in folders that mt writes.

A manifest, an index or a checkpoint's metadata names other files. Whoever made the folder chose these names.
`named` alone turns such a name into a path: it leads nowhere but into the folder, and to nothing but a
regular file. `regular` checks the files with fixed names (config.json) in a folder: a named pipe there would
hang a reader, and /dev/zero would fill its memory. A file that a user names may be anything.

A folder may also hold links, planted where mt is about to write. `create` and `update` open files for
writing, `remove` and `make_folder` remove and make folders; none of them follows such a link.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Literal

from .config import UserError

REMEDY = "fetch it again, from a source that you trust"
SHOWN = 80  # characters of a name in a message


def check_exists(*places: str | Path | None) -> None:
    """Raises UserError that names those that are not there. None is no place."""
    missing = [place for place in places if place is not None and not os.path.exists(place)]
    if missing:
        raise UserError("\n".join(f"{place}: no such file or directory; check the path" for place in missing))


def named(
    folder: str | Path,
    name: object,
    source: str,
    *,
    kind: Literal["file", "folder"] = "file",
    outside: bool = False,
    remedy: str = REMEDY,
) -> Path:
    """The path of what a file names, relative to a folder; nothing need be there.

    folder: as the user named it; it may be a link. name: what the file holds, of any type. source: the file
    and the place in it, for the message. outside: it may lead out of the folder (`..`, links), because the
    caller compares what it finds there with a digest.

    Raises UserError unless the name is a text, relative, without `..` and NUL, and leads to a regular file
    (or a folder) inside the folder. A link may lead to another place in the folder. From a snapshot in the
    cache of Hugging Face it may lead to a blob: snapshots/REVISION/NAME -> ../../blobs/HASH.
    """
    wrong = _wrong_name(name, outside)
    path = Path(folder)
    if wrong is None:
        path = Path(folder, name)  # type: ignore[arg-type]  # a text, as _wrong_name has found
        wrong = _wrong_place(Path(folder), path, kind, outside)
    if wrong is not None:
        shown = repr(name)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        place = "beside" if outside else "inside"
        raise UserError(
            f"{source}: {shown} {wrong}; it must be the relative path of a"
            f" {'regular file' if kind == 'file' else kind} {place} {folder}: {remedy}"
        )
    return path


def _wrong_name(name: object, outside: bool) -> str | None:
    """What is wrong with a name itself, or None."""
    if not isinstance(name, str):
        return "is not a text"
    if "\0" in name:
        return "contains a NUL character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "contains half of a surrogate pair"
    if os.path.isabs(name):
        return "is an absolute path"
    if not outside and ".." in name.split("/"):
        return "contains `..`"
    return None if os.path.normpath(name) != "." else "is empty"


def _wrong_place(folder: Path, path: Path, kind: str, outside: bool) -> str | None:
    """What is wrong with the place to which a name leads, or None; nothing need be there."""
    at, linked = folder, False
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for part in () if outside else path.relative_to(folder).parts:
                at = at / part
                linked |= stat.S_ISLNK(os.lstat(at).st_mode)
        if linked and not _may_lead_to(folder, path, Path(os.path.realpath(path))):
            return "is a link to another place, or lies behind one"
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"cannot be looked up ({error.strerror})"
    if stat.S_ISREG(mode) if kind == "file" else stat.S_ISDIR(mode):
        return None
    return f"is {_kind(mode)}"


def _may_lead_to(folder: Path, path: Path, target: Path) -> bool:
    """Whether a path in a folder may lead to a target over links."""
    root = Path(os.path.realpath(folder))
    if target.is_relative_to(root):
        return True
    place = root / path.relative_to(folder)
    at = [i for i, part in enumerate(place.parts) if part == "snapshots"]
    return any(target.parent == Path(*place.parts[:i], "blobs") for i in at if len(place.parts) > i + 2)


def regular(path: str | Path) -> Path:
    """The path of a file with a fixed name; nothing need be there.

    Raises UserError if something else than a regular file is there, or a link to something else.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is {_kind(mode)}; it must be a regular file: {REMEDY}")
    return path


def regular_files(folder: str | Path) -> None:
    """Raises UserError if a folder contains anything but regular files, folders, and links to these."""
    for path in Path(folder).iterdir():
        if not path.is_dir():
            regular(path)


def refuse_stream(path: str | Path) -> None:
    """Raises UserError if an input that a user names is neither a file nor a folder; it need not be there."""
    if not os.path.isfile(path) and not os.path.isdir(path) and os.path.exists(path):
        raise UserError(
            f"{path}: is {_kind(os.stat(path).st_mode)}, which cannot be read twice; save it as a file first,"
            f" or where the command reads standard input, give --input - < {path}"
        )


def _kind(mode: int) -> str:
    """What a mode of os.stat says is there, in words."""
    kinds = (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISLNK, "a link"),
    )
    return next((word for test, word in kinds if test(mode)), "a device")


def create(path: str | Path, mode: str = "wb", permissions: int = 0o666) -> Any:
    """A new file, opened for writing. What is under the name is unlinked first; text is UTF-8.

    permissions: less the process's umask.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, permissions)
    return os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8")


def update(path: str | Path, mode: str = "ab", buffering: int = -1) -> Any:
    """A file of an earlier run, opened for going on; made if it is not there.

    mode: that of `open`; "r+" and "a+" both read and write. A link, pipe or device under the name is unlinked
    first; text is UTF-8.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path).st_mode
        if not stat.S_ISREG(found) and not stat.S_ISDIR(found):
            os.unlink(path)
    access = (os.O_RDWR if "+" in mode else os.O_WRONLY) | (os.O_APPEND if "a" in mode else 0)
    handle = os.open(path, access | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    return os.fdopen(handle, mode, buffering, encoding=None if "b" in mode else "utf-8")


def remove(path: str | Path, *, ignore_errors: bool = False) -> None:
    """Removes a folder and what is in it, or whatever else is under the name, if anything is.

    A link is removed, not what it leads to. ignore_errors: leave what cannot be removed from the folder.
    """
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def make_folder(path: str | Path) -> Path:
    """Makes a folder for unfinished work unless it is there; a link under its name is removed first."""
    if os.path.islink(path):
        os.unlink(path)
    os.makedirs(path, exist_ok=True)
    return Path(path)
