"""The command line: help, mistakes, exit codes, JSON, flags of Megatron-LM."""

import dataclasses
import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mt import cli
from mt.commands import flags, table
from mt.commands.table import COMMANDS, RAW
from mt.core.config import UserError, option


def mt(*arguments, **how):
    return subprocess.run(
        [sys.executable, "-m", "mt", *map(str, arguments)], capture_output=True, text=True, **how
    )


def test_help_lists_every_command_and_imports_neither_torch_nor_numpy():
    code = (
        "import sys, mt.cli\ntry: mt.cli.main(['--help'])\nexcept SystemExit: pass\nprint(sorted({'torch',"
        " 'numpy', 'rich', 'pyarrow', 'yaml', 'orjson'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert output.endswith("[]\n")
    assert all(f"│ {' '.join(path)} " in output for path in COMMANDS)


def test_help_marks_required_settings_and_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", "clean", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "directory for the result (required)" in shown
    assert "(default 64000000)" in shown  # --shard-bytes
    assert "MISSING" not in shown


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in RAW], ids=" ".join)
def test_every_command_of_the_table_exists_and_every_setting_has_help(path, capsys):
    function, cls = table.load(path)
    assert function.__doc__
    from mt.core.config import settings

    leaves = list(settings(cls))
    assert len({s.path[-1] for s in leaves}) == len(leaves), (
        "leaf names must be unique: flags carry no prefix"
    )
    assert all(s.help for s in leaves), [s.name for s in leaves if not s.help]
    outline = table.outline_of(path)
    assert outline is not None, "no flag of the command can be told without its libraries"
    assert list(map(repr, settings(outline))) == list(map(repr, leaves)), "types and defaults too"
    assert [hasattr(outline, n) for n in ("PRESETS", "read_hf")] == [
        hasattr(cls, n) for n in ("PRESETS", "read_hf")
    ]
    assert flags.positional(outline) == flags.positional(cls)
    with pytest.raises(SystemExit) as end:
        cli.main([*path, "--help"])
    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dta"], "mt dta: no such command; did you mean data?"),
        (["clean"], "mt clean: no such command; did you mean `mt data clean`?"),
        (["--frobnicate"], "mt --frobnicate: no such flag; `mt --help` lists them"),
        (["data", "clena"], "did you mean clean?"),
        (["data", "clean", "--imput", "x"], "unknown flag --imput; did you mean --input?"),
        (["data", "clean", "--input", "x"], "output must be given (--output)"),
        (
            ["data", "clean", "--input", "/nowhere.jsonl", "--output", "/tmp/never"],
            "/nowhere.jsonl: no such file",
        ),
        (["data", "clean", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (
            ["data", "clean", "--preset", "fineweeb", "--input", "x", "--output", "y"],
            "preset 'fineweeb' is not known",
        ),
        (["run"], "pipeline must be given"),
        (["run", "a.yaml", "b.yaml"], "unexpected argument b.yaml"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(arguments, message):
    ended = mt(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.strip().split("\n")
    assert lines[0].startswith("mt: ")
    assert all(line.startswith("    ") for line in lines[1:]), "one message, a line for each mistake"
    assert ended.stdout == ""


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("x", "a setting")


def exit_code(monkeypatch, outcome):
    def command(config: Config) -> dict:
        """A command."""
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(table, "load", lambda path: (command, Config))
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--json"])
    return end.value.code


def test_exit_codes_tell_success_rejects_mistakes_and_interrupts(monkeypatch, capsys):
    assert exit_code(monkeypatch, {"counts": {"documents": 3}}) == 0
    assert json.loads(capsys.readouterr().out) == {"counts": {"documents": 3}}
    assert exit_code(monkeypatch, {"counts": {"rejected": 1}}) == 3
    capsys.readouterr()
    assert exit_code(monkeypatch, UserError("bad")) == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": {"message": "bad", "exit_code": 2, "messages": ["bad"]}}
    assert said.err == "mt: bad\n"
    assert exit_code(monkeypatch, KeyboardInterrupt()) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EISDIR])
def test_errors_of_the_operating_system_give_one_line(monkeypatch, capsys, number):
    assert exit_code(monkeypatch, OSError(number, os.strerror(number), "/some/file")) == 2
    assert capsys.readouterr().err.startswith("mt: /some/file: ")


def test_an_error_in_mt_shows_its_traceback_and_exits_1(monkeypatch, capsys):
    assert exit_code(monkeypatch, OSError(errno.EBADF, "Bad file descriptor")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_every_mistake_of_a_command_line_is_told_at_once():
    ended = mt(
        "data", "clean", "--learning", "3", "--epochs", "--format", "csv", "--workers", "--shard-bytes=x"
    )
    assert ended.returncode == 2
    assert [line.strip() for line in ended.stderr.splitlines()] == [
        "mt: mt data clean: unknown flag --learning; `--help WORD` searches the settings",
        "mt data clean: unknown flag --epochs; `--help WORD` searches the settings",
        "mt data clean: --workers needs a value (N); a value that begins with - is written --workers=VALUE",
        "command line: format = 'csv': must be one of jsonl, jsonl.zst, parquet",
        "command line: shard_bytes = 'x': must be a whole number",
        *(line.strip() for line in ended.stderr.splitlines()[-2:]),
    ]
    assert "input must be given (--input)" in ended.stderr
    assert "output must be given (--output)" in ended.stderr


def test_a_failure_with_json_is_an_object_on_standard_output_too():
    ended = mt("data", "clean", "--input", "x", "--frmat", "a", "--json")
    error = json.loads(ended.stdout)["error"]
    assert error["exit_code"] == ended.returncode == 2
    assert (
        error["messages"][0]
        == error["message"]
        == "mt data clean: unknown flag --frmat; did you mean --format?"
    )
    assert ended.stderr.startswith(f"mt: {error['message']}\n")


def test_help_of_a_command_in_three_spellings_is_the_same():
    pages = [mt(*words.split()).stdout for words in ("data clean --help", "help data clean", "data clean -h")]
    assert pages[0] == pages[1] == pages[2]
    assert pages[0].startswith("Usage: mt data clean --input PATH ... --output PATH")
    found = mt("help", "data", "clean", "parquet").stdout
    assert "--format" in found
    assert "--workers" not in found


def test_quiet_prints_the_summary_alone_and_verbose_the_origin_of_every_setting(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "some words"}\n{"text": 3}\n')
    flags = ["--input", tmp_path / "in.jsonl", "--text-key", "body", "--on-error", "skip", "--workers", "1"]
    loud = mt("data", "clean", "--output", tmp_path / "a", *flags, "--verbose")
    quiet = mt("data", "clean", "--output", tmp_path / "b", *flags, "--quiet")
    assert loud.returncode == quiet.returncode == 3
    assert "mt: workers = '1' (command line)" in loud.stderr
    assert "mt: text_key = 'body' (command line)" in loud.stderr
    assert quiet.stderr == ""
    assert "counts.rejected" in quiet.stdout
    assert mt("data", "clean", "--quiet").stderr.startswith("mt: input must be given")


def test_errors_are_red_with_force_color_and_plain_with_no_color():
    def said(*flags, **variables):
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        return mt("dta", *flags, env=environment | variables).stderr

    assert said().startswith("mt: ")
    assert said(FORCE_COLOR="1").startswith("\033[31mmt: ")
    assert said(FORCE_COLOR="1", NO_COLOR="1").startswith("mt: ")
    assert said("--no-color", FORCE_COLOR="1").startswith("mt: ")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_example_of_the_help_is_a_command_line_that_the_command_takes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mt.commands.flags.check_inputs", lambda config: None)  # nothing is there
    (tmp_path / "run.yaml").write_text("data_path: [a]\ntrain_iters: 1\nsave: out\n")
    (tmp_path / "examples").symlink_to(Path(cli.__file__).parent / "examples")
    assert COMMANDS[path].examples
    for example in COMMANDS[path].examples:
        words = shlex.split(re.split(" [<>] ", example)[0])
        assert tuple(words[1 : len(path) + 1]) == path
        if path not in RAW:  # torchrun's parser
            cli._context(path, words[len(path) + 1 :])
