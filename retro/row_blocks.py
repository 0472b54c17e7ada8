"""Computes rows of chunks or samples in blocks on many processes.

Every block is a whole .npy file, so that after a kill at most one block of each worker is computed again.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

import numpy as np

from ..core import manifest
from ..core.arrays import open_array
from ..core.executor import map_shards
from ..indexed.neighbors import open_table
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .embed import Embedder
from .index import open_index

P = ParamSpec("P")
T = TypeVar("T")

# (first row, one past the last) -> array with a row for each of them
MakeRows = Callable[[int, int], np.ndarray]


def block_size(num_chunks: int) -> int:
    """Chunks in a block: a power of two that gives about 64 blocks, from 128 (a second or two) to 16,384."""
    return min(max(128, 1 << (num_chunks // 64).bit_length()), 16384)


def map_blocks(
    make: MakeRows, rows: int, size: int, folder: Path, *, label: str, where: dict[str, Any]
) -> list[Path]:
    """Runs a picklable `make` over blocks of `size` rows; returns the files of its arrays in order.

    folder: of the files. where: the arguments of map_shards that choose the workers.
    """
    bounds = [(start, min(start + size, rows)) for start in range(0, rows, size)]
    work = functools.partial(_make_block, make=make, folder=str(folder))
    try:
        map_shards(work, bounds, done=folder / "done", label=label, unit="blocks", **where)
    finally:
        clear_worker_caches()  # one worker is this process; a later build in it opens its own files
    return [block_path(folder, *of_block) for of_block in bounds]


def _make_block(bounds: tuple[int, int], *, make: MakeRows, folder: str) -> dict[str, Any]:
    with manifest.atomic_write(block_path(Path(folder), *bounds)) as file:
        np.save(file, np.ascontiguousarray(make(*bounds)))
    return {}


def block_path(folder: Path, start: int, stop: int) -> Path:
    return folder / f"{start:012d}-{stop:012d}.npy"


def join_blocks(blocks: Sequence[Path], path: Path, shape: tuple[int, ...]) -> None:
    """Writes one .npy of int64 (shape) from the blocks of its rows; memory for one block."""
    with manifest.atomic_write(path) as file:
        write_npy_header(file, np.dtype("<i8"), shape)
        for block in blocks:
            file.write(open_array(block, "<i8", (None, *shape[1:])).tobytes())


def discard_parts(root: Path) -> None:
    """Removes the blocks of an output; to be called after its manifest is written (stage.discard_parts)."""
    shutil.rmtree(root / "parts", ignore_errors=True)


def count_missing(path: Path) -> int:
    """The number of -1 in a .npy of neighbours; memory for 4,096 rows."""
    array = open_array(path, "<i8", None)
    return sum(int((array[i : i + 4096] < 0).sum()) for i in range(0, len(array), 4096))


def write_npy_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Writes the header of a .npy file; the caller writes the rows."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


# Objects that a worker process opens once for all its blocks.

_worker_caches: list[functools._lru_cache_wrapper[Any]] = []


def cached_in_worker(function: Callable[P, T]) -> Callable[P, T]:
    """Caches what a function of hashable arguments opens, until `map_blocks` has done its blocks."""
    cached = functools.cache(function)
    _worker_caches.append(cached)
    return cast(Callable[P, T], cached)


def clear_worker_caches() -> None:
    for cached in _worker_caches:
        cached.cache_clear()


@cached_in_worker
def open_tokenizer(root: str) -> Tokenizer:
    """The tokenizer of the database `root`."""
    return load_directory(Path(root) / "tokenizer")


@cached_in_worker
def open_embedder(directory: str | None, bf16: bool) -> Embedder:
    """The embedder of a directory; None: the default one."""
    return Embedder(directory, bf16)


@cached_in_worker
def open_search_index(root: str, nprobe: int, ef_search: int, dimension: int | None = None) -> Any:
    """The Faiss index of the database `root`, opened for searching. dimension: of its vectors."""
    path = Path(root) / "index.faiss"
    return open_index(path, nprobe, ef_search, len(open_table(root)), dimension)
