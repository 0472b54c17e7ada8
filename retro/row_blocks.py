"""rows of chunks or samples -> blocks on many processes: every block a whole .npy file, so that a killed run
redoes one a worker.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..core import manifest
from ..core.executor import map_shards
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .embed import Embedder
from .index import open_index

# (first row, past the last) -> an array with a row for each of them
Make = Callable[[int, int], np.ndarray]


def block_size(num_chunks: int) -> int:
    """Chunks in a block: a power of two that makes some 64 blocks, from 128 (a second or two of work) to
    16,384.
    """
    return min(max(128, 1 << (num_chunks // 64).bit_length()), 16384)


def map_blocks(make: Make, rows: int, size: int, folder: Path, *, label: str, where: dict) -> list[Path]:
    """Runs a picklable `make` over blocks of `size` rows; returns the files of its arrays in order.

    folder: where they are kept. where: the arguments of map_shards that say who does the work.
    """
    for marker in (folder / "done").glob("*.json"):
        made = manifest.read_json(marker)
        path = folder / made["name"]
        if not path.exists() or path.stat().st_size != made["bytes"]:
            marker.unlink()  # a block that was cut short since: it is made again
    bounds = [(start, min(start + size, rows)) for start in range(0, rows, size)]
    work = functools.partial(_make_block, make=make, folder=str(folder))
    try:
        made = map_shards(work, bounds, done=folder / "done", label=label, unit="blocks", **where)
    finally:
        forget()  # one worker is this process: a later build in it must not find this one's files
    return [folder / m["name"] for m in made]


def _make_block(bounds: tuple[int, int], *, make: Make, folder: str) -> dict:
    path = block_path(Path(folder), *bounds)
    with manifest.atomic_write(path) as file:
        np.save(file, make(*bounds))
    return {"name": path.name, "bytes": path.stat().st_size}


def block_path(folder: Path, start: int, stop: int) -> Path:
    return folder / f"{start:012d}-{stop:012d}.npy"


def join_blocks(blocks: Sequence[Path], path: Path, shape: tuple[int, ...]) -> None:
    """One .npy of int64 (shape) from blocks of its rows; memory for one block."""
    with manifest.atomic_write(path) as file:
        write_npy_header(file, np.dtype("<i8"), shape)
        for block in blocks:
            file.write(np.load(block).tobytes())


def count_missing(path: Path) -> int:
    """The -1 in a .npy of neighbours, a piece at a time."""
    array = np.load(path, mmap_mode="r")
    return sum(int((array[i : i + 4096] < 0).sum()) for i in range(0, len(array), 4096))


def write_npy_header(file, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """The head of a .npy file whose rows are then written piece by piece."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


# What a worker process opens once for all its blocks.

_once: list = []


def once(function):
    """Remembers what a function of hashable arguments opened, until the blocks are done."""
    _once.append(cached := functools.cache(function))
    return cached


def forget() -> None:
    for cached in _once:
        cached.cache_clear()


@once
def open_tokenizer(root: str) -> Tokenizer:
    """The tokenizer of the database `root`."""
    return load_directory(Path(root) / "tokenizer")


@once
def open_embedder(directory: str | None, bf16: bool) -> Embedder:
    return Embedder(directory, bf16)


@once
def open_searched(root: str, nprobe: int, ef_search: int):
    """The index of the database `root`, set to search."""
    return open_index(Path(root) / "index.faiss", nprobe, ef_search)
