"""The configuration system: one declaration is YAML key, flag and help; every mistake is named at once."""

import dataclasses
from typing import Literal

import pytest

from mt.core.config import UserError, build, check, option, read_yaml, to_dict


@dataclasses.dataclass(frozen=True)
class Model:
    num_layers: int = option(2, "layers")
    hidden_size: int = option(8, "width")
    kind: Literal["gpt", "bert"] = option("gpt", "family")
    dropout: float = option(0.0, "dropout")

    def __post_init__(self):
        check(
            (
                self.hidden_size % 2 == 0,
                f"model.hidden_size = {self.hidden_size} must be even; use {self.hidden_size + 1}",
            ),
            (self.num_layers > 0, f"model.num_layers = {self.num_layers} must be at least 1"),
        )


@dataclasses.dataclass(frozen=True)
class Train:
    model: Model = dataclasses.field(default_factory=Model)
    lr: float = option(1e-3, "learning rate")
    data_path: tuple[str, ...] = option((), "data")
    train_iters: int | None = option(None, "steps")
    bf16: bool = option(False, "precision")


@pytest.mark.parametrize(
    "tree",
    [{"model": {"num_layers": 4}}, {"model.num_layers": 4}, {"model.num_layers": "4"}, {"num_layers": 4}],
)
def test_nested_dotted_and_short_keys_and_texts_of_numbers_mean_the_same(tree):
    assert build(Train, ("x", tree)).model.num_layers == 4


def test_later_layers_win_and_a_configuration_survives_the_way_through_plain_values():
    config = build(Train, ("file", {"lr": "1e-4", "data_path": [0.7, "a", 0.3, "b"]}), ("flags", {"lr": 2}))
    assert (config.lr, config.data_path) == (2.0, ("0.7", "a", "0.3", "b"))
    assert build(Train, ("again", to_dict(config))) == config


def test_all_mistakes_are_said_at_once_with_the_nearest_name_and_the_place():
    with pytest.raises(UserError) as caught:
        build(
            Train,
            (
                "demo.yaml",
                {
                    "model": {"num_layer": 3, "kind": "brt"},
                    "lr": "fast",
                    "bf16": "perhaps",
                    "train_iters": 1.5,
                },
            ),
        )
    assert str(caught.value).split("\n") == [
        "demo.yaml: unknown setting model.num_layer; did you mean model.num_layers?",
        "demo.yaml: model.kind = 'brt': must be one of gpt, bert; did you mean bert?",
        "demo.yaml: lr = 'fast': must be a number",
        "demo.yaml: bf16 = 'perhaps': must be true or false",
        "demo.yaml: train_iters = 1.5: must be a whole number",
    ]


def test_rules_of_a_group_are_all_reported():
    with pytest.raises(UserError) as caught:
        build(Train, ("x", {"model": {"hidden_size": 3, "num_layers": 0}}))
    assert len(str(caught.value).split("\n")) == 2


@pytest.mark.parametrize(
    ("value", "number"),
    [("1e6", 1_000_000), (3, 3), ("12345678901234567890", 12345678901234567890), ("1_000", 1000)],
)
def test_whole_numbers_are_exact_however_they_are_spelt(value, number):
    assert build(Train, ("x", {"train_iters": value})).train_iters == number


@pytest.mark.parametrize("value", ["inf", "nan", True, [1], {}])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(UserError, match="whole number"):
        build(Train, ("x", {"train_iters": value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\na: 2\n", "line 2: not valid YAML: 'a' is given twice"),
        (b"a: [1\n", "not valid YAML"),
        (b"- 1\n", "must hold `name: value` lines"),
        (b"a: \xff\n", "not UTF-8"),
    ],
)
def test_a_bad_yaml_file_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
