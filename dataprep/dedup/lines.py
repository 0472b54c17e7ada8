"""The `mt data dedup-lines` command: remove repeated lines or paragraphs, keeping the first one.

Two lines are equal if they differ only in Unicode normalization and runs of white space. Lines shorter than
`min_chars` are never removed, since headings and closing brackets repeat in good text. Steps:

    sign     write the sorted keys of each shard's lines to parts/sign/ (key_index.py): 20 bytes per line
    search   write the repeated lines of every range of keys to parts/search/: 16 bytes each
    write    write the documents without these lines, and removed/NNNNN.jsonl for documents left empty

The text is read twice. A search task needs 60 x range_keys bytes of memory, and 16 for each repeated line
that it finds; a write task needs memory for the lines cut from its shard. CCNet (Wenzek et al. 2019, arXiv
1911.00359, section 3.1) removes paragraphs in the same way, within groups of shards.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core.config import check, configuration, option
from ...core.executor import map_shards
from ...core.parsing import Count
from ...core.unicode import normalize
from ...documents.reader import Document
from ...documents.shard_groups import ShardGroup
from .. import stage
from ..stage import Removed, Tallies, Transform
from .config import KeyComparison
from .exact_keys import exact_key
from .key_index import (
    Corpus,
    ShardKeys,
    columns_between,
    exact_copies,
    key_ranges,
    save_array,
    save_exact_keys,
)
from .shingles import TEXT_RULES

SEPARATOR = {"line": re.compile(r"(\n)"), "paragraph": re.compile(r"(\n\s*\n)")}


@configuration()
class DedupLinesConfig(KeyComparison):
    """The settings of `mt data dedup-lines`."""

    unit: Literal["line", "paragraph"] = option(
        "line", "what to remove: lines, or paragraphs between empty lines"
    )
    min_chars: int = option(30, "never remove shorter lines or paragraphs")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (self.min_chars >= 1, f"min_chars = {self.min_chars} must be at least 1"),
        )


def dedup_lines(config: DedupLinesConfig) -> dict[str, Any]:
    """Removes repeated lines; returns the stage's manifest, whose `cut` counts them and their characters."""
    run, shards = stage.begin("data dedup-lines", config, facts={"text_rules": TEXT_RULES})
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    sign = functools.partial(_sign, config=config, folder=work / "sign")
    signed = map_shards(
        sign,
        list(enumerate(shards)),
        done=work / "sign",
        **config.where,
        label=f"{run.verb}: sign",
        sizes=[s.bytes for s in shards],
        kinds={"lines": Count},
    )
    parts = [ShardKeys(work / "sign" / f"{i:05d}", s["lines"]) for i, s in enumerate(signed)]
    corpus = Corpus(parts, "exact_rows")
    ranges = key_ranges(len(corpus), config.range_keys)
    found = work / f"search/{len(ranges)}"  # a rerun with other ranges finds the same lines, in other files
    search = functools.partial(_search, corpus=corpus, folder=found)
    map_shards(
        search,
        list(enumerate(ranges)),
        done=found,
        **config.where,
        label=f"{run.verb}: search",
        unit="ranges",
    )
    repeated = [found / f"{number:05d}.npy" for number in range(len(ranges))]
    make = functools.partial(_make_cutter, config, repeated, corpus.first)
    return stage.map_documents(run, config, shards, make)


def split_text(text: str, unit: str, min_chars: int) -> tuple[list[str], list[int]]:
    """([line, separator, line, separator, ...], the indices of the lines that are compared)."""
    pieces = SEPARATOR[unit].split(text)
    compared = [
        i
        for i in range(0, len(pieces), 2)
        if len(pieces[i]) >= min_chars and len(pieces[i].strip()) >= min_chars
    ]
    return pieces, compared


def _sign(item: tuple[int, ShardGroup], *, config: DedupLinesConfig, folder: Path) -> dict[str, int]:
    """Writes the keys of one shard's compared lines."""
    index, shard = item
    keys: list[bytes] = []
    for document in shard.read(lambda reject: None):
        pieces, compared = split_text(document.text, config.unit, config.min_chars)
        keys += [exact_key(normalize("NFC", pieces[i])) for i in compared]
    save_exact_keys(folder / f"{index:05d}", keys)
    return {"lines": len(keys)}


def _search(task: tuple[int, tuple[int, int]], *, corpus: Corpus, folder: Path) -> dict[str, int]:
    """Writes the repeated lines of a range of keys: int64 (2, N), (line, first equal line), sorted."""
    number, (low, high) = task
    save_array(folder / f"{number:05d}.npy", exact_copies(corpus, low, high))
    return {}


def _make_cutter(
    config: DedupLinesConfig, repeated: list[Path], first: np.ndarray, shard_index: int
) -> tuple[Transform, Tallies]:
    """The transform of a shard's documents. repeated: files of `_search`. first: each shard's first line."""
    start, end = first[shard_index : shard_index + 2]
    cut = set((columns_between(repeated, start, end)[0] - start).tolist())
    counts: Counter[str] = Counter()
    line = 0  # the number of compared lines in the shard so far

    def change(document: Document) -> Document | Removed:
        nonlocal line
        pieces, compared = split_text(document.text, config.unit, config.min_chars)
        repeated_pieces = [i for n, i in enumerate(compared, line) if n in cut]
        line += len(compared)
        if not repeated_pieces:
            return document
        for i in repeated_pieces:
            counts.update(lines=1, chars=len(pieces[i]))
            pieces[i : i + 2] = ["", ""][: len(pieces[i : i + 2])]  # with the separator after it
        text = "".join(pieces).strip()
        if not text:
            return Removed("repeated", {"lines": len(repeated_pieces)})
        return dataclasses.replace(document, text=text)

    return change, {"cut": counts}
