"""Scores of tasks with a fixed set of answers."""

import numpy as np
import pytest

from mt.eval.tasks.multiple_choice import binary_f1


def test_f1_and_its_standard_error_are_those_of_resampling():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    said = np.where(rng.random(500) < 0.8, labels, ~labels)
    count = lambda right, told: [int(np.sum((right == a) & (told == b))) for a in (0, 1) for b in (0, 1)]
    value, stderr = binary_f1(*count(labels, said))
    sklearn = pytest.importorskip("sklearn.metrics")
    assert value == pytest.approx(sklearn.f1_score(labels, said))
    draws = rng.integers(0, 500, (3000, 500))
    assert stderr == pytest.approx(
        np.std([binary_f1(*count(labels[d], said[d]))[0] for d in draws[:1000]]), rel=0.1
    )
    assert binary_f1(5, 0, 0, 0) == (0.0, None)
