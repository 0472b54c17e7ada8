"""The difference of two texts by words: it makes one of the other, and its time is bounded."""

import difflib
import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep import word_diff as module
from mt.dataprep.word_diff import word_diff

text = st.text(alphabet="ab \n.é是", max_size=60)


def applied(a, b):
    """b, made of a by the steps, which follow each other without gaps."""
    made, i, j = "", 0, 0
    for tag, start, end, other_start, other_end in word_diff(a, b):
        assert (start, other_start) == (i, j)
        assert end > start or other_end > other_start
        if tag == "equal":
            assert a[start:end] == b[other_start:other_end]
        assert (tag == "insert") == (start == end)
        assert (tag == "delete") == (other_start == other_end)
        made += a[start:end] if tag == "equal" else b[other_start:other_end]
        i, j = end, other_end
    assert (i, j) == (len(a), len(b))
    return made


@given(text, text)
def test_the_steps_make_the_second_text_of_the_first(a, b):
    assert applied(a, b) == b


@given(st.lists(st.booleans(), max_size=30))
def test_every_run_of_changed_words_is_one_replacement(changed):
    old = [f"word{n}" for n in range(len(changed))]
    new = [f"new{n}" if is_new else word for n, (word, is_new) in enumerate(zip(old, changed))]
    steps = word_diff(" ".join(old), " ".join(new))
    runs = [is_new for is_new, _ in itertools.groupby(changed)]
    assert [tag == "replace" for tag, *_ in steps if tag != "equal"] == [True] * sum(runs)


def test_words_and_their_places():
    assert word_diff("the brown fox", "the red fox!") == [
        ("equal", 0, 4, 0, 4),
        ("replace", 4, 9, 4, 7),
        ("equal", 9, 13, 7, 11),
        ("insert", 13, 13, 11, 12),
    ]


def test_changes_with_a_space_between_them_are_one():
    assert [step[0] for step in word_diff("a b c d", "a x y d")] == ["equal", "replace", "equal"]


def test_long_texts_are_compared_by_lines_and_then_by_words():
    lines = [f"line {n} of many words that are long" for n in range(600)]
    changed = [*lines[:100], "line 100 of some words that are long", *lines[101:500], *lines[502:]]
    a, b = "\n".join(lines), "\n".join(changed)
    assert applied(a, b) == b
    different = [(tag, a[i:j], b[k:m]) for tag, i, j, k, m in word_diff(a, b) if tag != "equal"]
    assert different[0] == ("replace", "many", "some")
    assert sum(len(old) for _, old, _ in different[1:]) == len("\n".join(lines[500:502])) + 1


def test_no_more_than_the_most_units_are_compared(monkeypatch):
    compared = []

    class Matcher(difflib.SequenceMatcher):
        def __init__(self, junk, a, b):
            compared.append((len(a), len(b)))
            super().__init__(junk, a, b)

    monkeypatch.setattr(module.difflib, "SequenceMatcher", Matcher)
    generator = random.Random(0)
    a, b = (" ".join(generator.choices("abcdefgh\n", k=12_000)) for _ in range(2))
    assert applied(a, b) == b
    assert max(max(pair) for pair in compared) <= module.MOST_UNITS
    one_line = "x " * 5000, "y " * 5000
    compared.clear()
    assert applied(*one_line) == one_line[1]
    assert not [pair for pair in compared if max(pair) > module.MOST_UNITS]
