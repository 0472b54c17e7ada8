"""The command line that a manifest tells, parsed again; the machine against /proc and the C library."""

import os
import subprocess

import pytest

from mt import cli
from mt.core import provenance
from mt.core.config import configuration, option
from mt.dataprep.decontaminate import DecontaminateConfig
from mt.dataprep.filters import clean as clean_module
from mt.dataprep.filters.clean import CleanConfig


@configuration()
class Example:
    output: str = option(help="where", role="output")
    names: tuple[str, ...] = option((), "several")
    count: int = option(3, "a number")
    rate: float | None = option(0.5, "a number or none")
    keep: bool = option(True, "on by default")
    fast: bool = option(False, "off by default")
    scaling: dict | None = option(None, "a mapping")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"names": ("a b", "c")}, ["--names", "a b", "c"]),
        ({"count": -1}, ["--count=-1"]),
        ({"rate": None}, ["--rate", "none"]),
        ({"keep": False, "fast": True}, ["--no-keep", "--fast"]),
        ({"scaling": {"type": "yarn", "on": True}}, ["--scaling", "type=yarn,on=true"]),
    ],
)
def test_settings_that_differ_from_their_defaults_are_flags(given, words):
    found = provenance.command_line("data clean", Example(output="out", **given))
    assert found == ["mt", "data", "clean", "--output", "out", *words]


def test_the_words_make_the_same_configuration_again(monkeypatch, tmp_path):
    made = []

    def clean(config: CleanConfig) -> dict:
        made.append(config)
        return {}

    monkeypatch.setattr(clean_module, "clean", clean)
    config = CleanConfig(
        input=("a b.jsonl", "-"), output=str(tmp_path), rules=("length min_chars=3", "whitespace"), workers=1
    )
    with pytest.raises(SystemExit) as end:
        cli.main(provenance.command_line("data clean", config)[1:])
    assert end.value.code == 0
    assert made == [config]


def test_passwords_in_urls_are_hidden_and_a_long_command_is_cut():
    config = DecontaminateConfig(
        input=("s3://key:secret@host/a",), output="out", evaluation=("redis://:pw@host", "http://a/b@c")
    )
    words = provenance.command_line("data decontaminate", config)
    assert "secret" not in " ".join(words)
    assert {"s3://***@host/a", "redis://***@host", "http://a/b@c"} <= set(words)
    many = Example(output="out", names=tuple(map(str, range(5000))))
    words = provenance.command_line("x", many)
    assert (len(words), words[-1]) == (provenance.MOST_WORDS + 1, "...")


def test_a_path_that_is_not_utf_8_can_be_written():
    words = provenance.command_line("x", Example(output=os.fsdecode(b"\xff/out")))
    assert "\\udcff/out" in words
    " ".join(words).encode()


def test_the_machine_is_as_the_system_tells():
    found = provenance.machine()
    without = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}  # which nproc obeys
    assert found["processors"] == int(subprocess.check_output(["nproc"], text=True, env=without))
    with open("/proc/meminfo") as file:
        kilobytes = int(next(line for line in file if line.startswith("MemTotal")).split()[1])
    assert found["memory_bytes"] == kilobytes * 1024
    assert found["system"].split()[1] == subprocess.check_output(["uname", "-r"], text=True).strip()


def test_a_removed_directory_has_no_name(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert provenance.directory() == str(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert provenance.directory() == ""
