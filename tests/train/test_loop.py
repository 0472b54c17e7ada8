import gc
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from mt.core.config import Failure, UserError
from mt.indexed.format import IndexedWriter
from mt.indexed.gpt_dataset import build_datasets
from mt.train import loop, stragglers
from mt.train.checkpoint.open import open_checkpoint
from mt.train.determinism import RULES
from mt.train.loop import train
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


RATES = (
    "seconds",
    "tokens_per_second",
    "data_wait",
    "flops_per_second",
    "mfu",
    "mfu_causal",
    "memory_bytes",
    "block_seconds",
    "slowest",
    "slow",
)


def lines(save):
    """The lines of the log, without the rates, which depend on the clock."""
    log = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in log]


def same_weights(one, other) -> bool:
    a, b = (dict(open_checkpoint(folder).load_model().named_parameters()) for folder in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_and_reports(finished):
    manifest = finished[1]
    assert manifest["counts"] == {"steps": 8, "samples": 64, "tokens": 1024}
    steps = [step for step, _ in manifest["curve"]]
    assert steps == [2, 4, 6, 8]
    assert manifest["train_loss"] == manifest["curve"][-1][1] < manifest["curve"][0][1]
    assert [step for step, _ in manifest["valid_curve"]] == [4, 8]
    assert manifest["valid_loss"] < manifest["valid_curve"][0][1]
    assert 0 < manifest["unigram_entropy"] < 4.1  # ln 60
    assert {o["name"] for o in manifest["outputs"]} >= {"log.jsonl", "step_00000008/state.json"}


def test_garbage_is_collected_at_given_steps_only_and_contains_no_tensor(settings, tmp_path, monkeypatch):
    found = []

    def collect(generation=2):
        assert not gc.isenabled()
        gc.set_debug(gc.DEBUG_SAVEALL)
        collected = real(generation)
        found.append(sum(map(torch.is_tensor, gc.garbage)))
        gc.set_debug(0)
        gc.garbage.clear()
        return collected

    real = gc.collect
    monkeypatch.setattr(loop, "STEPS_BETWEEN_COLLECTIONS", 3)
    monkeypatch.setattr(loop, "manual_gc", lambda: stragglers.manual_gc(collect))
    train(settings(tmp_path / "run", recompute_granularity="full"))
    assert found == [0, 0]  # after steps 3 and 6 of 8
    assert gc.isenabled()


def test_tensorboard_has_the_loss_curve(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save, manifest = finished
    events = EventAccumulator(str(save / "tensorboard")).Reload()
    assert [[e.step, pytest.approx(e.value)] for e in events.Scalars("loss")] == manifest["curve"]
    assert [e.step for e in events.Scalars("valid_loss")] == [4, 8]


def test_a_step_is_torchs_adamw_on_the_mean_loss_of_the_global_batch(settings, tmp_path):
    """Three steps, compared with a plain loop without micro-batches, chunks or schedules."""
    config = settings(
        tmp_path / "run",
        train_iters=3,
        lr_decay_style="constant",
        lr_warmup_iters=0,
        log_interval=1,
        eval_iters=0,
    )
    train(config)
    model = build_model(open_checkpoint(tmp_path / "run").config)
    loop.initialize(model, config.data.seed)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    dataset = build_datasets(config.data, (24, 0, 0))[0]
    for step, line in enumerate(lines(tmp_path / "run")):
        samples = torch.from_numpy(dataset.batch(range(8 * step, 8 * step + 8)))
        logits = model.logits(model(samples[:, :-1]))[..., :60]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert line["loss"] == pytest.approx(loss.item(), abs=2e-6)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_the_micro_batch_size_changes_rounding_only(finished, settings, tmp_path):
    train(settings(tmp_path / "run", micro_batch_size=8))
    for ours, theirs in zip(lines(tmp_path / "run"), lines(finished[0])):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_finished_run_is_up_to_date_and_other_settings_are_refused(finished, settings, monkeypatch):
    save, manifest = finished
    monkeypatch.setattr(loop, "Trainer", None)
    assert train(settings(save, keep_last=0))["finished"] == manifest["finished"]
    with pytest.raises(
        UserError,
        match=(
            r"holds another run of `mt train` \(optimizer.lr was 0.01, is 0.02\); choose another output or"
            r" pass --overwrite; to continue from it with other settings, give --load .*run and another"
        ),
    ):
        train(settings(save, keep_last=0, lr=2e-2))


@pytest.mark.parametrize("interval", [pytest.param(1, marks=pytest.mark.slow), 3, 5])
def test_a_run_that_exits_resumes_to_the_same_losses_and_weights(finished, settings, tmp_path, interval):
    save = tmp_path / "run"
    while "finished" not in train(settings(save, exit_interval=interval)):
        pass
    assert lines(save) == lines(finished[0])
    assert same_weights(save, finished[0])


KILLED = """
import json, os, signal, sys
import torch
from mt.core.config import build
from mt.train import loop
torch.set_num_threads(1)
rename, calls = os.rename, 0
def kill(*arguments):
    global calls
    calls += sys.argv[1] == "step" or os.path.basename(arguments[1]).startswith("step_")
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
if sys.argv[1] == "rename":
    original, os.rename = os.rename, kill
else:
    original, loop.Trainer.step = loop.Trainer.step, kill
loop.train(build(loop.TrainConfig, ("test", json.loads(sys.argv[3]))))
"""


# killed when the log is ahead of the newest checkpoint; killed before a checkpoint is renamed
@pytest.mark.parametrize(("where", "call"), [pytest.param("step", 6, marks=pytest.mark.slow), ("rename", 2)])
def test_a_run_that_is_killed_resumes_to_the_same_losses_and_weights(
    finished, settings, tree, tmp_path, where, call
):
    save = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(call), json.dumps(tree(save))],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name for p in save.glob("step_*")] == ["step_00000003"]
    with open(save / "log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # an incomplete line, as a kill may leave it
    train(settings(save))
    assert lines(save) == lines(finished[0])
    assert same_weights(save, finished[0])
    assert not list(save.glob(".*"))


def test_a_run_that_is_killed_before_its_manifest_only_writes_the_manifest(finished, settings, tmp_path):
    save = shutil.copytree(finished[0], tmp_path / "run")
    before = json.loads((save / "manifest.json").read_text())
    (save / "manifest.json").rename(save / "run.json")
    after = train(settings(save, keep_last=0))
    assert all(
        after[name] == before[name]
        for name in ("counts", "curve", "valid_curve", "train_loss", "valid_loss", "tokens_per_second")
    )
    assert [(o["name"], o["xxh3"]) for o in after["outputs"]] == [
        (o["name"], o["xxh3"]) for o in before["outputs"]
    ]


def test_sigterm_saves_a_checkpoint_and_the_run_resumes_to_the_same_losses(
    finished, settings, tmp_path, monkeypatch
):
    save = tmp_path / "run"
    step = loop.Trainer.step

    def step_with_signal(trainer, *arguments):
        if trainer.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *arguments)

    monkeypatch.setattr(loop.Trainer, "step", step_with_signal)
    with pytest.raises(
        Failure, match="stopped by SIGTERM after step 5; its checkpoint is saved: run the same command again"
    ) as stopped:
        train(settings(save))
    assert stopped.value.exit_code == 143
    assert (save / "step_00000005" / "state.json").exists()
    monkeypatch.undo()
    stopped = None  # its traceback keeps the lock of the directory
    train(settings(save))
    assert lines(save) == lines(finished[0])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_sigusr1_and_sigint_save_a_checkpoint_and_end_the_run(settings, tmp_path, monkeypatch, number):
    step = loop.Trainer.step
    monkeypatch.setattr(
        loop.Trainer, "step", lambda trainer, batch: (os.kill(os.getpid(), number), step(trainer, batch))[1]
    )
    with pytest.raises(
        Failure, match=f"stopped by {number.name} after step 1; its checkpoint is saved"
    ) as stopped:
        train(settings(tmp_path / "run"))
    assert stopped.value.exit_code == 128 + number
    assert (tmp_path / "run" / "step_00000001").exists()


