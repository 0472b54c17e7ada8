"""Builds and searches Faiss indices of embeddings; a search can exclude a vector's own documents.

A Faiss `index_factory` string names the kind of an index. The metric is squared L2, which ranks vectors of
length one (the default embedder's) like the cosine, or the inner product, of which the largest is the nearest
(METRICS). Searches use one thread in each process, and an index whose bytes depend on the number of threads
is built on one. So no result depends on the number of threads.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ..core import paths
from ..core.arrays import beyond, open_array
from ..core.config import UserError, check, configuration, option
from ..core.executor import once
from ..core.manifest import atomic_write
from ..indexed.neighbors import DatabaseInfo

METRICS = {"l2": faiss.METRIC_L2, "inner product": faiss.METRIC_INNER_PRODUCT}
# Bounds in chunks of the default indices (`choose_index`).
FLAT_BELOW = 50_000  # an exact search of all against all takes seconds
BYTES_FROM = 20_000_000  # float32 vectors of 384 numbers would take 30 GB of RAM
CODES_FROM = 200_000_000  # bytes would take 80 GB
SHORT_CODES_FROM = 1_000_000_000  # codes of 64 bytes would take 72 GB

POINTS_PER_CENTROID = 39  # Faiss's minimum: it warns that fewer make poor cells
# size of the default training sample: the larger of the two, where there are enough vectors
TRAINING_POINTS, TRAINING_POINTS_PER_CENTROID = 1 << 16, 64
REMEDY = "remove the database and build it again"
RESULTS_AT_ONCE = 1 << 22  # (query, result) pairs of one search: 50 MB


@configuration()
class SearchConfig:
    """How much of an index a search visits."""

    nprobe: int | None = option(
        None, "cells of an IVF index that a search visits (default: as recorded in the database)"
    )
    ef_search: int | None = option(
        None, "size of a search's candidate list in an HNSW graph (default: as recorded in the database)"
    )

    def __post_init__(self) -> None:
        check(
            (self.nprobe is None or self.nprobe >= 1, f"nprobe = {self.nprobe} must be at least 1"),
            (
                self.ef_search is None or self.ef_search >= 1,
                f"ef_search = {self.ef_search} must be at least 1",
            ),
        )

    def search_width(self, database: DatabaseInfo) -> tuple[int, int]:
        """(nprobe, ef_search): the settings, or the database's where they are None."""
        return self.nprobe or database["nprobe"], self.ef_search or database["ef_search"]


