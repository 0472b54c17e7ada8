"""The `mt data decontaminate` command: remove evaluation text from training documents.

Words are those of words.py, in lower case. An evaluation text (evaluation_texts.py reads them) of at least
`max_ngram` words gives all its n-grams of `max_ngram` words. A text of at least `min_ngram` words gives one
n-gram, the whole text. A shorter text gives none. Where a training document contains one of these n-grams,
the match is removed with its surroundings: from the last sentence end at least `remove_chars_each_side`
characters before it to the first sentence end as far after it. Remaining pieces that are long enough are kept
as documents `id#1`, `id#2`; a document that splits into too many pieces is removed. N-grams that occur in
many training documents are common phrases and are ignored. In addition to the files of every stage
(stage.py), `cut/NNNNN.jsonl` has one line for each document that was cut: id, pieces, against (the tasks),
example (the matched text).

There are two passes: the first writes to `parts/found/NNNNN.npy` which document contains which n-gram, the
second cuts the documents. The procedure is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) as
implemented in Megatron-LM's tools/openwebtext/filter_ngrams.py, with three differences: documents of few
words are searched too, shorter n-grams are searched everywhere in a document, and positions refer to the
original text, not to its lower-cased copy, which may be longer.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import regex

from ..core import manifest
from ..core.arrays import UNFINISHED, open_array, refuse_beyond
from ..core.config import UserError, check, configuration, option
from ..core.executor import map_shards
from ..core.unicode import normalize
from ..documents.folders import NotRead
from ..documents.reader import Document, batches
from ..documents.shard_groups import ShardGroup
from . import evaluation_texts, stage
from .dedup.key_index import save_array
from .dedup.shingles import BATCH_CHARS, TEXT_RULES, batch_words, ngram_hashes
from .evaluation_texts import EvaluationTask
from .stage import DocumentStage, Removed, Tallies, Transform
from .words import WORD

SENTENCE_END = regex.compile(r"[.!?\p{Sentence_Terminal}]")  # also 。 ！ । ؟ and their like


@configuration()
class DecontaminateConfig(DocumentStage):
    """The settings of `mt data decontaminate`."""

    evaluation: tuple[str, ...] = option(
        help=(
            "evaluation files, NAME=PLACE or PLACE each: RACE, MNLI, QQP, WikiText, LAMBADA, other JSONL or"
            " Parquet or text, folders or globs of them, hf:NAME[:CONFIG][:SPLIT]"
        ),
        role="input",
    )
    evaluation_key: str = option("text", "key of the text in evaluation records of no known task")
    mode: Literal["split", "document"] = option(
        "split", "cut the evaluation text out, or remove the whole document"
    )
    max_ngram: int = option(13, "words in an n-gram")
    min_ngram: int = option(8, "ignore evaluation texts of fewer words")
    remove_chars_each_side: int = option(
        200, "characters to remove on either side of a match, extended to the end of a sentence"
    )
    min_piece_chars: int = option(200, "drop pieces of at most this many characters")
    max_pieces: int = option(10, "remove a document that splits into more pieces")
    key_threshold: int = option(
        10, "ignore n-grams that occur in this many training documents or more; 0 for no limit"
    )

    def __post_init__(self) -> None:
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


def decontaminate(config: DecontaminateConfig) -> dict[str, Any]:
    """Removes evaluation text; returns the stage's manifest, whose `evaluation` counts matches per task."""
    tasks = evaluation_texts.tasks(config.evaluation)
    # before the output is claimed, so that an error in an evaluation file leaves nothing behind
    ngrams, malformed = read_ngrams(tasks, config)
    more_inputs = evaluation_texts.inputs(tasks)
    not_read = NotRead()
    for task in tasks:
        not_read.add_all(task.not_read)
    not_read.report()
    run, shards = stage.begin(
        "data decontaminate",
        config,
        facts={
            "tasks": ngrams.names,
            "text_rules": TEXT_RULES,
            "evaluation_rules": evaluation_texts.RULES,
        },
        more_inputs=more_inputs,
    )
    if run.finished:
        return run.manifest
    if not_read:
        run.notes["evaluation_not_read"] = not_read.as_json()
    work = run.output / "parts"
    ngrams.save(work / "ngrams.npz")
    find = functools.partial(_find_in_shard, folder=work / "found", ngrams_path=work / "ngrams.npz")
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
            # there are only the n-grams: free the output for a run with the corrected input
            run.abandon()
        raise
    found = [work / "found" / f"{i:05d}.npy" for i in range(len(shards))]
    num_ngrams = len(ngrams.hashes)
    counts = np.zeros(num_ngrams, np.int64)  # training documents that contain each n-gram
    for path in found:
        counts += np.bincount(_open_found(path, num_ngrams)[:, 1], minlength=num_ngrams)
    common = counts >= config.key_threshold if config.key_threshold else np.zeros(num_ngrams, bool)
    save_array(work / "common.npy", common)
    make = functools.partial(_make_cutter, config, run.output / "parts")
    report = ngrams.report(counts, common, found, malformed)
    return stage.map_documents_with_log(run, config, shards, make, evaluation=report)


