"""Similarities of pairs, compared with Python sets, in blocks of any size, and from sketches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.dedup import jaccard, signatures
from mt.dataprep.dedup.key_index import Corpus, ShardKeys


@given(st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=8), st.data())
def test_similarities_are_those_of_sets(sets, data):
    place = st.integers(0, len(sets) - 1)
    pairs = data.draw(st.lists(st.tuples(place, place), min_size=1, max_size=20))
    a, b = np.array(pairs).T
    hashes = [np.array(sorted(s), np.uint64) * np.uint64(0x9E3779B97F4A7C15) for s in sets]
    expected = [
        len(sets[i] & sets[j]) / len(sets[i] | sets[j]) if sets[i] | sets[j] else 1.0 for i, j in pairs
    ]
    assert jaccard.jaccard_similarities(hashes, a, b).tolist() == expected


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=6))
def test_distinct_hashes_are_the_sorted_set_of_each_text(texts):
    shingles = np.array([h for text in texts for h in text], np.uint64)
    first = np.cumsum([0, *map(len, texts)])
    hashes, ends = jaccard.distinct_hashes(shingles, first)
    assert [hashes[a:b].tolist() for a, b in itertools.pairwise([0, *ends.tolist()])] == [
        sorted(set(text)) for text in texts
    ]
    assert shingles.tolist() == [h for text in texts for h in text], "the input is not changed"


SETS = st.lists(st.sets(st.integers(0, 12), max_size=9), min_size=2, max_size=12)


def similarity_of(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


def save(folder, sets, cuts, num_old):
    """A corpus of sets in parts that begin at cuts; the first num_old parts have sketches."""
    bounds = [0, *cuts, len(sets)]
    parts = []
    arrays = [np.array(sorted(s), np.uint64) << np.uint64(32) for s in sets]
    for part, (low, high) in enumerate(itertools.pairwise(bounds)):
        parts.append(ShardKeys(folder / f"{part:05d}", high - low))
        own = arrays[low:high]
        if part < num_old:
            signatures.save_sketches(folder / f"{part:05d}", [signatures.sketch(a) for a in own])
            continue
        # two batches, with rows for empty sets
        half = len(own) // 2
        batches = [own[:half], own[half:]]
        jaccard.save_sets(
            folder / f"{part:05d}",
            np.arange(high - low),
            [np.concatenate([np.empty(0, np.uint64), *batch]) for batch in batches],
            [np.cumsum([len(a) for a in batch], dtype=np.int64) for batch in batches],
        )
    return jaccard.JaccardSimilarity(folder, Corpus(parts), num_old)


@settings(deadline=None, max_examples=40)
@given(SETS, st.data())
def test_similarities_of_a_corpus_are_those_of_sets_in_blocks_of_any_size(tmp_path_factory, sets, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sets)), max_size=3)))
    num_old = data.draw(st.integers(0, len(cuts)))
    document = st.integers(0, len(sets) - 1)
    pairs = data.draw(st.lists(st.tuples(document, document), min_size=1, max_size=30))
    similarity = save(tmp_path_factory.mktemp("sets"), sets, cuts, num_old)
    a, b = np.array(pairs).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaccard, "BLOCK_PAIRS", data.draw(st.integers(1, 8)))
        patch.setattr(jaccard, "BLOCK_HASHES", data.draw(st.integers(1, 30)))
        found = similarity(a, b)
    assert found.tolist() == [similarity_of(sets[i], sets[j]) for i, j in pairs]


def test_a_block_has_no_more_pairs_and_hashes_than_allowed_and_only_pairs_of_one_kind(tmp_path, monkeypatch):
    sets = [set(range(size)) for size in (3, 4, 1, 5, 2, 0, 6, 3)]
    similarity = save(tmp_path, sets, [3], num_old=1)
    monkeypatch.setattr(jaccard, "BLOCK_PAIRS", 4)
    monkeypatch.setattr(jaccard, "BLOCK_HASHES", 12)
    pairs = list(itertools.combinations(range(8), 2))
    a, b = np.array(pairs).T
    blocks = [block.tolist() for block in similarity._blocks(np.arange(len(pairs)), a, b)]
    assert sorted(itertools.chain(*blocks)) == list(range(len(pairs)))
    for block in filter(None, blocks):
        assert len(block) <= 4
        old = {min(pairs[i]) < 3 for i in block}
        assert len(old) == 1
        if old == {False}:
            assert sum(len(sets[d]) for i in block for d in pairs[i]) < 12 + 11, (
                "one pair beyond the limit at most"
            )
