"""Inputs that are not files: standard input (`-`) and Hugging Face datasets (`hf:NAME[:CONFIG][:SPLIT]`).

A stream cannot be read twice, but stages read their input in several passes, in shards, and again after a
kill. So standard input (JSONL) is first copied to a hidden folder beside the output,
`.OUTPUT.stdin-PID-RANDOM/DIGEST.stdin.jsonl`, and read from there like any file. Only the user can read
the folder. It is removed when the process ends; a folder that a killed process left is removed when the same
command runs again. DIGEST is the digest of all bytes: the same stream piped in again continues a killed run,
a different stream is a new run.

A dataset is streamed by the library `datasets`, which reads its files from the Hub or from a folder,
`hf:/path`. A shard of the dataset (usually a file) is a shard here. A folder that `save_to_disk` wrote holds
Arrow files, which reader.py reads without that library.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import functools
import glob
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from ..core import manifest, paths
from ..core.config import UserError
from ..core.extras import needs_package

STDIN = ".stdin.jsonl"
PRIVATE = 0o600  # the mode of files that are made from a pipe
HUB = "hf:"
READ_BYTES = 1 << 20


def shown(path: str) -> str:
    """The name of an input in messages and in generated document ids."""
    return "stdin" if path.endswith(STDIN) else path


def identity(path: str | Path, places: manifest.Places | None = None) -> dict[str, Any]:
    """manifest.identity, extended from files to standard input and Hugging Face datasets."""
    path = str(path)
    if path.endswith(STDIN):
        return {
            "path": "-",
            "name": "stdin",
            "bytes": os.path.getsize(path),
            "xxh3": Path(path).name.removesuffix(STDIN),
        }
    if path.startswith(HUB):
        return {"path": path, "name": path.rpartition("/")[2], "files": _dataset(path).files}
    return manifest.identity(path, places)


def spool_stdin(output: str | Path | None) -> str:
    """Copies standard input to a file and returns its path; raises UserError if standard input is a terminal.

    output: the directory or prefix beside which the copy goes; without one it goes to the system's folder for
    temporary files.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "input = -: standard input is a terminal; pipe JSONL into the command, as in `zcat a.jsonl.gz |"
            " mt ... --input -`"
        )
    place = Path(output) if output is not None else Path(tempfile.gettempdir(), "mt")
    place.parent.mkdir(parents=True, exist_ok=True)
    _discard_orphans(place)
    if any(_copies(place, f"{os.getpid()}-")):
        raise UserError("input = -: standard input was read already; name it once")
    # Its mode is 0700, and nobody else can make it first.
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.stdin-{os.getpid()}-", dir=place.parent))
    lock = paths.create(folder / "lock", "w", PRIVATE)  # held while the process uses the folder
    fcntl.flock(lock, fcntl.LOCK_EX)
    atexit.register(_discard, folder, os.getpid(), lock)
    digest, partial = xxhash.xxh3_128(), folder / "partial"
    with paths.create(partial, "wb", PRIVATE) as file:
        while block := sys.stdin.buffer.read(READ_BYTES):
            digest.update(block)
            file.write(block)
    whole = folder / f"{digest.hexdigest()}{STDIN}"
    partial.rename(whole)
    return str(whole)


def _discard(folder: Path, owner: int, lock: IO[str]) -> None:
    if os.getpid() == owner:  # not in a process forked from it
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _discard_orphans(place: Path) -> None:
    """Removes the copies that killed processes left beside the same output."""
    for folder in _copies(place, ""):
        with contextlib.suppress(OSError), paths.update(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _copies(place: Path, process: str) -> Iterator[Path]:
    """The folders of this user with copies of standard input; process: `PID-`, or empty for all processes."""
    for folder in place.parent.glob(f".{glob.escape(place.name)}.stdin-{process}*"):
        with contextlib.suppress(FileNotFoundError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                yield folder


def hub_shards(name: str) -> tuple[int, int]:
    """(number of shards of a dataset's split, its size in bytes or 0 if that is not known)."""
    dataset = _dataset(name)
    return dataset.stream.num_shards, dataset.bytes


def hub_records(name: str, shard: int) -> Iterator[dict[str, Any]]:
    """The records of one shard of a dataset, in order; raises UserError if it cannot be read."""
    stream = _dataset(name).stream
    try:
        yield from stream.shard(num_shards=stream.num_shards, index=shard)
    except Exception as error:  # as in _builder
        raise UserError(
            f"{name}: shard {shard} cannot be read ({_first_line(error)}); check the dataset and the network"
        ) from None


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """One split of a dataset.

    stream: a datasets.IterableDataset. files: the name, size and time of each file, for the identity.
    """

    stream: Any
    files: list[list[Any]]
    bytes: int  # 0 if it is not known


@functools.lru_cache(maxsize=16)
def _dataset(name: str) -> _Dataset:
    """The dataset `hf:NAME[:CONFIG][:SPLIT]`. A single part after NAME is a split if there is one."""
    place, *parts = name.removeprefix(HUB).split(":")
    if not place or len(parts) > 2:
        raise UserError(
            f"{name}: not a dataset; write hf:NAME, hf:NAME:SPLIT, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT,"
            " where NAME is a dataset of the Hub or a folder"
        )
    config, split = (parts + ["", ""])[:2]
    builder = _builder(name, place, config) if len(parts) != 1 else _default_builder(name, place)
    if len(parts) == 1:
        if builder is not None and config in _splits(builder):
            split = config
        else:
            builder = _builder(name, place, config)
    splits = _splits(builder)
    if not split and len(splits) > 1:
        raise UserError(f"{name}: has the splits {', '.join(splits)}; name one, as in {name}:{splits[0]}")
    if split and split not in splits:
        raise UserError(f"{name}: has no split {split}; it has {', '.join(splits)}")
    split = split or splits[0]
    found: Any = builder.config.data_files[split] if builder.config.data_files else []  # a DataFilesList
    info = (builder.info.splits or {}).get(split)
    if found and all(map(os.path.exists, found)):
        size = sum(map(os.path.getsize, found))
    else:
        size = (info.num_bytes if info else 0) or 0
    files = [_file(*pair) for pair in zip(found, found.origin_metadata)] if found else [[str(builder.hash)]]
    return _Dataset(builder.as_streaming_dataset(split=split), files, size)


def _default_builder(name: str, place: str) -> Any:
    """The builder of a dataset's only or default configuration; None if one of several must be named."""
    try:
        return _builder(name, place, "")
    except UserError:
        return None


def _builder(name: str, place: str, config: str) -> Any:
    """The datasets.DatasetBuilder of a configuration; raises UserError if it cannot be opened."""
    try:
        import datasets

        return datasets.load_dataset_builder(place, config or None)
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise UserError(needs_package(f"{name}: reading it", error.name)) from None
        raise UserError(needs_package(f"{name}: a dataset of Hugging Face", "datasets")) from None
    except Exception as error:  # the network, the Hub and every format raise errors of their own
        raise UserError(
            f"{name}: cannot be opened ({_first_line(error)}); check its name, its configuration and the"
            " network"
        ) from None


def _splits(builder: Any) -> list[str]:
    return list(map(str, builder.config.data_files or builder.info.splits or ()))


def _file(path: str, origin: tuple[Any, ...]) -> list[Any]:
    """The identity of a local file: name, size, time. Of a file on the Hub: address and revision."""
    if os.path.exists(path):
        return [os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns]
    return [str(path), *map(str, origin)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
