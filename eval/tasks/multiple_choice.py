"""questions with given answers -> scores: what a classifier chooses, or which option a GPT finds likeliest.

A judge answers a list of examples; `score` asks it about all examples of some files, on all ranks, and
counts. Every score has its standard error: accuracy and loss those of a mean, F1 that of a ratio of two
means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from ...core.config import UserError
from ...core.progress import progress
from ...train.parallel.mesh import Mesh
from ..classifier import Classifier, Encoder, answers
from ..lm import open_scorer
from ..results import Mean, Results, shared
from .race import Example, Reader, read_mnli, read_qqp, read_race, reader

EXAMPLES_AT_ONCE = 64  # that a rank judges before it tells the others


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    read: Reader
    endings: tuple[str, ...]
    outputs: int  # logits of a sequence: 1 where every choice is a sequence, else the number of classes


RACE = Task("race", read_race, (".txt",), 1)
MNLI = Task("mnli", read_mnli, (".tsv",), 3)
QQP = Task("qqp", read_qqp, (".tsv",), 2)


@dataclasses.dataclass(frozen=True)
class Judge:
    """What answers: for a list of examples their predictions, as they are written, without `id`, `file` and
    `label`.
    """

    answer: Callable[[list[Example]], list[dict]]
    seq_length: int


def chooser(model: Classifier, encoder: Encoder, batch_size: int) -> Judge:
    """A classifier's answer. batch_size: examples in one forward pass."""

    def answer(examples: list[Example]) -> list[dict]:
        return [
            {"prediction": max(range(len(row)), key=row.__getitem__), "logprobs": row}
            for row in answers(model, encoder, examples, batch_size)
        ]

    return Judge(answer, encoder.seq_length)


def likelihood(place: str, seq_length: int | None, batch_size: int, mesh: Mesh) -> Judge:
    """A GPT's answer: the option of most log-probability behind article and question, and the one of most a
    byte.

    The text is "Article: ...\\n\\nQuestion: ...\\nAnswer:", and then " " and the option. An article too long
    loses its head.
    """
    model = open_scorer(place, seq_length or "trained", batch_size, mesh=mesh)
    encode = model.tokenizer.encode

    def answer(examples: list[Example]) -> list[dict]:
        requests = []
        for example in examples:
            context = encode(f"Article: {example.second}\n\nQuestion: {example.question}\nAnswer:")
            for option_text in example.options:
                ids = encode(f" {option_text}")
                if len(ids) > model.max_length:
                    raise UserError(
                        f"{example.file}, question {example.id}: an option has {len(ids)} tokens, but a"
                        f" sequence may have {model.max_length}; raise --seq-length"
                    )
                requests.append((context, ids))
        logprobs = iter([logprob for logprob, _ in model.loglikelihood(requests)])
        found = []
        for example in examples:
            row = [next(logprobs) for _ in example.options]
            each = [value / len(option_text.encode()) for value, option_text in zip(row, example.options)]
            best, best_each = (max(range(len(values)), key=values.__getitem__) for values in (row, each))
            found.append({"prediction": best, "prediction_per_byte": best_each, "logprobs": row})
        return found

    return Judge(answer, model.max_length)


def score(
    task: Task,
    files: Mapping[Path, str],
    results: Results,
    mesh: Mesh,
    judge: Judge,
    write: Callable[[dict], None],
) -> tuple[dict, dict]:
    """(scores of all files, and of each place where there are several, counts); `write` is given a line for
    every example.

    files: what is read -> the place that was named for it.
    """
    read = reader(task.read, results.reject, results.config.on_error)
    tallies = {place: Tally() for place in files.values()}
    total, examples = Tally(), 0
    with progress(task.name, None, "examples") as advance:
        for example, found in shared(
            mesh, (e for path in files for e in read(path)), judge.answer, EXAMPLES_AT_ONCE
        ):
            line = {"id": example.id, "file": example.file, "label": example.label, **found}
            if example.label is not None:
                line["correct"] = found["prediction"] == example.label
                for tally in (total, tallies[files[Path(example.file)]]):
                    tally.add(example.label, found)
            write(line)
            examples += 1
            advance(1)
    if not examples:
        raise UserError(
            f"{', '.join(tallies)}: no example could be read ({len(results.rejects)} were set aside); check"
            " the file"
        )
    scores = total.scores(task)
    if len(tallies) > 1:
        scores["files"] = {
            name: tally.scores(task) | {"examples": tally.hits.count} for name, tally in tallies.items()
        }
    return scores, {"examples": examples, "scored": total.hits.count}


class Tally:
    """The scores of a set of examples."""

    def __init__(self):
        self.hits, self.per_byte, self.nats = Mean(), Mean(), Mean()
        # of two classes: label 0 and answer 0, label 0 and answer 1, label 1 ...
        self.pairs: list[int] = [0, 0, 0, 0]

    def add(self, label: int, found: dict) -> None:
        self.hits.add(found["prediction"] == label)
        if "prediction_per_byte" in found:
            self.per_byte.add(found["prediction_per_byte"] == label)
        else:
            self.nats.add(-found["logprobs"][label])
        if len(found["logprobs"]) == 2:
            self.pairs[2 * label + found["prediction"]] += 1

    def scores(self, task: Task) -> dict:
        """Each with its standard error; nothing where no example had a label."""
        named = {"accuracy": self.hits, "accuracy_per_byte": self.per_byte, "loss": self.nats}
        scores = {}
        for name, mean in named.items():
            if mean.count:
                scores |= {name: mean.mean, f"{name}_stderr": mean.stderr}
        if task is QQP and self.hits.count:
            scores |= dict(zip(("f1", "f1_stderr"), f1(*self.pairs)))
        return scores


def f1(
    true_negative: int, false_positive: int, false_negative: int, true_positive: int
) -> tuple[float, float | None]:
    """(F1 of class 1, its standard error to first order: that of a ratio of two means over the examples)"""
    n = true_negative + false_positive + false_negative + true_positive
    twice = 2 * true_positive + false_positive + false_negative
    if twice == 0:
        return 0.0, None
    value = 2 * true_positive / twice
    # An example adds 2, 0, 0 or 0 above the line and 2, 1, 1 or 0 below it.
    squares = true_positive * (2 - 2 * value) ** 2 + (false_positive + false_negative) * value**2
    return value, math.sqrt(squares / (n - 1) / n) / (twice / n) if n > 1 else None