def choose_index(num_chunks: int, dimension: int) -> str:
    """The default index: Flat below 50,000 chunks, then IVF with whole vectors, with bytes, and with codes.

    It has about 4 sqrt(N) cells, a power of two (Faiss's guidelines), and at most 2^18, which 17 million
    vectors train. From 16,384 cells on, an HNSW graph finds the nearest ones. Codes are a learned rotation
    (OPQ) and product quantization to 64 or 32 bytes; Megatron-LM's example for 10^10 chunks has 32. They find
    three in four and three in five of the ten nearest. Vectors with fewer than 256 numbers stay bytes.
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
    """The default number of cells that a search visits.

    It is 6 times the root of the number of cells, at most a quarter of them, and at least 16. recall@10 of
    IVF1024,Flat on 89,371 chunks of film reviews by MiniLM is 0.950 with 128 cells, 0.969 with 192 and 0.980
    with 256. For product quantization it is 4 times the root, at most an eighth: codes lose more recall than
    cells do (PQ64: 0.76 with 128 cells, 0.78 with 512).
    """
    cells = _cells(index)
    shares = (8, 4) if "PQ" in index else (4, 6)
    return max(16, min(cells // shares[0], round(shares[1] * cells**0.5)))


def choose_ef_search(nprobe: int) -> int:
    """The default candidate list of a graph: one over cells must find all cells that are visited."""
    return max(256, nprobe)


def check_index(index: str, num_chunks: int, dimension: int, metric: str = "l2") -> None:
    """Raises UserError for a string that Faiss rejects, and for too few chunks to train the index."""
    _empty_index(index, dimension, metric)
    needed = POINTS_PER_CENTROID * _centroids(index)
    if num_chunks < needed:
        raise UserError(
            f"index = {index!r} learns {_centroids(index):,} centroids from {POINTS_PER_CENTROID} chunks"
            f" each, so it needs {needed:,} chunks, but there are {num_chunks:,}; use --index"
            f" {choose_index(num_chunks, dimension)}"
        )


def index_bytes(index: str, num_chunks: int, dimension: int) -> int:
    """Approximate size of the index file, which is also the RAM of a search, in bytes."""
    empty = _empty_index(index, dimension)
    cells = _cells(index)
    graph = re.search(r"HNSW(\d+)", index) if not cells else None
    # 2 M links of 4 bytes at the lowest level, which has nearly all links
    links = 8 * int(graph[1]) if graph else 0
    code = getattr(empty, "storage", empty).sa_code_size()  # a graph stores its vectors in another index
    return num_chunks * (code + links + (8 if cells else 0)) + cells * dimension * 4


@contextlib.contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Sets Faiss's number of threads; it is OpenMP's, which torch may use too, so it is restored."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def search_seconds(index: str, nprobe: int, queries: int, num_chunks: int, dimension: int) -> float:
    """Estimated time of a search on one thread, from the measured speed of an exact search.

    Codes and cells take about as long for each vector.
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
    """Writes the index of all vectors; the id of a vector is its position in the blocks.

    blocks: .npy files (n, dimension) float32. trained_path: file for the trained, empty index, which a
    resumed run reads, since training takes longest. sample: positions of the training vectors, in order
    (`training_sample`). base: an index of the first vectors and their number; nothing is trained then. RAM:
    the index (for Flat, the vectors) and one block.
    """
    with faiss_threads(_build_threads(index, threads)):
        if base is not None:
            built = _read(base[0])
            if blocks:
                _check_sizes(built, base[0], base[1], open_array(blocks[0], "<f4", (None, None)).shape[1])
        else:
            assert sample is not None, "an index is trained on a sample, or extends another one"
            trained: list[Any] = []

            def train() -> None:
                vectors = _vectors_at(blocks, sample)
                trained.append(_empty_index(index, vectors.shape[1], metric))
                trained[0].train(vectors)
                _write(trained[0], trained_path)

            once(train, trained_path.parent, trained_path.stem)
            built = trained[0] if trained else _read(trained_path)
        place = 0
        for block in blocks:
            vectors = open_array(block, "<f4", (None, built.d))
            built.add(vectors[max(0, (base[1] if base else 0) - place) :])
            place += len(vectors)
        _write(built, path)


def open_index(
    path: Path, nprobe: int, ef_search: int, count: int | None = None, dimension: int | None = None
):
    """Opens an index for searching, memory-mapped.

    nprobe: cells to visit, for an index with cells. ef_search: candidate list, for a graph of cells or of
    vectors. count, dimension: of its vectors, if they are known. Raises UserError if the file is truncated,
    or has other vectors.
    """
    index = _read(path, faiss.IO_FLAG_MMAP_IFC)
    _check_sizes(index, path, count, dimension)
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    graph = faiss.downcast_index(inverted.quantizer if inverted is not None else index)
    if hasattr(graph, "hnsw"):
        graph.hnsw.efSearch = ef_search
    return index


def is_lossless(index: str) -> bool:
    """Whether an index returns the vectors that were added to it, bit for bit."""
    return re.fullmatch(r"(IVF\d+k?(_HNSW\d+)?,)?Flat", index) is not None


def stored_vectors(index, start: int, stop: int) -> np.ndarray:
    """Vectors [start, stop) of a lossless index: (n, dimension) float32.

    Raises UserError for an index of another kind, whose vectors Faiss cannot give back, or ends the process
    over.
    """
    if type(index) not in (faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP, faiss.IndexIVFFlat):
        raise UserError(
            f"index.faiss: is a {type(index).__name__}, not the index that its database records; {REMEDY}"
        )
    inverted = faiss.try_extract_index_ivf(index)
    no_map = faiss.DirectMap.NoMap  # type: ignore[attr-defined]  # missing in faiss's stubs
    if inverted is not None and inverted.direct_map.type == no_map:
        try:
            inverted.make_direct_map()  # 8 bytes a vector
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"index.faiss: Faiss cannot read its vectors ({_reason(error)}); {REMEDY}"
            ) from None
    return index.reconstruct_n(start, stop - start)


