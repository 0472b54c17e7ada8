"""edges between documents, by part, on disk -> the survivor of every cluster, in rounds of tasks of bounded
memory.

Nodes are documents that some key joins; exact copies are not nodes, the first document with their text stands
for them. Each node bears a label: the best document that it knows of in its cluster, and the node that stands
for that one. In every round a node takes the best among its own label and those of its neighbours and of the
node in its label, and if that is better, tells the node in its old label, which follows in the next round.
When a round changes none, the members of a cluster all bear its survivor. The steps are those of Shiloach and
Vishkin 1982 (in the form of FastSV, Zhang, Azad and Hu 2020): rounds grow by the logarithm of a chain's
length, and clusters of near duplicates take three or four.

Of every part, files of FOLDER hold what its own task reads and writes:

    nodes/NNNNN.npy          int64 (2, N): node, and the best of the copies that it stands for; sorted
    edges/NNNNN.npy          int64 (2, N): (later, earlier) nodes, sorted by the later, which lies in the part
    edges/NNNNN.reverse.npy  the same as (earlier, later), sorted by the earlier
    labels/NNNNN.npy         int64 (2, N): (place of a node of the part, its neighbour), sorted by the
        neighbour
    labels/K/NNNNN.npy       uint64 (2, N): rank of the best document and its node, after K rounds
    labels/K/NNNNN.told.npy  int64 (3, N): (node that is told, rank, node of a better label), sorted

A *rank* orders documents: old before new, then long before short (where the longest survives), then by
number.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from ...core.executor import map_shards
from .key_index import Corpus, between, mapped, save_array

# of a rank: 10^11 documents; beyond 67 million characters all are equally long
NUMBER_BITS, LENGTH_BITS = 37, 26
LONGEST = (1 << LENGTH_BITS) - 1
BLOCK = 1 << 20  # edges at a time


def ranks(corpus: Corpus, numbers: np.ndarray, new: int, longest: bool) -> np.ndarray:
    """uint64, the least first.

    numbers: documents; new: the first document of this run; longest: whether length counts.
    """
    length = (
        np.minimum(corpus.look_up(numbers, "chars", np.int64), LONGEST)
        if longest
        else np.full(len(numbers), LONGEST)
    )
    is_new = (numbers >= new).astype(np.uint64) << np.uint64(NUMBER_BITS + LENGTH_BITS)
    return is_new | (LONGEST - length).astype(np.uint64) << np.uint64(NUMBER_BITS) | numbers.astype(np.uint64)


def ranked(rank: np.ndarray) -> np.ndarray:
    """The numbers of the documents with these ranks."""
    return (rank & np.uint64((1 << NUMBER_BITS) - 1)).astype(np.int64)


def survivors(folder: Path, corpus: Corpus, new: int, longest: bool, *, label: str, **where) -> Path:
    """Runs the rounds; returns the folder of the last labels, `labels/K`.

    new, longest: as of `ranks`. label, where: the arguments of map_shards that say what is done and who does
    it.
    """
    parts = range(len(corpus.parts))
    begin = functools.partial(_begin, folder=folder, corpus=corpus, new=new, longest=longest)
    map_shards(begin, list(parts), done=folder / "labels/0", label=label, unit="parts", **where)
    number, changed, tellers = 0, True, []
    while changed:
        step = functools.partial(_round, folder=folder, corpus=corpus, number=number, tellers=tellers)
        results = map_shards(
            step,
            list(parts),
            done=folder / f"labels/{number + 1}",
            label=f"{label}, round {number + 1}",
            unit="parts",
            **where,
        )
        changed, tellers = (
            any(r["changed"] for r in results),
            [part for part in parts if results[part]["told"]],
        )
        number += 1
    return folder / f"labels/{number}"


def _begin(part: int, *, folder: Path, corpus: Corpus, new: int, longest: bool) -> dict:
    """Writes the neighbours and the first labels of a part's nodes."""
    nodes = np.load(folder / f"nodes/{part:05d}.npy")
    low, high = corpus.first[part : part + 2]
    later_parts = range(part, len(corpus.parts)) if nodes.shape[1] else ()
    edges = between(
        [folder / f"edges/{part:05d}.npy", *(folder / f"edges/{p:05d}.reverse.npy" for p in later_parts)],
        low,
        high,
    )
    edges = edges[:, np.argsort(edges[1], kind="stable")]
    save_array(folder / f"labels/{part:05d}.npy", np.stack((np.searchsorted(nodes[0], edges[0]), edges[1])))
    rank = ranks(corpus, nodes[1], new, longest)
    save_array(folder / f"labels/0/{part:05d}.npy", np.stack((rank, nodes[0].astype(np.uint64))))
    return {}


def _round(part: int, *, folder: Path, corpus: Corpus, number: int, tellers: list[int]) -> dict:
    """Writes a part's labels after round `number` + 1.

    tellers: the parts that told some node something in the last one.
    """
    labels = functools.partial(labels_of, folder / "nodes", folder / f"labels/{number}", corpus)
    before = np.load(folder / f"labels/{number}/{part:05d}.npy")
    neighbours = mapped(folder / f"labels/{part:05d}.npy")
    rank, node = before.copy()
    for start in range(0, neighbours.shape[1], BLOCK):
        places, others = neighbours[:, start : start + BLOCK]
        _take_better(rank, node, places, *labels(others))
    for start in range(0, len(rank), BLOCK):
        places = np.arange(start, min(start + BLOCK, len(rank)))
        _take_better(rank, node, places, *labels(before[1, places].astype(np.int64)))
    told = between(
        [folder / f"labels/{number}/{p:05d}.told.npy" for p in tellers],
        *corpus.first[part : part + 2],
        rows=3,
    )
    if told.shape[1]:
        own = mapped(folder / f"nodes/{part:05d}.npy")[0]
        _take_better(
            rank, node, np.searchsorted(own, told[0]), told[1].view(np.uint64), told[2].view(np.uint64)
        )
    save_array(folder / f"labels/{number + 1}/{part:05d}.npy", np.stack((rank, node)))
    better = np.flatnonzero(rank < before[0])
    news = np.stack((before[1, better], rank[better], node[better])).view(np.int64)
    news = news[:, np.lexsort((rank[better], news[0]))]
    news = news[:, np.unique(news[0], return_index=True)[1]]  # the best for each
    save_array(folder / f"labels/{number + 1}/{part:05d}.told.npy", news)
    return {"changed": len(better), "told": news.shape[1]}


def _take_better(
    rank: np.ndarray, node: np.ndarray, places: np.ndarray, other_rank: np.ndarray, other_node: np.ndarray
) -> None:
    np.minimum.at(rank, places, other_rank)
    taken = other_rank == rank[places]
    node[places[taken]] = other_node[taken]


def labels_of(nodes: Path, labels: Path, corpus: Corpus, numbers: np.ndarray) -> np.ndarray:
    """uint64 (2, P): ranks and nodes in the labels of nodes. nodes, labels: folders of the parts' files."""
    found = np.empty((2, len(numbers)), np.uint64)
    for part, places, rows in corpus.by_part(numbers):
        own = mapped(nodes / f"{part:05d}.npy")[0]
        found[:, places] = mapped(labels / f"{part:05d}.npy")[
            :, np.searchsorted(own, rows + corpus.first[part])
        ]
    return found
