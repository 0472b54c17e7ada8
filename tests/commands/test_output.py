"""What is printed where: summaries, errors, --json, --quiet."""

import io
import json
import sys

import pytest

from mt.commands.output import Output
from mt.core.terminal import escape_output


def test_general_flags_are_taken_from_anywhere_but_what_follows_launch(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    output, rest = Output.split(["--quiet", "data", "clean", "--json", "--input", "a", "--no-color"])
    assert (output, rest) == (Output(json=True, quiet=True), ["data", "clean", "--input", "a"])
    assert Output.split(["launch", "train", "--json"]) == (Output(), ["launch", "train", "--json"])
    assert Output.split(["retro", "query", "--", "--json"]) == (Output(), ["retro", "query", "--", "--json"])


@pytest.mark.parametrize("quiet", [False, True])
def test_an_error_is_printed_although_standard_error_is_muted(quiet, monkeypatch):
    streams = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with escape_output(quiet=quiet):
        print("progress", file=sys.stderr)
        assert Output(json=True, quiet=quiet).print_error("first\nsecond\x1b", 2) == 2
    out, err = (stream.getvalue() for stream in streams)
    assert json.loads(out) == {
        "error": {"message": "first", "exit_code": 2, "messages": ["first", "second\x1b"]}
    }
    assert "\x1b" not in out
    assert err == ("" if quiet else "progress\n") + "mt: first\n    second\\x1b\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_long_messages_are_broken_into_lines_of_a_terminal_only(is_terminal, monkeypatch):
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", stream)
    command = "`mt data look out/clean --reason too_short`"
    with escape_output():
        print(f"mt: removed 7 of 10 documents; to see some: {command}", file=sys.stderr)
        print(f"a table whose rows are not broken, {'x' * 60}", file=sys.stderr)
        Output().print_error(f"{'word ' * 12}end\nanother mistake, which is {'very ' * 8}long", 2)
    lines = stream.getvalue().splitlines()
    assert (len(lines) > 4) == is_terminal
    assert any(command in line for line in lines)
    assert any(line.endswith("x" * 60) and line.startswith("a table") for line in lines)
    if is_terminal:
        told = [line for line in lines if not line.startswith("a table")]
        assert all(len(line) <= 50 for line in told)
        assert told[0] == "mt: removed 7 of 10 documents; to see some:"
        assert [line[:9] for line in told[2:]] == ["mt: word ", "        w", "    anoth", "        v"]


def test_a_summary_of_a_stream_goes_to_standard_error(capsys):
    Output(json=True).print_summary(("data", "dedup"), {"standard_output": True, "counts": {"n": 1}})
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(said.err) == {"counts": {"n": 1}}
