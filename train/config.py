"""Configuration of a training run and its checks: settings, length, schedules, data, source."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sized
from pathlib import Path
from typing import Literal

import torch

from ..core import manifest
from ..core.config import UserError, build, check, check_each, configuration, option, shown, to_dict
from ..indexed.check import other_tokenizer
from ..indexed.fim import FimConfig, FimDataset
from ..tokenizer.tokenizer import NullTokenizer, Tokenizer, TokenizerConfig
from .anomalies import AnomalyConfig
from .checkpoint.base import Checkpoint
from .checkpoint.hf_settings import TRAINING_SETTINGS
from .checkpoint.huggingface import settings_tree
from .checkpoint.native import CheckpointConfig, known_settings
from .checkpoint.open import open_checkpoint
from .checkpoint.presence import check_presence
from .metrics import LogConfig
from .model.config import ModelConfig, ResolvedModelConfig
from .model.datasets import SampleConfig
from .model.family import build_model, build_samples, families_with, family_of, sequence_lengths
from .model.inputs import PackingConfig
from .optimizer import OptimizerConfig, learning_rate, weight_decay
from .parallel.mesh import Mesh, ParallelConfig
from .precision import PrecisionConfig
from .recompute import RecomputeConfig
from .schedule import BatchSize, LearningRate, WeightDecay, batch_size_steps
from .warm_start import warm_start_of


@configuration(group="train")
class LoopConfig:
    """Batches, length of the run, and validation."""

    micro_batch_size: int = option(4, "samples in one forward pass of one process")
    global_batch_size: int | None = option(
        None, "samples in one step of all processes (default: micro-batch-size x processes)"
    )
    rampup_batch_size: tuple[int, ...] = option(
        (), "START INCREMENT SAMPLES: grow the global batch from START over the first SAMPLES"
    )
    step_batch_size_schedule: tuple[str, ...] = option(
        (),
        "TOKENS:SIZE ...: the global batch from so many tokens on, such as 0:384 200B:768 400B:1152",
        added=True,
    )
    train_iters: int | None = option(None, "length of the run in steps")
    train_samples: int | None = option(None, "length of the run in samples")
    eval_interval: int = option(1000, "steps between validations; there is always one after the last step")
    eval_iters: int = option(10, "global batches of a validation, the same ones each time; 0 for none")
    eval_global_batch_size: int | None = option(
        None, "samples in one batch of a validation (default: global-batch-size)", added=True
    )
    full_validation: bool = option(
        False,
        "validate on all whole batches of the validation data, once, whatever eval-iters says",
        added=True,
    )
    retro_freeze_decoder: bool = option(
        False, "Retro: freeze the GPT of --load and train only the layers that read neighbours"
    )
    compile: Literal["auto", "always", "never"] = option(
        "auto",
        "torch.compile for the model's blocks; auto: on GPUs, in runs that are long enough to repay its time",
    )
    deterministic_mode: bool = option(
        False, "the same command gives the same numbers to the last bit, on GPUs too"
    )
    allow_other_tokenizer: bool = option(
        False,
        "train although the tokenizer is not the one that made the data or the model of --load; the"
        " checkpoint's config.yaml says so",
        added=True,
    )

    @property
    def full_batch_size(self) -> int | None:
        """The global batch that is given, or the last one of a schedule; None where none is given."""
        if self.step_batch_size_schedule:
            return batch_size_steps(self.step_batch_size_schedule)[-1][1]
        return self.global_batch_size

    def __post_init__(self):
        stepwise = bool(self.step_batch_size_schedule)
        if stepwise:
            batch_size_steps(self.step_batch_size_schedule)
        sizes = (
            "micro_batch_size",
            "global_batch_size",
            "eval_global_batch_size",
            "train_iters",
            "train_samples",
            "eval_interval",
        )
        check(
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 1,
                    f"train.{n} = {getattr(self, n)} must be at least 1",
                )
                for n in sizes
            ),
            (
                self.eval_iters > 0 or not (self.full_validation or self.eval_global_batch_size),
                "train.eval_iters = 0 is no validation; leave --full-validation and --eval-global-batch-size"
                " out, or raise it",
            ),
            (self.eval_iters >= 0, f"train.eval_iters = {self.eval_iters} must not be negative"),
            (
                (self.train_iters is None) != (self.train_samples is None),
                "the run's length must be given once: --train-iters or --train-samples",
            ),
            (
                not self.rampup_batch_size or self.train_samples is not None,
                "train.rampup_batch_size needs --train-samples: while the batch size grows, iterations do"
                " not measure progress",
            ),
            (
                not self.rampup_batch_size or self.global_batch_size is not None,
                "train.rampup_batch_size needs --global-batch-size: the size that the batch grows to",
            ),
            (
                not stepwise or self.train_samples is not None,
                "train.step_batch_size_schedule needs --train-samples: while the batch size changes,"
                " iterations do not measure progress",
            ),
            (
                not stepwise or (self.global_batch_size is None and not self.rampup_batch_size),
                "train.step_batch_size_schedule says every size of the global batch; leave"
                " --global-batch-size and --rampup-batch-size out",
            ),
        )


@configuration()
class TrainConfig:
    """A training run."""

    PRESETS = True
    read_hf = staticmethod(settings_tree)  # what `--hf DIR` gives

    model: ModelConfig
    data: SampleConfig
    packing: PackingConfig
    fim: FimConfig
    tokenizer: TokenizerConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    recompute: RecomputeConfig
    train: LoopConfig
    guard: AnomalyConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    overwrite: bool = option(False, "replace another run in --save", role="runtime")
    dry_run: bool = option(
        False,
        "check shapes, groups and memory of one of --world-size processes on this machine, without data and"
        " weights",
        role="runtime",
    )
    world_size: int | None = option(
        None,
        "processes of the job for --dry-run and `mt plan`; those of a run are torchrun's",
        role="runtime",
    )

    def __post_init__(self):
        check(*self._retro_rules())
        lengths = sequence_lengths(self.model, self.data)
        positions = self.model.max_position_embeddings or self.data.seq_length
        check(
            *(
                (
                    length <= positions,
                    (
                        f"data.{name} = {length} is longer than model.max_position_embeddings = {positions};"
                        " shorten the one or raise the other"
                    ),
                )
                for name, length in lengths.items()
            ),
            (
                self.train.compile != "always" or self.parallel.pipeline_schedule != "zero-bubble",
                (
                    "train.compile = always: the delayed weight gradients of parallel.pipeline_schedule ="
                    " zero-bubble cannot be compiled; leave one of them out"
                ),
            ),
            (
                self.model.qk_layernorm or not self.optimizer.apply_wd_to_qk_layernorm,
                "optimizer.apply_wd_to_qk_layernorm: there are no norms of queries and keys; give"
                " --qk-layernorm too, or leave it out",
            ),
            (
                self.model.moe_router_load_balancing_type != "global_aux_loss"
                or self.recompute.recompute_granularity is None,
                "model.moe_router_load_balancing_type = global_aux_loss counts the choices of a step as it"
                " goes, and recomputation would count them twice; leave --recompute-granularity out, or give"
                " aux_loss",
            ),
            *(
                (
                    name in family_of(self.model).data or not getattr(self.data, name),
                    f"data.{name} is for {_families_with_data(name)}, not {self.model.family}; leave it out",
                )
                for name in ("titles_data_path", "data_folder")
            ),
            (
                self.data.data_folder is None or not (self.packing.any() or self.fim.fim_rate),
                (
                    "packed documents (--reset-..., --eod-mask-loss) and fill-in-the-middle are not for the"
                    " questions of data.data_folder; leave them out"
                ),
            ),
            (
                family_of(self.model).causal or not (self.packing.any() or self.fim.fim_rate),
                "packed documents (--reset-..., --eod-mask-loss) and fill-in-the-middle are for"
                f" {families_with(lambda family: family.causal)}, not {self.model.family}; leave them out",
            ),
        )

    def check_inputs(self) -> None:
        """Raises UserError for inputs that are not there, before anything is read."""
        load = other_run(self.checkpoint)
        if self.dry_run:
            self.check_vocabulary()
        else:
            check_each(
                *([functools.partial(check_presence, load)] if load is not None else []),
                self.data.check_inputs,
                self.tokenizer.check_given,
                self.tokenizer.check_inputs,
            )

    def check_vocabulary(self) -> None:
        """Raises UserError where nothing tells the size of the vocabulary, or the tokenizer is not there."""
        if self.model.vocab_size is None:
            if self.tokenizer.kind is None:
                raise UserError("model.vocab_size is not known; give --vocab-size, or the tokenizer")
            self.tokenizer.check_inputs()

    def _retro_rules(self) -> list[tuple[bool, str]]:
        model, m = self.model, self.model.retro_chunk_length
        if not model.retro_add_retriever:
            return [
                (
                    self.data.retro_project_dir is None,
                    (
                        "data.retro_project_dir is for models with retrieval; give --retro-add-retriever"
                        " too, or leave it out"
                    ),
                ),
                (
                    not self.train.retro_freeze_decoder,
                    (
                        "train.retro_freeze_decoder would leave nothing to train; give --retro-add-retriever"
                        " too, or leave it out"
                    ),
                ),
            ]
        positions = model.max_position_embeddings or self.data.seq_length
        return [
            (
                not self.train.retro_freeze_decoder or self.parallel.pipeline_model_parallel_size == 1,
                (
                    "train.retro_freeze_decoder leaves the first pipeline stage nothing to train; leave"
                    " --pipeline-model-parallel-size out"
                ),
            ),
            (
                not self.train.retro_freeze_decoder or self.checkpoint.load is not None,
                (
                    "train.retro_freeze_decoder needs a trained GPT: give --load with --finetune, or leave it"
                    " out"
                ),
            ),
            (
                self.data.seq_length % m == 0 or self.data.data_folder is not None,
                (
                    f"data.seq_length = {self.data.seq_length} is not a multiple of model.retro_chunk_length"
                    f" = {m}; use {self.data.seq_length // m * m or m} or"
                    f" {(self.data.seq_length // m + 1) * m}"
                ),
            ),
            (
                model.position_embedding_type != "learned" or 2 * m <= positions,
                (
                    f"model.max_position_embeddings = {positions} is less than a neighbour's 2 x"
                    f" model.retro_chunk_length = {2 * m} tokens; raise it"
                ),
            ),
            (
                not (self.packing.any() or self.fim.fim_rate),
                (
                    "model.retro_add_retriever: neighbours are those of a sample's plain tokens; leave out"
                    " --reset-..., --eod-mask-loss and fill-in-the-middle"
                ),
            ),
        ]


def _families_with_data(setting: str) -> str:
    return families_with(lambda family: setting in family.data)


@dataclasses.dataclass(frozen=True)
class TrainingSchedule:
    """Length and schedules of a run."""

    batch_size: BatchSize
    eval_batch_size: int
    learning_rate: LearningRate
    decoupled_rate: LearningRate | None  # of the token embedding and the output layer
    weight_decay: WeightDecay
    total_samples: int
    total_steps: int


def training_schedule(config: TrainConfig, mesh: Mesh) -> TrainingSchedule:
    """Raises UserError where a global batch does not divide into micro-batches of all replicas."""
    loop = config.train
    unit = loop.micro_batch_size * mesh.dp.size
    full = loop.full_batch_size or unit
    if loop.step_batch_size_schedule:
        batch_size = BatchSize.stepwise(loop.step_batch_size_schedule, config.data.seq_length)
    elif loop.rampup_batch_size:
        batch_size = BatchSize.rampup(full, loop.rampup_batch_size)
    else:
        batch_size = BatchSize(full)
    sizes = [("global_batch_size", size) for size in batch_size.sizes()]
    eval_size = loop.eval_global_batch_size or full
    for name, size in [*sizes, ("eval_global_batch_size", eval_size)]:
        if size % unit:
            below = size // unit * unit
            raise UserError(
                f"train.{name} = {size} is not a multiple of train.micro_batch_size ="
                f" {loop.micro_batch_size} x {mesh.dp.size} data-parallel"
                f" process{'es' if mesh.dp.size > 1 else ''} = {unit}; use"
                f" {f'{below} or ' if below else ''}{below + unit}"
            )
    if loop.train_samples is not None:
        total = loop.train_samples
    else:
        assert loop.train_iters is not None, "LoopConfig has one of them"
        total = loop.train_iters * full
    steps = sum(1 for _ in batch_size.steps(total))
    if steps == 0:
        raise UserError(
            f"train.train_samples = {total} is less than one global batch of {batch_size.at(0)}; train on"
            " more"
        )
    rate = learning_rate(
        config.optimizer,
        total_samples=total,
        global_batch_size=full,
        by_samples=loop.train_samples is not None,
    )
    own = None
    if config.optimizer.decoupled_lr is not None:
        own = dataclasses.replace(
            rate, peak=config.optimizer.decoupled_lr, minimum=config.optimizer.lowest_decoupled_lr
        )
    return TrainingSchedule(
        batch_size, eval_size, rate, own, weight_decay(config.optimizer, total), total, steps
    )


def load_datasets(config: TrainConfig, schedule: TrainingSchedule, tokenizer: Tokenizer, mesh: Mesh):
    """(training, validation) datasets; rank 0 builds indices that are not cached, the others read."""
    mesh.on_rank_0(lambda: _check_data_tokenizer(config, tokenizer))
    full = config.train.full_validation
    valid_samples = None if full else config.train.eval_iters * schedule.eval_batch_size
    build_all = lambda: build_samples(
        config.model, config.data, tokenizer, (schedule.total_samples, valid_samples, 0)
    )
    datasets = mesh.on_rank_0(build_all)
    datasets = (datasets if mesh.rank == 0 else build_all())[:2]
    mesh.on_rank_0(lambda: _check_validation(config, schedule, datasets[1]))
    if not config.fim.fim_rate:
        return datasets
    return tuple(d and FimDataset(d, tokenizer, config.fim, config.data.seed) for d in datasets)


def _check_validation(config: TrainConfig, schedule: TrainingSchedule, dataset: Sized | None) -> None:
    """Raises UserError where there is no whole batch to validate on."""
    if dataset is not None and num_validation_batches(config, schedule, dataset) == 0:
        raise UserError(
            f"train.full_validation: the validation data has {len(dataset)} samples, less than a batch of"
            f" {schedule.eval_batch_size}; give --eval-global-batch-size"
        )


def num_validation_batches(config: TrainConfig, schedule: TrainingSchedule, dataset: Sized) -> int:
    """Global batches of a validation on a dataset."""
    if config.train.full_validation:
        return len(dataset) // schedule.eval_batch_size
    return config.train.eval_iters


def _check_data_tokenizer(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError if another tokenizer made some of the data, or prints it if that is allowed."""
    for prefix in config.data.prefixes():
        problem = other_tokenizer(prefix, tokenizer)
        if problem and not config.train.allow_other_tokenizer:
            raise UserError(
                f"{problem}; give the one that made it, or --allow-other-tokenizer to train anyway"
            )
        if problem:
            print(f"mt: {problem}; allowed by --allow-other-tokenizer", file=sys.stderr)


