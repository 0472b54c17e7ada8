import json
import math
import os

import pytest
import torch

from mt.core.config import Failure, UserError
from mt.train import loop
from mt.train.anomalies import AnomalyConfig, StepResult, find_incident, free_memory, is_out_of_memory
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fault(monkeypatch):
    """fault(step, times, change): the step after `step` steps returns change(StepResult).

    It does so the first `times` times in this process.
    """

    def plant(step: int, times: float, change):
        compute, calls = loop.Trainer.compute, []

        def faulty(trainer, batch):
            result, num_tokens = compute(trainer, batch)
            if trainer.progress.step != step:
                return result, num_tokens
            calls.append(1)
            changed = change(result) if len(calls) <= times else result
            trainer.local_loss.fill_(changed.loss)
            return changed, num_tokens

        monkeypatch.setattr(loop.Trainer, "compute", faulty)

    return plant


def not_a_number(_):
    return StepResult(math.nan, math.inf)


def jump(result):
    return StepResult(result.loss * 20, result.grad_norm)


def weights(path):
    return dict(open_checkpoint(path).load_model().named_parameters())


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def incidents(save):
    return [json.loads(line) for line in (save / "incidents.jsonl").read_text().splitlines()]


def test_a_step_that_is_nan_twice_saves_the_state_before_it_and_stops_with_16(
    finished, settings, tmp_path, fault, monkeypatch
):
    save = tmp_path / "run"
    fault(4, math.inf, not_a_number)
    with pytest.raises(
        Failure,
        match=(
            r"step 5: loss nan, gradient norm inf, the same when computed again: training has diverged .*with"
            r" --on-nan skip or rollback it continues"
        ),
    ) as stopped:
        train(settings(save))
    assert stopped.value.exit_code == 16
    (incident,) = incidents(save)
    assert {
        k: incident[k]
        for k in ("step", "samples", "what", "loss", "grad_norm", "again", "verdict", "action", "ranks")
    } == {
        "step": 5,
        "samples": [32, 40],
        "what": "nan",
        "loss": "nan",
        "grad_norm": "inf",
        "again": {"loss": "nan", "grad_norm": "inf"},
        "verdict": "reproducible",
        "action": "stop",
        "ranks": [],
    }
    assert (save / "step_00000004").exists()
    stopped = None  # its traceback keeps the lock of the directory
    monkeypatch.undo()  # the step now gives a number
    assert train(settings(save))["curve"] == finished[1]["curve"]


def test_a_step_that_differs_when_repeated_stops_with_17_and_saves_nothing(settings, tmp_path, fault):
    save = tmp_path / "run"
    fault(4, 1, not_a_number)
    with pytest.raises(
        Failure,
        match=(
            r"step 5: loss nan, .* when computed again: the hardware has failed .*; run the same command on"
            r" another device, it resumes from the newest checkpoint"
        ),
    ) as stopped:
        train(settings(save, on_nan="skip"))
    assert stopped.value.exit_code == 17
    (incident,) = incidents(save)
    assert (incident["verdict"], incident["action"], incident["ranks"]) == ("hardware", "stop", [0])
    assert math.isfinite(incident["again"]["loss"])
    assert [p.name for p in save.glob("step_*")] == ["step_00000003"]


def test_a_skipped_step_changes_neither_the_weights_nor_the_schedule(finished, settings, tmp_path, fault):
    save = tmp_path / "run"
    fault(4, math.inf, not_a_number)
    how = {"on_nan": "skip", "save_interval": 1, "keep_last": 0, "log_interval": 1}
    manifest = train(settings(save, **how))
    assert manifest["skipped_steps"] == 1
    assert manifest["counts"] == finished[1]["counts"]
    assert same_weights(save / "step_00000005", save / "step_00000004")
    assert not same_weights(save / "step_00000006", save / "step_00000005")
    log = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines() if "lr" in line]
    assert [line["loss"] is None for line in log] == [False] * 4 + [True] + [False] * 3
    # the sixth step has the learning rate that the skipped fifth step had
    assert log[5]["lr"] == log[4]["lr"] != log[3]["lr"]
    assert [line["skipped"] for line in log] == [0] * 4 + [1] * 4
    while "finished" not in (cut := train(settings(tmp_path / "cut", **how, exit_interval=5))):
        pass
    assert cut["curve"] == manifest["curve"]


def test_a_rollback_loads_the_newest_checkpoints_weights_and_continues_after_the_batch(
    settings, tmp_path, fault
):
    save = tmp_path / "run"
    fault(5, math.inf, not_a_number)  # the sixth step; the newest checkpoint is that of the third
    manifest = train(settings(save, on_nan="rollback", keep_last=0))
    (incident,) = incidents(save)
    assert (incident["action"], incident["samples"]) == ("rollback", [40, 48])
    assert same_weights(save / "step_00000006", save / "step_00000003")
    assert not same_weights(save / "step_00000008", save / "step_00000003")
    assert manifest["counts"] == {"steps": 8, "samples": 64, "tokens": 1024}
    states = [
        json.loads((save / f"step_{step:08d}" / "state.json").read_text())["updates"] for step in (3, 6, 8)
    ]
    assert states == [3, 3, 5]
    while "finished" not in (
        cut := train(settings(tmp_path / "cut", on_nan="rollback", keep_last=0, exit_interval=7))
    ):
        pass
    assert cut["curve"] == manifest["curve"]


