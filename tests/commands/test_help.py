"""The help: panels by group, required settings first, a common part, search, the width of the terminal."""

import re

import pytest

from mt.cli import Commands
from mt.commands import help, table
from mt.core.config import UserError, settings
from mt.core.terminal import Screen


def page(path: str, *words: str, columns: int = 100, colours: bool = False) -> str:
    command = Commands().get_path(tuple(path.split()))
    return help.page(command, words, Screen(columns, colours))


def flags(text: str) -> set[str]:
    names = re.findall(r"^│ (?:\* )?(--\S+)", text, re.MULTILINE)
    return {name.replace("[no-]", "") for name in names}


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
@pytest.mark.parametrize("path", [path for path in table.COMMANDS if path not in table.RAW], ids=" ".join)
def test_every_setting_is_shown_within_the_width_of_the_terminal(path, columns):
    text = page(" ".join(path), "all", columns=columns)
    assert max(map(len, text.split("\n"))) <= columns
    own = {s.flag for s in settings(table.load(path)[1])}
    shown = "".join(re.findall(r"[^\s│]+", text))  # long names are continued on the next line
    assert all(flag in shown.replace("[no-]", "") for flag in own)


def test_required_settings_come_first_and_are_marked():
    lines = page("data clean").split("\n")
    titles = [line.split("─ ")[1].split(" ─")[0] for line in lines if line.startswith("╭")]
    assert titles == ["examples", "required", "settings", "tokenizer", "how it runs", "for every command"]
    assert any(line.startswith("│ * --input PATH ...") for line in lines)


def test_groups_of_the_configuration_tree_are_panels():
    text = page("train", "all")
    for group in ("model", "data", "parallel", "optimizer", "checkpoint"):
        assert f"╭─ {group} ─" in text


def test_train_shows_what_most_people_set_on_two_screens_and_says_how_to_see_the_rest():
    text = page("train")
    assert len(text.split("\n")) <= 100
    assert flags(text) >= {"--data-path", "--lr", "--train-iters", "--save", "--preset", "--config"}
    assert "--moe-router-topk" not in text
    assert "--help all" in text
    assert "--help GROUP" in text


def test_the_common_settings_exist():
    for path, command in table.COMMANDS.items():
        if command.common:
            assert {s.path[-1] for s in settings(table.load(path)[1])} >= set(command.common)


def test_a_group_or_a_word_shows_its_settings_and_no_others():
    assert flags(page("train", "optimizer")) >= {"--lr", "--adam-beta1", "--clip-grad"}
    assert not flags(page("train", "optimizer")) & {"--num-layers", "--json"}
    found = flags(page("train", "warm-up"))
    assert "--lr-warmup-iters" in found
    assert "--hidden-size" not in found
    assert flags(page("train", "adam-eps")) == {"--adam-eps"}


def test_a_word_that_no_setting_has_is_refused_with_a_hint():
    with pytest.raises(UserError, match=r"mt train --help learning-rate: .*; did you mean --lr\?"):
        page("train", "learning-rate")


def test_defaults_and_choices_are_shown():
    text = " ".join(page("data clean").replace("│", " ").split())
    assert "[jsonl | jsonl.zst | parquet] (default jsonl)" in text
    assert (
        "also write every removed document, with its text, fields and reason, to rejects/ (default off)"
        in text
    )


def test_colours_change_nothing_but_colours():
    coloured = page("data clean", colours=True)
    assert "\033[36m--input" in coloured.replace("\033[31m*\033[0m\033[36m ", "\033[36m")
    assert re.sub("\033\\[[0-9]*m", "", coloured) == page("data clean")
