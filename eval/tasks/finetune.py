"""Finetunes a BERT on RACE, MNLI or QQP and evaluates it; also evaluates a GPT on RACE without finetuning.

    --pretrained-checkpoint BERT --train-data FILE... --output DIR   finetune, then evaluate on --valid-data
    --load DIR                                                       evaluate a finetuned classifier
    --load GPT                                                       RACE only: the most probable option

In: the published files (race.py, mnli.py, qqp.py). Out, in --output: step_NNNNNNNN/ checkpoints, log.jsonl
(loss of the steps, scores after every epoch), predictions.jsonl (a line for each example), manifest.json with
the scores.

An epoch is a permutation of all examples, which depends only on the seed and the epoch's number. The last
batch of an epoch may be smaller. After an interruption, even by kill -9, the same command resumes from the
newest checkpoint and ends with the same numbers. Data-parallel processes (torchrun) share each batch, and the
examples of an evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Literal, TextIO, cast

import numpy as np
import torch
from torch import Tensor

from ...core import manifest, paths
from ...core.config import Failure, UserError, check, check_each, configuration, option
from ...core.paths import check_exists
from ...core.progress import progress
from ...train.anomalies import StopSignals
from ...train.checkpoint.base import Checkpoint, Progress
from ...train.checkpoint.native import CheckpointConfig, Saver, newest_whole
from ...train.checkpoint.open import open_checkpoint
from ...train.checkpoint.presence import check_presence
from ...train.metrics import whole_lines
from ...train.model.dtensor import local_shard
from ...train.model.family import family_of
from ...train.model.inputs import MicroBatch
from ...train.optimizer import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    set_rates,
    weight_decay,
)
from ...train.parallel.mesh import Mesh
from ...train.precision import MasterWeights, use_fast_float32_matmul
from ...train.step import forward_backward
from ..classifier import Finetuned, PairEncoder, TrainingSet, is_finetuned, open_classifier, pretrained
from ..results import Results, launch_ranks
from .data_files import files_in, with_error_policy
from .multiple_choice import ClassificationTask, Predictor, by_classifier, by_likelihood, evaluate


@configuration(group="optimizer")
class FinetuneOptimizer(OptimizerConfig):
    """AdamW with Megatron-LM's defaults for finetuning."""

    lr: float = option(5e-5, "peak learning rate")
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = option(
        "linear", "decay of the learning rate after the warm-up"
    )
    lr_warmup_fraction: float | None = option(0.065, "warm-up, as a fraction of the decay")
    weight_decay: float = option(0.1, "decoupled weight decay; biases and other vectors have none")


@configuration()
class FinetuneConfig:
    """The settings of `mt eval mnli`, and those that RACE and QQP share.

    The defaults of batch, epochs and optimizer are those that Megatron-LM recommends.
    """

    valid_data: tuple[str, ...] = option(help="evaluation data: files or folders", role="input")
    load: str | None = option(None, "evaluate this checkpoint", role="input")
    pretrained_checkpoint: str | None = option(None, "finetune this BERT", role="input")
    train_data: tuple[str, ...] = option((), "training data: files or folders", role="input")
    output: str | None = option(
        None,
        "directory for checkpoints, a line per example and the scores; none: only print the scores",
        role="output",
    )
    epochs: int = option(5, "passes over the training examples; 0: only evaluate --load")
    micro_batch_size: int = option(8, "examples in a forward pass")
    global_batch_size: int | None = option(
        None, "examples of a step (default: micro-batch-size x copies of the model)"
    )
    tensor_model_parallel_size: int = option(
        1,
        "processes that share one copy of the model, for models too large for one; the others share the work",
        role="runtime",
    )
    seq_length: int | None = option(
        None, "tokens of a sequence at most (default: 512, or the positions of the model if they are fewer)"
    )
    hidden_dropout: float = option(
        0.1, "finetuning: dropout on the embedding, on each layer's outputs, and before the output layer"
    )
    attention_dropout: float = option(0.1, "finetuning: dropout on attention weights")
    bf16: bool = option(False, "finetune in bfloat16; evaluation is in float32")
    seed: int = option(1234, "seed of the new weights, the order of the examples and the dropout")
    save_interval: int | None = option(
        None, "steps between checkpoints (default: one after every epoch)", role="runtime"
    )
    log_interval: int = option(10, "steps between log lines")
    on_error: Literal["fail", "skip"] = option("fail", "a row that is no example: stop, or set it aside")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")
    optimizer: FinetuneOptimizer

    def __post_init__(self):
        training = self.trains
        sizes = (
            "micro_batch_size",
            "tensor_model_parallel_size",
            "global_batch_size",
            "seq_length",
            "save_interval",
            "log_interval",
        )
        check(
            (bool(self.valid_data), "valid_data must name a file: --valid-data FILE..."),
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 1,
                    f"{n} = {getattr(self, n)} must be at least 1",
                )
                for n in sizes
            ),
            *(
                (0 <= getattr(self, n) < 1, f"{n} = {getattr(self, n)} must be at least 0 and below 1")
                for n in ("hidden_dropout", "attention_dropout")
            ),
            (self.epochs >= 0, f"epochs = {self.epochs} must not be negative"),
            (
                self.seq_length is None or self.seq_length >= 8,
                f"seq_length = {self.seq_length} must be at least 8: special tokens and two texts",
            ),
            (
                training or self.load is not None,
                "what is to be evaluated? give --load CHECKPOINT, or --pretrained-checkpoint BERT with"
                " --train-data FILE... to finetune one",
            ),
            (
                not training or self.pretrained_checkpoint is not None,
                "finetuning begins with a BERT: give --pretrained-checkpoint",
            ),
            (not training or self.output is not None, "finetuning writes checkpoints: give --output DIR"),
            (
                not training or self.load in (None, self.output),
                f"load = {self.load}: finetuning starts from --pretrained-checkpoint, or resumes from"
                " --output; leave --load out",
            ),
        )

    def check_inputs(self) -> None:
        """Raises UserError for inputs that are not there, before anything is read."""
        model = self.pretrained_checkpoint if self.trains else self.load
        check_each(
            *([functools.partial(check_presence, model)] if model is not None else []),
            functools.partial(check_exists, *self.valid_data, *(self.train_data if self.trains else ())),
        )

    @property
    def trains(self) -> bool:
        """Whether the command finetunes, or else only evaluates --load."""
        return bool(self.train_data) and self.epochs > 0


