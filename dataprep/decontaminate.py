"""evaluation n-grams out: training documents that hold text of an evaluation file lose it, or go.

Words are runs of `\\w`, lower-cased. An evaluation text (evaluation.py tells what a file's texts are) of
`max_ngram` words or more gives each of its n-grams of that many words; one of at least `min_ngram` is one
n-gram as a whole; a shorter one gives nothing. Where a training document holds one of these n-grams, that
much of it goes: from the last end of a sentence at least `remove_chars_each_side` before it to the first one
as far behind it. Pieces that are long enough stay, as documents `id#1`, `id#2`; a document that breaks into
too many goes whole. N-grams that many training documents hold are nobody's test and are let be. Beside what
every stage writes (stage.py), `cut/NNNNN.jsonl` has a line for every document that was cut: id, pieces,
against (the tasks), example (the text that was found).

Two passes: `parts/found/NNNNN.npy` notes which document holds which n-gram; then documents are cut. The
procedure is GPT-3's (Brown et al. 2020, appendix C) as Megatron-LM's tools/openwebtext/filter_ngrams.py has
it, except that documents of few words are searched too, shorter n-grams everywhere in a document, and
positions are those of the document's own text and not of its lower-cased copy, which may be longer.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.executor import map_shards
from ..documents import reader
from ..documents.reader import Document, Shard
from . import evaluation_texts, stage
from .dedup.shingles import WORD, batch_words, ngram_hashes
from .evaluation_texts import Task
from .stage import DocumentStage, Removed

BATCH_CHARS = 500_000
SENTENCE_END = re.compile(r"[.!?]")


@configuration()
class DecontaminateConfig(DocumentStage):
    """Which evaluation text, and how much around it goes."""

    evaluation: tuple[str, ...] = option(
        help=(
            "evaluation files, NAME=PLACE or PLACE each: RACE, MNLI, QQP, WikiText, LAMBADA, other JSONL or"
            " Parquet or text, folders or globs of them, hf:NAME[:CONFIG][:SPLIT]"
        ),
        role="input",
    )
    evaluation_key: str = option("text", "the key that holds the text in evaluation records of no known task")
    mode: Literal["split", "document"] = option(
        "split", "cut the evaluation text out, or remove the whole document"
    )
    max_ngram: int = option(13, "words in an n-gram")
    min_ngram: int = option(8, "evaluation texts of fewer words are not looked for")
    remove_chars_each_side: int = option(
        200, "characters to remove on either side of a match, on to the end of a sentence"
    )
    min_piece_chars: int = option(200, "pieces of at most this many characters are dropped")
    max_pieces: int = option(10, "a document that breaks into more pieces is removed")
    key_threshold: int = option(
        10, "n-grams in this many training documents or more are too common to count; 0 for no limit"
    )

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.evaluation), "evaluation is empty: name the evaluation files"),
            (
                1 <= self.min_ngram <= self.max_ngram,
                f"min_ngram = {self.min_ngram} must lie between 1 and max_ngram = {self.max_ngram}",
            ),
            *(
                (getattr(self, n) >= 0, f"{n} = {getattr(self, n)} must not be negative")
                for n in ("remove_chars_each_side", "min_piece_chars", "key_threshold")
            ),
            (self.max_pieces >= 1, f"max_pieces = {self.max_pieces} must be at least 1"),
        )


def decontaminate(config: DecontaminateConfig) -> dict:
    """Removes evaluation text; returns the stage's manifest, whose `evaluation` tells what each task matched."""
    tasks = evaluation_texts.tasks(config.evaluation)
    # first, so that a mistake in an evaluation file leaves nothing behind
    keys, malformed = read_keys(tasks, config)
    run, shards = stage.begin(
        "data decontaminate", config, facts={"tasks": keys.names}, more_inputs=evaluation_texts.inputs(tasks)
    )
    if run.finished:
        return run.manifest
    work = run.output / "parts"
    keys.save(work / "keys.npz")
    find = functools.partial(_find, folder=work / "found", keys_path=work / "keys.npz")
    sizes = [s.bytes for s in shards]
    try:
        map_shards(
            find,
            list(enumerate(shards)),
            done=work / "found",
            **config.where,
            label="data decontaminate: find",
            sizes=sizes,
        )
    except UserError:
        if not any((work / "found").iterdir()):
            # nothing but the keys is there, and they must not be in the way of the mended input
            run.abandon()
        raise
    found = [work / "found" / f"{i:05d}.npy" for i in range(len(shards))]
    counts = sum(
        (np.bincount(np.load(f)[:, 1], minlength=len(keys.hashes)) for f in found),
        np.zeros(len(keys.hashes), np.int64),
    )
    common = counts >= config.key_threshold if config.key_threshold else np.zeros(len(counts), bool)
    _save(work / "common.npy", common)
    cutting = functools.partial(_cut_shard, config=config, folder=str(run.output))
    results = map_shards(
        cutting, list(enumerate(shards)), done=work, **config.where, label=run.verb, sizes=sizes
    )
    logs = [manifest.record(run.output / "cut" / f"{i:05d}.jsonl", run.output) for i in range(len(shards))]
    return stage.finish(
        run, results, more_outputs=logs, evaluation=keys.report(counts, common, found, malformed)
    )


