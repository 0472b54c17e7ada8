"""The `mt data why` command: trace a document through the stages of a run, to see why it was removed.

It reads the logs of the stages (stage.py): `removed/NNNNN.jsonl` has the reason and, for a duplicate, the
survivor, which is then traced too; `cut/` has the documents that decontamination cut; `rejects.jsonl` has the
records that could not be read. The keys in the manifests tell which stage reads the output of which. The
documents themselves are searched only in the outputs that no other stage reads.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.parsing import MADE_BY_MT, check_value, parse_json
from .sampling import lines, parquet_file

PIECE = re.compile(r"#[0-9]+\Z")
CUT = "cut"  # the reason of a step after which the pieces of a document go on


@configuration()
class WhyConfig:
    """The settings of `mt data why`."""

    POSITIONAL = "id"

    id: str = option(help="the document's id")
    run_dir: tuple[str, ...] = option(
        (".",),
        "directory of a run, whose folders are the stages, or the directories of the stages themselves",
        role="input",
    )

    def __post_init__(self) -> None:
        check(
            (bool(self.id), "id is empty: give the id of a document"),
            (bool(self.run_dir), "run_dir is empty: name the directory of a run"),
        )


@dataclasses.dataclass
class FinishedStage:
    """The output of a document stage. ids: the traced documents that it kept."""

    folder: Path
    manifest: dict[str, Any]
    reads: list[FinishedStage] = dataclasses.field(default_factory=list)
    ids: set[str] = dataclasses.field(default_factory=set)

    def files(self, prefix: str) -> list[Path]:
        return [self.path(o["name"]) for o in self.manifest["outputs"] if o["name"].startswith(prefix)]

    def path(self, name: str) -> Path:
        """The path of an output; raises UserError if its name leads out of the folder."""
        return manifest.output_path(self.folder / "manifest.json", name)


def why(config: WhyConfig) -> dict[str, Any]:
    """Traces a document, and the survivors of the clusters that it belongs to.

    Returns {"id", "steps": [{"stage", "folder", "id", "reason", details}], "kept": [{"id", "file"}], "text"}.
    Raises UserError if there is no stage, or if no stage has read the document.
    """
    stages = in_reading_order(finished_stages(config.run_dir))
    steps: list[dict[str, Any]] = []
    for stage in stages:
        traced = set().union(*(s.ids for s in stage.reads)) if stage.reads else {config.id}
        found = list(_steps(stage, traced))
        steps += found
        survivors = {step["survivor"] for step in found if "survivor" in step}
        # The first copy of a duplicate URL is kept under the same id.
        still_there = {
            step["id"]
            for step in found
            if step["reason"] == CUT or (step["stage"] == "data urls" and step["reason"] == "duplicate")
        }
        stage.ids = (traced | survivors) - ({step["id"] for step in found} - still_there)
    read_by_others = {id(s) for stage in stages for s in stage.reads}
    last = [stage for stage in stages if id(stage) not in read_by_others]
    kept = [place for stage in last for place in _kept(stage, stage.ids)]
    if not steps and not kept:
        raise UserError(
            f"{config.id}: no document with this id is in {', '.join(str(s.folder) for s in stages)}; check"
            " the id, and name the directories of all stages with --run-dir"
        )
    return {"id": config.id, "steps": steps, "kept": kept, "text": _text(steps, kept)}


def finished_stages(folders: tuple[str, ...]) -> list[FinishedStage]:
    """The finished document stages in folders, each of which is a stage or the parent of stages."""
    found: dict[Path, FinishedStage] = {}
    for name in folders:
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{name}: no such directory; check the path")
        stages = stages_in(folder)
        if not stages:
            raise UserError(
                f"{name}: neither a finished stage that removes documents nor a run with such stages in it;"
                " name the directories that `mt data ...` wrote"
            )
        found |= {stage.folder.resolve(): stage for stage in stages}
    return list(found.values())


def stages_in(folder: Path) -> list[FinishedStage]:
    """The finished document stages of a folder: itself, or those directly in it; none of any other folder."""
    manifests = {folder: manifest.manifest_of(folder)}
    if not manifests[folder]:
        manifests = {p: manifest.manifest_of(p) for p in sorted(folder.iterdir()) if p.is_dir()}
    return [
        FinishedStage(p, m)
        for p, m in manifests.items()
        if m and any(o["name"].startswith("removed/") for o in m.get("outputs", ()))
    ]


def in_reading_order(stages: list[FinishedStage]) -> list[FinishedStage]:
    """The stages in topological order: each after those whose output it reads."""
    by_key = {stage.manifest["key"]: stage for stage in stages}
    ordered: dict[str, FinishedStage] = {}

    for stage in stages:
        keys = dict.fromkeys(i.get("key") for i in stage.manifest["inputs"])
        stage.reads = [by_key[key] for key in keys if key in by_key]
    waiting, begun = list(reversed(stages)), set()
    while waiting:  # no recursion: a stranger's manifests may name each other, or make a long chain
        key = waiting[-1].manifest["key"]
        if key in begun:
            ordered.setdefault(key, waiting.pop())
        else:
            begun.add(key)
            waiting += reversed([r for r in waiting[-1].reads if r.manifest["key"] not in begun])
    return list(ordered.values())


def id_pattern(ids: set[str]) -> re.Pattern[bytes]:
    """Matches every line with one of the ids or a piece `id#1`, as orjson or json writes it."""
    spelled = {json.dumps(name, ensure_ascii=ascii)[1:-1].encode() for name in ids for ascii in (False, True)}
    return re.compile(b"|".join(map(re.escape, sorted(spelled))))


def _is_traced(name: str, ids: set[str]) -> bool:
    """Whether an id is one of these, or the id of a piece that a stage made of one, or of such a piece."""
    return name in ids or not ids.isdisjoint(_whole(name))


def _whole(name: str) -> Iterator[str]:
    """The ids of the documents of which a document may be a piece: b#1 and b for b#1#2."""
    while PIECE.search(name):
        name = name.rpartition("#")[0]
        yield name


