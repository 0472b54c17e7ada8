"""Jaccard similarities of pairs of documents, from their n-gram sets on disk.

For each shard, FOLDER/NNNNN.compared.npy has the rows (int64, sorted) of the documents in a candidate pair,
.hashes.npy the hashes of their n-grams (uint64, sorted and distinct in each document), and .ends.npy where
the hashes of each document end (int64, beginning with 0). For documents of an earlier run, whose text is not
read again, the saved bottom-k sketches (signatures.py) are compared instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.arrays import UNFINISHED, open_array
from ...core.config import UserError
from . import signatures
from .key_index import Corpus, find_rows, save_array

BLOCK_PAIRS, BLOCK_HASHES = (
    4096,
    1 << 21,
)  # compared at once: 16 MB of hashes, small enough to sort in the cache


def save_sets(stem: Path, rows: np.ndarray, hashes: list[np.ndarray], ends: list[np.ndarray]) -> None:
    """Writes the n-gram sets of a shard's rows; hashes, ends: results of `distinct_hashes`, by batch."""
    sizes = [np.diff(e, prepend=0) for e in ends]
    save_array(Path(f"{stem}.compared.npy"), rows)
    save_array(Path(f"{stem}.hashes.npy"), np.concatenate([np.empty(0, np.uint64), *hashes]))
    save_array(Path(f"{stem}.ends.npy"), np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes])))


def distinct_hashes(shingles: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sorted distinct hashes of each text, uint64 (N,); where those of each text end, int64 (texts,)).

    shingles, first: as shingles.shingle returns them.
    """
    shingles = shingles.copy()
    for start, end in zip(first[:-1].tolist(), first[1:].tolist()):
        shingles[start:end].sort()
    is_first = np.ones(len(shingles), bool)
    is_first[1:] = shingles[1:] != shingles[:-1]
    is_first[first[:-1][np.diff(first) > 0]] = True
    return shingles[is_first], np.concatenate(([0], np.cumsum(is_first)))[first[1:]]


def distinct_in_place(shingles: np.ndarray) -> np.ndarray:
    """The sorted distinct hashes of one text, in the memory of all its hashes, which are lost."""
    shingles.sort()
    count, before = 0, None
    for start in range(0, len(shingles), BLOCK_HASHES):
        block = shingles[start : start + BLOCK_HASHES]
        is_first = np.append(before is None or block[0] != before, block[1:] != block[:-1])
        before, block = block[-1].copy(), block[is_first]
        shingles[count : count + len(block)] = block
        count += len(block)
    return shingles[:count] if 2 * count > len(shingles) else shingles[:count].copy()


def jaccard_similarities(hashes: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Jaccard similarities of pairs of sets, float64 (P,); that of two empty sets is 1.

    hashes: sets of 64-bit hashes, sorted and distinct. a, b: int (P,), the indices of the sets of each pair.
    """
    count = len(a)
    bits = np.uint64(max(1, count - 1).bit_length())
    sizes = np.array([len(h) for h in hashes], np.int64)
    # All sets of all pairs are sorted at once. A member is the number of the pair in the upper bits and the
    # upper bits of the hash below. 4096 pairs leave 52 bits: one false match in some 10^10 pairs.
    sets = [hashes[i] for pair in zip(a.tolist(), b.tolist()) for i in pair]
    members = np.concatenate([np.empty(0, np.uint64), *sets]) >> bits
    numbers = np.repeat(np.arange(count, dtype=np.uint64), sizes[a] + sizes[b])
    members |= numbers << (np.uint64(64) - bits)
    members.sort(kind="stable")  # timsort, which merges the sorted runs that the sets are
    twice = members[1:][members[1:] == members[:-1]] >> (np.uint64(64) - bits)
    common = np.bincount(twice.astype(np.int64), minlength=count)
    union = sizes[a] + sizes[b] - common
    similarities: np.ndarray = np.divide(common, union, out=np.ones(count), where=union > 0)
    return similarities