@dataclasses.dataclass
class Keys:
    """The n-grams of all tasks, each once, sorted by (words in it, hash)."""

    names: list[str]
    texts: list[int]  # of each task
    too_short: list[int]  # texts of fewer than min_ngram words, of each task
    hashes: np.ndarray  # uint64 (K,)
    lengths: np.ndarray  # int64 (K,): words
    owner_key: np.ndarray  # int64 (O,), sorted: key ...
    owner_task: np.ndarray  # int64 (O,): ... and a task that holds it

    def save(self, path: Path) -> None:
        with manifest.atomic_write(path) as file:
            np.savez(
                file,
                names=self.names,
                texts=self.texts,
                too_short=self.too_short,
                hashes=self.hashes,
                lengths=self.lengths,
                owner_key=self.owner_key,
                owner_task=self.owner_task,
            )

    @classmethod
    def load(cls, path: Path) -> Keys:
        with np.load(path) as stored:
            return cls(**{f.name: stored[f.name] for f in dataclasses.fields(cls)})

    def tasks_of(self, keys: np.ndarray) -> list[str]:
        """Names of the tasks that hold any of these keys."""
        return sorted({str(self.names[f]) for f in self.owner_task[np.isin(self.owner_key, keys)]})

    def report(
        self, counts: np.ndarray, common: np.ndarray, found: list[Path], malformed: list[int]
    ) -> dict[str, dict[str, int]]:
        """What each task gave and matched.

        counts: training documents that hold each key; common: keys let be.
        """
        matched = np.zeros(len(self.names), np.int64)
        for path in found:
            pairs = np.load(path)
            pairs = pairs[~common[pairs[:, 1]]]
            first, last = (np.searchsorted(self.owner_key, pairs[:, 1], side) for side in ("left", "right"))
            rows = np.repeat(pairs[:, 0], last - first)
            places = (
                np.concatenate([np.arange(a, b) for a, b in zip(first, last)])
                if len(pairs)
                else np.empty(0, np.int64)
            )
            held = np.unique(np.stack((rows, self.owner_task[places]), axis=1), axis=0)
            matched += np.bincount(held[:, 1], minlength=len(self.names))
        of = lambda chosen: np.bincount(
            self.owner_task[chosen[self.owner_key]], minlength=len(self.names)
        ).tolist()
        columns = (
            self.texts,
            self.too_short,
            malformed,
            of(counts >= 0),
            of((counts > 0) & ~common),
            of(common),
            matched.tolist(),
        )
        titles = (
            "texts",
            "texts_too_short",
            "rows_malformed",
            "ngrams",
            "ngrams_matched",
            "ngrams_too_common",
            "documents_matched",
        )
        return {name: dict(zip(titles, map(int, values))) for name, *values in zip(self.names, *columns)}