def nearest(index, vectors: np.ndarray, k: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest ids of every vector, nearest first, without those of its own documents.

    vectors: (n, dimension) float32. own: (m, 3) int64, rows (vector, first, one past the last) of the ids
    that a vector may not find; sorted, and the ranges of a vector do not overlap. Returns distances (n, k)
    float32 and ids (n, k) int64, with inf (for inner products -inf) and -1 for missing neighbours. If own
    documents take so many results that fewer than k are left, the vector is searched again for twice as many
    results.
    """
    missing = -np.inf if index.metric_type == faiss.METRIC_INNER_PRODUCT else np.inf
    distances = np.full((len(vectors), k), missing, np.float32)
    ids = np.full((len(vectors), k), -1, np.int64)
    rows, num_results = np.arange(len(vectors)), 2 * k
    # All ranges lie on one axis, those of vector i from i * stride on. An id is inside a range if the number
    # of bounds up to it is odd.
    stride = index.ntotal + 1
    bounds = (own[:, :1] * stride + own[:, 1:]).ravel()
    while len(rows):
        num_results = min(num_results, index.ntotal)
        short = []
        for some in _slices(rows, max(1, RESULTS_AT_ONCE // num_results)):
            found_distances, found = search(index, vectors[some], num_results)
            usable = (found >= 0) & (
                np.searchsorted(bounds, some[:, None] * stride + found, side="right") % 2 == 0
            )
            order = np.argsort(~usable, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            keep = np.take_along_axis(usable, order, 1)
            ids[some, :width] = np.where(keep, np.take_along_axis(found, order, 1), -1)
            distances[some, :width] = np.where(keep, np.take_along_axis(found_distances, order, 1), missing)
            exhausted = (found[:, -1] < 0) | (num_results == index.ntotal)
            short.append(some[(usable.sum(1) < k) & ~exhausted])
        rows, num_results = np.concatenate(short), 2 * num_results
    return distances, ids


def search(index, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Faiss's search of vectors (n, dimension) float32 on one thread: distances (n, k) float32, ids int64.

    Raises UserError where Faiss finds the index broken.
    """
    try:
        with faiss_threads(1):
            distances, ids = index.search(vectors, k)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"index.faiss: Faiss cannot search it ({_reason(error)}); {REMEDY}") from None
    if (wrong := beyond(ids, index.ntotal, -1)) is not None:  # an index may hold numbers of its own
        raise UserError(f"index.faiss: gives vector {wrong:,} of {index.ntotal:,}; {REMEDY}")
    return distances, ids


def _reason(error: Exception) -> str:
    """What Faiss says, without the place in its code."""
    return " ".join(str(error).rsplit(": ", 1)[-1].split())[:200] or type(error).__name__


