"""`mt plan`: memory, speed and hours of a run, and the parallel layouts that fit, without a run.

Parameters and activations are counted (memory_estimate.py). Time follows from them and from the GPU's data
sheet:

    micro-batch   (3 forward FLOPs + recomputed FLOPs) / (MATMUL x peak)
                  + TRAFFIC x activations / memory bandwidth
                  + tensor-, context- and expert-parallel bytes / their bandwidth
    step          (m + (p - 1) / v) x the slowest stage's micro-batch
                      (m micro-batches, p stages, v interleaved parts; zero-bubble: a third of (p - 1) / v)
                  + data-parallel bytes / their bandwidth, beyond one micro-batch, which hides them
                  + OPTIMIZER_BYTES x a rank's parameters / memory bandwidth
    MFU           FLOPs of a global batch / (GPUs x step x peak), with full attention, not recomputed FLOPs

Data parallelism: with sharding `optimizer` a step gathers weights and sums gradients once, with `full` every
micro-batch gathers twice and sums once. MATMUL and TRAFFIC are fitted to Megatron-LM's published runs
(table in docs/parallelism.md). The hours of a run are its steps times the seconds of a step, without
validation, checkpoints and restarts.

`--gpu cpu` plans for the processors of this machine: their peak is measured by a matrix product. That
products of a model reach it, and CPU_FLOPS_PER_BYTE, are fitted to short runs (table in docs/training.md).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..core import terminal
from ..core.config import UserError, build, check, configuration, nearest, option
from ..core.progress import duration
from ..core.provenance import memory_bytes
from ..indexed.format import IndexedDataset
from ..indexed.remote import is_remote
from ..indexed.splits import shares
from ..tokenizer.tokenizer import load as load_tokenizer
from .checkpoint.native import CheckpointConfig
from .config import LoopConfig, TrainConfig
from .memory_estimate import Cut, PartCosts, Parts, count_parts
from .model.config import ResolvedModelConfig, resolve
from .model.datasets import SampleConfig
from .model.family import count_parameters, family_of, sequence_lengths
from .model.flops import PEAKS, measured_flops
from .model.training_cost import large_number, training_bytes, training_flops
from .parallel.mesh import ParallelConfig, check_sizes
from .parallel.parallelize import check_layout
from .parallel.stages import divide

MATMUL = 0.64  # share of the peak that matrix products reach
TRAFFIC = 5  # reads and writes of every byte of an activation, forward and backward
# FLOPs that a CPU could do in the time in which it reads or writes a byte of an activation. It computes
# norms, activation functions and sums at the same time, which are nothing beside a GPU's matrix products.
CPU_FLOPS_PER_BYTE = 27
# Bytes per parameter: weight, gradient and two moments read, three of them written, gradient norm and
# clipping.
OPTIMIZER_BYTES = 36
CLEARLY_LESS = 0.9  # of the memory of a layout
USABLE = 0.92  # share of a GPU's memory; CUDA, NCCL and fragmentation take the rest
GPUS_OF_A_MACHINE = 8
GIB = 2**30
CPU = "cpu"  # as a kind of GPU: the processors of this machine
# What a run without a length is planned for: about what uses its FLOPs best (Hoffmann et al. 2022).
TOKENS_PER_PARAMETER = 20
SOURCES_SHOWN = 10


class Gpu(NamedTuple):
    memory: float  # GiB
    bandwidth: float  # of the memory, GB/s
    link: float  # to the GPUs of the same machine, GB/s in each direction
    network: float  # to other machines, GB/s for each GPU


GPUS = {  # from the makers' data sheets; the names are those of flops.PEAKS
    "GB200": Gpu(184, 8000, 900, 50),
    "B200": Gpu(179, 8000, 900, 50),
    "H200": Gpu(140, 4800, 450, 50),
    "H100": Gpu(80, 3350, 450, 50),
    "H20": Gpu(96, 4000, 450, 50),
    "A100": Gpu(80, 2039, 300, 25),
    "V100": Gpu(32, 900, 150, 12.5),
    "L40S": Gpu(45, 864, 25, 25),
    "A40": Gpu(45, 696, 28, 25),
    "A10": Gpu(22.5, 600, 25, 12.5),
    "L4": Gpu(22.5, 300, 25, 12.5),
    "MI300": Gpu(192, 5300, 448, 50),
}


@configuration(group="data")
class PlanData(SampleConfig):
    """The data settings of training; nothing is read, so files may be missing."""

    def __post_init__(self):
        check((self.seq_length >= 1, f"data.seq_length = {self.seq_length} must be at least 1"))


@configuration(group="train")
class PlanLoop(LoopConfig):
    """The loop settings of training; the length of the run may be left out."""

    def __post_init__(self):
        sizes = ("micro_batch_size", "global_batch_size", "train_iters", "train_samples")
        check(
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 1,
                    f"train.{n} = {getattr(self, n)} must be at least 1",
                )
                for n in sizes
            )
        )


@configuration(group="checkpoint")
class PlanCheckpoint(CheckpointConfig):
    """The checkpoint settings of training; nothing is written."""

    save: str = option("", "not written to")


@configuration()
class PlanConfig(TrainConfig):
    """A training run and the GPUs that it is planned for."""

    data: PlanData
    train: PlanLoop
    checkpoint: PlanCheckpoint
    gpu: str = option(
        "H100",
        f"kind of GPU: {', '.join(GPUS)}; cpu: the processors of this machine, whose speed is measured",
        role="runtime",
    )
    train_tokens: float | None = option(
        None,
        "length of the run in tokens, as 2e9; --train-iters and --train-samples give it too (default:"
        f" {TOKENS_PER_PARAMETER} for each parameter)",
        role="runtime",
    )
    peak_tflops: float | None = option(
        None, "TFLOP/s of one device in matrix products (default: of its kind)", role="runtime"
    )
    gpu_memory_gib: float | None = option(
        None, "GiB of memory of one GPU (default: of its kind)", role="runtime"
    )
    pipeline_stages: tuple[int, ...] = option(
        (1, 2, 4, 8, 16), "numbers of pipeline stages to consider", role="runtime"
    )
    virtual_stages: int = option(
        1,
        "interleaved parts of the model on each pipeline rank, in the layouts to consider (num-layers /"
        " stages / num-layers-per-virtual-pipeline-stage)",
        role="runtime",
    )
    show: int = option(12, "layouts to show", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(
            (not self.dry_run, "dry_run is for `mt train`; a plan runs nothing"),
            (
                self.kind == CPU or self.world_size is not None,
                "how many GPUs is the run for? give --world-size N, or --gpu cpu for this machine's"
                " processors",
            ),
            (
                self.world_size is None or self.world_size >= 1,
                f"world_size = {self.world_size} must be at least 1",
            ),
            (
                self.kind != CPU or self.world_size in (None, 1),
                f"world_size = {self.world_size}: the plan of gpu = cpu is for one process with all"
                " processors; leave it out",
            ),
            (
                self.kind in (*GPUS, CPU),
                f"gpu = {self.gpu} is not known{nearest(self.gpu, GPUS)}; use one of {', '.join(GPUS)}, cpu",
            ),
            (
                [self.train_tokens, self.train.train_iters, self.train.train_samples].count(None) >= 2,
                "the run's length must be given once: --train-tokens, --train-iters or --train-samples",
            ),
            *(
                (value is None or value > 0, f"{name} = {value} must be above 0")
                for name, value in (("train_tokens", self.train_tokens), ("peak_tflops", self.peak_tflops))
            ),
            (
                self.gpu_memory_gib is None or self.gpu_memory_gib > 0,
                f"gpu_memory_gib = {self.gpu_memory_gib} must be above 0",
            ),
            (
                bool(self.pipeline_stages) and min(self.pipeline_stages) >= 1,
                f"pipeline_stages = {self.pipeline_stages} must be at least 1",
            ),
            (self.virtual_stages >= 1, f"virtual_stages = {self.virtual_stages} must be at least 1"),
            (self.show >= 1, f"show = {self.show} must be at least 1"),
        )

    @property
    def kind(self) -> str:
        """The device as GPUS names it, or CPU; upper and lower case are the same."""
        return next((name for name in (*GPUS, CPU) if name.lower() == self.gpu.lower()), self.gpu)

    def check_inputs(self) -> None:
        """Nothing is read but the tokenizer, and that only where vocab_size is not given."""
        self.check_vocabulary()


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parallel layout of a run, its micro-batches and its recomputation."""

    tensor: int
    context: int
    expert: int
    pipeline: int
    data: int  # replicas
    sequence_parallel: bool
    sharding: str  # optimizer, full
    micro_batch_size: int
    num_micro_batches: int  # of a step, on each replica
    granularity: str | None  # of recomputation
    virtual: int = 1  # stages of each pipeline rank
    schedule: str = "1f1b"
    blocks: tuple[int, ...] = ()  # of each pipeline rank, where they are given; otherwise divided by FLOPs


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory of a rank of the stage that needs most, in bytes, and time of a step."""

    layout: Layout
    parameters: int  # of that stage on a rank, before data-parallel ranks shard them
    weights: float
    gradients: float
    moments: float
    activations: float
    fits: bool
    bubble: float  # share of a step in which a stage is idle
    communication: dict[str, float]  # bytes that a rank sends in a step, by axis
    seconds: float  # of a step
    mfu: float
    tokens_per_second: float  # of one GPU

    @property
    def memory(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations


def plan(config: PlanConfig) -> dict:
    """Estimates of the configured layout and of the fastest layouts that fit in memory."""
    shape = resolve_shape(config)
    planner = Planner(config, shape)
    given = planner.estimate(planner.given())
    ranked = sorted(
        (planner.estimate(layout) for layout in planner.layouts()),
        key=lambda e: (not e.fits, round(e.seconds, 4) if e.fits else 0, e.memory),
    )
    if not ranked:
        raise UserError(
            f"no layout of {planner.world_size} GPUs divides pipeline_stages ="
            f" {list(config.pipeline_stages)}, the model's {len(planner.parts(Cut()).blocks)} blocks and a"
            f" global batch of {planner.global_batch_size}; change one of them"
        )
    fitting = [e for e in ranked if e.fits]
    shown = (smaller(fitting) if planner.world_size == 1 else fitting)[: config.show] or ranked[:3]
    columns = terminal.screen(sys.stdout).columns if sys.stdout.isatty() else None
    return {
        "text": _text(config, planner, given, shown, len(fitting), len(ranked), columns),
        "parameters": planner.total_parameters,
        "tokens": planner.total_tokens,
        "steps": planner.total_steps,
        "device": planner.device,
        "devices": planner.world_size,
        "peak_tflops": planner.peak / 1e12,
        "given": planner.plain(given),
        "layouts": [planner.plain(e) for e in shown],
        "fitting": len(fitting),
    }


def smaller(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Of estimates, the fastest first, those that need clearly less memory than all that are faster.

    On one device layouts differ in their micro-batches and in recomputation alone: most take as long as
    another one that needs less.
    """
    found: list[Estimate] = []
    for estimate in estimates:
        if not found or estimate.memory < CLEARLY_LESS * found[-1].memory:
            found.append(estimate)
    return found


