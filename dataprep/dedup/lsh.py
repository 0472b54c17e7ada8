"""keys of all shards -> what each shard loses, why, to whom: the steps of dedup.py between its first and its
last.

Every step is a map over shards (`parts`, of which the first `num_old` are old) or over ranges of keys; its
tasks read slices of what the step before left in files, and hold no more than what they read. Files, in the
folder of the work:

    search/N/NNNNN.*          what tasks over N ranges of keys found (keys.py)
    copies/NNNNN.npy          int64 (2, N): (copy, first document with its key) of a part, sorted
    copies/NNNNN.leaders.npy  int64 (2, N): (first document of some copies, the best of all of them), sorted
    pairs/NNNNN.npy           int64 (2, N): (later, earlier) documents with a band in common, by the part of
        the later
    sets/, clusters/          similarity.py, clusters.py
    decide/NNNNN.npy          DECISION: the documents that a shard loses, by row
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ...core.executor import map_shards
from ...documents import reader
from ...documents.reader import Shard
from . import components
from .jaccard import Similarity, distinct, save_sets
from .key_index import (
    BandSearch,
    Corpus,
    between,
    exact_copies,
    key_ranges,
    mapped,
    save_array,
    unique_columns,
)
from .minhash import text_shingles
from .shingles import COMPILE_FROM, batches

FEW = 1 << 20  # documents whose keys one process searches quicker than others would start
FEW_PAIRS = 100_000  # pairs that one process verifies quicker
# of inputs that one process reads in two seconds, less than others take to repay their start
FEW_BYTES = 250_000_000
DECISION = np.dtype([("row", np.uint32), ("near", bool), ("survivor", np.int64), ("similarity", np.float64)])


def decide(search: Search, shards: list[Shard]) -> dict:
    """Runs all steps, the last of which writes decide/; returns {"clusters", "candidate_pairs",
    "near_pairs"}.
    """
    where, work = search.config.where, search.folder
    few = where if len(search.corpus) > FEW else {**where, "workers": 1}
    parts = list(range(len(search.corpus.parts)))
    texts = [(part, shards[part - search.num_old] if part >= search.num_old else None) for part in parts]
    sizes = [shard.bytes if shard else 0 for _, shard in texts]
    map_shards(
        search.exact,
        list(enumerate(search.ranges)),
        done=search.found / "exact",
        **few,
        label="data dedup: exact",
        unit="ranges",
    )
    map_shards(search.copies, parts, done=work / "copies", **few, label="data dedup: copies", unit="parts")
    band_search = search.band_search
    map_shards(
        band_search.sort,
        band_search.sorting_tasks(),
        done=search.found / "sorted",
        **few,
        label="data dedup: sort",
        unit="bands",
    )
    near = functools.partial(band_search.pairs, new=search.new)
    map_shards(
        near, band_search.tasks(), done=search.found / "near", **few, label="data dedup: near", unit="bands"
    )
    reading = where if sum(sizes) > FEW_BYTES else few
    gathered = map_shards(
        search.gather, texts, done=work / "pairs", **reading, label="data dedup: gather", sizes=sizes
    )
    candidates = sum(g["pairs"] for g in gathered)
    comparing = where if candidates > FEW_PAIRS else few
    verified = map_shards(
        search.verify,
        parts,
        done=work / "clusters/edges",
        **comparing,
        label="data dedup: verify",
        unit="parts",
    )
    labels = components.survivors(
        work / "clusters",
        search.corpus,
        search.new,
        search.config.survivor == "longest",
        label="data dedup: clusters",
        **few,
    )
    choose = functools.partial(search.choose, labels=labels)
    chosen = map_shards(
        choose, parts, done=work / "decide", **comparing, label="data dedup: decide", unit="parts"
    )
    return {
        "clusters": sum(c["clusters"] for c in chosen),
        "candidate_pairs": candidates,
        "near_pairs": sum(v["near"] for v in verified),
    }


@dataclasses.dataclass(frozen=True)
class Search:
    """The tasks of all steps and what they have in common. config: a DedupConfig."""

    config: object
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
        # other ranges on a rerun find the same, in other files
        return self.folder / f"search/{len(self.ranges)}"

    @property
    def band_search(self) -> BandSearch:
        copies = [self._path("copies", part) for part in range(len(self.corpus.parts))]
        return BandSearch(self.corpus, copies, self.bands, self.config.range_keys, self.found)

    @property
    def similarity(self) -> Similarity:
        return Similarity(self.folder / "sets", self.corpus, self.num_old)

    def _path(self, folder: str, part: int, name: str = "") -> Path:
        return self.folder / folder / f"{part:05d}{name}.npy"

    def _within(self, part: int) -> tuple[int, int]:
        return tuple(self.corpus.first[part : part + 2].tolist())

    def exact(self, task: tuple[int, tuple[int, int]]) -> dict:
        """Writes the copies in a range of keys, and the best of each document that has some."""
        number, (low, high) = task
        copies = exact_copies(self.corpus, low, high)
        save_array(self.found / f"{number:05d}.copies.npy", copies)
        copies = copies[:, copies[0] >= self.new]  # what is old has been decided
        copies = copies[:, np.argsort(copies[1], kind="stable")]
        leaders, starts = np.unique(copies[1], return_index=True)
        best = leaders.copy()
        if len(leaders):
            longest = self.config.survivor == "longest"
            rank = np.minimum.reduceat(components.ranks(self.corpus, copies[0], self.new, longest), starts)
            best = components.ranked(
                np.minimum(rank, components.ranks(self.corpus, leaders, self.new, longest))
            )
        save_array(self.found / f"{number:05d}.leaders.npy", np.stack((leaders, best)))
        return {}

    def copies(self, part: int) -> dict:
        """Gathers a part's copies and leaders of copies from all ranges."""
        for name, target in (("copies", ""), ("leaders", ".leaders")):
            found = between(
                [self.found / f"{n:05d}.{name}.npy" for n in range(len(self.ranges))], *self._within(part)
            )
            save_array(self._path("copies", part, target), found[:, np.argsort(found[0])])
        return {}

    def gather(self, item: tuple[int, Shard | None]) -> dict:
        """Gathers a part's pairs and nodes, and writes the n-grams of its documents that stand in a pair."""
        part, shard = item
        low, high = self._within(part)
        band_search = self.band_search
        pairs = unique_columns(between(band_search.paths("pairs"), low, high))
        save_array(self._path("pairs", part), pairs)
        earlier = between(band_search.paths("earlier"), low, high, rows=1)[0]
        compared = np.unique(np.concatenate((pairs[0], earlier)))
        leaders = np.load(self._path("copies", part, ".leaders"))
        nodes = np.union1d(compared, leaders[0])
        best = nodes.copy()
        best[np.searchsorted(nodes, leaders[0])] = leaders[1]
        save_array(self._path("clusters/nodes", part), np.stack((nodes, best)))
        if shard is not None:
            self._save_sets(part, shard, compared - low)
        return {"pairs": pairs.shape[1]}

    def _save_sets(self, part: int, shard: Shard, rows: np.ndarray) -> None:
        hashes, ends = [], []
        wanted = set(rows.tolist())
        share = len(rows) / max(1, self.corpus.parts[part].documents)
        compiled = self.text_bytes * share >= COMPILE_FROM * self.config.workers
        texts = (
            d
            for row, d in enumerate(reader.read(shard, lambda reject: None) if wanted else ())
            if row in wanted
        )
        for batch in batches(texts):
            shingles, first, _ = text_shingles(
                [d.text for d in batch], self.config.ngram, self.config.ngram_unit, compiled
            )
            values, end = distinct(shingles, first)
            hashes.append(values)
            ends.append(end)
        save_sets(self.folder / "sets" / f"{part:05d}", rows, hashes, ends)

    def verify(self, part: int) -> dict:
        """Writes the pairs of a part that are near duplicates, for both of their documents."""
        pairs = np.load(self._path("pairs", part))
        if self.config.verify:
            pairs = pairs[:, self.similarity(*pairs) >= self.config.threshold]
        save_array(self._path("clusters/edges", part), pairs)
        save_array(
            self._path("clusters/edges", part, ".reverse"), pairs[::-1, np.argsort(pairs[1], kind="stable")]
        )
        return {"near": pairs.shape[1]}

    def choose(self, part: int, *, labels: Path) -> dict:
        """Writes decide/ for a shard; counts the clusters whose survivor's node lies in the part."""
        nodes = np.load(self._path("clusters/nodes", part))[0]
        rank, node = np.load(labels / f"{part:05d}.npy")
        leaders = np.load(self._path("copies", part, ".leaders"))[0]
        joined = np.isin(nodes, leaders)
        joined[mapped(self.folder / f"clusters/labels/{part:05d}.npy")[0]] = True
        count = int((joined & (node.astype(np.int64) == nodes)).sum())
        if part < self.num_old:
            return {"clusters": count}
        copies, originals = np.load(self._path("copies", part))
        rank_of, node_of = components.labels_of(
            self.folder / "clusters/nodes", labels, self.corpus, originals
        )
        number = np.concatenate((nodes, copies))
        original = np.concatenate((nodes, originals))  # what stood for it when pairs were compared
        survivor = components.ranked(np.concatenate((rank, rank_of)))
        kept = np.concatenate((node, node_of)).astype(np.int64)
        gone = np.flatnonzero(survivor != number)
        gone = gone[np.argsort(number[gone])]
        decided = np.empty(len(gone), DECISION)
        decided["row"] = number[gone] - self.corpus.first[part]
        decided["survivor"], decided["near"], decided["similarity"] = (
            survivor[gone],
            original[gone] != kept[gone],
            1.0,
        )
        near = gone[decided["near"]]
        decided["similarity"][decided["near"]] = self.similarity(original[near], kept[near])
        save_array(self._path("decide", part - self.num_old), decided)
        return {"clusters": count}
