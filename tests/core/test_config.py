"""Configurations: YAML, flags and Python give the same values, and every mistake is reported at once."""

import dataclasses
import importlib
import math
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.commands import table
from mt.core.config import (
    MOST_SHOWN,
    UserError,
    build,
    check,
    configuration,
    convert,
    mistake,
    option,
    settings,
    shown,
    shown_names,
    to_dict,
)


@configuration(group="model")
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


@configuration()
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
def test_nested_dotted_and_short_keys_and_numbers_as_text_mean_the_same(tree):
    assert build(Train, ("x", tree)).model.num_layers == 4


def test_later_sources_override_earlier_ones_and_a_configuration_is_rebuilt_from_its_dict():
    config = build(Train, ("file", {"lr": "1e-4", "data_path": [0.7, "a", 0.3, "b"]}), ("flags", {"lr": 2}))
    assert (config.lr, config.data_path) == (2.0, ("0.7", "a", "0.3", "b"))
    assert build(Train, ("again", to_dict(config))) == config


def test_all_mistakes_are_reported_at_once_with_file_and_nearest_name():
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


def test_all_broken_rules_of_a_group_are_reported():
    with pytest.raises(UserError) as caught:
        build(Train, ("x", {"model": {"hidden_size": 3, "num_layers": 0}}))
    assert len(str(caught.value).split("\n")) == 2


def test_a_value_of_the_wrong_type_hides_no_broken_rule_of_another_setting():
    with pytest.raises(UserError) as error:
        build(Train, ("f.yaml", {"hidden_size": "wide", "num_layers": 0, "lr": "x"}))
    assert str(error.value).split("\n") == [
        "f.yaml: model.hidden_size = 'wide': must be a whole number",
        "f.yaml: lr = 'x': must be a number",
        "model.num_layers = 0 must be at least 1",
    ]


@configuration()
class Run:
    save: str = option(help="where")
    lr: float = option(1.0, "rate")
    min_lr: float = option(0.0, "lowest rate")
    train_iters: int | None = option(None, "steps")
    model: Model = dataclasses.field(default_factory=Model)

    def __post_init__(self):
        check(
            (self.train_iters is not None, "the run's length must be given: --train-iters"),
            (self.min_lr >= 0, f"min_lr = {self.min_lr} must not be negative"),
            (self.min_lr <= self.lr, f"min_lr = {self.min_lr} is above lr = {self.lr}"),
        )


def test_what_a_rule_says_of_a_setting_without_a_valid_value_is_left_out():
    with pytest.raises(UserError) as error:
        build(Run, ("f", {"save": "x", "train_iters": "all"}))
    assert str(error.value) == "f: train_iters = 'all': must be a whole number"
    with pytest.raises(UserError) as error:
        build(Run, ("f", {"save": "x", "train_iters": 1, "lr": "fast", "min_lr": 5}))
    assert str(error.value) == "f: lr = 'fast': must be a number"
    with pytest.raises(UserError) as error:
        build(Run, ("f", {"save": "x", "train_iters": 1, "lr": "fast", "min_lr": -5}))
    assert str(error.value).endswith("\nmin_lr = -5.0 must not be negative")
    with pytest.raises(UserError) as error:
        build(Run, ("f", {"num_layers": 0}))
    assert str(error.value) == ("save must be given (--save): where\nmodel.num_layers = 0 must be at least 1")


@pytest.mark.parametrize(
    ("value", "number"),
    [("1e6", 1_000_000), (3, 3), ("12345678901234567890", 12345678901234567890), ("1_000", 1000)],
)
def test_whole_numbers_are_exact_in_any_notation(value, number):
    assert build(Train, ("x", {"train_iters": value})).train_iters == number


@pytest.mark.parametrize("value", ["inf", "nan", True, [1], {}])
def test_a_value_that_is_no_whole_number_is_refused(value):
    with pytest.raises(UserError, match="whole number"):
        build(Train, ("x", {"train_iters": value}))


def every_configuration() -> list[type]:
    """Every configuration class of the package: those of all commands, and the groups within them."""
    pytest.importorskip("torch", reason="the configurations of training need the extra `train`")
    for module in {command.module for command in table.COMMANDS.values()}:
        importlib.import_module(f"mt.{module}")
    found = {
        kind: None
        for name, module in list(sys.modules.items())
        if name.startswith("mt.") and not name.startswith(("mt.tests.", "mt.benchmarks."))
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == name
        if "GROUP" in vars(kind) or any("role" in field.metadata for field in dataclasses.fields(kind))
    }
    assert len(found) > 70
    return list(found)


def wrong_values(kind: Any) -> list:
    """Values of several kinds that the annotation forbids."""
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        return [v for v in wrong_values(next(k for k in arguments if k is not type(None))) if v is not None]
    if typing.get_origin(kind) is Literal:
        return [f"{arguments[0]}x", "", -1, True, None, [arguments[0]], arguments]
    if kind is dict:
        return ["a=1", [("a", 1)], 1, None]
    if dataclasses.is_dataclass(kind):
        return [{}, None, Model(), kind.__name__]
    return {
        str: [3, 0.5, True, None, Path("a"), ("a",), ["a"], b"a"],
        bool: [1, 0, "true", None, [True]],
        int: [True, 1.0, 1.5, "3", None, [1], math.nan],
        float: [True, "0.5", None, [0.5], math.nan, math.inf, -math.inf],
        tuple[str, ...]: ["a.jsonl", ["a"], {"a"}, None, ("a", 3), (None,), 3],
        tuple[float, ...]: [1.0, [1.0], "1", None, (1.0, "2"), (True,), (math.nan,)],
        tuple[int, ...]: [1, [1], "1", None, (1, "2"), (1.0,), (True,)],
    }[kind]