@dataclasses.dataclass
class EvaluationNgrams:
    """The n-grams of all tasks, each once, sorted by (number of words, hash)."""

    names: list[str]  # of the tasks
    texts: list[int]  # number of texts of each task
    too_short: list[int]  # texts with fewer than min_ngram words, of each task
    hashes: np.ndarray  # uint64 (N,)
    lengths: np.ndarray  # int64 (N,): number of words
    owner_ngram: np.ndarray  # int64 (O,), sorted: index of an n-gram ...
    owner_task: np.ndarray  # int64 (O,): ... and of a task that contains it

    def save(self, path: Path) -> None:
        with manifest.atomic_write(path) as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> EvaluationNgrams:
        with np.load(path) as stored:  # which this run wrote just now
            return cls(**{f.name: stored[f.name] for f in dataclasses.fields(cls)})

    def tasks_with(self, ngrams: np.ndarray) -> list[str]:
        """Names of the tasks that contain any of these n-grams (indices)."""
        return sorted({str(self.names[task]) for task in self.owner_task[np.isin(self.owner_ngram, ngrams)]})

    def report(
        self, counts: np.ndarray, common: np.ndarray, found: list[Path], malformed: list[int]
    ) -> dict[str, dict[str, int]]:
        """{task: counts of its texts, n-grams and matches}, for the manifest.

        counts: int64 (N,), training documents that contain each n-gram. common: bool (N,), n-grams that are
        ignored. found: files of `_find_in_shard`. malformed: skipped rows of each task.
        """
        documents_matched = np.zeros(len(self.names), np.int64)
        for path in found:
            pairs = _open_found(path, len(common))
            pairs = pairs[~common[pairs[:, 1]]]
            first = np.searchsorted(self.owner_ngram, pairs[:, 1], "left")
            last = np.searchsorted(self.owner_ngram, pairs[:, 1], "right")
            rows = np.repeat(pairs[:, 0], last - first)
            owners = [np.arange(a, b) for a, b in zip(first, last)]
            tasks = self.owner_task[np.concatenate([np.empty(0, np.int64), *owners])]
            row_and_task = np.unique(np.stack((rows, tasks), axis=1), axis=0)
            documents_matched += np.bincount(row_and_task[:, 1], minlength=len(self.names))
        columns = {
            "texts": self.texts,
            "texts_too_short": self.too_short,
            "rows_malformed": malformed,
            "ngrams": self._per_task(counts >= 0),
            "ngrams_matched": self._per_task((counts > 0) & ~common),
            "ngrams_too_common": self._per_task(common),
            "documents_matched": documents_matched.tolist(),
        }
        return {
            name: {title: int(values[task]) for title, values in columns.items()}
            for task, name in enumerate(self.names)
        }

    def _per_task(self, chosen: np.ndarray) -> list[int]:
        """How many of the chosen n-grams, bool (N,), each task contains."""
        tasks = self.owner_task[chosen[self.owner_ngram]]
        counts: list[int] = np.bincount(tasks, minlength=len(self.names)).tolist()
        return counts


