"""Normalization: the forms of the standard library, also where many marks follow a letter, in linear time."""

import codecs
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.unicode import MAX_MARKS, normalize, without_mark

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Marks of several classes, marks that decompose into two, letters that become marks in NFKC and NFKD.
MARKS = "\u0301\u0327\u0315\u0345\u05b0\u3099\u0344\u0f73\u0f81\uff9e\u0340\U0001d165"


@given(
    st.lists(
        st.text(MARKS, min_size=MAX_MARKS - 2, max_size=3 * MAX_MARKS)
        | st.text("ae\xe9\u01d8\u1100\u1161\u11a8\uac00\u304b\uff76\u0915 ", max_size=3)
        | st.text(max_size=3),
        max_size=4,
    ).map("".join),
    st.sampled_from(FORMS),
)
def test_the_forms_are_those_of_the_standard_library(text, form):
    assert normalize(form, text) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", FORMS)
def test_every_character_that_is_a_mark_may_be_in_a_run(form):
    marks = [c for c in map(chr, range(0x110000)) if unicodedata.combining(unicodedata.normalize(form, c)[0])]
    text = "e" + "".join(marks[::-1])
    assert normalize(form, text) == unicodedata.normalize(form, text)


def test_forty_thousand_marks_are_sorted():
    text = "e" + "\u0315\u0301\u0327" * 13_333
    assert normalize("NFD", text) == "e" + "\u0327" * 13_333 + "\u0301" * 13_333 + "\u0315" * 13_333
    assert normalize("NFC", text) == "\u0229" + "\u0327" * 13_332 + "\u0301" * 13_333 + "\u0315" * 13_333


@given(st.binary(max_size=6))
def test_one_byte_order_mark_is_dropped_as_python_drops_it(data):
    for start in (b"", codecs.BOM_UTF8):
        assert without_mark(start + data).decode(errors="replace") == (start + data).decode(
            "utf-8-sig", "replace"
        )
