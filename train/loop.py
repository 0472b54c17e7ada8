"""build everything, then the loop.

In: token data, a configuration, perhaps a checkpoint. Out, in --save: step_NNNNNNNN/ checkpoints, log.jsonl,
tensorboard/ and, when the run is complete, manifest.json.

The loss of a step is the sum over all tokens of the global batch, divided once by their number, so that it does not
depend on how the batch is cut into micro-batches and ranks. A run that was stopped, even by kill -9, goes on from its
newest whole checkpoint when the same command is given again, and ends with the same numbers to the last bit (on the
same number of processes).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import manifest
from ..config import Failure, UserError, check, option
from ..indexed.fim import FimConfig, FimDataset
from ..indexed.gpt import DataConfig, build_datasets
from ..tokenizer import Tokenizer, TokenizerConfig
from ..tokenizer import load as load_tokenizer
from . import checkpoint
from .batches import Batches, MicroBatch, PackingConfig, identity, unigram_entropy
from .checkpoint import CheckpointConfig, Progress
from .metrics import LogConfig, RunLog
from .model.gpt import GPT
from .model.layers import ModelConfig, initialize, resolve
from .optimizer import OptimizerConfig, build_optimizer, clip_gradients, learning_rate
from .parallel.mesh import Mesh, ParallelConfig, launch, reshard, shard_data_parallel, synchronise_gradients
from .precision import autocast, use_fast_float32_products
from .schedule import BatchSize, LearningRate


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Batches, the run's length, and validation."""

    micro_batch_size: int = option(4, "samples in one forward pass of one process")
    global_batch_size: int | None = option(None, "samples in one step of all processes (default: micro-batch-size x processes)")
    rampup_batch_size: tuple[int, ...] = option((), "START INCREMENT SAMPLES: grow the global batch from START over the first SAMPLES")
    train_iters: int | None = option(None, "length of the run in steps")
    train_samples: int | None = option(None, "length of the run in samples")
    bf16: bool = option(False, "compute in bfloat16; weights and optimizer stay float32")
    eval_interval: int = option(1000, "steps from one validation to the next; the last step is always followed by one")
    eval_iters: int = option(10, "global batches of a validation, the same ones each time; 0 for none")
    exit_interval: int | None = option(None, "save and exit when the step is a multiple of this; the same command goes on", role="runtime")

    def __post_init__(self):
        sizes = ("micro_batch_size", "global_batch_size", "train_iters", "train_samples", "eval_interval", "exit_interval")
        check(
            *((getattr(self, n) is None or getattr(self, n) >= 1, f"train.{n} = {getattr(self, n)} must be at least 1") for n in sizes),
            (self.eval_iters >= 0, f"train.eval_iters = {self.eval_iters} must not be negative"),
            ((self.train_iters is None) != (self.train_samples is None), "the run's length must be given once: --train-iters or --train-samples"),
            (not self.rampup_batch_size or self.train_samples is not None, "train.rampup_batch_size needs a run of --train-samples: steps of growing batches are no clock"),
            (not self.rampup_batch_size or self.global_batch_size is not None, "train.rampup_batch_size needs --global-batch-size: where the batch grows to"),
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    PRESETS = True

    model: ModelConfig
    data: DataConfig
    packing: PackingConfig
    fim: FimConfig
    tokenizer: TokenizerConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    overwrite: bool = option(False, "replace another run in --save", role="runtime")

    def __post_init__(self):
        positions, length = self.model.max_position_embeddings, self.data.seq_length
        check((
            positions is None or length <= positions,
            f"data.seq_length = {length} is longer than model.max_position_embeddings = {positions}; shorten the one or raise the other",
        ))


def train(config: TrainConfig) -> dict | None:
    """Trains a model; returns the run's manifest on rank 0 and None on the others."""
    with launch(config.parallel) as mesh:
        return _train(config, mesh)


@dataclasses.dataclass(frozen=True)
class Course:
    """A run's length and its schedules."""

    batch_size: BatchSize
    learning_rate: LearningRate
    total_samples: int
    total_steps: int


def _course(config: TrainConfig, mesh: Mesh) -> Course:
    """Raises UserError where batches do not divide among micro-batches and ranks."""
    loop = config.train
    unit = loop.micro_batch_size * mesh.world_size
    full = loop.global_batch_size or unit
    batch_size = BatchSize.rampup(full, loop.rampup_batch_size) if loop.rampup_batch_size else BatchSize(full)
    for size in batch_size.sizes():
        if size % unit:
            below = size // unit * unit
            raise UserError(
                f"train.global_batch_size = {size} is not a multiple of train.micro_batch_size = {loop.micro_batch_size} x {mesh.world_size} "
                f"data-parallel process{'es' if mesh.world_size > 1 else ''} = {unit}; use {f'{below} or ' if below else ''}{below + unit}"
            )
    total = loop.train_samples if loop.train_samples is not None else loop.train_iters * full
    steps = sum(1 for _ in batch_size.steps(total))
    if steps == 0:
        raise UserError(f"train.train_samples = {total} is less than one global batch of {batch_size.at(0)}; train on more")
    rate = learning_rate(config.optimizer, total_samples=total, global_batch_size=full, by_samples=loop.train_samples is not None)
    return Course(batch_size, rate, total, steps)


def _train(config: TrainConfig, mesh: Mesh) -> dict | None:
    course = _course(config, mesh)
    tokenizer = load_tokenizer(config.tokenizer)
    config.packing.check_against(tokenizer.eod)
    shape = resolve(config.model, vocab_size=tokenizer.vocab_size, seq_length=config.data.seq_length)
    if shape.vocab_size < tokenizer.vocab_size:
        raise UserError(f"model.vocab_size = {shape.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}; raise it, or leave it out")
    elsewhere = _elsewhere(config.checkpoint)
    source = mesh.broadcast(mesh.on_main(lambda: checkpoint.find(elsewhere) if elsewhere else None))
    train_data, valid_data = _datasets(config, course, tokenizer, mesh)
    entropy = mesh.on_main(lambda: unigram_entropy(train_data, shape.vocab_size))
    if source is not None:
        mesh.on_main(lambda: _check_source(source, config, course, shape, identity(train_data, config.data)))
    # What the user can mend is refused before here: a claimed directory would ask for --overwrite afterwards.
    run = mesh.on_main(lambda: _claim(config, course, tokenizer, train_data, valid_data))
    if mesh.broadcast(run is not None and run.finished):
        return run.manifest if run is not None else None
    trainer = Trainer(dataclasses.replace(config, model=shape), course, mesh, tokenizer, train_data, valid_data, source)
    complete = trainer.fit()
    if mesh.rank != 0:
        return None
    if not complete:
        step = trainer.progress.step
        return {"text": f"stopped after step {step:,} as --exit-interval asks; the same command goes on from there", "steps": step}
    return _seal(run, trainer, entropy)


def _elsewhere(config: CheckpointConfig) -> str | None:
    """--load, unless it is --save: what lies there is this run's own, and it goes on from it anyway."""
    own = config.load is not None and Path(config.load).resolve() == Path(config.save).resolve()
    return None if own else config.load


def _datasets(config: TrainConfig, course: Course, tokenizer: Tokenizer, mesh: Mesh):
    """(training, validation) datasets; rank 0 builds what is not cached yet, the others then read it."""
    valid_samples = config.train.eval_iters * course.batch_size.full
    build = lambda: build_datasets(config.data, (course.total_samples, valid_samples, 0))
    datasets = mesh.on_main(build)
    datasets = (datasets if mesh.rank == 0 else build())[:2]
    if not config.fim.fim_rate:
        return datasets
    return tuple(d and FimDataset(d, tokenizer, config.fim, config.data.seed) for d in datasets)


def _check_source(source: Path, config: TrainConfig, course: Course, shape: ModelConfig, data: dict) -> None:
    """Raises UserError where --load holds another model, or a position that means nothing in this run's data."""
    with torch.device("meta"):
        checkpoint.check_shapes(source, GPT(shape))
    if config.checkpoint.finetune:
        return
    held, consumed = checkpoint.position(source)
    changed = [f"{k} {held[k]} there, {data[k]} here" for k in held if k != "order" and held[k] != data[k]]
    if changed:
        raise UserError(f"{source}: was trained on other data ({'; '.join(changed)}); give the same data settings, or --finetune to take only the weights")
    if consumed >= course.total_samples:
        raise UserError(f"{source}: has already seen {consumed:,} samples, and this run ends at {course.total_samples:,}; make it longer, or give --finetune to start counting anew")
    if held["order"] != data["order"]:
        print(f"mt: {source}: this run draws another number of samples, so that their order from here on is not that of the earlier run", file=sys.stderr)


def _claim(config: TrainConfig, course: Course, tokenizer, train_data, valid_data) -> manifest.Run:
    elsewhere = _elsewhere(config.checkpoint)
    inputs = [*config.data.files(), *([elsewhere] if elsewhere else [])]
    facts = {
        "data": [d.fingerprint for d in (train_data, valid_data) if d is not None],
        "tokenizer": tokenizer.fingerprint,
        "global_batch_size": course.batch_size.full,
    }
    return manifest.begin("train", config, inputs, facts=facts)


class Trainer:
    """A model, its optimizer, its data, and how far it has come."""

    def __init__(self, config: TrainConfig, course: Course, mesh: Mesh, tokenizer, train_data, valid_data, source: Path | None):
        """config: resolved. source: the step directory of --load."""
        self.config, self.course, self.mesh, self.tokenizer = config, course, mesh, tokenizer
        self.folder, self.data = Path(config.checkpoint.save), identity(train_data, config.data)
        how = {
            "micro_batch_size": config.train.micro_batch_size, "vocab_size": config.model.vocab_size,
            "mesh": mesh, "packing": config.packing, "eod": tokenizer.eod,
        }
        self.batches = Batches(train_data, **how)
        self.valid_batches = Batches(valid_data, **how) if valid_data is not None else None
        use_fast_float32_products()
        self.model = GPT(config.model)
        initialize(self.model, config.data.seed)
        self.model.to(mesh.device).train()
        shard_data_parallel(self.model, mesh)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.progress = self._start_from(source)
        self.seconds, self.timed_tokens = 0.0, 0  # of training since the last log line, in this process
        self.log = RunLog(self.folder, config.log, step=self.progress.step, total_steps=course.total_steps) if mesh.rank == 0 else None

    def _start_from(self, source: Path | None) -> Progress:
        """Goes on from this run's own newest checkpoint, else from `source`, else from the beginning."""
        own = self.mesh.broadcast(self.mesh.on_main(lambda: checkpoint.newest_whole(self.folder)))
        if own is not None:
            return checkpoint.load(own, self.model, self.optimizer, self.mesh)
        if source is None:
            return Progress()
        if self.config.checkpoint.finetune:
            checkpoint.load(source, self.model, None, self.mesh)
            return Progress()
        return checkpoint.load(source, self.model, self.optimizer, self.mesh)

    def fit(self) -> bool:
        """The loop. Returns whether the run is complete; False where --exit-interval ended it before."""
        loop, progress, course = self.config.train, self.progress, self.course
        with StopSignals() as signals:
            began = time.perf_counter()
            for batch in self.batches.over(course.batch_size.steps(course.total_samples, progress.consumed_samples)):
                rate = course.learning_rate.at(progress.consumed_samples)
                grad_norm = self.step(batch, rate)
                self.seconds += time.perf_counter() - began

                last = progress.consumed_samples + course.batch_size.at(progress.consumed_samples) > course.total_samples
                signalled = self.mesh.any(signals.received)
                leave = last or signalled or (loop.exit_interval is not None and progress.step % loop.exit_interval == 0)
                if last or progress.step % self.config.log.log_interval == 0:
                    self.write_log(rate, grad_norm)
                if self.valid_batches is not None and (last or progress.step % loop.eval_interval == 0):
                    self.validate()
                if leave or progress.step % self.config.checkpoint.save_interval == 0:
                    self.save()
                if signalled and not last:
                    raise signals.stopped(progress.step)
                if leave:
                    return last
                began = time.perf_counter()
        return True

    def step(self, batch: list[MicroBatch], rate: float) -> float:
        """One update of the weights from this rank's share of a global batch; returns the gradient's norm before clipping."""
        progress = self.progress
        num_tokens = self.mesh.sum(sum(m.loss_mask.sum(dtype=torch.float64) for m in batch))
        loss = forward_backward(self.model, batch, num_tokens, bf16=self.config.train.bf16, seed=f"{self.config.data.seed}:{progress.step}")
        loss = self.mesh.sum(loss).item() / num_tokens.item()
        grad_norm = clip_gradients(self.model, self.config.optimizer.clip_grad, self.mesh).item()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Failure(f"step {progress.step + 1}: loss {loss}, gradient norm {grad_norm}: training has diverged; start again with a lower --lr, more warm-up or a lower --clip-grad")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        progress.consumed_samples += self.course.batch_size.at(progress.consumed_samples)
        progress.consumed_tokens += int(num_tokens)
        progress.pending_losses.append(loss)
        self.timed_tokens += int(num_tokens)
        return grad_norm

    def write_log(self, rate: float, grad_norm: float) -> None:
        progress = self.progress
        loss = sum(progress.pending_losses) / len(progress.pending_losses)
        if self.log is not None:
            self.log.training(
                progress.step, samples=progress.consumed_samples, tokens=progress.consumed_tokens, loss=loss, lr=rate,
                grad_norm=grad_norm, tokens_per_second=self.timed_tokens / self.seconds, seconds=self.seconds,
            )
        progress.pending_losses.clear()
        self.seconds, self.timed_tokens = 0.0, 0

    @torch.no_grad()
    def validate(self) -> None:
        """The loss per token on the first samples of the validation split, the same ones each time."""
        self.model.eval()
        size = self.course.batch_size.full
        sums = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)  # loss, tokens
        for batch in self.valid_batches.over((i * size, size) for i in range(self.config.train.eval_iters)):
            for micro in batch:
                with autocast(self.config.train.bf16, micro.tokens.device):
                    loss = self.model.loss(micro.tokens, micro.labels, micro.loss_mask, positions=micro.positions, mask=micro.mask)
                sums += torch.stack([loss.double(), micro.loss_mask.sum(dtype=torch.float64)])
        reshard(self.model)
        self.model.train()
        loss, tokens = self.mesh.sum(sums).tolist()
        if self.log is not None:
            self.log.validation(self.progress.step, loss / tokens)

    def save(self) -> None:
        if self.log is not None:
            self.log.flush()
        checkpoint.save(
            self.folder, self.model, self.optimizer, self.progress, config=self.config, tokenizer=self.tokenizer,
            data=self.data, keep_last=self.config.checkpoint.keep_last, mesh=self.mesh,
        )