def memory_of_preset(tree: dict) -> tuple[int, int]:
    """Bytes that training with the settings of a preset takes on one device, and the least that it can take.

    The least: one sample in a micro-batch, and every block recomputed. Estimated without building the model's
    weights; a vocabulary that the preset leaves to the tokenizer is taken as GPT-2's.
    """
    config = build(PlanConfig, ("preset", tree), ("doctor", {"world_size": 1}))
    size = config.model.vocab_size or 50257
    shape = resolve(config.model, vocab_size=size, seq_length=config.data.seq_length)
    tokens = sum(sequence_lengths(shape, config.data).values())
    needed = functools.partial(
        training_bytes,
        shape,
        count_parameters(shape),
        dtype=config.precision.dtype,
        num_moments=config.optimizer.num_moments,
    )
    usual = needed(
        tokens=config.train.micro_batch_size * tokens, granularity=config.recompute.recompute_granularity
    )
    return usual.total, needed(tokens=tokens, granularity="full").total


def resolve_shape(config: TrainConfig) -> ResolvedModelConfig:
    """The resolved configuration of the model; reads the tokenizer only where vocab_size is not given."""
    config.check_vocabulary()
    size = config.model.vocab_size or load_tokenizer(config.tokenizer).vocab_size
    return resolve(config.model, vocab_size=size, seq_length=config.data.seq_length)


