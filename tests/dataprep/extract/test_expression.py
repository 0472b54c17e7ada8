"""Expressions: the examples of mediawiki.org, and Python for the operators that both languages have."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract.expression import ExpressionError, evaluate, value

# Of Help:Extension:ParserFunctions and of the extension's own tests.
DOCUMENTED = {
    "1 + 1": "2",
    "3.14": "3.14",
    "1e3": "1000",
    "5.4e-1": "0.54",
    "-15 / 2": "-7.5",
    "30 mod 7": "2",
    "-8 mod 3": "-2",
    "8.9 mod 3.2": "2",
    "5.5 fmod 2": "1.5",
    "9.876 round 2": "9.88",
    "1234 round -2": "1200",
    "4.5 round 0": "5",
    "-4.5 round 0": "-5",
    "1/3 round 5": "0.33333",
    "trunc 1.2": "1",
    "trunc -1.2": "-1",
    "floor -1.2": "-2",
    "ceil -1.2": "-1",
    "abs -2": "2",
    "exp 43": "4.7278394682293E+18",
    "ln 1": "0",
    "2 ^ 10": "1024",
    "-2 ^ 2": "4",
    "2^3^2": "64",
    "pi": "3.1415926535898",
    "1 / 3": "0.33333333333333",
    "3 = 3": "1",
    "3 = 4": "0",
    "3 <> 4": "1",
    "3 != 3": "0",
    "4 >= 4": "1",
    "4 and 0": "0",
    "0 or 3": "1",
    "not 1 + 1": "1",
    "not (1 + 1)": "0",
    "1 + 2 * 3 = 7 and 1": "1",
    "10^15": "1.0E+15",
    "10 ^ 3 \u2212 1": "999",
    "": "",
    "  ": "",
}  # fmt: skip


@pytest.mark.parametrize("text", DOCUMENTED)
def test_an_expression_has_the_value_of_the_documentation(text):
    assert evaluate(text) == DOCUMENTED[text]


@pytest.mark.parametrize(
    "text",
    ["1 +", "* 2", "1 2", "(1", "1)", "1 / 0", "foo", "2 mod 0", "ln 0", "sqrt(-1)", "10^400", "1 ; 2", "()"],
)
def test_what_mediawiki_shows_as_an_error_is_one(text):
    with pytest.raises(ExpressionError):
        evaluate(text)


NUMBERS = st.integers(0, 99).map(str) | st.sampled_from(["0.5", "2.25", "1.125"])


@given(NUMBERS, st.lists(st.tuples(st.sampled_from("+-*/"), NUMBERS), max_size=8))
def test_operators_go_from_left_to_right_and_by_their_precedence_as_in_python(first, rest):
    text = first + "".join(f" {operator} {number}" for operator, number in rest)
    try:
        wanted = eval(text)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            value(text)
        return
    assert math.isclose(value(text), wanted, rel_tol=1e-12, abs_tol=1e-12)


@given(st.text("0123456789.+-*/^()<>=e mod round not and pi ln", max_size=40))
def test_no_text_raises_anything_else(text):
    with contextlib.suppress(ExpressionError):
        assert "\n" not in evaluate(text)


def test_deep_brackets_and_many_signs_are_read_without_recursion():
    assert value("(" * 4_000 + "1" + ")" * 4_000) == 1
    assert value("-" * 4_000 + "1") == 1
