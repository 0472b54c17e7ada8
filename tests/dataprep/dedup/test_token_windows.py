"""Tokens, compared with an expression; anchors and hashes of windows, with all windows of a text."""

import collections
import itertools
import unicodedata

import numpy as np
import regex
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep import words
from mt.dataprep.dedup.token_windows import anchors, normalized_tokens, tokens, window_keys

TOKEN = regex.compile(rf"{words.WORD.pattern}|[^\s\x1c-\x1f][\p{{M}}\u200c\u200d]*")
PIECES = st.sampled_from(["a", "b", "ab", "A", "é", "e\u0301", "字", "カナ", "นี", ",", " ", "\n\n", "a b"])
TEXTS = st.lists(PIECES, max_size=40).map("".join)


@given(st.lists(TEXTS | st.text(), min_size=1, max_size=4))
def test_tokens_are_words_and_other_characters(texts):
    hashes, (starts, ends), first = tokens(texts)
    found = [
        [text[a:b] for a, b in zip(starts[low:high], ends[low:high])]
        for text, low, high in zip(texts, first[:-1], first[1:])
    ]
    assert found == [TOKEN.findall(text) for text in texts]
    by_hash = dict(zip(hashes.tolist(), (token for some in found for token in some)))
    assert len(by_hash) == len({token for some in found for token in some})


@given(st.text())
def test_normalization_changes_no_number_of_tokens(text):
    assert tokens([text])[1].shape == tokens([unicodedata.normalize("NFC", text)])[1].shape


@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 12))
def test_equal_windows_have_an_anchor_and_a_hash_of_their_own(texts, length):
    hashes, first = normalized_tokens(texts)
    found, anchor_of = anchors(hashes, first, length)
    starts = [i for low, high in itertools.pairwise(first) for i in range(low, high - length + 1)]
    assert np.flatnonzero(anchor_of >= 0).tolist() == starts
    keys = window_keys(hashes, np.array(starts, np.int64), length)
    facts = collections.defaultdict(set)
    for start, key in zip(starts, keys.tolist()):
        facts[tuple(hashes[start : start + length].tolist())].add((found[anchor_of[start]], *key))
    assert all(len(some) == 1 for some in facts.values())
    assert len(
        {key for some in facts.values() for _, *key in map(list, some) for key in [tuple(key)]}
    ) == len(facts)
    # each anchor is a place of its own, so windows at different places that are equal have two of them
    assert anchor_of[starts].tolist() == sorted(anchor_of[starts].tolist())
    assert len(found) == len(set(anchor_of[starts].tolist()))


@given(TEXTS, st.integers(1, 12))
def test_hashes_of_some_windows_are_those_of_all(text, length):
    hashes, _ = normalized_tokens([text])
    starts = np.arange(max(0, len(hashes) - length + 1))
    every = window_keys(hashes, starts, length)
    assert (window_keys(hashes, starts[::3], length) == every[::3]).all()
