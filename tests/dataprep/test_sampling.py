"""Records drawn at random: every one as often as the others, by few reads, and the same by the same seed."""

import collections
import json

import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
import zstandard

from mt.core.config import UserError
from mt.dataprep import sampling
from mt.dataprep.sampling import RecordFile, draw, records

SIZES = (1, 5, 0, 20, 14)


@pytest.fixture
def some(tmp_path):
    """Files of JSON lines, of compressed ones and of Parquet, with records that are numbered through."""
    files, number = [], 0
    for index, size in enumerate(SIZES):
        rows = [{"id": str(n), "text": "é" * n, "even": n % 2 == 0} for n in range(number, number + size)]
        number += size
        path = tmp_path / f"{index}.{('jsonl', 'jsonl.zst', 'jsonl', 'parquet', 'jsonl')[index]}"
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=6)
        else:
            path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
        files.append(RecordFile(path, size))
    return files


def drawn_ids(files, count, seed, *args):
    found = []
    for _, batch in draw(files, count, seed, *args):
        found += [int(drawn.record["id"]) for drawn in batch]
        if len(found) >= count:
            break
    return found[:count]


def is_even(record):
    return record["even"]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("even", [False, True])
def test_every_wanted_record_has_the_same_chance(some, monkeypatch, counted, even):
    monkeypatch.setattr(sampling, "RESERVOIR", 1)
    files = [RecordFile(file.path, file.rows if counted else None) for file in some]
    wanted = (is_even, 0.5) if even else ()
    counts = collections.Counter(n for seed in range(400) for n in drawn_ids(files, 3, seed, *wanted))
    expected = range(0, sum(SIZES), 2) if even else range(sum(SIZES))
    assert set(counts) == set(expected)
    assert sum(counts.values()) == 1200
    assert scipy.stats.chisquare([counts[n] for n in expected]).pvalue > 0.001


def test_none_is_drawn_twice_and_a_seed_draws_the_same(some):
    assert sorted(drawn_ids(some, 1000, 3)) == list(range(sum(SIZES)))
    assert drawn_ids(some, 5, 3) == drawn_ids(some, 5, 3) != drawn_ids(some, 5, 4)
    assert sorted(drawn_ids(some, 1000, 3, is_even, None)) == list(range(0, sum(SIZES), 2))
    assert sorted(drawn_ids(some, 1000, 3, is_even, 0.5)) == list(range(0, sum(SIZES), 2))


def test_only_files_with_a_drawn_record_are_read_and_only_so_far(some, monkeypatch):
    read = []
    real = sampling.records
    monkeypatch.setattr(
        sampling, "records", lambda path, rows=None: read.append((path, rows)) or real(path, rows)
    )
    _, found = next(draw(some, 2, 0))
    paths = [path for path, _ in read]
    assert len(paths) == len(set(paths)) <= 3
    assert {drawn.path for drawn in found[:2]} <= set(paths)
    assert sum(len(rows) for _, rows in read) == len(found) == 3


def test_a_rare_record_is_found_in_one_pass(some, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_LOOKED_AT", 4)
    assert drawn_ids(some, 1, 0, lambda record: record["id"] == "33", 1 / 40) == [33]


def test_rows_of_every_format_are_those_of_their_numbers(some):
    assert [[int(r["id"]) for _, r in records(file.path)] for file in some] == [
        [0], [1, 2, 3, 4, 5], [], [*range(6, 26)], [*range(26, 40)],
    ]  # fmt: skip
    assert [int(record["id"]) for _, record in records(some[3].path, {0, 7, 19})] == [6, 13, 25]
    assert [int(record["id"]) for _, record in records(some[1].path, {4})] == [5]


def test_a_file_with_fewer_records_than_its_manifest_says_is_refused(some):
    with pytest.raises(UserError, match=r"4\.jsonl: has fewer records than its manifest says"):
        list(draw([RecordFile(some[4].path, 99)], 99, 0))
    some[4].path.unlink()
    with pytest.raises(UserError, match="does not exist; run the stage's command again"):
        list(draw(some, 99, 0))
