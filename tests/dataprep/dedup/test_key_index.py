"""Equal keys on disk, compared with dictionaries in memory, for any parts, ranges and groups."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.dedup import key_index
from mt.dataprep.dedup.key_index import BandSearch, Corpus, ShardKeys, save_array


@settings(deadline=None, max_examples=30)  # examples write files
@given(st.lists(st.text() | st.just("\ud800é"), max_size=8), st.data())
def test_strings_are_read_back_by_row(tmp_path_factory, texts, data):
    stem = tmp_path_factory.mktemp("strings") / "00000"
    key_index.save_strings(stem, "id", texts)
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=5)) if texts else []
    assert key_index.load_strings(stem, "id", rows) == [texts[row] for row in rows]
    assert np.load(f"{stem}.id_ends.npy")[0] == 0


def test_documents_are_numbered_in_the_order_of_the_parts(tmp_path):
    sizes = [3, 0, 2, 1]
    for part, size in enumerate(sizes):
        chars = np.array([100 * part + row for row in range(size)], np.uint32)
        save_array(tmp_path / f"{part:05d}.chars.npy", chars)
    corpus = Corpus([ShardKeys(tmp_path / f"{part:05d}", size) for part, size in enumerate(sizes)])
    assert len(corpus) == 6
    assert [corpus.document_range(part) for part in range(4)] == [(0, 3), (3, 3), (3, 5), (5, 6)]
    assert corpus.look_up(np.array([5, 0, 4, 4, 2]), "chars", np.int64).tolist() == [300, 0, 201, 201, 2]
    found = [(part, at.tolist(), rows.tolist()) for part, at, rows in corpus.by_part(np.array([4, 0, 5, 3]))]
    assert found == [(0, [1], [0]), (2, [0, 3], [1, 0]), (3, [2], [0])]


@given(st.integers(0, 10**5), st.integers(100, 10**5))
def test_ranges_of_keys_cover_all_keys_and_have_about_the_wanted_size(documents, range_keys):
    ranges = key_index.key_ranges(documents, range_keys)
    assert (ranges[0][0], ranges[-1][1]) == (0, 1 << 64)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert len(ranges) == max(1, -(-documents // range_keys))
    widths = [high - low for low, high in ranges]
    assert max(widths) - min(widths) <= 1


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), max_size=3),
    st.integers(0, 9),
    st.integers(0, 10),
)
def test_columns_of_a_range_come_from_all_files_in_order(tmp_path_factory, files, low, high):
    folder = tmp_path_factory.mktemp("columns")
    for number, columns in enumerate(files):
        columns.sort()
        save_array(folder / f"{number}.npy", np.array(columns, np.int64).reshape(-1, 2).T)
    found = key_index.columns_between([folder / f"{n}.npy" for n in range(len(files))], low, high)
    assert found.T.tolist() == [list(c) for columns in files for c in columns if low <= c[0] < high]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=20))
def test_unique_columns_are_a_sorted_set(columns):
    found = key_index.unique_columns(np.array(columns, np.int64).reshape(-1, 2).T)
    assert found.T.tolist() == [list(c) for c in sorted(set(columns))]


def split(items, cuts):
    return [items[a:b] for a, b in itertools.pairwise([0, *cuts, len(items)])]


HALF = st.sampled_from([0, 1, 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(HALF, HALF), max_size=25), st.integers(1, 30), st.data())
def test_copies_are_the_later_documents_with_an_equal_key_except_for_the_zero_key(
    tmp_path_factory, keys, range_keys, data
):
    folder = tmp_path_factory.mktemp("exact")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=3)))
    parts = []
    for part, own in enumerate(split(keys, cuts)):
        key_index.save_exact_keys(
            folder / f"{part:05d}", [b"".join(half.to_bytes(8, "little") for half in key) for key in own]
        )
        parts.append(ShardKeys(folder / f"{part:05d}", len(own)))
    corpus = Corpus(parts)
    first = {}
    expected = []
    for number, key in enumerate(keys):
        if key != (0, 0):
            first.setdefault(key, number)
            if first[key] != number:
                expected.append([number, first[key]])
    ranges = key_index.key_ranges(len(corpus), range_keys)
    found = [key_index.exact_copies(corpus, low, high) for low, high in ranges]
    assert all(sorted(f[0].tolist()) == f[0].tolist() for f in found)
    assert sorted(np.concatenate(found, axis=1).T.tolist()) == expected


def paired(documents, window):
    """Pairs of documents with the same key: each with the `window` documents before it and with the first."""
    found = set()
    for i, later in enumerate(documents):
        found |= {
            (later, earlier) for earlier in [*documents[max(0, i - window) : i], *documents[: min(i, 1)]]
        }
    return found


def band_search(folder, keys, cuts, copies, range_keys):
    """A search over the band keys of documents, [{band keys} or None without n-grams], in parts."""
    bands = next((len(k) for k in keys if k), 1)
    parts, paths, first = [], [], 0
    for part, own in enumerate(split(keys, cuts)):
        stem = folder / f"{part:05d}"
        rows = [row for row, key in enumerate(own) if key]
        table = np.array([own[row] for row in rows], np.uint64).reshape(-1, bands).T
        save_array(stem.with_name(f"{part:05d}.keys.npy"), np.ascontiguousarray(table))
        save_array(stem.with_name(f"{part:05d}.rows.npy"), np.array(rows, np.uint32))
        own_copies = [c for c in copies if first <= c < first + len(own)]
        paths.append(folder / f"copies{part}.npy")
        save_array(paths[-1], np.array([own_copies, own_copies], np.int64))
        parts.append(ShardKeys(stem, len(own)))
        first += len(own)
    return BandSearch(Corpus(parts), paths, bands, range_keys, folder / "found")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.none() | st.tuples(*[st.sampled_from([0, 5, 1 << 63, (1 << 64) - 1])] * 3), min_size=1, max_size=25
    ),
    st.sampled_from([1, 2, 7, 1000]),
    st.data(),
)
def test_pairs_are_those_of_a_dictionary_for_any_ranges_and_groups(tmp_path_factory, keys, range_keys, data):
    folder = tmp_path_factory.mktemp("bands")
    document = st.integers(0, len(keys) - 1)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=4)))
    copies = sorted(data.draw(st.sets(document, max_size=3)))
    new = data.draw(document)
    window = data.draw(st.integers(1, 6))
    expected = set()
    for band in range(3):
        of_key = {}
        for number, key in enumerate(keys):
            if key and number not in copies:
                of_key.setdefault(key[band], []).append(number)
        for documents in of_key.values():
            expected |= paired(documents, window)
    expected = {pair for pair in expected if pair[0] >= new}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_index, "PAIR_WINDOW", window)
        search = band_search(folder, keys, cuts, copies, range_keys)
        for task in search.sorting_tasks():
            search.sort(task)
        for task in search.tasks():
            search.pairs(task, new=new)
    found = [np.load(path) for path in search.paths("pairs")]
    assert {tuple(column) for pairs in found for column in pairs.T.tolist()} == expected
    for pairs, path in zip(found, search.paths("earlier")):
        assert pairs.tolist() == key_index.unique_columns(pairs).tolist(), "each pair once, sorted"
        assert np.load(path)[0].tolist() == sorted(set(pairs[1].tolist()))


def test_a_small_corpus_is_searched_in_one_task_and_a_large_one_by_ranges_of_sorted_groups(tmp_path):
    keys = [(number, number, number) for number in range(10)]
    small = band_search(tmp_path / "small", keys, [4, 8], [], range_keys=1000)
    assert (small.sorting_tasks(), small.tasks()) == ([], [(0, 0, 3, 0)])
    two_bands = band_search(tmp_path / "two", keys, [4, 8], [], range_keys=20)
    assert two_bands.tasks() == [(0, 0, 2, 0), (1, 2, 3, 0)]
    large = band_search(tmp_path / "large", keys, [4, 8], [], range_keys=4)
    assert large.groups == [[0], [1], [2]]
    assert len(large.ranges) == 3
    assert large.sorting_tasks() == [(group, band) for group in range(3) for band in range(3)]
    assert large.tasks() == [(3 * band + r, band, band + 1, r) for band in range(3) for r in range(3)]
    grouped = band_search(tmp_path / "grouped", keys, [4, 8], [], range_keys=8)
    assert grouped.groups == [[0, 1], [2]]