def read_keys(tasks: list[Task], config: DecontaminateConfig) -> tuple[Keys, list[int]]:
    """The n-grams of the tasks, and the malformed rows of each; raises UserError for a task that has none."""
    rows: list[np.ndarray] = []  # (words, hash, task) of every n-gram
    texts, too_short = [0] * len(tasks), [0] * len(tasks)
    for number, task in enumerate(tasks):
        seen = 0
        for pieces in evaluation_texts.texts(task, config.evaluation_key):
            texts[number] += 1
            words, first = batch_words(pieces)
            long_enough = [(a, b) for a, b in itertools.pairwise(first) if b - a >= config.min_ngram]
            too_short[number] += not long_enough
            for start, end in long_enough:
                n = min(end - start, config.max_ngram)
                hashes = np.unique(ngram_hashes(words[start:end], n))
                seen += len(hashes)
                rows.append(
                    np.stack(
                        (np.full(len(hashes), n, np.uint64), hashes, np.full(len(hashes), number, np.uint64))
                    )
                )
        if not seen:
            raise UserError(
                f"{', '.join(task.places)}: none of its {texts[number]:,} texts has {config.min_ngram} words:"
                " there is nothing to look for; check the file and --evaluation-key, or lower --min-ngram"
            )
    every = np.unique(np.concatenate(rows, axis=1), axis=1)
    fresh = np.concatenate(([True], (every[:2, 1:] != every[:2, :-1]).any(axis=0)))
    keys = Keys(
        [t.name for t in tasks],
        texts,
        too_short,
        every[1, fresh],
        every[0, fresh].astype(np.int64),
        np.cumsum(fresh) - 1,
        every[2].astype(np.int64),
    )
    return keys, [task.skipped for task in tasks]


def _batches(texts):
    """Lists of texts of about BATCH_CHARS characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Finder:
    """Finds keys among the n-grams of texts: a table of bits answers for nearly all, a binary search for the
    rest.
    """

    def __init__(self, keys: Keys):
        bits = max(16, int(16 * len(keys.hashes)).bit_length())
        self.mask = np.uint64((1 << bits) - 1)
        self.by_length = []  # (words, first key of that length, hashes, table)
        for n in np.unique(keys.lengths).tolist():
            start, end = np.searchsorted(keys.lengths, (n, n + 1))
            table = np.zeros(1 << bits, bool)
            table[keys.hashes[start:end] & self.mask] = True
            self.by_length.append((n, int(start), keys.hashes[start:end], table))

    def __call__(self, words: np.ndarray):
        """Yields (words in the n-gram, positions of its first words, keys) for every length of n-gram."""
        for n, first_key, hashes, table in self.by_length:
            grams = ngram_hashes(words, n)
            likely = np.flatnonzero(table[grams & self.mask])
            places = np.minimum(np.searchsorted(hashes, grams[likely]), len(hashes) - 1)
            sure = hashes[places] == grams[likely]
            yield n, likely[sure], places[sure] + first_key


def _find(item: tuple[int, Shard], *, folder: Path, keys_path: Path) -> dict:
    """Writes (row, key) for every document of a shard and every n-gram that it holds, int64 (N, 2)."""
    index, shard = item
    find = _Finder(Keys.load(keys_path))
    found, row = [np.empty((0, 2), np.int64)], 0
    for batch in _batches(d.text for d in reader.read(shard, lambda reject: None)):
        words, first = batch_words(batch)
        for n, positions, keys in find(words):
            text = np.searchsorted(first, positions, side="right") - 1
            inside = positions + n <= first[text + 1]
            found.append(np.unique(np.stack((text[inside] + row, keys[inside]), axis=1), axis=0))
        row += len(batch)
    _save(folder / f"{index:05d}.npy", np.concatenate(found))
    return {"documents": row}


def _save(path: Path, array: np.ndarray) -> None:
    with manifest.atomic_write(path) as file:
        np.save(file, array)


def _cut_shard(item: tuple[int, Shard], *, config: DecontaminateConfig, folder: str) -> dict:
    """Writes one shard's documents, its removed/ and its cut/ lines; returns its counts, for stage.finish."""
    with manifest.atomic_write(Path(folder, "cut", f"{item[0]:05d}.jsonl"), "w") as log:
        make = functools.partial(_cutter, config, str(Path(folder, "parts")), log)
        return stage.run_shard(
            item,
            output=folder,
            key=config.text_key,
            suffix=stage.STEMS[config.format],
            max_bytes=config.shard_bytes,
            rejects=config.rejects,
            make=make,
        )


