"""RACE (Lai et al. 2017): reading comprehension with four options, by a finetuned BERT or by a GPT.

A file is `.txt`, each line a JSON object {article, questions[], options[][4], answers["A".."D"]} and perhaps
an id; a folder is searched for such files. finetune.py describes the command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from ...core.config import configuration, option
from ...documents.files import utf8_lines
from ...documents.rejects import Reject
from .data_files import Refuse
from .examples import Example, clean
from .finetune import FinetuneConfig, FinetuneOptimizer, run
from .multiple_choice import ClassificationTask

CHOICES = 4
MAX_BLANKS = 100  # blanks that are filled: without a limit, a line of 1 MB could become 100 GB


@configuration(group="optimizer")
class RaceOptimizer(FinetuneOptimizer):
    lr: float = option(1e-5, "peak learning rate")
    lr_warmup_fraction: float | None = option(0.06, "warm-up, as a fraction of the decay")


@configuration()
class RaceConfig(FinetuneConfig):
    """The settings of `mt eval race`."""

    epochs: int = option(3, "passes over the training examples; 0: only evaluate --load")
    micro_batch_size: int = option(4, "questions in a forward pass, each with four sequences")
    optimizer: RaceOptimizer


def race(config: RaceConfig) -> dict | None:
    """The summary of `mt eval race` on rank 0, None on the other ranks."""
    return run(config, RACE)


def read_race(path: Path, refuse: Refuse) -> Iterator[Example]:
    """The questions of a RACE file, article by article."""
    for number, line in utf8_lines(path):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            refuse(Reject(str(path), f"line {number}", f"malformed JSON at column {error.colno}", line))
            continue
        if wrong := _problem(record):
            refuse(Reject(str(path), f"line {number}", wrong, line))
            continue
        article = clean(record["article"])
        name = str(record.get("id", f"{path.name}:{number}"))
        for n, (question, options, answer) in enumerate(
            zip(record["questions"], record["options"], record["answers"])
        ):
            # An option replaces every blank of the question; without a blank it follows the question.
            filled = [
                question.replace("_", choice, MAX_BLANKS) if "_" in question else f"{question} {choice}"
                for choice in options
            ]
            yield Example(
                f"{name}:{n}",
                str(path),
                tuple(map(clean, filled)),
                article,
                ord(answer) - ord("A"),
                clean(question),
                tuple(map(clean, options)),
            )


def _problem(record) -> str | None:
    """Why a JSON value is no line of RACE, or None."""
    if not isinstance(record, dict):
        return "is not a JSON object"
    for key, kind in (("article", str), ("questions", list), ("options", list), ("answers", list)):
        if not isinstance(record.get(key), kind):
            return (
                f"has no {key!r} that is a {'text' if kind is str else 'list'}; a line of RACE has article,"
                " questions, options and answers"
            )
    questions, options, answers = (record[key] for key in ("questions", "options", "answers"))
    if not len(questions) == len(options) == len(answers):
        return (
            f"has {len(questions)} questions, {len(options)} lists of options and {len(answers)} answers; it"
            " must have as many of each"
        )
    for n, (question, choices, answer) in enumerate(zip(questions, options, answers), 1):
        texts = [question, *choices] if isinstance(choices, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            return f"question {n} or one of its options is not a text"
        if len(choices) != CHOICES:
            return f"question {n} has {len(choices)} options; RACE has {CHOICES}"
        if answer not in ("A", "B", "C", "D"):
            return f"the answer of question {n} is {answer!r}; it must be A, B, C or D"
    return None


RACE = ClassificationTask("race", read_race, (".txt",), outputs=1, for_gpt=True)
