"""`mt train`: builds model, optimizer and data, and runs the training loop.

In: token data, a configuration, optionally a checkpoint. Out, in --save: step_NNNNNNNN/ checkpoints,
log.jsonl, tensorboard/, incidents.jsonl if there were any, and, when the run is complete, manifest.json.

The loss of a step is the sum over all tokens of the global batch, divided once by their number, so that it
does not depend on the micro-batches and ranks that share the batch. A run that was stopped, even by kill -9,
resumes from its newest complete checkpoint when the same command is given again, and ends with the same
numbers to the last bit (on the same number of processes).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ..core import manifest
from ..core.config import Failure, UserError
from ..core.progress import activity, print_line
from ..core.progress import progress as show_progress
from ..tokenizer.tokenizer import load as load_tokenizer
from .anomalies import (
    MOST_BEFORE_SPIKE,
    MOST_IN_A_ROW,
    IncidentLog,
    StepResult,
    StopSignals,
    find_incident,
    free_memory,
    incident_failure,
    is_out_of_memory,
)
from .banner import banner, uneven_split
from .batches import Batches, identity, open_neighbors, unigram_entropy
from .checkpoint.base import Checkpoint, Progress, moment_names
from .checkpoint.native import Saver, newest_whole
from .compile import check_compile, compile_and_recompute, keep_freed_memory, should_compile
from .config import (
    TrainConfig,
    TrainingSchedule,
    check_source,
    find_source,
    load_datasets,
    num_validation_batches,
    start_run,
    training_schedule,
    with_schedules_of,
)
from .determinism import enable_deterministic_mode, seed_dropout_per_block
from .dry_run import dry_run
from .float8 import use_float8
from .metrics import Rates, RunLog
from .model.attention import attention_backend
from .model.base import Model
from .model.config import ResolvedModelConfig, resolve
from .model.family import build_model, count_parameters, family_of, sequence_lengths
from .model.flops import device_name, peak_flops
from .model.inputs import MicroBatch
from .model.layers import initialize
from .model.moe import balance
from .model.multi_token_prediction import MultiTokenPrediction
from .model.training_cost import gibibytes, out_of_memory_message, training_flops
from .optimizer import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    set_rates,
    weights_norm,
    zeros_in_gradients,
)
from .parallel.mesh import Mesh, launch
from .parallel.parallelize import check_layout, dropout_place, parallelize, reshard
from .parallel.pipeline import Pipeline
from .parallel.stages import stages_of
from .precision import LossScale, MasterWeights, check_precision, use_fast_float32_matmul
from .profiler import StepProfiler, check_profile
from .step import forward_backward
from .stragglers import STEPS_BETWEEN_COLLECTIONS, StragglerDetector, manual_gc
from .warm_start import warm_start, warm_start_of


def train(config: TrainConfig) -> dict | None:
    """Trains a model; returns the run's manifest on rank 0 and None on the others."""
    if config.dry_run:
        return dry_run(config)
    if config.world_size is not None:
        raise UserError(
            f"world_size = {config.world_size} is for --dry-run; the processes of a run are torchrun's:"
            " --nnodes and --nproc-per-node"
        )
    began = time.monotonic()
    if config.train.deterministic_mode:
        enable_deterministic_mode()
    with launch(config.parallel) as mesh:
        return _train(config, mesh, began)