def forward_backward(model: nn.Module, batch: list[MicroBatch], num_tokens: Tensor, *, bf16: bool, seed: str) -> Tensor:
    """Adds the gradients of the mean loss over `num_tokens` (those of the whole global batch) to the parameters.

    Returns this rank's summed loss, float64. Each micro-batch's dropout is drawn from `seed` and its index alone, so
    that it is the same after a resume and at every data-parallel size.
    """
    total = torch.zeros((), dtype=torch.float64, device=num_tokens.device)
    for position, micro in enumerate(batch):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{micro.index}".encode()).digest()[:8], "little") % 2**63)
        synchronise_gradients(model, last=position == len(batch) - 1)
        with autocast(bf16, micro.tokens.device):
            loss = model.loss(micro.tokens, micro.labels, micro.loss_mask, positions=micro.positions, mask=micro.mask)
        (loss / num_tokens).backward()
        total += loss.detach()
    return total


class StopSignals:
    """Within the block, SIGTERM and SIGINT wait for the end of the step; a second SIGINT does not."""

    def __enter__(self) -> StopSignals:
        self.received = 0
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def stopped(self, step: int) -> Failure:
        """What ends the command, with the exit code of a process that the signal ended (128 + its number)."""
        number = self.received or signal.SIGTERM  # another rank may have been the one that was told
        failure = Failure(f"stopped by {signal.Signals(number).name} after step {step:,}; its checkpoint is saved: run the same command again to go on")
        failure.exit_code = 128 + number
        return failure


def _seal(run: manifest.Run, trainer: Trainer, entropy: float) -> dict:
    """The run's manifest: everything in it is read from the log, so that a resumed run says the same."""
    trainer.log.close()
    progress, log, folder = trainer.progress, trainer.log, trainer.folder
    files = sorted(p for p in (folder / f"step_{progress.step:08d}").rglob("*") if p.is_file())
    curve, valid_curve = log.curve("loss"), log.curve("valid_loss")
    return run.finish(
        [manifest.record(path, folder) for path in (*files, log.path)],
        {"steps": progress.step, "samples": progress.consumed_samples, "tokens": progress.consumed_tokens},
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        train_loss=curve[-1][1],
        valid_loss=valid_curve[-1][1] if valid_curve else None,
        unigram_entropy=entropy,
        tokens_per_second=log.tokens_per_second(),
        curve=curve,
        valid_curve=valid_curve,
    )
