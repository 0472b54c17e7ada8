"""`mt run` runs the stages of a YAML file, one after another, and skips those that are up to date.

    run_dir: runs/mine
    stages:
      clean:  {run: data clean, input: my/*.jsonl, preset: fineweb}
      dedup:  {run: data dedup, input: "${clean}"}
      tokens: {run: data tokenize, input: "${dedup}", vocab_file: v.json, merge_file: m.txt, append_eod: true}
      train:  {run: train, data.data_path: "${tokens}_text_document", train.train_iters: 1000, launch: mt
          launch --nproc-per-node 8}

A stage is a command of mt (`run`) with its settings, written as in that command's `--config` file. Its output
goes to `<run_dir>/<stage>` by default. `${stage}` stands for a stage's output, `${run_dir}` for the directory
of all outputs. `launch` puts a launcher (mt launch, torchrun, srun) before the command.

The manifest of each stage has a key made of its settings and of the keys of its inputs. So a stage runs again
only if one of its own settings or an earlier stage changed, and a killed pipeline continues where it was.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..core.config import Failure, UserError, configuration, nearest, option, settings, shown
from ..core.extras import EXTRAS, install_extra
from ..core.manifest import Json, atomic_write, read_json, write_json
from ..core.parsing import check_value, read_yaml
from . import table
from .configure import configure, from_file
from .report.table import rows, text_table

NAME = r"[A-Za-z0-9_-]+"
REFERENCE = re.compile(r"\$\{([^}]*)\}")


@configuration()
class RunConfig:
    """The settings of `mt run`."""

    POSITIONAL = "pipeline"

    pipeline: str = option(help="YAML file with the stages", role="input")
    run_dir: str | None = option(
        None, "directory for all outputs (default: run_dir of the file)", role="output"
    )
    until: str | None = option(None, "the last stage to run")
    dry_run: bool = option(
        False, "check the settings of all stages and print their commands; run nothing", role="runtime"
    )


@configuration()
class DemoConfig:
    """The settings of `mt demo`."""

    run_dir: str = option("runs/demo", "directory for all outputs", role="output")
    until: str | None = option(None, "the last stage to run; `tokens` ends before the training")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, with its references resolved."""

    name: str
    verb: tuple[str, ...]
    settings: dict[str, Any]
    output: str
    launch: list[str]


def demo(config: DemoConfig) -> Json:
    """Runs `examples/demo.yaml`, which the package contains; returns its summary.

    The stage `retro` is left out if the extra that it needs is not installed. No other stage reads its
    output.
    """
    pipeline = str(Path(__file__).parents[1] / "examples" / "demo.yaml")
    missing = [module for module in EXTRAS["retro"] if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"mt: the stage retro is left out, because it needs {', '.join(missing)};"
            f" install what is missing with: {install_extra('retro')}",
            file=sys.stderr,
        )
    leave_out = ("retro",) if missing else ()
    summary = run(RunConfig(pipeline=pipeline, run_dir=config.run_dir, until=config.until), leave_out)
    if config.until is None:
        prompt = f'mt generate --load {shlex.quote(config.run_dir)}/train --prompts "Return the"'
        summary["text"] += "\n" + "\n".join(["try the model:", *_path_command(), f"  {prompt}"])
    return summary


def _path_command() -> list[str]:
    """The command that puts `mt` on the PATH of the shell; none if it is there or was not installed."""
    ours = Path(sys.executable).parent / "mt"
    found = shutil.which("mt")  # may be another program: the one that controls magnetic tapes
    if not ours.exists() or (found and Path(found).resolve() == ours.resolve()):
        return []
    folder = ours.parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    if (ours.parent / "activate").exists():
        return [f"  source {shlex.quote(str(folder / 'activate'))}"]
    return [f'  export PATH={shlex.quote(str(ours.parent))}:"$PATH"']


