"""Survivors of clusters, compared with merged sets; the number of rounds for long chains."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.dedup import components
from mt.dataprep.dedup.key_index import Corpus, ShardKeys, save_array

GRAPH = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40),
    )
)


def survivors(folder, lengths, edges, cuts, new=0, longest=True):
    """(survivor of each document, number of rounds). cuts: the first document of each part but the first."""
    bounds = [0, *cuts, len(lengths)]
    corpus = Corpus(
        [ShardKeys(folder / f"keys/{i:05d}", b - a) for i, (a, b) in enumerate(itertools.pairwise(bounds))]
    )
    pairs = np.array([(max(e), min(e)) for e in edges if e[0] != e[1]], np.int64).reshape(-1, 2).T
    reached = []
    for part, (low, high) in enumerate(itertools.pairwise(bounds)):
        save_array(folder / f"keys/{part:05d}.chars.npy", np.array(lengths[low:high], np.uint32))
        own = pairs[:, (pairs[0] >= low) & (pairs[0] < high)]
        own = own[:, np.argsort(own[0])]
        save_array(folder / f"clusters/edges/{part:05d}.npy", own)
        save_array(folder / f"clusters/edges/{part:05d}.reverse.npy", own[::-1, np.argsort(own[1])])
        nodes = np.arange(low, high)
        save_array(folder / f"clusters/nodes/{part:05d}.npy", np.stack((nodes, nodes)))
        reached.append(corpus.parts_of(own[1]))
    last = components.find_survivors(
        folder / "clusters", corpus, new, longest, reached, label="test", workers=1
    )
    rank, node = np.concatenate(
        [np.load(last / f"{part:05d}.npy") for part in range(len(bounds) - 1)], axis=1
    )
    assert (components.rank_numbers(rank) == node).all()
    return node.tolist(), int(last.name)


@settings(deadline=None, max_examples=15)
@given(GRAPH, st.booleans(), st.data())
def test_survivors_are_the_best_of_merged_sets(tmp_path_factory, graph, longest, data):
    lengths, edges = graph
    n = len(lengths)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    new = data.draw(st.integers(0, n))
    member = {i: {i} for i in range(n)}
    for a, b in edges:
        union = member[a] | member[b]
        for i in union:
            member[i] = union
    best = lambda i: (i >= new, -lengths[i] if longest else 0, i)
    expected = [min(member[i], key=best) for i in range(n)]
    assert survivors(tmp_path_factory.mktemp("graph"), lengths, edges, cuts, new, longest)[0] == expected


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_chain_of_a_thousand_takes_few_rounds(tmp_path, shuffled):
    order = np.random.default_rng(0).permutation(1000).tolist() if shuffled else list(range(1000))
    found, rounds = survivors(tmp_path, [1] * 1000, list(itertools.pairwise(order)), [300, 700])
    assert set(found) == {0}
    assert rounds <= 20  # two rounds for each doubling of the length
