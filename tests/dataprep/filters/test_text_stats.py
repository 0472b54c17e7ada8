"""Word splitters and counts, compared with Python's splitting and a table worked out by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.filters import text_stats
from mt.dataprep.filters.text_stats import TextStats, WordStats, duplicates, word_hashes

ANY = st.lists(
    st.sampled_from(
        [
            *" \n\t\r\x0b\x1c\x1f\x85\xa0\u2028\u3000.,-'’_/<>…•",
            "ab",
            "Ab",
            "ÀB",
            "n't",
            "'s",
            "12",
            "...",
            "\r\n",
            "\ud800",
            "中",
            "é",
        ]
    )
    | st.characters(),
    max_size=40,
).map("".join)


@settings(deadline=None)
@given(ANY)
def test_words_between_spaces_are_those_of_str_split(text):
    assert TextStats(text).words("space").of(text) == text.split()


@settings(deadline=None)
@given(ANY)
def test_words_apart_are_finer_than_words_between_spaces(text):
    cut = TextStats(text).words("apart").of(text)
    assert all(cut)
    assert "".join(cut) == "".join(text.split())
    whole = iter(cut)
    for word in text.split():
        while word:
            word = (
                word.removeprefix(piece)
                if word.startswith(piece := next(whole))
                else pytest.fail(f"{piece!r} crosses a space")
            )


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Don't stop, it's well-known.", "Do|n't|stop|,|it|'s|well|-|known|."),
        ("“We’ll see,” she said (twice)...", "“|We|’ll|see|,|”|she|said|(|twice|)|..."),
        ("The U.S. has 1,000.50 in 3-4 days at 10:30!", "The|U.S.|has|1,000.50|in|3-4|days|at|10:30|!"),
        ("end.Next one--two and/or a,b e.g. J. Smith", "end|.|Next|one|--|two|and|/|or|a|,|b|e.g|.|J.|Smith"),
        ("O'Brien's rock'n'roll, the 90's 'quoted' 's", "O'Brien|'s|rock'n'roll|,|the|90|'s|'|quoted|'|'s"),
        (
            "http://www.a-b.com/c_d, me@x.org; #tag $5 50%",
            "http://www.a-b.com/c_d|,|me@x.org|;|#|tag|$|5|50|%",
        ),
        ("<br /><br />The film.", "<|br|/><br|/>The|film|."),
        ("हिन्दी भाषा, 日本語。", "हिन्दी|भाषा|,|日本語|。"),
    ],
)
def test_punctuation_and_clitics_are_split_off(text, cut):
    assert "|".join(TextStats(text).words("apart").of(text)) == cut


def test_words_apart_are_similar_to_those_of_spacy(shared):
    spacy = pytest.importorskip(
        "spacy", reason="spaCy is not installed: it is no part of any extra, being 140 MB"
    )
    english = spacy.blank("en")
    texts = [
        json.loads(line)["text"]
        for line in (shared / "data/corpus/reviews.jsonl").read_bytes().splitlines()[:60]
    ]
    counts = np.array(
        [(TextStats(t).words("apart").count, sum(not w.is_space for w in english(t))) for t in texts]
    )
    assert np.abs(counts[:, 0] - counts[:, 1]).sum() < 0.005 * counts[:, 1].sum()


@settings(deadline=None)
@given(ANY)
def test_lines_are_counted_as_by_str_splitlines_and_str_split(text):
    lines, inner = text.splitlines(), [line for line in text.split("\n") if line.strip()]
    assert TextStats(text).line_counts("", 5) == [
        len(lines),
        sum(line.lstrip().startswith(("•", "-")) for line in lines),
        sum(line.rstrip().endswith(("...", "…")) for line in lines),
        len(inner),
        sum(line.endswith(tuple(text_stats.terminal())) for line in inner),
        sum(len(line) <= 5 for line in inner),
    ]
    assert TextStats(text).lines == inner


@settings(deadline=None)
@given(ANY, st.booleans())
def test_words_are_counted_by_the_classes_of_their_characters(text, apart):
    words, marks = WordStats(TextStats(text).codes, apart), text_stats.character_classes("")
    cut = words.of(text)
    symbols = [w for w in cut if all(marks[ord(c)] & text_stats.SYMBOL for c in w)]
    assert (words.count, words.symbols, words.unlettered) == (
        len(cut),
        len(symbols),
        sum(not any(map(str.isalpha, w)) for w in cut),
    )
    assert words.plain_chars == sum(map(len, cut)) - sum(map(len, symbols))
    assert words.distinct(word_hashes(["ab", "Ab", "ab", "n't"]), 9) == len({"ab", "Ab", "n't"} & set(cut))


def test_no_letter_or_space_is_beyond_the_table():
    table = text_stats.character_classes("")
    every = "".join(map(chr, range(0x110000)))
    assert [bool(t & text_stats.ALPHA) for t in table] == list(map(str.isalpha, every))
    assert [bool(t & text_stats.SPACE) for t in table] == list(map(str.isspace, every))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "cc"]), max_size=9))
def test_duplicates_are_items_that_equal_an_earlier_one(items):
    again = [item for i, item in enumerate(items) if item in items[:i]]
    assert duplicates(items) == (len(again), sum(map(len, again)))


def test_a_long_text_is_counted_as_a_short_one():
    words = [f"w{i}" for i in range(70_000)]
    assert TextStats(" ".join(words)).words("space").repetition == [
        len("w0 w1"),
        len("w0 w1 w2"),
        len("w0 w1 w2 w3"),
        0,
        0,
        0,
        0,
        0,
        0,
    ]
    chars = len("".join(words[:10]))
    assert TextStats(" ".join(words[:10] + words)).words("space").repetition[3:] == [
        chars,
        len("".join(words[:6])),
        len("".join(words[:7])),
        len("".join(words[:8])),
        len("".join(words[:9])),
        chars,
    ]
