"""The `mt data classify` command: score documents with a model or a program, and keep them by their scores.

The model (`--model`) is a file of fastText, the output of `mt data train-classifier`, or the directory of a
Hugging Face sequence classifier; the score is the probability of `--label`. A program (`--command`) reads one
line of JSON {"id", "text"} per document on its standard input. It writes one line per document, in the same
order, on its standard output: a number, or an object with `score`. `mt eval score` is such a program.

One setting says what is kept: documents with scores up to `--max-score`, or from `--min-score`; the fraction
`--keep-fraction` with the lowest scores, or with the highest (`--keep`), where ties are resolved by the order
of the documents; or all, which `--buckets` divides by their scores into equal parts.

Scores are computed first, shard by shard; a run continued after a kill does not compute them again. The
output directory is that of every document stage (stage.py). Each kept document has a field `score`, and with
`--buckets` a field `bucket`, from 0 for the lowest scores. A document of which a fastText model knows no word
has no score, and is removed as `no_score`. Memory holds the model and the scores of one shard.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import io
import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...core import manifest
from ...core.arrays import UNFINISHED, open_array
from ...core.config import Failure, UserError, check, configuration, option
from ...core.executor import map_shards
from ...documents.reader import Document, batches
from ...documents.shard_groups import ShardGroup
from .. import programs, stage
from ..stage import DocumentStage, Removed, Tallies, Transform
from . import quantiles
from .fasttext_file import LABEL_PREFIX, label_name, read_model

if TYPE_CHECKING:
    from .fasttext_model import FastTextModel

BATCH_CHARS = 1 << 18  # of the texts that a fastText model scores in one call


@configuration()
class ClassifyConfig(DocumentStage):
    """The settings of `mt data classify`."""

    command: str | None = option(None, 'program that reads {"id", "text"} lines and writes a number for each')
    model: str | None = option(
        None,
        "fastText's .bin or .ftz file, output of train-classifier, or a Hugging Face classifier's directory",
        role="input",
    )
    label: str | None = option(
        None,
        "label of the model whose probability is the score (default: good, or the last of Hugging Face's)",
        added=True,
    )
    max_score: float | None = option(None, "keep documents with at most this score")
    min_score: float | None = option(None, "keep documents with at least this score", added=True)
    keep_fraction: float | None = option(None, "keep this fraction of the documents, by their scores")
    keep: Literal["low", "high"] | None = option(
        None, "which scores keep_fraction keeps; a command's: low, unless given", added=True
    )
    buckets: int | None = option(
        None, "keep all documents, and number this many equal parts of them by score", added=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        program = (shlex.split(self.command or "") or [""])[0]
        chosen = [self.max_score, self.min_score, self.keep_fraction, self.buckets]
        check(
            ((self.command is None) != (self.model is None), "give either --model PATH or --command PROGRAM"),
            (
                self.command is None or _find_program(program) is not None,
                f"command = {self.command!r}: there is no program {program!r}; check the path",
            ),
            (
                self.label is None or self.model is not None,
                f"label = {self.label} has no effect on a command; omit it",
            ),
            (
                sum(value is not None for value in chosen) == 1,
                "give one of --max-score X, --min-score X, --keep-fraction F and --buckets N",
            ),
            (
                self.keep_fraction is None or 0 < self.keep_fraction <= 1,
                f"keep_fraction = {self.keep_fraction} must be above 0 and at most 1",
            ),
            (
                self.keep is None or self.keep_fraction is not None,
                f"keep = {self.keep} has no effect without --keep-fraction; omit it",
            ),
            (
                self.keep is not None or self.model is None or self.keep_fraction is None,
                f"keep_fraction = {self.keep_fraction}: which scores should be kept? Add --keep high or"
                " --keep low",
            ),
            (
                self.buckets is None or 2 <= self.buckets <= 1000,
                f"buckets = {self.buckets} must be from 2 to 1000",
            ),
        )


def _find_program(name: str) -> str | None:
    """The path of a program, or None; also finds `mt` next to this Python in an inactive environment."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def classify(config: ClassifyConfig) -> dict[str, Any]:
    """Scores and filters documents; returns the stage's manifest.

    It has `highest_score_kept`, `lowest_score_kept` or, with buckets, `bucket_limits`: the lowest score of
    each bucket but the first.
    """
    scorer = _scorer(config)
    run, shards = stage.begin("data classify", config, more_inputs=scorer.files)
    if run.finished:
        return run.manifest
    scores = run.output / "parts" / "scores"
    map_shards(
        functools.partial(_score_shard, scorer=scorer, folder=str(scores)),
        list(enumerate(shards)),
        done=scores / "done",
        **config.where,
        label="score",
        sizes=[s.bytes for s in shards],
    )
    files = [scores / f"{i:05d}.npy" for i in range(len(shards))]
    if config.buckets is not None:
        limits = _bucket_limits(files, config.buckets)
        buckets = functools.partial(_make_bucketer, str(scores), limits)
        return stage.map_documents(run, config, shards, buckets, bucket_limits=limits)
    high = config.keep == "high" or config.min_score is not None
    limit, ties = _score_limit(config, files, high)
    make = functools.partial(_make_score_filter, str(scores), limit, ties, high)
    if high:
        return stage.map_documents(run, config, shards, make, lowest_score_kept=limit)
    return stage.map_documents(run, config, shards, make, highest_score_kept=limit)


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """What computes scores: a program, or a label of a fastText file, by its number. files: of the model."""

    command: str | None
    label: int = 0
    files: tuple[str, ...] = ()


