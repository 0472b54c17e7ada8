"""Curves: what of a log is read, and what thinning keeps."""

import json
import math
import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mt.commands.report.curves import CHARTS, Curve, charts, read_curves, thinned
from mt.tests.commands.report.small_runs import log_lines
from mt.train.metrics import whole_lines


def test_the_curves_of_a_log_are_what_the_training_reads_of_it(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in log_lines()) + '{"step": 41, "lo')
    curves = read_curves(path, {})
    for metric in ("loss", "valid_loss", "lr", "memory_bytes"):
        points = [(line["step"], line[metric]) for line in whole_lines(path) if metric in line]
        assert list(zip(curves[metric].steps, curves[metric].values)) == points


def test_losses_of_the_manifest_stand_in_for_a_log_that_is_gone():
    found = read_curves(None, {"curve": [[1, 9.0], [2, math.nan], [3, 4.0]], "valid_curve": None})
    assert list(found) == ["loss"]
    assert found["loss"].steps.tolist() == [1, 2, 3]
    assert np.isnan(found["loss"].values[1])


def test_values_that_no_chart_can_show_are_gaps(tmp_path):
    path = tmp_path / "log.jsonl"
    values = [1.0, math.inf, 1e300, "x", None, True, 10**400]
    path.write_text("".join(json.dumps({"step": n, "loss": value}) + "\n" for n, value in enumerate(values)))
    (chart,) = charts([("run", read_curves(path, {}), math.inf)])
    assert chart["series"][0]["values"] == [1.0, None, None, None, None, None, None]
    assert chart["levels"] == []
    json.dumps(chart, allow_nan=False)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.integers(4, 300))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(values, most):
    curve = Curve(np.arange(len(values)), np.array(values))
    kept = thinned(curve, most)
    assert len(kept.steps) <= most
    assert (kept.steps[0], kept.steps[-1]) == (0, len(values) - 1)
    assert (kept.values.min(), kept.values.max()) == (min(values), max(values))
    assert all(values[step] == value for step, value in zip(kept.steps, kept.values))


def test_a_chart_of_a_million_steps_is_small():
    steps = np.arange(1_000_000)
    curve = Curve(steps, np.sin(steps / 1e5))
    made = charts([("run", {metric: curve for chart in CHARTS for metric, _ in chart.metrics}, 1.0)])
    assert [chart["title"] for chart in made] == [chart.title for chart in CHARTS]
    assert len(json.dumps(made)) < 150_000


def test_charts_of_two_runs_lie_over_each_other():
    curve = Curve(np.array([1, 2]), np.array([3.0, 2.0]))
    runs = [("a", {"loss": curve, "valid_loss": curve}, 5.0), ("b", {"loss": curve}, 5.0)]
    (chart,) = charts(runs)
    assert [(s["label"], s["run"], s["dashed"]) for s in chart["series"]] == [
        ("a: training", 0, False),
        ("a: validation", 0, True),
        ("b: training", 1, False),
    ]
    assert [level["label"] for level in chart["levels"]] == ["unigram entropy"], "one line if both are equal"
    assert chart["table"] == [
        ["step", "a: training", "a: validation", "b: training"],
        ["1", "3", "3", "3"],
        ["2", "2", "2", "2"],
    ]


def test_memory_is_in_gibibytes():
    curve = Curve(np.array([1]), np.array([3.0 * 2**30]))
    (chart,) = charts([("a", {"memory_bytes": curve}, None)])
    assert (chart["unit"], chart["series"][0]["values"]) == ("GiB", [3.0])


def test_a_line_without_an_end_ends_a_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n')
    os.truncate(path, 1 << 40)  # zeros, which take no room on the disk
    assert read_curves(path, {})["loss"].values.tolist() == [2.0]
    assert whole_lines(path) == [{"step": 1, "loss": 2.0}]
