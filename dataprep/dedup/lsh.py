"""The steps of `mt data dedup` from the keys of all shards to the documents that each shard loses.

Each step is a map over parts of the corpus, which are shards (the first `num_old` of an earlier run), or over
ranges of keys. Tasks read slices of the files of the step before, and need memory only for what they read.
Files, in the folder parts/ of the output:

    search/N/NNNNN.*          results of the tasks over N ranges of keys (key_index.py)
    copies/NNNNN.npy          int64 (2, N): (copy, first document with its key) of a part, sorted
    copies/NNNNN.leaders.npy  int64 (2, N): (first document of some copies, the best of all of them), sorted
    pairs/NNNNN.npy           int64 (2, N): (later, earlier) documents with an equal band key; the later one
                              is in the part
    sets/, clusters/          jaccard.py, components.py
    decide/NNNNN.npy          DECISION: the documents that a shard loses, by row
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from ...core.arrays import UNFINISHED, open_array, refuse_beyond
from ...core.executor import map_shards
from ...core.parsing import Count
from ...core.unicode import normalize
from ...documents.reader import batches
from ...documents.shard_groups import ShardGroup
from . import components
from .config import DedupConfig
from .jaccard import JaccardSimilarity, distinct_hashes, save_sets
from .key_index import (
    BandSearch,
    Corpus,
    columns_between,
    exact_copies,
    key_ranges,
    open_pairs,
    save_array,
    unique_columns,
)
from .minhash import text_shingles
from .shingles import BATCH_CHARS, COMPILE_FROM

# Up to these sizes one process is faster than starting others.
ONE_PROCESS_DOCUMENTS = 1 << 20  # whose keys are searched
ONE_PROCESS_PAIRS = 100_000  # to verify
ONE_PROCESS_BYTES = 250_000_000  # of input, which one process reads in two seconds
DECISION = np.dtype([("row", np.uint32), ("near", bool), ("survivor", np.int64), ("similarity", np.float64)])


def find_duplicates(tasks: DedupTasks, shards: list[ShardGroup]) -> dict[str, int]:
    """Runs all steps, the last of which writes decide/; returns counts of clusters and pairs.

    They are {"clusters", "candidate_pairs", "near_pairs"}.
    """
    where, work = tasks.config.where, tasks.folder
    one_process = {**where, "workers": 1}
    on_keys = where if len(tasks.corpus) > ONE_PROCESS_DOCUMENTS else one_process
    parts = list(range(len(tasks.corpus.parts)))
    texts = [(part, shards[part - tasks.num_old] if part >= tasks.num_old else None) for part in parts]
    sizes = [shard.bytes if shard else 0 for _, shard in texts]
    map_shards(
        tasks.exact,
        list(enumerate(tasks.ranges)),
        done=tasks.found / "exact",
        **on_keys,
        label="data dedup: exact",
        unit="ranges",
    )
    map_shards(tasks.copies, parts, done=work / "copies", **on_keys, label="data dedup: copies", unit="parts")
    band_search = tasks.band_search
    map_shards(
        band_search.sort,
        band_search.sorting_tasks(),
        done=tasks.found / "sorted",
        **on_keys,
        label="data dedup: sort",
        unit="bands",
    )
    map_shards(
        functools.partial(band_search.pairs, new=tasks.new),
        band_search.tasks(),
        done=tasks.found / "near",
        **on_keys,
        label="data dedup: near",
        unit="bands",
    )
    on_text = where if sum(sizes) > ONE_PROCESS_BYTES else on_keys
    gathered = map_shards(
        tasks.gather,
        texts,
        done=work / "pairs",
        **on_text,
        label="data dedup: gather",
        sizes=sizes,
        kinds={"pairs": Count},
    )
    candidates = sum(g["pairs"] for g in gathered)
    on_pairs = where if candidates > ONE_PROCESS_PAIRS else on_keys
    verified = map_shards(
        tasks.verify,
        parts,
        done=work / "clusters/edges",
        **on_pairs,
        label="data dedup: verify",
        unit="parts",
        kinds={"near": Count, "reached": list[Count]},
    )
    labels = components.find_survivors(
        work / "clusters",
        tasks.corpus,
        tasks.new,
        tasks.config.survivor == "longest",
        [v["reached"] for v in verified],
        label="data dedup: clusters",
        **on_keys,
    )
    decided = map_shards(
        functools.partial(tasks.decide, labels=labels),
        parts,
        done=work / "decide",
        **on_pairs,
        label="data dedup: decide",
        unit="parts",
        kinds={"clusters": Count},
    )
    return {
        "clusters": sum(d["clusters"] for d in decided),
        "candidate_pairs": candidates,
        "near_pairs": sum(v["near"] for v in verified),
    }


@dataclasses.dataclass(frozen=True)
class DedupTasks:
    """The tasks of all steps.

    num_old: parts of earlier runs, the first ones of the corpus. bands: 0 without near duplicates. folder: of
    all files. text_bytes: size of the input.
    """

    config: DedupConfig
    corpus: Corpus
    num_old: int
    bands: int
    folder: Path
    text_bytes: int

    @property
    def new(self) -> int:
        """The first document of this run."""
        return int(self.corpus.first[self.num_old])

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return key_ranges(len(self.corpus), self.config.range_keys)

    @property
    def found(self) -> Path:
        # a rerun with other ranges finds the same copies and pairs, in other files
        return self.folder / f"search/{len(self.ranges)}"

    @property
    def band_search(self) -> BandSearch:
        copies = [self._path("copies", part) for part in range(len(self.corpus.parts))]
        return BandSearch(self.corpus, copies, self.bands, self.config.range_keys, self.found)

    @property
    def similarity(self) -> JaccardSimilarity:
        return JaccardSimilarity(self.folder / "sets", self.corpus, self.num_old)

    def _path(self, folder: str, part: int, name: str = "") -> Path:
        return self.folder / folder / f"{part:05d}{name}.npy"

    def exact(self, task: tuple[int, tuple[int, int]]) -> dict[str, int]:
        """Writes the copies in a range of keys, and their leaders with the best document of each group."""
        number, (low, high) = task
        copies = exact_copies(self.corpus, low, high)
        save_array(self.found / f"{number:05d}.copies.npy", copies)
        copies = copies[:, copies[0] >= self.new]  # the earlier run decided about old documents
        copies = copies[:, np.argsort(copies[1], kind="stable")]
        leaders, starts = np.unique(copies[1], return_index=True)
        best = leaders.copy()
        if len(leaders):
            longest = self.config.survivor == "longest"
            ranks = components.document_ranks(self.corpus, copies[0], self.new, longest)
            leader_ranks = components.document_ranks(self.corpus, leaders, self.new, longest)
            best = components.rank_numbers(np.minimum(np.minimum.reduceat(ranks, starts), leader_ranks))
        save_array(self.found / f"{number:05d}.leaders.npy", np.stack((leaders, best)))
        return {}

    def copies(self, part: int) -> dict[str, int]:
        """Collects a part's copies and leaders from the files of all ranges."""
        for name, target in (("copies", ""), ("leaders", ".leaders")):
            paths = [self.found / f"{n:05d}.{name}.npy" for n in range(len(self.ranges))]
            found = columns_between(paths, *self.corpus.document_range(part))
            save_array(self._path("copies", part, target), found[:, np.argsort(found[0])])
        return {}

    def gather(self, item: tuple[int, ShardGroup | None]) -> dict[str, int]:
        """Collects a part's pairs and nodes, and writes the n-gram sets of its documents in a pair.

        item: (part, its shard, None for an old part). Returns the number of pairs.
        """
        part, shard = item
        low, high = self.corpus.document_range(part)
        band_search = self.band_search
        pairs = unique_columns(columns_between(band_search.paths("pairs"), low, high))
        save_array(self._path("pairs", part), pairs)
        earlier = columns_between(band_search.paths("earlier"), low, high, rows=1)[0]
        compared = np.unique(np.concatenate((pairs[0], earlier)))
        leaders = open_pairs(self._path("copies", part, ".leaders"))
        nodes = np.union1d(compared, leaders[0])
        best = nodes.copy()
        best[np.searchsorted(nodes, leaders[0])] = leaders[1]
        save_array(self._path("clusters/nodes", part), np.stack((nodes, best)))
        if shard is not None:
            self._save_sets(part, shard, compared - low)
        return {"pairs": pairs.shape[1]}

    def _save_sets(self, part: int, shard: ShardGroup, rows: np.ndarray) -> None:
        """Writes the n-gram sets of a shard's rows, int64, sorted."""
        hashes, ends = [], []
        wanted = set(rows.tolist())
        share = len(rows) / max(1, self.corpus.parts[part].documents)
        compiled = self.text_bytes * share >= COMPILE_FROM * self.config.workers
        documents = shard.read(lambda reject: None) if wanted else ()
        for batch in batches((d for row, d in enumerate(documents) if row in wanted), BATCH_CHARS):
            shingles, first = text_shingles(
                [normalize("NFC", d.text) for d in batch], self.config.ngram, self.config.ngram_unit, compiled
            )
            values, end = distinct_hashes(shingles, first)
            hashes.append(values)
            ends.append(end)
        save_sets(self.folder / "sets" / f"{part:05d}", rows, hashes, ends)

    def verify(self, part: int) -> dict[str, Any]:
        """Writes a part's pairs of near duplicates, sorted by the later and by the earlier document.

        Returns their number, and the parts of the earlier documents.
        """
        pairs = open_pairs(self._path("pairs", part))
        if self.config.verify:
            pairs = pairs[:, self.similarity(*pairs) >= self.config.threshold]
        save_array(self._path("clusters/edges", part), pairs)
        save_array(
            self._path("clusters/edges", part, ".reverse"), pairs[::-1, np.argsort(pairs[1], kind="stable")]
        )
        return {"near": pairs.shape[1], "reached": self.corpus.parts_of(pairs[1])}

    def decide(self, part: int, *, labels: Path) -> dict[str, int]:
        """Writes the DECISIONs of a shard; counts the clusters whose survivor is represented in the part.

        labels: the folder of the last labels.
        """
        nodes = open_pairs(self._path("clusters/nodes", part))[0]
        last = labels / f"{part:05d}.npy"
        rank, node = open_array(last, np.uint64, (2, len(nodes)), remedy=UNFINISHED)
        leaders = open_pairs(self._path("copies", part, ".leaders"))[0]
        joined = np.isin(nodes, leaders)
        neighbours = self.folder / f"clusters/labels/{part:05d}.npy"
        refuse_beyond(rows := open_pairs(neighbours)[0], len(nodes), neighbours)
        joined[rows] = True
        count = int((joined & (node.astype(np.int64) == nodes)).sum())
        if part < self.num_old:
            return {"clusters": count}
        copies, originals = open_pairs(self._path("copies", part))
        rank_of_copies, node_of_copies = components.read_labels(
            self.folder / "clusters/nodes", labels, self.corpus, originals
        )
        number = np.concatenate((nodes, copies))
        own_node = np.concatenate((nodes, originals))  # the node that represents the document
        survivor = components.rank_numbers(np.concatenate((rank, rank_of_copies)))
        survivor_node = np.concatenate((node, node_of_copies)).astype(np.int64)
        removed = np.flatnonzero(survivor != number)
        removed = removed[np.argsort(number[removed])]
        decided = np.empty(len(removed), DECISION)
        decided["row"] = number[removed] - self.corpus.first[part]
        decided["survivor"] = survivor[removed]
        decided["near"] = own_node[removed] != survivor_node[removed]
        decided["similarity"] = 1.0
        near = removed[decided["near"]]
        decided["similarity"][decided["near"]] = self.similarity(own_node[near], survivor_node[near])
        save_array(self._path("decide", part - self.num_old), decided)
        return {"clusters": count}