def run(config: RunConfig, leave_out: Sequence[str] = ()) -> Json:
    """Runs the stages of a pipeline file in order; returns the table of results and the path of the report.

    The settings of all stages are checked before the first stage starts. leave_out: stages that are not run.
    """
    started = time.time()
    run_dir, stages = load(config.pipeline, config.run_dir, leave_out)
    names = [s.name for s in stages]
    if config.until is not None:
        if config.until not in names:
            raise UserError(
                f"until = {config.until!r} is not a stage of {config.pipeline}"
                f"{nearest(config.until, names)}; it has {', '.join(names)}"
            )
        stages = stages[: names.index(config.until) + 1]
    calls = [(stage, *_configure(stage, config.pipeline)) for stage in stages]
    if config.dry_run:
        return {
            "text": "\n".join(
                f"{s.name}: {' '.join([*s.launch, 'mt', *s.verb])} -> {s.output}" for s in stages
            )
        }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        run_dir / "pipeline.json",
        [{"name": s.name, "verb": " ".join(s.verb), "output": _place(s.output, run_dir)} for s in stages],
    )
    manifests = []
    for number, (stage, function, settings_) in enumerate(calls, 1):
        began = time.time()
        print(f"[{number}/{len(calls)}] {stage.name}: mt {' '.join(stage.verb)}", file=sys.stderr, flush=True)
        manifests.append(_launch(stage, run_dir) if stage.launch else function(settings_))
        took = time.time() - began
        print(f"[{number}/{len(calls)}] {stage.name}: {took:.1f} s", file=sys.stderr, flush=True)
    results = rows([(s.name, m) for s, m in zip(stages, manifests)])
    page = next((m["page"] for m in reversed(manifests) if "page" in m), None)
    seconds = time.time() - started
    text = text_table(results) + f"\n\n{seconds:.0f} s in all" + (f"; report: {page}" if page else "")
    rejected = sum(m.get("counts", {}).get("rejected", 0) for m in manifests)
    return {
        "text": text,
        "stages": results,
        "report": page,
        "seconds": round(seconds, 1),
        "counts": {"rejected": rejected},
    }


def _place(output: str, run_dir: Path) -> str:
    """Where an output is, as pipeline.json says it: relative to the run's directory if it lies in it.

    So the listing holds from any directory, and after a move of the run.
    """
    inside = os.path.relpath(output, run_dir)
    return os.path.abspath(output) if inside.startswith("..") else inside


def load(path: str, run_dir: str | None = None, leave_out: Sequence[str] = ()) -> tuple[Path, list[Stage]]:
    """The run directory and the stages of a pipeline file; raises UserError that names every mistake."""
    tree = read_yaml(path)
    unknown = [k for k in tree if k not in ("run_dir", "stages")]
    if unknown:
        raise UserError(
            "\n".join(
                f"{path}: unknown key {k!r}{nearest(str(k), ['run_dir', 'stages'])}; it takes run_dir and"
                " stages"
                for k in unknown
            )
        )
    if not isinstance(tree.get("stages"), dict) or not tree["stages"]:
        raise UserError(f"{path}: needs `stages:`, a mapping from each stage's name to its settings")
    folder = run_dir or tree.get("run_dir")
    if not folder:
        raise UserError(f"{path}: needs run_dir, the directory for all outputs (or pass --run-dir)")
    check_value(folder, str, f"{path}: run_dir", "name a directory")
    stages: list[Stage] = []
    errors: list[str] = []
    outputs = {"run_dir": str(folder)}
    for name, body in tree["stages"].items():
        if name in leave_out:
            continue
        try:
            stage = _stage(str(name), body, Path(folder), outputs)
        except UserError as error:
            label = name if re.fullmatch(NAME, str(name)) else shown(name)
            errors += [f"{path}: stage {label}: {line}" for line in str(error).split("\n")]
            outputs[str(name)] = f"{folder}/{name}"  # so that later references to it are not mistakes too
            continue
        outputs[stage.name] = stage.output
        stages.append(stage)
    if errors:
        raise UserError("\n".join(errors))
    return Path(folder), stages


