"""Redaction: what is replaced, what is unchanged, and linear search time."""

import ipaddress
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.filters.redact import redact
from mt.dataprep.filters.rules import compile_rules

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Write to jane.doe+x@mail.example-site.co.uk, please.", "Write to email@example.com, please."),
        ("<a@b.de>; (müller@bücher.de).", "<email@example.com>; (email@example.com)."),
        ("x@почта.xn--p1ai.", "email@example.com."),
        ("mailto:x_y@z.org", "mailto:email@example.com"),
        ("The host 8.8.8.8 and 2001:4860:4860::8888 answer.", "The host 192.0.2.1 and 2001:db8::1 answer."),
        ("Ping 93.184.216.34.", "Ping 192.0.2.1."),
        ("Call (212) 555-0123 or 212-555-0123 or 1-800-555-0199.", "Call 555-0100 or 555-0100 or 555-0100."),
        ("Tel. +49 (0)30 1234567, +44 20 7946 0958; 0049 30 1234567", "Tel. 555-0100, 555-0100; 555-0100"),
        ("Fax:+1-212-555-0123.", "Fax:555-0100."),
    ],
)
def test_addresses_and_numbers_are_replaced_by_reserved_ones(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "Follow @jane and meet at 5 @ the pub; a@b is none, nor is @example.com.",
        "127.0.0.1, 10.0.0.7, 192.168.1.1 and 300.1.1.1 are nobody's; nor are ::1 and fe80::1.",
        "At 12:30:45 on 2024-05-01, 1.2.3 and section 1.2.3.4.5 came out; C++ has std::vector.",
        "ISBN 978-3-16-148410-0, 1,234,567.89 dollars, 10/12/1999, 3.14159265358, 1914-1918, 2021-03-04"
        " 10:20:30.",
        "Order 123456789012 of 100000 items, p. 12-345, $212.555.0123.",
    ],
)
def test_text_that_resembles_an_address_is_unchanged(text):
    assert redact(text) == text


@given(st.ip_addresses(v=4), st.text(alphabet="ab ,;()", max_size=3))
def test_public_addresses_are_replaced_and_others_kept(address, around):
    redacted = redact(f"{around} {address} x", phone=False)
    assert (str(address) in redacted) == (not ipaddress.ip_address(address).is_global)


@given(
    st.emails(),
    st.sampled_from(["", " ", "<", "(", ",", "mailto:"]),
    st.sampled_from(["", " ", ">", ").", ", "]),
)
def test_every_email_address_that_datatrove_finds_is_replaced(address, before, after):
    pii = pytest.importorskip(
        "datatrove.pipeline.formatters.pii", reason="datatrove is not installed: pip install 'mt-lm[dev]'"
    )
    found = pii.PIIFormatter().emails_replacer.regex.findall(redact(f"{before}{address}{after}", phone=False))
    assert all(left.endswith("email@example.com") for left in found)


def test_the_addresses_that_datatrove_finds_in_reviews_are_replaced(shared):
    pii = pytest.importorskip(
        "datatrove.pipeline.formatters.pii", reason="datatrove is not installed: pip install 'mt-lm[dev]'"
    )
    texts = [
        json.loads(line)["text"] for line in (shared / "data/corpus/reviews.jsonl").read_bytes().splitlines()
    ]
    theirs = pii.PIIFormatter()
    for text in (t for t in texts if "@" in t):
        wanted = [w for w in theirs.emails_replacer.regex.findall(text) if re.search(r"\.[a-z]{2,}$", w)]
        assert not any(w in redact(text) for w in wanted if w != "email@example.com")


def test_private_addresses_are_replaced_if_configured():
    assert (
        redact("10.0.0.7 and fe80::1, 300.1.1.1", private_ip=True) == "192.0.2.1 and 2001:db8::1, 300.1.1.1"
    )


def test_each_kind_can_be_disabled_and_the_edit_is_counted():
    text = "a@b.org 8.8.8.8 (212) 555-0123"
    assert redact(text, email=False, ip=False) == "a@b.org 8.8.8.8 555-0100"
    apply = compile_rules(["redact phone=false"])
    assert apply(text) == "email@example.com 192.0.2.1 (212) 555-0123"
    assert apply("nothing here") == "nothing here"
    assert apply.edited == {"redact": 1}


@given(st.text(alphabet="a1@.:+- ", max_size=200))
def test_redacting_twice_changes_no_more_than_once(text):
    once = redact(text, phone=False)
    assert redact(once, phone=False) == once


def test_search_time_is_linear_in_the_text():
    for text in (
        "a" * 1_000_000,
        "a.b-" * 250_000,
        "1" * 1_000_000,
        "1.2" * 300_000,
        "a:" * 500_000,
        "@" * 1_000_000,
        "+1 " * 300_000,
        "x@" + "a." * 400_000,
    ):
        redact(text)


def test_the_labelled_sample_is_redacted_as_labelled():
    lines = [
        json.loads(line)
        for line in (FIXTURES / "redaction.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    for line in lines:
        wanted = line["text"]
        for string in line["private"]:
            wanted = wanted.replace(string, placeholder(string), 1)
        assert redact(line["text"]) == wanted


def placeholder(string):
    if "@" in string:
        return "email@example.com"
    try:
        return "192.0.2.1" if ipaddress.ip_address(string).version == 4 else "2001:db8::1"
    except ValueError:
        return "555-0100"


@given(
    st.lists(
        st.sampled_from(
            ["::", ":", "[", "]", "(", ")", "a", "f", "e0", "xs", "-1", "1", "10", " ", ".", ","]
        ),
        max_size=20,
    )
)
def test_slices_and_scopes_of_code_are_no_addresses(pieces):
    text = "".join(pieces)
    assert redact(text, phone=False) == text


@given(
    st.sampled_from(["js", "jsx", "tsx", "json", "yaml", "html", "css", "txt", "toml", "latest", "v2", "x64"])
)
def test_an_email_address_must_end_in_a_top_level_domain(label):
    text = f"npm i react@next.{label} and a.b@c-d.{label}"
    assert redact(text) == text


def test_the_address_of_a_repository_is_no_email_address():
    for text in ("git clone git@github.com:owner/name.git", "hg@host.org:a/b"):
        assert redact(text) == text
    assert redact("write to git@host.org: a/b") != "write to git@host.org: a/b"
