"""The `mt data train-classifier` command: train a classifier of quality from good and bad documents.

The classifier is a model of fastText (fasttext_file.py) with two labels, `good` and `bad`, that reads the
words and word n-grams of a document. `mt data classify --model` and fastText itself load it. A share of the
documents is held out, and the trained model is judged by it; the hash of the seed and the text decides, so
that equal texts stay together. Output directory:

    model.bin        the classifier
    manifest.json    settings, inputs, counts, and of the documents held out: precision and recall of `good`
                     at a probability of 0.5, and the AUC, which is the probability that a good document has a
                     higher score than a bad one
    rejects.jsonl    records that could not be read (only if there are any)

Workers read the documents, count words and score the documents held out. The training itself runs in one
process, so that the same seed gives the same file. While it runs, parts/ has the texts; memory holds the
model, and eight bytes for each document that is held out.
"""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
import operator
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ...core import manifest, paths
from ...core.arrays import UNFINISHED, open_array, refuse_beyond
from ...core.config import UserError, check, configuration, option
from ...core.executor import Workers, map_shards
from ...core.parsing import Count
from ...core.progress import progress
from ...documents import shard_groups, sharding
from ...documents.shard_groups import ShardGroup
from ...documents.sharding import InputOptions
from .. import stage
from .fasttext_file import LABEL_PREFIX, Options, write_model

GOOD, BAD = "good", "bad"
LABELS = (GOOD, BAD)
END_OF_LINE = b"</s>"
MAX_ROWS = 2**31 - 1
MOST_DIGITS = 18  # of the count of a word
OPEN_FILES = 256  # that are merged at a time
KEPT, HELD_OUT = "training", "held_out"  # the names of a shard's files


@configuration()
class TrainClassifierConfig(Workers, InputOptions):
    """The settings of `mt data train-classifier`."""

    good: tuple[str, ...] = option(help="documents of high quality: files, folders or globs", role="input")
    bad: tuple[str, ...] = option(help="documents of low quality: files, folders or globs", role="input")
    output: str = option(help="directory for the classifier", role="output")
    text_key: str = option("text", "key of the text in a record")
    dim: int = option(16, "columns of the matrices; two labels need few")
    epochs: int = option(5, "passes over the documents")
    learning_rate: float = option(0.5, "step of the gradient descent; falls to zero")
    word_ngrams: int = option(2, "longest word n-gram; 1 is words alone")
    buckets: int = option(1_000_000, "rows for word n-grams")
    min_count: int = option(2, "rarer words have no row of their own")
    max_words: int = option(1_000_000, "words with a row of their own, the most frequent ones")
    held_out_fraction: float = option(0.1, "fraction of the documents to judge the classifier by")
    seed: int = option(1234, "seed of the documents held out, the weights at the start, and the order")
    shard_bytes: int = option(64_000_000, "bytes of input in a shard")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one = ("dim", "epochs", "word_ngrams", "buckets", "min_count", "max_words")
        rows = self.max_words + self.buckets + 1
        check(
            *((getattr(self, n) >= 1, f"{n} = {getattr(self, n)} must be at least 1") for n in at_least_one),
            (self.dim <= 1024, f"dim = {self.dim} must be at most 1024"),
            (self.word_ngrams <= 8, f"word_ngrams = {self.word_ngrams} must be at most 8"),
            (rows <= MAX_ROWS, f"max_words + buckets = {rows - 1} must be below {MAX_ROWS}"),
            (self.learning_rate > 0, f"learning_rate = {self.learning_rate} must be above 0"),
            (
                0 < self.held_out_fraction < 1,
                f"held_out_fraction = {self.held_out_fraction} must lie between 0 and 1",
            ),
            (0 <= self.seed < 2**32, f"seed = {self.seed} must be from 0 to {2**32 - 1}"),
            (self.shard_bytes >= 1 << 16, f"shard_bytes = {self.shard_bytes} must be at least {1 << 16}"),
            *self.input_rules,
        )