def _train(config: TrainConfig, mesh: Mesh, began: float) -> dict | None:
    check_precision(config.precision, mesh.device)
    check_compile(config.train.compile, mesh.device)
    schedule = training_schedule(config, mesh)
    check_profile(config.log, mesh.world_size, schedule.total_steps)
    tokenizer = load_tokenizer(config.tokenizer)
    config.packing.check_against(tokenizer.eod)
    shape = resolve(config.model, vocab_size=tokenizer.vocab_size, seq_length=config.data.seq_length)
    if shape.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {shape.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size};"
            " raise it, or leave it out"
        )
    mesh.on_rank_0(lambda: check_layout(config.parallel, shape, sequence_lengths(shape, config.data)))
    bounded = config.packing.reset_attention_mask or (
        shape.window_size is not None and shape.window_size < config.data.seq_length
    )
    attention = attention_backend(shape, mesh.device, config.precision.dtype, bounded=bounded)
    if mesh.rank == 0 and attention != "sdpa":
        print(f"mt: attention is computed by {attention}", file=sys.stderr)
    source = mesh.broadcast_object(mesh.on_rank_0(lambda: find_source(config.checkpoint)))
    with activity("opening the data, and building its indices if they are new"):
        train_data, valid_data = load_datasets(config, schedule, tokenizer, mesh)
        neighbors = [open_neighbors(shape, config.data, dataset) for dataset in (train_data, valid_data)]
    with activity("counting how often each token occurs in the data"):
        entropy = mesh.on_rank_0(lambda: unigram_entropy(train_data, shape.vocab_size))
    resolved = dataclasses.replace(config, model=shape)
    if source is not None:
        mesh.on_rank_0(
            lambda: check_source(
                source, config, schedule, shape, tokenizer, identity(train_data, config.data)
            )
        )
        if not config.checkpoint.finetune:
            resolved = mesh.broadcast_object(mesh.on_rank_0(lambda: with_schedules_of(source, resolved)))
            schedule = training_schedule(resolved, mesh)
    if mesh.device.type == "cpu":
        mesh.on_rank_0(lambda: _check_memory(resolved, shape, mesh))
    # The user's mistakes are found before here: a claimed directory would require --overwrite afterwards.
    with activity("comparing the inputs with those of an earlier run"):
        run = mesh.on_rank_0(lambda: start_run(config, schedule, tokenizer, train_data, valid_data))
    if mesh.broadcast_object(run is not None and run.finished):
        return run.manifest if run is not None else None
    if mesh.rank == 0:
        print_line(banner(resolved, shape, schedule, mesh, train_data, valid_data))
        if warning := uneven_split(resolved, train_data, valid_data):
            print_line(warning)
    try:
        trainer = Trainer(resolved, schedule, mesh, tokenizer, train_data, valid_data, source, neighbors)
        complete = trainer.fit(began)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(_out_of_memory(resolved, shape)) from None
    if mesh.rank != 0:
        return None
    if not complete:
        step = trainer.progress.step
        return {
            "text": (
                f"stopped after step {step:,} because of --exit-interval or --exit-duration-in-mins; the same"
                " command continues from there"
            ),
            "steps": step,
        }
    return _seal(run, trainer, entropy)


def _check_memory(config: TrainConfig, shape: ResolvedModelConfig, mesh: Mesh) -> None:
    """Raises UserError where weights and moments alone do not fit in this machine's free memory.

    The system would kill the process without a message.
    """
    share = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) / mesh.world_size
    needed = count_parameters(shape) * 4 * (1 + config.optimizer.least_moments) * share
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(f"{_out_of_memory(config, shape)}; this machine has {gibibytes(free)} free")


def _out_of_memory(config: TrainConfig, shape: ResolvedModelConfig) -> str:
    return out_of_memory_message(
        shape,
        count_parameters(shape),
        micro_batch_size=config.train.micro_batch_size,
        tokens_per_sample=config.data.seq_length,
        dtype=config.precision.dtype,
        num_moments=config.optimizer.num_moments,
        granularity=config.recompute.recompute_granularity,
    )


