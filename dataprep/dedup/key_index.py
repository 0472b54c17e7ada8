"""Find documents with equal keys, on disk, by tasks over bands and ranges of keys.

Signing writes files `STEM.NAME.npy` for each shard, which make a *part* of the corpus:

    exact        uint64 (2, N): 128-bit keys in two halves, sorted by the first half; all zero for a document
                 that cannot be a copy
    exact_rows   uint32 (N,): the document of each key
    keys, rows   uint64 (bands, W) and uint32 (W,): band keys of the documents that have n-grams, in the order
                 of the documents
    chars        uint32 (N,): lengths of the texts, in the order of the documents
    ids, id_ends uint8 and int64 (N + 1,): their ids in UTF-8, concatenated, and where each ends

Somebody else may have made the files of an unfinished run that is continued. So the headers are compared with
what is expected, and numbers of documents and rows with the corpus, before they are used.

A task reads the keys of one range from all parts, so that it has all equal keys. If a corpus has more than
`range_keys` documents, band keys are sorted first, in groups of parts with about that many documents; a task
then reads one slice of a file per group. The result of a task is a file sorted by document, of which each
part later reads its slice (`columns_between`). A task needs about 60 bytes for each of its range_keys keys
and 16 for each pair that it finds, at most 17 pairs per key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...core import manifest, paths
from ...core.arrays import UNFINISHED, beyond, open_array, refuse_beyond
from ...core.config import UserError

# If many documents have the same key, each is paired with the first and with this many that follow it.
PAIR_WINDOW = 16
DTYPES: dict[str, npt.DTypeLike] = {
    "exact": np.uint64,
    "exact_rows": np.uint32,
    "chars": np.uint32,
    "keys": np.uint64,
    "rows": np.uint32,
    "sketch": np.uint32,
    "sketch_ends": np.int64,
}


@dataclasses.dataclass(frozen=True)
class ShardKeys:
    """The keys of one shard, of this run or an earlier one. stem: folder/NNNNN. documents: their number."""

    stem: Path
    documents: int

    def path(self, name: str) -> Path:
        return Path(f"{self.stem}.{name}.npy")

    def load(self, name: str, *shape: int | None) -> np.ndarray:
        """An array of this shape; None: any length."""
        return open_array(self.path(name), DTYPES[name], shape, remedy=UNFINISHED)

    def rows(self, name: str, count: int | None, chosen: slice) -> np.ndarray:
        """Some values (count values in all) of an array of rows, each of which is a document of the part."""
        found = self.load(name, count)[chosen]
        refuse_beyond(found, self.documents, self.path(name))
        return found


def open_pairs(path: Path, rows: int = 2, dtype: npt.DTypeLike = np.int64) -> np.ndarray:
    """An array (rows, N), memory-mapped."""
    return open_array(path, dtype, (rows, None), remedy=UNFINISHED)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file; its rows are in C's order, as open_array needs them."""
    with manifest.atomic_write(path) as file:
        np.save(file, np.ascontiguousarray(array))


def save_exact_keys(stem: Path, keys: list[bytes]) -> None:
    """Writes STEM.exact.npy and STEM.exact_rows.npy; keys: 16 bytes for each document."""
    save_sorted_keys(stem, np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2))


def save_sorted_keys(stem: Path, every: np.ndarray) -> None:
    """The same for keys as uint64 (N, 2)."""
    order = np.argsort(every[:, 0], kind="stable")
    save_array(Path(f"{stem}.exact.npy"), every[order].T)
    save_array(Path(f"{stem}.exact_rows.npy"), order.astype(np.uint32))


def save_strings(stem: Path, name: str, texts: list[str]) -> None:
    """Writes STEM.NAMEs.npy and STEM.NAME_ends.npy."""
    encoded = [t.encode("utf-8", "surrogatepass") for t in texts]
    save_array(Path(f"{stem}.{name}s.npy"), np.frombuffer(b"".join(encoded), np.uint8))
    save_array(Path(f"{stem}.{name}_ends.npy"), np.cumsum([0, *map(len, encoded)]))