def train_classifier(config: TrainClassifierConfig) -> dict[str, Any]:
    """Trains a classifier; returns the manifest, with `precision`, `recall` and `auc`.

    Raises UserError if a label has no documents to learn from, or none to judge by.
    """
    plans = [
        config.plan(inputs, key=config.text_key, output=config.output, shard_bytes=config.shard_bytes)
        for inputs in (config.good, config.bad)
    ]
    shards = [
        (label, shard)
        for label, plan in enumerate(plans)
        for shard in shard_groups.group(plan, config.shard_bytes)
    ]
    facts = {
        # which files are good; kept and dropped documents of one stage have the same names and keys
        **{label: _fingerprint(plan.paths) for label, plan in zip(LABELS, plans)},
        **shard_groups.facts([shard for _, shard in shards]),
    }
    run = sharding.joined(plans).begin("data train-classifier", config, facts=facts)
    if run.finished:
        stage.discard_parts(run)
        return run.manifest
    parts = run.output / "parts"
    sizes = [shard.bytes for _, shard in shards]
    where = {**config.where, "sizes": sizes}
    read = functools.partial(_read_shard, config=config)
    kinds = dict.fromkeys((KEPT, HELD_OUT, "rejected"), Count)
    results = map_shards(
        read,
        list(enumerate(shards)),
        done=parts / "read",
        label="train-classifier: reading",
        kinds=kinds,
        **where,
    )
    counts = _document_counts(shards, results)
    for label, name in itertools.product(LABELS, (KEPT, HELD_OUT)):
        if not counts[f"{label}_{name}"]:
            run.abandon()
            raise UserError(
                f"{', '.join(getattr(config, label))}: no {label} document is {name.replace('_', ' ')}; give"
                " more documents, or change held_out_fraction"
            )
    model = run.output / "model.bin"
    _train(config, parts, [label for label, _ in shards], model)
    score = functools.partial(_score_shard, parts=str(parts), model=str(model))
    map_shards(
        score, list(range(len(shards))), done=parts / "scored", label="train-classifier: judging", **where
    )
    scores = [
        np.concatenate(
            [
                open_array(parts / f"{i:05d}.npy", np.float32, (results[i][HELD_OUT],), remedy=UNFINISHED)
                for i in range(len(shards))
                if shards[i][0] == label
            ]
        )
        for label in range(2)
    ]
    outputs = [{**manifest.record(model, run.output), "documents": False}]
    if counts["rejected"]:
        outputs.append(stage.write_rejects(run.output, results))
    sealed = run.finish(outputs, counts, **judge(*scores))
    stage.discard_parts(run)
    return sealed


def _fingerprint(paths: Iterable[str]) -> str:
    """A digest of samples of the files, wherever they lie."""
    digest = xxhash.xxh3_128()
    for path in paths:
        digest.update((manifest.sample_digest(path) if Path(path).is_file() else path).encode())
    return digest.hexdigest()


def judge(good: np.ndarray, bad: np.ndarray) -> dict[str, float | None]:
    """precision and recall at 0.5, and the AUC, of scores of good and bad documents, float32 (N,) each.

    precision: None if no score is above 0.5. The AUC counts a pair of equal scores as half.
    """
    found, wrong = int((good > 0.5).sum()), int((bad > 0.5).sum())
    ordered = np.sort(bad)
    lower = np.searchsorted(ordered, good, "left").sum(dtype=np.float64)
    not_higher = np.searchsorted(ordered, good, "right").sum(dtype=np.float64)
    return {
        "precision": round(found / (found + wrong), 6) if found + wrong else None,
        "recall": round(found / len(good), 6),
        "auc": round(float(lower + not_higher) / 2 / len(good) / len(bad), 6),
    }