def run(config: FinetuneConfig, task: ClassificationTask) -> dict | None:
    """The summary of a task's command on rank 0, None on the other ranks."""
    with launch_ranks(config.tensor_model_parallel_size) as mesh:
        use_fast_float32_matmul()
        valid = {path: place for place in config.valid_data for path in files_in(place, task.suffixes)}
        train = [
            path for place in config.train_data if config.trains for path in files_in(place, task.suffixes)
        ]
        model = config.pretrained_checkpoint if config.trains else config.load
        assert model is not None, "the configuration names a checkpoint"
        with Results(f"eval {task.name}", config, [model, *train, *valid], mesh) as results:
            if results.finished:
                return results.finished if mesh.rank == 0 else None
            if not config.trains:
                return _evaluate(config, task, valid, results, mesh)
            finetuning = Finetuning(config, task, train, valid, results, mesh)
            finetuning.fit()
            return _evaluate(config, task, valid, results, mesh, finetuning)


def _evaluate(
    config: FinetuneConfig,
    task: ClassificationTask,
    valid: dict[Path, str],
    results: Results,
    mesh: Mesh,
    finetuned: Finetuning | None = None,
) -> dict | None:
    """The scores of --load, or of the last checkpoint of this finetuning run."""
    place = config.load if finetuned is None else config.output
    assert place is not None, "an evaluation has --load, and finetuning has --output"
    predictor = _predictor(config, task, open_checkpoint(place), mesh)
    with results.predictions() as write:
        scores, counts = evaluate(task, valid, results, mesh, predictor, write)
    facts = {"scores": scores, "seq_length": predictor.seq_length}
    files: list[Path] = []
    if finetuned is not None:
        facts |= {"training": finetuned.summary(), "epochs": finetuned.log.lines_of("accuracy")}
        files = finetuned.files()
    return results.finish(counts, files, examples=counts["scored"], **facts) if mesh.rank == 0 else None


def _predictor(
    config: FinetuneConfig, task: ClassificationTask, checkpoint: Checkpoint, mesh: Mesh
) -> Predictor:
    if task.for_gpt and not is_finetuned(checkpoint) and family_of(checkpoint.config).text == "decoder":
        return by_likelihood(checkpoint, config.seq_length, 4 * config.micro_batch_size, mesh)
    model, tokenizer, seq_length = open_classifier(checkpoint, task.name, mesh)
    return by_classifier(
        model,
        PairEncoder(tokenizer, min(config.seq_length or seq_length, seq_length)),
        config.micro_batch_size,
    )