def find_source(config: CheckpointConfig) -> Checkpoint | None:
    """The checkpoint of --load, or None; raises UserError where there is none and one is required.

    Checkpoints in --save are this run's own: it resumes from them without --load.
    """
    if (elsewhere := other_run(config)) is not None:
        return open_checkpoint(elsewhere, config.ckpt_step)
    if config.ckpt_step is not None:
        raise UserError(
            f"checkpoint.ckpt_step = {config.ckpt_step}: --load is --save itself, whose newest checkpoint"
            " counts; give another --save"
        )
    if config.exit_on_missing_checkpoint and not list(Path(config.save).glob("step_*")):
        raise UserError(
            f"{config.save}: has no checkpoint to resume from, and --exit-on-missing-checkpoint is given;"
            " leave it out to start a new run, or give --load"
        )
    return None


def other_run(config: CheckpointConfig) -> str | None:
    """--load, unless it is --save."""
    own = config.load is not None and Path(config.load).resolve() == Path(config.save).resolve()
    return None if own else config.load


def check_source(
    source: Checkpoint,
    config: TrainConfig,
    schedule: TrainingSchedule,
    shape: ResolvedModelConfig,
    tokenizer: Tokenizer,
    data: dict,
) -> None:
    """Raises UserError where --load has another model or vocabulary, or was trained on other data.

    data: identity of this run's training data (see batches.identity).
    """
    if not config.train.allow_other_tokenizer:
        _check_source_tokenizer(source, tokenizer)
    with torch.device("meta"):
        model = build_model(shape)
    start = warm_start_of(source, shape)
    if start is None:
        source.check_shapes(model)
    elif not config.checkpoint.finetune:
        raise UserError(f"{source}: holds {start.source}; give --finetune to say so")
    else:
        for part in start.parts(model).values():
            source.check_shapes(part, allow_extra=start.allow_extra, allow_missing=start.allow_missing)
        if start.settings is None:
            return
    names = [
        f.name
        for f in dataclasses.fields(shape)
        if f.name not in (*TRAINING_SETTINGS, "max_position_embeddings")
        and not (start is not None and start.settings is not None and f.name.startswith(start.settings))
    ]
    changed = [
        f"{n} {getattr(source.config, n)} there, {getattr(shape, n)} here"
        for n in names
        if getattr(source.config, n) != getattr(shape, n)
    ]
    if changed:
        print(
            f"mt: {source}: is of a model with other settings ({'; '.join(changed)}); this run uses those"
            " here",
            file=sys.stderr,
        )
    if config.checkpoint.finetune:
        return
    if (there := source.data_identity) is None:
        raise UserError(
            f"{source}: has only weights, without a position in the data to resume from; give --finetune"
        )
    changed = [f"{k} {there[k]} there, {data[k]} here" for k in there if k != "order" and there[k] != data[k]]
    consumed = source.progress().consumed_samples
    if changed:
        raise UserError(
            f"{source}: was trained on other data ({'; '.join(changed)}); give the same data settings, or"
            " --finetune to take only the weights"
        )
    if consumed >= schedule.total_samples:
        raise UserError(
            f"{source}: was already trained on {consumed:,} samples, and this run ends at"
            f" {schedule.total_samples:,}; make it longer, or give --finetune to count from 0"
        )
    if there["order"] != data["order"]:
        print(
            f"mt: {source}: this run has another number of samples, so their order from here on differs from"
            " that of the earlier run",
            file=sys.stderr,
        )