def _cutter(config: DecontaminateConfig, folder: str, log, shard_index: int):
    """The change of one shard's documents. log: takes a line for each that is cut."""
    keys = Keys.load(Path(folder, "keys.npz"))
    find, common = _Finder(keys), np.load(Path(folder, "common.npy"))
    pairs = np.load(Path(folder, "found", f"{shard_index:05d}.npy"))
    contaminated = set(pairs[~common[pairs[:, 1]], 0].tolist())
    outcomes: Counter = Counter()
    row = -1

    def change(document: Document) -> Document | list[Document] | Removed:
        nonlocal row
        row += 1
        if row not in contaminated:
            return document
        spans, matched = _matches(document.text, find, common)
        why = {"against": keys.tasks_of(matched), "example": document.text[slice(*spans[0])]}
        if config.mode == "document":
            return Removed("contaminated", why)
        pieces = cut(document.text, spans, config.remove_chars_each_side, config.min_piece_chars)
        if not pieces:
            return Removed("contaminated", why)
        if len(pieces) > config.max_pieces:
            return Removed("too_many_pieces", {**why, "pieces": len(pieces)})
        outcomes["trimmed" if len(pieces) == 1 else "split"] += 1
        log.write(json.dumps({"id": document.id, "pieces": len(pieces), **why}, ensure_ascii=False) + "\n")
        return [Document(f"{document.id}#{n}", piece, document.meta) for n, piece in enumerate(pieces, 1)]

    change.tallies = {"cut": outcomes}
    return change


def _matches(text: str, find: _Finder, common: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """([start, end) in characters of every match, by start and the longest first; their keys)."""
    words, _ = batch_words([text])
    places = [m.span() for m in WORD.finditer(text)]
    assert len(places) == len(words), "the two ways to cut a text into words disagree"
    spans, matched = [], [np.empty(0, np.int64)]
    for n, positions, keys in find(words):
        counted = ~common[keys]
        spans += [(places[i][0], places[i + n - 1][1]) for i in positions[counted].tolist()]
        matched.append(keys[counted])
    return sorted(spans, key=lambda s: (s[0], -s[1])), np.concatenate(matched)


def cut(text: str, spans: list[tuple[int, int]], each_side: int, min_chars: int) -> list[str]:
    """What is left of a text without spans of characters and what surrounds them, pieces of more than
    min_chars each.

    spans: sorted [start, end). To the left the cut begins behind the last `.`, `!` or `?` that lies
    `each_side` characters or more before the span; to the right it ends behind the first one that lies as far
    behind it.
    """
    ends = [m.end() for m in SENTENCE_END.finditer(text)]
    pieces, place = [], 0
    for start, end in spans:
        if start < place:
            continue  # gone with the match before
        before = bisect.bisect_right(ends, start - each_side) - 1
        left = text[place : ends[before]] if before >= 0 and ends[before] > place else ""
        if len(left) > min_chars:
            pieces.append(left.strip())
        after = bisect.bisect_right(ends, end + each_side)
        place = ends[after] if after < len(ends) else len(text)
    if len(text) - place > min_chars:
        pieces.append(text[place:].strip())
    return pieces