def test_a_run_ends_after_exit_duration_and_resumes_with_the_same_command(finished, settings, tmp_path):
    save, ends = tmp_path / "run", 0
    while "finished" not in (summary := train(settings(save, exit_duration_in_mins=1e-6))):
        assert "stopped after step" in summary["text"]
        ends += 1
    assert ends == 7  # a step takes longer; after the last step the run is finished
    assert lines(save) == lines(finished[0])


def test_deterministic_mode_gives_the_same_bytes_for_repeated_and_resumed_runs(
    settings, tmp_path, monkeypatch
):
    """With dropout and accumulation.

    Runs on a CPU are deterministic without the mode too: this shows that the mode works.
    """
    for name in RULES:
        monkeypatch.setenv(name, RULES[name][0])
    how = {
        "deterministic_mode": True,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "keep_last": 0,
        "log_interval": 1,
    }
    try:
        train(settings(tmp_path / "whole", **how))
        train(settings(tmp_path / "twice", **how))
        while "finished" not in train(settings(tmp_path / "cut", **how, exit_interval=3)):
            pass
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert lines(tmp_path / "whole") == lines(tmp_path / "twice") == lines(tmp_path / "cut")
    tensors = [
        (tmp_path / name / "step_00000008" / "__0_0.distcp").read_bytes()
        for name in ("whole", "twice", "cut")
    ]
    assert tensors[0] == tensors[1] == tensors[2]


