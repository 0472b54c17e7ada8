"""Saved signatures of a finished deduplication, with which later documents are compared without the old text.

`--save-signatures` writes to OUTPUT/signatures the keys of all documents, removed ones included
(key_index.py), and also:

    NNNNN.sketch.npy, .sketch_ends.npy    a sketch of the n-grams of each document, and where it ends (int64,
                                          beginning with 0)
    NNNNN.names.npy, .name_ends.npy       the id of each document, or of the survivor if it was removed
                                          (strings as in key_index.py)

A *sketch* is a bottom-k sketch: the SKETCH_SIZE lowest n-gram hashes, truncated to 32 bits, distinct and
sorted. It has at most 2 KB, whereas all n-grams would be larger than the text. For documents with fewer
n-grams it has all of them, and the Jaccard similarity is exact except for hash collisions (one n-gram in some
millions). For longer documents it is an unbiased estimate (Broder 1997; Cohen and Kaplan 2007) with a
standard error of 0.02 at 0.7. New documents are therefore removed as if they were deduplicated together with
the old ones, with the old documents preferred.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ...core import manifest
from ...core.arrays import open_array
from ...core.config import UserError, shown
from ...core.parsing import MADE_BY_MT, check_value
from .key_index import ShardKeys, save_array

FOLDER = "signatures"
SKETCH_SIZE = 512
# {name: (dtype, dimensions)} of the files of a shard
ARRAYS: dict[str, tuple[Any, int]] = {
    "exact": (np.uint64, 2),
    "exact_rows": (np.uint32, 1),
    "chars": (np.uint32, 1),
    "names": (np.uint8, 1),
    "name_ends": (np.int64, 1),
    "sketch": (np.uint32, 1),
    "sketch_ends": (np.int64, 1),
    "keys": (np.uint64, 2),
    "rows": (np.uint32, 1),
}
ONLY_NEAR = ("sketch", "sketch_ends", "keys", "rows")  # are missing where near duplicates were not searched
MADE_AGAIN = "make the signatures again: run the command of that output with --overwrite"
# {method: the methods whose signatures it can be compared with}
COMPARABLE = {"near": ("near",), "exact": ("exact", "near"), "url": ("url",)}


def sketch(hashes: np.ndarray) -> np.ndarray:
    """The sketch, uint32 (at most SKETCH_SIZE,), of 64-bit n-gram hashes in any order."""
    return np.unique((hashes >> np.uint64(32)).astype(np.uint32))[:SKETCH_SIZE]


def sketch_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity, exact or estimated, of the n-gram sets of two sketches."""
    both = np.concatenate((a, b))
    both.sort()
    union = both[np.concatenate(([True], both[1:] != both[:-1]))] if len(both) else both
    common = both[1:][both[1:] == both[:-1]]
    # a higher hash may be missing from a sketch only because the sketch is full
    if len(a) == SKETCH_SIZE or len(b) == SKETCH_SIZE:
        union = union[:SKETCH_SIZE]
        common = common[: np.searchsorted(common, union[-1], side="right")]
    return len(common) / len(union) if len(union) else 1.0


def save_sketches(stem: Path, sketches: list[np.ndarray]) -> None:
    """Writes the sketches of a shard's documents, in order; that of a document without n-grams is empty."""
    save_array(Path(f"{stem}.sketch.npy"), np.concatenate([np.empty(0, np.uint32), *sketches]))
    save_array(Path(f"{stem}.sketch_ends.npy"), np.cumsum([0, *map(len, sketches)]))


class DedupSettings(TypedDict):
    """`settings` in the manifest of `mt data dedup`, as far as they are looked at."""

    method: str


def read_old_keys(
    against: tuple[str, ...], method: str, facts: dict[str, Any], rules: dict[str, str]
) -> list[ShardKeys]:
    """The saved keys of old outputs; raises UserError if they cannot be compared with those of this run.

    facts: {setting: value}; for near duplicates, both runs must have the same values. rules: facts of the
    program that both runs must share.
    """
    parts = []
    for name in against:
        old = (manifest.manifest_of(name) if Path(name).is_dir() else None) or {}
        stems = [
            o["name"].removesuffix(".exact.npy")
            for o in old.get("outputs", ())
            if o["name"].startswith(f"{FOLDER}/") and o["name"].endswith(".exact.npy")
        ]
        if not stems:
            raise UserError(
                f"{name}: contains no signatures; name the output of a finished `mt data dedup"
                " --save-signatures`"
            )
        settings = check_value(
            old["settings"], DedupSettings, f"{name}: the settings in its manifest.json", MADE_BY_MT
        )
        if (old_method := settings["method"]) not in COMPARABLE[method]:
            raise UserError(
                f"{name}: its signatures were made with method = {old_method}, which cannot be compared with"
                f" {method}; use --method {old_method}"
            )
        if any(old.get(fact) != rule for fact, rule in rules.items()):
            raise UserError(
                f"{name}: its signatures are of a version of mt that compared texts by other rules; make them"
                " again: run its command with --overwrite"
            )
        compared = facts if method == "near" else {}
        differences = [
            f"{k} = {shown(old.get(k))} there and {v} here" for k, v in compared.items() if old.get(k) != v
        ]
        if differences:
            raise UserError(
                f"{name}: its signatures have {', '.join(differences)}; give both runs the same settings"
            )
        for file in [
            *old["outputs"],
            *({"name": f"{FOLDER}/{p.name}"} for p in Path(name, FOLDER).iterdir()),
        ]:
            manifest.output_path(Path(name, "manifest.json"), file["name"])
        parts += [_checked_part(Path(name, stem)) for stem in stems]
    return parts


def _checked_part(stem: Path) -> ShardKeys:
    """The keys of one shard of an earlier run; raises UserError if its files are not those of a run."""
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, dimensions) in ARRAYS.items():
        path = Path(f"{stem}.{name}.npy")
        if name in ONLY_NEAR and not path.exists():
            continue
        shape = [None] * dimensions
        arrays[name] = open_array(path, dtype, shape, remedy=MADE_AGAIN)
    count = len(arrays["exact_rows"])
    ends_fit = [
        len(arrays[ends]) == count + 1
        and arrays[ends][0] == 0
        and arrays[ends][-1] == len(arrays.get(values, ()))
        and bool((arrays[ends][1:] >= arrays[ends][:-1]).all())
        for values, ends in (("names", "name_ends"), ("sketch", "sketch_ends"))
        if ends in arrays
    ]
    rows_fit = all(
        not len(arrays[name]) or int(arrays[name].max()) < count
        for name in ("exact_rows", "rows")
        if name in arrays
    )
    shapes_fit = (
        arrays["exact"].shape == (2, count)
        and arrays["chars"].shape == (count,)
        and ("keys" not in arrays or arrays["keys"].shape[1] == len(arrays["rows"]))
    )
    if not (all(ends_fit) and rows_fit and shapes_fit):
        raise UserError(f"{stem}.*.npy: the arrays do not belong together; {MADE_AGAIN}")
    return ShardKeys(stem, count)


def saved_sketches(part: ShardKeys) -> Callable[[int], np.ndarray]:
    """A function from a row of a part to its sketch."""
    values, ends = part.load("sketch", None), part.load("sketch_ends", None)
    return lambda row: np.asarray(values[slice(*ends[row : row + 2])])


def batch_sketches(shingles: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
    """The sketch of each text of a batch; shingles, first: as shingles.shingle returns them."""
    return [sketch(shingles[start:end]) for start, end in itertools.pairwise(first)]
