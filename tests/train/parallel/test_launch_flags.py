"""Every flag of torchrun's parser with wrong values: one line, before anything starts."""

import os
import signal

import pytest

from mt.core.config import UserError
from mt.train.parallel import launcher
from mt.train.parallel.launch_flags import check_environment, check_values

run = pytest.importorskip("torch.distributed.run")
DIGITS = "9" * 5000
NUMBERS = ["a", "-1", "1e30", "nan", DIGITS, "", "1.5", "\u0662"]
MODES = ["a", "9", "x:y", "0:9", "7:1", "1:1:1", DIGITS]
# flag -> wrong values; None: every text has a meaning
WRONG = {
    "--nnodes": ["a", "0", "-1", "2:1", "1:2:3", DIGITS, "1:" + DIGITS, "99999999", ""],
    "--nproc-per-node": ["a", "0", "-1", DIGITS, "99999999", ""],
    "--rdzv-backend": ["nothing", "", "C10D", "mt-loopback"],
    "--rdzv-endpoint": ["\0"],
    "--rdzv-id": ["\0"],
    "--rdzv-conf": [
        "a",
        "a=",
        "=b",
        "a=b,c",
        "timeout=x",
        "timeout=nan",
        "join_timeout=-1",
        "timeout=" + DIGITS,
    ],
    "--standalone": None,
    "--max-restarts": NUMBERS[:-1],
    "--monitor-interval": ["a", "-1", "0", "nan", "inf", "1e30", DIGITS, ""],
    "--start-method": ["thread", ""],
    "--event-log-handler": ["nothing", ""],
    "--role": ["\0"],
    "--module": None,
    "--no-python": None,
    "--run-path": None,
    "--log-dir": ["{file}", "{file}/inside", "/proc/none", "\0", "x" * 5000],
    "--redirects": MODES,
    "--tee": MODES,
    "--local-ranks-filter": ["a", "2", "-1", "0,", "0,a", DIGITS],
    "--duplicate-stdout-filters": None,
    "--duplicate-stderr-filters": None,
    "--node-rank": [*NUMBERS[:-1], "1"],
    "--master-addr": ["\0"],
    "--master-port": [*NUMBERS[:-1], "0", "65536"],
    "--local-addr": ["\0"],
    "--logs-specs": ["nothing"],
    "--numa-binding": ["nothing", ""],
    "--signals-to-handle": ["FOO", "SIGFOO", "SIGKILL", "SIGSTOP", "", "SIGTERM,", "15", "Signals", DIGITS],
    "--shutdown-timeout": NUMBERS[:-1],
    "--virtual-local-rank": None,
}


def flags_of_torchrun():
    return [action for action in run.get_args_parser()._actions if action.option_strings]


def one_line(error):
    text = str(error.value)
    assert text.startswith("mt launch: "), text
    assert text.isprintable()
    assert len(text) < 900


def test_every_flag_of_torchrun_is_in_the_table():
    names = {next(o for o in a.option_strings if o.startswith("--")) for a in flags_of_torchrun()}
    assert names - {"--help"} == WRONG.keys(), "say here which values of a new flag are wrong"


@pytest.mark.parametrize(("flag", "value"), [(f, v) for f, values in WRONG.items() for v in values or ()])
def test_a_wrong_value_of_a_flag_is_one_line(flag, value, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        launcher._parse(["--nproc-per-node", "2", f"{flag}={value.format(file=tmp_path / 'file')}", "train"])
    one_line(error)


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_variable_is_one_line(flag, monkeypatch):
    name = f"PET_{flag.strip('-').replace('-', '_').upper()}"
    if flag in ("--logs-specs", "--numa-binding"):
        pytest.skip("torchrun reads no variable")
    values = [v for v in WRONG[flag] or () if v and "\0" not in v and "{" not in v]
    if flag in ("--standalone", "--module", "--no-python", "--run-path", "--virtual-local-rank"):
        values = ["x", "-1", DIGITS, "2"]
    for value in values:
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError) as error:
            launcher._parse(["train"])
        one_line(error)


@pytest.mark.parametrize(
    "flags",
    [
        ["--redirects", "3", "--tee", "0:3,1:1", "--local-ranks-filter", "0,1"],
        ["--signals-to-handle", "SIGTERM,SIGUSR2", "--rdzv-conf", "timeout=30,join_timeout=5"],
        ["--event-log-handler", "console", "--monitor-interval", "0.5", "--start-method", "fork"],
        ["--log-dir", "{folder}/new", "--shutdown-timeout", "0", "--master-port", "29501"],
    ],
)  # fmt: skip
def test_right_values_pass(flags, tmp_path):
    flags = [flag.format(folder=tmp_path) for flag in flags]
    check_values(run.get_args_parser().parse_args(["--nproc-per-node", "2", *flags, "train"]))
    check_environment()


def test_programs_that_are_not_there_are_named_before_a_restart(tmp_path):
    for flags in (["--run-path", str(tmp_path / "a.py")], ["--no-python", "no-such-program"],
                  ["--no-python", "-m", "mt"]):  # fmt: skip
        with pytest.raises(UserError) as error:
            launcher._parse(flags)
        one_line(error)


def test_the_variable_for_restarts_is_used(monkeypatch):
    assert launcher._parse(["train"]).max_restarts == 3
    monkeypatch.setenv("PET_MAX_RESTARTS", "1")
    assert launcher._parse(["train"]).max_restarts == 1


def test_every_signal_has_a_name():
    assert [launcher._signal_name(n) for n in (9, 34 + 3)] == ["SIGKILL", "signal 37"]
    assert all(launcher._signal_name(n) for n in range(1, int(signal.SIGRTMAX) + 1))


@pytest.mark.parametrize("raised", [ValueError("a\nb"), TypeError(), KeyError("x"), AssertionError("no")])
def test_what_torchrun_raises_for_a_flag_is_one_line(raised, monkeypatch):
    def fail(parsed):
        raise raised

    monkeypatch.setattr(run, "run", fail)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError) as error:
        launcher.launch(["train"])
    one_line(error)
