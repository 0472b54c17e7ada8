"""Repair: the result is that of ftfy, and ftfy does not change text that needs no repair."""

import json
import unicodedata

import ftfy
import pytest
from ftfy import badness
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.filters.repair import INERT, MAX_STEPS, SEGMENT_CHARS, needs_repair, repair

# Every character of mojibake, and the characters that other fixes look for, so that faults are common.
CLUES = sorted(
    {c for c in badness.BADNESS_RE.pattern if ord(c) > 127}
    | {chr(c) for c in (*range(0x80, 0x100), *range(0x370, 0x460))}
)
PIECES = [
    *"aZ9 <&;\n\r\t -.,?!'\x00\x07\x7f",
    "&amp;",
    "&lt;",
    "&#233;",
    "&foo;",
    "R&D",
    "AT&T ",
    "&amp",
    "；",
    "‘",
    "’",
    "“",
    "”",
    "\u2028",
    "e\u0301",
    "ﬁ",
    "ｆ",
    "Ж",
    "中",
    "\x1b[3m",
    "Â ",
    "Ã ",
    "œ",
    "…",
    "é",
    "\ud800",
    "\ufeff",
    "â€œ",
    "Ã©",
    "ï¬\x81",
]
MIXED = st.lists(st.sampled_from(PIECES) | st.sampled_from(CLUES) | st.characters(), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(MIXED)
def test_repair_equals_ftfy_on_any_text(text):
    assert repair(text) == ftfy.fix_text(text)


# Runs of ASCII so long that repair skips their middles, with text whose repair could depend on them.
RUNS = st.sampled_from(
    [
        "a" * 200,
        "word " * 40,
        " " * 90,
        "x" * 67,
        "y" * 68,
        "z" * 69,
        "3;" * 50,
        "amp;" * 30,
        "<~>" * 40,
        "quele " * 20,
        "\x1b[" + "1;" * 60 + "m",
        "＆" + "amp;" * 20 + "lt;",
        "A" * 70 + "~",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(RUNS | st.sampled_from(PIECES) | st.sampled_from(CLUES) | st.characters(), max_size=12).map(
        "".join
    )
)
def test_repair_equals_ftfy_on_texts_with_long_runs_of_ascii(text):
    assert repair(text) == ftfy.fix_text(text)


@given(MIXED.filter(lambda t: "\n" not in t))
def test_ftfy_does_not_change_what_needs_no_repair(segment):
    if not needs_repair(segment):
        assert ftfy.fix_text(segment) == segment


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("schÃ¶n", "schön"),
        ("voilÃ le travail", "voilà le travail"),
        ("good Â day", "good \xa0day"),
        ("“quotes” and ’s", '"quotes" and \'s'),
        ("aп¬ЃЕ“a", "afiœa"),  # Cyrillic letters, a range in ftfy's regular expression
        ("x" * 250 + " РґРµРЅСЊ", "x" * 250 + " день"),  # a pair far from other mojibake
        ("x" * 250 + "a\x07", "x" * 250 + "a"),
        ("fÃ quele" + "x" * 80, "fàquele" + "x" * 80),  # the distance to which ftfy looks
        ("x" * 80 + " Ã " + "y" * 80, "x" * 80 + " à " + "y" * 80),
        ("a\r\nb", "a\nb"),
        ("AT&amp;T", "AT&T"),
        ("<b>AT&amp;T</b>", "<b>AT&amp;T</b>"),
        ("<b>\nAT&amp;T", "<b>\nAT&amp;T"),  # an angle bracket in an earlier line counts
        ("AT&amp;T\n<b>", "AT&T\n<b>"),  # one in a later line does not
    ],
)
def test_known_damage_is_repaired(damaged, whole):
    assert repair(damaged) == whole == ftfy.fix_text(damaged)


def test_a_line_longer_than_a_segment_is_split_as_in_ftfy():
    text = "é" * (SEGMENT_CHARS - 1) + "e\u0301" + "Ã©"
    assert repair(text) == ftfy.fix_text(text)


@pytest.mark.parametrize(
    "text", ["Plain text, R&D \t done.\n", "Größe, café, naïve", "Съешь ещё этих булок", "日本語のテキスト。"]
)
def test_correct_text_needs_no_repair(text):
    assert not needs_repair(text)
    assert repair(text) == text


def test_repaired_reviews_equal_ftfys(shared):
    texts = [
        json.loads(line)["text"]
        for line in (shared / "data/corpus/reviews.jsonl").read_bytes().splitlines()[:1500]
    ]
    mended = [repair(t) for t in texts]
    assert mended == [ftfy.fix_text(t) for t in texts]
    assert mended != texts


@given(st.text("e\u0315\u0301\u0327\uff9e\u3099\xe9 ", min_size=25, max_size=90))
def test_repair_equals_ftfy_where_many_marks_follow_a_letter(text):
    assert repair(text) == ftfy.fix_text(text)


@pytest.mark.parametrize("layers", [1, 2, 8, MAX_STEPS - 2])
def test_entities_within_entities_are_undone_as_by_ftfy(layers):
    for text in ("&" + "amp;" * layers + "lt;", "&amp" + "&semi" * layers + ";", "\xc2" * layers + "\xb3"):
        assert repair(text) == ftfy.fix_text(text)


def test_more_layers_than_any_real_text_has_stay():
    assert repair("&" + "amp;" * 100_000) == "&" + "amp;" * (100_000 - MAX_STEPS)


LINES = st.lists(
    st.text("ab ‘’“”„\n")
    | st.sampled_from([*"éŒß–—…Â\u0301", "‘’", "’é", "&amp;", "a < b", "\x0b", "Ã©", "\n"]),
    max_size=20,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(LINES)
def test_repair_of_lines_with_curly_quotes_equals_ftfy(text):
    assert repair(text) == ftfy.fix_text(text)


def test_inert_characters_are_in_nfc_after_any_other():
    inert = [c for c in map(chr, range(0x80, 0x3000)) if INERT.fullmatch(c)]
    assert len(inert) > 600
    assert unicodedata.is_normalized("NFC", "".join(inert))
    for before in [*map(chr, range(0x20, 0x7F)), *inert]:
        assert unicodedata.is_normalized("NFC", before + before.join(inert))
