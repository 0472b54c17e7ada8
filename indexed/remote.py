"""Remote .bin/.idx pairs on s3://, gs://, hf:// and any other file system of fsspec.

An .idx is copied once to a local folder, under a name that changes when the remote file does. A .bin is read
in blocks. The most recently used blocks stay in memory, so memory does not depend on the size of the file.
fsspec's packages find credentials and endpoints themselves (AWS_PROFILE, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..core import manifest, paths
from ..core.config import Failure, UserError
from ..core.extras import needs_package
from ..core.manifest import cache_folder

TRIES = 4  # of a read, before the run fails
FIRST_PAUSE = 1.0  # seconds before the second try; it doubles with every further one


@dataclasses.dataclass(frozen=True)
class RemoteSettings:
    """How remote files are read."""

    folder: Path | None = None  # of the copies of .idx; None: ~/.cache/mt
    block_bytes: int = 1 << 20  # of one read; samples in random order use a small part of a block
    cache_bytes: int = 256 << 20  # of the blocks in memory, for each pair and process


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def local_copy(path: str, settings: RemoteSettings) -> Path:
    """The local copy of a remote file; it is made if there is none of the file's present state."""
    with _readable_errors(path):
        files, place = _locate(path)
        state = files.ukey(place)
    copy = (
        (settings.folder or cache_folder())
        / xxhash.xxh3_128(f"{path}\n{state}".encode()).hexdigest()
        / path.rsplit("/", 1)[-1]
    )
    if not copy.exists():
        with exclusive(copy.parent):
            if not copy.exists():
                with (
                    _readable_errors(path),
                    files.open(place, "rb") as source,
                    manifest.atomic_write(copy) as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 22)
    return copy


def remote_size(path: str) -> int:
    """Bytes of a remote file."""
    with _readable_errors(path):
        files, place = _locate(path)
        return int(files.size(place))


def remote_sample_digest(path: str) -> str:
    """`manifest.sample_digest` of a remote file; equal to that of a local copy."""
    with _readable_errors(path):
        files, place = _locate(path)
        return manifest.sample_digest(place, open=files.open)


class RemoteTokens:
    """A remote .bin as a read-only array of tokens; it takes slices and arrays of positions."""

    def __init__(self, path: str, dtype: np.dtype, settings: RemoteSettings):
        self.path, self.dtype = path, np.dtype(dtype)
        self.nbytes = remote_size(path)
        self._per_block = max(1, settings.block_bytes // self.dtype.itemsize)
        self._kept = max(2, settings.cache_bytes // settings.block_bytes)
        # ordered by last use
        self._blocks: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.nbytes // self.dtype.itemsize

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step != 1:
                raise IndexError(f"{self.path}: a slice of tokens has step 1, not {step}")
            return self._range(start, max(start, stop))
        out = np.empty(where.shape, self.dtype)
        numbers = where // self._per_block
        for number in np.unique(numbers).tolist():
            here = numbers == number
            out[here] = self._block(number)[where[here] - number * self._per_block]
        return out

    def _range(self, start: int, stop: int) -> np.ndarray:
        first, last = start // self._per_block, max(start, stop - 1) // self._per_block
        if first == last:
            base = first * self._per_block
            return self._block(first)[start - base : stop - base] if stop > start else np.empty(0, self.dtype)
        out = np.empty(stop - start, self.dtype)
        for number in range(first, last + 1):
            base = number * self._per_block
            a, b = max(start, base), min(stop, base + self._per_block)
            out[a - start : b - start] = self._block(number)[a - base : b - base]
        return out

    def _block(self, number: int) -> np.ndarray:
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
                return block
        start = number * self._per_block
        block = self._read(start, min(start + self._per_block, len(self)))
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        return block

    def _read(self, start: int, stop: int) -> np.ndarray:
        item, pause = self.dtype.itemsize, FIRST_PAUSE
        for attempt in range(1, TRIES + 1):
            try:
                files, place = _locate(self.path)
                raw = files.cat_file(place, start=start * item, end=stop * item)
                break
            except Exception as error:  # every protocol has exceptions of its own
                if attempt == TRIES:
                    raise Failure(
                        f"{self.path}: cannot be read after {TRIES} tries ({error}); run the same command"
                        " again later: finished work is kept"
                    ) from error
                time.sleep(pause)
                pause *= 2
        if len(raw) != (stop - start) * item:
            raise Failure(
                f"{self.path}: returned {len(raw):,} bytes where {(stop - start) * item:,} were requested: it"
                " changed while it was read; start again"
            )
        return np.frombuffer(raw, self.dtype)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Makes a folder and locks it: one process at a time works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with paths.update(folder / ".lock") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: files are still written whole
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _locate(path: str) -> tuple[Any, str]:
    """(fsspec file system, path in it); raises UserError for a protocol that cannot be read."""
    try:
        import fsspec.core
    except ImportError:
        raise UserError(needs_package(f"{path}: reading from there", "fsspec")) from None
    protocol = path.split("://", 1)[0]
    try:
        files, place = fsspec.core.url_to_fs(path)
        return files, place
    except ImportError as error:
        raise UserError(f"{path}: reading from {protocol}:// needs another package ({error})") from None
    except ValueError:
        raise UserError(
            f"{path}: fsspec cannot read {protocol}://; check the path: it can read s3://, gs:// and hf://"
        ) from None


@contextlib.contextmanager
def _readable_errors(path: str) -> Iterator[None]:
    """Turns an error of a remote file system into a UserError of one line."""
    try:
        yield
    except (UserError, Failure):
        raise
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give the prefix of a .bin/.idx pair, without extension"
        ) from None
    except Exception as error:  # credentials, permissions, networks: every protocol has exceptions of its own
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); check the path, the credentials and"
            " the network"
        ) from None
