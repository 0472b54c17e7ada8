"""Flags of configuration classes: every kind of value, lists, switches, mistakes; argparse is the oracle."""

import argparse
from typing import Literal

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.commands import flags, table
from mt.commands.flags import FLAGS, Flag, parameters, read
from mt.core.config import configuration, option


@configuration()
class Config:
    rate: float = option(0.1, "a number")
    steps: int | None = option(None, "a count")
    names: tuple[str, ...] = option((), "texts")
    mode: Literal["one", "two"] = option("one", "a choice")
    fast: bool = option(False, "a switch")
    no_load: bool = option(False, "a switch that says no")
    scaling: dict | None = option(None, "a mapping")


PARAMETERS = parameters(Config)


def values(*arguments: str) -> dict:
    found = read(PARAMETERS, arguments)
    assert not found.mistakes, found.mistakes
    return found.values


def oracle() -> argparse.ArgumentParser:
    """The same flags in argparse."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name in ("--rate", "--steps", "--mode"):
        parser.add_argument(name)
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--fast", action=argparse.BooleanOptionalAction)
    return parser


WORDS = st.one_of(
    st.sampled_from(
        ["--rate", "--steps", "--mode", "--names", "--fast", "--no-fast", "--names=a", "--rate=-1"]
    ),
    st.sampled_from(["a", "0.7", "-3", "-.5", "-", "", "b c", "- d", "x=y"]),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(WORDS, max_size=8))
def test_a_command_line_that_argparse_takes_gives_the_same_values(words):
    parser = oracle()
    parser.error = lambda message: (_ for _ in ()).throw(ValueError(message))
    try:
        expected, rest = parser.parse_known_args(words)
    except ValueError:
        assert read(PARAMETERS, words).mistakes
        return
    found = read(PARAMETERS, words)
    if found.mistakes:
        pytest.fail(f"{words}: {found.mistakes}")
    assert {k[2:]: v for k, v in found.values.items()} == vars(expected)
    assert found.words == rest


def test_a_list_follows_one_flag_as_megatron_writes_it():
    assert values("--names", "0.7", "a", "-0.3", "b", "--rate=2") == {
        "--names": ["0.7", "a", "-0.3", "b"],
        "--rate": "2",
    }


def test_a_switch_is_turned_on_and_off_and_a_negative_one_is_not_negated_twice():
    assert values("--fast", "--no-load") == {"--fast": True, "--no-load": True}
    assert values("--no-fast", "--load") == {"--fast": False, "--no-load": False}
    assert values("--fast=true") == {"--fast": "true"}
    names = {name for p in PARAMETERS for name in (*p.opts, *p.secondary_opts)}
    assert not {name for name in names if name.startswith("--no-no-")}


@pytest.mark.parametrize("path", [path for path in table.COMMANDS if path not in table.RAW], ids=" ".join)
def test_no_flag_of_a_command_has_two_meanings(path):
    found = [p for p in parameters(table.load(path)[1]) if isinstance(p, Flag)]
    names = [name for p in found for name in (*p.opts, *p.secondary_opts)]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
    assert set(FLAGS) < set(names)
    assert not [name for name in names if name.startswith("--no-no-")]


def test_a_mapping_is_read_as_yaml():
    assert values("--scaling", "rope_type=linear,factor=2.5") == {
        "--scaling": {"rope_type": "linear", "factor": 2.5}
    }


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["--rate"], "--rate needs a value (X)"),
        (
            ["--rate", "--fast"],
            "--rate needs a value (X); a value that begins with - is written --rate=VALUE",
        ),
        (["--json=yes"], "--json=yes: this flag takes no value; remove =yes"),
        (["--no-fast=1"], "--no-fast=1: this flag takes no value; remove =1"),
        (["--scaling", "linear"], "--scaling: linear must be key=value pairs, separated by commas"),
        (["--scaling", "a={"], "--scaling: a={: not valid YAML: "),
        (["--rat", "1"], "unknown flag --rat; did you mean --rate?"),
        (["-x"], "unknown flag -x; `--help WORD` searches the settings"),
    ],
)
def test_a_mistake_says_which_flag_and_what_it_takes(arguments, mistake):
    (found,) = read(PARAMETERS, arguments).mistakes
    assert found.startswith(mistake)


def test_mistakes_are_collected_and_what_follows_them_is_read():
    found = read(PARAMETERS, ["--lr", "3", "4", "--rate", "--steps", "5", "--what=1"])
    assert [m.split(";")[0] for m in found.mistakes] == [
        "unknown flag --lr",
        "--rate needs a value (X)",
        "unknown flag --what",
    ]
    assert found.values == {"--steps": "5"}


def test_words_after_help_are_read_and_what_follows_two_dashes_is_a_value():
    assert read(PARAMETERS, ["--rate", "1", "--help", "some", "words"]).help == ["some", "words"]
    assert read(PARAMETERS, ["--", "--rate", "-x"]).words == ["--rate", "-x"]


def test_the_parameters_are_click_options():
    context = click.Context(click.Command("x", params=PARAMETERS))
    assert any("--names" in record[0] for p in PARAMETERS if (record := p.get_help_record(context)))
    assert flags.is_flag("-1", {}) is False
