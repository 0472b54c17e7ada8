"""`mt report` writes one HTML page about a pipeline's run, from the manifests of its stages.

It reads the `pipeline.json` of the run directory and the manifest of every stage named there. The page shows
how many documents and tokens each stage kept, what was removed and why, the loss curves, the scores and
samples. It loads no script, font or picture, so it can be mailed as one file.
"""

from __future__ import annotations

import html
import json
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..core import manifest
from ..core.config import UserError, configuration, option
from ..core.manifest import Json, atomic_write, read_json
from ..core.parsing import MADE_BY_MT, AnyFloat, Count, check_value

COLUMNS = ("stage", "documents", "tokens", "seconds", "result")
NUMBERS = ("documents", "tokens", "seconds")  # columns that are aligned at the right

MOST_PLOTTED = 1e9  # losses beyond it have no place in a curve


class ListedStage(TypedDict):
    """A stage in a pipeline.json."""

    name: str
    verb: str
    output: str


class Counts(TypedDict, total=False):
    """`counts` of a manifest, as far as the page shows them."""

    documents: Count | None
    tokens: Count | None
    removed: dict[str, Count] | None
    rejected: Count | None
    vocab_size: Count
    chunks: Count
    train_samples: Count


class StatsRow(TypedDict):
    """A row of `mt data stats`."""

    name: str
    tokens: NotRequired[Count | None]


class Sample(TypedDict):
    """A text that a model wrote."""

    prompt: str
    text: str


class StageFacts(TypedDict):
    """What the page shows of a stage's manifest."""

    verb: str
    settings: dict[str, Any]
    counts: NotRequired[Counts]
    seconds: AnyFloat
    rows: NotRequired[list[StatsRow]]
    train_loss: NotRequired[AnyFloat | None]
    valid_loss: NotRequired[AnyFloat | None]
    unigram_entropy: NotRequired[AnyFloat | None]
    tokens_per_second: NotRequired[AnyFloat | None]
    curve: NotRequired[list[tuple[Count, AnyFloat]] | None]
    valid_curve: NotRequired[list[tuple[Count, AnyFloat]] | None]
    scores: NotRequired[dict[str, Any] | None]
    samples: NotRequired[list[Sample] | None]


Finished = tuple[str, str, Json]  # a finished stage: its name, its output, its manifest
Series = Sequence[tuple[int, float]]  # (step, value) points of a curve


@configuration()
class ReportConfig:
    """The settings of `mt report`."""

    POSITIONAL = "run_dir"

    run_dir: str = option(help="run directory of a pipeline (`mt run`)", role="input")
    output: str | None = option(None, "directory for report.html (default: RUN_DIR/report)", role="output")
    overwrite: bool = option(True, "replace an older report in the output directory", role="runtime")


def report(config: ReportConfig) -> Json:
    """Writes report.html; returns its manifest, in which `page` is the path."""
    run_dir = Path(config.run_dir)
    output = Path(config.output or run_dir / "report")
    stages = _stages(run_dir, output)
    run = manifest.begin("report", config, [path for _, _, path in stages], output=output)
    page = output / "report.html"
    if run.finished:
        return run.manifest
    finished = [(name, place, _facts_of(path)) for name, place, path in stages]
    with atomic_write(page, "w") as file:
        file.write(render(run_dir.resolve().name, finished))
    return run.finish([manifest.record(page, output)], {"stages": len(finished)}, page=str(page))


def _stages(run_dir: Path, output: Path) -> list[tuple[str, str, Path]]:
    """(name, output, manifest path) of every finished stage except reports, in the order of the pipeline."""
    listing = run_dir / "pipeline.json"
    if not listing.exists():
        raise UserError(f"{run_dir}: holds no run of `mt run` (no pipeline.json); check the path")
    found = []
    for stage in check_value(read_json(listing), list[ListedStage], listing, MADE_BY_MT):
        place = Path(stage["output"])
        for path in (place / "manifest.json", place.with_name(f"{place.name}.manifest.json")):
            if path.exists() and path.parent != output and stage["verb"] != "report":
                found.append((stage["name"], stage["output"], path))
    if not found:
        raise UserError(f"{run_dir}: no stage has finished yet; run `mt run` first")
    return found


def _facts_of(path: Path) -> Json:
    """A manifest; raises UserError for a value that mt does not write."""
    facts: Json = check_value(read_json(path), StageFacts, path, MADE_BY_MT)
    return facts


