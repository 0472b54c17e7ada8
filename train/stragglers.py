"""Find slow ranks (stragglers), and run Python's garbage collection on all ranks at the same step.

All ranks take the same time for a step, because they wait for the slowest. So each rank measures the time in
which it computes alone: a block's forward pass, from the moment when the block's weights are there. (Ranks of
a tensor-parallel group also wait for each other within a block, so they are slow together.) On GPUs it is
measured with events on the computing stream, without synchronisation. Each rank also measures how long it
waits for its batches. With several ranks a line of log.jsonl has

    block_seconds   [fastest rank, median, slowest], means over the interval
    slowest         the slowest rank
    slow            ranks that keep the others waiting (`slow_ranks`); absent if there are none
"""

from __future__ import annotations

import contextlib
import functools
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from ..core.executor import without_collector
from .parallel.mesh import Mesh
from .recompute import stacks

SLOW = 1.5  # times the median: a rank is slow whose blocks take longer
LATE = 0.1  # of the steps' time: a rank is slow that waits this much longer for data than the median
LEAST_SECONDS = 0.1  # in blocks on the slowest rank; shorter measurements are noise
MAX_ROWS = 8  # of the table
STEPS_BETWEEN_COLLECTIONS = 50

Time = float | torch.cuda.Event


@contextlib.contextmanager
def manual_gc(collect: Callable[[int], object] = gc.collect) -> Iterator[Callable[[], object]]:
    """Disables automatic garbage collection; yields the function that collects, to be called on all ranks at
    once.

    Automatic collection pauses each rank at another time, and all ranks wait for the paused one. After a step
    no tensor is part of a reference cycle, so little memory waits for the collection.
    """
    gc.collect()
    is_ours = not gc.get_freeze_count()  # else the program that called us has frozen its objects
    if is_ours:
        gc.freeze()  # existing objects live until the end, so collections need not visit them
    with without_collector():
        try:
            yield functools.partial(collect, 1)
        finally:
            if is_ours:
                gc.unfreeze()


class StragglerDetector:
    """Measures the forward passes of a model's blocks, by hooks, on every rank."""

    def __init__(self, model: nn.Module, mesh: Mesh):
        self.mesh = mesh
        self._times: list[tuple[Time, Time]] = []  # (begin, end) of forward passes
        self._begun: dict[nn.Module, Time] = {}
        if mesh.world_size == 1:
            return
        self.hosts = mesh.all_gather_object(platform.node())
        for block in (block for blocks in stacks(model) for block in blocks):
            if next(block.parameters(), None) is not None:
                # runs after fully_shard's hook, which gathers the weights
                block.register_forward_pre_hook(self._begin)
                block.register_forward_hook(self._end, prepend=True)

    def _begin(self, block: nn.Module, _) -> None:
        if block.training:
            self._begun[block] = self._now()

    def _end(self, block: nn.Module, *_) -> None:
        if block.training and block in self._begun:
            self._times.append((self._begun.pop(block), self._now()))

    def _now(self) -> Time:
        if self.mesh.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def report(self, step: int, seconds: float, waited: float) -> dict:
        """The values for a log line, on all ranks. Rank 0 prints a table of slow ranks.

        Starts a new interval.

        seconds: of the interval's steps. waited: for batches, part of them.
        """
        if self.mesh.world_size == 1:
            return {}
        took = [_seconds(begin, end) for begin, end in self._times]
        self._times = []
        all_ranks = torch.zeros(self.mesh.world_size, 4, dtype=torch.float64, device=self.mesh.device)
        all_ranks[self.mesh.rank] = torch.tensor(
            [statistics.mean(took) if took else 0.0, waited, seconds, sum(took)], dtype=torch.float64
        )
        blocks, waits, steps, totals = zip(*self.mesh.all_reduce(all_ranks).tolist())
        slow = slow_ranks(blocks, waits, max(steps)) if max(totals) >= LEAST_SECONDS else []
        if slow and self.mesh.rank == 0:
            print(table(step, slow, blocks, waits, steps, self.hosts), file=sys.stderr, flush=True)
        return {
            "block_seconds": [min(blocks), statistics.median(blocks), max(blocks)],
            "slowest": blocks.index(max(blocks)),
            **({"slow": slow} if slow else {}),
        }


def _seconds(begin: Time, end: Time) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return begin.elapsed_time(end) / 1e3
    assert not isinstance(begin, torch.cuda.Event), "one device, one clock"
    assert not isinstance(end, torch.cuda.Event), "one device, one clock"
    return end - begin


def slow_ranks(blocks: tuple[float, ...], waits: tuple[float, ...], seconds: float) -> list[int]:
    """Ranks whose blocks take SLOW times the median, or that wait LATE of the time longer; slowest first.

    blocks, waits: seconds in a block and for data, by rank. seconds: of the steps. The lower median is taken,
    so that one of two ranks can be slow.
    """
    median, median_wait = statistics.median_low(blocks), statistics.median_low(waits)
    found = [
        r
        for r, (block, wait) in enumerate(zip(blocks, waits))
        if block > SLOW * median or wait - median_wait > LATE * seconds
    ]
    return sorted(found, key=lambda r: (blocks[r], waits[r]), reverse=True)


def table(
    step: int,
    slow: list[int],
    blocks: Sequence[float],
    waits: Sequence[float],
    steps: Sequence[float],
    hosts: Sequence[str],
) -> str:
    """The printed table of slow ranks and the median of all. blocks, waits, steps: seconds by rank."""
    width = max(len(host) for host in hosts)
    lines = [
        f"mt: step {step:,}: {len(slow)} of {len(hosts)} ranks keep{'s' if len(slow) == 1 else ''} the others"
        " waiting",
        f"  {'rank':>6}  {'host':<{width}}  {'ms a block':>10}  {'data s':>7}  {'all s':>7}",
    ]
    rows = [(str(r), hosts[r], blocks[r], waits[r], steps[r]) for r in slow[:MAX_ROWS]]
    medians = (statistics.median_low(blocks), statistics.median_low(waits), statistics.median_low(steps))
    rows.append(("median", "", *medians))
    lines += [
        f"  {rank:>6}  {host:<{width}}  {1e3 * block:>10.2f}  {wait:>7.2f}  {step_seconds:>7.2f}"
        for rank, host, block, wait, step_seconds in rows
    ]
    return "\n".join(lines)
