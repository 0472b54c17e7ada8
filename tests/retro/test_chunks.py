import numpy as np
import pytest

from mt.indexed.neighbors import CHUNK
from mt.retro import chunks
from mt.retro.chunks import document_ranges, own_ranges, sample_texts, select_chunks, write_chunks
from mt.tokenizer.tokenizer import TokenizerConfig, load

EOD, LENGTH = 0, 4


def table_of(path, data, chunk_length=4, max_chunks=None, eod=EOD):
    selection = select_chunks(data, chunk_length, eod, max_chunks)
    write_chunks(path / "chunks.npy", data, selection)
    table = np.load(path / "chunks.npy", mmap_mode="r")
    assert table.dtype == CHUNK
    assert len(table) == selection.chunks
    return [tuple(map(int, row)) for row in table], selection


def by_loop(datasets, chunk_length, eod=EOD):
    """datasets: each a list of documents; each document a list of sequences."""
    rows = []
    for number, documents in enumerate(datasets):
        for document, sequences in enumerate(documents):
            tokens = [t for s in sequences for t in s]
            if tokens and tokens[-1] == eod:
                tokens.pop()
            rows += [
                (number, document, start, min(start + chunk_length, len(tokens)))
                for start in range(0, len(tokens), chunk_length)
            ]
    return rows


def random_documents(seed, count):
    rng = np.random.default_rng(seed)
    return [
        [
            [*rng.integers(0, 9, rng.integers(0, 12)).tolist(), *([EOD] if rng.random() < 0.5 else [])]
            for _ in range(rng.integers(0, 3))
        ]
        for _ in range(count)
    ]


def test_an_example_has_the_chunks_worked_out_by_hand(write_data, tmp_path):
    data = write_data("a", [[[1, 2, 3, 4, 5, EOD]], [], [[EOD]], [[6, 7], [8, 9, EOD]]])
    rows, selection = table_of(tmp_path, [data])
    assert rows == [(0, 0, 0, 4), (0, 0, 4, 5), (0, 3, 0, 4)]
    assert (selection.documents_in, selection.documents, selection.empty_documents) == (4, 2, 2)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_random_documents_of_several_datasets_have_the_chunks_of_a_loop(
    write_data, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(chunks, "DOCUMENTS_AT_ONCE", at_once)
    documents = [random_documents(seed, 40) for seed in range(3)]
    data = [write_data(f"d{i}", d) for i, d in enumerate(documents)]
    assert table_of(tmp_path, data)[0] == by_loop(documents, 4)
    assert table_of(tmp_path, data, chunk_length=5, eod=None)[0] == by_loop(documents, 5, eod=None)


def test_only_one_end_of_document_token_is_removed(write_data, tmp_path):
    data = write_data("a", [[[1, EOD, EOD]], [[EOD, 1]]])
    assert table_of(tmp_path, [data])[0] == [(0, 0, 0, 2), (0, 1, 0, 2)]


def test_a_dataset_without_a_token_has_no_chunk(write_data, tmp_path):
    data = [write_data("a", [[], []]), write_data("b", [[[5]]])]
    assert table_of(tmp_path, data)[0] == [(1, 0, 0, 1)]


def test_a_limit_chooses_whole_documents_from_all_of_the_data(write_data, tmp_path):
    documents = [[[1] * (4 * (1 + i % 3))] for i in range(300)]
    data = [write_data("a", documents[:200]), write_data("b", documents[200:])]
    everything, _ = table_of(tmp_path, data)
    rows, selection = table_of(tmp_path, data, max_chunks=60)
    assert 50 <= len(rows) <= 60
    assert rows == sorted(set(rows) & set(everything))
    numbers = sorted({200 * r[0] + r[1] for r in rows})
    assert selection.documents == len(numbers)
    assert max(np.diff(numbers)) <= 11
    assert numbers[-1] >= 285
    for number in numbers[:-1]:  # the last document may be truncated
        assert sum(200 * r[0] + r[1] == number for r in rows) == len(documents[number][0]) // 4


def test_a_limit_smaller_than_the_only_document_truncates_it(write_data, tmp_path):
    rows, selection = table_of(tmp_path, [write_data("a", [[[1] * 100]])], max_chunks=3)
    assert rows == [(0, 0, 0, 4), (0, 0, 4, 8), (0, 0, 8, 12)]
    assert (selection.chunks_in, selection.chunks) == (25, 3)


def test_the_range_of_a_chunks_own_document_equals_that_of_a_loop(write_data, tmp_path):
    documents = [random_documents(seed, 30) for seed in (5, 6)]
    rows, _ = table_of(tmp_path, [write_data(f"d{i}", d) for i, d in enumerate(documents)], chunk_length=2)
    table = np.load(tmp_path / "chunks.npy")
    expected = [
        [
            next(i for i, r in enumerate(rows) if r[:2] == row[:2]),
            1 + max(i for i, r in enumerate(rows) if r[:2] == row[:2]),
        ]
        for row in rows
    ]
    for start, stop in [(0, len(rows)), (3, 4), (7, 31), (len(rows) - 2, len(rows))]:
        assert own_ranges(table, start, stop).tolist() == [
            [i, *e] for i, e in enumerate(expected[start:stop])
        ]


def test_the_chunks_of_a_document_are_found_by_its_number_and_none_where_it_has_none(write_data, tmp_path):
    data = [write_data("a", random_documents(5, 30)), write_data("b", random_documents(6, 30))]
    rows, _ = table_of(tmp_path, data, chunk_length=2, max_chunks=70)
    wanted_documents = [(d, n) for d in range(3) for n in range(32)]
    found = document_ranges(np.load(tmp_path / "chunks.npy", mmap_mode="r"), np.array(wanted_documents))
    for document, (first, past) in zip(wanted_documents, found.tolist()):
        assert list(range(first, past)) == [i for i, row in enumerate(rows) if row[:2] == document]


@pytest.mark.parametrize(
    ("tokens", "wanted"), [(3, 1), (LENGTH, 1), (3 * LENGTH + 1, 3), (1000 * LENGTH, 64)]
)
def test_sample_texts_are_full_chunks_from_the_start_of_the_longest_dataset(write_data, tokens, wanted):
    letters = [97 + i % 26 for i in range(tokens)]
    data = [write_data("short", [[[120]]]), write_data("long", [[letters]])]
    selection = select_chunks(data, LENGTH, None, None)
    tokenizer = load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer"))
    texts = sample_texts(data, tokenizer, selection)
    width = min(LENGTH, tokens)
    assert texts == [bytes(letters[i * width : (i + 1) * width]).decode() for i in range(wanted)]


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_a_table_is_extended_by_other_datasets(write_data, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(chunks, "CHUNKS_AT_ONCE", at_once)
    old, new = (random_documents(seed, 20) for seed in (5, 6))
    data = [write_data("old", old), write_data("new", new)]
    wanted, _ = table_of(tmp_path, data)
    table_of(tmp_path, data[:1])
    before = np.load(tmp_path / "chunks.npy")
    write_chunks(tmp_path / "both.npy", data[1:], select_chunks(data[1:], 4, EOD, None), before, 1)
    assert [tuple(map(int, row)) for row in np.load(tmp_path / "both.npy")] == wanted
