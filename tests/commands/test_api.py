"""`mt.run`: the summaries and the messages of the command line."""

import json
import subprocess
import sys

import pytest

import mt
from mt.commands import table
from mt.commands.api import IN_A_SHELL, run


@pytest.fixture
def documents(tmp_path):
    mt.write_documents([f"text {n} of a few words" for n in range(20)], tmp_path / "in.jsonl")
    return tmp_path / "in.jsonl"


def test_the_summary_is_that_of_the_command_line(documents, tmp_path, capfd):
    how = {"rules": ["whitespace", "length min_chars=20"], "workers": 1}
    found = run("data clean", input=documents, output=tmp_path / "a", **how)
    assert capfd.readouterr() == ("", "")
    flags = ["--input", documents, "--output", tmp_path / "b", "--workers", "1", "--rules", *how["rules"]]
    command = [sys.executable, "-m", "mt", "data", "clean", *map(str, flags), "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    keys = {"counts", "edited", "key", "settings", "outputs", "verb"}
    for summary in (found, printed):
        for output in summary["outputs"]:
            output.pop("mtime_ns")
    assert {key: found[key] for key in keys} == {key: printed[key] for key in keys}
    assert found.keys() == printed.keys()


def test_files_presets_and_groups_of_settings_are_taken(documents, tmp_path):
    (tmp_path / "a.yaml").write_text("preset: gopher\nworkers: 1\ntext_key: text\n")
    found = run(
        "data clean", config=tmp_path / "a.yaml", preset="prose", input=[documents], output=tmp_path / "out",
        **{"rules": ["whitespace"]},
    )  # fmt: skip
    assert found["settings"]["rules"] == ["whitespace"]


def test_notes_are_warnings_and_with_verbose_they_are_printed(documents, tmp_path, capfd):
    (tmp_path / "other.exe").write_text("")
    how = {"input": tmp_path, "rules": ["whitespace"], "workers": 1}
    out = tmp_path.parent / f"{tmp_path.name}-out"
    with pytest.warns(UserWarning, match="not read: 1 file"):
        run("data clean", **how, output=out)
    assert capfd.readouterr() == ("", "")
    run("data clean", **how, output=out, verbose=True)
    assert "mt: not read: 1 file" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "how", "message"),
    [
        ("data cleen", {}, "'data cleen' is not a command of mt; did you mean data clean"),
        ("launch", {}, "run it in a shell"),
        ("data clean", {}, r"input must be given \(--input\)"),
        ("data clean", {"inptu": "x"}, r"mt.run\('data clean'\): unknown setting inptu; did you mean input"),
        (
            "data clean",
            {"input": "x", "output": 3, "workers": "two"},
            r"workers = 'two': must be a whole number",
        ),
        ("data clean", {"input": "x", "output": "y", "preset": "proze"}, "did you mean prose"),
    ],
)
def test_mistakes_have_the_messages_of_the_command_line(command, how, message):
    with pytest.raises(mt.UserError, match=message):
        run(command, **how)


def test_commands_that_stay_in_a_shell_exist():
    assert set(table.COMMANDS) >= IN_A_SHELL
