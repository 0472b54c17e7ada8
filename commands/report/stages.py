"""Finds the stages of a run: those that `mt run` lists in pipeline.json, and those that were run by hand.

The folder of the run may have been moved or copied since, and the current directory may be another one than
that of the run: places inside the folder come before those that are recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ...core import manifest
from ...core.config import UserError
from ...core.manifest import Json, read_json
from ...core.parsing import MADE_BY_MT, AnyFloat, Count, check_value
from ...dataprep.trace import FinishedStage

MOST_LEVELS = 4  # of folders in which stages are searched
MOST_FOLDERS = 20_000
MOST_STAGES = 300
# folders inside an output, which hold no stages
INNER = {"parts", "removed", "rejects", "cut", "tensorboard", "profile"}


class ListedStage(TypedDict):
    """A stage in a pipeline.json. output: relative to its folder; earlier versions wrote another path."""

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
    documents: NotRequired[Count | None]
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
    mt_version: NotRequired[str]
    finished: NotRequired[str]
    command: NotRequired[list[str]]
    directory: NotRequired[str]
    machine: NotRequired[dict[str, Any]]
    rows: NotRequired[list[StatsRow]]
    parameters: NotRequired[Count | None]
    device: NotRequired[str | None]
    devices: NotRequired[Count | None]
    train_loss: NotRequired[AnyFloat | None]
    valid_loss: NotRequired[AnyFloat | None]
    unigram_entropy: NotRequired[AnyFloat | None]
    tokens_per_second: NotRequired[AnyFloat | None]
    curve: NotRequired[list[tuple[Count, AnyFloat]] | None]
    valid_curve: NotRequired[list[tuple[Count, AnyFloat]] | None]
    evaluation: NotRequired[dict[str, Any]]
    scores: NotRequired[dict[str, Any] | None]
    samples: NotRequired[list[Sample] | None]


class UnfinishedFacts(TypedDict):
    """What the page shows of a run.json."""

    verb: str
    settings: dict[str, Any]
    command: NotRequired[list[str]]
    directory: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class RunStage:
    """A stage of a run. manifest: that of run.json, or only the verb, where the stage has not finished.

    path: of the manifest; None where nothing is there.
    """

    name: str
    manifest: Json
    path: Path | None
    finished: bool = True

    @property
    def verb(self) -> str:
        verb: str = self.manifest["verb"]
        return verb

    @property
    def has_documents(self) -> bool:
        """Whether the stage wrote documents, and logs of what it removed."""
        return any(output["name"].startswith("removed/") for output in self.manifest.get("outputs", []))

    @property
    def log(self) -> Path | None:
        """The log of a training, if the stage has one."""
        if self.path is None or self.path.name not in ("manifest.json", "run.json"):
            return None
        path = self.path.with_name("log.jsonl")
        return path if path.exists() else None


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """A run: its name, its folder, its stages in the order in which they ran."""

    name: str
    folder: Path
    stages: Sequence[RunStage]

    @property
    def finished(self) -> list[RunStage]:
        return [stage for stage in self.stages if stage.finished]


def find_run(folder: Path, outputs: Sequence[Path] = ()) -> ReportedRun:
    """The run in a folder, without reports; raises UserError if it holds no stage.

    outputs: folders that are not searched, as that of the report.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory; name the directory of a run, or of a stage")
    listed = list(_listed(folder))
    known = {stage.path.resolve() for stage in listed if stage.path is not None}
    skipped = {output.resolve() for output in outputs}
    others = [
        stage for stage in _by_hand(folder, skipped) if stage.path and stage.path.resolve() not in known
    ]
    stages = [stage for stage in [*listed, *_in_order(others)] if stage.verb != "report"]
    if not any(stage.finished or stage.log for stage in stages):
        if listed:
            raise UserError(f"{folder}: no stage has finished yet; run `mt run` first")
        raise UserError(
            f"{folder}: holds no output of mt (no manifest.json, no pipeline.json); name the directory of a"
            " run, or of a stage"
        )
    return ReportedRun(folder.resolve().name or str(folder.resolve()), folder, stages)


def _listed(folder: Path) -> Iterator[RunStage]:
    """The stages that pipeline.json lists, in its order."""
    listing = folder / "pipeline.json"
    if not listing.exists():
        return
    for stage in check_value(read_json(listing), list[ListedStage], listing, MADE_BY_MT):
        places = list(_places(folder, stage))
        path = next((p for place in places for p in _sealed(place) if p.exists()), None)
        if path is not None:
            yield RunStage(stage["name"], _facts(path), path)
            continue
        claim = next((p for place in places if (p := place / "run.json").exists()), None)
        found = _unfinished(stage["name"], claim) if claim else None
        yield found or RunStage(stage["name"], {"verb": stage["verb"]}, None, False)