def read_ngrams(
    tasks: list[EvaluationTask], config: DecontaminateConfig
) -> tuple[EvaluationNgrams, list[int]]:
    """The n-grams of the tasks, and the malformed rows of each; UserError for a task without n-grams."""
    rows: list[np.ndarray] = []  # uint64 (3, ...): number of words, hash and task of each n-gram
    texts, too_short = [0] * len(tasks), [0] * len(tasks)
    for number, task in enumerate(tasks):
        task_ngrams = 0
        for pieces in evaluation_texts.texts(task, config.evaluation_key, config.max_record_bytes):
            texts[number] += 1
            words, first = batch_words([normalize("NFC", piece) for piece in pieces])
            long_enough = [(a, b) for a, b in itertools.pairwise(first) if b - a >= config.min_ngram]
            too_short[number] += not long_enough
            for start, end in long_enough:
                n = min(end - start, config.max_ngram)
                hashes = np.unique(ngram_hashes(words[start:end], n))
                task_ngrams += len(hashes)
                rows.append(np.stack((np.full_like(hashes, n), hashes, np.full_like(hashes, number))))
        if not task_ngrams:
            raise UserError(
                f"{', '.join(task.places)}: none of its {texts[number]:,} texts has {config.min_ngram} words:"
                " there is nothing to look for; check the file and --evaluation-key, or lower --min-ngram"
            )
    every = np.unique(np.concatenate(rows, axis=1), axis=1)
    is_first = np.concatenate(([True], (every[:2, 1:] != every[:2, :-1]).any(axis=0)))
    ngrams = EvaluationNgrams(
        names=[t.name for t in tasks],
        texts=texts,
        too_short=too_short,
        hashes=every[1, is_first],
        lengths=every[0, is_first].astype(np.int64),
        owner_ngram=np.cumsum(is_first) - 1,
        owner_task=every[2].astype(np.int64),
    )
    return ngrams, [task.skipped for task in tasks]


