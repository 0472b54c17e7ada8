"""A template's name and arguments."""

import pytest

from mt.dataprep.extract import editions
from mt.dataprep.extract.template_call import Call, normalize_name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Nowrap", "nowrap"),
        (" no_wrap \n", "no wrap"),
        ("Template:USS", "uSS"),
        ("template: Lang", "lang"),
        ("№", "№"),
        ("", ""),
        ("Ärger", "ärger"),
    ],
)
def test_a_name_is_normalized(written, name):
    assert normalize_name(written) == name


def test_each_argument_is_read_once_and_only_when_asked_for():
    read = []

    def argument(name):
        return lambda: read.append(name) or f" {name}\n"

    call = Call("X y", {name: argument(name) for name in ("1", "2", "4", "a")}, editions.edition("en"))
    assert call.get("b", "a") == "a"
    assert call.get("a", "1") == "a"
    assert read == ["a"]
    assert call.positional() == ["1", "2"]
    assert call.positional() == ["1", "2"]
    assert read == ["a", "1", "2"]
    assert (call.name, call.written) == ("x y", "X y")


def test_an_empty_argument_is_not_given():
    call = Call("x", {"1": lambda: " \n", "2": lambda: "b", "lc": lambda: "Yes"}, editions.edition("en"))
    assert call.get("1", "2") == "b"
    assert call.get("1") == call.get("3") == ""
    assert call.is_set("lc")
    assert not call.is_set("1", "2")
