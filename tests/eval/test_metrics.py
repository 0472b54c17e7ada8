"""Means and standard errors against numpy."""

import math

import numpy as np
import pytest

from mt.eval.metrics import RunningMean


def test_a_running_mean_is_numpys():
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    mean = RunningMean()
    for value in values:
        mean.add(value)
    assert mean.mean == pytest.approx(values.mean(), rel=1e-12)
    assert mean.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-9)