def rows(stages: Sequence[Finished]) -> list[Json]:
    """A row for each stage: name, command, documents and tokens after it, seconds, and its results in words.

    The tokens of a stage that writes documents come from `data stats`, if that has read them.
    """
    counted = {Path(r["name"]).resolve(): r.get("tokens") for _, _, m in stages for r in m.get("rows", [])}
    table = []
    for name, output, m in stages:
        counts = {} if m["verb"] == "data stats" else m.get("counts", {})
        table.append(
            {
                "stage": name,
                "verb": m["verb"],
                "documents": counts.get("documents"),
                "tokens": counts.get("tokens", counted.get(Path(output).resolve())),
                "seconds": m["seconds"],
                "result": _result(m),
            }
        )
    return table


def _result(m: Json) -> str:
    """The results of a stage in a few words: removals, losses, scores, rates."""
    counts = m.get("counts", {})
    words = []
    removed = counts.get("removed") or {}
    if removed:
        most = sorted(removed.items(), key=lambda reason: -reason[1])[:3]
        words.append(f"removed {sum(removed.values()):,} ({', '.join(f'{k} {v:,}' for k, v in most)})")
    if counts.get("rejected"):
        words.append(f"set aside {counts['rejected']:,}")
    if m.get("valid_loss") is not None:
        entropy = f", unigram entropy {m['unigram_entropy']:.3f}" if m.get("unigram_entropy") else ""
        trained = f"train loss {m['train_loss']:.3f}, " if m.get("train_loss") is not None else ""
        words.append(f"{trained}validation {m['valid_loss']:.3f}{entropy}")
    if m.get("tokens_per_second"):
        words.append(f"{m['tokens_per_second']:,.0f} tokens/s")
    words += [
        f"{k} {_short(v)}"
        for k, v in (m.get("scores") or {}).items()
        if isinstance(v, int | float) and not k.endswith("stderr")
    ]
    words += [f"{k} {_short(counts[k])}" for k in ("vocab_size", "chunks", "train_samples") if k in counts]
    return ", ".join(words)


def _short(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:,.0f}"


def text_table(table: Sequence[Json]) -> str:
    """The rows as aligned text for a terminal."""
    cells = [list(COLUMNS)] + [[_cell(row[name]) for name in COLUMNS] for row in table]
    width = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = []
    for row in cells:
        numbers = "  ".join(f"{row[i]:>{width[i]}}" for i in (1, 2, 3))
        lines.append(f"{row[0]:<{width[0]}}  {numbers}  {row[4]}".rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def render(title: str, stages: Sequence[Finished]) -> str:
    """The page as HTML."""
    table = rows(stages)
    parts = [
        _section("Stages", _html_table(table)),
        _section("Funnel", _funnel(table)),
        _section("Removed, by reason", _removed(stages)),
    ]
    for name, _, m in stages:
        if m.get("curve"):
            lines = {"training": m["curve"], "validation": m.get("valid_curve") or []}
            parts.append(_section(f"Loss of {name}, nats per token", _chart(lines, m.get("unigram_entropy"))))
        if m.get("scores"):
            parts.append(_section(f"Scores of {name}", _facts(m["scores"])))
        if m.get("samples"):
            texts = (sample["prompt"] + sample["text"] for sample in m["samples"])
            parts.append(
                _section(f"Samples of {name}", "".join(f"<pre>{html.escape(text)}</pre>" for text in texts))
            )
    parts.append(_section("Settings", "".join(_settings(name, m) for name, _, m in stages)))
    return PAGE.substitute(title=html.escape(title), body="\n".join(p for p in parts if p))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def _settings(name: str, m: Json) -> str:
    settings = json.dumps(m["settings"], indent=1, ensure_ascii=False, default=str)
    return (
        f"<details><summary>{html.escape(name)}: mt {html.escape(m['verb'])}</summary>"
        f"<pre>{html.escape(settings)}</pre></details>"
    )


def _html_table(table: Sequence[Json]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = ""
    for row in table:
        cells = (
            f'<td class="{"n" if name in NUMBERS else "t"}">{html.escape(_cell(row[name]))}</td>'
            for name in COLUMNS
        )
        body += f"<tr>{''.join(cells)}</tr>"
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _funnel(table: Sequence[Json]) -> str:
    """A bar for the tokens after each stage."""
    kept = [row for row in table if row["tokens"] and row["documents"]]
    if not kept:
        return ""
    most = max(row["tokens"] for row in kept)
    bars = "".join(
        f"<span>{html.escape(row['stage'])}</span>"
        f'<div><i style="width:{100 * row["tokens"] / most:.1f}%"></i></div>'
        f"<span class=n>{row['tokens']:,} tokens</span>"
        for row in kept
    )
    return f"<div class=funnel>{bars}</div>"


def _removed(stages: Sequence[Finished]) -> str:
    """A table of the removed documents by stage and reason."""
    lines = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(reason)}</td><td class=n>{count:,}</td></tr>"
        for name, _, m in stages
        for reason, count in sorted((m.get("counts", {}).get("removed") or {}).items(), key=lambda r: -r[1])
    ]
    if not lines:
        return ""
    head = "<thead><tr><th>stage</th><th>reason</th><th>documents</th></tr></thead>"
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"