def _document_counts(shards: list[tuple[int, ShardGroup]], results: list[dict[str, Any]]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for (label, _), result in zip(shards, results):
        for name in (KEPT, HELD_OUT):
            counts[f"{LABELS[label]}_{name}"] += result[name]
        counts["rejected"] += result["rejected"]
    return dict(counts)


def _part(parts: str | Path, index: int, name: str) -> Path:
    return Path(parts) / f"{index:05d}.{name}"


def _read_shard(item: tuple[int, tuple[int, ShardGroup]], *, config: TrainClassifierConfig) -> dict[str, int]:
    """Writes the texts of a shard to two files, NNNNN.training and NNNNN.held_out, and its words' counts."""
    index, (_, shard) = item
    parts = Path(config.output) / "parts"
    ends: dict[str, list[int]] = {KEPT: [], HELD_OUT: []}
    words: collections.Counter[bytes] = collections.Counter()
    with (
        manifest.atomic_write(_part(parts, index, KEPT)) as kept,
        manifest.atomic_write(_part(parts, index, HELD_OUT)) as held_out,
        stage.RejectLog(Path(config.output), index) as unreadable,
    ):
        to = {KEPT: kept, HELD_OUT: held_out}
        for document in shard.read(unreadable.add):
            raw = document.text.encode("utf-8", "replace")
            digest = xxhash.xxh3_64_intdigest(raw, config.seed)
            name = HELD_OUT if digest < config.held_out_fraction * 2**64 else KEPT
            to[name].write(raw)
            ends[name].append(to[name].tell())
            if name == KEPT:
                words.update(_words(raw))
    for name in (KEPT, HELD_OUT):
        with manifest.atomic_write(_part(parts, index, f"{name}.ends.npy")) as file:
            np.save(file, np.array(ends[name], np.int64))
    with manifest.atomic_write(_part(parts, index, "words")) as file:
        file.writelines(b"%s %d\n" % pair for pair in sorted(words.items()))
    return {KEPT: len(ends[KEPT]), HELD_OUT: len(ends[HELD_OUT]), "rejected": unreadable.count}


def _words(raw: bytes) -> list[bytes]:
    """The words of a document as fastText reads them, `</s>` at the end included."""
    words = raw.replace(b"\0", b" ").split()
    if END_OF_LINE in words:  # in the text it ends the document
        words = words[: words.index(END_OF_LINE)]
    words.append(END_OF_LINE)
    return words


def _vocabulary(paths: Iterable[Path], min_count: int, max_words: int) -> tuple[list[bytes], np.ndarray]:
    """(words with a row of their own, the most frequent first; int64 counts), from sorted files of counts."""
    prefix = LABEL_PREFIX.encode()

    def candidates() -> Iterator[tuple[int, bytes]]:
        for word, count in _totals(_merged(list(paths))):
            if (count >= min_count and not word.startswith(prefix)) or word == END_OF_LINE:
                yield -count, word

    kept = heapq.nsmallest(max_words, candidates())
    if not any(word == END_OF_LINE for _, word in kept):
        kept[-1:] = [(-1, END_OF_LINE)]
    return [word for _, word in kept], np.array([-count for count, _ in kept], np.int64)


def without_crowded(words: list[bytes], counts: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """The words that a table of words can hold, and their counts; `</s>` is always one of them.

    No text has others, unless somebody has made their hashes equal: they would take quadratic time.
    """
    from .fasttext_model import word_table

    before = len(words)
    while crowded := word_table(words)[1]:
        # a smaller table may hold others
        if words.index(END_OF_LINE) in crowded:
            order = sorted(range(len(words)), key=lambda i: words[i] != END_OF_LINE)  # it gets its slot first
        else:
            order = sorted(set(range(len(words))).difference(crowded))
        words, counts = [words[i] for i in order], counts[order]
    if len(words) < before:
        print(
            f"mt: train-classifier: {before - len(words):,} words are left out, because their hashes are like"
            " those of many others",
            file=sys.stderr,
        )
    return words, counts


def _merged(counted: list[Path]) -> list[Path]:
    """At most OPEN_FILES sorted files, of which the first are merged until there are so few."""
    while len(counted) > OPEN_FILES:
        first, counted = counted[:OPEN_FILES], counted[OPEN_FILES:]
        whole = first[0].with_name(f"{first[0].name}+")
        with paths.create(whole) as file:
            file.writelines(b"%s %d\n" % pair for pair in _totals(first))
        counted.append(whole)
    return counted


def _totals(paths: Iterable[Path]) -> Iterator[tuple[bytes, int]]:
    """The sums of the counts in sorted files, in order."""
    merged = heapq.merge(*map(_read_counts, paths))
    for word, group in itertools.groupby(merged, operator.itemgetter(0)):
        yield word, sum(count for _, count in group)


def _read_counts(path: Path) -> Iterator[tuple[bytes, int]]:
    with open(paths.regular(path), "rb") as lines:
        for line in lines:
            word, _, count = line.rstrip(b"\n").rpartition(b" ")
            if not (count.isdigit() and len(count) <= MOST_DIGITS):
                raise UserError(f"{path}: has a line that is not a word and its count; {UNFINISHED}")
            yield word, int(count)


def _ends(parts: str | Path, index: int, name: str) -> np.ndarray:
    """Where each text of a file of `_read_shard` ends, int64 (N,)."""
    path = _part(parts, index, f"{name}.ends.npy")
    ends = open_array(path, np.int64, (None,), remedy=UNFINISHED)
    size = paths.regular(_part(parts, index, name)).stat().st_size
    refuse_beyond(ends, size + 1, path)
    if (ends[1:] < ends[:-1]).any() or (ends[-1] if len(ends) else 0) != size:
        raise UserError(f"{path}: is of other texts than {_part(parts, index, name)}; {UNFINISHED}")
    return ends


def _train(config: TrainClassifierConfig, parts: Path, labels: list[int], path: Path) -> None:
    """Writes the model that the texts of all shards give. labels: of each shard."""
    from .fasttext_trainer import TrainingText, train

    words, word_counts = without_crowded(
        *_vocabulary(
            [_part(parts, index, "words") for index in range(len(labels))], config.min_count, config.max_words
        )
    )
    whole, ends_path, labels_path = (parts / name for name in ("texts", "texts.ends", "texts.labels"))
    with (
        paths.create(whole) as texts,
        paths.create(ends_path) as all_ends,
        paths.create(labels_path) as all_labels,
    ):
        for index, label in enumerate(labels):
            ends = _ends(parts, index, KEPT) + texts.tell()
            all_ends.write(ends.tobytes())
            all_labels.write(bytes([label]) * len(ends))
            with open(_part(parts, index, KEPT), "rb") as source:
                shutil.copyfileobj(source, texts, 1 << 20)
    # files that this process has just made
    ends = np.memmap(ends_path, np.int64, "r")
    data = np.memmap(whole, np.uint8, "r") if whole.stat().st_size else np.empty(0, np.uint8)
    text = TrainingText(data, ends, np.memmap(labels_path, np.uint8, "r"))
    options = Options(
        config.dim,
        "softmax",
        config.word_ngrams,
        config.buckets if config.word_ngrams > 1 else 0,
        epoch=config.epochs,
        min_count=config.min_count,
    )
    with progress("train-classifier: training", len(ends) * config.epochs, "documents") as advance:
        model = train(
            text,
            words,
            word_counts,
            [f"{LABEL_PREFIX}{label}".encode() for label in LABELS],
            options,
            learning_rate=config.learning_rate,
            seed=config.seed,
            advance=advance,
        )
    with manifest.atomic_write(path) as file:
        write_model(file, model)


def _score_shard(index: int, *, parts: str, model: str) -> dict[str, int]:
    """Writes NNNNN.npy: float32, the probability of `good` for each document of a shard that is held out."""
    from .fasttext_model import FastTextModel

    classifier = FastTextModel.load(model)
    column = classifier.labels.index(GOOD)
    ends = _ends(parts, index, HELD_OUT).tolist()
    raw = _part(parts, index, HELD_OUT).read_bytes()
    texts = [raw[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise([0, *ends])]
    scores = classifier.label_probabilities(texts, column).astype(np.float32)
    with manifest.atomic_write(Path(parts) / f"{index:05d}.npy") as file:
        np.save(file, scores)
    return {"documents": len(scores)}
