"""lines or paragraphs that stand elsewhere already are cut: the first occurrence in the corpus stays.

Two lines are the same if they are so but for whitespace; shorter ones than `min_chars` are let be, since
headings and closing brackets repeat in honest text.

    sign     the keys of each shard's lines, sorted, to parts/sign/NNNNN.*.npy (keys.py): 20 bytes a line
    search   the repeated lines of every range of keys, to parts/search/: 16 bytes each
    write    documents without those lines, and removed/NNNNN.jsonl for documents of which nothing is left

Two passes over the text. A task of the search holds 60 x range_keys bytes and 16 for each repeated line that
it finds, one of the last pass what is cut from its shard, whatever the corpus. (CCNet, Wenzek et al. 2019,
arXiv 1911.00359, section 3.1, cuts paragraphs so, within groups of shards.)
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.config import check, configuration, option
from ...core.executor import map_shards
from ...documents import reader
from ...documents.reader import Document, Shard
from .. import stage
from ..stage import DocumentStage, Removed
from .dedup import exact_key
from .key_index import Corpus, Part, between, exact_copies, key_ranges, save_array, save_exact

SEPARATOR = {"line": re.compile(r"(\n)"), "paragraph": re.compile(r"(\n\s*\n)")}


@configuration()
class DedupLinesConfig(DocumentStage):
    """What is compared."""

    unit: Literal["line", "paragraph"] = option(
        "line", "what is cut: lines, or paragraphs between empty lines"
    )
    min_chars: int = option(30, "shorter lines or paragraphs may repeat")
    range_keys: int = option(
        1 << 23,
        "keys that a task compares at a time, 60 bytes of memory each; more are quicker on a large corpus",
        role="runtime",
    )

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.min_chars >= 1, f"min_chars = {self.min_chars} must be at least 1"),
            (self.range_keys >= 1, f"range_keys = {self.range_keys} must be at least 1"),
        )


def dedup_lines(config: DedupLinesConfig) -> dict:
    """Cuts repeated lines; returns the stage's manifest, whose `cut` counts them and their characters."""
    run, shards = stage.begin("data dedup-lines", config)
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
    )
    corpus = Corpus([Part(work / "sign" / f"{i:05d}", s["lines"]) for i, s in enumerate(signed)])
    ranges = key_ranges(len(corpus), config.range_keys)
    found = work / f"search/{len(ranges)}"  # other ranges on a rerun find the same, in other files
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
    return stage.map_documents(
        run, config, shards, functools.partial(_cutter, config, repeated, corpus.first)
    )


def _compared(text: str, config: DedupLinesConfig) -> tuple[list[str], list[int]]:
    """(the lines and, between each two, what separates them; places of the lines that are compared)."""
    pieces = SEPARATOR[config.unit].split(text)
    return pieces, [
        i
        for i in range(0, len(pieces), 2)
        if len(pieces[i]) >= config.min_chars and len(pieces[i].strip()) >= config.min_chars
    ]


def _sign(item: tuple[int, Shard], *, config: DedupLinesConfig, folder: Path) -> dict:
    """Writes the keys of one shard's compared lines."""
    index, shard = item
    keys: list[bytes] = []
    for document in reader.read(shard, lambda reject: None):
        pieces, places = _compared(document.text, config)
        keys += [exact_key(pieces[i]) for i in places]
    save_exact(folder / f"{index:05d}", keys)
    return {"lines": len(keys)}


def _search(task: tuple[int, tuple[int, int]], *, corpus: Corpus, folder: Path) -> dict:
    """Writes the lines that repeat an earlier one, of a range of keys: int64 (2, N), (line, the first like
    it), sorted.
    """
    number, (low, high) = task
    save_array(folder / f"{number:05d}.npy", exact_copies(corpus, low, high))
    return {}


def _cutter(config: DedupLinesConfig, repeated: list[Path], first: np.ndarray, shard_index: int):
    """The change of one shard's documents. repeated: files of `_search`; first: each shard's first line."""
    start, end = first[shard_index : shard_index + 2]
    cut = set((between(repeated, start, end)[0] - start).tolist())
    counts: Counter = Counter()
    line = 0

    def change(document: Document) -> Document | Removed:
        nonlocal line
        pieces, places = _compared(document.text, config)
        gone = [i for n, i in enumerate(places, line) if n in cut]
        line += len(places)
        if not gone:
            return document
        for i in gone:
            counts.update(lines=1, chars=len(pieces[i]))
            pieces[i : i + 2] = ["", ""][: len(pieces[i : i + 2])]  # with what separates it from the next
        text = "".join(pieces).strip()
        return dataclasses.replace(document, text=text) if text else Removed("repeated", {"lines": len(gone)})

    change.tallies = {"cut": counts}
    return change