def _facts(facts: Json) -> str:
    """A table of values by name, one level of nesting included."""
    lines = []
    for key, value in facts.items():
        for inner, v in value.items() if isinstance(value, dict) else [("", value)]:
            name, shown = f"{key} {inner}".strip(), _short(v) if isinstance(v, int | float) else str(v)
            lines.append(f"<tr><td>{html.escape(name)}</td><td class=n>{html.escape(shown)}</td></tr>")
    return f"<table><tbody>{''.join(lines)}</tbody></table>"


def _chart(lines: Mapping[str, Series], level: float | None) -> str:
    """An SVG line chart of curves, with a dashed line at the unigram entropy `level`."""
    # of the points that have a place on the page: NaN has none
    lines = {name: [p for p in series if abs(p[1]) <= MOST_PLOTTED] for name, series in lines.items()}
    level = level if level and abs(level) <= MOST_PLOTTED else None
    points = [p for series in lines.values() for p in series]
    if not points:
        return ""
    wide, high = 860, 320
    left, top, bottom = 52, 12, 34  # margins
    values = [p[1] for p in points] + ([level] if level else [])
    low, peak = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2
    last = max(p[0] for p in points) or 1
    x = lambda step: left + (wide - left - 12) * step / last
    y = lambda value: top + (high - top - bottom) * (peak - value) / ((peak - low) or 1)
    marks = []
    for i in range(6):
        value = low + (peak - low) * i / 5
        marks.append(
            f"<line class=grid x1={left} x2={wide - 12} y1={y(value):.1f} y2={y(value):.1f} /><text"
            f" x={left - 8} y={y(value) + 4:.1f} text-anchor=end>{value:.1f}</text>"
        )
        step = last * i // 5
        marks.append(f"<text x={x(step):.1f} y={high - 12} text-anchor=middle>{step:,}</text>")
    if level:
        marks.append(
            f"<line class=level x1={left} x2={wide - 12} y1={y(level):.1f} y2={y(level):.1f} /><text"
            f" x={wide - 14} y={y(level) - 6:.1f} text-anchor=end>unigram entropy {level:.2f}</text>"
        )
    for number, (name, series) in enumerate(lines.items()):
        at = [(x(step), y(value)) for step, value in series]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        dots = ""
        if len(series) < 40:
            dots = "".join(f"<circle class=d{number} r=3 cx={a:.1f} cy={b:.1f} />" for a, b in at)
        marks.append(
            f'<polyline class=s{number} points="{path}" />{dots}<text class=k{number} x={wide - 120}'
            f" y={top + 16 + 18 * number + (24 if level else 0)}>{name}</text>"
        )
    return f'<svg viewBox="0 0 {wide} {high}" role=img aria-label="loss by step">{"".join(marks)}</svg>'


PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title: mt report</title>
<style>
:root {
  color-scheme: light dark;
  --ink: light-dark(#1d2330, #e6e9ef); --soft: light-dark(#667085, #98a2b3);
  --line: light-dark(#e4e7ec, #333a47); --card: light-dark(#f8f9fb, #1b1f27);
  --page: light-dark(#fff, #14171d);
  --one: light-dark(#2f6fde, #6ea2ff); --two: light-dark(#d9572b, #ff9a73);
}
body {
  font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1000px; margin: 2.5rem auto; padding: 0 1.2rem;
}
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem; }
p { color: var(--soft); margin-top: 0; }
table { border-collapse: collapse; font-size: 14px; }
td, th {
  padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
}
th { color: var(--soft); font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .wide { overflow-x: auto; }
.funnel {
  display: grid; grid-template-columns: max-content 1fr max-content;
  gap: .45rem .9rem; align-items: center; font-size: 14px;
}
.funnel div { background: var(--card); border-radius: 4px; }
.funnel i { display: block; height: 18px; border-radius: 4px; background: var(--one); }
svg { width: 100%; height: auto; background: var(--card); border-radius: 8px; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .level { stroke: var(--soft); stroke-dasharray: 5 5; }
polyline { fill: none; stroke-width: 2; } .s0 { stroke: var(--one); } .s1 { stroke: var(--two); }
.d0 { fill: var(--one); } .d1 { fill: var(--two); }
svg .k0 { fill: var(--one); } svg .k1 { fill: var(--two); }
pre {
  background: var(--card); padding: .9rem 1rem; border-radius: 8px;
  overflow-x: auto; white-space: pre-wrap; font-size: 13px;
}
summary { cursor: pointer; }
</style>
<h1>$title</h1>
<p>From raw text to a trained, evaluated model: what each stage read, kept and found.</p>
$body
</html>
""")