class Planner:
    """The estimates of one model on one number of GPUs."""

    def __init__(self, config: PlanConfig, shape: ResolvedModelConfig):
        self.config, self.shape, self.world_size = config, shape, config.world_size or 1
        if config.kind == CPU:
            self.peak = config.peak_tflops * 1e12 if config.peak_tflops else measured_flops()
            self.gpu, self.matmul = _this_machine(self.peak), 1.0
            threads = torch.get_num_threads()
            self.device = f"{threads} processor{'s' if threads > 1 else ''} of this machine"
            if config.peak_tflops:
                self.device = f"processors of {config.peak_tflops:g} TFLOP/s"
        else:
            self.peak = (config.peak_tflops or PEAKS[config.kind]) * 1e12
            self.gpu, self.matmul = GPUS[config.kind], MATMUL
            self.device = config.kind
        self.memory = (config.gpu_memory_gib or self.gpu.memory) * GIB
        self.lengths = sequence_lengths(shape, config.data)
        self.decoder_length = self.lengths.get("decoder_seq_length", 0)
        self.tokens = self.decoder_length or config.data.seq_length
        self.num_moments = config.optimizer.num_moments
        self.dtype = config.precision.dtype
        self.global_batch_size = (
            config.train.full_batch_size or config.train.micro_batch_size * self.world_size
        )
        self.parts = functools.cache(self._parts)
        whole = self.parts(Cut())
        self.total_parameters = whole.stage(0, len(whole.blocks)).parameters
        self.total_steps = self._steps()
        self.total_tokens = self.total_steps * self.global_batch_size * self.tokens

    def _steps(self) -> int:
        """Steps of the run; a global batch that grows is counted at its full size."""
        loop = self.config.train
        if loop.train_iters is not None:
            return loop.train_iters
        tokens = self.config.train_tokens or TOKENS_PER_PARAMETER * self.total_parameters
        samples = tokens / self.tokens if loop.train_samples is None else loop.train_samples
        return max(round(samples / self.global_batch_size), 1)

    def hours(self, estimate: Estimate) -> float:
        """Of the whole run."""
        return self.total_steps * estimate.seconds / 3600

    def plain(self, estimate: Estimate) -> dict:
        """The estimate as JSON."""
        return {**dataclasses.asdict(estimate), "memory": estimate.memory, "hours": self.hours(estimate)}

    def _parts(self, cut: Cut) -> Parts:
        return count_parts(
            self.shape,
            cut,
            seq_length=self.config.data.seq_length,
            decoder_seq_length=self.decoder_length,
            dtype=self.dtype,
            gpu=self.config.kind != CPU,
        )

    def given(self) -> Layout:
        """The configured layout; raises UserError where it is not possible."""
        config, parallel = self.config, self.config.parallel
        check_sizes(parallel, self.world_size)
        check_layout(parallel, self.shape, self.lengths)
        stages, size = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
        lengths = parallel.stage_lengths or []
        virtual = max(len(lengths) // stages, 1)
        if size:
            virtual = len(self.parts(Cut()).blocks) // (stages * size)
        data = self.world_size // (
            parallel.tensor_model_parallel_size * parallel.context_parallel_size * stages
        )
        unit = data * config.train.micro_batch_size
        full = config.train.full_batch_size or unit
        if full % unit:
            raise UserError(
                f"train.global_batch_size = {full} is not a multiple of train.micro_batch_size ="
                f" {config.train.micro_batch_size} x {data} data-parallel processes = {unit}; use"
                f" {-(-full // unit) * unit}"
            )
        return Layout(
            parallel.tensor_model_parallel_size,
            parallel.context_parallel_size,
            parallel.expert_model_parallel_size,
            stages,
            data,
            parallel.sequence_parallel,
            parallel.data_parallel_sharding,
            config.train.micro_batch_size,
            full // unit,
            config.recompute.recompute_granularity,
            virtual,
            parallel.pipeline_schedule,
            tuple(sum(lengths[rank::stages]) for rank in range(stages) if lengths),
        )

    def layouts(self) -> Iterator[Layout]:
        """The layouts to consider: powers of two, tensor parallelism within a machine."""
        config, shape, world = self.config, self.shape, self.world_size
        powers = [2**i for i in range(world.bit_length())]
        contexts = [
            c
            for c in powers
            if c == 1 or (family_of(shape).causal and c <= 64 and config.data.seq_length // c >= 4096)
        ]
        experts = [e for e in powers if e == 1 or (shape.num_experts and shape.num_experts % e == 0)]
        for tensor in (t for t in powers if t <= GPUS_OF_A_MACHINE):
            for context in contexts:
                for expert in experts:
                    for stages in config.pipeline_stages:
                        if self._possible(tensor, context, expert, stages):
                            yield from self._batched(
                                tensor, context, expert, stages, world // (tensor * context * stages)
                            )

    def _possible(self, tensor: int, context: int, expert: int, stages: int) -> bool:
        try:
            parallel = ParallelConfig(
                tensor_model_parallel_size=tensor,
                sequence_parallel=tensor > 1,
                context_parallel_size=context,
                expert_model_parallel_size=expert,
                pipeline_model_parallel_size=stages,
            )
            check_sizes(parallel, self.world_size)
            check_layout(parallel, self.shape, self.lengths)
        except UserError:
            return False
        return True

    def _batched(self, tensor: int, context: int, expert: int, stages: int, data: int) -> Iterator[Layout]:
        full, blocks = self.global_batch_size, len(self.parts(Cut()).blocks)
        virtual = min(self.config.virtual_stages, blocks // stages) if stages > 1 else 1
        if full % data:
            return
        for micro in (2**i for i in range(7)):
            if full % (data * micro) == 0:
                for sharding in ("optimizer", "full") if data * context > 1 else ("optimizer",):
                    for granularity in (None, "selective", "full"):
                        yield Layout(
                            tensor,
                            context,
                            expert,
                            stages,
                            data,
                            tensor > 1,
                            sharding,
                            micro,
                            full // (data * micro),
                            granularity,
                            virtual,
                        )

    def estimate(self, layout: Layout) -> Estimate:
        parts = self.parts(
            Cut(layout.tensor, layout.context, layout.expert, layout.sequence_parallel and layout.tensor > 1)
        )
        ends = list(itertools.accumulate(layout.blocks)) or divide([*self._costs(parts)], layout.pipeline)
        stages = [(begin, end, parts.stage(begin, end)) for begin, end in zip([0, *ends], ends)]
        memory = [
            self._memory(layout, parts, *stage, in_flight=self._in_flight(layout, i))
            for i, stage in enumerate(stages)
        ]
        fullest = max(range(len(stages)), key=lambda i: sum(memory[i]))
        sent = max(
            (self._sent(layout, parts, *stage) for stage in stages), key=lambda bytes: sum(bytes.values())
        )
        micro = max(self._micro_seconds(layout, parts, *stage, sent) for stage in stages)
        m = layout.num_micro_batches
        waiting = (layout.pipeline - 1) / layout.virtual / (3 if layout.schedule == "zero-bubble" else 1)
        local = max(self._local(layout, stage) for _, _, stage in stages)
        step = (
            (m + waiting) * micro
            + self._exposed(layout, sent, micro)
            + OPTIMIZER_BYTES * local / (self.gpu.bandwidth * 1e9)
        )
        samples = layout.num_micro_batches * layout.micro_batch_size * layout.data
        mfu = (
            training_flops(self.shape, self.config.data.seq_length, self.decoder_length).full
            * samples
            / (self.world_size * step * self.peak)
        )
        return Estimate(
            layout,
            stages[fullest][2].parameters,
            *memory[fullest],
            sum(memory[fullest]) <= USABLE * self.memory,
            waiting / (m + waiting),
            {axis: per * (1 if axis == "data" else m) for axis, per in sent.items()},
            step,
            mfu,
            samples * self.tokens / step / self.world_size,
        )

    def _in_flight(self, layout: Layout, stage: int) -> float:
        """Micro-batches whose activations a stage keeps (Korthikanti et al. 2022 for interleaving)."""
        p, v = layout.pipeline, layout.virtual
        if layout.schedule == "gpipe":
            return layout.num_micro_batches
        ahead = p if layout.schedule == "zero-bubble" else p - stage
        return min(layout.num_micro_batches, ahead + ((p - 1) / v if v > 1 else 0.0))

    def _costs(self, parts: Parts) -> Iterator[float]:
        """FLOPs of each block; the last one's with the output layer's."""
        for i, block in enumerate(parts.blocks):
            yield block.flops + (parts.last.flops if i == len(parts.blocks) - 1 else 0.0)

    def _local(self, layout: Layout, stage: PartCosts) -> float:
        """Parameters of the shards that a rank keeps and steps."""
        ranks = layout.data * layout.context
        dense = stage.parameters - stage.expert_parameters
        return dense / ranks + stage.expert_parameters * layout.expert / ranks

    def _memory(
        self, layout: Layout, parts: Parts, begin: int, end: int, stage: PartCosts, in_flight: float
    ) -> tuple[float, float, float, float]:
        """Bytes of (weights, gradients, moments, activations)."""
        width, alone = self.dtype.itemsize, self.world_size == 1
        local, blocks = self._local(layout, stage), parts.blocks[begin:end]
        # Parameters that are unsharded at a time: the current block, the prefetched one, and those outside
        # blocks.
        moving = 2 * max(b.parameters for b in blocks) + stage.parameters - sum(b.parameters for b in blocks)
        if alone:
            weights, gradients = local * (4 + (width if width < 4 else 0)), local * 4
        elif layout.sharding == "full":
            weights, gradients = 4 * local + width * moving, 4 * local + (width + 4) * moving
        else:
            # With several micro-batches unsharded float32 gradients are summed until the last one.
            several = layout.num_micro_batches > 1
            weights, gradients = (
                4 * local + width * stage.parameters,
                4 * local + (4 * stage.parameters if several else (width + 4) * moving),
            )
        kept = stage.activations[layout.granularity] * in_flight
        if layout.granularity is not None:
            kept += max(b.activations[None] for b in blocks)
        workspace = (
            parts.workspace + min(self.memory // 32, parts.logits * layout.micro_batch_size)
            if end == len(parts.blocks)
            else 0
        )
        return weights, gradients, 4 * self.num_moments * local, kept * layout.micro_batch_size + workspace

    def _sent(self, layout: Layout, parts: Parts, begin: int, end: int, stage: PartCosts) -> dict[str, float]:
        """Bytes that a rank sends, by axis: `data` of a step, the others of a micro-batch."""
        shape, width = self.shape, self.dtype.itemsize
        blocks = parts.blocks[begin:end]
        t, c, e, shards = layout.tensor, layout.context, layout.expert, layout.data * layout.context
        residual = layout.micro_batch_size * self.tokens / c * shape.hidden_size * width
        again = 1.5 if layout.granularity == "full" else 1.0
        both = shape.hybrid_override_pattern is None  # attention and feed-forward layer in one block
        sublayers = sum(int(b.attention or b.flops > 0) + int(b.attention and both) for b in blocks)
        values = shape.v_head_dim if shape.multi_latent_attention else shape.kv_channels
        groups = shape.num_query_groups * (shape.kv_channels + values)  # of a token's keys and values
        keys = layout.micro_batch_size * self.tokens / c * groups / t * width
        dense = stage.parameters - stage.expert_parameters
        over = lambda parameters, ranks: parameters * (ranks - 1) / ranks if ranks > 1 else 0.0
        gathered = over(dense, shards) + over(stage.expert_parameters, max(shards // e, 1))
        whole = 2 * width + 4 if layout.sharding == "full" else (width + 4) / layout.num_micro_batches
        return {
            "tensor": again * sublayers * 4 * (t - 1) / t * residual,
            "context": again * sum(b.attention for b in blocks) * 2 * (c - 1) * keys,
            "expert": (
                again
                * sum(b.experts for b in blocks)
                * 4
                * (e - 1)
                / e
                * residual
                * (shape.moe_router_topk if shape.num_experts else 0)
            ),
            "pipeline": 2 * residual / (t if layout.sequence_parallel else 1) if layout.pipeline > 1 else 0.0,
            "data": gathered * whole * layout.num_micro_batches,
        }

    def _micro_seconds(
        self, layout: Layout, parts: Parts, begin: int, end: int, stage: PartCosts, sent: dict[str, float]
    ) -> float:
        """Seconds of a stage's micro-batch, forward and backward. sent: of _sent."""
        size = layout.micro_batch_size
        again = {None: (0, 0.0), "selective": (0, 0.25), "full": (1, 0.25)}[layout.granularity]
        blocks = sum(b.flops for b in parts.blocks[begin:end])
        products = (3 * stage.flops + again[0] * blocks) * size / (self.matmul * self.peak)
        traffic = TRAFFIC * (1 + again[1]) * stage.activations[None] * size / (self.gpu.bandwidth * 1e9)
        reach = {
            "tensor": layout.tensor,
            "context": layout.tensor * layout.context,
            "expert": layout.tensor * layout.context * layout.expert,
            "pipeline": self.world_size,
        }
        return products + traffic + sum(sent[axis] / self._speed(ranks) for axis, ranks in reach.items())

    def _speed(self, ranks: int) -> float:
        """Bytes per second in a group of this many neighbouring ranks."""
        return (self.gpu.link if ranks <= GPUS_OF_A_MACHINE else self.gpu.network) * 1e9

    def _exposed(self, layout: Layout, sent: dict[str, float], micro: float) -> float:
        """Seconds of a step of data-parallel communication that no computation hides."""
        seconds = sent["data"] / self._speed(self.world_size)
        hides = micro * (layout.num_micro_batches if layout.sharding == "full" else 1)
        return max(0.0, seconds - hides)


def _this_machine(flops: float) -> Gpu:
    """This machine's memory, and the bandwidth that training on processors of this many FLOP/s has."""
    return Gpu((memory_bytes() or 0) / GIB, flops / CPU_FLOPS_PER_BYTE / 1e9, link=1, network=1)


def _text(
    config: PlanConfig,
    planner: Planner,
    given: Estimate,
    shown: list[Estimate],
    fitting: int,
    considered: int,
    columns: int | None,
) -> str:
    """columns: of the terminal; None where lines may be of any length."""
    devices = planner.device if config.kind == CPU else f"{planner.world_size:,} {planner.device}"
    lines: list[str] = [
        (
            f"{large_number(planner.total_parameters)} parameters on {devices}"
            f" of {planner.memory / GIB:,.0f} GiB, global batch {planner.global_batch_size:,} x"
            f" {planner.tokens:,} tokens"
        ),
        f"run     {_length(planner)}",
        *_data_lines(config, planner),
    ]
    lines.append(f"memory  {_memory_text(given, planner)}")
    faster = shown[0] if fitting and shown[0].seconds < 0.99 * given.seconds else None
    lines.append(f"time    {_time_text(given, planner)}, with this configuration")
    if faster is not None:
        lines.append(f"        {_time_text(faster, planner)}, with the fastest layout below")
    table = _table([given, *shown], planner, columns)
    lines += ["", *table[:2], "  (this configuration)", *table[2:], ""]
    sent = ", ".join(f"{axis} {bytes / 1e9:,.1f}" for axis, bytes in given.communication.items() if bytes)
    if sent:
        lines.append(f"GB that a rank of the first of these sends in a step: {sent}")
    which = ", the fastest first"
    if planner.world_size == 1:
        which = "; shown are the fastest one and slower ones that need less memory"
    lines.append(
        f"{fitting:,} of {considered:,} layouts fit{which}"
        if fitting
        else (
            f"none of {considered:,} layouts fits; the smallest are shown: give more GPUs (--world-size) or"
            " others (--gpu)"
        )
    )
    lines.append(_basis(config, planner))
    if config.kind == CPU and planner.dtype.itemsize < 4:
        lines.append(
            "the times are those of float32: 16-bit training takes about as long on processors with 16-bit"
            " products (AMX, AVX512-BF16), and longer on others"
        )
    elif config.kind != CPU and planner.dtype.itemsize == 4:
        lines.append(
            "this configuration computes in float32, but the times are those of 16-bit products: give --bf16"
        )
    return "\n".join(lines)


def _length(planner: Planner) -> str:
    """The length of the run, and who chose it."""
    config = planner.config
    tokens, steps = planner.total_tokens, planner.total_steps
    text = f"{large_number(tokens)} tokens in {steps:,} steps"
    if config.train_tokens or config.train.train_iters or config.train.train_samples:
        return text
    return f"{text}: {TOKENS_PER_PARAMETER} for each parameter, as --train-tokens is not given"


def _data_lines(config: PlanConfig, planner: Planner) -> list[str]:
    """The tokens of the named data, each source's share of the run, and its epochs; nothing without data."""
    sources = config.data.sources("train")
    if not sources or any(is_remote(prefix) for _, prefix in sources):
        return []
    missing = [prefix for _, prefix in sources if not os.path.exists(f"{prefix}.idx")]
    if missing:
        return [f"data    {missing[0]}.idx is not there yet, so the data is not counted"]
    part = 1.0 if config.data.per_split else shares(config.data.split)[0]
    tokens = [int(IndexedDataset(prefix).lengths.sum(dtype=np.int64)) * part for _, prefix in sources]
    weights = [size if weight is None else weight for (weight, _), size in zip(sources, tokens)]
    rows = [
        (weight / sum(weights), size, prefix)
        for weight, size, (_, prefix) in zip(weights, tokens, sources)
        if sum(weights) and size
    ]
    counted = f"data    {large_number(round(sum(tokens)))} tokens to train on"
    epochs = lambda share, size: f"{planner.total_tokens * share / size:.3g} epochs"
    if len(sources) == 1:
        return [f"{counted}: {epochs(*rows[0][:2])}" if rows else counted]
    largest = sorted(rows, reverse=True)[:SOURCES_SHOWN]
    lines = [f"        {share:.1%} of the run, {epochs(share, size)}: {p}" for share, size, p in largest]
    rest = len(sources) - len(largest)
    return [f"{counted} in {len(sources)} sources", *lines, *([f"        and {rest:,} more"] if rest else [])]


def _memory_text(estimate: Estimate, planner: Planner) -> str:
    sizes = ("weights", "gradients", "moments", "activations")
    parts = ", ".join(f"{name} {getattr(estimate, name) / GIB:,.1f}" for name in sizes)
    fits = "fits" if estimate.fits else "does not fit"
    return f"{estimate.memory / GIB:,.1f} GiB of {planner.memory / GIB:,.0f} ({parts}): {fits}"


def _time_text(estimate: Estimate, planner: Planner) -> str:
    """Time and speed of the whole run: `about 3 h 20 min (3.3 hours), 12,000 tokens/s, MFU 40 %`."""
    hours = planner.hours(estimate)
    rate = estimate.tokens_per_second * planner.world_size
    time = f"about {duration(3600 * hours)} ({_hours(hours)} hours)"
    return f"{time}, {rate:,.0f} tokens/s, MFU {estimate.mfu:.0%}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _basis(config: PlanConfig, planner: Planner) -> str:
    """What the times come from."""
    peak = f"{planner.peak / 1e12:,.3g} TFLOP/s"
    if config.peak_tflops:
        source = f"{peak} as given"
    elif config.kind == CPU:
        source = f"{peak} that a float32 product reached just now"
    else:
        source = f"{peak} of the data sheet"
    return (
        f"Times are estimates: matrix products at {planner.matmul:.0%} of the {source},\nactivations at"
        f" {planner.gpu.bandwidth:,.3g} GB/s, without validation, checkpoints and restarts.\n"
        "MFU = FLOPs of a global batch, attention in full / (devices x step x peak)"
    )


class Column(NamedTuple):
    """A column of the table of layouts."""

    title: str
    value: Callable[[Estimate, Planner], str]
    # Columns with a high number are left out first where the terminal is narrow; 0 always stays.
    left_out: int = 0


def _gib(part: str) -> Callable[[Estimate, Planner], str]:
    return lambda e, _: f"{getattr(e, part) / GIB:.1f}"


COLUMNS = (
    Column("TP", lambda e, _: f"{e.layout.tensor}"),
    Column("CP", lambda e, _: f"{e.layout.context}", 2),
    Column("EP", lambda e, _: f"{e.layout.expert}", 2),
    Column("PP", lambda e, _: f"{e.layout.pipeline}"),
    Column("DP", lambda e, _: f"{e.layout.data}", 1),
    Column("sharding", lambda e, _: e.layout.sharding),
    Column("micro", lambda e, _: f"{e.layout.micro_batch_size}"),
    Column("recompute", lambda e, _: e.layout.granularity or "none"),
    Column("weights", _gib("weights"), 5),
    Column("grads", _gib("gradients"), 5),
    Column("moments", _gib("moments"), 5),
    Column("activ.", _gib("activations"), 5),
    Column("GiB", _gib("memory")),
    Column("fits", lambda e, _: "yes" if e.fits else "no"),
    Column("bubble", lambda e, _: f"{e.bubble:.1%}", 4),
    Column("step s", lambda e, _: f"{e.seconds:.2f}"),
    Column("MFU", lambda e, _: f"{e.mfu:.1%}"),
    Column("tokens/s/GPU", lambda e, _: f"{e.tokens_per_second:,.0f}", 3),
    Column("hours", lambda e, planner: _hours(planner.hours(e))),
)


OF_SEVERAL = ("TP", "CP", "EP", "PP", "DP", "sharding", "bubble")  # columns that say nothing of one device


def _table(estimates: Sequence[Estimate], planner: Planner, columns: int | None) -> list[str]:
    """The heads of COLUMNS, and a line for each estimate; without some columns on a narrow terminal."""
    alone = planner.world_size == 1
    wanted = [c for c in COLUMNS if not (alone and c.title in OF_SEVERAL)]
    cells = [(c, [c.title, *(c.value(e, planner) for e in estimates)]) for c in wanted]
    longest = lambda: sum(2 + max(map(len, column)) for _, column in cells)
    for number in sorted({c.left_out for c in COLUMNS} - {0}, reverse=True):
        if columns is not None and longest() >= columns:
            # the same layout everywhere needs no column, and others need theirs
            needed = [c for c, column in cells if number == 2 and {*column[1:]} != {"1"}]
            cells = [(c, column) for c, column in cells if c.left_out != number or c in needed]
    lines = zip(*([text.rjust(max(map(len, column))) for text in column] for _, column in cells))
    return ["  " + "  ".join(line) for line in lines]
