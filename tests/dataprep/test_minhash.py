"""Words, n-grams, signatures and bands, each against a slow way to the same thing."""

import re

import numpy as np
import pytest
from datasketch.lsh import _optimal_param
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep import minhash

TEXTS = st.lists(st.text() | st.text("ab _1.\n", max_size=60) | st.text("aé中Σ İ.", max_size=20), max_size=8)


def words_of(text):
    return [w.lower() for w in re.findall(r"\w+", text)]


@given(TEXTS)
def test_words_are_those_of_the_regular_expression(texts):
    hashes, first = minhash.batch_words(texts)
    assert np.diff(first).tolist() == [len(words_of(t)) for t in texts]
    flat = [w for t in texts for w in words_of(t)]
    assert len(hashes) == len(flat)
    assert len(set(hashes.tolist())) == len(set(flat)) == len(set(zip(flat, hashes.tolist())))


@given(TEXTS)
def test_characters_are_those_of_the_lower_cased_text_with_single_blanks(texts):
    hashes, first = minhash.batch_characters(texts)
    flat = [" ".join(t.lower().split()) for t in texts]
    assert np.diff(first).tolist() == [len(t) for t in flat]
    points = list("".join(flat))
    assert len(hashes) == len(points)
    assert len(set(hashes.tolist())) == len(set(points)) == len(set(zip(points, hashes.tolist())))


def test_long_words_that_differ_in_any_byte_differ():
    words = ["x" * 23 + "y", "x" * 24, "x" * 25, "x" * 8, "x" * 16, "y" + "x" * 23, "x" * 8 + "y" + "x" * 15]
    assert len(set(minhash.batch_words(words)[0].tolist())) == len(words)


@given(TEXTS, st.integers(1, 6))
def test_shingles_are_those_of_a_loop(texts, n):
    words, first = minhash.batch_words(texts)
    hashes, starts = minhash.shingle(words, first, n)
    place = dict(zip([w for t in texts for w in words_of(t)], words))
    for text, start, end in zip(texts, starts, starts[1:]):
        own = words_of(text)
        grams = [own[i : i + n] for i in range(len(own) - n + 1)] or ([own] if own else [])
        expected = [int(minhash.ngram_hashes(np.array([place[w] for w in g], np.uint64), len(g))[0]) for g in grams]
        assert hashes[start:end].tolist() == expected


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9])
def test_signatures_agree_as_often_as_the_sets_are_similar(similarity):
    random, size, permutations, errors = np.random.default_rng(0), 300, 256, []
    common = round(similarity * 2 * size / (1 + similarity))
    for _ in range(60):
        base = random.integers(0, 1 << 64, 2 * size - common, np.uint64)
        a, b = base[:size], base[size - common :]
        signature = minhash.signatures(np.concatenate((a, b)), np.array([0, size, 2 * size]), permutations)
        errors.append((signature[0] == signature[1]).mean() - minhash.jaccard(np.sort(a), np.sort(b)))
    expected = np.sqrt(similarity * (1 - similarity) / permutations)  # of a binomial variable
    assert abs(np.mean(errors)) < 4 * expected / np.sqrt(60)
    assert np.std(errors) < 1.3 * expected


@pytest.mark.parametrize(("threshold", "permutations", "missed"), [(0.7, 128, 0.5), (0.5, 64, 0.5), (0.9, 32, 0.5), (0.8, 48, 0.9), (0.7, 100, 0.98)])
def test_bands_are_chosen_as_datasketch_chooses_them(threshold, permutations, missed):
    assert minhash.choose_bands(threshold, permutations, missed) == _optimal_param(threshold, permutations, 1 - missed, missed)


def test_equal_bands_have_equal_keys_and_others_do_not():
    signature = np.array([[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]], np.uint32)
    keys = minhash.band_keys(signature, 2, 2)
    assert keys[0, 0] == keys[0, 1] != keys[0, 2]
    assert keys[1, 0] == keys[1, 2] != keys[1, 1]


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_jaccard_is_that_of_sets(a, b):
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert minhash.jaccard(np.array(sorted(a), np.uint64), np.array(sorted(b), np.uint64)) == expected