class Trainer:
    """A model, its optimizer, its data, and its progress."""

    log: RunLog | None  # on rank 0
    local_loss: Tensor  # this rank's summed loss of the last step, float64

    def __init__(
        self,
        config: TrainConfig,
        schedule: TrainingSchedule,
        mesh: Mesh,
        tokenizer,
        train_data,
        valid_data,
        source: Checkpoint | None,
        neighbors=(None, None),
    ):
        """config: with a resolved model. source: the checkpoint of --load.

        neighbors: look up the neighbours of train_data and of valid_data, for Retro.
        """
        assert isinstance(config.model, ResolvedModelConfig), "the trainer builds a model"
        self.config, self.schedule, self.mesh = config, schedule, mesh
        self.shape = shape = config.model
        self.folder = Path(config.checkpoint.save)
        data = identity(train_data, config.data)
        how = {
            "micro_batch_size": config.train.micro_batch_size,
            "vocab_size": shape.vocab_size,
            "mesh": mesh,
            "packing": config.packing,
            "eod": tokenizer.eod,
            "collate": family_of(config.model).collate,
        }
        self.batches = Batches(train_data, neighbors=neighbors[0], **how)
        self.valid_batches = (
            Batches(valid_data, neighbors=neighbors[1], **how) if valid_data is not None else None
        )
        if mesh.device.type == "cpu":
            use_fast_float32_matmul()
            keep_freed_memory()
        sample_flops = training_flops(shape, config.data.seq_length, config.data.decoder_seq_length)
        with activity("checking the newest checkpoint"):
            own = newest_whole(self.folder, mesh)
        print_line(f"  {'start':<9}{_start_text(own, source, config)}")
        flops = sample_flops.full * schedule.total_samples / mesh.world_size
        with activity("building the model"):
            self.model, self.weights = _build(
                config,
                shape,
                mesh,
                flops,
                filled=own is None and (source is None or warm_start_of(source, config.model) is not None),
            )
        self.stragglers = StragglerDetector(self.model, mesh)
        self.optimizer = build_optimizer(self.weights.by_name, config.optimizer, shape)
        with activity("loading the checkpoint"):
            self.progress = self._start_from(own, source)
        self.loss_scale = LossScale(config.precision, self.progress.loss_scale)
        self.saver = Saver(config, tokenizer=tokenizer, data=data, mesh=mesh)
        self.incidents = IncidentLog(self.folder / "incidents.jsonl")
        self.given_up = 0  # consecutive steps that changed no weight because of an incident
        self.timers = {"forward_backward": 0.0, "optimizer": 0.0}  # seconds since the last log
        self.timed_steps = 0
        self.num_zeros = 0  # in the gradient of the last step
        self.shares: dict[str, Tensor] = {}  # each expert's share of the last step's choices, by layer
        self.rates = Rates(sample_flops, mesh.world_size, peak_flops(mesh.device, config.precision.dtype))
        self.compiles = should_compile(config.train.compile, mesh.device, flops)
        self.first_step = self.progress.step  # of this process
        self.log = None
        if mesh.rank == 0:
            self.log = RunLog(
                self.folder,
                config.log,
                step=self.progress.step,
                total_steps=schedule.total_steps,
                total_samples=schedule.total_samples,
                settings=dataclasses.asdict(config),
            )

    def _start_from(self, own: Checkpoint | None, source: Checkpoint | None) -> Progress:
        """Loads this run's own newest checkpoint, else `source`; returns the progress to continue from."""
        settings = self.config.checkpoint
        if own is not None:
            if settings.no_save_optim and moment_names(self.optimizer):
                print(
                    f"mt: {own}: was saved with --no-save-optim; the optimizer starts with new moments",
                    file=sys.stderr,
                )
            return self._load(own, moments=not settings.no_save_optim)
        if source is None:
            return Progress()
        if (start := warm_start_of(source, self.config.model)) is not None:
            assert isinstance(self.model, Model), "TrainConfig refuses pipelines for these models"
            warm_start(start, source, self.model, self.weights.by_name, self.mesh)
            self.weights.refresh()
            return Progress()
        progress = self._load(source, moments=not (settings.finetune or settings.no_load_optim))
        return Progress() if settings.finetune else progress

    def _load(self, checkpoint: Checkpoint, *, moments: bool) -> Progress:
        progress = checkpoint.load(
            self.model,
            self.optimizer if moments else None,
            self.mesh,
            weights=self.weights.by_name,
            allow_extra=self.mesh.pp.size > 1,
        )
        self.weights.refresh()
        return progress

    def fit(self, began: float) -> bool:
        """The training loop. began: start of the command, by time.monotonic.

        Returns whether the run is complete; False where --exit-interval or --exit-duration-in-mins ended it
        early.
        """
        config, progress, schedule = self.config, self.progress, self.schedule
        profiler = StepProfiler(config.log, self.folder, self.mesh.rank, self.mesh.device)
        with StopSignals() as signals, manual_gc() as collect, activity(self._doing):
            ready = time.perf_counter()
            for batch in self.batches.over(
                schedule.batch_size.steps(schedule.total_samples, progress.consumed_samples)
            ):
                waited = time.perf_counter() - ready
                profiler.before(progress.step + 1)
                grad_norm = self.step(batch)
                self.rates.time(time.perf_counter() - ready, waited)
                if self.log is not None:
                    self.log.step_done(progress.consumed_samples)

                last = (
                    progress.consumed_samples + schedule.batch_size.at(progress.consumed_samples)
                    > schedule.total_samples
                )
                signalled = self.mesh.any_rank(signals.received)
                leave = last or signalled or self._exit_is_due(began)
                profiler.after(progress.step, last=leave)
                if last or progress.step % config.log.log_interval == 0:
                    self.write_log(grad_norm)
                if self.valid_batches is not None and (
                    last or progress.step % config.train.eval_interval == 0
                ):
                    self.validate()
                if leave or progress.step % config.checkpoint.save_interval == 0:
                    self.save()
                if progress.step % STEPS_BETWEEN_COLLECTIONS == 0:
                    collect()
                if leave:
                    self.saver.wait()
                    if signalled and not last:
                        raise signals.stopped(progress.step)
                    return last
                ready = time.perf_counter()
        return True

    def _doing(self) -> str:
        """What the loop is doing, for a person who waits."""
        if self.progress.step == self.first_step and not self.mesh.activity.startswith("step"):
            return "reading the first batch"
        text = f"{self.mesh.activity} of {self.schedule.total_steps:,}"
        if self.compiles and self.progress.step == self.first_step:
            return f"{text}, which compiles the model first"
        left = self.log.time_left(self.progress.consumed_samples) if self.log is not None else None
        return text if left is None else f"{text}, about {left} left"

    def _exit_is_due(self, began: float) -> bool:
        """Whether --exit-interval or --exit-duration-in-mins ends the run after this step."""
        guard = self.config.guard
        if guard.exit_interval is not None and self.progress.step % guard.exit_interval == 0:
            return True
        minutes = guard.exit_duration_in_mins
        return minutes is not None and self.mesh.any_rank(time.monotonic() - began > 60 * minutes)

    def step(self, batch: list[MicroBatch]) -> float:
        """One update of the weights from a global batch; returns the gradient norm before clipping."""
        progress, size = self.progress, self.schedule.batch_size.at(self.progress.consumed_samples)
        self.mesh.activity = f"step {progress.step + 1}"
        counted = progress.consumed_samples - progress.skipped_samples
        own = self.schedule.decoupled_rate
        set_rates(
            self.optimizer,
            self.schedule.learning_rate.at(counted),
            self.schedule.weight_decay.at(counted),
            None if own is None else own.at(counted),
        )
        began = time.perf_counter()
        result, num_tokens = self.compute(batch)  # it waits for the device
        computed = time.perf_counter()
        if self.config.log.log_num_zeros_in_grad:
            self.num_zeros = round(zeros_in_gradients(self.weights, self.mesh).item())
        empty = num_tokens == 0
        if empty:
            self._report_empty_batch()
        # A gradient that overflows float16 is no incident as long as the loss scale can fall.
        overflow = self.loss_scale.can_fall and not result.finite
        what = None if overflow or empty else find_incident(result, progress.recent, self.config.guard)
        applied = not overflow and not empty and (what is None or self.examine(batch, result, what))
        if applied:
            self.update(result)
            if self.config.log.timing_log_level and self.mesh.device.type == "cuda":
                torch.cuda.synchronize()
        else:
            progress.skipped_steps += 1
            progress.skipped_samples += size
        self.given_up = self.given_up + 1 if (what is not None or empty) and not applied else 0
        self.optimizer.zero_grad()
        self.loss_scale.update(overflow)
        if self.config.model.num_experts:
            self.shares = balance(self.model, self.mesh.all_reduce_dp_cp)
        self.timers["forward_backward"] += computed - began
        self.timers["optimizer"] += time.perf_counter() - computed
        self.timed_steps += 1
        progress.loss_scale = self.loss_scale.state()
        progress.step += 1
        progress.consumed_samples += size
        progress.consumed_tokens += num_tokens
        self.rates.count(size, num_tokens)
        return result.grad_norm

    def _report_empty_batch(self) -> None:
        """Prints that the loss has no token in this step; raises UserError if many steps in a row are so."""
        step = self.progress.step + 1
        if self.given_up + 1 >= MOST_IN_A_ROW:
            raise UserError(
                f"step {step:,}: the loss mask of {MOST_IN_A_ROW} global batches in a row is 0 everywhere, so"
                " there is nothing to learn; check the data, or leave --eod-mask-loss out"
            )
        if self.mesh.rank == 0:
            print(
                f"mt: step {step:,}: the loss mask of the global batch is 0 everywhere; the step is skipped",
                file=sys.stderr,
            )

    def compute(self, batch: list[MicroBatch]) -> tuple[StepResult, int]:
        """Loss and gradient of a global batch, and the number of its tokens; changes only gradients."""
        num_tokens = self.mesh.all_reduce_dp_cp(_num_tokens(batch))
        scale = self.loss_scale.value
        local_loss = forward_backward(
            self.model,
            batch,
            scale / num_tokens.clamp(min=1),
            seed=f"{self.config.data.seed}:{self.progress.step}",
            place=dropout_place(self.mesh, self.config.parallel),
            experts=bool(self.config.model.num_experts),
        )
        norm = gradient_norm(self.weights, self.mesh) / scale
        self.local_loss = local_loss.clone()
        # The only place of a step that waits for a GPU.
        loss, tokens, norm = torch.stack(
            [self.mesh.all_reduce_dp_cp(local_loss), num_tokens, norm.double()]
        ).tolist()
        return StepResult(loss / max(tokens, 1), norm), int(tokens)

    def update(self, result: StepResult) -> None:
        """Steps the optimizer."""
        progress = self.progress
        clip_gradients(self.weights, result.grad_norm, self.config.optimizer.clip_grad, self.loss_scale.value)
        self.optimizer.step()
        self.weights.refresh()
        progress.updates += 1
        progress.pending_losses.append(result.loss)
        if self.config.guard.on_spike != "ignore":
            progress.recent = [*progress.recent, list(result)][-MOST_BEFORE_SPIKE:]

    def examine(self, batch: list[MicroBatch], first: StepResult, what: str) -> bool:
        """Repeats the computation of a step with an incident, reports, and acts as on_nan or on_spike say.

        what: the kind of incident. Returns whether to apply the step. Raises Failure where the run must stop.
        """
        guard, progress = self.config.guard, self.progress
        local = self.local_loss
        self.optimizer.zero_grad()
        again, _ = self.compute(batch)
        differ = torch.zeros(self.mesh.world_size, device=self.mesh.device)
        differ[self.mesh.rank] = float(
            not StepResult(local.item(), 0.0).same(StepResult(self.local_loss.item(), 0.0))
        )
        ranks = self.mesh.all_reduce(differ).nonzero().flatten().tolist()
        self.saver.wait()
        own = newest_whole(self.folder, self.mesh)
        action = guard.on_nan if what == "nan" else guard.on_spike
        if (
            not first.same(again)
            or self.given_up + 1 >= MOST_IN_A_ROW
            or (action == "rollback" and own is None)
        ):
            action = "stop"
        if self.mesh.rank == 0:
            end = progress.consumed_samples + self.schedule.batch_size.at(progress.consumed_samples)
            self.incidents.report(
                step=progress.step + 1,
                samples=(progress.consumed_samples, end),
                what=what,
                first=first,
                again=again,
                action=action,
                ranks=ranks,
                device=self.mesh.device,
            )
            print(
                f"mt: step {progress.step + 1:,}: {what} (loss {first.loss}, gradient norm"
                f" {first.grad_norm}): {action}",
                file=sys.stderr,
            )
        if action == "stop":
            self.optimizer.zero_grad()
            if first.same(again) and progress.step > 0:
                self.save()
                self.saver.wait()
            raise incident_failure(
                what, progress.step + 1, first, again, self.incidents.path, saved=progress.step > 0
            )
        if action == "rollback":
            assert own is not None, "without a checkpoint the action is stop"
            progress.updates = self._load(own, moments=not self.config.checkpoint.no_save_optim).updates
        return False

    def write_log(self, grad_norm: float) -> None:
        """Logs the progress, the mean loss and the rates since the last log. grad_norm: of the last step."""
        progress, pending = self.progress, self.progress.pending_losses
        loss = sum(pending) / len(pending) if pending else None
        rates = {
            **self.stragglers.report(progress.step, self.rates.seconds, self.rates.waited),
            **self.rates.take(),
        }
        groups = self.optimizer.param_groups
        shares = (
            {
                layer: share
                for stage in self.mesh.all_gather_object_pp(self.shares)
                for layer, share in stage.items()
            }
            if self.config.model.num_experts
            else {}
        )
        mtp_losses = self._mtp_losses()
        log = self.config.log
        norm = weights_norm(self.weights, self.mesh).item() if log.log_params_norm else None
        if self.log is not None:
            values = {
                "samples": progress.consumed_samples,
                "tokens": progress.consumed_tokens,
                "loss": loss,
                "lr": groups[0]["lr"],
                "weight_decay": groups[0]["weight_decay"],
                "grad_norm": grad_norm,
                "skipped": progress.skipped_steps,
            }
            if norm is not None:
                values["params_norm"] = norm
            if log.log_num_zeros_in_grad:
                values["num_zeros"] = self.num_zeros
            if log.timing_log_level:
                values["timers"] = {name: s / self.timed_steps for name, s in self.timers.items()}
                values["timers"]["step"] = rates["seconds"] / self.timed_steps
            if self.config.precision.fp16:
                values["loss_scale"] = self.loss_scale.value
            if mtp_losses:
                values["mtp_loss"] = mtp_losses
            if shares:
                values["experts"] = {
                    layer: share.max().item() * len(share) for layer, share in shares.items()
                }
            self.log.training(progress.step, **values, **rates)
        pending.clear()
        self.timers, self.timed_steps = dict.fromkeys(self.timers, 0.0), 0

    def _mtp_losses(self) -> dict[str, float]:
        """The mean loss of each depth of multi-token prediction since the last log, of all ranks."""
        depths = self.shape.mtp_num_layers
        if not depths:
            return {}
        sums = torch.zeros(depths, 2, dtype=torch.float64, device=self.mesh.device)
        for stage in stages_of(self.model):
            for module in stage.modules():
                if isinstance(module, MultiTokenPrediction) and (own := module.take_sums()) is not None:
                    sums += own
        sums = self.mesh.all_reduce_pp(self.mesh.all_reduce_dp_cp(sums))
        return {str(k + 1): loss / count for k, (loss, count) in enumerate(sums.tolist()) if count}

    @torch.no_grad()
    def validate(self) -> None:
        """Logs the loss per token on the first samples of the validation split, the same ones each time."""
        assert self.valid_batches is not None, "called only with validation data"
        self.model.eval()
        self.mesh.activity = f"validation after step {self.progress.step}"
        size = self.schedule.eval_batch_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)  # loss, tokens
        count = num_validation_batches(self.config, self.schedule, self.valid_batches.dataset)
        with show_progress("validation", count, "batches") as advance:
            for batch in self.valid_batches.over((i * size, size) for i in range(count)):
                loss = self.model.losses(batch)
                sums += torch.stack([loss, _num_tokens(batch)])
                advance(1)
        reshard(self.model)
        self.model.train()
        loss, tokens = self.mesh.all_reduce_dp_cp(sums).tolist()
        if not tokens:
            raise UserError(
                f"step {self.progress.step:,}: the loss mask of the validation data is 0 everywhere; check"
                " that data, or give --eval-iters 0 to leave the validation out"
            )
        if self.log is not None:
            self.log.validation(self.progress.step, loss / tokens)

    def save(self) -> None:
        """Saves a checkpoint."""
        self.mesh.activity = f"the checkpoint of step {self.progress.step}"
        if self.log is not None:
            self.log.flush()
        self.saver.save(self.model, self.weights.by_name, self.optimizer, self.progress)


