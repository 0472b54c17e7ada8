"""signatures -> bands -> verified pairs -> clusters -> survivors: remove exact and near duplicates.

Exact copies have the same text but for whitespace. Near copies have a Jaccard similarity of word n-grams of at least
`threshold`: MinHash bands (minhash.py) propose pairs, `verify` compares their n-grams themselves. Pairs and copies
join documents into clusters; one of each survives, the longest or the first. Three passes over the text:

    sign     each shard's exact keys and band keys, sorted, to parts/sign/NNNNN.*.npy
    gather   ids and n-gram hashes of the documents that some key joins, to parts/gather/NNNNN.*
    write    survivors and removed/NNNNN.jsonl: id, reason (exact or near), survivor, similarity to it

Between them this process alone looks for equal keys, a range of keys at a time. On disk a document takes
24 + 12 x bands bytes, a joined one 8 bytes a word more; in memory about 50 bytes for each joined document and 16 for
each pair, and 20 x RANGE_KEYS bytes for the range at hand, whatever the corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from .. import documents, manifest
from ..config import check, option
from ..documents import Document, Shard
from ..executor import map_shards
from . import stage
from .minhash import band_keys, batch_words, choose_bands, jaccard, shingle, signatures
from .stage import DocumentStage, Removed

BATCH_CHARS = 500_000  # texts signed together: their arrays fit the second-level cache
RANGE_KEYS = 1 << 23  # keys compared at a time
PAIR_WINDOW = 16  # of many documents with one key each is paired with the first and with this many that follow it
PAIR_BLOCK = 20_000  # pairs verified by a worker at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupConfig(DocumentStage):
    """What counts as a duplicate, and which one stays."""

    method: Literal["near", "exact"] = option("near", "near duplicates as well as exact ones, or exact ones only")
    threshold: float = option(0.7, "Jaccard similarity of word n-grams from which two documents are near duplicates")
    ngram: int = option(5, "words in an n-gram")
    num_perm: int = option(100, "MinHash permutations to choose bands and rows within")
    bands: int | None = option(None, "bands of the signature (default: chosen for the threshold)")
    rows: int | None = option(None, "signature values in a band (default: chosen for the threshold)")
    missed_weight: float = option(0.98, "weight of missed pairs against false ones when bands and rows are chosen")
    verify: bool = option(True, "compare the n-grams of proposed pairs; without it every proposed pair is a duplicate")
    survivor: Literal["longest", "first"] = option("longest", "which document of a cluster stays; of equally long ones the first")

    def __post_init__(self):
        super().__post_init__()
        check(
            (0 < self.threshold <= 1, f"threshold = {self.threshold} must lie above 0 and at most at 1"),
            (self.ngram >= 1, f"ngram = {self.ngram} must be at least 1"),
            (self.num_perm >= 1, f"num_perm = {self.num_perm} must be at least 1"),
            ((self.bands is None) == (self.rows is None), f"bands = {self.bands} and rows = {self.rows} go together: give both or neither"),
            ((self.bands or 1) >= 1 and (self.rows or 1) >= 1, f"bands = {self.bands} and rows = {self.rows} must be at least 1"),
            (0 <= self.missed_weight <= 1, f"missed_weight = {self.missed_weight} must lie between 0 and 1"),
        )


def dedup(config: DedupConfig) -> dict:
    """Removes duplicates; returns the stage's manifest."""
    run, shards = stage.begin("data dedup", config)
    if run.finished:
        return run.manifest
    bands, rows = banding(config)
    work = run.output / "parts"
    sizes = [s.bytes for s in shards]
    sign = functools.partial(_sign, folder=work / "sign", bands=bands, rows=rows, ngram=config.ngram)
    signed = map_shards(sign, list(enumerate(shards)), done=work / "sign", workers=config.workers, label="data dedup: sign", sizes=sizes)
    corpus = _Corpus(work / "sign", [s["documents"] for s in signed])

    copies = corpus.exact_pairs()
    pairs = corpus.near_pairs(copies[:, 1], bands)
    joined = np.unique(np.concatenate((copies.ravel(), pairs.ravel())))
    gather = functools.partial(_gather, folder=work / "gather", ngram=config.ngram)
    items = [(i, s, corpus.rows_in_shard(joined, i), corpus.rows_in_shard(np.unique(pairs), i)) for i, s in enumerate(shards)]
    map_shards(gather, items, done=work / "gather", workers=config.workers, label="data dedup: gather", sizes=sizes)

    similar = _Similarity(work / "gather", corpus, config.workers)
    candidates = len(pairs)
    if config.verify:
        pairs = pairs[similar("verify", pairs) >= config.threshold]
    decisions = _decide(config, corpus, joined, copies, pairs, similar)
    _write_decisions(work, corpus, joined, decisions)
    clusters = len(np.unique(decisions["survivor"]))
    return stage.map_documents(
        run, config, shards, functools.partial(_remover, str(work / "decide")),
        bands=bands, band_rows=rows, clusters=clusters, candidate_pairs=candidates, near_pairs=len(pairs),
    )