def test_an_environment_that_contradicts_deterministic_mode_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(
        UserError,
        match=(
            r"(?s)CUBLAS_WORKSPACE_CONFIG = :0:0 is not deterministic; unset it, or use :4096:8 or"
            r" :16:8.*NCCL_ALGO = Tree is not deterministic"
        ),
    ):
        train(settings(tmp_path / "run", deterministic_mode=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [{"recompute_granularity": "full"}, {"recompute_granularity": "selective"}, {"async_save": True}],
)
def test_recomputation_and_async_save_do_not_change_the_losses(finished, settings, tmp_path, changes):
    train(settings(tmp_path / "run", **changes))
    assert lines(tmp_path / "run") == lines(finished[0])


@pytest.mark.parametrize(("where", "call"), [("step", 5), pytest.param("rename", 2, marks=pytest.mark.slow)])
def test_a_kill_during_an_async_save_keeps_the_previous_checkpoint(
    finished, settings, tree, tmp_path, where, call
):
    save = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(call), json.dumps(tree(save, async_save=True))],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train(settings(save, async_save=True))
    assert lines(save) == lines(finished[0])
    assert same_weights(save, finished[0])
    assert not list(save.glob(".*"))


def test_a_broken_newest_checkpoint_repeats_only_its_steps(finished, settings, tmp_path, capsys):
    save = tmp_path / "run"
    train(settings(save, exit_interval=6))
    (save / "step_00000006" / "__0_0.distcp").write_bytes(b"")
    train(settings(save))
    assert "__0_0.distcp has 0 bytes" in capsys.readouterr().err
    assert lines(save) == lines(finished[0])
    assert same_weights(save, finished[0])


def test_a_longer_run_starts_from_another_runs_checkpoint(settings, finished, tmp_path, capsys):
    manifest = train(
        settings(tmp_path / "longer", load=str(finished[0]), train_iters=12, lr_decay_style="constant")
    )
    assert manifest["counts"]["samples"] == 96
    assert [step for step, _ in manifest["curve"]] == [10, 12]
    assert "this run has another number of samples" in capsys.readouterr().err


def test_finetune_loads_the_weights_only(settings, finished, tmp_path):
    manifest = train(
        settings(
            tmp_path / "tuned",
            load=str(finished[0]),
            finetune=True,
            lr=1e-3,
            lr_warmup_iters=0,
            train_iters=2,
            log_interval=1,
        )
    )
    assert manifest["counts"]["samples"] == 16
    assert manifest["curve"][0][1] < finished[1]["curve"][0][1] - 0.3


def test_resuming_with_other_data_or_no_samples_left_is_refused(settings, finished, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"was trained on other data \(seed 1234 there, 5 here\); give the same data settings, or"
            r" --finetune"
        ),
    ):
        train(settings(tmp_path / "run", load=str(finished[0]), seed=5))
    with pytest.raises(
        UserError, match="was already trained on 64 samples, and this run ends at 64; make it longer"
    ):
        train(settings(tmp_path / "same", load=str(finished[0])))


