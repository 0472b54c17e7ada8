"""Profiles of some steps."""

import gzip
import json

import pytest

from mt.core.config import UserError
from mt.train.loop import train


@pytest.mark.parametrize(
    ("end", "exit_interval", "recorded"),
    [
        pytest.param(2, None, (2, 2), id="some steps"),
        pytest.param(20, 3, (2, 3), id="to the end", marks=pytest.mark.slow),
    ],
)
def test_the_requested_steps_are_recorded_and_the_losses_do_not_change(
    settings, tmp_path, end, exit_interval, recorded
):
    """The run may end before the last requested step."""
    how = {
        "train_iters": 3,
        "eval_iters": 0,
        "split": "100,0,0",
        "log_interval": 1,
        "exit_interval": exit_interval,
    }
    plain = train(settings(tmp_path / "plain", **how))
    found = train(settings(tmp_path / "run", profile=True, profile_step_start=1, profile_step_end=end, **how))
    assert found["curve"] == plain["curve"]
    name = "rank_0_steps_{}_{}".format(*recorded)
    assert sorted(p.name for p in (tmp_path / "run" / "profile").iterdir()) == [
        f"{name}.json.gz",
        f"{name}.txt",
    ]
    with gzip.open(tmp_path / "run" / "profile" / f"{name}.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == recorded[1] - recorded[0] + 1
    assert "aten::addmm" in (tmp_path / "run" / "profile" / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"profile_ranks": [0, 1], "profile_step_start": 1},
            "log.profile_ranks = 1: this run's ranks are 0 to 0; name some of them",
        ),
        ({}, "log.profile_step_start = 10: this run has 8 steps; record earlier ones"),
    ],
)
def test_a_profile_without_steps_or_ranks_is_refused(settings, tmp_path, how, message):
    with pytest.raises(UserError, match=message):
        train(settings(tmp_path / "run", profile=True, **how))
    assert not (tmp_path / "run").exists()
