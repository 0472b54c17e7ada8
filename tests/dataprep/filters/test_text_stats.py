"""Word splitters and counts, compared with Python's splitting and a table worked out by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.filters import text_stats
from mt.dataprep.filters.text_stats import TextStats, WordStats, duplicates, word_hashes
from mt.tests.repeated_units import excess

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


MULTIPLIERS = [0xBF58476D1CE4E5B9, int(text_stats.PRIME), 1]


def words_of_one_slot(multiplier, words):
    """Hashes of words. The hash of each two of them, times the multiplier, is a small number."""
    inverse, prime = pow(multiplier, -1, 2**64), int(text_stats.PRIME)
    hashes = [1]
    for i in range(words - 1):
        hashes.append((i * inverse - hashes[-1] * prime - int(text_stats.BLANK)) % 2**64)
    return np.array(hashes, np.uint64)


def repetition_of(hashes):
    return text_stats.repetition(hashes, np.ones(len(hashes), np.uint64), np.ones(len(hashes), np.int32), 1)


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
def test_n_grams_made_to_have_one_slot_take_linear_time(multiplier):
    repetition_of(words_of_one_slot(multiplier, 10))  # compiles the loop
    assert not excess(repetition_of, lambda words: words_of_one_slot(multiplier, words), 20_000, 0.02)


@given(st.lists(st.sampled_from(["a", "b", "ab", "aab", "ba", ".", "c"]), max_size=60), st.booleans())
def test_n_grams_are_the_same_if_only_those_with_equal_beginnings_are_compared(words, apart):
    """Also where equal n-grams are cut into other words: `a ab` and `aa b`."""
    stats = TextStats(" ".join(words)).words("apart" if apart else "space")
    for stride in (1, 2):
        numbers = stats.hashes, stats.powers, stats.ends - stats.starts, stride
        assert text_stats.repetition(*numbers, stats.codes, stats.starts) == text_stats.repetition(*numbers)


@settings(deadline=None)
@given(ANY)
def test_a_word_is_hashed_by_its_characters_wherever_it_is_split(text):
    """Also a chunk of letters, or of letters and a mark, which are split and hashed at once."""
    stats = TextStats(text).words("apart")
    cut = stats.of(text)
    assert stats.hashes.tolist() == [int(word_hashes([word])[0]) for word in cut]
    assert stats.powers.tolist() == [pow(int(text_stats.PRIME), len(word), 2**64) for word in cut]


def test_a_letter_is_no_symbol():
    """The splitter counts a word of letters without looking."""
    table = text_stats.character_classes("")
    assert not ((table & text_stats.ALPHA > 0) & (table & (text_stats.SYMBOL | text_stats.SPACE) > 0)).any()


def test_nobody_knows_the_slots_of_n_grams_and_nothing_depends_on_them():
    hashes = np.random.default_rng(1).integers(0, 3, 2_000, np.uint64)
    spreads, results = set(), []
    for _ in range(3):
        text_stats._spread.cache_clear()
        spreads.add(int(text_stats._spread()))
        results.append(repetition_of(hashes))
    assert len(spreads) == 3
    assert all(spread % 2 for spread in spreads)
    assert results[0] == results[1] == results[2]
