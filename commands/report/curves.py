"""The curves of a training: its log.jsonl, thinned to what a page can show."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core import paths
from ...core.config import UserError
from ...core.manifest import Json
from ...core.parsing import MADE_BY_MT, parse_json

LINE_BYTES = 1 << 24  # of a log; an honest line has a few hundred
MOST_POINTS = 800  # of a curve: about one for a pixel
MOST_PLOTTED = 1e30  # beyond it a value has no place in a curve
TABLE_ROWS = 12
METRICS = ("loss", "valid_loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes")


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart. metrics: its curves, by their names in log.jsonl, with what the legend calls them."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    about: str
    scale: float = 1.0


CHARTS = (
    Chart(
        "Loss",
        "nats per token",
        (("loss", "training"), ("valid_loss", "validation")),
        "Lower is better. A model that knows only how often each token occurs has the unigram entropy.",
    ),
    Chart("Learning rate", "", (("lr", "learning rate"),), "Of each logged step."),
    Chart(
        "Gradient norm",
        "",
        (("grad_norm", "gradient norm"),),
        "Before clipping. Spikes are steps on unusual batches; growth is a sign of divergence.",
    ),
    Chart("Throughput", "tokens per second", (("tokens_per_second", "throughput"),), "Of all devices."),
    Chart(
        "Memory", "GiB", (("memory_bytes", "peak memory"),), "Peak so far, of the first process.", 1 / 2**30
    ),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values at steps, NaN where there is none."""

    steps: np.ndarray
    values: np.ndarray

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.values).any())


def read_curves(log: Path | None, manifest: Json) -> dict[str, Curve]:
    """{metric: curve} of a training: from its log, else from the losses in its manifest."""
    found = _from_log(log) if log is not None else {}
    for metric, name in (("loss", "curve"), ("valid_loss", "valid_curve")):
        if metric not in found and (points := manifest.get(name)):
            found[metric] = _curve(array.array("d", [p[0] for p in points]), [p[1] for p in points])
    return {metric: curve for metric, curve in found.items() if curve}


def _from_log(path: Path) -> dict[str, Curve]:
    """The curves in a log, up to a line that is not whole: a training may be writing it."""
    steps = {metric: array.array("d") for metric in METRICS}
    values = {metric: array.array("d") for metric in METRICS}
    with contextlib.suppress(UserError), open(paths.regular(path), "rb") as log:
        while line := log.readline(LINE_BYTES):
            record = parse_json(line, str(path), MADE_BY_MT)
            if (
                not isinstance(record, dict)
                or type(step := record.get("step")) is not int
                or abs(step) > 2**53
            ):
                break
            for metric in METRICS:
                if metric in record:
                    steps[metric].append(step)
                    values[metric].append(_number(record[metric]))
    return {metric: _curve(steps[metric], values[metric]) for metric in METRICS if steps[metric]}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_PLOTTED:
        return math.nan
    return float(value)


def _curve(steps: Sequence[float], values: Sequence[float]) -> Curve:
    numbers = np.array([_number(value) for value in values])
    order = np.argsort(np.asarray(steps), kind="stable")
    return Curve(np.asarray(steps)[order], numbers[order])


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most so many points of a curve: the first, the last, and the extremes of each part between them.

    So no spike is lost, which a mean or every tenth point would lose.
    """
    count = len(curve.steps)
    if count <= most:
        return curve
    kept = {0, count - 1}
    for part in np.array_split(np.arange(1, count - 1), (most - 2) // 2):
        values = curve.values[part]
        if np.isfinite(values).any():
            kept |= {int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])}
    chosen = np.array(sorted(kept))
    return Curve(curve.steps[chosen], curve.values[chosen])


def charts(runs: Sequence[tuple[str, dict[str, Curve], float | None]]) -> list[Json]:
    """The charts of one training of one or several runs, as the page takes them.

    runs: (name of the run, its curves, unigram entropy of its data). Each chart is {"title", "unit", "about",
    "series": [{"label", "run", "steps", "values"}], "levels": [{"label", "run", "value"}], "table"}.
    """
    several = len(runs) > 1
    made = []
    for chart in CHARTS:
        series = []
        for number, (run, curves, _) in enumerate(runs):
            for metric, label in chart.metrics:
                if metric in curves:
                    curve = thinned(curves[metric])
                    series.append(
                        {
                            "label": f"{run}: {label}" if several else label,
                            "run": number,
                            "dashed": metric == "valid_loss" and several,
                            "second": metric == "valid_loss",
                            "steps": [int(step) for step in curve.steps],
                            "values": [_plain(value * chart.scale) for value in curve.values],
                        }
                    )
        if not series:
            continue
        levels = [
            {"label": f"{run}: unigram entropy" if several else "unigram entropy", "value": _plain(entropy)}
            for run, _, entropy in runs
            if chart.title == "Loss" and entropy and abs(entropy) <= MOST_PLOTTED
        ]
        if len({level["value"] for level in levels}) == 1:
            levels = [{**levels[0], "label": "unigram entropy"}]
        made.append(
            {
                "title": chart.title,
                "unit": chart.unit,
                "about": chart.about,
                "series": series,
                "levels": levels,
                "table": _table(series),
            }
        )
    return made


def _plain(value: float) -> float | None:
    """A value for JSON, with six digits; None for NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _table(series: Sequence[Json]) -> list[list[str]]:
    """The values at some steps, as rows of texts with a head: for those who cannot see the chart."""
    steps = sorted({step for one in series for step in one["steps"]})
    if len(steps) > TABLE_ROWS:
        steps = [steps[round(i * (len(steps) - 1) / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
    table = [["step", *(one["label"] for one in series)]]
    for step in steps:
        cells = []
        for one in series:
            at = int(np.searchsorted(one["steps"], step, side="right")) - 1  # the last value so far
            value = one["values"][at] if at >= 0 else None
            cells.append("" if value is None else f"{value:,.4g}")
        table.append([f"{step:,}", *cells])
    return table