def banding(config: DedupConfig) -> tuple[int, int]:
    """(bands, rows) as given or chosen; (0, 0) where near duplicates are not looked for."""
    if config.method == "exact":
        return 0, 0
    return (config.bands, config.rows) if config.bands else choose_bands(config.threshold, config.num_perm, config.missed_weight)


def exact_key(text: str) -> bytes:
    """128 bits of the text without its whitespace."""
    bare = text.encode().translate(None, string.whitespace.encode()) if text.isascii() else "".join(text.split()).encode()
    return xxhash.xxh3_128_digest(bare)


def _sign(item: tuple[int, Shard], *, folder: Path, bands: int, rows: int, ngram: int) -> dict:
    """Writes one shard's keys: NNNNN.exact.npy (16 bytes each), .chars.npy, and .keys.npy with .rows.npy, by band."""
    index, shard = item
    exact, chars, keys, key_rows = [], [], [], []

    def sign(texts: list[str], first_row: int) -> None:
        words, first = batch_words(texts)
        with_words = np.flatnonzero(np.diff(first) > 0)
        shingles, starts = shingle(words, first, ngram)
        if bands and len(with_words):
            starts = np.append(starts[with_words], starts[-1])  # texts without words have no shingles in between
            keys.append(band_keys(signatures(shingles, starts, bands * rows), bands, rows))
            key_rows.append((first_row + with_words).astype(np.uint32))

    batch, size = [], 0
    for document in documents.read(shard, lambda reject: None):
        exact.append(exact_key(document.text))
        chars.append(len(document.text))
        batch.append(document.text)
        size += len(document.text)
        if size >= BATCH_CHARS:
            sign(batch, len(exact) - len(batch))
            batch, size = [], 0
    sign(batch, len(exact) - len(batch))

    every = np.frombuffer(b"".join(exact), "<u8").reshape(-1, 2)
    band = np.concatenate(keys, axis=1) if keys else np.empty((bands, 0), np.uint64)
    rows_of = np.concatenate(key_rows) if key_rows else np.empty(0, np.uint32)
    order = np.argsort(band, axis=1, kind="stable")
    for name, array in (
        ("exact", every), ("chars", np.array(chars, np.uint32)),
        ("keys", np.take_along_axis(band, order, axis=1)), ("rows", rows_of[order] if len(order) else np.empty((0, 0), np.uint32)),
        ("exact_order", np.argsort(every[:, 0], kind="stable").astype(np.uint32)),
    ):
        _save(folder / f"{index:05d}.{name}.npy", array)
    return {"documents": len(exact)}


def _save(path: Path, array: np.ndarray) -> None:
    with manifest.atomic_write(path) as file:
        np.save(file, array)


