"""embeddings -> index -> neighbours of a vector, never from its own document.

An index is named by Faiss's `index_factory` string. Distances are squared L2; for vectors of length one (the
default embedder's) they rank like the cosine. Or they are inner products, and the nearest has the largest
(METRICS). Searches use one thread a process (map_shards gives the processes), and an index whose bytes depend
on the number of threads is built on one, so that results never depend on it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np

from ..core.config import UserError, check, configuration, option
from ..core.manifest import atomic_write
from ..indexed.neighbors import Database

METRICS = {"l2": faiss.METRIC_L2, "inner product": faiss.METRIC_INNER_PRODUCT}
FLAT_BELOW = 50_000  # chunks: below, an exact search of all of them against all takes seconds
BYTES_FROM = 20_000_000  # chunks: whole vectors of 384 numbers would take 30 GB of RAM
CODES_FROM = 200_000_000  # chunks: bytes would take 80 GB
SHORT_CODES_FROM = 1_000_000_000  # chunks: codes of 64 bytes would take 72 GB
POINTS_PER_CENTROID = 39  # fewer make poor cells, says Faiss, and warns thousands of times
TRAINING_POINTS, TRAINING_POINTS_PER_CENTROID = 1 << 16, 64  # at least, where there are so many
RESULTS_AT_ONCE = 1 << 22  # (query, result) pairs of one search: 50 MB


@configuration()
class SearchConfig:
    """How widely to look, where it is not to be as the database says."""

    nprobe: int | None = option(
        None, "cells of an IVF index that a search visits (default: as the database says)"
    )
    ef_search: int | None = option(
        None, "how far a search looks around in an HNSW graph (default: as the database says)"
    )

    def __post_init__(self):
        check(
            (self.nprobe is None or self.nprobe >= 1, f"nprobe = {self.nprobe} must be at least 1"),
            (
                self.ef_search is None or self.ef_search >= 1,
                f"ef_search = {self.ef_search} must be at least 1",
            ),
        )

    def of(self, database: Database) -> tuple[int, int]:
        """(nprobe, ef_search)"""
        return self.nprobe or database["nprobe"], self.ef_search or database["ef_search"]


def choose_index(num_chunks: int, dimension: int) -> str:
    """The default index: exact below 50,000 chunks, else cells that are searched exactly, of numbers rounded
    to bytes, of codes.

    About 4 sqrt(N) cells, a power of two (Faiss's guidelines), at most 2^18, which 17 million vectors train;
    from 16,384 cells on, a graph finds the nearest ones. Codes: a learned rotation, then product quantization
    to 64 or 32 bytes (Megatron-LM's example for 10^10 chunks has 32), which find three in four and three in
    five of the ten nearest; vectors too small for that stay bytes.
    """
    if num_chunks < FLAT_BELOW:
        return "Flat"
    cells = min(1 << round(np.log2(4 * num_chunks**0.5)), 1 << 18)
    inverted = f"IVF{cells}_HNSW32" if cells >= 16384 else f"IVF{cells}"
    if num_chunks < BYTES_FROM:
        return f"{inverted},Flat"
    if num_chunks < CODES_FROM or dimension < 256:
        return f"{inverted},SQ8"
    return f"OPQ64_256,{inverted},PQ64" if num_chunks < SHORT_CODES_FROM else f"OPQ32_128,{inverted},PQ32"


def choose_nprobe(index: str) -> int:
    """How many cells a search visits: 6 times their root, at most a quarter of them, at least 16; of codes
    fewer.

    recall@10 of IVF1024,Flat on 89,371 chunks of film reviews by MiniLM: 0.950 with 128 cells, 0.969 with
    192, 0.980 with 256. Codes lose more than cells do (0.76 of PQ64 with 128 cells, 0.78 with 512): an
    eighth, or 4 times the root.
    """
    cells = _cells(index)
    shares = (8, 4) if "PQ" in index else (4, 6)
    return max(16, min(cells // shares[0], round(shares[1] * cells**0.5)))


def choose_ef_search(nprobe: int) -> int:
    """How far a search looks around in a graph: a graph over cells must be able to name all that are visited."""
    return max(256, nprobe)


def check_index(index: str, num_chunks: int, dimension: int, metric: str = "l2") -> None:
    """Raises UserError for a string that Faiss does not know, and for an index that the chunks are too few
    for.
    """
    _empty_index(index, dimension, metric)
    needed = POINTS_PER_CENTROID * _centroids(index)
    if num_chunks < needed:
        raise UserError(
            f"index = {index!r} learns {_centroids(index):,} centroids from {POINTS_PER_CENTROID} chunks"
            f" each, so it needs {needed:,} chunks, but there are {num_chunks:,}; use --index"
            f" {choose_index(num_chunks, dimension)}"
        )


def index_bytes(index: str, num_chunks: int, dimension: int) -> int:
    """About how large the index file will be, and how much RAM a search in all of it takes."""
    empty = _empty_index(index, dimension)
    cells = _cells(index)
    graph = re.search(r"HNSW(\d+)", index) if not cells else None
    # 2 M links of 4 bytes at the lowest level, where nearly all are
    links = 8 * int(graph[1]) if graph else 0
    code = getattr(empty, "storage", empty).sa_code_size()  # a graph is links beside another index
    return num_chunks * (code + links + (8 if cells else 0)) + cells * dimension * 4


@contextlib.contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Faiss on so many threads. They are OpenMP's, whose number may be torch's as well: it is given back."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def search_seconds(index: str, nprobe: int, queries: int, num_chunks: int, dimension: int) -> float:
    """About how long one thread searches, by the speed of comparing whole vectors here; codes and cells take
    about as long.
    """
    sample = np.random.default_rng(0).standard_normal((4096, dimension), dtype=np.float32)
    flat = faiss.IndexFlatL2(dimension)
    flat.add(sample)
    with faiss_threads(1):
        flat.search(sample[:64], 40)
        begun = time.perf_counter()
        flat.search(sample[:256], 40)
        pairs_per_second = 256 * len(sample) / (time.perf_counter() - begun)
    compared = (
        num_chunks
        if not _cells(index)
        else min(num_chunks, num_chunks * nprobe / _cells(index) + _cells(index))
    )
    return queries * compared / pairs_per_second


def build_index(
    path: Path,
    trained_path: Path,
    index: str,
    blocks: Sequence[Path],
    sample: np.ndarray | None,
    threads: int,
    metric: str = "l2",
    base: tuple[Path, int] | None = None,
) -> None:
    """Writes the index of all vectors; the id of a vector is its place in the blocks.

    blocks: .npy files (n, dimension) float32. trained_path: where the trained, empty index is kept meanwhile,
    since training is the long part. sample: the places of the vectors that it learns from, in order
    (`training_sample`). base: an index that holds the first so many vectors already; nothing is trained then.
    RAM: the index (for Flat, the vectors) and one block.
    """
    with faiss_threads(_build_threads(index, threads)):
        if base is not None:
            built = _read(base[0])
        elif trained_path.exists():
            built = _read(trained_path)
        else:
            vectors = _rows_of(blocks, sample)
            built = _empty_index(index, vectors.shape[1], metric)
            built.train(vectors)
            _write(built, trained_path)
        place = 0
        for block in blocks:
            vectors = np.load(block)
            built.add(vectors[max(0, (base[1] if base else 0) - place) :])
            place += len(vectors)
        _write(built, path)


def open_index(path: Path, nprobe: int, ef_search: int):
    """A built index, memory-mapped and set to search; raises UserError when the file is not whole.

    nprobe: cells to visit, where it has cells. ef_search: the same of a graph, be it of cells or of vectors.
    """
    index = _read(path, faiss.IO_FLAG_MMAP_IFC)
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    graph = faiss.downcast_index(inverted.quantizer if inverted is not None else index)
    if hasattr(graph, "hnsw"):
        graph.hnsw.efSearch = ef_search
    return index


def is_lossless(index: str) -> bool:
    """Whether an index gives back the vectors that were added to it, to the last bit."""
    return re.fullmatch(r"(IVF\d+k?(_HNSW\d+)?,)?Flat", index) is not None


def stored_vectors(index, start: int, stop: int) -> np.ndarray:
    """Vectors [start, stop) of a lossless index: (n, dimension) float32."""
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and inverted.direct_map.type == faiss.DirectMap.NoMap:
        inverted.make_direct_map()  # 8 bytes a vector
    return index.reconstruct_n(start, stop - start)


def nearest(index, vectors: np.ndarray, k: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest ids of every vector, nearest first, without those in its own ranges.

    vectors: (n, dimension) float32. own: (m, 3) int64, rows (vector, first, past the last) of the ids that
    this vector may not find, those of its own documents; sorted, and ranges of a vector do not overlap.
    Returns distances (n, k) float32 and ids (n, k) int64, inf (of inner products -inf) and -1 where there are
    fewer. A vector whose own documents take the first places is searched again for twice as many, so that no
    neighbour is missed for that.
    """
    nowhere = -np.inf if index.metric_type == faiss.METRIC_INNER_PRODUCT else np.inf
    distances, ids = np.full((len(vectors), k), nowhere, np.float32), np.full((len(vectors), k), -1, np.int64)
    rows, ask = np.arange(len(vectors)), 2 * k
    # All ranges on one line, those of vector i from i * stride on; an id is in one where an odd number of
    # ends precede it.
    stride = index.ntotal + 1
    ends = (own[:, :1] * stride + own[:, 1:]).ravel()
    while len(rows):
        ask = min(ask, index.ntotal)
        short = []
        for some in _slices(rows, max(1, RESULTS_AT_ONCE // ask)):
            with faiss_threads(1):
                found_distances, found = index.search(vectors[some], ask)
            usable = (found >= 0) & (
                np.searchsorted(ends, some[:, None] * stride + found, side="right") % 2 == 0
            )
            order = np.argsort(~usable, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            keep = np.take_along_axis(usable, order, 1)
            ids[some, :width] = np.where(keep, np.take_along_axis(found, order, 1), -1)
            distances[some, :width] = np.where(keep, np.take_along_axis(found_distances, order, 1), nowhere)
            exhausted = (found[:, -1] < 0) | (ask == index.ntotal)
            short.append(some[(usable.sum(1) < k) & ~exhausted])
        rows, ask = np.concatenate(short), 2 * ask
    return distances, ids


def _slices(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _empty_index(index: str, dimension: int, metric: str = "l2"):
    try:
        return faiss.index_factory(dimension, index, METRICS[metric])
    except RuntimeError as error:
        reason = re.sub(r"^.*? at \S+:\d+: (Error: )?", "", str(error))
        raise UserError(
            f"index = {index!r}: Faiss cannot make it for vectors of {dimension} numbers ({reason}); use for"
            " example Flat or IVF256,Flat"
        ) from None


def _cells(index: str) -> int:
    """Cells that a factory string asks for; 0 where it has none."""
    found = re.search(r"IVF(\d+)(k?)", index)
    return int(found[1]) * (1024 if found[2] else 1) if found else 0


def _centroids(index: str) -> int:
    """The largest clustering that training does: the cells, or the 2^bits codes of a product quantizer; 0 for
    none.
    """
    codes = [1 << int(bits or 8) for bits in re.findall(r"PQ\d+(?:x(\d+))?", index)]
    return max(_cells(index), *codes, 0)


def _build_threads(index: str, threads: int) -> int:
    """Faiss gives the same bytes on any number of threads for cells, PQ and SQ (compared at 1 and 2), but not
    for
    rotations learned by matrix products (OPQ, seen to differ) nor for graphs, whose links depend on who comes
    first."""
    return 1 if re.search("OPQ|PCA|ITQ|HNSW|NSG", index) else threads


def training_sample(
    index: str, parts: Sequence[tuple[int, float]], count: int | None, seed: int
) -> np.ndarray:
    """Places (n,) int64, in order, of the vectors that an index is trained on: a random sample without
    repetition.

    parts: (number of vectors, weight) of every dataset, in the order of the vectors; as in a mixture, the
    sample has as much of each as its weight says, or all of it. count: how many; None: what the index needs.
    (Megatron-LM takes the first chunks of every dataset, which are of its first few documents.)
    """
    wanted = count or max(TRAINING_POINTS, TRAINING_POINTS_PER_CENTROID * _centroids(index))
    total = sum(weight for _, weight in parts)
    random = np.random.default_rng(seed)
    places, first = [], 0
    for size, weight in parts:
        places.append(
            first
            + np.sort(
                random.choice(size, min(size, round(wanted * weight / total)), replace=False, shuffle=False)
            )
        )
        first += size
    return np.concatenate(places)


def _rows_of(blocks: Sequence[Path], places: np.ndarray) -> np.ndarray:
    """Vectors at ascending places of all blocks laid end to end. (n, dimension) float32."""
    parts, start = [], 0
    for block in blocks:
        vectors = np.load(block, mmap_mode="r")
        parts.append(
            vectors[
                places[np.searchsorted(places, start) : np.searchsorted(places, start + len(vectors))] - start
            ]
        )
        start += len(vectors)
    return np.concatenate(parts)


def _write(index, path: Path) -> None:
    with atomic_write(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def _read(path: Path, flags: int = 0):
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise UserError(
            f"{path}: Faiss cannot read it ({str(error).rsplit(': ', 1)[-1]}); remove the database and build"
            " it again"
        ) from None