class Finetuning:
    """One finetuning run: model, optimizer, data and progress.

    train: the files to train on. valid: the files to evaluate after every epoch, each with the place of
    --valid-data that it belongs to.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        task: ClassificationTask,
        train: list[Path],
        valid: dict[Path, str],
        results: Results,
        mesh: Mesh,
    ):
        self.config, self.task, self.valid, self.results, self.mesh = config, task, valid, results, mesh
        assert config.output is not None, "finetuning has --output"
        assert config.pretrained_checkpoint is not None, "finetuning has --pretrained-checkpoint"
        self.folder = Path(config.output)
        model, tokenizer = pretrained(
            open_checkpoint(config.pretrained_checkpoint),
            task.outputs,
            config.seed,
            mesh,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
        )
        positions = model.config.max_position_embeddings
        if (config.seq_length or 0) > positions:
            raise UserError(
                f"seq_length = {config.seq_length} must be at most the {positions} positions of the model in"
                f" {config.pretrained_checkpoint}"
            )
        self.encoder = PairEncoder(tokenizer, config.seq_length or min(512, positions))
        multiple = config.micro_batch_size * mesh.dp.size
        self.batch_size = config.global_batch_size or multiple
        if self.batch_size % multiple:
            raise UserError(
                f"global_batch_size = {self.batch_size} is not a multiple of micro_batch_size ="
                f" {config.micro_batch_size} x {mesh.dp.size} data-parallel"
                f" process{'es' * (mesh.dp.size > 1)} = {multiple}"
            )
        read = with_error_policy(task.read, results.reject, config.on_error)
        self.data = TrainingSet(self.encoder, (example for path in train for example in read(path)))
        self.num_rejected = len(results.rejects)
        if not self.data:
            raise UserError(f"{', '.join(map(str, train))}: no example could be read; check the file")
        for path in valid:  # raises UserError for a bad row before the training, not after it
            for _ in read(path):
                pass
        del results.rejects[self.num_rejected :]
        self.steps_per_epoch = -(-len(self.data) // self.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        total_samples = config.epochs * len(self.data)
        self.rate = learning_rate(
            config.optimizer, total_samples=total_samples, global_batch_size=self.batch_size, by_samples=False
        )
        self.decay = weight_decay(config.optimizer, total_samples)
        self.model = model.train()
        self.weights = MasterWeights(self.model, torch.bfloat16 if config.bf16 else torch.float32)
        self.optimizer = build_optimizer(self.weights.by_name, config.optimizer, model.config)
        self.progress = self._resume()
        self.log = FinetuneLog(self.folder / "log.jsonl", self.progress.step, writes=mesh.rank == 0)
        # the tensor-parallel ranks of one replica, over which the gradient norm is summed
        self.replica = Mesh(mesh.tp.rank, mesh.tp.size, mesh.device, mesh.tp.group)
        saved = CheckpointConfig(save=config.output, load=config.pretrained_checkpoint)
        settings = Finetuned(task.name, task.outputs, self.encoder.seq_length, model.config, saved)
        data = {"files": [str(path) for path in train]}
        self.saver = Saver(settings, tokenizer=tokenizer, data=data, mesh=mesh)

    def _resume(self) -> Progress:
        """Loads the newest checkpoint of --output, if there is one; returns its progress."""
        newest = self.mesh.broadcast_object(self.mesh.on_rank_0(lambda: newest_whole(self.folder)))
        if newest is None:
            return Progress()
        loaded = newest.load(self.model, self.optimizer, mesh=self.mesh, weights=self.weights.by_name)
        self.weights.refresh()
        return loaded

    def fit(self) -> None:
        """The training loop, until the last checkpoint is saved."""
        config, done = self.config, self.progress
        with (
            StopSignals() as signals,
            progress(f"finetune {self.task.name}", self.total_steps, "steps") as advance,
        ):
            advance(done.step)
            while done.step < self.total_steps:
                norm, rate = self.step()
                advance(1)
                epoch, ends = divmod(done.step, self.steps_per_epoch)
                last = done.step == self.total_steps
                if last or done.step % config.log_interval == 0:
                    self.log.write(
                        step=done.step,
                        epoch=epoch + (ends > 0),
                        loss=sum(done.pending_losses) / len(done.pending_losses),
                        lr=rate,
                        grad_norm=norm,
                    )
                    done.pending_losses.clear()
                if ends == 0 and not last:
                    self.validate(epoch)
                signalled = self.mesh.any_rank(signals.received)
                if ends == 0 or signalled or (config.save_interval and done.step % config.save_interval == 0):
                    self.save()
                if signalled and not last:
                    raise signals.stopped(done.step)

    def step(self) -> tuple[float, float]:
        """One update of the weights; returns (gradient norm, learning rate)."""
        config, done = self.config, self.progress
        rate = self.rate.at(done.consumed_samples)
        set_rates(self.optimizer, rate, self.decay.at(done.consumed_samples))
        numbers = self.examples_of(done.step)
        size = config.micro_batch_size
        micro_batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        own = [
            ClassifierMicroBatch(i, self.model_arguments(micro_batch))
            for i, micro_batch in enumerate(micro_batches)
            if i % self.mesh.dp.size == self.mesh.dp.rank
        ]
        factor = torch.tensor(1 / len(numbers), device=self.mesh.device)
        # forward_backward reads only the index and the arguments of a micro-batch
        batch = cast(list[MicroBatch], own)
        loss = self.mesh.all_reduce_dp_cp(
            forward_backward(self.model, batch, factor, seed=f"{config.seed}:{done.step}")
        ).item() / len(numbers)
        self.sum_gradients()
        norm = gradient_norm(self.weights, self.replica).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Failure(
                f"step {done.step + 1:,}: loss {loss}, gradient norm {norm}: finetuning has diverged; start"
                " again with a lower --lr or more warm-up"
            )
        clip_gradients(self.weights, norm, config.optimizer.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.refresh()
        done.step += 1
        done.updates += 1
        done.consumed_samples += len(numbers)
        done.pending_losses.append(loss)
        return norm, rate

    def examples_of(self, step: int) -> list[int]:
        """The numbers of a step's examples."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.data))
        return order[within * self.batch_size : (within + 1) * self.batch_size].tolist()

    def model_arguments(self, numbers: list[int]) -> dict:
        """The arguments of Classifier.loss for examples."""
        labels = torch.tensor([self.data.labels[n] for n in numbers], device=self.mesh.device)
        return {**self.encoder.batch([self.data[n] for n in numbers], self.mesh.device), "labels": labels}

    def sum_gradients(self) -> None:
        """Sums the gradients over the replicas in one all-reduce.

        A rank without a micro-batch of this step has no gradients and adds zeros.
        """
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if self.mesh.dp.size > 1:
            gradients = [local_shard(weight.grad) for weight in self.weights]
            flat = self.mesh.all_reduce_dp_cp(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
                gradient.copy_(summed.view_as(gradient))

    def validate(self, epoch: int) -> None:
        """Logs the scores after an epoch, computed in the precision of the training."""
        self.model.eval()
        before = len(self.results.rejects)
        scores, _ = evaluate(
            self.task,
            self.valid,
            self.results,
            self.mesh,
            by_classifier(self.model, self.encoder, self.config.micro_batch_size),
            lambda line: None,
        )
        del self.results.rejects[before:]
        self.model.train()
        self.log.write(
            step=self.progress.step,
            epoch=epoch,
            **{name: value for name, value in scores.items() if name != "files"},
        )

    def save(self) -> None:
        self.log.flush()
        self.saver.save(self.model, self.weights.by_name, self.optimizer, self.progress)

    def summary(self) -> dict:
        losses = self.log.lines_of("loss")
        return {
            "examples": len(self.data),
            "rejected": self.num_rejected,
            "steps": self.progress.step,
            "global_batch_size": self.batch_size,
            "first_loss": losses[0]["loss"] if losses else None,  # the log may have lost its lines
            "last_loss": losses[-1]["loss"] if losses else None,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def files(self) -> list[Path]:
        """The files that the manifest lists beside the predictions."""
        step = self.folder / f"step_{self.progress.step:08d}"
        return [*sorted(p for p in step.rglob("*") if p.is_file()), self.log.path]


@dataclasses.dataclass(frozen=True)
class ClassifierMicroBatch:
    """A micro-batch for forward_backward: its index in the batch, and the arguments of Classifier.loss."""

    index: int
    loss_arguments: dict[str, Tensor]

    def arguments(self) -> dict[str, Tensor]:
        return self.loss_arguments


class FinetuneLog:
    """log.jsonl: the loss of the steps and the scores after every epoch.

    A resumed run first removes the lines after its checkpoint's step, so that the log is that of an
    uninterrupted run.
    """

    def __init__(self, path: Path, step: int, *, writes: bool):
        """writes: whether this rank writes the file."""
        self.path = path
        self._file: TextIO | None = None
        self.lines = [line for line in whole_lines(path) if line["step"] <= step]
        if writes:
            with manifest.atomic_write(path, "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.lines)
            self._file = paths.update(path, "a", buffering=1)  # open until the process ends

    def write(self, **line) -> None:
        self.lines.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def lines_of(self, name: str) -> list[dict]:
        """The lines that have a value of that name."""
        return [line for line in self.lines if name in line]
