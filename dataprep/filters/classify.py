"""score documents by a program of the user's, keep those that score low.

The program (`--command`) reads a line of JSON {"id", "text"} a document on its standard input, and writes a
line a document, in the same order, on its standard output: a number, or an object with `score`. What the
number means is the program's business; here the lower is kept: those up to `--max-score`, or the lowest
`--keep-fraction` of all (ties by their order). `mt eval score` is such a program for a Hugging Face
classifier.

Every shard is scored by a process of the program of its own, which a killed run does not repeat. The output
directory is that of every document stage (stage.py); each document kept carries its `score`. Of the scores
eight bytes a document are held in memory.
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

import numpy as np

from ...core import manifest
from ...core.config import Failure, UserError, check, configuration, option
from ...core.executor import map_shards
from ...documents import reader
from ...documents.reader import Document, Shard
from .. import stage
from ..stage import DocumentStage, Removed


@configuration()
class ClassifyConfig(DocumentStage):
    """By what documents are scored, and which scores stay."""

    command: str = option(help='program that reads {"id", "text"} lines and writes a number for each')
    max_score: float | None = option(None, "keep documents that score at most this")
    keep_fraction: float | None = option(None, "keep this share of the documents, the lowest scores")

    def __post_init__(self):
        super().__post_init__()
        program = (shlex.split(self.command) or [""])[0]
        check(
            (
                _program(program) is not None,
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


def _program(name: str) -> str | None:
    """Where a program lies; `mt` is found beside the Python that runs this, also where no environment is
    activated.
    """
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def classify(config: ClassifyConfig) -> dict:
    """Scores and filters documents; returns the stage's manifest, which has the highest score kept."""
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
    limit, ties = _limit(config, [np.load(scores / f"{i:05d}.npy") for i in range(len(shards))])
    return stage.map_documents(
        run, config, shards, functools.partial(_keeper, str(scores), limit, ties), highest_score_kept=limit
    )


def _score_shard(item: tuple[int, Shard], *, command: str, folder: str) -> dict:
    index, shard = item
    # what cannot be read and is to be set aside, map_documents sets aside
    scores = run_program(command, reader.read(shard, lambda reject: None), shard.path)
    with manifest.atomic_write(Path(folder) / f"{index:05d}.npy") as file:
        np.save(file, np.array(scores, np.float64))
    return {"documents": len(scores)}


def run_program(command: str, texts: Iterable[Document], place: str) -> list[float]:
    """The score of every document; raises UserError where the program fails or answers something else."""
    program, *arguments = shlex.split(command)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [_program(program) or program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
        )
        count, wrong = 0, None

        def feed() -> None:
            nonlocal count, wrong
            try:
                with process.stdin as file:
                    for document in texts:
                        file.write(json.dumps({"id": document.id, "text": document.text}) + "\n")
                        count += 1
            except BrokenPipeError:
                pass  # its exit status and its answers say why
            except UserError as error:
                wrong = error

        feeder = threading.Thread(target=feed)
        feeder.start()
        with process.stdout as file:
            answers = [line for line in file if line.strip()]
        status = process.wait()
        feeder.join()
        said.seek(0)
        last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
    if wrong is not None:
        raise wrong
    if status:
        raise UserError(
            f"command = {command!r} failed on {place} with exit code {status} ({last}); mend it and run the"
            " same command again"
        )
    if len(answers) != count:
        raise UserError(
            f"command = {command!r} answered {len(answers)} lines to the {count} documents of {place}; it"
            " must write a line for each"
        )
    return [
        _number(answer, f"command = {command!r}, line {n} for {place}") for n, answer in enumerate(answers, 1)
    ]


def _number(answer: str, place: str) -> float:
    try:
        value = json.loads(answer)
        score = float(value["score"] if isinstance(value, dict) else value)
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{place}: {answer.strip()[:40]!r} is neither a number nor an object with a score"
        ) from None
    if math.isnan(score):
        raise UserError(f"{place}: the score is not a number (NaN)")
    return score


def _limit(config: ClassifyConfig, scores: list[np.ndarray]) -> tuple[float, list[int]]:
    """(the highest score that is kept, how many documents of every shard may have exactly that)."""
    if config.max_score is not None:
        return config.max_score, [len(of_shard) for of_shard in scores]
    together = np.concatenate(scores)
    if not len(together):
        return 0.0, [0] * len(scores)
    kept = max(1, round(config.keep_fraction * len(together)))
    limit = float(np.partition(together, kept - 1)[kept - 1])
    left, ties = kept - int((together < limit).sum()), []
    for of_shard in scores:
        ties.append(min(left, int((of_shard == limit).sum())))
        left -= ties[-1]
    return limit, ties


def _keeper(folder: str, limit: float, ties: list[int], shard_index: int):
    scores = iter(np.load(Path(folder) / f"{shard_index:05d}.npy").tolist())
    left = ties[shard_index]

    def change(document: Document) -> Document | Removed:
        nonlocal left
        score = next(scores, None)
        if score is None:
            raise Failure(f"{document.id}: the input grew while it was scored; run the same command again")
        if score > limit or (score == limit and not left):
            return Removed("score_too_high", {"score": score})
        left -= score == limit
        document.meta["score"] = score
        return document

    return change
