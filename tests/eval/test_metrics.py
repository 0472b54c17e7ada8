"""Means, perplexities and standard errors, compared with numpy."""

import math

import numpy as np
import pytest

from mt.eval.metrics import RunningMean, perplexity


def test_a_running_mean_is_that_of_numpy():
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    mean = RunningMean()
    for value in values:
        mean.add(value)
    assert mean.count == 1000
    assert mean.mean == pytest.approx(values.mean(), rel=1e-12)
    assert mean.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-9)


def test_the_standard_error_needs_two_values():
    mean = RunningMean()
    mean.add(3.0)
    assert (mean.mean, mean.stderr) == (3.0, None)
    mean.add(5.0)
    assert mean.stderr == pytest.approx(np.std([3, 5], ddof=1) / math.sqrt(2))


def test_the_standard_error_of_a_perplexity_is_that_of_resampled_losses():
    losses = np.random.default_rng(0).normal(2, 0.5, 400)
    stderr = losses.std(ddof=1) / math.sqrt(len(losses))
    found = perplexity("ppl", losses.mean(), stderr)
    draws = np.random.default_rng(1).integers(0, 400, (4000, 400))
    assert found["ppl"] == pytest.approx(np.exp(losses.mean()))
    assert found["ppl_stderr"] == pytest.approx(np.exp(losses[draws].mean(1)).std(), rel=0.05)
    assert perplexity("ppl", 1.0, None) == {"ppl": math.e, "ppl_stderr": None}


def test_a_perplexity_is_finite_for_any_loss():
    assert math.isfinite(perplexity("ppl", 1e6, None)["ppl"])
    assert perplexity("ppl", 100.0, None)["ppl"] == pytest.approx(math.exp(100)), "it is not capped at e^20"
