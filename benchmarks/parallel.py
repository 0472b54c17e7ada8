"""Measures the cost of parallelism: wrappers at one process, data parallelism, and idle time of pipelines.

    python benchmarks/parallel.py
    python benchmarks/parallel.py --rounds 20 --hidden 512

Contestants make a step in turn, in the same processes, each with one thread. Printed are medians over the
rounds of wall and CPU seconds of rank 0, and the ratio of the medians. A step is `--micro-batches` forward
and backward passes, the gradient norm, and AdamW. On a loaded machine the ratios of wall seconds say little.

- alone: the model as it is built.
- wrapped: the same after `parallelize` at one process, which should change nothing.
- independent: two processes with a model each.
- dp: two processes that share a model; gradients are summed, the optimizer state is sharded.
- dp at once: the same, but all weights are gathered at the beginning of a step and all gradients summed at
  its end, so nothing overlaps.
- dp full: the same, with sharded weights and gradients too.

Then pipelines of two stages: the share of a step in which a rank's thread neither computes nor sleeps,
compared with the formula (p - 1) / (v m + p - 1), where zero-bubble has a third of p - 1. The vocabulary is
small there, so that stages are even. With --sleep S every block sleeps for S seconds in the forward pass and
2 S in the backward pass instead of computing. This measures the order of the work and its messages, as on
GPUs, and a loaded machine disturbs it less.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

VOCABULARY, LENGTH, ROWS = 2048, 256, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument(
        "--micro-batches", type=int, default=16, help="micro-batches of a step, on each process"
    )
    parser.add_argument(
        "--sleep",
        type=float,
        default=0.0,
        help="seconds that a block of a pipeline sleeps in the forward pass instead of computing",
    )
    parser.add_argument("--only", choices=("steps", "pipelines"), help="one of the two tables")
    parser.add_argument("--worker", choices=("steps", "pipelines"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        {"steps": work, "pipelines": wait}[arguments.worker](arguments)
        return
    if arguments.only != "pipelines":
        print(
            "| contestant | processes | wall s | CPU s | ratio of wall | ratio of CPU"
            " |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for processes in (1, 2):
            start(processes, "steps")
    if arguments.only != "steps":
        print(
            "| pipeline | micro-batches | wall s | waiting | formula | ratio |\n|---|---|---|---|---|---|",
            flush=True,
        )
        start(2, "pipelines")


def start(processes: int, worker: str) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        __file__,
        *sys.argv[1:],
        "--worker",
        worker,
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def work(arguments) -> None:
    import torch

    from mt.train.parallel.mesh import Mesh, ParallelConfig, launch

    torch.set_num_threads(1)
    with launch(ParallelConfig()) as mesh:
        own = Mesh(0, 1, mesh.device)
        if mesh.world_size == 1:
            steps = {
                "alone": step_of(None, "optimizer", arguments),
                "wrapped": step_of(own, "optimizer", arguments),
            }
        else:
            steps = {
                "independent": step_of(own, "optimizer", arguments),
                "dp": step_of(mesh, "optimizer", arguments),
                "dp at once": step_of(mesh, "optimizer", arguments, at_once=True),
                "dp full": step_of(mesh, "full", arguments),
            }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(arguments.rounds + 1):
            for name, step in steps.items():
                mesh.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                step()
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        medians = {
            name: [statistics.median(column) for column in zip(*taken[1:])] for name, taken in times.items()
        }
        base = next(iter(medians.values()))
        if mesh.rank == 0:
            for name, (wall, cpu) in medians.items():
                print(
                    f"| {name} | {mesh.world_size} | {wall:.3f} | {cpu:.3f} | {wall / base[0]:.3f} |"
                    f" {cpu / base[1]:.3f} |",
                    flush=True,
                )


def wait(arguments) -> None:
    """Prints the table of pipelines."""
    import torch

    from mt.train.model.config import ModelConfig, resolve
    from mt.train.model.family import build_model
    from mt.train.model.inputs import MicroBatch
    from mt.train.model.layers import initialize
    from mt.train.parallel.mesh import ParallelConfig, launch
    from mt.train.parallel.parallelize import parallelize
    from mt.train.parallel.pipeline import Pipeline
    from mt.train.step import forward_backward

    torch.set_num_threads(1)
    shape = resolve(
        ModelConfig(num_layers=8, hidden_size=arguments.hidden, num_attention_heads=4),
        vocab_size=64,
        seq_length=LENGTH,
    )
    stages = {"pipeline_model_parallel_size": 2}
    contestants = {
        "1f1b": ({}, 1, 1.0),
        "interleaved": ({"num_layers_per_virtual_pipeline_stage": 2}, 2, 1.0),
        "zero-bubble": ({"pipeline_schedule": "zero-bubble"}, 1, 1 / 3),
    }
    slept = Slept()
    with launch(ParallelConfig(**stages)) as mesh:
        models = {}
        for name, (how, _, _) in contestants.items():
            parallel = ParallelConfig(**stages, **how)
            with torch.device("meta"):
                model = Pipeline(build_model(shape), mesh, parallel, {"seq_length": LENGTH}, torch.float32)
            parallelize(model, mesh, parallel, torch.float32)
            model.to_empty(device=mesh.device)
            initialize(model, 1)
            if arguments.sleep:
                put_to_sleep(model, arguments.sleep, slept)
            models[name] = model
        for count in (2, 4, 8):
            tokens = torch.randint(
                64, (count, 2 * ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0)
            )
            batch = [
                MicroBatch(i, sample[:, :-1], sample[:, 1:], torch.ones(2 * ROWS, LENGTH))
                for i, sample in enumerate(tokens)
            ]
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
            for _ in range(arguments.rounds + 1):
                for name, model in models.items():
                    mesh.barrier()
                    wall, busy, slept.seconds = time.perf_counter(), time.thread_time(), 0.0
                    forward_backward(model, batch, torch.ones(()), seed="0")
                    model.zero_grad()
                    mesh.barrier()
                    times[name].append(
                        (time.perf_counter() - wall, time.thread_time() - busy + slept.seconds)
                    )
            for name, taken in times.items():
                _, stages_of_rank, part = contestants[name]
                wall, busy = (statistics.median(column) for column in zip(*taken[1:]))
                busy = float(mesh.all_reduce(torch.tensor(busy, dtype=torch.float64))) / 2
                formula = part / (count * stages_of_rank + part)
                if mesh.rank == 0:
                    print(
                        f"| {name} | {count} | {wall:.3f} | {1 - busy / wall:.1%} | {formula:.1%} |"
                        f" {(1 - busy / wall) / formula:.2f} |",
                        flush=True,
                    )


class Slept:
    """time.sleep, and the seconds that it took: a virtual processor wakes up to a millisecond late."""

    seconds = 0.0

    def __call__(self, seconds: float) -> None:
        start = time.perf_counter()
        time.sleep(seconds)
        self.seconds += time.perf_counter() - start


def put_to_sleep(pipeline, seconds: float, sleep: Slept) -> None:
    """Makes the blocks of a pipeline sleep instead of computing. The weight gradients, half of the backward
    pass, can be deferred.
    """
    import torch

    from mt.train.parallel.stages import own_blocks

    class Sleep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.weight = weight
            sleep(seconds)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            sleep(seconds)
            if pipeline.put_off is None:
                sleep(seconds)
            else:
                pipeline.put_off.products.append(
                    (ctx.weight, lambda: sleep(seconds) or torch.zeros_like(ctx.weight))
                )
            return gradient, None

    for stage in pipeline.stages:
        for block in own_blocks(stage):
            block.forward = lambda x, block=block, **_: Sleep.apply(x, block.mixer_norm.weight)


def step_of(mesh, sharding: str, arguments, *, at_once: bool = False) -> Callable[[], None]:
    """A function that makes one training step of a model; mesh None: `parallelize` is not called.

    at_once: weights are gathered and gradients summed for the whole model at once, not block by block.
    """
    from unittest import mock

    import torch

    from mt.train.model.config import ModelConfig, resolve
    from mt.train.model.family import build_model
    from mt.train.model.inputs import MicroBatch
    from mt.train.model.layers import initialize
    from mt.train.optimizer import OptimizerConfig, build_optimizer, gradient_norm
    from mt.train.parallel.mesh import Mesh, ParallelConfig
    from mt.train.parallel.parallelize import parallelize
    from mt.train.step import forward_backward

    shape = ModelConfig(num_layers=arguments.layers, hidden_size=arguments.hidden, num_attention_heads=4)
    model = build_model(resolve(shape, vocab_size=VOCABULARY, seq_length=LENGTH))
    initialize(model, 1)
    if mesh is not None:
        with (
            mock.patch("mt.train.parallel.parallelize.own_blocks", return_value=[])
            if at_once
            else contextlib.nullcontext()
        ):
            parallelize(model, mesh, ParallelConfig(data_parallel_sharding=sharding), torch.float32)
    mesh = mesh or Mesh(0, 1, torch.device("cpu"))
    optimizer = build_optimizer(dict(model.named_parameters()), OptimizerConfig())
    tokens = torch.randint(
        VOCABULARY,
        (arguments.micro_batches, ROWS, LENGTH + 1),
        generator=torch.Generator().manual_seed(mesh.rank),
    )
    batch = [
        MicroBatch(i, sample[:, :-1], sample[:, 1:], torch.ones(ROWS, LENGTH))
        for i, sample in enumerate(tokens)
    ]
    factor = torch.tensor(1 / tokens[:, :, 1:].numel() / mesh.world_size)

    def step() -> None:
        forward_backward(model, batch, factor, seed="0")
        gradient_norm(model.parameters(), mesh)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