def _start_text(own: Checkpoint | None, source: Checkpoint | None, config: TrainConfig) -> str:
    """What the run starts from."""
    if own is not None:
        return f"resumes from {own}"
    if source is None:
        return "new weights"
    return f"the weights of {source}" if config.checkpoint.finetune else f"continues from {source}"


def _num_tokens(batch: list[MicroBatch]) -> Tensor:
    """The sum of the loss masks of this rank's micro-batches, a float64 scalar."""
    return functools.reduce(torch.add, (micro.loss_mask.sum(dtype=torch.float64) for micro in batch))


def _build(
    config: TrainConfig, shape: ResolvedModelConfig, mesh: Mesh, total_flops: float, *, filled: bool
) -> tuple[Model | Pipeline, MasterWeights]:
    """The model on its device, in its dtype, ready to train.

    filled: whether to initialise the weights; False where a checkpoint fills them. The model is built and cut
    on the meta device, so that a rank never has more of it than its own shards. total_flops: of this rank in
    the whole run.
    """
    dtype, parallel = config.precision.dtype, config.parallel
    with torch.device("meta"):
        whole = build_model(shape)
    if config.train.retro_freeze_decoder:
        whole.freeze()
    seed_dropout_per_block(whole)
    model: Model | Pipeline = whole
    if mesh.pp.size > 1:
        model = Pipeline(whole, mesh, parallel, sequence_lengths(config.model, config.data), dtype)
    model.train()
    if config.precision.fp8_format is not None:
        use_float8(
            model,
            config.precision.fp8_format,
            config.precision.fp8_recipe,
            layers_in_bf16=config.precision.layers_in_bf16,
            num_layers={
                "layers": shape.num_layers,
                "encoder": shape.num_layers,
                "decoder": shape.decoder_num_layers or 0,
            },
        )
    setting = "never" if parallel.pipeline_schedule == "zero-bubble" else config.train.compile
    compile_and_recompute(model, config.recompute, setting, mesh.device, total_flops)
    parallelize(model, mesh, parallel, dtype)
    model.to_empty(device=mesh.device)
    initialize(model, config.data.seed, parameters=filled)
    return model, MasterWeights(model, torch.float32 if mesh.world_size > 1 else dtype)