class _Corpus:
    """All signed documents under one numbering, in the order of the input, read from disk a range of keys at a time."""

    def __init__(self, folder: Path, counts: list[int]):
        self.folder = folder
        self.first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)  # the first document of every shard

    def load(self, shard: int, name: str) -> np.ndarray:
        return np.load(self.folder / f"{shard:05d}.{name}.npy", mmap_mode="r")

    def rows_in_shard(self, numbers: np.ndarray, shard: int) -> np.ndarray:
        """Of sorted document numbers, those in a shard, as rows of it."""
        start, end = np.searchsorted(numbers, self.first[shard : shard + 2])
        return numbers[start:end] - self.first[shard]

    def chars(self, numbers: np.ndarray) -> np.ndarray:
        """Lengths of the texts of sorted document numbers."""
        shards = range(len(self.first) - 1)
        return np.concatenate([np.empty(0, np.uint32), *(self.load(s, "chars")[self.rows_in_shard(numbers, s)] for s in shards)])

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges [low, high) of 64-bit keys that hold about RANGE_KEYS documents each."""
        count = max(1, -(-int(self.first[-1]) // RANGE_KEYS))
        edges = [(i << 64) // count for i in range(count + 1)]
        yield from itertools.pairwise(edges)

    def exact_pairs(self) -> np.ndarray:
        """(first document, copy) of every exact copy, int64 (N, 2), by copy."""
        found = [np.empty((0, 2), np.int64)]
        for low, high in self._ranges():
            keys, numbers = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
            for shard in range(len(self.first) - 1):
                exact, order = self.load(shard, "exact"), self.load(shard, "exact_order")
                rows = order[slice(*_within(exact[:, 0][order], low, high))]
                keys.append(exact[rows])
                numbers.append(rows + self.first[shard])
            key, number = np.concatenate(keys), np.concatenate(numbers)
            order = np.lexsort((number, key[:, 1], key[:, 0]))
            key, number = key[order], number[order]
            same = np.concatenate(([False], (key[1:] == key[:-1]).all(axis=1))) if len(key) else np.empty(0, bool)
            leader = number[np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))] if len(key) else number
            found.append(np.stack((leader[same], number[same]), axis=1))
        pairs = np.concatenate(found)
        return pairs[np.argsort(pairs[:, 1], kind="stable")]

    def near_pairs(self, copies: np.ndarray, bands: int) -> np.ndarray:
        """(earlier, later) documents with a band in common, exact copies left out, int64 (N, 2), sorted, each once.

        copies: their sorted numbers. Where more than PAIR_WINDOW documents share a key (a template), each is paired
        with the first and with the PAIR_WINDOW that follow it, since all pairs would be quadratic.
        """
        pairs = np.empty((0, 2), np.int64)
        for band in range(bands):
            found = [pairs]
            for low, high in self._ranges():
                keys, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
                for shard in range(len(self.first) - 1):
                    key = self.load(shard, "keys")[band]
                    part = slice(*_within(key, low, high))
                    keys.append(key[part])
                    numbers.append(self.load(shard, "rows")[band, part] + self.first[shard])
                found.append(_pairs_of_equal(np.concatenate(keys), np.concatenate(numbers), copies))
            pairs = _unique_rows(np.concatenate(found))
        return pairs


def _within(keys: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """The slice of sorted keys that lie in [low, high)."""
    start = int(np.searchsorted(keys, np.uint64(low)))
    return start, len(keys) if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))


def _pairs_of_equal(keys: np.ndarray, numbers: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Pairs of documents with equal keys, int64 (N, 2), each in ascending order."""
    keep = ~np.isin(numbers, left_out, assume_unique=True)
    keys, numbers = keys[keep], numbers[keep]
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    equal = keys[1:] == keys[:-1]
    shared = np.zeros(len(keys), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    keys, numbers = keys[shared], numbers[shared]
    found = [np.empty((0, 2), np.int64)]
    for distance in range(1, min(PAIR_WINDOW + 1, len(keys))):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(same):
            break
        found.append(np.stack((numbers[same], numbers[same + distance]), axis=1))
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.empty(0, np.int64)
    leader = np.repeat(numbers[starts], np.diff(np.append(starts, len(keys))))
    far = leader != numbers
    found.append(np.stack((leader[far], numbers[far]), axis=1))
    return np.concatenate(found)


def _unique_rows(pairs: np.ndarray) -> np.ndarray:
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    fresh = np.concatenate(([True], (pairs[1:] != pairs[:-1]).any(axis=1))) if len(pairs) else np.empty(0, bool)
    return pairs[fresh]


def _gather(item, *, folder: Path, ngram: int) -> dict:
    """Writes ids of the joined documents of a shard, and the sorted n-gram hashes of those that a band joins."""
    index, shard, joined, compared = item
    wanted, sets = dict.fromkeys(joined.tolist()), set(compared.tolist())
    hashes, ends = [np.empty(0, np.uint64)], [0]
    batch: list[str] = []
    size = 0

    def flush() -> None:
        shingles, first = shingle(*batch_words(batch), ngram)
        for start, end in itertools.pairwise(first):
            hashes.append(np.unique(shingles[start:end]))
            ends.append(ends[-1] + len(hashes[-1]))
        batch.clear()

    for row, document in enumerate(documents.read(shard, lambda reject: None) if wanted else ()):
        if row in wanted:
            wanted[row] = document.id
            if row in sets:
                batch.append(document.text)
                size += len(document.text)
        if size >= BATCH_CHARS:
            flush()
            size = 0
    flush()
    _save(folder / f"{index:05d}.hashes.npy", np.concatenate(hashes))
    _save(folder / f"{index:05d}.ends.npy", np.array(ends, np.int64))
    _save(folder / f"{index:05d}.compared.npy", compared)
    manifest.write_json(folder / f"{index:05d}.ids.json", list(wanted.values()))
    return {}


class _Similarity:
    """Exact Jaccard similarities of pairs of gathered documents."""

    def __init__(self, folder: Path, corpus: _Corpus, workers: int):
        self.folder, self.corpus, self.workers = folder, corpus, workers

    def __call__(self, name: str, pairs: np.ndarray) -> np.ndarray:
        """float64 (len(pairs),); pairs: int64 (N, 2) document numbers."""
        first = self.corpus.first
        blocks = [(self.folder, first, pairs[i : i + PAIR_BLOCK]) for i in range(0, len(pairs), PAIR_BLOCK)]
        done = self.folder / name
        results = map_shards(_compare, blocks, done=done, workers=self.workers, label=f"data dedup: {name}", sizes=None)
        return np.array([value for r in results for value in r["similarity"]], np.float64)


def _compare(block: tuple[Path, np.ndarray, np.ndarray]) -> dict:
    folder, first, pairs = block
    load = functools.cache(lambda shard, name: np.load(folder / f"{shard:05d}.{name}.npy", mmap_mode="r"))

    @functools.lru_cache(maxsize=4096)
    def hashes(number: int) -> np.ndarray:
        shard = int(np.searchsorted(first, number, side="right")) - 1
        place = int(np.searchsorted(load(shard, "compared"), number - first[shard]))
        start, end = load(shard, "ends")[place : place + 2]
        return np.asarray(load(shard, "hashes")[start:end])

    return {"similarity": [jaccard(hashes(a), hashes(b)) for a, b in pairs.tolist()]}


def _decide(config: DedupConfig, corpus: _Corpus, joined, copies, pairs, similar: _Similarity) -> dict[str, np.ndarray]:
    """What is removed: arrays `removed`, `survivor` (document numbers, by removed), `exact` (bool), `similarity`."""
    a, b = (np.searchsorted(joined, np.concatenate((copies[:, side], pairs[:, side]))) for side in (0, 1))
    cluster = components(len(joined), a, b)
    length = corpus.chars(joined).astype(np.int64) if config.survivor == "longest" else np.zeros(len(joined), np.int64)
    order = np.lexsort((joined, -length, cluster))  # the survivor of each cluster stands first
    best = np.empty(len(joined), np.int64)
    best[cluster[order][::-1]] = order[::-1]
    survivor = joined[best[cluster]]
    gone = survivor != joined
    removed, survivor = joined[gone], survivor[gone]

    # A copy has the n-grams of the first document with its text, which stood for it when pairs were compared.
    def leader(numbers):
        place = np.minimum(np.searchsorted(copies[:, 1], numbers), max(len(copies) - 1, 0))
        return np.where(copies[place, 1] == numbers, copies[place, 0], numbers) if len(copies) else numbers

    original, kept = leader(removed), leader(survivor)
    exact = original == kept
    similarity = np.ones(len(removed))
    if len(near := np.flatnonzero(~exact)):
        similarity[near] = similar("survivors", np.stack((original[near], kept[near]), axis=1))
    return {"removed": removed, "survivor": survivor, "exact": exact, "similarity": similarity}


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The least member of the connected component of each of `count` nodes; a, b: the ends of the edges.

    Union-find without a loop over edges: roots hook onto the least root across an edge, then every path is halved
    until all nodes point at their root; about log(count) rounds.
    """
    parent = np.arange(count)
    while True:
        roots = np.minimum(parent[a], parent[b])
        before = parent.copy()
        np.minimum.at(parent, parent[a], roots)
        np.minimum.at(parent, parent[b], roots)
        while not np.array_equal(parent, jumped := parent[parent]):
            parent = jumped
        if np.array_equal(parent, before):
            return parent


def _write_decisions(work: Path, corpus: _Corpus, joined: np.ndarray, decisions: dict[str, np.ndarray]) -> None:
    """decide/NNNNN.json for every shard: {row: [reason, survivor's id, similarity]}."""
    id_of = _ids(work / "gather", corpus, joined, np.unique(decisions["survivor"]))
    for shard in range(len(corpus.first) - 1):
        start, end = np.searchsorted(decisions["removed"], corpus.first[shard : shard + 2])
        rows = {
            int(decisions["removed"][i] - corpus.first[shard]): [
                "exact" if decisions["exact"][i] else "near",
                id_of[int(decisions["survivor"][i])],
                round(float(decisions["similarity"][i]), 4),
            ]
            for i in range(start, end)
        }
        manifest.write_json(work / "decide" / f"{shard:05d}.json", rows)


def _ids(folder: Path, corpus: _Corpus, joined: np.ndarray, numbers: np.ndarray) -> dict[int, str]:
    """Ids of sorted document numbers; all of them are among the gathered ones, `joined`."""
    found: dict[int, str] = {}
    for shard in range(len(corpus.first) - 1):
        rows = corpus.rows_in_shard(numbers, shard)
        if len(rows):
            ids = manifest.read_json(folder / f"{shard:05d}.ids.json")
            places = np.searchsorted(corpus.rows_in_shard(joined, shard), rows)
            found |= {int(row + corpus.first[shard]): ids[place] for row, place in zip(rows, places)}
    return found


def _remover(folder: str, shard_index: int):
    decisions = {int(row): d for row, d in json.loads(Path(folder, f"{shard_index:05d}.json").read_text(encoding="utf-8")).items()}
    row = -1

    def change(document: Document) -> Document | Removed:
        nonlocal row
        row += 1
        if row not in decisions:
            return document
        reason, survivor, similarity = decisions[row]
        return Removed(reason, {"survivor": survivor, "similarity": similarity})

    return change