def _places(folder: Path, stage: ListedStage) -> Iterator[Path]:
    """Where the output of a listed stage may be: inside the folder first, as it may be a copy of the run."""
    name = Path(stage["name"]).name or "stage"
    if not os.path.isabs(stage["output"]):
        yield folder / stage["output"]
    yield folder / name
    yield folder / name / name
    yield Path(stage["output"])


def _sealed(place: Path) -> tuple[Path, Path]:
    """Where the manifest of an output is: of a directory, of a prefix."""
    return place / "manifest.json", place.with_name(f"{place.name}{manifest.OF_PREFIX}")


def _facts(path: Path) -> Json:
    """A manifest; raises UserError for a value that mt does not write."""
    found = manifest.read_manifest(path)
    if found is None:
        raise UserError(f"{path}: is not a manifest of mt; {MADE_BY_MT}")
    facts: Json = check_value(found, StageFacts, path, MADE_BY_MT)
    return facts


def _unfinished(name: str, path: Path) -> RunStage | None:
    """The stage of a run.json; None if it is not whole, as when it is being written."""
    with contextlib.suppress(UserError):
        return RunStage(name, check_value(read_json(path), UnfinishedFacts, path, MADE_BY_MT), path, False)
    return None


def _by_hand(folder: Path, skipped: set[Path]) -> Iterator[RunStage]:
    """The stages in a folder and those below it; of those that have not finished, the trainings."""
    looked_at = found = 0
    for place, folders, files in os.walk(folder):
        at = Path(place)
        levels = len(at.relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if levels < MOST_LEVELS
            and name not in INNER
            and not name.startswith((".", "step_"))
            and (at / name).resolve() not in skipped
        )
        looked_at += 1
        name = str(at.relative_to(folder)) if levels else folder.resolve().name
        for file in sorted(files):
            stage = None
            if file == "manifest.json" or file.endswith(manifest.OF_PREFIX):
                if manifest.read_manifest(at / file) is None:
                    continue  # another program's
                prefix = file.removesuffix(manifest.OF_PREFIX) if file != "manifest.json" else ""
                own = str((at / prefix).relative_to(folder)) if prefix else name
                stage = RunStage(own, _facts(at / file), at / file)
            elif file == "run.json" and "log.jsonl" in files and "manifest.json" not in files:
                stage = _unfinished(name, at / file)
            if stage is not None:
                found += 1
                yield stage
        if looked_at >= MOST_FOLDERS or found >= MOST_STAGES:
            raise UserError(
                f"{folder}: has more than {MOST_STAGES} stages or {MOST_FOLDERS:,} folders; name the"
                " directory of one run"
            )


def _in_order(stages: Sequence[RunStage]) -> list[RunStage]:
    """The stages by the time when they finished; one that reads another's output comes after it."""
    by_time = sorted(stages, key=lambda s: (not s.finished, s.manifest.get("finished", ""), s.name))
    by_key: dict[str, list[RunStage]] = {}
    for stage in by_time:
        by_key.setdefault(stage.manifest.get("key", ""), []).append(stage)
    ordered: dict[int, RunStage] = {}
    # A stack, not recursion: a stranger's manifests may name each other in a long chain, or in a circle.
    for first in by_time:
        waiting = [(first, False)]
        opened = set()
        while waiting:
            stage, inputs_done = waiting.pop()
            if id(stage) in ordered:
                continue
            if inputs_done or id(stage) in opened:
                ordered[id(stage)] = stage
                continue
            opened.add(id(stage))
            waiting.append((stage, True))
            keys = dict.fromkeys(i.get("key") for i in stage.manifest.get("inputs", []))
            waiting += [(s, False) for key in keys for s in by_key.get(key or "", []) if id(s) not in opened]
    return list(ordered.values())


def with_present_inputs(stage: RunStage, run: ReportedRun) -> FinishedStage:
    """The stage, with the paths of its inputs where they are now.

    An input that a stage of the run wrote is taken from that stage's folder. A relative path that leads to
    nothing from here is one from the directory in which the command ran.
    """
    assert stage.path is not None
    makers = {s.manifest["key"]: s for s in run.finished}
    inputs = [
        {**known, "path": str(_present(known, makers, stage.manifest.get("directory", "")))}
        if isinstance(known.get("path"), str)
        else known
        for known in stage.manifest["inputs"]
    ]
    return FinishedStage(stage.path.parent, {**stage.manifest, "inputs": inputs})


def _present(known: Json, makers: dict[str, RunStage], directory: str) -> Path | str:
    maker = makers.get(known.get("key", ""))
    if maker is not None and maker.path is not None:
        place = maker.path.parent
        if isinstance(name := known.get("name"), str):
            with contextlib.suppress(UserError):
                place = manifest.output_path(maker.path, name)
        if place.exists():
            return place
    path: str = known["path"]
    if path != "-" and not os.path.exists(path) and directory and not os.path.isabs(path):
        return Path(directory, path)
    return path
