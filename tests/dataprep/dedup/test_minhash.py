"""Words, n-grams, signatures and bands, each against a slow way to the same thing."""

import re
import subprocess
import sys

import numpy as np
import pytest
from datasketch import MinHash
from datasketch.lsh import _optimal_param
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.dedup import minhash, shingles

TEXTS = st.lists(st.text() | st.text("ab _1.\n", max_size=60) | st.text("aé中Σ İ.", max_size=20), max_size=8)


def words_of(text):
    return [w.lower() for w in re.findall(r"\w+", text)]


@given(TEXTS)
def test_words_are_those_of_the_regular_expression(texts):
    hashes, first = shingles.batch_words(texts)
    assert np.diff(first).tolist() == [len(words_of(t)) for t in texts]
    flat = [w for t in texts for w in words_of(t)]
    assert len(hashes) == len(flat)
    assert len(set(hashes.tolist())) == len(set(flat)) == len(set(zip(flat, hashes.tolist())))


@given(TEXTS)
def test_characters_are_those_of_the_lower_cased_text_with_single_blanks(texts):
    hashes, first = shingles.batch_characters(texts)
    flat = [" ".join(t.lower().split()) for t in texts]
    assert np.diff(first).tolist() == [len(t) for t in flat]
    points = list("".join(flat))
    assert len(hashes) == len(points)
    assert len(set(hashes.tolist())) == len(set(points)) == len(set(zip(points, hashes.tolist())))


@given(st.text() | st.text("a \x1c\u2003\u3000é\x85\xa0", max_size=30))
def test_bare_bytes_are_those_of_the_text_without_what_split_drops(text):
    assert shingles.bare_bytes(text) == "".join(text.split()).encode()


def test_long_words_that_differ_in_any_byte_differ():
    words = ["x" * 23 + "y", "x" * 24, "x" * 25, "x" * 8, "x" * 16, "y" + "x" * 23, "x" * 8 + "y" + "x" * 15]
    assert len(set(shingles.batch_words(words)[0].tolist())) == len(words)


@given(TEXTS, st.integers(1, 6))
def test_shingles_are_those_of_a_loop(texts, n):
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


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9])
def test_signatures_agree_as_often_as_the_sets_are_similar(similarity):
    random, size, permutations, errors = np.random.default_rng(0), 300, 256, []
    common = round(similarity * 2 * size / (1 + similarity))
    for _ in range(60):
        base = random.integers(0, 1 << 64, 2 * size - common, np.uint64)
        a, b = base[:size], base[size - common :]
        signature = minhash.minhash_signatures(
            np.concatenate((a, b)), np.array([0, size, 2 * size]), permutations
        )
        errors.append(
            (signature[0] == signature[1]).mean() - minhash.jaccards([a, b], np.array([0]), np.array([1]))[0]
        )
    expected = np.sqrt(similarity * (1 - similarity) / permutations)  # of a binomial variable
    assert abs(np.mean(errors)) < 4 * expected / np.sqrt(60)
    assert np.std(errors) < 1.3 * expected


def test_signatures_estimate_the_similarity_of_sets_no_worse_than_those_of_datasketch():
    random, size, permutations = np.random.default_rng(1), 300, 128
    ours, theirs = [], []
    for common in range(100, 300, 4):
        base = random.integers(0, 1 << 64, 2 * size - common, np.uint64)
        sets = base[:size], base[size - common :]
        exact = common / len(base)
        signature = minhash.minhash_signatures(
            np.concatenate(sets), np.array([0, size, 2 * size]), permutations
        )
        ours.append((signature[0] == signature[1]).mean() - exact)
        sketches = [MinHash(permutations) for _ in sets]
        for sketch, hashes in zip(sketches, sets):
            sketch.update_batch([h.tobytes() for h in hashes])
        theirs.append(sketches[0].jaccard(sketches[1]) - exact)
    assert np.std(ours) < 1.3 * np.std(theirs)
    assert abs(np.mean(ours)) < 3 * np.std(theirs) / np.sqrt(len(theirs))


@pytest.mark.parametrize(
    ("threshold", "permutations", "missed"),
    [(0.7, 128, 0.5), (0.5, 64, 0.5), (0.9, 32, 0.5), (0.8, 48, 0.9), (0.7, 100, 0.98)],
)
def test_bands_are_chosen_as_datasketch_chooses_them(threshold, permutations, missed):
    assert minhash.choose_bands(threshold, permutations, missed) == _optimal_param(
        threshold, permutations, 1 - missed, missed
    )


def test_equal_bands_have_equal_keys_and_others_do_not():
    signature = np.array([[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]], np.uint32)
    keys = minhash.band_keys(signature, 2, 2)
    assert keys[0, 0] == keys[0, 1] != keys[0, 2]
    assert keys[1, 0] == keys[1, 2] != keys[1, 1]


@given(st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=8), st.data())
def test_jaccards_are_those_of_sets(sets, data):
    place = st.integers(0, len(sets) - 1)
    pairs = data.draw(st.lists(st.tuples(place, place), min_size=1, max_size=20))
    a, b = np.array(pairs).T
    hashes = [np.array(sorted(s), np.uint64) * np.uint64(0x9E3779B97F4A7C15) for s in sets]
    expected = [
        len(sets[i] & sets[j]) / len(sets[i] | sets[j]) if sets[i] | sets[j] else 1.0 for i, j in pairs
    ]
    assert minhash.jaccards(hashes, a, b).tolist() == expected


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(1, 6))
def test_compiled_loops_give_the_same_numbers(texts, n):
    loops = pytest.importorskip("mt.dataprep.dedup.minhash_numba", reason="numba is missing")
    hashes, first = shingles.shingle(*shingles.batch_words(texts), n)
    compiled, starts, bare, ends = loops.word_shingles([shingles.word_bytes(t) for t in texts], n)
    assert (hashes.tolist(), first.tolist()) == (compiled.tolist(), starts.tolist())
    for text, start, end in zip(texts, ends, ends[1:]):
        if text.isascii():
            assert bare[start:end].tobytes().decode() == "".join(text.split())
    if len(texts := [t for t in texts if words_of(t)]):
        hashes, first = shingles.shingle(*shingles.batch_words(texts), n)
        assert (
            minhash.minhash_signatures(hashes, first, 7)
            == minhash.minhash_signatures(hashes, first, 7, compiled=True)
        ).all()


def test_compiled_loops_do_not_import_what_other_packages_add_to_numba():
    """awkward, which gigatoken needs, registers with numba and takes a quarter of a second to import."""
    pytest.importorskip("awkward", reason="nothing else on this machine adds to numba")
    code = (
        "import sys; from mt.dataprep.dedup import minhash; minhash.text_shingles(['some words'], 5, 'word',"
        " True); sys.exit('awkward' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
