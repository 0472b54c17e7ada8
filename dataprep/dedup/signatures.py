"""the signatures of a finished deduplication: what a later crawl is compared with, without the old text.

`--save-signatures` leaves in OUTPUT/signatures, beside the keys of every document read (keys.py), removed
ones too:

    NNNNN.sketch.npy, .sketch_ends.npy    a sketch of each document's n-grams, and where it ends (int64, from
        0)
    NNNNN.names.npy, .name_ends.npy       each document's id, or that of the survivor it was removed for (as
        keys.py has ids)

A *sketch* is the SKETCH least of the n-gram hashes, cut to 32 bits, each once and sorted: at most 2 KB a
document, where all n-grams would be larger than the text. Of documents with fewer n-grams it is all of them,
and their Jaccard similarity is exact but for equal hashes (one n-gram in some millions); of longer ones it is
an unbiased estimate (Broder 1997; Cohen and Kaplan 2007), with a standard error of 0.02 at 0.7. So a crawl
compared with an old one loses what it would lose if both were deduplicated together and the old documents
were preferred.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from ...core import manifest
from ...core.config import UserError
from .key_index import Part, save_array

FOLDER = "signatures"
SKETCH = 512
# method -> methods whose signatures serve it
COMPARABLE = {"near": ("near",), "exact": ("exact", "near"), "url": ("url",)}


def sketch(hashes: np.ndarray) -> np.ndarray:
    """The sketch, uint32 (at most SKETCH,), of 64-bit n-gram hashes in any order."""
    return np.unique((hashes >> np.uint64(32)).astype(np.uint32))[:SKETCH]


def sketch_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity of the n-grams behind two sketches."""
    both = np.concatenate((a, b))
    both.sort()
    union = both[np.concatenate(([True], both[1:] != both[:-1]))] if len(both) else both
    common = both[1:][both[1:] == both[:-1]]
    # beyond these, a hash that one lacks may only have been left out
    if len(a) == SKETCH or len(b) == SKETCH:
        union = union[:SKETCH]
        common = common[: np.searchsorted(common, union[-1], side="right")]
    return len(common) / len(union) if len(union) else 1.0


def save_sketches(stem: Path, sketches: list[np.ndarray]) -> None:
    """Writes the sketches of a shard's documents, in order; one without n-grams has an empty sketch."""
    save_array(Path(f"{stem}.sketch.npy"), np.concatenate([np.empty(0, np.uint32), *sketches]))
    save_array(Path(f"{stem}.sketch_ends.npy"), np.cumsum([0, *map(len, sketches)]))


def read_parts(against: tuple[str, ...], method: str, needed: dict) -> list[Part]:
    """The parts of old outputs; raises UserError for one whose signatures cannot be compared with those of
    this run.

    needed: setting -> value, what near duplicates must have in common.
    """
    parts = []
    for name in against:
        old = manifest.manifest_of(name) if Path(name).is_dir() else None
        stems = [
            o["name"].removesuffix(".exact.npy")
            for o in (old or {}).get("outputs", ())
            if o["name"].startswith(f"{FOLDER}/") and o["name"].endswith(".exact.npy")
        ]
        if not stems:
            raise UserError(
                f"{name}: holds no signatures; name the output of a finished `mt data dedup"
                " --save-signatures`"
            )
        if (was := old["settings"]["method"]) not in COMPARABLE[method]:
            raise UserError(
                f"{name}: its signatures were made with method = {was}, which cannot be compared with"
                f" {method}; use --method {was}"
            )
        differ = (
            [f"{k} = {old[k]} there and {v} here" for k, v in needed.items() if old[k] != v]
            if method == "near"
            else []
        )
        if differ:
            raise UserError(
                f"{name}: its signatures have {', '.join(differ)}; give both runs the same settings"
            )
        parts += [
            Part(Path(name, stem), np.load(Path(name, f"{stem}.exact_rows.npy"), mmap_mode="r").shape[0])
            for stem in stems
        ]
    return parts


def sketches_of(part: Part):
    """A function from a row of a part to its sketch."""
    values, ends = part.load("sketch"), part.load("sketch_ends")
    return lambda row: np.asarray(values[slice(*ends[row : row + 2])])


def batch_sketches(shingles: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
    """The sketch of every text of a batch; shingles, first as of shingles.shingle."""
    return [sketch(shingles[start:end]) for start, end in itertools.pairwise(first)]