def test_load_may_be_the_save_directory_itself(settings, tmp_path):
    save = tmp_path / "run"
    train(settings(save, load=str(save), lr_warmup_iters=0, train_iters=2))
    assert (save / "manifest.json").exists()


def test_a_batch_rampup_is_counted_in_samples(settings, tmp_path):
    manifest = train(
        settings(
            tmp_path / "run",
            train_iters=None,
            train_samples=40,
            rampup_batch_size=[2, 2, 12],
            lr_warmup_iters=0,
            log_interval=1,
        )
    )
    assert [
        json.loads(line).get("samples")
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        if "samples" in line
    ] == [2, 4, 8, 14, 22, 30, 38]
    assert manifest["counts"]["steps"] == 7


def test_a_stepwise_batch_size_is_counted_in_tokens_and_resumes_exactly(settings, tmp_path):
    """Samples have 16 tokens: 2 up to the 6th sample, then 4, then 8 from the 12th on."""
    changes = {
        "train_iters": None,
        "train_samples": 40,
        "global_batch_size": None,
        "step_batch_size_schedule": ["0:2", "96:4", "0.192K:8"],
        "lr_warmup_iters": 0,
        "log_interval": 1,
    }
    manifest = train(settings(tmp_path / "run", **changes))
    read = lambda name: [
        json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
    ]
    assert [line["samples"] for line in read("run") if "samples" in line] == [2, 4, 6, 10, 14, 22, 30, 38]
    assert manifest["counts"]["steps"] == 8
    train(settings(tmp_path / "cut", **changes, exit_interval=4))
    train(settings(tmp_path / "cut", **changes))
    losses = lambda name: [line["loss"] for line in read(name) if "loss" in line]
    assert losses("cut") == losses("run")


