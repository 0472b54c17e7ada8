"""keys on disk -> documents that share one: tasks over bands and ranges of keys, results in files sorted by
document.

Signing leaves in files `STEM.NAME.npy` of every shard, a *part*:

    exact        uint64 (2, N): 128-bit keys in two halves, sorted by the first; all zero for a document that
        is no copy
    exact_rows   uint32 (N,): the document of each
    keys, rows   uint64 (bands, W) and uint32 (W,): band keys of the documents that have n-grams, in their
        order
    chars        uint32 (N,): lengths of the texts, in the order of the documents
    ids, id_ends uint8 and int64 (N + 1,): their ids in UTF-8, back to back

A task takes the keys of one range from all parts, so that equal keys meet. Where a corpus has more than
`range_keys` documents, band keys are sorted first, in groups of parts of about that many: a task then reads
one slice of a file for every group. What a task finds lies in a file sorted by document, of which every part
later reads its slice (`between`). Memory of a task: about 60 bytes for each of its range_keys keys and 16 for
each pair found, at most 17 pairs a key.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ...core import manifest

# of many documents with one key each is paired with the first and with this many that follow it
PAIR_WINDOW = 16


@dataclasses.dataclass(frozen=True)
class Part:
    """The keys of one shard. stem: folder/NNNNN."""

    stem: Path
    documents: int

    def load(self, name: str) -> np.ndarray:
        return mapped(Path(f"{self.stem}.{name}.npy"))


def mapped(path: Path) -> np.ndarray:
    """An array that is read from its file where it is used: a plain one, since slices of np.memmap take ten
    times as long.
    """
    return np.load(path, mmap_mode="r").view(np.ndarray)


def save_array(path: Path, array: np.ndarray) -> None:
    with manifest.atomic_write(path) as file:
        np.save(file, array)


def save_exact(stem: Path, keys: list[bytes]) -> None:
    """Writes STEM.exact.npy and STEM.exact_rows.npy; keys: 16 bytes each, by document."""
    every = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    order = np.argsort(every[:, 0], kind="stable")
    save_array(Path(f"{stem}.exact.npy"), np.ascontiguousarray(every[order].T))
    save_array(Path(f"{stem}.exact_rows.npy"), order.astype(np.uint32))


def save_strings(stem: Path, name: str, texts: list[str]) -> None:
    """Writes STEM.NAMEs.npy and STEM.NAME_ends.npy."""
    encoded = [t.encode("utf-8", "surrogatepass") for t in texts]
    save_array(Path(f"{stem}.{name}s.npy"), np.frombuffer(b"".join(encoded), np.uint8))
    save_array(Path(f"{stem}.{name}_ends.npy"), np.cumsum([0, *map(len, encoded)]))


def load_strings(stem: Path, name: str, rows: Iterable[int]) -> list[str]:
    ends = mapped(Path(f"{stem}.{name}_ends.npy"))
    with open(f"{stem}.{name}s.npy", "rb") as file:
        size = file.seek(0, 2)
        start = size - int(ends[-1])  # behind the header
        found = []
        for row in rows:
            low, high = ends[row : row + 2].tolist()
            file.seek(start + low)
            found.append(file.read(high - low).decode("utf-8", "surrogatepass"))
    return found


class Corpus:
    """All documents of several parts under one numbering, in the order of the parts."""

    def __init__(self, parts: list[Part]):
        self.parts = parts
        # the first document of every part
        self.first = np.concatenate(([0], np.cumsum([p.documents for p in parts]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.first[-1])

    def by_part(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(part, places in `numbers`, rows of the part) for every part that has some of these documents."""
        part = np.searchsorted(self.first, numbers, side="right") - 1
        order = np.argsort(part, kind="stable")
        found, starts = np.unique(part[order], return_index=True)
        for p, places in zip(found.tolist(), np.split(order, starts[1:])):
            yield p, places, numbers[places] - self.first[p]

    def look_up(self, numbers: np.ndarray, name: str, dtype) -> np.ndarray:
        """The value that each document has in the array `name` of its part."""
        values = np.empty(len(numbers), dtype)
        for part, places, rows in self.by_part(numbers):
            values[places] = self.parts[part].load(name)[rows]
        return values