def test_a_rollback_without_a_checkpoint_stops(settings, tmp_path, fault):
    fault(2, math.inf, not_a_number)
    with pytest.raises(Failure, match=r"step 3: .*training has diverged"):
        train(settings(tmp_path / "run", on_nan="rollback"))
    assert incidents(tmp_path / "run")[0]["action"] == "stop"


def test_a_run_whose_first_step_fails_has_nothing_to_save(settings, tmp_path, fault):
    fault(0, math.inf, not_a_number)
    with pytest.raises(Failure, match=r"step 1: .*start again with a lower --lr"):
        train(settings(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("step_*"))


def test_ten_failed_steps_in_a_row_end_the_run(settings, tmp_path, monkeypatch):
    compute = loop.Trainer.compute
    monkeypatch.setattr(
        loop.Trainer, "compute", lambda trainer, batch: (not_a_number(None), compute(trainer, batch)[1])
    )
    with pytest.raises(Failure, match=r"step 10: .*training has diverged"):
        train(settings(tmp_path / "run", on_nan="skip", train_iters=20))
    assert [i["action"] for i in incidents(tmp_path / "run")] == ["skip"] * 9 + ["stop"]


def test_a_spike_of_the_loss_is_skipped_with_on_spike_skip(finished, settings, tmp_path, fault):
    fault(10, math.inf, jump)
    how = {"train_iters": 14, "split": "100,0,0", "eval_iters": 0}
    assert train(settings(tmp_path / "ignored", **how))["skipped_steps"] == 0
    manifest = train(settings(tmp_path / "skipped", **how, on_spike="skip"))
    assert manifest["skipped_steps"] == 1
    (incident,) = incidents(tmp_path / "skipped")
    assert (incident["what"], incident["step"], incident["action"]) == ("spike", 11, "skip")
    while "finished" not in (
        cut := train(settings(tmp_path / "cut", **how, on_spike="skip", exit_interval=9))
    ):
        pass  # the recent losses that a spike is compared with are saved in the checkpoint
    assert cut["curve"] == manifest["curve"]


def test_a_spike_is_far_above_the_median_of_recent_steps():
    config = AnomalyConfig(on_spike="stop", spike_factor=2.0)
    recent = [[loss, 1.0] for loss in (3.0, 9.0, 3.1, 2.9, 3.0, 3.0, 3.0, 3.0)]
    assert find_incident(StepResult(5.9, 1.0), recent, config) is None
    assert find_incident(StepResult(6.1, 1.0), recent, config) == "spike"
    assert find_incident(StepResult(3.0, 2.1), recent, config) == "spike"
    assert find_incident(StepResult(6.1, 1.0), recent[:7], config) is None  # too few recent steps
    assert find_incident(StepResult(math.inf, 1.0), [], config) == "nan"
    assert find_incident(StepResult(6.1, 1.0), recent, AnomalyConfig()) is None


def test_results_that_differ_by_the_order_of_sums_are_the_same():
    assert StepResult(2.0, 1.0).same(StepResult(2.0001, 1.0))
    assert StepResult(0.0, 1.0).same(StepResult(0.0, 1.0))
    assert not StepResult(2.0, 1.0).same(StepResult(2.001, 1.0))
    assert StepResult(math.nan, 1.0).same(StepResult(math.inf, 1.0))
    assert not StepResult(math.nan, 1.0).same(StepResult(2.0, 1.0))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_names_the_settings_that_save_most(settings, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(loop, "forward_backward", lambda *_, **__: fail())
    with pytest.raises(
        UserError,
        match=(
            r"out of memory; this run holds about [\d.]+ MiB \(weights .*, gradients .*, moments .*,"
            r" activations .*--recompute-granularity full .*--micro-batch-size 1"
        ),
    ):
        train(settings(tmp_path / "run"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_model_larger_than_free_memory_is_refused_before_it_is_built(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "free_memory", lambda: 2**10)
    with pytest.raises(
        UserError, match=r"out of memory; this run holds about .*; this machine has 0.0 MiB free"
    ):
        train(settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_free_memory_is_at_most_the_memory_of_the_machine():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**28 < free_memory() <= whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_interval": 0}, "guard.exit_interval = 0 must be at least 1"),
        ({"exit_duration_in_mins": 0.0}, "guard.exit_duration_in_mins = 0.0 must be above 0"),
        ({"spike_factor": 1.0}, "guard.spike_factor = 1.0 must be above 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        AnomalyConfig(**settings)
