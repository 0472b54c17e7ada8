"""Slow ranks: which are found, their lines in the log and the table, and manual garbage collection."""

import gc
import json

import pytest

from mt.tests.train.parallel_jobs import train_with_a_slow_rank
from mt.train.stragglers import manual_gc, slow_ranks, table


def test_a_slow_rank_is_found_although_steps_take_the_same_time_on_all_ranks(pool, settings, tmp_path):
    pool.run(
        train_with_a_slow_rank, 2, settings(tmp_path / "run", log_interval=4, eval_iters=0, split="100,0,0")
    )
    for line in (json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()):
        assert line["slow"] == [1]
        assert line["slowest"] == 1
        fastest, _, slowest = line["block_seconds"]
        assert slowest > fastest + 0.02


def test_a_rank_that_computes_or_waits_for_data_longer_than_the_median_is_slow():
    assert slow_ranks((1.0, 1.0, 1.4), (0, 0, 0), 10) == []
    assert slow_ranks((1.0, 1.0, 1.6, 3.0), (0, 0, 0, 0), 10) == [3, 2]
    assert slow_ranks((1.0, 1.0, 1.0), (0.0, 1.6, 0.5), 10) == [1]
    assert slow_ranks((1.0, 1.6), (0, 0), 10) == [1]
    assert slow_ranks((1.0, 1.0), (5.0, 5.0), 10) == []  # data is slow on both, so no rank is


def test_the_table_shows_slow_ranks_and_the_median():
    assert table(
        40, [2], (0.01, 0.01, 0.03), (0, 0, 0.5), (2.0, 2.0, 2.0), ["node1", "node1", "node27"]
    ).splitlines() == [
        "mt: step 40: 1 of 3 ranks keeps the others waiting",
        "    rank  host    ms a block   data s    all s",
        "       2  node27       30.00     0.50     2.00",
        "  median               10.00     0.00     2.00",
    ]


@pytest.mark.parametrize("is_frozen", [False, True])
def test_garbage_is_collected_only_when_requested_and_what_the_caller_froze_stays_frozen(is_frozen):
    generations = []
    gc.unfreeze()
    if is_frozen:
        gc.freeze()
    assert gc.isenabled()
    with manual_gc(generations.append) as collect:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        collect()
        collect()
    assert generations == [1, 1]
    assert gc.isenabled()
    assert (gc.get_freeze_count() > 0) == is_frozen


def test_the_table_shows_eight_slow_ranks_and_the_median_of_an_existing_rank():
    blocks = tuple(0.01 * (rank + 1) for rank in range(24))
    lines = table(1234, list(range(23, 12, -1)), blocks, (0.0,) * 24, (1.0,) * 24, ["n"] * 24).splitlines()
    assert lines[0] == "mt: step 1,234: 11 of 24 ranks keep the others waiting"
    assert len(lines) == 2 + 8 + 1
    assert lines[2].split() == ["23", "n", "240.00", "0.00", "1.00"]
    assert lines[-1].split() == ["median", "120.00", "0.00", "1.00"]