def _check_source_tokenizer(source: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UserError where a token of the checkpoint's tokenizer has another id in this one.

    The rows of the embedding would then mean other tokens. Further tokens do no harm. Nothing can be compared
    where the checkpoint has no tokenizer or one of the two is a NullTokenizer.
    """
    try:
        there = source.load_tokenizer()
    except UserError:
        return
    if there.fingerprint == tokenizer.fingerprint or NullTokenizer in (type(there), type(tokenizer)):
        return
    own, given = there.vocabulary(), tokenizer.vocabulary()
    token = next((token for token, i in own.items() if given.get(token) != i), None)
    if own and given and token is None:
        return
    what = (
        f"the token {shown(token)} has the id {own[token]} there and {given.get(token, 'none')} here"
        if own and given and token is not None
        else "one of them has no vocabulary of texts"
    )
    raise UserError(
        f"{source}: was trained with another tokenizer than this run's: {what}; give that tokenizer, or"
        " --allow-other-tokenizer to train anyway"
    )


def with_schedules_of(source: Checkpoint, config: TrainConfig) -> TrainConfig:
    """The configuration with the optimizer's settings of a checkpoint, where it asks for them.

    Otherwise prints which of them differ. A schedule is a function of settings and samples, so it has no
    other state.
    """
    there = known_settings(OptimizerConfig, source.run_settings.get("optimizer", {}), source.path)
    if config.checkpoint.use_checkpoint_opt_param_scheduler:
        origin = str(source.path / "config.yaml")
        return dataclasses.replace(config, optimizer=build(OptimizerConfig, (origin, there)))
    here = to_dict(config.optimizer)
    changed = [
        f"{name} {there[name]} there, {value} here"
        for name, value in here.items()
        if name in there and there[name] != value
    ]
    if changed:
        print(
            f"mt: {source}: was trained with other settings of the optimizer ({'; '.join(changed)}); this run"
            " uses those here, with --use-checkpoint-opt-param-scheduler those there",
            file=sys.stderr,
        )
    return config


def start_run(
    config: TrainConfig, schedule: TrainingSchedule, tokenizer: Tokenizer, train_data, valid_data
) -> manifest.Run:
    """Claims --save for this run: see core.manifest.begin."""
    elsewhere = other_run(config.checkpoint)
    inputs = [*config.data.files(), *([elsewhere] if elsewhere else [])]
    facts = {
        "data": [d.fingerprint for d in (train_data, valid_data) if d is not None],
        "tokenizer": tokenizer.fingerprint,
        "global_batch_size": schedule.batch_size.full,
    }
    save = config.checkpoint.save
    remedy = (
        ""
        if elsewhere
        else f"; to continue from it with other settings, give --load {save} and another --save"
    )
    return manifest.begin("train", config, inputs, facts=facts, remedy=remedy, resumes=True)
