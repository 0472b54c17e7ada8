"""sorted keys on disk -> documents that share one, a range of keys at a time.

The keys of a shard lie in files `STEM.NAME.npy`, each sorted, so that a range of keys is one slice of every file:

    exact        uint64 (2, N): 128-bit keys in two halves; all zero for a document that is no copy of anything
    exact_rows   uint32 (N,): the document of each
    keys, rows   uint64 and uint32 (bands, W): band keys and their documents, of the documents that have n-grams
    chars        uint32 (N,): lengths of the texts, in the order of the documents

Memory: 20 bytes for each of the `range_keys` keys at hand, whatever the corpus, and 16 for each pair found.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import manifest

PAIR_WINDOW = 16  # of many documents with one key each is paired with the first and with this many that follow it


@dataclasses.dataclass(frozen=True)
class Part:
    """The keys of one shard. stem: folder/NNNNN."""

    stem: Path
    documents: int

    def load(self, name: str) -> np.ndarray:
        return np.load(f"{self.stem}.{name}.npy", mmap_mode="r")


def save_array(path: Path, array: np.ndarray) -> None:
    with manifest.atomic_write(path) as file:
        np.save(file, array)


def save_exact(stem: Path, keys: list[bytes]) -> None:
    """Writes STEM.exact.npy and STEM.exact_rows.npy; keys: 16 bytes each, by document."""
    every = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    order = np.argsort(every[:, 0], kind="stable")
    save_array(Path(f"{stem}.exact.npy"), np.ascontiguousarray(every[order].T))
    save_array(Path(f"{stem}.exact_rows.npy"), order.astype(np.uint32))


def save_bands(stem: Path, keys: np.ndarray, rows: np.ndarray) -> None:
    """Writes STEM.keys.npy and STEM.rows.npy; keys: uint64 (bands, W); rows: uint32 (W,)."""
    order = np.argsort(keys, axis=1, kind="stable")
    save_array(Path(f"{stem}.keys.npy"), np.take_along_axis(keys, order, axis=1))
    save_array(Path(f"{stem}.rows.npy"), rows[order])


class Corpus:
    """All documents of several parts under one numbering, in the order of the parts."""

    def __init__(self, parts: list[Part], range_keys: int):
        self.parts, self.range_keys = parts, range_keys
        self.first = np.concatenate(([0], np.cumsum([p.documents for p in parts]))).astype(np.int64)  # the first document of every part

    def rows_in_part(self, numbers: np.ndarray, part: int) -> np.ndarray:
        """Of sorted document numbers, those in a part, as rows of it."""
        start, end = np.searchsorted(numbers, self.first[part : part + 2])
        return numbers[start:end] - self.first[part]

    def chars(self, numbers: np.ndarray) -> np.ndarray:
        """Lengths of the texts of sorted document numbers."""
        return np.concatenate([np.empty(0, np.uint32), *(p.load("chars")[self.rows_in_part(numbers, i)] for i, p in enumerate(self.parts))])

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges [low, high) of 64-bit keys that hold about range_keys documents each."""
        count = max(1, -(-int(self.first[-1]) // self.range_keys))
        edges = [(i << 64) // count for i in range(count + 1)]
        yield from itertools.pairwise(edges)

    def exact_pairs(self) -> Iterator[np.ndarray]:
        """(first document, copy) of every exact copy, int64 (N, 2), a range of keys at a time."""
        for low, high in self._ranges():
            keys, numbers = [np.empty((2, 0), np.uint64)], [np.empty(0, np.int64)]
            for part, first in zip(self.parts, self.first):
                exact = part.load("exact")
                chosen = slice(*_within(exact[0], low, high))
                real = exact[:, chosen].any(axis=0)
                keys.append(exact[:, chosen][:, real])
                numbers.append(part.load("exact_rows")[chosen][real] + first)
            key, number = np.concatenate(keys, axis=1), np.concatenate(numbers)
            order = np.lexsort((number, key[1], key[0]))
            key, number = key[:, order], number[order]
            same = np.zeros(len(number), bool)
            same[1:] = (key[:, 1:] == key[:, :-1]).all(axis=0)
            leader = number[np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))]
            yield np.stack((leader[same], number[same]), axis=1)

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
                for part, first in zip(self.parts, self.first):
                    key = part.load("keys")[band]
                    chosen = slice(*_within(key, low, high))
                    keys.append(key[chosen])
                    numbers.append(part.load("rows")[band, chosen] + first)
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
