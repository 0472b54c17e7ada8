"""Jobs of two processes by `mt launch`: killed ranks, ranks that hang, mistakes, signals."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from mt.tests.train.parallel_jobs import run_mt_train
from mt.tests.train.test_parallel_training import losses

SETTINGS = {"log_interval": 1, "eval_iters": 0, "split": "100,0,0"}


@pytest.fixture
def job(tree, tmp_path):
    """start(save, fault, *flags, name=value ...) -> a job's process; stdout and stderr are pipes."""

    def start(save, fault, *flags, **values) -> subprocess.Popen:
        config = tmp_path / f"{save.name}.yaml"
        config.write_text(yaml.safe_dump(tree(save, **SETTINGS, **values)))
        command = [sys.executable, "-m", "mt", "launch", "--nproc-per-node", "2", *flags]
        command += ["-m", "mt.tests.train.faulty"] if fault else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault, "ONCE": str(tmp_path / "once")}
        return subprocess.Popen(
            [*command, "train", "--config", str(config), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return start


@pytest.fixture(scope="module")
def undisturbed(pool, settings, tmp_path_factory):
    save = tmp_path_factory.mktemp("undisturbed") / "run"
    pool.run(run_mt_train, 2, settings(save, **SETTINGS))
    return losses(save)


@pytest.mark.slow  # tests/train/test_loop.py kills one process
def test_a_job_whose_rank_is_killed_during_a_save_resumes_from_the_previous_checkpoint(
    job, undisturbed, tmp_path
):
    save = tmp_path / "run"
    process = job(save, "kill_in_save@0@6")
    out, messages = process.communicate()
    assert process.returncode == 0, messages
    assert "rank 0 was killed by SIGKILL; starting again (1 of 3)" in messages
    assert json.loads(out)["counts"]["steps"] == 8
    assert losses(save) == undisturbed
    # the half-written checkpoint was removed
    assert sorted(p.name for p in save.iterdir() if "step" in p.name) == ["step_00000006", "step_00000008"]


def test_a_users_mistake_is_reported_once_and_not_retried(job, tmp_path):
    process = job(tmp_path / "run", "", micro_batch_size=3)
    _, messages = process.communicate()
    assert process.returncode == 2, messages
    assert messages.count("train.global_batch_size = 8 is not a multiple of") == 1
    assert "starting again" not in messages


@pytest.mark.parametrize("fault", ["sleep", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_with_its_step_and_the_waiting_collective_and_the_job_ends(
    job, tmp_path, fault
):
    process = job(tmp_path / "run", f"{fault}@1@4", "--max-restarts", "0", distributed_timeout_minutes=0.05)
    _, messages = process.communicate(timeout=100)
    assert process.returncode not in (0, 2), messages
    (line,) = (line for line in messages.splitlines() if line.startswith("mt: rank 1 (process"))
    assert (
        "has not come to " in line and "in which rank 0 has waited for" in line
    ) or "has given no sign of life for" in line
    assert "at step 4" in line
    assert fault == "stop" or "mt.train.loop:" in line  # the line from which the sleeping function was called


def test_sigterm_saves_the_step_and_ends(job, tmp_path):
    save = tmp_path / "run"
    process = job(save, "")
    for message in process.stderr:
        if message.startswith("step 2/8"):
            break
    process.terminate()
    _, messages = process.communicate()
    assert process.returncode == 128 + 15, messages
    assert messages.count("stopped by SIGTERM after step") == 1
    assert len(list(save.glob("step_*"))) == 1
