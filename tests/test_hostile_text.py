"""Control characters in names, ids, settings and texts never reach a terminal, whatever prints them."""

import dataclasses
import io
import json
import os
import sys

import pytest

from mt import cli
from mt.commands import table
from mt.core.config import settings
from mt.core.terminal import UNSAFE

# renames the window, colours, goes up a line, rings, turns the reading order; C1's form of ESC [
EVIL = "a\x1b]0;owned\x07\x1b[31m\x1b[1A\r\x9b2J\x08\u202e\u2066b\x7f"
NAMES = [EVIL, os.fsdecode(b"\xff\x1b[2J\xfe"), "x\nmt: forged"]
# they run without any name, or first read a large index of lm-eval
SLOW = {("demo",), ("launch",), ("megatron",), ("doctor",), ("eval", "harness")}
MORE = {("data", "extract"): ["--source=warc"]}  # its default reads this Python's own packages


@pytest.fixture
def run(capfd):
    """run(arguments) -> (exit code, what was printed): fails where a control character was printed."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        said = capfd.readouterr()
        for text in said:
            assert not UNSAFE.search(text), (arguments, text)
            assert not any(line.startswith("mt: forged") for line in text.splitlines()), (arguments, text)
        return end.value.code, said.out + said.err

    return call


@pytest.mark.parametrize("path", [path for path in table.COMMANDS if path not in SLOW], ids=" ".join)
def test_a_hostile_value_of_any_setting_is_shown_escaped(path, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile_line = EVIL.encode() + b"\n"  # for the commands that read standard input
    leaves = list(settings(table.load(path)[1]))
    needed = [s for s in leaves if s.default is dataclasses.MISSING]
    flags = {s.flag for s in [*needed, *(s for s in leaves if s.role in ("input", "output"))]}
    for name, flag in [*((EVIL, flag) for flag in sorted(flags)), *((name, None) for name in NAMES)]:
        given = [f"{s.flag}={name}" for s in needed] + ([f"{flag}={name}"] if flag else [])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(hostile_line)))
        code, said = run(*path, *MORE.get(path, []), *given)
        assert code in (1, 2), said
        assert "Traceback" not in said, said
    run(*path, f"--{EVIL}")
    run(*path, f"--config={EVIL}")
    run(*path, EVIL, EVIL, EVIL)


def test_hostile_commands_are_shown_escaped(run):
    for name in NAMES:
        assert run(name)[0] == run("data", name)[0] == 2


def test_hostile_ids_files_and_records_are_shown_escaped_by_every_stage(run, tmp_path, gpt2_files):
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    words = "the river runs near old fields of barley and then it stops under some quick brown hill "
    documents = [{"id": f"{EVIL}{n}", "text": f"{EVIL} {words * 6}{n}"} for n in range(6)]
    documents += [documents[0] | {"id": f"{EVIL}copy"}, {"id": EVIL, "text": "short"}]
    lines = [*map(json.dumps, documents), '{"text": 3, "\x1b": 1}', '{"text": null}', f'{{"text": "{EVIL}']
    source = folder / "in.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    tokenizer = (
        "--tokenizer-type",
        "GPT2BPETokenizer",
        *(f"--{k.replace('_', '-')}={v}" for k, v in gpt2_files.items()),
    )
    skip = ("--on-error", "skip")
    for as_json in ((), ("--json",)):
        out = tmp_path / f"out{len(as_json)}{EVIL}"
        assert run("data", "clean", "--input", source, "--output", out / "clean", *skip, *as_json)[0] == 3
        assert run("data", "clean", "--input", source, "--output", out / "strict", *as_json)[0] == 2
        run("data", "dedup", "--input", source, "--output", out / "dedup", *skip, *as_json)
        run("data", "stats", "--input", source, *skip, *as_json)
        assert run("data", "why", EVIL, "--run-dir", out, *as_json)[0] == 0
        assert run("data", "why", f"{EVIL}copy", "--run-dir", out, *as_json)[0] == 0
        assert run("data", "look", out / "clean", *as_json)[0] == 0
        assert run("data", "look", out / "dedup", "--dropped", *as_json)[0] == 0
        assert run("data", "look", out / "dedup", "--pairs", "--reason", "exact", *as_json)[0] == 0
        run("data", "tokenize", "--input", source, "--output-prefix", out / "p", *tokenizer, *skip, *as_json)
        pair = out / "p_text_document"
        code, said = run("data", "inspect", pair, "--document", 0, *tokenizer, *as_json)
        assert code == 0, said
        assert "owned" in said
        assert run("data", "verify", pair, *tokenizer, *as_json)[0] == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_generated_text_is_escaped_on_a_terminal_and_left_alone_in_a_pipe(monkeypatch, stream, as_json):
    from mt.eval.generation.generate import GenerateConfig

    def generate(config: GenerateConfig) -> dict:
        return {"text": f"{config.prompts[0]} goes on", "counts": {}}

    monkeypatch.setattr("mt.eval.generation.generate.generate", generate)
    monkeypatch.setattr("mt.commands.flags.check_inputs", lambda config: None)  # there is no checkpoint
    monkeypatch.setattr(sys, "stdout", out := stream())
    with pytest.raises(SystemExit):
        cli.main(["generate", "--load=x", f"--prompts={EVIL}", *["--json"] * as_json])
    said = out.getvalue()
    if as_json:
        assert json.loads(said)["text"] == f"{EVIL} goes on"
        assert not UNSAFE.search(said)
    else:
        assert (said == f"{EVIL} goes on\n") == (stream is io.StringIO)
        assert bool(UNSAFE.search(said)) == (stream is io.StringIO)
