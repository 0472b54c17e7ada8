"""Telephone numbers: libphonenumber's example numbers are found, other numbers are kept."""

import re

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.filters.phone_numbers import INTERNATIONAL, replace_phone_numbers
from mt.dataprep.filters.rules import compile_rules

KINDS = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
EXAMPLES = [
    (region, number)
    for region in sorted(phonenumbers.SUPPORTED_REGIONS)
    for kind in KINDS
    if (number := phonenumbers.example_number_for_type(region, kind))
]
# a word before the number in the language of the text
CUES = (
    "Tel. ",
    "tel: ",
    "Phone: ",
    "Fax ",
    "Call us at ",
    "Téléphone : ",
    "Тел.: ",
    "电话：",
    "電話: ",
    "هاتف: ",
    "☎ ",
)


def written(number, form):
    return phonenumbers.format_number(number, form)


def found(before, number, regions=()):
    return replace_phone_numbers(before + number, "X", regions) == before + "X"


def test_every_example_is_found_in_international_form():
    numbers = [written(n, phonenumbers.PhoneNumberFormat.INTERNATIONAL) for _, n in EXAMPLES]
    assert all(found("Call ", number) for number in numbers)
    # eight digits at least where no word says that it is a telephone number
    assert sum(found("", number) for number in numbers) >= len(numbers) - 4


def test_examples_are_found_in_national_form():
    numbers = [(r, written(n, phonenumbers.PhoneNumberFormat.NATIONAL)) for r, n in EXAMPLES]
    assert len(numbers) > 480
    share = lambda hits: sum(hits) / len(numbers)
    # the others have four or five digits, or are like dates
    assert share(found("Tel. ", number) for _, number in numbers) > 0.96
    assert share(found("Call ", number) for _, number in numbers) > 0.94
    assert share(found("", number) for _, number in numbers) >= 0.5
    assert share(found("", number, (region,)) for region, number in numbers) > 0.85


@given(st.sampled_from(EXAMPLES), st.integers(0, 10**6), st.sampled_from(CUES))
def test_valid_numbers_after_a_word_for_telephone_are_found(example, change, cue):
    _, number = example
    digits = str(number.national_number)
    tail = min(4, len(digits) - 3)
    digits = digits[:-tail] + f"{change % 10**tail:0{tail}d}"
    changed = phonenumbers.PhoneNumber(
        country_code=number.country_code,
        national_number=int(digits),
        italian_leading_zero=number.italian_leading_zero,
    )
    text = written(changed, phonenumbers.PhoneNumberFormat.NATIONAL)
    if phonenumbers.is_valid_number(changed) and sum(map(str.isdigit, text)) >= 9:
        assert found(cue, text)


@given(
    st.one_of(
        st.dates().map(lambda d: f"{d:%d.%m.%Y} {d:%d-%m-%Y} {d:%Y-%m-%d} {d:%d/%m/%y}"),
        st.times().map(lambda t: f"{t:%H:%M:%S}"),
        st.floats(-1e9, 1e9).map(lambda x: f"{x:.4f} {x:,.2f} {x:e}"),
        st.integers(0, 10**18).map(lambda n: f"{n} {n:,} #{n} {n:x}"),
        st.lists(st.integers(0, 9999), min_size=4).map(lambda row: " ".join(map(str, row))),
        st.lists(st.integers(0, 9999), min_size=2).map(lambda row: " | ".join(map(str, row))),
        st.lists(st.integers(0, 9999), min_size=2).map(lambda row: ", ".join(map(str, row))),
        st.lists(st.integers(0, 9999), min_size=2).map(lambda row: "\t".join(map(str, row))),
        st.uuids().map(str),
        st.ip_addresses().map(str),
    )
)
def test_other_numbers_are_kept(text):
    assert replace_phone_numbers(text, "X") == text
    assert replace_phone_numbers(f"x = [{text}]", "X") == f"x = [{text}]"


def test_the_numbers_of_given_regions_need_no_word():
    assert replace_phone_numbers("Bar, 612 34 56 78, Madrid", "X") == "Bar, 612 34 56 78, Madrid"
    assert compile_rules(["redact phone_regions=pt,ES"])("Bar, 612 34 56 78.") == "Bar, 555-0100."


def test_an_unknown_region_is_refused():
    with pytest.raises(UserError, match=r"'UK' is not a known region.*phone_regions=DE,AT"):
        compile_rules(["redact phone_regions=UK"])


@given(
    st.lists(
        st.sampled_from(
            ["+", "00", " ", "-", ".", "(", ")", "a", "1", "12", "0123456", "+49", "123456789012"]
        ),
        max_size=14,
    ).map("".join)
)
def test_international_numbers_are_those_of_an_expression_that_tries_every_grouping(text):
    slow = re.compile(
        r"(?<![\w.,/#$€£+-])(?<!\d[ ])(?:\+|00)[1-9]\d{0,2}(?:[ .-]?\(0?\d{0,4}\))?(?:[ .-]?\d{1,6}){2,6}"
        r"(?![\w/-]|[.,]\d)"
    )
    assert [m.span() for m in INTERNATIONAL.finditer(text)] == [m.span() for m in slow.finditer(text)]


def test_a_long_number_is_read_once():
    text = "+" + "1" * 40 + " x"  # all groupings of 36 digits take 50 ms for each
    assert replace_phone_numbers(text * 5_000, "555-0100") == text * 5_000