def key_ranges(documents: int, range_keys: int) -> list[tuple[int, int]]:
    """Ranges [low, high) of 64-bit keys that hold about range_keys documents each."""
    count = max(1, -(-documents // range_keys))
    return list(itertools.pairwise((i << 64) // count for i in range(count + 1)))


def between(paths: Iterable[Path], low: int, high: int, rows: int = 2) -> np.ndarray:
    """The columns whose first value lies in [low, high) of files of int64 (rows, N) sorted by it; by file."""
    found = [np.empty((rows, 0), np.int64)]
    for path in paths:
        array = mapped(path)
        found.append(array[:, slice(*np.searchsorted(array[0], (low, high)))])
    return np.concatenate(found, axis=1)


def unique_columns(pairs: np.ndarray) -> np.ndarray:
    """Columns of int64 (2, N) sorted by first and second value, each once."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    fresh = np.ones(pairs.shape[1], bool)
    fresh[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return pairs[:, fresh]


def exact_copies(corpus: Corpus, low: int, high: int) -> np.ndarray:
    """(copy, first document with its key), int64 (2, N), of the keys in a range, sorted by the copy."""
    keys, numbers = [np.empty((2, 0), np.uint64)], [np.empty(0, np.int64)]
    for part, first in zip(corpus.parts, corpus.first):
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
    copies = np.stack((number[same], leader[same]))
    return copies[:, np.argsort(copies[0])]


class BandSearch:
    """The search for documents that share a band key.

    copies: a file NNNNN.npy for every part, int64 (2, N), whose first row names documents that are left out.
    """

    def __init__(self, corpus: Corpus, copies: list[Path], bands: int, range_keys: int, folder: Path):
        self.corpus, self.copies, self.bands, self.range_keys, self.folder = (
            corpus,
            copies,
            bands,
            range_keys,
            folder,
        )
        self.ranges = key_ranges(len(corpus), range_keys)
        self.groups = [range(len(corpus.parts))]  # of parts whose keys are sorted together
        if len(self.ranges) > 1:
            number = (corpus.first[:-1] // range_keys).tolist()
            self.groups = [[i for i, n in enumerate(number) if n == group] for group in sorted(set(number))]

    def sorting_tasks(self) -> list[tuple[int, int]]:
        """Arguments of `sort`; none where every search sorts for itself."""
        return (
            [(group, band) for group in range(len(self.groups)) for band in range(self.bands)]
            if len(self.groups) > 1
            else []
        )

    def sort(self, task: tuple[int, int]) -> dict:
        """Writes the keys of a band of a group of parts, sorted: uint64 (2, N), keys and document numbers."""
        keys, numbers = self._collect(*task)
        order = np.argsort(keys, kind="stable")
        save_array(self._sorted_path(*task), np.stack((keys[order], numbers[order].view(np.uint64))))
        return {}

    def tasks(self) -> list[tuple[int, int, int, int]]:
        """Arguments of `pairs`: (number of the task, bands [start, end), range); of a small corpus, all bands
        at once.
        """
        step = max(1, self.range_keys // max(1, len(self.corpus)))
        each = [
            (band, min(band + step, self.bands), r)
            for band in range(0, self.bands, step)
            for r in range(len(self.ranges))
        ]
        return [(number, *task) for number, task in enumerate(each)]

    def paths(self, name: str) -> list[Path]:
        return [self._path(number, name) for number, *_ in self.tasks()]

    def pairs(self, task: tuple[int, int, int, int], *, new: int) -> dict:
        """Writes NNNNN.pairs.npy, int64 (2, N): (later, earlier) documents with a band in common, sorted by
        the later one,
        which is `new` or beyond; and NNNNN.earlier.npy, int64 (1, N), the earlier ones, each once."""
        number, start, end, key_range = task
        pairs = np.empty((2, 0), np.int64)
        for band in range(start, end):
            keys, numbers = (
                self._collect(0, band)
                if len(self.groups) == 1
                else self._slices(band, *self.ranges[key_range])
            )
            found = _pairs_of_equal(keys, numbers)
            pairs = unique_columns(np.concatenate((pairs, found[:, found[0] >= new]), axis=1))
        save_array(self._path(number, "pairs"), pairs)
        save_array(self._path(number, "earlier"), np.unique(pairs[1])[None])
        return {}

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:05d}.{name}.npy"

    def _sorted_path(self, group: int, band: int) -> Path:
        return self.folder / f"sorted/{group:05d}.{band:03d}.npy"

    def _collect(self, group: int, band: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys, document numbers in ascending order) of a group's documents but for the copies."""
        keys, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for part in self.groups[group]:
            own = self.corpus.parts[part].load("rows") + self.corpus.first[part]
            copies = mapped(self.copies[part])[0]
            keep = ~np.isin(own, copies, assume_unique=True)
            keys.append(self.corpus.parts[part].load("keys")[band][keep])
            numbers.append(own[keep])
        return np.concatenate(keys), np.concatenate(numbers)

    def _slices(self, band: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for group in range(len(self.groups)):
            array = mapped(self._sorted_path(group, band))
            found.append(array[:, slice(*_within(array[0], low, high))])
        keys, numbers = np.concatenate(found, axis=1)
        return keys, numbers.view(np.int64)


def _within(keys: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """The slice of sorted keys that lie in [low, high)."""
    start = int(np.searchsorted(keys, np.uint64(low)))
    return start, len(keys) if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))


def _pairs_of_equal(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(later, earlier) documents with equal keys, int64 (2, N); a pair may repeat.

    Up to PAIR_WINDOW + 1 documents of one key all make pairs with each other. Of more (a template), each is
    paired with the first and with the PAIR_WINDOW that follow it, since all pairs would be quadratic. Near
    duplicates within a template are lost only where all bands that they share come from it: docs/scale.md has
    the figures. Following in the order of the other bands, the most similar ones near each other, found no
    more of them.
    """
    order = np.argsort(keys)
    equal = keys[order[1:]] == keys[order[:-1]]
    shared = np.zeros(len(keys), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    order = order[shared]  # few: only these need the exact order
    order = order[np.lexsort((numbers[order], keys[order]))]
    keys, numbers = keys[order], numbers[order]
    found = [np.empty((2, 0), np.int64)]
    for distance in range(1, min(PAIR_WINDOW + 1, len(keys))):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(same):
            break
        found.append(np.stack((numbers[same + distance], numbers[same])))
    starts = (
        np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        if len(keys)
        else np.empty(0, np.int64)
    )
    leader = np.repeat(numbers[starts], np.diff(np.append(starts, len(keys))))
    found.append(np.stack((numbers, leader))[:, leader != numbers])
    return np.concatenate(found, axis=1)
