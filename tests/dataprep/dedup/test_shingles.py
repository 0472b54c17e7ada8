"""Words and shingles as hashes, compared with regular expressions and loops over Python strings."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.dedup import jaccard, minhash, shingles
from mt.dataprep.words import WORD
from mt.tests.memory import peak_growth

TEXTS = st.lists(
    st.text() | st.text("ab _1.\n", max_size=60) | st.text("aé中Σ İ.\u0301\u093eका", max_size=20), max_size=8
)


def words_of(text):
    words = WORD.findall(unicodedata.normalize("NFC", text))
    return " ".join(words).lower().split(" ") if words else []


@given(TEXTS)
def test_words_are_those_of_the_regular_expression(texts):
    texts = [unicodedata.normalize("NFC", t) for t in texts]
    hashes, first = shingles.batch_words(texts)
    assert np.diff(first).tolist() == [len(words_of(t)) for t in texts]
    flat = [w for t in texts for w in words_of(t)]
    assert len(hashes) == len(flat)
    assert len(set(hashes.tolist())) == len(set(flat)) == len(set(zip(flat, hashes.tolist())))


@given(TEXTS)
def test_characters_are_those_of_the_lower_cased_text_with_single_spaces(texts):
    texts = [unicodedata.normalize("NFC", t) for t in texts]
    hashes, first = shingles.batch_characters(texts)
    flat = [" ".join(unicodedata.normalize("NFC", t).lower().split()) for t in texts]
    assert np.diff(first).tolist() == [len(t) for t in flat]
    points = list("".join(flat))
    assert len(hashes) == len(points)
    assert len(set(hashes.tolist())) == len(set(points)) == len(set(zip(points, hashes.tolist())))


@given(st.text() | st.text("a \x1c\u2003\u3000é\x85\xa0\n\u0301", max_size=30))
def test_exact_bytes_are_those_of_the_text_with_single_spaces(text):
    text = unicodedata.normalize("NFC", text)
    unindented = "\n".join(line.strip() for line in text.split("\n"))
    spaced = " ".join(unindented.split()).encode()
    assert shingles.exact_bytes(unindented) == spaced
    # indented or not, exact copies differ in nothing else
    assert shingles.exact_bytes(text).decode().split() == spaced.decode().split()


@given(st.text("ab \t\n", max_size=12), st.text("ab \t\n", max_size=12))
def test_exact_copies_have_the_same_words_and_the_same_indentation(one, two):
    if shingles.exact_bytes(one) == shingles.exact_bytes(two):
        assert one.split() == two.split()
    for text in (one, two):
        assert shingles.exact_bytes(f"\n {text}\r\n") == shingles.exact_bytes(text)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("a b", "a \t b\n", True),
        ("a b", "a\r\n b", True),
        ("a b\n\nc", "a b c", True),
        ("e\u0301te\u0301", "\u00e9t\u00e9", True),
        ("1 23 4", "12 34", False),
        ("for x in a:\n    f(x)\n    g(x)\n", "for x in a:\n    f(x)\ng(x)\n", False),
        ("if a:\n\tb", "if a:\nb", False),
        ("now here", "nowhere", False),
        ("A", "a", False),
    ],
)
def test_exact_copies_differ_in_unicode_form_and_runs_of_white_space_only(one, two, same):
    one, two = (shingles.exact_bytes(unicodedata.normalize("NFC", text)) for text in (one, two))
    assert (one == two) == same


def test_long_words_that_differ_in_any_byte_differ():
    words = ["x" * 23 + "y", "x" * 24, "x" * 25, "x" * 8, "x" * 16, "y" + "x" * 23, "x" * 8 + "y" + "x" * 15]
    assert len(set(shingles.batch_words(words)[0].tolist())) == len(words)


@given(TEXTS, st.integers(1, 6))
def test_shingles_are_those_of_a_loop(texts, n):
    texts = [unicodedata.normalize("NFC", t) for t in texts]
    words, first = shingles.batch_words(texts)
    hashes, starts = shingles.shingle(words, first, n)
    place = dict(zip([w for t in texts for w in words_of(t)], words))
    for text, start, end in zip(texts, starts, starts[1:]):
        own = words_of(text)
        grams = [own[i : i + n] for i in range(len(own) - n + 1)] or ([own] if own else [])
        expected = [
            int(shingles.ngram_hashes(np.array([place[w] for w in g], np.uint64), len(g))[0]) for g in grams
        ]
        assert hashes[start:end].tolist() == expected


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        (["A b-c_D", "a B c_d"], True),  # case and punctuation do not count, underscores do
        (["a bc", "ab c"], False),
        (["ΑΣ ΣΑ", "ας σα"], True),  # one has a final sigma
        (["\u0130x", "i\u0307x"], True),  # the lower case of İ
        (["नमस्ते दुनिया", "नमसत दनय"], False),  # vowel signs belong to words
        (["e\u0301t\u00e9", "\u00e9te\u0301"], True),
    ],
)
def test_words_are_compared_in_lower_case(texts, same):
    hashes, first = shingles.batch_words([unicodedata.normalize("NFC", t) for t in texts])
    one, two = (hashes[a:b].tolist() for a, b in itertools.pairwise(first))
    assert (one == two) == same


def test_hashes_are_those_of_splitmix64():
    # the outputs of the reference implementation with the seeds 0 and 1234567
    # (https://prng.di.unimi.it/splitmix64.c); the generator adds the constant FOLD to its state before mixing
    state = np.array([0, 1234567], np.uint64) + shingles.FOLD
    assert shingles.mix64(state).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


@given(st.text() | st.text("aé中Σ İ.\u0301\u093eका,", max_size=20), st.integers(1, 7), st.integers(1, 9))
def test_a_long_text_has_the_shingles_and_the_signature_of_a_short_one(text, n, block):
    """Blocks end anywhere: between words, and within a text without spaces."""
    text = unicodedata.normalize("NFC", text)
    expected, first = shingles.shingle(*shingles.batch_words([text]), n)
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((shingles, "BLOCK"), (minhash, "BLOCK"), (jaccard, "BLOCK_HASHES")):
            patch.setattr(module, name, block)
        found = shingles.long_text_shingles(text, n)
        assert found.tolist() == expected.tolist()
        if len(found):
            signature = minhash.minhash_signatures(found, first, 8)
        assert jaccard.distinct_in_place(found).tolist() == sorted(set(expected.tolist()))
    if len(found):
        assert signature.tolist() == minhash.minhash_signatures(expected, first, 8).tolist()


def distinct_of(text):
    return len(jaccard.distinct_in_place(shingles.long_text_shingles(text, 5)))


def test_a_long_text_takes_eight_bytes_of_memory_for_a_word():
    """And those of blocks: 60 MB. All words at once took 560 MB."""
    unit = "ab cd ef gh "
    found, growth = peak_growth(
        "mt.tests.dataprep.dedup.test_shingles", "distinct_of", (unit, unit * 1_000_000)
    )
    assert found == 4
    assert growth < 8 * 4_000_000 + 100_000_000
