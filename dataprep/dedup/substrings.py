"""The `mt data dedup-substrings` command: cut text that occurs elsewhere, `min_tokens` tokens or more of it.

A token is cut if it lies in a window of `min_tokens` tokens (token_windows.py) that occurs earlier in the
corpus, in any document or before in the same one; with `--keep none`, earlier or later. Windows are equal if
their text differs in Unicode normalization and white space alone. These are the substrings of ExactSubstr
(Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499, section 4.1),
which finds them in a suffix array of the whole corpus. Here, hashes find them, with memory for one shard:

    anchors  write the sorted anchors of each shard's windows to parts/anchors/: 12 bytes for every 14th token
    search   write the anchors that occur twice, of every range of hashes, to parts/repeated/
    windows  write the 128-bit hashes of the windows with such an anchor to parts/windows/
    compare  write the windows that occur twice, of every range of hashes, to parts/copies/
    write    write the documents without these windows, and cut/NNNNN.jsonl with a line for each that was cut:
             id, spans, tokens, example (the beginning of the first span)

The text is read three times. Two windows with equal hashes are taken for equal: of 10^13 windows, two unequal
ones have the same 128-bit hash with a probability below 10^-12.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from ...core.arrays import UNFINISHED, open_array
from ...core.config import UserError, check, configuration, option
from ...core.executor import map_shards
from ...core.parsing import Count
from ...core.unicode import normalize
from ...documents.reader import Document, batches
from ...documents.shard_groups import ShardGroup
from .. import stage
from ..stage import Removed, Tallies, Transform
from ..words import KANA, LETTER, MARK, OUTSIDE, kinds
from .config import KeyComparison
from .key_index import (
    Corpus,
    ShardKeys,
    columns_between,
    equal_keys,
    exact_copies,
    key_ranges,
    save_array,
    save_sorted_keys,
)
from .shingles import BATCH_CHARS, TEXT_RULES
from .token_windows import anchors, normalized_tokens, tokens, window_keys

EXAMPLE_CHARS = 200


@configuration()
class DedupSubstringsConfig(KeyComparison):
    """The settings of `mt data dedup-substrings`."""

    min_tokens: int = option(
        50, "cut repeated text of this many tokens or more: words, and other characters but white space"
    )
    keep: Literal["first", "none"] = option("first", "which occurrence of repeated text stays")

    def __post_init__(self) -> None:
        super().__post_init__()
        check((self.min_tokens >= 2, f"min_tokens = {self.min_tokens} must be at least 2"))


def dedup_substrings(config: DedupSubstringsConfig) -> dict[str, Any]:
    """Cuts repeated text; returns the stage's manifest, whose `cut` counts what was cut."""
    run, shards = stage.begin("data dedup-substrings", config, facts={"text_rules": TEXT_RULES})
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    items, sizes = list(enumerate(shards)), [shard.bytes for shard in shards]

    def on_shards(task: Any, name: str) -> list[dict[str, int]]:
        task = functools.partial(task, config=config, folder=work)
        label = f"{run.verb}: {name}"
        return map_shards(
            task, items, done=work / name, **config.where, label=label, sizes=sizes, kinds={name: Count}
        )

    def on_ranges(task: Any, name: str, corpus: Corpus) -> list[Path]:
        ranges = key_ranges(len(corpus), config.range_keys)
        folder = work / f"{name}/{len(ranges)}"  # a rerun with other ranges finds the same, in other files
        task = functools.partial(task, corpus=corpus, folder=folder)
        label = f"{run.verb}: {name}"
        map_shards(task, list(enumerate(ranges)), done=folder, **config.where, label=label, unit="ranges")
        return [folder / f"{number:05d}.npy" for number in range(len(ranges))]

    counts = [done["anchors"] for done in on_shards(_write_anchors, "anchors")]
    corpus = Corpus([ShardKeys(work / f"anchors/{i:05d}", n) for i, n in enumerate(counts)], "rows")
    repeated = on_ranges(_write_repeated_anchors, "repeated", corpus)
    write_windows = functools.partial(_write_windows, repeated=repeated, first=corpus.first)
    counts = [done["windows"] for done in on_shards(write_windows, "windows")]
    corpus = Corpus([ShardKeys(work / f"windows/{i:05d}", n) for i, n in enumerate(counts)], "exact_rows")
    copies = on_ranges(functools.partial(_write_copies, keep=config.keep), "copies", corpus)
    make = functools.partial(_make_cutter, config, work, copies, corpus.first)
    return stage.map_documents_with_log(run, config, shards, make)