def _why_no_loss(trainer: Trainer) -> str:
    """Why the log of a finished run has no loss."""
    if trainer.progress.updates:
        return (
            "its checkpoints are complete, but its log.jsonl has lost its lines; --load takes the"
            " checkpoints, --overwrite trains anew"
        )
    remedy = "see incidents.jsonl and lower --lr"
    if trainer.loss_scale.can_fall:
        remedy = (
            f"float16's loss scale has only fallen to {trainer.loss_scale.value:g}; train for more steps, or"
            " lower --initial-loss-scale"
        )
    return f"no step of this run changed a weight; {remedy}"


def _seal(run: manifest.Run, trainer: Trainer, entropy: float) -> dict:
    """Writes the run's manifest. Its numbers come from the log, so that a resumed run has the same."""
    progress, log, folder = trainer.progress, trainer.log, trainer.folder
    assert log is not None, "called on rank 0"
    log.close()
    files = sorted(p for p in (folder / f"step_{progress.step:08d}").rglob("*") if p.is_file())
    curve, valid_curve = log.curve("loss"), log.curve("valid_loss")
    if not curve:
        raise Failure(f"{folder}: {_why_no_loss(trainer)}")
    return run.finish(
        [manifest.record(path, folder) for path in (*files, log.path)],
        {"steps": progress.step, "samples": progress.consumed_samples, "tokens": progress.consumed_tokens},
        parameters=count_parameters(trainer.shape),
        device=device_name(trainer.mesh.device),
        devices=trainer.mesh.world_size,
        train_loss=curve[-1][1],
        valid_loss=valid_curve[-1][1] if valid_curve else None,
        unigram_entropy=entropy,
        tokens_per_second=log.tokens_per_second(),
        skipped_steps=progress.skipped_steps,
        curve=curve,
        valid_curve=valid_curve,
    )
