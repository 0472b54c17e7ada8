"""n-gram sets of the documents that some key joins, on disk -> Jaccard similarities of pairs of them.

Of every shard, FOLDER/NNNNN.compared.npy names the rows (int64, sorted) that stand in a pair, .hashes.npy the
hashes of their n-grams (uint64, each once), and .ends.npy where each one's end (int64, from 0). Of old
documents, whose text nobody reads, the saved sketches (saved.py) are compared instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import signatures
from .key_index import Corpus, mapped, save_array
from .minhash import jaccards

BLOCK_PAIRS, BLOCK_HASHES = 4096, 1 << 21  # compared at once: 16 MB of hashes, sorted in the cache's reach


def save_sets(stem: Path, rows: np.ndarray, hashes: list[np.ndarray], ends: list[np.ndarray]) -> None:
    """Writes the sets of a shard's rows; hashes, ends: of batches of them."""
    save_array(Path(f"{stem}.compared.npy"), rows)
    save_array(Path(f"{stem}.hashes.npy"), np.concatenate([np.empty(0, np.uint64), *hashes]))
    save_array(
        Path(f"{stem}.ends.npy"),
        np.cumsum(np.concatenate([np.zeros(1, np.int64), *(np.diff(e, prepend=0) for e in ends)])),
    )


def distinct(shingles: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the hashes of every text sorted, each once; where each text's end); shingles, first as of
    shingles.shingle.
    """
    shingles = shingles.copy()
    for start, end in zip(first[:-1].tolist(), first[1:].tolist()):
        shingles[start:end].sort()
    fresh = np.ones(len(shingles), bool)
    fresh[1:] = shingles[1:] != shingles[:-1]
    fresh[first[:-1][np.diff(first) > 0]] = True
    return shingles[fresh], np.concatenate(([0], np.cumsum(fresh)))[first[1:]]


class Similarity:
    """The similarities of pairs of a corpus, whose first `num_old` parts are old."""

    def __init__(self, folder: Path, corpus: Corpus, num_old: int):
        self.folder, self.corpus, self.num_old = folder, corpus, num_old
        self.new = int(corpus.first[num_old])

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float64 (P,); a, b: int64 (P,) document numbers."""
        similar = np.empty(len(a))
        lower = np.minimum(a, b)
        by_place = np.argsort(lower, kind="stable")  # so that a block reads few files
        for block in self._blocks(by_place, a, b):
            compare = self._sketched if (lower[block] < self.new).any() else self._exact
            similar[block] = compare(a[block], b[block])
        return similar

    def _blocks(self, order: np.ndarray, a: np.ndarray, b: np.ndarray) -> Sequence[np.ndarray]:
        """Runs of pairs, of old documents or of new ones alone, with at most so many hashes unless one pair
        has more.
        """
        is_old = np.minimum(a, b)[order] < self.new
        old, rest = order[is_old], order[~is_old]
        blocks = [old[i : i + BLOCK_PAIRS] for i in range(0, len(old), BLOCK_PAIRS)]
        for start in range(0, len(rest), BLOCK_PAIRS):
            part = rest[start : start + BLOCK_PAIRS]
            total = np.cumsum(self._sizes(a[part]) + self._sizes(b[part]))
            blocks += np.split(part, np.flatnonzero(np.diff(total // BLOCK_HASHES)) + 1)
        return blocks

    def _sizes(self, numbers: np.ndarray) -> np.ndarray:
        sizes = np.empty(len(numbers), np.int64)
        for part, places, rows in self.corpus.by_part(numbers):
            ends, chosen = self._load(part, "ends"), np.searchsorted(self._load(part, "compared"), rows)
            sizes[places] = ends[chosen + 1] - ends[chosen]
        return sizes

    def _load(self, part: int, name: str) -> np.ndarray:
        return mapped(self.folder / f"{part:05d}.{name}.npy")

    def _sets(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The sets of documents of this run."""
        sets: list[np.ndarray] = [np.empty(0, np.uint64)] * len(numbers)
        for part, places, rows in self.corpus.by_part(numbers):
            hashes, ends = self._load(part, "hashes"), self._load(part, "ends")
            chosen = np.searchsorted(self._load(part, "compared"), rows)
            for place, start, end in zip(places.tolist(), ends[chosen].tolist(), ends[chosen + 1].tolist()):
                sets[place] = hashes[start:end]
        return sets

    def _exact(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        numbers, places = np.unique(np.concatenate((a, b)), return_inverse=True)
        return jaccards(self._sets(numbers), places[: len(a)], places[len(a) :])

    def _sketched(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        numbers, places = np.unique(np.concatenate((a, b)), return_inverse=True)
        old = numbers < self.new
        sketches = [signatures.sketch(s) for s in self._sets(numbers[~old])]
        old_sketches: list[np.ndarray] = [np.empty(0, np.uint32)] * int(old.sum())
        for part, where, rows in self.corpus.by_part(numbers[old]):
            of_row = signatures.sketches_of(self.corpus.parts[part])
            for place, row in zip(where.tolist(), rows.tolist()):
                old_sketches[place] = of_row(row)
        sketches = old_sketches + sketches  # numbers are sorted: the old ones come first
        return np.array(
            [
                signatures.sketch_jaccard(sketches[i], sketches[j])
                for i, j in zip(places[: len(a)], places[len(a) :])
            ]
        )