def test_every_field_of_every_configuration_refuses_values_that_its_annotation_forbids():
    fields = 0
    for cls in every_configuration():
        for name, kind in typing.get_type_hints(cls).items():
            full = f"{cls.GROUP}.{name}" if cls.GROUP else name
            for value in wrong_values(kind):
                with pytest.raises(UserError) as caught:
                    cls(**{name: value})
                assert str(caught.value).startswith(f"{full} = {value!r}: must be "), (cls, value)
            fields += 1
    assert fields > 700


def test_every_default_of_every_configuration_fits_its_annotation():
    for cls in every_configuration():
        kinds = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                assert mistake(field.default, kinds[field.name]) is None, (cls, field.name)
            if field.default_factory is not dataclasses.MISSING:
                assert type(field.default_factory()) is kinds[field.name]


def test_groups_in_messages_are_those_of_flags_and_yaml_keys():
    for cls in every_configuration():
        for name, kind in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(kind):
                assert name == kind.GROUP, (cls, kind)
    for path in table.COMMANDS:
        if dataclasses.is_dataclass(kind := table.load(path)[1]):  # `mt launch` takes torchrun's flags
            assert kind.GROUP == "", path


def test_values_of_wrong_type_are_named_together_before_rules_are_checked():
    with pytest.raises(UserError) as caught:
        Model(num_layers=0, hidden_size="8", kind="brt")
    assert str(caught.value).split("\n") == [
        "model.hidden_size = '8': must be a whole number",
        "model.kind = 'brt': must be one of gpt, bert; did you mean bert?",
    ]


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("a.jsonl", "must be a tuple, such as ('a.jsonl',)"),
        (["a", "b"], "must be a tuple, such as ('a', 'b')"),
        (3, "must be a tuple"),
        (("a", Path("b")), "must be a text, such as 'b'"),
    ],
)
def test_a_value_that_is_no_tuple_is_refused_with_the_tuple_to_write(value, remedy):
    with pytest.raises(UserError) as caught:
        Train(data_path=value)
    assert str(caught.value) == f"data_path = {value!r}: {remedy}"


def test_a_replaced_value_is_checked_too():
    with pytest.raises(UserError, match=r"^lr = nan: must be a finite number$"):
        dataclasses.replace(Train(), lr=math.nan)


def test_a_whole_number_is_accepted_as_a_float_and_kept_as_given():
    assert repr(Train(lr=1).lr) == "1"  # the key of a run depends on the notation of numbers
    assert repr(build(Train, ("x", {"lr": 1})).lr) == "1.0"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["gpt", "bert", "x", "", "1"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=1)
    ),
)
KINDS = (*dict.fromkeys(s.type for s in settings(Train)), dict, dict | None, tuple[int, ...], float | None)


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(value=VALUES, kind=st.sampled_from(KINDS))
def test_a_value_is_allowed_if_pydantic_allows_it_in_strict_mode(value, kind):
    pydantic = pytest.importorskip("pydantic", reason="pydantic comes with the extra `serve`")
    adapter = pydantic.TypeAdapter(kind, config={"strict": True, "allow_inf_nan": False})
    try:
        adapter.validate_python(value)
        allowed = True
    except pydantic.ValidationError:
        allowed = False
    assert (mistake(value, kind) is None) == allowed


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(value=VALUES, kind=st.sampled_from(KINDS))
def test_a_value_of_yaml_or_a_flag_is_refused_or_converted_to_an_allowed_value(value, kind):
    try:
        converted = convert(value, kind)
    except ValueError:
        return
    assert mistake(converted, kind) is None
    assert mistake(value, kind) is not None or converted == value


def nested(kind, levels=8):
    value = "x" * 200
    for _ in range(levels):
        value = kind(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested(lambda v: [v] * 12), nested(lambda v: (v,) * 12),
        nested(lambda v: {str(n): v for n in range(12)}), ["x" * 10**6] * 10**5, {"x" * 10**6: "x" * 10**6},
        set(range(10**5)), 10**5000, [[10**5000] * 12] * 12,
        object.__new__(type("T", (), {"__repr__": lambda self: "\x1b[31m" * 10**6})), "\x1b[31m" * 10**6,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_in_a_message_is_short_and_printable(value):
    assert len(shown(value)) <= MOST_SHOWN
    assert shown([1, "a"]) == "[1, 'a']"


def test_of_many_names_a_message_has_the_beginning():
    assert shown_names(["a", "b\x1b"]) == "'a', 'b\\x1b'"
    assert shown_names([str(n) for n in range(2000)]).endswith("'7' and 1,992 more")
    assert len(shown_names(["n" * 10**6] * 10)) < 2000