def _scorer(config: ClassifyConfig) -> _Scorer:
    """Raises UserError for a model that cannot be read, or that has no such label."""
    if config.model is None:
        return _Scorer(config.command)
    path = Path(config.model)
    if (path / "config.json").exists():
        files = sorted(str(p) for p in path.iterdir() if p.is_file())
        label = ["--label", config.label] if config.label is not None else []
        program = [sys.executable, "-m", "mt", "eval", "score", "--classifier", config.model, *label]
        return _Scorer(shlex.join(program), files=tuple(files))
    if path.is_dir():
        if not (path / "model.bin").exists():
            raise UserError(
                f"model = {config.model}: the directory has neither model.bin (mt data train-classifier) nor"
                " config.json (Hugging Face); check the path"
            )
        path /= "model.bin"
    labels = [label_name(label) for label in read_model(path).labels]
    wanted = (config.label or "good").removeprefix(LABEL_PREFIX)
    if wanted not in labels:
        shown = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
        raise UserError(f"label = {wanted} is none of {path}'s labels; give one as --label: {shown}")
    return _Scorer(None, labels.index(wanted), (str(path),))


@functools.lru_cache(maxsize=1)
def _load(path: str, modified_ns: int) -> FastTextModel:
    from .fasttext_model import FastTextModel

    return FastTextModel.load(path)


def _score_shard(item: tuple[int, ShardGroup], *, scorer: _Scorer, folder: str) -> dict[str, int]:
    """Writes NNNNN.npy, the float64 scores of a shard's documents; NaN where there is none."""
    index, shard = item
    documents = shard.read(lambda reject: None)  # unreadable records are logged later, by map_documents
    if scorer.command is not None:
        scores = run_program(scorer.command, documents, shard.name)
    else:
        path = scorer.files[0]
        model = _load(path, Path(path).stat().st_mtime_ns)
        scores = []
        for batch in batches(documents, BATCH_CHARS):
            texts = [document.text for document in batch]
            scores.extend(model.label_probabilities(texts, scorer.label).tolist())
    with manifest.atomic_write(Path(folder) / f"{index:05d}.npy") as file:
        np.save(file, np.array(scores, np.float64))
    return {"documents": len(scores)}


def run_program(command: str, documents: Iterable[Document], place: str) -> list[float]:
    """The scores of documents; raises UserError if the program fails or its output has another format.

    place: what error messages call the documents.
    """
    program, *arguments = shlex.split(command)
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for document in documents:
            yield json.dumps({"id": document.id, "text": document.text}).encode() + b"\n"
            count += 1

    data, status, last_line = programs.run_program([_find_program(program) or program, *arguments], lines())
    output = io.StringIO(data.decode("utf-8", "replace"), newline=None)
    answers = [line for line in output if line.strip()]
    if status:
        raise UserError(
            f"command = {command!r} failed on {place} with exit code {status} ({last_line}); correct it and"
            " run the same command again"
        )
    if len(answers) != count:
        raise UserError(
            f"command = {command!r} wrote {len(answers)} lines for the {count} documents of {place}; it must"
            " write one line for each"
        )
    return [
        _score(answer, f"command = {command!r}, line {n} for {place}") for n, answer in enumerate(answers, 1)
    ]