def _slices(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _empty_index(index: str, dimension: int, metric: str = "l2"):
    try:
        return faiss.index_factory(dimension, index, METRICS[metric])
    except RuntimeError as error:
        reason = re.sub(r"^.*? at \S+:\d+: (Error: )?", "", str(error))
        raise UserError(
            f"index = {index!r}: Faiss cannot make it for vectors of {dimension} numbers ({reason}); use Flat"
            " or IVF256,Flat, for example"
        ) from None


def _cells(index: str) -> int:
    """Number of cells in a factory string; 0 for none."""
    found = re.search(r"IVF(\d+)(k?)", index)
    return int(found[1]) * (1024 if found[2] else 1) if found else 0


def _centroids(index: str) -> int:
    """Centroids of the largest clustering in training: the cells, or the 2^bits codes of PQ; 0 for none."""
    codes = [1 << int(bits or 8) for bits in re.findall(r"PQ\d+(?:x(\d+))?", index)]
    return max(_cells(index), *codes, 0)


def _build_threads(index: str, threads: int) -> int:
    """The number of threads that builds an index: 1 if its bytes would depend on the number, else `threads`.

    Cells, PQ and SQ have the same bytes on any number (compared at 1 and 2). Rotations learned by matrix
    products differ (OPQ was observed to), and the links of graphs depend on the order of insertion.
    """
    return 1 if re.search("OPQ|PCA|ITQ|HNSW|NSG", index) else threads


def training_sample(
    index: str, parts: Sequence[tuple[int, float]], count: int | None, seed: int
) -> np.ndarray:
    """Positions (n,) int64, in order, of the vectors that an index is trained on: a random sample.

    parts: (number of vectors, weight) of every dataset, in the order of the vectors. A dataset's share of the
    sample is its weight, or all of it. count: size of the sample; None: what the index needs. (Megatron-LM
    takes the first chunks of every dataset, which are those of its first few documents.)
    """
    wanted = count or max(TRAINING_POINTS, TRAINING_POINTS_PER_CENTROID * _centroids(index))
    total = sum(weight for _, weight in parts)
    random = np.random.default_rng(seed)
    positions, first = [], 0
    for size, weight in parts:
        share = min(size, round(wanted * weight / total))
        positions.append(first + np.sort(random.choice(size, share, replace=False, shuffle=False)))
        first += size
    return np.concatenate(positions)


def _vectors_at(blocks: Sequence[Path], positions: np.ndarray) -> np.ndarray:
    """The vectors at ascending positions in all blocks: (n, dimension) float32."""
    parts, start = [], 0
    for block in blocks:
        vectors = open_array(block, "<f4", (None, None))
        here = slice(*np.searchsorted(positions, [start, start + len(vectors)]))
        parts.append(vectors[positions[here] - start])
        start += len(vectors)
    return np.concatenate(parts)


def _write(index, path: Path) -> None:
    with atomic_write(path) as file:
        writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]  # missing in faiss's stubs
        faiss.write_index(index, writer)


def _read(path: Path, flags: int = 0):
    try:
        with _bounded_reading(paths.regular(path).stat().st_size):
            # an index may name a file with its lists; the flag keeps it to the folder of the index
            index = faiss.read_index(str(path), flags | faiss.IO_FLAG_ONDISK_SAME_DIR)
    except (RuntimeError, MemoryError, FileNotFoundError) as error:
        raise UserError(f"{path}: Faiss cannot read it ({_reason(error)}); {REMEDY}") from None
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and _lists_elsewhere(inverted):
        raise UserError(f"{path}: names another file with its lists, which is not read; {REMEDY}")
    return index


def _lists_elsewhere(inverted) -> bool:
    """Whether the lists of an index with cells lie in another file."""
    lists = inverted.invlists
    return lists is not None and isinstance(faiss.downcast_InvertedLists(lists), faiss.OnDiskInvertedLists)


@contextlib.contextmanager
def _bounded_reading(size: int) -> Iterator[None]:
    """Lets Faiss read no vector of more bytes than the file has, and no longer list of parts.

    Its own limit is 10^12 bytes, which a header of a few bytes makes it take.
    """
    limits = ("vector_byte_limit", "loop_limit")
    before = [getattr(faiss, f"get_deserialization_{name}")() for name in limits]
    try:
        for name in limits:
            getattr(faiss, f"set_deserialization_{name}")(size)
        yield
    finally:
        for name, value in zip(limits, before):
            getattr(faiss, f"set_deserialization_{name}")(value)


def _check_sizes(index, path: Path, count: int | None, dimension: int | None) -> None:
    """Raises UserError if an index has another number of vectors, or of numbers in each, than expected."""
    for found, wanted, what in (
        (index.ntotal, count, "vectors"),
        (index.d, dimension, "numbers in a vector"),
    ):
        if wanted is not None and found != wanted:
            raise UserError(
                f"{path}: has {found:,} {what}, not {wanted:,} as its database; remove the database and build"
                " it again"
            )
