"""Jobs of two processes by `mt launch`: killed ranks, ranks that hang, mistakes, signals."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mt.core.config import UserError
from mt.tests.train.parallel.sockets import listening, processes_of
from mt.tests.train.parallel_jobs import run_mt_train
from mt.tests.train.test_parallel_training import losses
from mt.train.parallel import launcher, mesh

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


@pytest.mark.slow  # test_watchdog.py has the lines that are printed
@pytest.mark.parametrize("fault", ["sleep", "stop"])
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


@pytest.mark.slow  # tests/train/test_loop.py sends SIGTERM to one process
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


@pytest.fixture
def waiting(tmp_path):
    """start(*flags) -> the process of a launcher whose ranks have communicated and wait for `stop`."""
    launchers = []

    def start(*flags: str, ranks: int = 2, folder: Path = tmp_path) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "mt",
            "launch",
            "--nproc-per-node",
            "2",
            "--max-restarts",
            "0",
            *flags,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": ""}
        process = subprocess.Popen(
            [*command, "-m", "mt.tests.train.parallel.waiting", str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        launchers.append(process)
        while process.poll() is None and not all((folder / str(rank)).exists() for rank in range(ranks)):
            time.sleep(0.05)
        return process

    yield start
    for process in launchers:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "flags",
    [
        (),
        pytest.param(("--master-port", "{port}"), marks=pytest.mark.slow),
        pytest.param(
            ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:{port}"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_job_on_one_machine_listens_on_the_loopback_address_alone_and_ends_with_its_launcher(
    waiting, tmp_path, free_port, flags
):
    process = waiting(*(flag.format(port=free_port) for flag in flags))
    assert process.poll() is None, process.communicate()[1]
    found = {p: listening(p) for p in processes_of(process.pid)}
    ranks = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert len(found[process.pid]) == 1, "one store"
    assert all(found[rank] for rank in ranks), "gloo listens on every rank"
    assert all(address.is_loopback for places in found.values() for address, _ in places), found
    assert "--master-port" not in flags or found[process.pid][0][1] == free_port
    process.kill()
    process.wait()
    for _ in range(200):
        if not (left := [rank for rank in ranks if _runs(rank)]):
            break
        time.sleep(0.1)
    assert not left


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie: whoever adopts it may not wait for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow  # two agents, each of which imports torch
def test_two_machines_meet_at_a_file_in_a_folder_of_the_user(waiting, tmp_path):
    (tmp_path / "meet").mkdir(mode=0o700)
    flags = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "7")
    flags += (
        "--rdzv-endpoint",
        str(tmp_path / "meet/job"),
        "--rdzv-conf",
        "timeout=60",
        "--local-addr",
        "127.0.0.1",
    )
    first = waiting(*flags, ranks=0)
    second = waiting(*flags)
    (tmp_path / "stop").touch()
    for process in (first, second):
        _, messages = process.communicate()
        assert process.returncode == 0, messages


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nproc-per-node", "0"], "--nproc-per-node 0: a job has at least 1 process on a machine"),
        (["--nproc-per-node", "-1"], "--nproc-per-node -1: a job has at least 1 process on a machine"),
        (["--nproc-per-node", "two"], "--nproc-per-node two: Unsupported nproc_per_node value: two; give a"),
        (["--nnodes", "0"], "--nnodes 0: the number of machines must be at least 1"),
        (["--nnodes", "a"], "--nnodes a: the number of machines must be at least 1"),
        (["--nnodes", "1:2:3"], "--nnodes 1:2:3: the number of machines must be at least 1"),
        (["--nnodes", "3:2"], "--nnodes 3:2: the number of machines must be at least 1"),
        (["--nnodes", "2"], "--nnodes 2: the machines must restart together; give --max-restarts 0"),
        (
            ["--nnodes", "2", "--max-restarts", "0"],
            "--nnodes 2: the machines do not know where to meet; give --rdzv-endpoint: the path of a file",
        ),
        (["--master-port", "0"], "--master-port 0: processes cannot find each other at port 0"),
        (["--master-port", "x"], "argument --master-port/--master_port: invalid int value: 'x'"),
        (["--master-port", "70000"], "--master-port 70000: give a number from 1 to 65,535"),
    ],
)
def test_a_mistake_in_the_flags_of_a_launch_is_one_line(flags, message):
    with pytest.raises(UserError, match=f"^mt launch: {re.escape(message)}") as error:
        launcher._parse([*flags, "train"])
    assert "\n" not in str(error.value)


def test_the_file_of_a_rendezvous_that_others_can_write_is_refused(tmp_path):
    meet = ["--nnodes", "2", "--max-restarts", "0", "--rdzv-endpoint"]
    for mode, name in ((0o777, "open"), (0o1777, "sticky"), (0o775, "group")):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
        with pytest.raises(
            UserError, match=f"others can write .*{name}, and whoever writes there can run code"
        ):
            launcher._parse([*meet, str(tmp_path / name / "job"), "train"])
    with pytest.raises(UserError, match="none is no folder; make it first"):
        launcher._parse([*meet, str(tmp_path / "none/job"), "train"])
    (tmp_path / "own").mkdir(mode=0o755)
    parsed = launcher._parse([*meet, str(tmp_path / "own/job"), "train"])
    assert (parsed.rdzv_backend, parsed.rdzv_conf) == ("c10d", "store_type=file")
    (tmp_path / "own/job").touch()
    (tmp_path / "own/job").chmod(0o666)
    with pytest.raises(UserError, match=r"others can write .*/own/job"):
        launcher._parse([*meet, str(tmp_path / "own/job"), "train"])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2, but RANK is not set; start the processes with `mt launch`"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE = 2, but MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "WORLD_SIZE = 2, but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' must be a number from 1;"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0' must be a number from 1;"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK = '2' must be a number from 0 to 1;"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK = 'x' must be a number from 0 to 1;"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "99999"}, "MASTER_PORT = '99999' must be a number"),
    ],
)
def test_variables_of_a_launcher_that_are_missing_or_wrong_are_one_line(monkeypatch, variables, message):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"), mesh.launch(mesh.ParallelConfig()):
        pass