def _score(answer: str, place: str) -> float:
    try:
        value = json.loads(answer)
        score = float(value["score"] if isinstance(value, dict) else value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise UserError(
            f"{place}: {answer.strip()[:40]!r} is neither a number nor an object with `score`"
        ) from None
    if math.isnan(score):
        raise UserError(f"{place}: the score is not a number (NaN)")
    return score


def _score_limit(config: ClassifyConfig, files: list[Path], high: bool) -> tuple[float, list[int]]:
    """(the last score that is kept, how many documents with exactly this score to keep in each shard)."""
    threshold = config.min_score if high else config.max_score
    if threshold is not None:
        return threshold, [sys.maxsize] * len(files)
    assert config.keep_fraction is not None, "checked by ClassifyConfig"
    count = sum(len(block) for block in quantiles.blocks(files))
    if not count:
        return 0.0, [0] * len(files)
    num_kept = max(1, round(config.keep_fraction * count))
    (limit,) = quantiles.order_statistics(files, [count - num_kept if high else num_kept - 1])
    beyond = sum(int(((b > limit) if high else (b < limit)).sum()) for b in quantiles.blocks(files))
    ties: list[int] = []
    ties_left = num_kept - beyond
    for file in files:
        ties.append(min(ties_left, sum(int((b == limit).sum()) for b in quantiles.blocks([file]))))
        ties_left -= ties[-1]
    return limit, ties


def _bucket_limits(files: list[Path], num_buckets: int) -> list[float]:
    """The lowest score of each bucket but the first. Equal scores are in the same bucket."""
    count = sum(len(block) for block in quantiles.blocks(files))
    ranks = [count * n // num_buckets for n in range(1, num_buckets)] if count else []
    return quantiles.order_statistics(files, ranks)


def _stored_scores(folder: str, shard_index: int) -> Callable[[Document], float]:
    """Gives the scores of a shard's documents, in order."""
    path = Path(folder) / f"{shard_index:05d}.npy"
    scores = iter(open_array(path, np.float64, (None,), remedy=UNFINISHED).tolist())

    def next_score(document: Document) -> float:
        score: float | None = next(scores, None)
        if score is None:
            raise Failure(f"{document.id}: the input grew while it was scored; run the same command again")
        return score

    return next_score


def _make_score_filter(
    folder: str, limit: float, ties: list[int], high: bool, shard_index: int
) -> tuple[Transform, Tallies]:
    """The transform of one shard's documents: adds `score`, or removes those beyond the limit."""
    next_score = _stored_scores(folder, shard_index)
    ties_left = ties[shard_index]

    def change(document: Document) -> Document | Removed:
        nonlocal ties_left
        score = next_score(document)
        if math.isnan(score):
            return Removed("no_score")
        beyond = score < limit if high else score > limit
        if beyond or (score == limit and not ties_left):
            facts = {"score": score, "at_least" if high else "at_most": limit}
            return Removed("score_too_low" if high else "score_too_high", facts)
        ties_left -= score == limit
        document.meta["score"] = score
        return document

    return change, {}


def _make_bucketer(folder: str, limits: list[float], shard_index: int) -> tuple[Transform, Tallies]:
    """The transform of one shard's documents: adds `score` and `bucket`."""
    next_score = _stored_scores(folder, shard_index)
    counts: collections.Counter[str] = collections.Counter()

    def change(document: Document) -> Document | Removed:
        score = next_score(document)
        if math.isnan(score):
            return Removed("no_score")
        bucket = bisect.bisect_right(limits, score)
        counts[str(bucket)] += 1
        document.meta |= {"score": score, "bucket": bucket}
        return document

    return change, {"documents_in_bucket": counts}
