"""Profile some steps with torch.profiler: a trace for Perfetto or chrome://tracing, and a table of
operations.

LogConfig says which steps on which ranks. Written: SAVE/profile/rank_R_steps_A_B.json.gz and .txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..core import paths
from ..core.config import UserError
from .metrics import LogConfig

ROWS = 30  # of the table


def check_profile(config: LogConfig, ranks: int, steps: int) -> None:
    """Raises UserError if no step would be profiled. ranks, steps: their numbers in the run."""
    if config.profile and (beyond := [rank for rank in config.profile_ranks if not 0 <= rank < ranks]):
        raise UserError(
            f"log.profile_ranks = {beyond[0]}: this run's ranks are 0 to {ranks - 1}; name some of them"
        )
    if config.profile and config.profile_step_start >= steps:
        raise UserError(
            f"log.profile_step_start = {config.profile_step_start}: this run has {steps} steps; record"
            " earlier ones"
        )


class StepProfiler:
    """Profiles the steps from `profile_step_start` (excluded, as in Megatron-LM) to `profile_step_end`."""

    def __init__(self, config: LogConfig, folder: Path, rank: int, device: torch.device):
        self.folder, self.rank, self.device = folder / "profile", rank, device
        chosen = config.profile and rank in config.profile_ranks
        self.start, self.end = (config.profile_step_start, config.profile_step_end) if chosen else (-1, -1)
        self.first = 0
        self._running: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Call before step `step`, counted from 1."""
        if self._running is None and self.start < step <= self.end:
            from torch.profiler import ProfilerActivity, profile

            activities = [
                ProfilerActivity.CPU,
                *([ProfilerActivity.CUDA] if self.device.type == "cuda" else []),
            ]
            self.first, self._running = step, profile(activities=activities)
            self._running.start()

    def after(self, step: int, *, last: bool = False) -> None:
        """Call after step `step`. last: it is this process's last step."""
        if self._running is None or not (last or step == self.end):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._running.stop()
        paths.make_folder(self.folder)
        prefix = f"{self.folder}/rank_{self.rank}_steps_{self.first}_{step}"
        paths.remove(f"{prefix}.json.gz")  # torch would write through a link
        self._running.export_chrome_trace(f"{prefix}.json.gz")
        table = self._running.key_averages().table(
            sort_by=f"self_{self.device.type}_time_total", row_limit=ROWS, max_name_column_width=60
        )
        with paths.create(f"{prefix}.txt", "w") as file:
            file.write(table)
        print(
            f"mt: {prefix}.txt: where the time of steps {self.first:,} to {step:,} went;"
            f" https://ui.perfetto.dev shows {prefix}.json.gz",
            file=sys.stderr,
        )
        self._running = None