def _stage(name: str, body: Any, run_dir: Path, outputs: Mapping[str, str]) -> Stage:
    """A stage of a pipeline file; raises UserError for an invalid one."""
    if not re.fullmatch(NAME, name):
        raise UserError("the name of a stage must consist of letters, digits, - and _")
    if not isinstance(body, dict) or not isinstance(body.get("run"), str):
        raise UserError("needs `run:`, the command of mt that it runs (`run: data clean`)")
    verb = tuple(body["run"].split())
    if verb not in table.COMMANDS:
        known = [" ".join(v) for v in table.COMMANDS]
        raise UserError(
            f"run: {shown(body['run'])} is not a command of mt{nearest(body['run'], known)};"
            " `mt --help` lists all"
        )
    _, cls = table.load(verb)
    output = next((s for s in settings(cls) if s.role == "output"), None)
    if output is None:
        raise UserError(f"`mt {body['run']}` writes no output: it cannot be a stage")
    given = {k: _resolve(v, outputs) for k, v in body.items() if k not in ("run", "launch")}
    place = _lookup(given, output.path)
    if place is None:
        place = str(run_dir / name / name if output.name.endswith("prefix") else run_dir / name)
        given[output.name] = place
    check_value(place, str, output.name, "name a directory or a prefix")
    launch = check_value(_resolve(body.get("launch", ""), outputs), str, "launch", "give a command")
    overwrite = next((s for s in settings(cls) if s.path[-1] == "overwrite"), None)
    if overwrite is not None:
        # the output belongs to the stage: what an older version of the file left there is replaced
        given[overwrite.name] = True
    return Stage(name, verb, given, place, _words(launch))


def _words(launch: str) -> list[str]:
    """The words of a launcher's command."""
    try:
        return shlex.split(launch)
    except ValueError as error:
        raise UserError(f"launch = {shown(launch)}: {error}; close the quotation") from None


def _lookup(tree: Any, path: tuple[str, ...]) -> Any:
    """The value of a setting in a tree that names it by dots or nests it; None if it is not there."""
    if ".".join(path) in tree:
        return tree[".".join(path)]
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _resolve(value: Any, outputs: Mapping[str, str]) -> Any:
    """A setting with every `${stage}` replaced by the output of that stage."""
    if isinstance(value, dict):
        return {k: _resolve(v, outputs) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, outputs) for v in value]
    if not isinstance(value, str):
        return value

    def output_of(match: re.Match[str]) -> str:
        if match[1] not in outputs:
            raise UserError(
                f"{match[0]} does not name an earlier stage{nearest(match[1], outputs)}; stages run in the"
                " order of the file"
            )
        return outputs[match[1]]

    end = value.rfind("}") + 1  # after the last bracket, every `${` would be read to the end of the value
    return REFERENCE.sub(output_of, value[:end]) + value[end:]


def _configure(stage: Stage, origin: str) -> tuple[Callable[[Any], Any], Any]:
    """The function of a stage's command and its configuration."""
    function, cls = table.load(stage.verb)
    settings = from_file(cls, stage.settings, origin)
    return function, configure(cls, [(f"{origin}: stage {stage.name}", settings)])


def _launch(stage: Stage, run_dir: Path) -> Json:
    """Runs a stage under its launcher, as `LAUNCHER -m mt VERB --config FILE`; returns its manifest."""
    settings_file = run_dir / f"{stage.name}.launch.yaml"
    with atomic_write(settings_file, "w") as file:
        yaml.safe_dump(stage.settings, file)
    command = [*stage.launch, "-m", "mt", *stage.verb, "--config", str(settings_file)]
    try:
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError:
        raise UserError(
            f"stage {stage.name}: launch: {stage.launch[0]!r} is not installed; check its name and PATH"
        ) from None
    if code not in (0, 3):
        kind = UserError if code == 2 else Failure
        raise kind(
            f"stage {stage.name}: {' '.join(command)} ended with exit code {code}; its messages are above"
        )
    output = Path(stage.output)
    _, cls = table.load(stage.verb)
    prefix = next(s for s in settings(cls) if s.role == "output").name.endswith("prefix")
    path = output.with_name(f"{output.name}.manifest.json") if prefix else output / "manifest.json"
    manifest: Json = read_json(path)
    return manifest
