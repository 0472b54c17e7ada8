"""`mt completion` in real shells: what each of them offers after the beginning of a command line."""

import contextlib
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mt.commands.completion import CompletionConfig, completion

# the beginning of a command line -> what completes it, alone
LINES = {
    "mt da": "data",
    "mt data cle": "clean",
    "mt data clean --inp": "--input",
    "mt data clean --format par": "parquet",
    "mt data clean --preset open": "openwebtext",
    "mt data clean --input other.txt read": "readable.txt",
    "mt data verify read": "readable.txt",
    "mt data clean --input a b --outp": "--output",
    "mt data clean --no-rej": "--no-rejects",
    "mt --js": "--json",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "readable.txt").write_text("")
    for shell in ("bash", "zsh", "fish"):
        text = completion(CompletionConfig(shell=shell))["text"]
        (folder / f"mt.{shell}").write_text(text, encoding="utf-8")
    return folder


def need(shell: str) -> str:
    return shutil.which(shell) or pytest.skip(f"{shell} is not installed")


def output(command: list[str], folder: Path) -> list[str]:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert not ended.stderr, ended.stderr
    return ended.stdout.splitlines()


def test_bash_completes_commands_flags_choices_presets_and_files(scripts):
    ask = 'source ./mt.bash; t() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mt; echo "${COMPREPLY[*]}"; };'
    program = ask + ";".join(f"t {line}" for line in LINES)
    assert output([need("bash"), "--norc", "-c", program], scripts) == list(LINES.values())
    # bash takes --format=par as three words
    assert output(["bash", "-c", f"{ask} t mt data clean --format = par"], scripts) == ["parquet"]


def test_fish_completes_commands_flags_choices_presets_and_files(scripts):
    for line, found in LINES.items():
        program = f"source ./mt.fish; complete -C '{line}'"
        assert [text.split("\t")[0] for text in output([need("fish"), "-c", program], scripts)] == [found]


def test_zsh_completes_commands_flags_choices_presets_and_files(scripts):
    zsh = need("zsh")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(scripts)
        os.execve(zsh, [zsh, "-f", "-i"], os.environ | {"TERM": "dumb", "HOME": str(scripts)})

    def typed(text: str, until: str) -> str:
        """What the terminal shows after a text is typed, up to `until`."""
        os.write(terminal, text.encode())
        shown = ""
        deadline = time.monotonic() + 60
        while until not in shown and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
        assert until in shown, shown
        return shown

    try:
        typed(
            "unsetopt beep; PS1=; autoload -U compinit; compinit -D -u; source ./mt.zsh; echo rea''dy\n",
            "ready",
        )
        for line, found in LINES.items():
            typed(f"{line}\t", line.rsplit(" ", 1)[0])
            # the line runs as arguments of a function that prints the last one
            typed('\x01print_last() { echo "<${@[-1]}>" }; print_last \n', f"<{found}>")
    finally:
        os.close(terminal)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, 9)
            os.waitpid(process, 0)
