"""What the page of one or several runs shows, as plain values for its template (assets/page.html)."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence

from ...core.manifest import Json
from ...core.progress import duration
from .curves import Curve, charts, read_curves
from .documents import DocumentSections, document_sections
from .scores import scores
from .stages import ReportedRun, RunStage
from .table import result, rows, shortened

MOST_SAMPLES = 12
MOST_SAMPLE_CHARS = 2000
MOST_COMMAND_CHARS = 4000
MOST_DIFFERENCES = 300
MOST_VALUE_CHARS = 200
MOST_SETTINGS_CHARS = 40_000


def view(runs: Sequence[ReportedRun]) -> Json:
    """The values of the page: see assets/page.html for what each is for."""
    tables = [rows([(s.name, s.manifest) for s in run.finished]) for run in runs]
    documents = document_sections(runs[0]) if len(runs) == 1 else DocumentSections()
    names = run_names(runs)
    return {
        "runs": names,
        "facts": _columns([facts(run, table) for run, table in zip(runs, tables)]),
        "differences": differences(runs) if len(runs) > 1 else [],
        "stages": _stages(runs[0], tables[0]) if len(runs) == 1 else [],
        "stage_columns": _stage_columns(tables) if len(runs) > 1 else [],
        "funnels": [{"run": n, "bars": _funnel(table)} for n, table in zip(names, tables)],
        "trainings": _trainings(runs, names),
        "scores": _scores(runs),
        "samples": _samples(runs),
        "documents": documents,
    }


def run_names(runs: Sequence[ReportedRun]) -> list[str]:
    """A name of each run that no other has: that of its folder, or with those above it, or with a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = ["/".join(run.folder.resolve().parts[-2:]) for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def command_text(stage: RunStage) -> str:
    """The command of a stage, to copy."""
    words = stage.manifest.get("command") or ["mt", *stage.verb.split()]
    text = shlex.join(words) if stage.manifest.get("command") else " ".join(words) + " …"
    return text if len(text) <= MOST_COMMAND_CHARS else f"{text[:MOST_COMMAND_CHARS]} …"


def facts(run: ReportedRun, table: Sequence[Json]) -> dict[str, str]:
    """The facts on top of the page: {label: text}."""
    found = [stage.manifest for stage in run.finished]
    told = lambda key: list(dict.fromkeys(m[key] for m in found if m.get(key)))
    of_documents = [row for stage, row in zip(run.finished, table) if stage.has_documents]
    trained = [m for m in found if m["verb"] == "train"]
    seconds = sum(m["seconds"] for m in found if math.isfinite(m["seconds"]))
    unfinished = [stage.name for stage in run.stages if not stage.finished]
    values: dict[str, str] = {
        "Finished": f"{max(told('finished')).replace('T', ' ')[:16]} UTC"
        if told("finished")
        else "no stage yet",
        "Not finished": ", ".join(unfinished),
        "mt version": ", ".join(told("mt_version")),
        "Machine": "; ".join(dict.fromkeys(_machine(m) for m in found if m.get("machine"))) or "not recorded",
        "Documents": _change([row["documents"] for row in of_documents if row["documents"]]),
        "Tokens": _change([row["tokens"] for row in of_documents if row["tokens"]]),
        "Parameters": ", ".join(f"{m['parameters']:,}" for m in trained if m.get("parameters")),
        "Tokens trained on": ", ".join(
            f"{tokens:,}" for m in trained if (tokens := m.get("counts", {}).get("tokens"))
        ),
        "Device": ", ".join(dict.fromkeys(_device(m) for m in trained if m.get("device"))),
        "Validation loss": ", ".join(
            f"{m['valid_loss']:.4f} nats per token" for m in trained if m.get("valid_loss") is not None
        ),
        "Total time": _duration(seconds),
    }
    return {label: text for label, text in values.items() if text}


def _machine(m: Json) -> str:
    machine = m["machine"]
    memory = machine.get("memory_bytes")
    # of a system with its release and its architecture the release is left out
    words = [
        str(machine.get("processor") or "") or None,
        f"{machine['processors']} processors" if isinstance(machine.get("processors"), int) else None,
        f"{memory / 2**30:.0f} GiB" if isinstance(memory, int) else None,
        " ".join(system[::2]) if (system := str(machine.get("system") or "").split()) else None,
        f"Python {machine['python']}" if machine.get("python") else None,
    ]
    return ", ".join(word for word in words if word)[:MOST_VALUE_CHARS]


def _device(m: Json) -> str:
    devices = m.get("devices") or 1
    return f"{devices:,} × {m['device']}" if devices > 1 else m["device"]


def _change(counts: Sequence[int]) -> str:
    """What came in, and what was left."""
    if not counts:
        return ""
    if len(counts) == 1 or counts[0] == counts[-1]:
        return f"{counts[-1]:,}"
    return f"{counts[0]:,} → {counts[-1]:,}"


def _duration(seconds: float) -> str:
    """Seconds in the two largest units; below a minute with a digit after the point."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _columns(tables: Sequence[dict[str, str]]) -> list[Json]:
    """[{"label", "values": one for each run, "differs"}] of all labels."""
    labels = dict.fromkeys(label for table in tables for label in table)
    lines = []
    for label in labels:
        values = [table.get(label, "") for table in tables]
        lines.append({"label": label, "values": values, "differs": len(set(values)) > 1})
    return lines


def _stages(run: ReportedRun, table: Sequence[Json]) -> list[Json]:
    """The stages of one run: a row of the table, the command, the settings."""
    by_name = iter(table)
    shown = []
    for stage in run.stages:
        row = next(by_name) if stage.finished else None
        settings = json.dumps(stage.manifest.get("settings", {}), indent=1, ensure_ascii=False, default=str)
        shown.append(
            {
                "name": stage.name,
                "verb": stage.verb,
                "documents": row and row["documents"],
                "tokens": row and row["tokens"],
                "time": _duration(row["seconds"]) if row and math.isfinite(row["seconds"]) else "",
                "result": result(stage.manifest) if stage.finished else _why_unfinished(stage),
                "command": command_text(stage),
                "directory": stage.manifest.get("directory", ""),
                "settings": settings[:MOST_SETTINGS_CHARS],
            }
        )
    return shown


def _why_unfinished(stage: RunStage) -> str:
    return "not started" if stage.path is None else "not finished"


def _funnel(table: Sequence[Json]) -> list[Json]:
    """A bar for the tokens, or without tokens the documents, after each stage that writes documents."""
    with_documents = [row for row in table if row["documents"]]
    unit = "tokens" if sum(bool(row["tokens"]) for row in with_documents) > 1 else "documents"
    kept = [row for row in with_documents if row[unit]]
    if len(kept) < 2:
        return []
    most = max(row[unit] for row in kept)
    return [
        {"name": row["stage"], "share": row[unit] / most, "count": f"{row[unit]:,} {unit}"} for row in kept
    ]


def _stage_columns(tables: Sequence[Sequence[Json]]) -> list[Json]:
    """The stages of several runs beside each other: documents, tokens, time."""
    named = [{row["stage"]: row for row in table} for table in tables]
    names = dict.fromkeys(name for table in named for name in table)
    return [{"name": name, "rows": [table.get(name) for table in named]} for name in names]


def _matched(
    runs: Sequence[ReportedRun], wanted: Callable[[RunStage], bool]
) -> list[tuple[str, list[RunStage | None]]]:
    """(name, the stage of each run or None) of the stages that are wanted.

    Stages of one name belong together; where the names differ, the only stages of a command do.
    """
    chosen = [[stage for stage in run.stages if wanted(stage)] for run in runs]
    groups: dict[str, list[RunStage | None]] = {}
    for number, stages in enumerate(chosen):
        for stage in stages:
            groups.setdefault(stage.name, [None] * len(runs))[number] = stage
    if len(runs) > 1:
        for verb in dict.fromkeys(stage.verb for stages in chosen for stage in stages):
            own = [[s for s in stages if s.verb == verb] for stages in chosen]
            names = {s.name for stages in own for s in stages}
            if len(names) > 1 and all(len(stages) <= 1 for stages in own):
                groups = {name: group for name, group in groups.items() if name not in names}
                groups[" / ".join(sorted(names))] = [stages[0] if stages else None for stages in own]
    return list(groups.items())


def differences(runs: Sequence[ReportedRun]) -> list[Json]:
    """The settings in which runs differ: [{"stage", "setting", "values": one for each run}]."""
    found = []
    for name, stages in _matched(runs, lambda stage: True):
        flat = [stage.manifest.get("settings", {}) if stage else {} for stage in stages]
        if any(stage is None for stage in stages):
            values = ["yes" if stage else "no such stage" for stage in stages]
            found.append({"stage": name, "setting": "", "values": values})
            continue
        verbs = [stage.verb for stage in stages if stage]
        if len(set(verbs)) > 1:
            found.append({"stage": name, "setting": "command", "values": [f"mt {verb}" for verb in verbs]})
        for setting in sorted({key for settings in flat for key in settings}):
            values = [_value(settings, setting) for settings in flat]
            if len(set(values)) > 1:
                found.append({"stage": name, "setting": setting, "values": values})
    if len(found) > MOST_DIFFERENCES:
        more = len(found) - MOST_DIFFERENCES
        found = [
            *found[:MOST_DIFFERENCES],
            {"stage": f"{more:,} more", "setting": "", "values": [""] * len(runs)},
        ]
    return found


def _value(settings: Json, name: str) -> str:
    if name not in settings:
        return "default"
    text = json.dumps(settings[name], ensure_ascii=False, default=str)
    return shortened(text, MOST_VALUE_CHARS)


def _trainings(runs: Sequence[ReportedRun], names: Sequence[str]) -> list[Json]:
    """The charts of each training: {"name", "charts"}."""
    curves: dict[int, dict[str, Curve]] = {}

    def has_curves(stage: RunStage) -> bool:
        found = read_curves(stage.log, stage.manifest)
        if found:
            curves[id(stage)] = found
        return bool(found)

    made = []
    for name, stages in _matched(runs, has_curves):
        several = [
            (names[number], curves[id(stage)], stage.manifest.get("unigram_entropy"))
            for number, stage in enumerate(stages)
            if stage is not None
        ]
        made.append({"name": name, "runs": [run for run, _, _ in several], "charts": charts(several)})
    return made


def _scores(runs: Sequence[ReportedRun]) -> list[Json]:
    """The scores of each evaluation: {"name", "verb", "rows": [{"name", "values", "sentence"}]}."""
    made = []
    for name, stages in _matched(runs, lambda stage: bool(stage.manifest.get("scores"))):
        tables = [{s["name"]: s for s in scores(stage.manifest)} if stage else {} for stage in stages]
        lines = []
        for score in dict.fromkeys(score for table in tables for score in table):
            found = [table.get(score) for table in tables]
            lines.append(
                {
                    "name": score,
                    "values": found,
                    "sentence": found[0]["sentence"] if len(found) == 1 and found[0] else "",
                }
            )
        made.append({"name": name, "verb": next(s.verb for s in stages if s), "rows": lines})
    return made


def _samples(runs: Sequence[ReportedRun]) -> list[Json]:
    """Texts that models wrote: {"name", "samples": [{"prompt", "texts": one for each run}]}."""
    made = []
    for name, stages in _matched(runs, lambda stage: bool(stage.manifest.get("samples"))):
        prompts: dict[tuple[str, int], list[str | None]] = {}
        for number, stage in enumerate(stages):
            times: dict[str, int] = {}
            for sample in stage.manifest["samples"] if stage else []:
                prompt, text = sample["prompt"], sample["text"]
                if stage and stage.manifest["settings"].get("echo") and text.startswith(prompt):
                    text = text[len(prompt) :]
                key = (prompt, times.get(prompt, 0))  # of one prompt there may be several continuations
                times[prompt] = key[1] + 1
                prompts.setdefault(key, [None] * len(runs))[number] = shortened(text, MOST_SAMPLE_CHARS)
        shown = [
            {"prompt": shortened(key[0], MOST_SAMPLE_CHARS), "texts": texts}
            for key, texts in list(prompts.items())[:MOST_SAMPLES]
        ]
        made.append({"name": name, "samples": shown, "more": max(len(prompts) - MOST_SAMPLES, 0)})
    return made
