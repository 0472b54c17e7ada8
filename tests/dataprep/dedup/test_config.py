"""The settings of deduplication: values that are refused, and the bands chosen for them."""

import pytest

from mt.core.config import UserError
from mt.dataprep.dedup.config import DedupConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold = 0.0 must be above 0 and at most 1"),
        ({"threshold": 1.1}, "threshold = 1.1 must be above 0 and at most 1"),
        ({"bands": 3}, "bands = 3 and rows = None go together: give both or neither"),
        ({"rows": 3}, "bands = None and rows = 3 go together: give both or neither"),
        ({"bands": 0, "rows": 3}, "bands = 0 and rows = 3 must be at least 1"),
        ({"bands": 3, "rows": 0}, "bands = 3 and rows = 0 must be at least 1"),
        ({"ngram": 0}, "ngram = 0 must be at least 1"),
        ({"num_perm": 0}, "num_perm = 0 must be at least 1"),
        ({"missed_weight": 1.5}, "missed_weight = 1.5 must lie between 0 and 1"),
        ({"missed_weight": -0.5}, "missed_weight = -0.5 must lie between 0 and 1"),
        ({"range_keys": 0}, "range_keys = 0 must be at least 1"),
        ({"against": ("a", "b", "a")}, "against names the same directory twice; name each once"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DedupConfig(input=("x.jsonl",), output="out", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 1.0},
        {"bands": 1, "rows": 1},
        {"ngram": 1, "num_perm": 1, "range_keys": 1},
        {"missed_weight": 0.0},
        {"missed_weight": 1.0},
        {"against": ("a", "b")},
    ],
)
def test_the_ends_of_every_range_are_accepted(settings):
    DedupConfig(input=("x.jsonl",), output="out", **settings)


def test_bands_are_those_given_or_chosen_or_none_without_near_duplicates():
    make = lambda **settings: DedupConfig(input=("x.jsonl",), output="out", **settings)
    assert make(bands=7, rows=2).banding() == (7, 2)
    assert make().banding() == (20, 5)  # the documented default
    assert make(method="exact", bands=7, rows=2).banding() == (0, 0)
    assert make(method="url").banding() == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "out"}, r"input must be given \(--input\)"),
        ({"input": ("a",)}, r"output must be given \(--output\)"),
        (
            {"input": ("a",), "output": "b", "index": "redis://h/0"},
            "index = redis://h/0 has no effect without --st",
        ),
        ({"stream": True, "input": ("a",)}, "input = a: a stream reads standard input alone"),
        ({"stream": True, "survivor": "longest"}, "survivor = longest: a stream keeps the first"),
        ({"stream": True, "bands": 1, "rows": 9}, "bands = 1 of rows = 9: a stream needs at least 2 bands"),
        ({"stream": True, "index": "redis://h"}, "must be redis://HOST"),
        ({"stream": True, "index": "redis://h/0?db=1"}, "must be redis://HOST"),
        ({"stream": True, "save_signatures": True}, "save_signatures = True has no effect with --stream"),
        ({"stream": True, "against": ("a",)}, "against = .* has no effect with --stream"),
        ({"stream": True, "encoding": "cp1252"}, "encoding = cp1252 has no effect with --stream"),
    ],
)
def test_a_stream_and_a_batch_refuse_the_settings_of_the_other(settings, message):
    with pytest.raises(UserError, match=message):
        DedupConfig(**settings)


def test_a_stream_takes_its_own_settings():
    DedupConfig(stream=True)
    DedupConfig(stream=True, input=("-",), output="logs", survivor="first", index="rediss://me:secret@h:1/12")
