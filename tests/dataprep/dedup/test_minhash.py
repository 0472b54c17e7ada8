"""MinHash signatures and bands, compared with exact similarities, datasketch and loops in Python."""

import numpy as np
import pytest
from datasketch import MinHash
from datasketch.lsh import _optimal_param
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.dedup import minhash, shingles


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9])
def test_the_fraction_of_equal_signature_values_estimates_the_similarity(similarity):
    random, size, permutations, errors = np.random.default_rng(0), 300, 256, []
    common = round(similarity * 2 * size / (1 + similarity))
    for _ in range(60):
        base = random.integers(0, 1 << 64, 2 * size - common, np.uint64)
        a, b = base[:size], base[size - common :]
        signature = minhash.minhash_signatures(
            np.concatenate((a, b)), np.array([0, size, 2 * size]), permutations
        )
        errors.append((signature[0] == signature[1]).mean() - common / len(base))
    expected = np.sqrt(
        similarity * (1 - similarity) / permutations
    )  # the standard deviation of a binomial variable
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


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_two_texts_have_equal_band_keys_if_all_values_of_the_band_are_equal(bands, rows, data):
    values = st.lists(st.integers(0, 2), min_size=bands * rows + 1, max_size=bands * rows + 1)
    signature = np.array(data.draw(st.lists(values, min_size=2, max_size=6)), np.uint32)
    keys = minhash.band_keys(signature, bands, rows)
    assert keys.shape == (bands, len(signature))
    for band in range(bands):
        own = [tuple(s) for s in signature[:, band * rows : (band + 1) * rows].tolist()]
        assert [[a == b for b in keys[band]] for a in keys[band]] == [[a == b for b in own] for a in own]


TWO_TEXTS = st.lists(st.text("ab \t\n\r\x1c") | st.text("aé \u3000", max_size=20), max_size=6)


@settings(deadline=None)  # the first call compiles
@given(TWO_TEXTS, st.sampled_from(["word", "char"]), st.booleans())
def test_shingles_and_exact_texts_are_the_same_compiled_or_not(texts, unit, compiled):
    hashes, first = minhash.text_shingles(texts, 2, unit, compiled)
    units = shingles.batch_characters(texts) if unit == "char" else shingles.batch_words(texts)
    expected, expected_first = shingles.shingle(*units, 2)
    assert (hashes.tolist(), first.tolist()) == (expected.tolist(), expected_first.tolist())
    exact = minhash.exact_texts(texts, compiled)
    assert [bytes(data) for data in exact] == [shingles.exact_bytes(text) for text in texts]


def test_a_signature_is_the_minimum_of_each_permutation():
    factors, offsets = (a.tolist() for a in minhash.permutations(3))
    assert all(factor % 2 for factor in factors), "an odd factor makes a permutation"
    values = [[7, 1 << 31], [123456789]]
    hashes = np.array([v << 32 for text in values for v in text], np.uint64)
    expected = [[min((v * a + b) % 2**32 for v in text) for a, b in zip(factors, offsets)] for text in values]
    assert minhash.minhash_signatures(hashes, np.array([0, 2, 3]), 3).tolist() == expected
