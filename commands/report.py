"""manifests -> one HTML page.

Reads the `pipeline.json` of a run directory and the manifest of every stage it names, and writes one
self-contained page: the funnel of documents and tokens, what was removed and why, the loss curves, the scores
and a sample. No script, no font and no picture is fetched from anywhere, so the page can be mailed.
"""

from __future__ import annotations

import html
import json
import math
import string
from collections.abc import Sequence
from pathlib import Path

from ..core import manifest
from ..core.config import UserError, configuration, option
from ..core.manifest import atomic_write, read_json

HEADINGS = {
    "stage": "stage",
    "documents": "documents",
    "tokens": "tokens",
    "seconds": "seconds",
    "result": "result",
}


@configuration()
class ReportConfig:
    """The settings of `mt report`."""

    POSITIONAL = "run_dir"

    run_dir: str = option(help="directory of a pipeline's run (`mt run`)", role="input")
    output: str | None = option(None, "directory for report.html (default: RUN_DIR/report)", role="output")
    overwrite: bool = option(True, "replace an older report in the output directory", role="runtime")


def report(config: ReportConfig) -> dict:
    """Writes report.html; returns its manifest, whose fact `page` is the path."""
    run_dir = Path(config.run_dir)
    output = Path(config.output or run_dir / "report")
    stages = _stages(run_dir, output)
    run = manifest.begin("report", config, [path for _, _, path in stages], output=output)
    page = output / "report.html"
    if run.finished:
        return run.manifest
    finished = [(name, place, read_json(path)) for name, place, path in stages]
    with atomic_write(page, "w") as file:
        file.write(render(run_dir.resolve().name, finished))
    return run.finish([manifest.record(page, output)], {"stages": len(finished)}, page=str(page))


def _stages(run_dir: Path, output: Path) -> list[tuple[str, str, Path]]:
    """(name, output, manifest path) of every finished stage but the report itself, in the order of the
    pipeline.
    """
    listing = run_dir / "pipeline.json"
    if not listing.exists():
        raise UserError(f"{run_dir}: holds no run of `mt run` (no pipeline.json); check the path")
    found = []
    for stage in read_json(listing):
        place = Path(stage["output"])
        for path in (place / "manifest.json", place.with_name(f"{place.name}.manifest.json")):
            if path.exists() and path.parent != output and stage["verb"] != "report":
                found.append((stage["name"], stage["output"], path))
    if not found:
        raise UserError(f"{run_dir}: no stage has finished yet; run `mt run` first")
    return found