def load_strings(stem: Path, name: str, rows: Iterable[int]) -> list[str]:
    """The strings of some rows of what `save_strings` wrote; reads only these from the file."""
    ends = open_array(f"{stem}.{name}_ends.npy", np.int64, (None,), remedy=UNFINISHED)
    path = paths.regular(f"{stem}.{name}s.npy")
    total = len(open_array(path, np.uint8, (None,), remedy=UNFINISHED))
    with open(path, "rb") as file:
        start = file.seek(0, 2) - total  # after the header of the npy file
        found = []
        for row in rows:
            text = None
            low, high = ends[row : row + 2].tolist() if row + 1 < len(ends) else (1, 0)
            if 0 <= low <= high <= total:
                file.seek(start + low)
                with contextlib.suppress(UnicodeDecodeError):
                    text = file.read(high - low).decode("utf-8", "surrogatepass")
            if text is None:
                raise UserError(f"{path}: has no text number {row:,}; {UNFINISHED}")
            found.append(text)
    return found


class Corpus:
    """All documents of several parts, numbered in the order of the parts.

    first: int64 (parts + 1,), the number of the first document of each part, and the number of documents.
    counted: an array of each part that has a value for each document.
    """

    def __init__(self, parts: list[ShardKeys], counted: str | None = None):
        if counted is not None:
            for part in parts:
                part.load(counted, part.documents)
        self.parts = parts
        self.first = np.concatenate(([0], np.cumsum([p.documents for p in parts]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.first[-1])

    def document_range(self, part: int) -> tuple[int, int]:
        """[start, end): the numbers of a part's documents."""
        return int(self.first[part]), int(self.first[part + 1])

    def parts_of(self, numbers: np.ndarray) -> list[int]:
        """The parts of documents, each once, in order."""
        self._refuse_others(numbers)
        parts: list[int] = np.unique(np.searchsorted(self.first, numbers, side="right") - 1).tolist()
        return parts

    def by_part(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (part, indices into `numbers`, rows in the part) for each part with any of them.

        Raises UserError for a number that is no document.
        """
        self._refuse_others(numbers)
        part = np.searchsorted(self.first, numbers, side="right") - 1
        order = np.argsort(part, kind="stable")
        found, starts = np.unique(part[order], return_index=True)
        for p, places in zip(found.tolist(), np.split(order, starts[1:])):
            yield p, places, numbers[places] - self.first[p]

    def look_up(self, numbers: np.ndarray, name: str, dtype: npt.DTypeLike) -> np.ndarray:
        """The values of documents in the array `name` of their parts."""
        values = np.empty(len(numbers), dtype)
        for part, places, rows in self.by_part(numbers):
            values[places] = self.parts[part].load(name, self.parts[part].documents)[rows]
        return values

    def _refuse_others(self, numbers: np.ndarray) -> None:
        if (wrong := beyond(numbers, len(self))) is not None:
            raise UserError(
                f"{self.parts[0].stem.parent if self.parts else 'parts'}: document {wrong:,} is not one of"
                f" the {len(self):,} documents; {UNFINISHED}"
            )


def key_ranges(documents: int, range_keys: int) -> list[tuple[int, int]]:
    """Ranges [low, high) of 64-bit keys, with about range_keys documents each."""
    count = max(1, -(-documents // range_keys))
    return list(itertools.pairwise((i << 64) // count for i in range(count + 1)))


def columns_between(paths: Iterable[Path], low: int, high: int, rows: int = 2) -> np.ndarray:
    """int64 (rows, N): the columns of files whose first value lies in [low, high), in order of the files.

    Each file has int64 (rows, N), sorted by the first row.
    """
    found = [np.empty((rows, 0), np.int64)]
    for path in paths:
        array = open_pairs(path, rows)
        chosen = array[:, slice(*np.searchsorted(array[0], (low, high)))]
        refuse_beyond(chosen[0], high, path, low)
        found.append(chosen)
    return np.concatenate(found, axis=1)


def find_rows(column: np.ndarray, values: np.ndarray, path: Path) -> np.ndarray:
    """The places of values in a sorted column of a file; raises UserError if one is not there."""
    places = np.searchsorted(column, values)
    if len(values) and (not len(column) or (column[np.minimum(places, len(column) - 1)] != values).any()):
        raise UserError(f"{path}: has not all documents that other files name; {UNFINISHED}")
    return places


def unique_columns(pairs: np.ndarray) -> np.ndarray:
    """The distinct columns of int64 (2, N), sorted by first and second value."""
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    is_first = np.ones(pairs.shape[1], bool)
    is_first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return pairs[:, is_first]


def exact_copies(corpus: Corpus, low: int, high: int) -> np.ndarray:
    """int64 (2, N): (copy, first document with its key), for the keys in a range, sorted by the copy."""
    keys, numbers = [np.empty((2, 0), np.uint64)], [np.empty(0, np.int64)]
    for part, first in zip(corpus.parts, corpus.first):
        exact = part.load("exact", 2, part.documents)
        chosen = slice(*_key_slice(exact[0], low, high))
        has_key = exact[:, chosen].any(axis=0)
        keys.append(exact[:, chosen][:, has_key])
        numbers.append(part.rows("exact_rows", part.documents, chosen)[has_key] + first)
    key, number = np.concatenate(keys, axis=1), np.concatenate(numbers)
    # The parts are sorted, and a stable sort merges them; equal keys stay in the order of their documents.
    order = np.argsort(key[0], kind="stable")
    if ((key[0, order[1:]] == key[0, order[:-1]]) & (key[1, order[1:]] != key[1, order[:-1]])).any():
        order = np.lexsort((number, key[1], key[0]))  # some keys have one half in common
    key, number = key[:, order], number[order]
    same = np.zeros(len(number), bool)
    same[1:] = (key[:, 1:] == key[:, :-1]).all(axis=0)
    leader = number[np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))]
    copies = np.stack((number[same], leader[same]))
    return copies[:, np.argsort(copies[0])]


def equal_keys(corpus: Corpus, low: int, high: int) -> np.ndarray:
    """int64 (N,), sorted: the rows whose 64-bit key, in the range, another row has too.

    The parts have sorted arrays `keys` and `rows`.
    """
    keys, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part, first in zip(corpus.parts, corpus.first):
        part_keys = part.load("keys", part.documents)
        chosen = slice(*_key_slice(part_keys, low, high))
        keys.append(part_keys[chosen])
        numbers.append(part.rows("rows", part.documents, chosen) + first)
    key, number = np.concatenate(keys), np.concatenate(numbers)
    order = np.argsort(key, kind="stable")  # the parts are sorted, which a stable sort is fast at
    found: np.ndarray = np.sort(number[order[_has_equal_neighbour(key[order])]])
    return found


def _has_equal_neighbour(keys: np.ndarray) -> np.ndarray:
    """bool (N,): whether the key before or after is the same. keys: sorted."""
    equal = keys[1:] == keys[:-1]
    found = np.zeros(len(keys), bool)
    found[1:] |= equal
    found[:-1] |= equal
    return found


class BandSearch:
    """The search for pairs of documents with an equal band key (LSH).

    copies: files for all parts, int64 (2, N), whose first row has the documents to leave out. folder: where
    the results go.
    """

    def __init__(self, corpus: Corpus, copies: list[Path], bands: int, range_keys: int, folder: Path):
        self.corpus = corpus
        self.copies = copies
        self.bands = bands
        self.range_keys = range_keys
        self.folder = folder
        self.ranges = key_ranges(len(corpus), range_keys)
        self.groups = [list(range(len(corpus.parts)))]  # of parts whose keys are sorted together
        if len(self.ranges) > 1:
            group_of_part = (corpus.first[:-1] // range_keys).tolist()
            self.groups = [
                [part for part, g in enumerate(group_of_part) if g == group]
                for group in sorted(set(group_of_part))
            ]

    def sorting_tasks(self) -> list[tuple[int, int]]:
        """Arguments of `sort`; none if the tasks of `pairs` read all keys."""
        if len(self.groups) == 1:
            return []
        return [(group, band) for group in range(len(self.groups)) for band in range(self.bands)]

    def sort(self, task: tuple[int, int]) -> dict[str, int]:
        """Writes the sorted keys of one band of one group: uint64 (2, N), keys and document numbers."""
        keys, numbers = self._collect(*task)
        order = np.argsort(keys, kind="stable")
        save_array(self._sorted_path(*task), np.stack((keys[order], numbers[order].view(np.uint64))))
        return {}

    def tasks(self) -> list[tuple[int, int, int, int]]:
        """Arguments of `pairs`: (task number, first band, last band + 1, index of the range).

        A task of a small corpus has several bands.
        """
        step = max(1, self.range_keys // max(1, len(self.corpus)))
        tasks = [
            (band, min(band + step, self.bands), r)
            for band in range(0, self.bands, step)
            for r in range(len(self.ranges))
        ]
        return [(number, *task) for number, task in enumerate(tasks)]

    def paths(self, name: str) -> list[Path]:
        """The files NNNNN.NAME.npy of all tasks."""
        return [self._path(number, name) for number, *_ in self.tasks()]

    def pairs(self, task: tuple[int, int, int, int], *, new: int) -> dict[str, int]:
        """Writes NNNNN.pairs.npy and NNNNN.earlier.npy.

        pairs: int64 (2, N), (later, earlier) documents with an equal band key, sorted by the later one, which
        is a document of this run (`new` or higher). earlier: int64 (1, N), the distinct earlier ones, sorted.
        """
        number, start, end, key_range = task
        pairs = np.empty((2, 0), np.int64)
        for band in range(start, end):
            if len(self.groups) == 1:
                keys, numbers = self._collect(0, band)
            else:
                keys, numbers = self._read_sorted(band, *self.ranges[key_range])
            found = _pairs_with_equal_keys(keys, numbers)
            pairs = unique_columns(np.concatenate((pairs, found[:, found[0] >= new]), axis=1))
        save_array(self._path(number, "pairs"), pairs)
        save_array(self._path(number, "earlier"), np.unique(pairs[1])[None])
        return {}

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:05d}.{name}.npy"

    def _sorted_path(self, group: int, band: int) -> Path:
        return self.folder / f"sorted/{group:05d}.{band:03d}.npy"

    def _collect(self, group: int, band: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys, document numbers in ascending order) of the documents of a group, without the copies."""
        keys, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for part in self.groups[group]:
            rows = self.corpus.parts[part].rows("rows", None, slice(None))
            documents = rows + self.corpus.first[part]
            copies = open_pairs(self.copies[part])[0]
            keep = ~np.isin(documents, copies, assume_unique=True)
            keys.append(self.corpus.parts[part].load("keys", self.bands, len(rows))[band][keep])
            numbers.append(documents[keep])
        return np.concatenate(keys), np.concatenate(numbers)

    def _read_sorted(self, band: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys, document numbers) of the keys in [low, high) of one band, from the files of `sort`."""
        found = []
        for group in range(len(self.groups)):
            array = open_pairs(self._sorted_path(group, band), dtype=np.uint64)
            found.append(array[:, slice(*_key_slice(array[0], low, high))])
        keys, numbers = np.concatenate(found, axis=1)
        return keys, numbers.view(np.int64)


def _key_slice(keys: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """(start, end) of the sorted keys that lie in [low, high); high may be 2^64."""
    start = int(np.searchsorted(keys, np.uint64(low)))
    return start, len(keys) if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))


def _pairs_with_equal_keys(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """int64 (2, N): (later, earlier) documents with equal keys; a pair may occur twice.

    Up to PAIR_WINDOW + 1 documents with the same key are all paired with each other. If there are more (pages
    made from a template), each is paired with the first and with the PAIR_WINDOW that follow it, since the
    number of all pairs would be quadratic. Near duplicates are then missed only if all bands that they share
    come from the template; docs/deduplication_cost.md has measurements. Ordering the documents by their other
    bands, with the most similar ones next to each other, found no more of them.
    """
    order = np.argsort(keys)
    order = order[_has_equal_neighbour(keys[order])]  # few documents: only these are sorted by number
    order = order[np.lexsort((numbers[order], keys[order]))]
    keys, numbers = keys[order], numbers[order]
    found = [np.empty((2, 0), np.int64)]
    for distance in range(1, min(PAIR_WINDOW + 1, len(keys))):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(same):
            break
        found.append(np.stack((numbers[same + distance], numbers[same])))
    is_start = np.ones(len(keys), bool)
    is_start[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(is_start)
    leader = np.repeat(numbers[starts], np.diff(np.append(starts, len(keys))))
    found.append(np.stack((numbers, leader))[:, leader != numbers])
    return np.concatenate(found, axis=1)
