"""Blocks of rows: their sizes, their order, and what a second run computes again."""

import functools

import numpy as np
import pytest

from mt.retro import row_blocks
from mt.retro.row_blocks import block_size, cached_in_worker, count_missing, join_blocks, map_blocks


@pytest.fixture
def where():
    from mt.core.executor import Workers

    return Workers(workers=1).where


def squares(start, stop, *, record):
    with open(record, "a") as file:
        file.write(f"{start} {stop}\n")
    return np.stack([np.arange(start, stop) ** 2, -np.ones(stop - start, np.int64)], 1)


@pytest.mark.parametrize(
    ("chunks", "size"),
    [(1, 128), (127, 128), (8191, 128), (8192, 256), (100_000, 2048), (10**6, 16384), (10**9, 16384)],
)
def test_a_block_is_a_power_of_two_with_about_64_blocks(chunks, size):
    assert block_size(chunks) == size


def test_blocks_are_joined_in_order_and_a_second_run_computes_only_damaged_ones(tmp_path, where):
    record, folder = tmp_path / "record", tmp_path / "parts"
    run = lambda: map_blocks(
        functools.partial(squares, record=str(record)), 10, 4, folder, label="test", where=where
    )
    blocks = run()
    assert [b.name for b in blocks] == [
        "000000000000-000000000004.npy",
        "000000000004-000000000008.npy",
        "000000000008-000000000010.npy",
    ]
    assert sorted(record.read_text().split("\n")[:-1]) == ["0 4", "4 8", "8 10"]
    join_blocks(blocks, tmp_path / "all.npy", (10, 2))
    joined = np.load(tmp_path / "all.npy")
    assert joined.dtype == np.int64
    assert np.array_equal(joined[:, 0], np.arange(10) ** 2)
    assert count_missing(tmp_path / "all.npy") == 10
    record.write_text("")
    run()
    assert record.read_text() == "", "nothing is computed again"
    blocks[0].unlink()
    blocks[2].write_bytes(blocks[2].read_bytes()[:-1])
    assert run() == blocks
    assert sorted(record.read_text().split("\n")[:-1]) == ["0 4", "8 10"]
    assert np.array_equal(np.load(blocks[2])[:, 0], [64, 81])


def test_missing_entries_are_counted_in_every_row_of_a_large_file(tmp_path):
    rows = np.zeros((4096 * 2 + 5, 3), np.int64)
    rows[[0, 4095, 4096, 8191, 8192, 8196], 1] = -1
    np.save(tmp_path / "ids.npy", rows)
    assert count_missing(tmp_path / "ids.npy") == 6


def test_resources_of_a_worker_stay_open_until_its_blocks_are_done(tmp_path, where):
    opened = []

    @cached_in_worker
    def open_once(name):
        opened.append(name)
        return name

    try:

        def make(start, stop):
            open_once("a")
            return np.zeros(stop - start)

        for run in (1, 2):
            map_blocks(make, 3, 1, tmp_path / str(run), label="test", where=where)
            assert opened == ["a"] * run, "once for three blocks, and again in the next build"
    finally:
        row_blocks._worker_caches.pop()
