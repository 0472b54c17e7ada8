"""Finetuning: learning, a killed and resumed run, two ranks compared with one, refused settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mt.core.config import UserError, build
from mt.eval.lm import open_model
from mt.eval.tasks.finetune import FinetuneConfig
from mt.eval.tasks.mnli import mnli
from mt.eval.tasks.race import RaceConfig, race
from mt.tests.eval.labelled_data import write_mnli, write_qqp, write_race
from mt.train.checkpoint.open import open_checkpoint


def pairs(tmp_path, bert, **more):
    given = {
        "pretrained_checkpoint": bert,
        "train_data": [write_mnli(tmp_path / "train.tsv", 60, 1)],
        "valid_data": [write_mnli(tmp_path / "valid.tsv", 30, 2)],
        "output": str(tmp_path / "out"),
        "epochs": 3,
        "lr": 3e-3,
        "log_interval": 1,
        **more,
    }
    return build(FinetuneConfig, ("test", given))


def test_finetuning_learns_and_its_checkpoint_gives_the_same_scores_again(tmp_path, bert):
    config = pairs(tmp_path, bert, epochs=6, hidden_dropout=0.0, log_interval=7)
    run = mnli(config)
    assert run["scores"]["accuracy"] > 0.9
    assert run["scores"]["accuracy_stderr"] is not None
    assert run["training"]["steps"] == 6 * 8
    assert run["examples"] == 30
    assert [line["epoch"] for line in run["epochs"]] == [1, 2, 3, 4, 5]
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line and "lr" in line] == [*range(7, 48, 7), 48]
    again = mnli(
        build(
            FinetuneConfig,
            (
                "test",
                {"load": config.output, "valid_data": config.valid_data, "output": str(tmp_path / "again")},
            ),
        )
    )
    assert again["scores"] == run["scores"]
    lines = [json.loads(line) for line in (tmp_path / "again" / "predictions.jsonl").read_text().splitlines()]
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == (
        tmp_path / "again" / "predictions.jsonl"
    ).read_bytes()
    assert sum(line["correct"] for line in lines) / 30 == pytest.approx(run["scores"]["accuracy"])
    assert -sum(line["logprobs"][line["label"]] for line in lines) / 30 == pytest.approx(
        run["scores"]["loss"]
    )
    assert mnli(config) == run, "a finished run is up to date"
    with pytest.raises(UserError, match="was finetuned for mnli, not race"):
        race(
            build(
                RaceConfig,
                ("test", {"load": config.output, "valid_data": [write_race(tmp_path / "race", 2, 0)]}),
            )
        )
    test = mnli(
        build(
            FinetuneConfig,
            (
                "test",
                {"load": config.output, "valid_data": [write_mnli(tmp_path / "test.tsv", 5, 3, test=True)]},
            ),
        )
    )
    assert (test["counts"]["examples"], test["examples"], test["scores"]) == (
        5,
        0,
        {},
    ), "a test set has no labels, so no score"


def run_mt(*arguments, processes=1, wait=True):
    """Runs `mt ...` in processes, as a user does."""
    start = [
        sys.executable,
        "-m",
        *(
            ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
            if processes > 1
            else []
        ),
        "mt",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if wait:
        return subprocess.run(
            [*start, *arguments], capture_output=True, text=True, env=environment, timeout=200
        )
    return subprocess.Popen(
        [*start, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )


def flags(tmp_path, bert, output, *more):
    return (
        "eval",
        "race",
        "--pretrained-checkpoint",
        bert,
        "--train-data",
        str(tmp_path / "train"),
        "--valid-data",
        str(tmp_path / "dev"),
        "--output",
        output,
        "--epochs",
        "3",
        "--lr",
        "1e-3",
        "--log-interval",
        "1",
        *more,
    )


def test_a_killed_run_resumes_and_ends_with_the_same_bytes(tmp_path, bert):
    write_race(tmp_path / "train", 10, 1), write_race(tmp_path / "dev", 5, 2)
    out = tmp_path / "out"
    config = lambda: build(
        RaceConfig,
        (
            "test",
            {
                "pretrained_checkpoint": bert,
                "train_data": [str(tmp_path / "train")],
                "valid_data": [str(tmp_path / "dev")],
                "output": str(out),
                "epochs": 3,
                "lr": 1e-3,
                "log_interval": 1,
                "save_interval": 2,
            },
        ),
    )
    race(config())
    predictions = (out / "predictions.jsonl").read_text().splitlines()
    assert {len(json.loads(line)["logprobs"]) for line in predictions} == {4}, "one for each option"
    kept = {
        p.relative_to(out): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    }
    shutil.rmtree(out)
    process = run_mt(*flags(tmp_path, bert, str(out), "--save-interval", "2"), wait=False)
    while process.poll() is None and not list(out.glob("step_*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists(), "it was killed before its end"
    race(config())
    assert {
        p.relative_to(out): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    } == kept


TP2 = {
    "tensor_model_parallel_size": 2,
    "attention_dropout": 0.0,
}  # ranks have their own attention dropout masks


LAYOUTS = {"DP2": {}, "TP2": TP2, "TP2, bfloat16": TP2 | {"bf16": True}}


@pytest.mark.parametrize("layout", ["DP2", "TP2", pytest.param("TP2, bfloat16", marks=pytest.mark.slow)])
def test_two_ranks_finetune_and_score_as_one_does(tmp_path, bert, pool, layout):
    write_race(tmp_path / "train", 9, 1), write_race(tmp_path / "dev", 40, 2)
    common = {
        "pretrained_checkpoint": bert,
        "train_data": [str(tmp_path / "train")],
        "valid_data": [str(tmp_path / "dev")],
        "epochs": 1,
        "lr": 1e-3,
        "log_interval": 1,
        "hidden_dropout": 0.1,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        **LAYOUTS[layout],
    }
    configs = [
        build(
            RaceConfig,
            (
                "test",
                {
                    **common,
                    "output": str(tmp_path / f"out{n}"),
                    **({} if n == 2 else {"tensor_model_parallel_size": 1}),
                },
            ),
        )
        for n in (1, 2)
    ]
    (one,), (two, nothing) = (pool.run(race, n, config) for n, config in enumerate(configs, 1))
    assert nothing is None
    logs = [
        [json.loads(line) for line in (tmp_path / f"out{n}" / "log.jsonl").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert len(logs[0]) == 5
    tolerance = 1e-2 if configs[0].bf16 else 2e-4
    for first, second in zip(*logs, strict=True):
        assert second == pytest.approx(first, rel=tolerance)
    assert two["training"] == pytest.approx(one["training"], rel=tolerance)
    # the checkpoint of two ranks, evaluated on one rank and on two
    evaluate = {"load": str(tmp_path / "out2"), "valid_data": [str(tmp_path / "dev")]}
    runs = [
        pool.run(
            race,
            n,
            build(
                RaceConfig,
                (
                    "test",
                    {**evaluate, "output": str(tmp_path / f"scores{n}"), "tensor_model_parallel_size": size},
                ),
            ),
        )[0]
        for n, size in ((1, 1), (2, configs[1].tensor_model_parallel_size))
    ]
    assert runs[1]["scores"] == pytest.approx(runs[0]["scores"], rel=1e-5, abs=1e-8)
    assert two["scores"] == pytest.approx(runs[0]["scores"], rel=1e-5, abs=1e-8)


def test_settings_that_do_not_fit_are_named(tmp_path, bert):
    valid = write_mnli(tmp_path / "v.tsv", 3, 0)
    for given, message in (
        ({}, "what is to be evaluated"),
        ({"train_data": [valid], "output": "o"}, "give --pretrained-checkpoint"),
        ({"train_data": [valid], "pretrained_checkpoint": bert}, "give --output DIR"),
        (
            {"train_data": [valid], "pretrained_checkpoint": bert, "output": "o", "load": bert},
            "leave --load out",
        ),
        ({"load": bert, "epochs": -1}, "epochs = -1 must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            build(FinetuneConfig, ("test", {"valid_data": [valid], **given}))
    with pytest.raises(
        UserError, match=r"is no finetuned classifier; finetune it with --pretrained-checkpoint"
    ):
        mnli(build(FinetuneConfig, ("test", {"load": bert, "valid_data": [valid]})))
    with pytest.raises(UserError, match=r"seq_length = 999 must be at most the 48 positions"):
        mnli(pairs(tmp_path, bert, seq_length=999))
    with pytest.raises(
        UserError,
        match=(
            r"global_batch_size = 12 is not a multiple of micro_batch_size = 8 x 1 data-parallel process = 8"
        ),
    ):
        mnli(pairs(tmp_path, bert, global_batch_size=12))
    with pytest.raises(UserError, match="has 6 columns; a table of MNLI has 10 or more"):
        mnli(pairs(tmp_path, bert, valid_data=[write_qqp(tmp_path / "q.tsv", [])]))
    unlabelled = write_mnli(tmp_path / "t.tsv", 3, 0, test=True)
    with pytest.raises(UserError, match=r"t\.tsv: has no labels to learn from"):
        mnli(pairs(tmp_path, bert, train_data=[unlabelled]))


def test_a_checkpoint_without_its_tokenizer_is_refused_in_one_line(tmp_path, bert):
    copy = shutil.copytree(bert, tmp_path / "copy")
    for path in copy.glob("step_*/tokenizer/tokenizer.json"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"none of its checkpoints is whole \(step_\d+: .*\); use another run's"
    ):
        mnli(pairs(tmp_path, str(copy)))
    (step,) = copy.glob("step_*")
    with pytest.raises(UserError, match=r"tokenizer/tokenizer\.json is missing; use another checkpoint"):
        open_model(open_checkpoint(step), "trained", 1)