def rows(stages: Sequence[tuple[str, str, dict]]) -> list[dict]:
    """A row a stage: name, verb, documents and tokens after it, seconds, and its losses or scores in words.

    stages: (name, output, manifest) in order. Tokens of document stages come from `data stats`, where it was
    run on them.
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


def _result(m: dict) -> str:
    """What a stage found out, in a few words."""
    counts, words = m.get("counts", {}), []
    removed = counts.get("removed") or {}
    if removed:
        words.append(
            f"removed {sum(removed.values()):,}"
            f" ({', '.join(f'{k} {v:,}' for k, v in sorted(removed.items(), key=lambda r: -r[1])[:3])})"
        )
    if counts.get("rejected"):
        words.append(f"set aside {counts['rejected']:,}")
    if m.get("valid_loss") is not None:
        entropy = f", unigram entropy {m['unigram_entropy']:.3f}" if m.get("unigram_entropy") else ""
        words.append(f"train loss {m['train_loss']:.3f}, validation {m['valid_loss']:.3f}{entropy}")
    if m.get("tokens_per_second"):
        words.append(f"{m['tokens_per_second']:,.0f} tokens/s")
    words += [
        f"{k} {_short(v)}"
        for k, v in (m.get("scores") or {}).items()
        if isinstance(v, int | float) and not k.endswith("stderr")
    ]
    words += [f"{k} {_short(counts[k])}" for k in ("vocab_size", "chunks", "train_samples") if k in counts]
    return ", ".join(words)


def _short(value) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 10000 else f"{value:,.0f}"
    )


def text_table(table: list[dict]) -> str:
    """The rows as aligned text, for a terminal."""
    cells = [list(HEADINGS.values())] + [[_cell(r[k]) for k in HEADINGS] for r in table]
    width = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = []
    for row in cells:
        numbers = "  ".join(f"{row[i]:>{width[i]}}" for i in (1, 2, 3))
        lines.append(f"{row[0]:<{width[0]}}  {numbers}  {row[4]}".rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cell(value) -> str:
    return (
        ""
        if value is None
        else (
            f"{value:,.1f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
    )


def render(title: str, stages: Sequence[tuple[str, str, dict]]) -> str:
    """The page as HTML text."""
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
            parts.append(
                _section(
                    f"Samples of {name}",
                    "".join(f"<pre>{html.escape(_sample(s))}</pre>" for s in m["samples"]),
                )
            )
    settings = "".join(
        f"<details><summary>{html.escape(name)}: mt"
        f" {html.escape(m['verb'])}</summary><pre>{html.escape(json.dumps(m['settings'], indent=1, ensure_ascii=False, default=str))}</pre></details>"
        for name, _, m in stages
    )
    parts.append(_section("Settings", settings))
    return PAGE.substitute(title=html.escape(title), body="\n".join(p for p in parts if p))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def _sample(sample: dict) -> str:
    return sample["prompt"] + sample["text"]


def _html_table(table: list[dict]) -> str:
    head = "".join(f"<th>{h}</th>" for h in HEADINGS.values())
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"n" if k in ("documents", "tokens", "seconds") else "t"}">{html.escape(_cell(r[k]))}</td>'
            for k in HEADINGS
        )
        + "</tr>"
        for r in table
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _funnel(table: list[dict]) -> str:
    bars = [r for r in table if r["tokens"] and r["documents"]]
    if not bars:
        return ""
    most = max(r["tokens"] for r in bars)
    return (
        "<div class=funnel>"
        + "".join(
            f"<span>{html.escape(r['stage'])}</span><div><i"
            f' style="width:{100 * r["tokens"] / most:.1f}%"></i></div><span class=n>{r["tokens"]:,}'
            " tokens</span>"
            for r in bars
        )
        + "</div>"
    )


def _removed(stages) -> str:
    lines = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(reason)}</td><td class=n>{count:,}</td></tr>"
        for name, _, m in stages
        for reason, count in sorted((m.get("counts", {}).get("removed") or {}).items(), key=lambda r: -r[1])
    ]
    return (
        f"<table><thead><tr><th>stage</th><th>reason</th><th>documents</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        if lines
        else ""
    )


def _facts(facts: dict) -> str:
    lines = []
    for key, value in facts.items():
        inner = value if isinstance(value, dict) else {"": value}
        lines += [
            f"<tr><td>{html.escape(f'{key} {k}'.strip())}</td><td"
            f" class=n>{html.escape(_short(v) if isinstance(v, int | float) else str(v))}</td></tr>"
            for k, v in inner.items()
        ]
    return f"<table><tbody>{''.join(lines)}</tbody></table>"


def _chart(lines: dict[str, list], level: float | None) -> str:
    """An SVG line chart of (step, value) series with a dashed level for the unigram entropy."""
    points = [p for series in lines.values() for p in series if math.isfinite(p[1])]
    if not points:
        return ""
    wide, high, left, top, bottom = 860, 320, 52, 12, 34
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
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in series if math.isfinite(v))
        dots = (
            "".join(
                f"<circle class=d{number} r=3 cx={x(s):.1f} cy={y(v):.1f} />"
                for s, v in series
                if math.isfinite(v)
            )
            if len(series) < 40
            else ""
        )
        marks.append(
            f'<polyline class=s{number} points="{path}" />{dots}<text class=k{number} x={wide - 120}'
            f" y={top + 16 + 18 * number + (24 if level else 0)}>{name}</text>"
        )
    return f'<svg viewBox="0 0 {wide} {high}" role=img aria-label="loss by step">{"".join(marks)}</svg>'


PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title: mt report</title>
<style>
:root { color-scheme: light dark; --ink: light-dark(#1d2330, #e6e9ef); --soft: light-dark(#667085, #98a2b3); --line: light-dark(#e4e7ec, #333a47); --page: light-dark(#fff, #14171d); --card: light-dark(#f8f9fb, #1b1f27); --one: light-dark(#2f6fde, #6ea2ff); --two: light-dark(#d9572b, #ff9a73); }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1000px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem; }
p { color: var(--soft); margin-top: 0; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .wide { overflow-x: auto; }
.funnel { display: grid; grid-template-columns: max-content 1fr max-content; gap: .45rem .9rem; align-items: center; font-size: 14px; }
.funnel div { background: var(--card); border-radius: 4px; } .funnel i { display: block; height: 18px; border-radius: 4px; background: var(--one); }
svg { width: 100%; height: auto; background: var(--card); border-radius: 8px; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .level { stroke: var(--soft); stroke-dasharray: 5 5; } polyline { fill: none; stroke-width: 2; } .s0 { stroke: var(--one); } .s1 { stroke: var(--two); } .d0 { fill: var(--one); } .d1 { fill: var(--two); } svg .k0 { fill: var(--one); } svg .k1 { fill: var(--two); }
pre { background: var(--card); padding: .9rem 1rem; border-radius: 8px; overflow-x: auto; white-space: pre-wrap; font-size: 13px; } summary { cursor: pointer; }
</style>
<h1>$title</h1>
<p>From raw text to a trained, evaluated model: what each stage read, kept and found.</p>
$body
</html>
""")