def test_a_validation_may_have_its_own_batch_or_all_of_its_data(settings, tmp_path):
    def valid_loss(name, **changes):
        few = {"train_iters": 1, "lr_warmup_iters": 0, **changes}
        return train(settings(tmp_path / name, **few))["valid_loss"]

    expected = valid_loss("4 x 8", eval_iters=4)
    assert valid_loss("8 x 4", eval_iters=8, eval_global_batch_size=4) == pytest.approx(expected, rel=1e-6)
    data = settings(tmp_path / "x").data
    samples = len(build_datasets(data, (0, None, 0))[1])
    assert samples > 40
    every = valid_loss("every", eval_iters=samples // 8)
    assert valid_loss("full", full_validation=True) == every != expected
    with pytest.raises(UserError, match=r"validation data has \d+ samples, less than a batch of 4000"):
        valid_loss("large", full_validation=True, eval_global_batch_size=4000)
    with pytest.raises(UserError, match="eval_global_batch_size = 3 is not a multiple of"):
        valid_loss("odd", eval_global_batch_size=3)
    with pytest.raises(UserError, match="eval_iters = 0 is no validation"):
        settings(tmp_path / "none", eval_iters=0, full_validation=True)


def test_every_micro_batch_has_its_own_dropout_seed(settings, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    train(settings(tmp_path / "run", train_iters=3))
    assert len(set(seeds)) == len(seeds) == 12  # three steps of four micro-batches


@pytest.mark.slow  # torchrun's three processes import torch; test_parallel_training.py compares ranks
def test_two_processes_give_the_losses_of_one(settings, tree, tmp_path):
    """With dropout: its masks depend on micro-batches, not on ranks. One process resumes the run of two."""
    config = tmp_path / "two.yaml"
    changes = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "log_interval": 1}
    config.write_text(yaml.safe_dump(tree(tmp_path / "two", exit_interval=6, **changes)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "mt",
        "train",
        "--config",
        str(config),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped after step 6") == 1  # only rank 0 prints
    train(settings(tmp_path / "one", **changes))
    train(settings(tmp_path / "two", **changes))  # the last two steps on one process
    for together, alone in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
        assert together.get("loss", 0) == pytest.approx(alone.get("loss", 0), abs=2e-6)
    assert len(list((tmp_path / "two" / "step_00000006").glob("*.distcp"))) == 2


@pytest.mark.slow  # the test above runs float32
def test_two_processes_train_in_float16_with_async_saves_as_one_does(settings, tree, tmp_path):
    """The first steps overflow, on both ranks."""
    config = tmp_path / "two.yaml"
    changes = {
        "fp16": True,
        "initial_loss_scale": 2.0**23,
        "hysteresis": 1,
        "log_interval": 1,
        "eval_iters": 0,
        "split": "100,0,0",
        "save_interval": 3,
    }
    config.write_text(yaml.safe_dump(tree(tmp_path / "two", async_save=True, **changes)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "mt",
        "train",
        "--config",
        str(config),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    together, alone = json.loads(done.stdout), train(settings(tmp_path / "one", **changes))
    assert together["skipped_steps"] == alone["skipped_steps"] > 0
    assert [loss for _, loss in together["curve"]] == pytest.approx(
        [loss for _, loss in alone["curve"]], rel=2e-3
    )
    assert same_weights(tmp_path / "two" / "step_00000008", tmp_path / "two")


@pytest.mark.slow  # as above; parallel/test_launcher.py has the mistake under `mt launch`
def test_a_users_mistake_under_torchrun_is_reported_once(tree, tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(tree(tmp_path / "bad", data_path=["absent"])))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "mt",
        "train",
        "--config",
        str(config),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert done.stderr.count("no such file; give the prefix of a .bin/.idx pair") == 1
    assert "exitcode  : 2" in done.stderr


def test_a_diverging_loss_stops_the_run(settings, tmp_path):
    with pytest.raises(Failure, match=r"step \d+: loss (nan|inf|\d).*training has diverged"):
        train(settings(tmp_path / "run", lr=1e38, lr_warmup_iters=0, train_iters=20))


def test_presets_need_only_data_tokenizer_save_and_length(corpus, tmp_path):
    from mt.commands.configure import read_preset
    from mt.core.config import build

    for name in ("gpt-345m", "tiny"):
        needed = {
            "data.data_path": [corpus],
            "tokenizer.tokenizer_type": "ByteLevelTokenizer",
            "checkpoint.save": "x",
            "train.train_iters": 1,
        }
        config = build(loop.TrainConfig, ("preset", read_preset(loop.TrainConfig, name)), ("test", needed))
        with torch.device("meta"):
            model = build_model(
                loop.resolve(config.model, vocab_size=50257, seq_length=config.data.seq_length)
            )
        if name == "gpt-345m":
            # GPT-2 medium, its vocabulary padded to 50,304 rows
            assert sum(p.numel() for p in model.parameters()) == 354_871_296


def _pair(prefix, tokens):
    """A .bin/.idx pair of one document."""
    writer = IndexedWriter(prefix, np.uint16, prefix.parent / "work")
    writer.add(np.asarray(tokens), [len(tokens)], [1])
    writer.finish()
    return str(prefix)


def test_a_global_batch_without_a_counted_token_changes_no_weight(settings, tmp_path, capsys):
    """The end-of-document token, 59, is all that some samples hold, and --eod-mask-loss masks it."""
    words = np.arange(256) % 59
    words[64:192] = 59
    run = {
        "data_path": [_pair(tmp_path / "data", words)],
        "split": "100,0,0",
        "eval_iters": 0,
        "eod_mask_loss": True,
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "train_iters": 15,
        "log_interval": 1,
    }
    made = train(settings(tmp_path / "run", **run))
    skipped = made["skipped_steps"]
    assert 5 <= skipped <= 9
    message = "the loss mask of the global batch is 0 everywhere; the step is skipped"
    assert capsys.readouterr().err.count(message) == skipped
    assert len(made["curve"]) == 15 - skipped
    assert all(np.isfinite(loss) for _, loss in made["curve"])
    run["data_path"] = [_pair(tmp_path / "masked", np.full(256, 59))]
    with pytest.raises(UserError, match="step 10: the loss mask of 10 global batches in a row is 0"):
        train(settings(tmp_path / "none", **run))
    run |= {"train_data_path": [_pair(tmp_path / "words", words[:64])], "valid_data_path": run["data_path"]}
    run |= {"data_path": [], "eval_iters": 1, "train_iters": 2, "lr_warmup_iters": 0}
    with pytest.raises(UserError, match="step 2: the loss mask of the validation data is 0 everywhere"):
        train(settings(tmp_path / "valid", **run))
