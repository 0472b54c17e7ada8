"""The `mt data classify` command: score documents with a user's program and keep those with low scores.

The program (`--command`) reads one line of JSON {"id", "text"} per document on its standard input. It writes
one line per document, in the same order, on its standard output: a number, or an object with `score`. The
documents with scores up to `--max-score` are kept, or the fraction `--keep-fraction` with the lowest scores
(ties are resolved by the order of the documents). `mt eval score` is such a program for a Hugging Face
classifier.

Each shard is scored by its own process of the program; a run continued after a kill does not score it again.
The output directory is that of every document stage (stage.py); each kept document has a field `score`.
Memory grows by eight bytes per document, for the scores.
"""

from __future__ import annotations

import functools
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...core import manifest
from ...core.config import Failure, UserError, check, configuration, option
from ...core.executor import map_shards
from ...documents import reader
from ...documents.reader import Document, Shard
from .. import stage
from ..stage import DocumentStage, Removed, Tallies, Transform


@configuration()
class ClassifyConfig(DocumentStage):
    """The settings of `mt data classify`."""

    command: str = option(help='program that reads {"id", "text"} lines and writes a number for each')
    max_score: float | None = option(None, "keep documents with at most this score")
    keep_fraction: float | None = option(None, "keep this fraction of the documents, those of lowest score")

    def __post_init__(self) -> None:
        super().__post_init__()
        program = (shlex.split(self.command) or [""])[0]
        check(
            (
                _find_program(program) is not None,
                f"command = {self.command!r}: there is no program {program!r}; check the path",
            ),
            (
                (self.max_score is None) != (self.keep_fraction is None),
                "give either --max-score X or --keep-fraction F",
            ),
            (
                self.keep_fraction is None or 0 < self.keep_fraction <= 1,
                f"keep_fraction = {self.keep_fraction} must be above 0 and at most 1",
            ),
        )


def _find_program(name: str) -> str | None:
    """The path of a program, or None; also finds `mt` next to this Python in an inactive environment."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def classify(config: ClassifyConfig) -> dict[str, Any]:
    """Scores and filters documents; returns the stage's manifest, with `highest_score_kept`."""
    run, shards = stage.begin("data classify", config)
    if run.finished:
        return run.manifest
    scores = run.output / "parts" / "scores"
    work = functools.partial(_score_shard, command=config.command, folder=str(scores))
    map_shards(
        work,
        list(enumerate(shards)),
        done=scores / "done",
        **config.where,
        label="score",
        sizes=[s.bytes for s in shards],
    )
    limit, ties = _score_limit(config, [np.load(scores / f"{i:05d}.npy") for i in range(len(shards))])
    make = functools.partial(_make_score_filter, str(scores), limit, ties)
    return stage.map_documents(run, config, shards, make, highest_score_kept=limit)


def _score_shard(item: tuple[int, Shard], *, command: str, folder: str) -> dict[str, int]:
    """Writes NNNNN.npy, the float64 scores of a shard's documents."""
    index, shard = item
    # unreadable records are logged later, by map_documents
    scores = run_program(command, reader.read(shard, lambda reject: None), shard.path)
    with manifest.atomic_write(Path(folder) / f"{index:05d}.npy") as file:
        np.save(file, np.array(scores, np.float64))
    return {"documents": len(scores)}


def run_program(command: str, documents: Iterable[Document], place: str) -> list[float]:
    """The scores of documents; raises UserError if the program fails or its output has another format.

    place: what error messages call the documents.
    """
    program, *arguments = shlex.split(command)
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [_find_program(program) or program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        )
        assert process.stdin is not None, "stdin is a pipe"
        assert process.stdout is not None, "stdout is a pipe"
        stdin, stdout = process.stdin, process.stdout
        count = 0
        errors: list[UserError] = []  # of reading documents, in the other thread

        def feed() -> None:
            nonlocal count
            try:
                with stdin:
                    for document in documents:
                        stdin.write(json.dumps({"id": document.id, "text": document.text}) + "\n")
                        count += 1
            except BrokenPipeError:
                pass  # the exit status and the output of the program say why
            except UserError as error:
                errors.append(error)

        feeder = threading.Thread(target=feed)
        feeder.start()
        with stdout:
            answers = [line for line in stdout if line.strip()]
        status = process.wait()
        feeder.join()
        stderr.seek(0)
        last_line = (stderr.read().strip().splitlines() or ["no error message"])[-1]
    if errors:
        raise errors[0]
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
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{place}: {answer.strip()[:40]!r} is neither a number nor an object with `score`"
        ) from None
    if math.isnan(score):
        raise UserError(f"{place}: the score is not a number (NaN)")
    return score


def _score_limit(config: ClassifyConfig, scores: list[np.ndarray]) -> tuple[float, list[int]]:
    """(highest score that is kept, how many documents with exactly this score to keep in each shard)."""
    if config.max_score is not None:
        return config.max_score, [len(of_shard) for of_shard in scores]
    assert config.keep_fraction is not None, "checked by ClassifyConfig"
    all_scores = np.concatenate(scores)
    if not len(all_scores):
        return 0.0, [0] * len(scores)
    num_kept = max(1, round(config.keep_fraction * len(all_scores)))
    limit = float(np.partition(all_scores, num_kept - 1)[num_kept - 1])
    ties: list[int] = []
    ties_left = num_kept - int((all_scores < limit).sum())
    for of_shard in scores:
        ties.append(min(ties_left, int((of_shard == limit).sum())))
        ties_left -= ties[-1]
    return limit, ties


def _make_score_filter(
    folder: str, limit: float, ties: list[int], shard_index: int
) -> tuple[Transform, Tallies]:
    """The transform of one shard's documents: removes those with high scores, adds `score` to the others."""
    scores = iter(np.load(Path(folder) / f"{shard_index:05d}.npy").tolist())
    ties_left = ties[shard_index]

    def change(document: Document) -> Document | Removed:
        nonlocal ties_left
        score = next(scores, None)
        if score is None:
            raise Failure(f"{document.id}: the input grew while it was scored; run the same command again")
        if score > limit or (score == limit and not ties_left):
            return Removed("score_too_high", {"score": score})
        ties_left -= score == limit
        document.meta["score"] = score
        return document

    return change, {}
