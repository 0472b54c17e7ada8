"""what keeps ranks in step: slow ones are found, and Python's collector waits for all.

Slow ranks are found by what each needs for a block's forward pass, and how long it waits for its batches.

All ranks of a job take the same time for a step, because they wait for the slowest. What tells them apart is
the time in which a rank computes alone: from the beginning of a block's forward pass, when its weights are
there, to its end. (The ranks of a tensor-parallel group wait for each other within a block, and are slow
together.) On GPUs it is taken by events on the stream that computes, so that nothing is waited for.

A line of log.jsonl has, where there are several ranks,

    block_seconds   [of the fastest rank, of the median one, of the slowest], means over the interval
    slowest         that rank
    slow            the ranks that keep the others waiting (`slow_ranks`); absent where there are none
"""

from __future__ import annotations

import contextlib
import functools
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..core.executor import without_collector
from .parallel.mesh import Mesh
from .recompute import stacks

SLOW = 1.5  # times the median of a block's time
LATE = 0.1  # of a step's time, waited for data beyond the median
FEWEST = 0.1  # seconds in blocks on a rank, below which an interval says nothing
ROWS = 8  # of the table
STEPS_BETWEEN_COLLECTIONS = 50


@contextlib.contextmanager
def manual_gc(collect: Callable[[int], object] = gc.collect) -> Iterator[Callable[[], object]]:
    """Python's collector of cycles works only when the function that this gives is called: at the same step
    on all ranks.

    By itself it stops each rank at another moment, and all wait for the one that is stopped. No tensor lies
    in a cycle after a step, so that what waits for it is small.
    """
    gc.collect()
    gc.freeze()  # what is there by now stays to the end: it need not be gone through again
    with without_collector():
        try:
            yield functools.partial(collect, 1)
        finally:
            gc.unfreeze()


class StragglerDetector:
    """Times the blocks of a model from now on, on every rank of a job."""

    def __init__(self, model: nn.Module, mesh: Mesh):
        self.mesh, self.times = mesh, []
        self._open: dict[nn.Module, object] = {}
        if mesh.world_size == 1:
            return
        self.hosts = mesh.all_gather_object(platform.node())
        for block in (block for blocks in stacks(model) for block in blocks):
            if next(block.parameters(), None) is not None:
                # after that of fully_shard, which gathers the weights
                block.register_forward_pre_hook(self._begin)
                block.register_forward_hook(self._end, prepend=True)

    def _begin(self, block: nn.Module, _) -> None:
        if block.training:
            self._open[block] = self._now()

    def _end(self, block: nn.Module, *_) -> None:
        if block.training and block in self._open:
            self.times.append((self._open.pop(block), self._now()))

    def _now(self):
        if self.mesh.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def report(self, step: int, seconds: float, waited: float) -> dict:
        """What goes into a log line, on all ranks; prints a table on rank 0 where ranks are slow.

        Begins the next interval.

        seconds: of the interval's steps; waited: of these, for batches.
        """
        if self.mesh.world_size == 1:
            return {}
        took = [a.elapsed_time(b) / 1e3 if isinstance(a, torch.cuda.Event) else b - a for a, b in self.times]
        self.times = []
        everyones = torch.zeros(self.mesh.world_size, 4, dtype=torch.float64, device=self.mesh.device)
        everyones[self.mesh.rank] = torch.tensor(
            [statistics.mean(took) if took else 0.0, waited, seconds, sum(took)], dtype=torch.float64
        )
        blocks, waits, steps, totals = zip(*self.mesh.all_reduce(everyones).tolist())
        slow = slow_ranks(blocks, waits, max(steps)) if max(totals) >= FEWEST else []
        if slow and self.mesh.rank == 0:
            print(table(step, slow, blocks, waits, steps, self.hosts), file=sys.stderr, flush=True)
        found = {
            "block_seconds": [min(blocks), statistics.median(blocks), max(blocks)],
            "slowest": blocks.index(max(blocks)),
        }
        return found | ({"slow": slow} if slow else {})


def slow_ranks(blocks: tuple[float, ...], waits: tuple[float, ...], seconds: float) -> list[int]:
    """Those whose block takes SLOW times the median's, or that wait for data by LATE of the step longer than
    the median; slowest first.

    blocks, waits: seconds by rank. The lower of two medians counts, so that of two ranks one can be slow.
    """
    usual, usual_wait = statistics.median_low(blocks), statistics.median_low(waits)
    found = [
        r
        for r, (block, wait) in enumerate(zip(blocks, waits))
        if block > SLOW * usual or wait - usual_wait > LATE * seconds
    ]
    return sorted(found, key=lambda r: (blocks[r], waits[r]), reverse=True)


def table(step: int, slow: list[int], blocks, waits, steps, hosts: list[str]) -> str:
    """What is printed of slow ranks, beside the median of all."""
    width = max(len(host) for host in hosts)
    lines = [
        (
            f"mt: step {step:,}: {len(slow)} of {len(hosts)} ranks keep{'s' if len(slow) == 1 else ''} the"
            " others waiting"
        ),
        f"  {'rank':>6}  {'host':<{width}}  {'ms a block':>10}  {'data s':>7}  {'all s':>7}",
    ]
    rows = [(str(r), hosts[r], blocks[r], waits[r], steps[r]) for r in slow[:ROWS]]
    rows.append(("median", "", *(statistics.median_low(column) for column in (blocks, waits, steps))))
    return "\n".join(
        [
            *lines,
            *(
                f"  {rank:>6}  {host:<{width}}  {1e3 * block:>10.2f}  {wait:>7.2f}  {all_:>7.2f}"
                for rank, host, block, wait, all_ in rows
            ),
        ]
    )