class _NgramFinder:
    """Finds evaluation n-grams in texts: a bit table rejects nearly all others before the binary search."""

    def __init__(self, ngrams: EvaluationNgrams):
        bits = max(16, int(16 * len(ngrams.hashes)).bit_length())
        self.mask = np.uint64((1 << bits) - 1)
        self.by_length = []  # (number of words, index of the first such n-gram, hashes, bit table)
        for n in np.unique(ngrams.lengths).tolist():
            start, end = np.searchsorted(ngrams.lengths, (n, n + 1))
            table = np.zeros(1 << bits, bool)
            table[ngrams.hashes[start:end] & self.mask] = True
            self.by_length.append((n, int(start), ngrams.hashes[start:end], table))

    def __call__(self, words: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (number of words n, positions, n-gram indices) for every length of n-gram.

        words: uint64 (W,), hashes of words. The n-gram begins with the word at `positions`.
        """
        for n, first_ngram, hashes, table in self.by_length:
            grams = ngram_hashes(words, n)
            candidates = np.flatnonzero(table[grams & self.mask])
            places = np.minimum(np.searchsorted(hashes, grams[candidates]), len(hashes) - 1)
            equal = hashes[places] == grams[candidates]
            yield n, candidates[equal], places[equal] + first_ngram


def _find_in_shard(item: tuple[int, ShardGroup], *, folder: Path, ngrams_path: Path) -> dict[str, int]:
    """Writes int64 (M, 2): (row, n-gram index) for every document of a shard and every n-gram in it."""
    index, shard = item
    find = _NgramFinder(EvaluationNgrams.load(ngrams_path))
    found, row = [np.empty((0, 2), np.int64)], 0
    for batch in batches(shard.read(lambda reject: None), BATCH_CHARS):
        words, first = batch_words([normalize("NFC", document.text) for document in batch])
        for n, positions, ngrams in find(words):
            text = np.searchsorted(first, positions, side="right") - 1
            inside = positions + n <= first[text + 1]  # not across two documents
            found.append(np.unique(np.stack((text[inside] + row, ngrams[inside]), axis=1), axis=0))
        row += len(batch)
    save_array(folder / f"{index:05d}.npy", np.concatenate(found))
    return {"documents": row}


def _open_found(path: Path, num_ngrams: int) -> np.ndarray:
    """int64 (M, 2): what `_find_in_shard` wrote."""
    pairs = open_array(path, np.int64, (None, 2), remedy=UNFINISHED)
    refuse_beyond(pairs[:, 0], 1 << 62, path)
    refuse_beyond(pairs[:, 1], num_ngrams, path)
    return pairs


def _make_cutter(
    config: DecontaminateConfig, folder: Path, log: TextIO, shard_index: int
) -> tuple[Transform, Tallies]:
    """The transform of one shard's documents. log: gets a line for each document that is cut."""
    ngrams = EvaluationNgrams.load(folder / "ngrams.npz")
    common = open_array(folder / "common.npy", bool, (len(ngrams.hashes),), remedy=UNFINISHED)
    find = _NgramFinder(ngrams)
    pairs = _open_found(folder / "found" / f"{shard_index:05d}.npy", len(common))
    contaminated = set(pairs[~common[pairs[:, 1]], 0].tolist())
    outcomes: Counter[str] = Counter()
    row = -1

    def change(document: Document) -> Document | list[Document] | Removed:
        nonlocal row
        row += 1
        if row not in contaminated:
            return document
        spans, matched = _matches(document.text, find, common)
        why = {"against": ngrams.tasks_with(matched), "example": document.text[slice(*spans[0])]}
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

    return change, {"cut": outcomes}


def _matches(text: str, find: _NgramFinder, common: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """([start, end) in characters of every match, by start, the longest first; their n-gram indices)."""
    words, _ = batch_words([normalize("NFC", text)])
    word_spans = [m.span() for m in WORD.finditer(text)]
    assert len(word_spans) == len(words), "batch_words and WORD disagree on the words of a text"
    spans, matched = [], [np.empty(0, np.int64)]
    for n, positions, ngrams in find(words):
        counted = ~common[ngrams]
        spans += [(word_spans[i][0], word_spans[i + n - 1][1]) for i in positions[counted].tolist()]
        matched.append(ngrams[counted])
    return sorted(spans, key=lambda s: (s[0], -s[1])), np.concatenate(matched)


def cut(text: str, spans: list[tuple[int, int]], each_side: int, min_chars: int) -> list[str]:
    """Removes spans and their surroundings from a text; returns the pieces of more than min_chars characters.

    spans: sorted [start, end) in characters. A cut begins after the last `.`, `!` or `?` that lies at least
    `each_side` characters before the span. It ends after the first one that lies at least as far after it.
    """
    ends = [m.end() for m in SENTENCE_END.finditer(text)]
    pieces, place = [], 0
    for start, end in spans:
        if start < place:
            continue  # removed with the previous match
        before = bisect.bisect_right(ends, start - each_side) - 1
        left = text[place : ends[before]] if before >= 0 and ends[before] > place else ""
        if len(left) > min_chars:
            pieces.append(left.strip())
        after = bisect.bisect_right(ends, end + each_side)
        place = ends[after] if after < len(ends) else len(text)
    if len(text) - place > min_chars:
        pieces.append(text[place:].strip())
    return pieces
