"""Tasks with a fixed set of answers: the predictions of a classifier or of a GPT, and their scores.

A `Predictor` answers a list of examples. `evaluate` gives it all examples of some files, on all ranks, and
counts. Every score has its standard error: accuracy and loss that of a mean, F1 that of a ratio of two means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...core.config import UserError
from ...core.progress import progress
from ...train.checkpoint.base import Checkpoint
from ...train.parallel.mesh import Mesh
from ..classifier import Classifier, PairEncoder, log_probabilities
from ..lm import open_scorer
from ..metrics import RunningMean
from ..results import Results, map_over_ranks
from .data_files import Reader, with_error_policy
from .examples import Example

EXAMPLES_AT_ONCE = 64  # examples that a rank answers before results are exchanged


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """RACE, MNLI or QQP.

    suffixes: of the data files in a folder. outputs: logits of a sequence, 1 where every choice is a sequence
    of its own, otherwise the number of classes. for_gpt: whether a GPT answers by likelihood.
    """

    name: str
    read: Reader[Example]
    suffixes: tuple[str, ...]
    outputs: int
    reports_f1: bool = False
    for_gpt: bool = False


@dataclasses.dataclass(frozen=True)
class Predictor:
    """predict: for each example the fields of its line in predictions.jsonl, except id, file and label."""

    predict: Callable[[list[Example]], list[dict]]
    seq_length: int


def by_classifier(model: Classifier, encoder: PairEncoder, batch_size: int) -> Predictor:
    """The choice or class of the largest logit. batch_size: examples in a forward pass."""

    def predict(examples: list[Example]) -> list[dict]:
        return [
            {"prediction": _argmax(row), "logprobs": row}
            for row in log_probabilities(model, encoder, examples, batch_size)
        ]

    return Predictor(predict, encoder.seq_length)


def by_likelihood(checkpoint: Checkpoint, seq_length: int | None, batch_size: int, mesh: Mesh) -> Predictor:
    """A GPT's choice: the option of the largest log-probability, and the one of the largest per byte.

    The context is "Article: ...\\n\\nQuestion: ...\\nAnswer:", the continuation " " and the option. The
    beginning of an article that is too long is cut.
    """
    model = open_scorer(checkpoint, seq_length or "trained", batch_size, mesh=mesh)
    encode = model.tokenizer.encode

    def predict(examples: list[Example]) -> list[dict]:
        requests = []
        for example in examples:
            context = encode(f"Article: {example.second}\n\nQuestion: {example.question}\nAnswer:")
            for text in example.options:
                ids = encode(f" {text}")
                if len(ids) > model.max_length:
                    raise UserError(
                        f"{example.file}, question {example.id}: an option has {len(ids)} tokens, but a"
                        f" sequence may have {model.max_length}; raise --seq-length"
                    )
                requests.append((context, ids))
        logprobs = iter([logprob for logprob, _ in model.loglikelihood(requests)])
        predictions = []
        for example in examples:
            row = [next(logprobs) for _ in example.options]
            per_byte = [value / len(text.encode()) for value, text in zip(row, example.options)]
            predictions.append(
                {"prediction": _argmax(row), "prediction_per_byte": _argmax(per_byte), "logprobs": row}
            )
        return predictions

    return Predictor(predict, model.max_length)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def evaluate(
    task: ClassificationTask,
    files: Mapping[Path, str],
    results: Results,
    mesh: Mesh,
    predictor: Predictor,
    write: Callable[[dict], None],
) -> tuple[dict, dict]:
    """(scores of all files, and of each place where there are several; counts).

    files: each file, and the place of --valid-data that it belongs to. write: called with the prediction line
    of every example.
    """
    read = with_error_policy(task.read, results.reject, results.config.on_error)
    scores_of = {place: ClassificationScores() for place in files.values()}
    total, num_examples = ClassificationScores(), 0
    examples = (example for path in files for example in read(path))
    with progress(task.name, None, "examples") as advance:
        for example, prediction in map_over_ranks(mesh, examples, predictor.predict, EXAMPLES_AT_ONCE):
            line = {"id": example.id, "file": example.file, "label": example.label, **prediction}
            if example.label is not None:
                line["correct"] = prediction["prediction"] == example.label
                for scores in (total, scores_of[files[Path(example.file)]]):
                    scores.add(example.label, prediction)
            write(line)
            num_examples += 1
            advance(1)
    if not num_examples:
        raise UserError(
            f"{', '.join(scores_of)}: no example could be read ({len(results.rejects)} were set aside); check"
            " the file"
        )
    summary = total.summary(task)
    if len(scores_of) > 1:
        summary["files"] = {
            place: scores.summary(task) | {"examples": scores.hits.count}
            for place, scores in scores_of.items()
        }
    return summary, {"examples": num_examples, "scored": total.hits.count}


class ClassificationScores:
    """Accuracy, loss and F1 of labelled examples."""

    def __init__(self) -> None:
        self.hits, self.hits_per_byte, self.nats = RunningMean(), RunningMean(), RunningMean()
        # Counts for two classes: label 0 predicted 0, label 0 predicted 1, label 1 predicted 0, label 1
        # predicted 1.
        self.confusion = [0, 0, 0, 0]

    def add(self, label: int, prediction: dict) -> None:
        self.hits.add(prediction["prediction"] == label)
        if "prediction_per_byte" in prediction:
            self.hits_per_byte.add(prediction["prediction_per_byte"] == label)
        else:
            self.nats.add(-prediction["logprobs"][label])
        if len(prediction["logprobs"]) == 2:
            self.confusion[2 * label + prediction["prediction"]] += 1

    def summary(self, task: ClassificationTask) -> dict:
        """Each score with its standard error; empty where no example had a label."""
        named = {"accuracy": self.hits, "accuracy_per_byte": self.hits_per_byte, "loss": self.nats}
        summary: dict[str, float | None] = {}
        for name, mean in named.items():
            if mean.count:
                summary |= {name: mean.mean, f"{name}_stderr": mean.stderr}
        if task.reports_f1 and self.hits.count:
            summary["f1"], summary["f1_stderr"] = binary_f1(*self.confusion)
        return summary


def binary_f1(
    true_negative: int, false_positive: int, false_negative: int, true_positive: int
) -> tuple[float, float | None]:
    """(F1 of class 1, its standard error to first order, as a ratio of two means over the examples)."""
    n = true_negative + false_positive + false_negative + true_positive
    twice = 2 * true_positive + false_positive + false_negative
    if twice == 0:
        return 0.0, None
    value = 2 * true_positive / twice
    # A true positive adds 2 to the numerator and 2 to the denominator, a false one 0 and 1.
    squares = true_positive * (2 - 2 * value) ** 2 + (false_positive + false_negative) * value**2
    return value, math.sqrt(squares / (n - 1) / n) / (twice / n) if n > 1 else None