def _steps(stage: FinishedStage, ids: set[str]) -> Iterator[dict[str, Any]]:
    """Yields what the logs of a stage say about the ids: removals, cuts, then unreadable records."""
    if not ids:
        return
    place = {"stage": stage.manifest["verb"], "folder": str(stage.folder)}
    for facts in _logged(stage, "removed/", ids, LoggedRemoval):
        yield {**place, **facts}
    whole = {name for piece in ids for name in _whole(piece)}  # of which the traced ones may be pieces
    for facts in _logged(stage, "cut/", ids | whole, LoggedDocument):
        if facts["id"] not in whole and not _is_traced(facts["id"], ids):
            continue  # another piece
        yield {**place, "id": facts.pop("id"), "reason": CUT, **facts}
    patterns = {
        name: re.compile(
            r'"id"\s*:\s*"?' + re.escape(json.dumps(name, ensure_ascii=False)[1:-1]) + r'["\s,}]'
        )
        for name in ids
    }
    for path in stage.files("rejects.jsonl"):
        for line in lines(path):
            reject = _parsed(line, path, LoggedReject)
            for name, pattern in patterns.items():
                if pattern.search(reject["raw"]):
                    yield {
                        **place,
                        "id": name,
                        "reason": "could not be read",
                        "why": reject["reason"],
                        "file": reject["file"],
                        "place": reject["place"],
                    }


def _logged(stage: FinishedStage, folder: str, ids: set[str], kind: type) -> Iterator[dict[str, Any]]:
    """Yields the lines about the ids in a stage's log files of one folder, parsed. kind: of a line."""
    pattern = id_pattern(ids)
    for path in stage.files(folder):
        for line in lines(path):
            if pattern.search(line) and _is_traced((facts := _parsed(line, path, kind))["id"], ids):
                yield facts


def _kept(stage: FinishedStage, ids: set[str]) -> Iterator[dict[str, str]]:
    """Yields {"id", "file"} for the ids, or pieces of them, among the documents that a stage wrote."""
    if not ids:
        return
    pattern = id_pattern(ids)
    for output in stage.manifest["outputs"]:
        path = stage.path(output["name"])
        if stage.manifest["verb"] == "data urls" and path.suffix == ".txt":
            for url in (line.decode(errors="replace").strip() for line in lines(path)):
                if url in ids:
                    yield {"id": url, "file": str(path)}
        if not output.get("documents", True):
            continue
        if path.suffix == ".parquet":
            batches = parquet_file(path).iter_batches(columns=["id"])
            names: Iterator[str] = (name for batch in batches for name in batch.column("id").to_pylist())
        else:
            found = (line for line in lines(path) if pattern.search(line))
            names = (_parsed(line, path, LoggedDocument)["id"] for line in found)
        yield from ({"id": name, "file": str(path)} for name in names if _is_traced(name, ids))


class LoggedDocument(TypedDict):
    """A line of a log, or of documents, as far as it is looked at."""

    id: str


class LoggedRemoval(TypedDict):
    """A line of `removed/`."""

    id: str
    reason: str
    survivor: NotRequired[str]


class LoggedReject(TypedDict):
    """A line of rejects.jsonl: rejects.Reject."""

    raw: str
    reason: str
    file: str
    place: str


def _parsed(line: bytes, path: Path, kind: Any) -> Any:
    """The value of a line; raises UserError for one that mt does not write."""
    return check_value(parse_json(line, str(path), MADE_BY_MT), kind, path, MADE_BY_MT)


def _text(steps: list[dict[str, Any]], kept: list[dict[str, str]]) -> str:
    """The steps and places as lines to print."""
    shown = []
    for step in steps:
        verb = "changed" if step["reason"] == CUT else "removed"
        line = f"{step['id']}: {verb} by {step['stage']} ({step['folder']}): {step['reason']}"
        if "survivor" in step:
            line += f", survived by {step['survivor']}"
        for key, value in step.items():
            if key not in ("stage", "folder", "id", "reason", "survivor"):
                line += (
                    f", {key} "
                    f"{json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value}"
                )
        shown.append(line)
    return "\n".join([*shown, *(f"{place['id']}: kept in {place['file']}" for place in kept)])
