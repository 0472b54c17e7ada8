"""why a document is gone: its id through the stages of a run, up to what survived in its place.

Reads what the stages left beside their documents (stage.py): `removed/NNNNN.jsonl` gives the reason and, for
a duplicate, the survivor, whose own way is then followed too; `cut/` what decontamination cut;
`rejects.jsonl` the records that could not be read. Which stage reads which is told by the keys in their
manifests. Documents themselves are searched only where a run ends.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import orjson

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..documents.files import open_binary

CUT = "cut"  # the reason of a step whose document goes on in pieces


@configuration()
class WhyConfig:
    """Which document, and where to look."""

    POSITIONAL = "id"

    id: str = option(help="the document's id")
    run_dir: tuple[str, ...] = option(
        (".",),
        "a run's directory, whose folders are its stages, or the stages' directories themselves",
        role="input",
    )

    def __post_init__(self):
        check(
            (bool(self.id), "id is empty: give the id of a document"),
            (bool(self.run_dir), "run_dir is empty: name a run's directory"),
        )


@dataclasses.dataclass
class _Stage:
    folder: Path
    manifest: dict
    reads: list[_Stage] = dataclasses.field(default_factory=list)
    ids: set[str] = dataclasses.field(default_factory=set)  # of those looked for, the ones that it lets pass

    def files(self, prefix: str) -> list[Path]:
        return [self.folder / o["name"] for o in self.manifest["outputs"] if o["name"].startswith(prefix)]


def why(config: WhyConfig) -> dict:
    """Where a document and the survivors of its clusters went.

    Returns {"id", "steps": [{"stage", "folder", "id", "reason", and what explains it}], "kept": [{"id",
    "file"}], "text"}. Raises UserError where there is no stage, or none has seen the document.
    """
    stages = _in_order(_stages(config.run_dir))
    steps: list[dict] = []
    for stage in stages:
        looked_for = set().union(*(s.ids for s in stage.reads)) if stage.reads else {config.id}
        found = list(_steps(stage, looked_for))
        steps += found
        survivors = {step["survivor"] for step in found if "survivor" in step}
        # Of a URL that stands in a list again, the first copy goes on.
        goes_on = {
            step["id"]
            for step in found
            if step["reason"] == CUT or (step["stage"] == "data urls" and step["reason"] == "duplicate")
        }
        stage.ids = (looked_for | survivors) - ({step["id"] for step in found} - goes_on)
    read = {id(s) for stage in stages for s in stage.reads}
    kept = [place for stage in stages if id(stage) not in read for place in _kept(stage, stage.ids)]
    if not steps and not kept:
        raise UserError(
            f"{config.id}: no document of this id is in {', '.join(str(s.folder) for s in stages)}; check the"
            " id, and name every stage's directory with --run-dir"
        )
    return {"id": config.id, "steps": steps, "kept": kept, "text": _text(config.id, steps, kept)}


def _stages(folders: tuple[str, ...]) -> list[_Stage]:
    """The sealed document stages in folders, each a stage or the parent of stages."""
    found: dict[Path, _Stage] = {}
    for name in folders:
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{name}: no such directory; check the path")
        sealed = manifest.manifest_of(folder)
        inside = (
            [(folder, sealed)]
            if sealed
            else [(p, manifest.manifest_of(p)) for p in sorted(folder.iterdir()) if p.is_dir()]
        )
        of_documents = [
            _Stage(p, m)
            for p, m in inside
            if m and any(o["name"].startswith("removed/") for o in m.get("outputs", ()))
        ]
        if not of_documents:
            raise UserError(
                f"{name}: neither a finished stage that removes documents nor a run with such stages in it;"
                " name the directories that `mt data ...` wrote"
            )
        found |= {stage.folder.resolve(): stage for stage in of_documents}
    return list(found.values())


def _in_order(stages: list[_Stage]) -> list[_Stage]:
    """The stages, each behind those that it reads."""
    by_key = {stage.manifest["key"]: stage for stage in stages}
    ordered: dict[str, _Stage] = {}

    def add(stage: _Stage) -> None:
        if stage.manifest["key"] not in ordered:
            keys = dict.fromkeys(i.get("key") for i in stage.manifest["inputs"])
            stage.reads = [by_key[key] for key in keys if key in by_key]
            for before in stage.reads:
                add(before)
            ordered[stage.manifest["key"]] = stage

    for stage in stages:
        add(stage)
    return list(ordered.values())


def _needles(ids: set[str]) -> re.Pattern[bytes]:
    """Matches a line that may hold one of the ids, as orjson or json writes them, or a piece `id#1` of one."""
    spelled = {json.dumps(name, ensure_ascii=ascii)[1:-1].encode() for name in ids for ascii in (False, True)}
    return re.compile(b"|".join(map(re.escape, sorted(spelled))))


def _same(name: str, ids: set[str]) -> bool:
    """Whether an id is one of these, or a piece that decontamination made of one."""
    return name in ids or (name.rpartition("#")[0] in ids and name.rpartition("#")[2].isdigit())


def _steps(stage: _Stage, ids: set[str]) -> Iterator[dict]:
    """What became of the ids that a stage did not let pass, in the order of its log."""
    if not ids:
        return
    needles = _needles(ids)
    place = {"stage": stage.manifest["verb"], "folder": str(stage.folder)}
    for path in stage.files("removed/"):
        for line in _lines(path):
            if needles.search(line) and _same((facts := orjson.loads(line))["id"], ids):
                yield {**place, **facts}
    for path in stage.files("cut/"):
        for line in _lines(path):
            if needles.search(line) and _same((facts := orjson.loads(line))["id"], ids):
                yield {**place, "id": facts.pop("id"), "reason": CUT, **facts}
    for path in stage.files("rejects.jsonl"):
        for line in _lines(path):
            reject = orjson.loads(line)
            for name in ids:
                if re.search(
                    r'"id"\s*:\s*"?' + re.escape(json.dumps(name, ensure_ascii=False)[1:-1]) + r'["\s,}]',
                    reject["raw"],
                ):
                    yield {
                        **place,
                        "id": name,
                        "reason": "could not be read",
                        "why": reject["reason"],
                        "file": reject["file"],
                        "place": reject["place"],
                    }


def _kept(stage: _Stage, ids: set[str]) -> Iterator[dict]:
    """Where the ids, or pieces of them, stand among the documents that a stage wrote."""
    if not ids:
        return
    needles = _needles(ids)
    for output in stage.manifest["outputs"]:
        path = stage.folder / output["name"]
        if stage.manifest["verb"] == "data urls" and path.suffix == ".txt":
            yield from (
                {"id": line, "file": str(path)}
                for raw in _lines(path)
                if (line := raw.decode().strip()) in ids
            )
        if not output.get("documents", True):
            continue
        if path.suffix == ".parquet":
            import pyarrow.parquet

            batches = pyarrow.parquet.ParquetFile(path).iter_batches(columns=["id"])
            names: Iterator[str] = (name for batch in batches for name in batch.column("id").to_pylist())
        else:
            names = (orjson.loads(line)["id"] for line in _lines(path) if needles.search(line))
        yield from ({"id": name, "file": str(path)} for name in names if _same(name, ids))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_binary(path) as file:
            yield from file
    except FileNotFoundError:
        raise UserError(
            f"{path}: is listed in the manifest beside it, but gone; run the stage's command again"
        ) from None


def _text(name: str, steps: list[dict], kept: list[dict]) -> str:
    said = []
    for step in steps:
        explained = {
            k: v for k, v in step.items() if k not in ("stage", "folder", "id", "reason", "survivor")
        }
        line = (
            f"{step['id']}: {'changed' if step['reason'] == CUT else 'removed'} by {step['stage']}"
            f" ({step['folder']}): {step['reason']}"
        )
        if "survivor" in step:
            line += f", survived by {step['survivor']}"
        said.append(
            line
            + "".join(
                f", {k} {json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v}"
                for k, v in explained.items()
            )
        )
    said += [f"{place['id']}: kept in {place['file']}" for place in kept]
    return "\n".join(said)
