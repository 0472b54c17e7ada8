"""Connected components of the graph of duplicates, on disk: find the survivor of each cluster.

A node is a document that shares a key with another one. Exact copies are not nodes; the first document with
their text represents them. Each node has a label: the best document of its cluster that it knows so far, and
the node that represents this document. In each round a node takes the best label among its own, those of its
neighbours, and that of the node in its label. If that improves its label, it sends the new label to the node
in its old label, which takes it in the next round. When a round changes no label, all nodes of a cluster have
its survivor as their label. The steps are those of Shiloach and Vishkin 1982 in the form of FastSV (Zhang,
Azad and Hu 2020): the number of rounds is logarithmic in the length of a chain, and is three or four for
clusters of near duplicates. Every round is a map over the parts of the corpus, with bounded memory.

Files in FOLDER, one of each for every part of the corpus:

    nodes/NNNNN.npy          int64 (2, N): node, and the best of the copies that it represents; sorted
    edges/NNNNN.npy          int64 (2, N): (later, earlier) nodes, sorted by the later one, of the part
    edges/NNNNN.reverse.npy  the same as (earlier, later), sorted by the earlier one
    labels/NNNNN.npy         int64 (2, N): (row in nodes/NNNNN.npy, its neighbour), sorted by the neighbour
    labels/K/NNNNN.npy       uint64 (2, N): rank of the best document and its node, after K rounds
    labels/K/NNNNN.told.npy  int64 (3, N): messages (receiving node, rank, node of the better label), sorted

A *rank* orders documents by preference: old before new, then long before short (if the longest survives),
then by number.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.arrays import UNFINISHED, open_array, refuse_beyond
from ...core.config import UserError
from ...core.executor import map_shards
from ...core.parsing import Count
from .key_index import Corpus, columns_between, find_rows, open_pairs, save_array

# The bits of a rank: 10^11 documents; all lengths beyond 67 million characters are equal.
NUMBER_BITS, LENGTH_BITS = 37, 26
MAX_LENGTH = (1 << LENGTH_BITS) - 1
BLOCK_EDGES = 1 << 20  # processed at once


def document_ranks(corpus: Corpus, numbers: np.ndarray, new: int, longest: bool) -> np.ndarray:
    """The ranks of documents, uint64; the lowest is the most preferred.

    numbers: int64, documents. new: the first document of this run. longest: whether longer ones are
    preferred.
    """
    length = np.full(len(numbers), MAX_LENGTH)
    if longest:
        length = np.minimum(corpus.look_up(numbers, "chars", np.int64), MAX_LENGTH)
    is_new = (numbers >= new).astype(np.uint64) << np.uint64(NUMBER_BITS + LENGTH_BITS)
    shortness = (MAX_LENGTH - length).astype(np.uint64) << np.uint64(NUMBER_BITS)
    return is_new | shortness | numbers.astype(np.uint64)


def rank_numbers(rank: np.ndarray) -> np.ndarray:
    """int64: the numbers of the documents with these ranks."""
    return (rank & np.uint64((1 << NUMBER_BITS) - 1)).astype(np.int64)


def find_survivors(
    folder: Path,
    corpus: Corpus,
    new: int,
    longest: bool,
    reached: Sequence[Sequence[int]],
    *,
    label: str,
    **where: Any,
) -> Path:
    """Runs the rounds until no label changes; returns the folder of the last labels, `labels/K`.

    new, longest: as for `document_ranks`. reached: for each part, the parts of the earlier nodes of its
    edges. label, where: arguments of map_shards.
    """
    begin = functools.partial(_write_first_labels, folder=folder, corpus=corpus, new=new, longest=longest)
    map_shards(
        begin,
        _with_senders(reached),
        done=folder / "labels/0",
        label=label,
        unit="parts",
        **where,
    )
    number, changed = 0, True
    told: list[Sequence[int]] = [()] * len(corpus.parts)
    while changed:
        results = map_shards(
            functools.partial(_write_next_labels, folder=folder, corpus=corpus, number=number),
            _with_senders(told),
            done=folder / f"labels/{number + 1}",
            label=f"{label}, round {number + 1}",
            unit="parts",
            kinds={"changed": Count, "receivers": list[Count]},
            **where,
        )
        changed = any(r["changed"] for r in results)
        told = [r["receivers"] for r in results]
        number += 1
    return folder / f"labels/{number}"


def _with_senders(reached: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """(part, the parts that reach it) of every part, so that none opens the files of all others."""
    senders: list[list[int]] = [[] for _ in reached]
    for sender, receivers in enumerate(reached):
        for receiver in receivers:
            if not receiver < len(senders):
                raise UserError(f"part {receiver:,} is not one of {len(senders):,}; {UNFINISHED}")
            senders[receiver].append(sender)
    return list(enumerate(senders))


def _write_first_labels(
    item: tuple[int, list[int]], *, folder: Path, corpus: Corpus, new: int, longest: bool
) -> dict[str, int]:
    """Writes the neighbours and the first labels of a part's nodes.

    item: (part, the parts with an edge from a later node to one of its nodes).
    """
    part, later_parts = item
    path = folder / f"nodes/{part:05d}.npy"
    nodes = open_pairs(path)
    low, high = corpus.document_range(part)
    paths = [folder / f"edges/{part:05d}.npy", *(folder / f"edges/{p:05d}.reverse.npy" for p in later_parts)]
    edges = columns_between(paths, low, high)
    edges = edges[:, np.argsort(edges[1], kind="stable")]
    rows = find_rows(nodes[0], edges[0], path)
    save_array(folder / f"labels/{part:05d}.npy", np.stack((rows, edges[1])))
    rank = document_ranks(corpus, nodes[1], new, longest)
    save_array(folder / f"labels/0/{part:05d}.npy", np.stack((rank, nodes[0].astype(np.uint64))))
    return {}


def _write_next_labels(
    item: tuple[int, list[int]], *, folder: Path, corpus: Corpus, number: int
) -> dict[str, Any]:
    """Writes a part's labels and messages after round `number` + 1.

    item: (part, the parts that sent it messages in round `number`). Returns how many of each are new,
    and the parts that get messages.
    """
    part, senders = item
    labels = functools.partial(read_labels, folder / "nodes", folder / f"labels/{number}", corpus)
    own = open_pairs(folder / f"nodes/{part:05d}.npy")[0]
    before = _open_labels(folder / f"labels/{number}", part, len(own))
    neighbours = open_pairs(folder / f"labels/{part:05d}.npy")
    refuse_beyond(neighbours[0], len(own), folder / f"labels/{part:05d}.npy")
    rank, node = before.copy()
    for start in range(0, neighbours.shape[1], BLOCK_EDGES):
        places, others = neighbours[:, start : start + BLOCK_EDGES]
        _take_better(rank, node, places, *labels(others))
    for start in range(0, len(rank), BLOCK_EDGES):
        places = np.arange(start, min(start + BLOCK_EDGES, len(rank)))
        _take_better(rank, node, places, *labels(before[1, places].astype(np.int64)))
    low, high = corpus.document_range(part)
    paths = [folder / f"labels/{number}/{sender:05d}.told.npy" for sender in senders]
    received = columns_between(paths, low, high, rows=3)
    if received.shape[1]:
        places = find_rows(own, received[0], folder / f"nodes/{part:05d}.npy")
        _take_better(rank, node, places, received[1].view(np.uint64), received[2].view(np.uint64))
    save_array(folder / f"labels/{number + 1}/{part:05d}.npy", np.stack((rank, node)))
    better = np.flatnonzero(rank < before[0])
    messages = np.stack((before[1, better], rank[better], node[better])).view(np.int64)
    messages = messages[:, np.lexsort((rank[better], messages[0]))]
    messages = messages[:, np.unique(messages[0], return_index=True)[1]]  # the best one for each receiver
    save_array(folder / f"labels/{number + 1}/{part:05d}.told.npy", messages)
    receivers = corpus.parts_of(messages[0])
    return {"changed": len(better), "receivers": receivers}


def _take_better(
    rank: np.ndarray, node: np.ndarray, places: np.ndarray, other_rank: np.ndarray, other_node: np.ndarray
) -> None:
    """Replaces labels (rank, node) at `places` by other labels of lower rank; places may repeat."""
    np.minimum.at(rank, places, other_rank)
    taken = other_rank == rank[places]
    node[places[taken]] = other_node[taken]


def read_labels(nodes: Path, labels: Path, corpus: Corpus, numbers: np.ndarray) -> np.ndarray:
    """uint64 (2, P): the labels (rank, node) of nodes. nodes, labels: folders of the parts' files."""
    found = np.empty((2, len(numbers)), np.uint64)
    for part, places, rows in corpus.by_part(numbers):
        own = open_pairs(nodes / f"{part:05d}.npy")[0]
        columns = find_rows(own, rows + corpus.first[part], nodes / f"{part:05d}.npy")
        found[:, places] = _open_labels(labels, part, len(own))[:, columns]
    return found


def _open_labels(folder: Path, part: int, nodes: int) -> np.ndarray:
    return open_array(folder / f"{part:05d}.npy", np.uint64, (2, nodes), remedy=UNFINISHED)
