"""Scores of tasks with a fixed set of answers."""

import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.eval.tasks.examples import Example
from mt.eval.tasks.multiple_choice import (
    ClassificationScores,
    ClassificationTask,
    Predictor,
    binary_f1,
    evaluate,
)
from mt.train.parallel.mesh import Mesh

TWO_CLASSES = ClassificationTask("two", None, (), outputs=2, reports_f1=True)
LABELS = {"a": [1, 0, 1, None], "b": [0, 1]}


def counts(labels, predictions):
    return [int(np.sum((labels == a) & (predictions == b))) for a in (0, 1) for b in (0, 1)]


def test_f1_is_sklearns_and_its_standard_error_that_of_resampling():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    predictions = np.where(rng.random(500) < 0.8, labels, ~labels)
    value, stderr = binary_f1(*counts(labels, predictions))
    sklearn = pytest.importorskip("sklearn.metrics")
    assert value == pytest.approx(sklearn.f1_score(labels, predictions))
    resampled = [
        binary_f1(*counts(labels[draw], predictions[draw]))[0] for draw in rng.integers(0, 500, (1000, 500))
    ]
    assert stderr == pytest.approx(np.std(resampled), rel=0.1)


def test_f1_without_positives_is_0():
    assert binary_f1(5, 0, 0, 0) == (0.0, None)
    assert binary_f1(0, 0, 0, 1) == (1.0, None)


def files(path, refuse):
    """A reader of two invented files."""
    for n, label in enumerate(LABELS[path.name]):
        yield Example(f"{path.name}{n}", str(path), ("first",), "second", label)


def predict(examples):
    """Class 1 for every other example, with probability 0.8."""
    rows = [int(example.id[1]) % 2 for example in examples]
    return [{"prediction": p, "logprobs": [math.log(0.8 if p == c else 0.2) for c in (0, 1)]} for p in rows]


def results():
    return types.SimpleNamespace(reject=None, rejects=[], config=types.SimpleNamespace(on_error="fail"))


def test_scores_are_computed_over_all_files_and_for_each_path():
    task = ClassificationTask("two", files, (), outputs=2, reports_f1=True)
    lines = []
    scores, found = evaluate(
        task,
        {Path("a"): "place a", Path("b"): "place b"},
        results(),
        Mesh(0, 1, torch.device("cpu")),
        Predictor(predict, 8),
        lines.append,
    )
    labels, predictions = np.array([1, 0, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
    hits = labels == predictions
    losses = -np.log(np.where(hits, 0.8, 0.2))
    assert found == {"examples": 6, "scored": 5}
    assert scores["accuracy"] == pytest.approx(hits.mean())
    assert scores["accuracy_stderr"] == pytest.approx(hits.std(ddof=1) / math.sqrt(5))
    assert scores["loss"] == pytest.approx(losses.mean())
    assert scores["loss_stderr"] == pytest.approx(losses.std(ddof=1) / math.sqrt(5))
    assert scores["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert {name: (of["accuracy"], of["examples"]) for name, of in scores["files"].items()} == {
        "place a": (0.0, 3),
        "place b": (1.0, 2),
    }
    assert [(line["id"], line["label"], line.get("correct")) for line in lines] == [
        ("a0", 1, False),
        ("a1", 0, False),
        ("a2", 1, False),
        ("a3", None, None),
        ("b0", 0, True),
        ("b1", 1, True),
    ]


def test_files_without_examples_are_refused():
    task = ClassificationTask("two", lambda path, refuse: iter(()), (), outputs=2)
    with pytest.raises(UserError, match=r"place: no example could be read \(0 were set aside\)"):
        evaluate(
            task,
            {Path("a"): "place"},
            results(),
            Mesh(0, 1, torch.device("cpu")),
            Predictor(predict, 8),
            print,
        )


def test_predictions_of_a_gpt_have_an_accuracy_per_byte_and_no_loss():
    scores = ClassificationScores()
    scores.add(2, {"prediction": 2, "prediction_per_byte": 0, "logprobs": [-3.0, -4.0, -1.0, -9.0]})
    scores.add(1, {"prediction": 1, "prediction_per_byte": 1, "logprobs": [-3.0, -1.0, -2.0, -9.0]})
    task = ClassificationTask("four", None, (), outputs=1, for_gpt=True)
    summary = scores.summary(task)
    assert (summary["accuracy"], summary["accuracy_per_byte"]) == (1.0, 0.5)
    assert summary["accuracy_per_byte_stderr"] == pytest.approx(0.5)
    assert "loss" not in summary
    assert "f1" not in summary
    assert ClassificationScores().summary(TWO_CLASSES) == {}
