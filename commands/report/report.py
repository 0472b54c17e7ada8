"""`mt report`: one HTML page about a run, or about several beside each other.

    mt report runs/demo          # runs/demo/report/report.html
    mt report runs/a runs/b      # runs/a/report-with-b/report.html: curves over each other, what differs

A run is a folder with the outputs of `mt run`, or of commands that were started by hand; it may have been
moved or copied. The page is made of manifests, the logs of trainings, and some documents drawn at random. It
loads no script, font or picture, so it can be mailed as one file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...core import manifest
from ...core.config import check, configuration, option
from ...core.manifest import Json, atomic_write
from . import page, view
from .stages import ReportedRun, find_run

MOST_RUNS = 6  # beside each other


@configuration()
class ReportConfig:
    """The settings of `mt report`."""

    POSITIONAL = "run_dir"

    run_dir: tuple[str, ...] = option(
        help="directory of a run, or of a stage; several are compared", role="input"
    )
    output: str | None = option(
        None,
        "directory for report.html (default: RUN_DIR/report, of several RUN_DIR/report-with-OTHER)",
        role="output",
    )
    overwrite: bool = option(True, "replace an older report in the output directory", role="runtime")

    def __post_init__(self) -> None:
        check(
            (bool(self.run_dir), "run_dir is empty: name the directory of a run"),
            (
                len(self.run_dir) <= MOST_RUNS,
                f"run_dir names {len(self.run_dir)} directories; compare at most {MOST_RUNS}",
            ),
            (len(set(self.run_dir)) == len(self.run_dir), "run_dir names a directory twice; name each once"),
        )


def report(config: ReportConfig) -> Json:
    """Writes report.html; returns its manifest, in which `page` is the path.

    Raises UserError for a directory without an output of mt, or with a manifest that mt does not write.
    """
    folders = [Path(folder) for folder in config.run_dir]
    others = "-".join(folder.resolve().name for folder in folders[1:])
    output = Path(config.output or folders[0] / (f"report-with-{others}" if others else "report"))
    runs = [find_run(folder, [output]) for folder in folders]
    inputs = [path for run in runs for path in _read(run)]
    facts = {"names": [(run.name, [stage.name for stage in run.stages]) for run in runs]}
    run = manifest.begin("report", config, inputs, output=output, facts=facts)
    path = output / "report.html"
    if run.finished:
        return run.manifest
    shown = view.view(runs)
    for note in shown["documents"].notes:
        print(f"mt: report: {note}", file=sys.stderr)
    with atomic_write(path, "w") as file:
        file.write(page.render(", ".join(shown["runs"]), shown))
    stages = sum(len(run.finished) for run in runs)
    return run.finish([manifest.record(path, output)], {"stages": stages}, page=str(path))


def _read(run: ReportedRun) -> list[Path]:
    """The files on which the page of a run depends: manifests, logs of trainings."""
    paths = [stage.path for stage in run.stages if stage.path is not None]
    return [*paths, *(stage.log for stage in run.stages if stage.log is not None)]