class JaccardSimilarity:
    """The Jaccard similarities of pairs of documents of a corpus, whose first `num_old` parts are old."""

    def __init__(self, folder: Path, corpus: Corpus, num_old: int):
        """folder: of the n-gram sets that `save_sets` wrote."""
        self.folder, self.corpus, self.num_old = folder, corpus, num_old
        self.new = int(corpus.first[num_old])

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float64 (P,). a, b: int64 (P,), the document numbers of each pair."""
        similarities = np.empty(len(a))
        lower = np.minimum(a, b)
        order = np.argsort(lower, kind="stable")  # so that a block reads few files
        for block in self._blocks(order, a, b):
            compare = self._from_sketches if (lower[block] < self.new).any() else self._from_sets
            similarities[block] = compare(a[block], b[block])
        return similarities

    def _blocks(self, order: np.ndarray, a: np.ndarray, b: np.ndarray) -> Sequence[np.ndarray]:
        """Indices of pairs in blocks: those with an old document first, then those without.

        A block has at most BLOCK_PAIRS pairs and BLOCK_HASHES hashes, unless one pair has more.
        """
        is_old = np.minimum(a, b)[order] < self.new
        old, rest = order[is_old], order[~is_old]
        blocks = [old[i : i + BLOCK_PAIRS] for i in range(0, len(old), BLOCK_PAIRS)]
        for start in range(0, len(rest), BLOCK_PAIRS):
            pairs = rest[start : start + BLOCK_PAIRS]
            total = np.cumsum(self._set_sizes(a[pairs]) + self._set_sizes(b[pairs]))
            blocks += np.split(pairs, np.flatnonzero(np.diff(total // BLOCK_HASHES)) + 1)
        return blocks

    def _set_sizes(self, numbers: np.ndarray) -> np.ndarray:
        sizes = np.empty(len(numbers), np.int64)
        for part, places, rows in self.corpus.by_part(numbers):
            starts, ends, _ = self._spans(part, rows)
            sizes[places] = ends - starts
        return sizes

    def _spans(self, part: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(where the hashes of some rows of a part begin and end, the hashes of the part)."""
        path, all_ends_path, hashes_path = (
            self.folder / f"{part:05d}.{name}.npy" for name in ("compared", "ends", "hashes")
        )
        compared = open_array(path, np.int64, (None,), remedy=UNFINISHED)
        all_ends = open_array(all_ends_path, np.int64, (len(compared) + 1,), remedy=UNFINISHED)
        hashes = open_array(hashes_path, np.uint64, (None,), remedy=UNFINISHED)
        chosen = find_rows(compared, rows, path)
        starts, ends = all_ends[chosen], all_ends[chosen + 1]
        if ((starts < 0) | (starts > ends) | (ends > len(hashes))).any():
            raise UserError(f"{path}: has n-grams that are not in the files beside it; {UNFINISHED}")
        return starts, ends, hashes

    def _sets(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The n-gram sets of documents of this run."""
        sets: list[np.ndarray] = [np.empty(0, np.uint64)] * len(numbers)
        for part, places, rows in self.corpus.by_part(numbers):
            starts, ends, hashes = self._spans(part, rows)
            for place, start, end in zip(places.tolist(), starts.tolist(), ends.tolist()):
                sets[place] = hashes[start:end]
        return sets

    def _from_sets(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        numbers, places = np.unique(np.concatenate((a, b)), return_inverse=True)
        return jaccard_similarities(self._sets(numbers), places[: len(a)], places[len(a) :])

    def _from_sketches(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        numbers, places = np.unique(np.concatenate((a, b)), return_inverse=True)
        is_old = numbers < self.new
        new_sketches = [signatures.sketch(s) for s in self._sets(numbers[~is_old])]
        old_sketches: list[np.ndarray] = [np.empty(0, np.uint32)] * int(is_old.sum())
        for part, old_places, rows in self.corpus.by_part(numbers[is_old]):
            of_row = signatures.saved_sketches(self.corpus.parts[part])
            for place, row in zip(old_places.tolist(), rows.tolist()):
                old_sketches[place] = of_row(row)
        sketches = old_sketches + new_sketches  # in the order of `numbers`, which are sorted
        return np.array(
            [
                signatures.sketch_jaccard(sketches[i], sketches[j])
                for i, j in zip(places[: len(a)], places[len(a) :])
            ]
        )
