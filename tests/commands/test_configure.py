"""The configuration of a command: presets and files come before flags."""

import pytest

from mt.commands.configure import configure
from mt.core.config import UserError
from mt.core.presets import presets, read_preset
from mt.dataprep.filters.clean import CleanConfig

FILES = {"input": ("in.jsonl",), "output": "out"}


def test_a_later_layer_wins_and_a_preset_comes_first():
    name = sorted(presets(CleanConfig))[0]
    layers = [("a.yaml", FILES | {"preset": name, "text_key": "a"}), ("command line", {"text_key": "b"})]
    assert configure(CleanConfig, layers).text_key == "b"
    preset = read_preset(CleanConfig, name)
    key = next(iter(preset))
    assert getattr(configure(CleanConfig, layers), key) == getattr(
        configure(CleanConfig, [("x", FILES | {key: preset[key]})]), key
    )


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"preset 'fineweeb' is not known; choose one of .*did you mean fineweb"
    ):
        configure(CleanConfig, [("x", FILES)], preset="fineweeb")