def _token_batches(shard: ShardGroup) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(hashes, where those of each text begin) of the tokens of a shard, a batch of documents at a time."""
    for batch in batches(shard.read(lambda reject: None), BATCH_CHARS):
        yield normalized_tokens([document.text for document in batch])


def _write_anchors(
    item: tuple[int, ShardGroup], *, config: DedupSubstringsConfig, folder: Path
) -> dict[str, int]:
    index, shard = item
    found = [np.empty(0, np.uint64)]
    found += [anchors(*batch, config.min_tokens)[0] for batch in _token_batches(shard)]
    every = np.concatenate(found)
    order = np.argsort(every, kind="stable")
    save_array(folder / f"anchors/{index:05d}.keys.npy", every[order])
    save_array(folder / f"anchors/{index:05d}.rows.npy", order.astype(np.uint32))
    return {"anchors": len(every)}


def _write_repeated_anchors(
    task: tuple[int, tuple[int, int]], *, corpus: Corpus, folder: Path
) -> dict[str, int]:
    """Writes int64 (1, N), sorted: the anchors in a range of hashes that occur more than once."""
    number, (low, high) = task
    save_array(folder / f"{number:05d}.npy", equal_keys(corpus, low, high)[None])
    return {}


def _write_windows(
    item: tuple[int, ShardGroup],
    *,
    config: DedupSubstringsConfig,
    folder: Path,
    repeated: list[Path],
    first: np.ndarray,
) -> dict[str, int]:
    """Writes a shard's windows that may be repeated: their hashes, and their first tokens in order.

    Also writes where the tokens of each document begin. repeated: files of _write_repeated_anchors. first: of
    each shard's anchors.
    """
    index, shard = item
    low, high = int(first[index]), int(first[index + 1])
    is_repeated = np.zeros(high - low, bool)
    is_repeated[columns_between(repeated, low, high, rows=1)[0] - low] = True
    starts, keys = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
    ends = [np.zeros(1, np.int64)]
    num_tokens = num_anchors = 0
    for hashes, text_first in _token_batches(shard):
        hashes_of_anchors, anchor_of = anchors(hashes, text_first, config.min_tokens)
        flags = np.append(is_repeated[num_anchors : num_anchors + len(hashes_of_anchors)], False)
        num_anchors += len(hashes_of_anchors)
        batch_starts = np.flatnonzero(flags[anchor_of])  # -1 is the last flag
        starts.append(batch_starts + num_tokens)
        keys.append(window_keys(hashes, batch_starts, config.min_tokens))
        ends.append(text_first[1:] + num_tokens)
        num_tokens += len(hashes)
    save_sorted_keys(folder / f"windows/{index:05d}", np.concatenate(keys))
    save_array(folder / f"windows/{index:05d}.starts.npy", np.concatenate(starts))
    save_array(folder / f"windows/{index:05d}.documents.npy", np.concatenate(ends))
    return {"windows": sum(map(len, starts))}


def _write_copies(
    task: tuple[int, tuple[int, int]], *, corpus: Corpus, keep: str, folder: Path
) -> dict[str, int]:
    """Writes int64 (1, N), sorted: the windows in a range of hashes that are cut."""
    number, (low, high) = task
    copies = exact_copies(corpus, low, high)
    cut = copies[0] if keep == "first" else np.union1d(copies[0], copies[1])
    save_array(folder / f"{number:05d}.npy", cut[None])
    return {}


def _make_cutter(
    config: DedupSubstringsConfig,
    folder: Path,
    copies: list[Path],
    first: np.ndarray,
    log: TextIO,
    shard_index: int,
) -> tuple[Transform, Tallies]:
    """The transform of a shard's documents. copies: files of _write_copies. first: each shard's windows."""
    low, high = int(first[shard_index]), int(first[shard_index + 1])
    stem = folder / f"windows/{shard_index:05d}"
    chosen = np.sort(columns_between(copies, low, high, rows=1)[0]) - low
    starts = open_array(f"{stem}.starts.npy", np.int64, (high - low,), remedy=UNFINISHED)[chosen]  # tokens
    documents = open_array(f"{stem}.documents.npy", np.int64, (None,), remedy=UNFINISHED)
    if any((values[1:] < values[:-1]).any() for values in (starts, documents)):
        raise UserError(f"{stem}.*.npy: are not in ascending order; {UNFINISHED}")
    bounds = np.searchsorted(starts, documents)  # of each document's windows in `starts`
    counts: Counter[str] = Counter()
    row = -1
    wrong = UserError(f"{stem}.*.npy: are of other documents than the input has; {UNFINISHED}")

    def change(document: Document) -> Document | Removed:
        nonlocal row
        row += 1
        if row + 1 >= len(bounds):
            raise wrong
        if bounds[row] == bounds[row + 1]:
            return document
        spans = merge_windows(starts[bounds[row] : bounds[row + 1]] - documents[row], config.min_tokens)
        text, token_spans = text_with_tokens(document.text, int(documents[row + 1] - documents[row]))
        if spans[0][0] < 0 or spans[-1][1] > token_spans.shape[1]:
            raise wrong
        cut = sum(end - start for start, end in spans)
        counts.update(documents=1, spans=len(spans), tokens=cut)
        if cut == token_spans.shape[1]:
            return Removed("repeated", {"tokens": cut})
        start = int(token_spans[0, spans[0][0]])
        facts = {"spans": len(spans), "tokens": cut, "example": text[start : start + EXAMPLE_CHARS]}
        log.write(json.dumps({"id": document.id, **facts}, ensure_ascii=False) + "\n")
        return dataclasses.replace(document, text=cut_spans(text, token_spans, spans))

    return change, {"cut": counts}


def text_with_tokens(text: str, count: int) -> tuple[str, np.ndarray]:
    """(the text, the spans of its tokens). The text is in form NFC if it has not `count` tokens otherwise."""
    spans = tokens([text])[1]
    if spans.shape[1] != count:
        text = normalize("NFC", text)
        spans = tokens([text])[1]
    return text, spans


def merge_windows(starts: np.ndarray, length: int) -> list[tuple[int, int]]:
    """[start, end) of the tokens in windows that begin at `starts`, which are sorted."""
    gaps = np.flatnonzero(np.diff(starts) > length) + 1
    return [(int(run[0]), int(run[-1]) + length) for run in np.split(starts, gaps)]


def cut_spans(text: str, token_spans: np.ndarray, spans: list[tuple[int, int]]) -> str:
    """The text without some spans of tokens.

    token_spans: int64 (2, T), [start, end) in characters. Of the white space before and after a span the
    piece with more line breaks stays. A space keeps two words apart that would become one.
    """
    starts, ends = token_spans
    pieces, place = [text[: starts[0]]], int(starts[0])
    for first, last in spans:
        begin, end = int(starts[first]), int(ends[last - 1])
        before = int(ends[first - 1]) if first else place
        after = int(starts[last]) if last < len(starts) else len(text)
        pieces.append(text[place:before])
        place = after
        if first and last < len(starts):
            gaps = text[before:begin], text[end:after]
            gap = max(gaps, key=lambda space: (space.count("\n"), len(space)))
            joins = _would_join(text[starts[first - 1] : before], text[after : ends[last]])
            pieces.append(gap or (" " if joins else ""))
        elif not first:
            pieces.append("")
        else:
            pieces.append(text[end:after])  # white space at the end of the text
    pieces.append(text[place:])
    return "".join(pieces)


def _would_join(left: str, right: str) -> bool:
    """Whether two tokens side by side would be one."""
    kind_of = kinds()
    before = next((kind for kind in kind_of[[*map(ord, reversed(left))]] if kind != MARK), OUTSIDE)
    return before == kind_of[ord(right[0])] and before in (LETTER, KANA)
