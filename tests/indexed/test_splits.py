"""Ranges of splits, compared with Megatron-LM's table."""

import pytest

from mt.core import config
from mt.indexed.splits import ranges


def test_ranges_equal_megatrons(megatron_golden):
    for split, rows in megatron_golden["split"].items():
        for count, wanted in rows.items():
            assert [list(r) if r else None for r in ranges(split, int(count))] == wanted, (split, count)


@pytest.mark.parametrize(
    ("split", "count", "wanted"),
    [
        ("969, 30, 1", 1000, ((0, 969), (969, 999), (999, 1000))),
        ("9.69/.3/.01", 1000, ((0, 969), (969, 999), (999, 1000))),
        ("1", 7, ((0, 7), None, None)),
        ("0,1", 7, (None, (0, 7), None)),
        ("969,30,1", 10, ((0, 10), (10, 10), (10, 10))),
        ("1,1", 5, ((0, 2), (2, 5), None)),  # a half is rounded to the even number
    ],
)
def test_ranges_worked_by_hand(split, count, wanted):
    assert ranges(split, count) == wanted


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "0,0,0", "inf,1"])
def test_a_malformed_split_is_refused_with_an_example(split):
    with pytest.raises(
        config.UserError, match=r"must be up to three shares for train, valid and test, such as 969,30,1"
    ):
        ranges(split, 10)
