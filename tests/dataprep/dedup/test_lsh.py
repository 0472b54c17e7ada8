"""The steps from keys to decisions, compared with a small corpus worked out by hand."""

import json

import numpy as np
import pytest

from mt.dataprep.dedup import dedup as dedup_module
from mt.dataprep.dedup import lsh
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def text(*changes, extra=""):
    """A text of ten words, some of them replaced."""
    return " ".join("new" if i in changes else w for i, w in enumerate(WORDS)) + extra


OLD = [
    {"id": "old a", "text": text()},  # 6 n-grams of 5 words
    {"id": "old copy of a", "text": text(extra="  ")},
    {"id": "old b", "text": "something else that nobody else says here"},
]
NEW = [
    {"id": "c", "text": "a text of its own, with words of its own"},
    {"id": "copy of a", "text": text()},
    {"id": "near a", "text": text(extra=" eleven")},  # 6 of 7 n-grams
    {"id": "d", "text": "the first text of a new cluster of near copies"},  # 6 n-grams
    {"id": "near d", "text": "the first text of a new cluster of near copies too"},  # 6 of 7, and longer
    {"id": "copy of d", "text": "the first text of a new cluster\nof near copies"},
    {"id": "e", "text": "..."},
]


def run(tmp_path, monkeypatch, **settings):
    """(decisions by shard, counts, manifest) of the new documents against the old ones."""
    for name, rows in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"workers": 1, "bands": 50, "rows": 1, "threshold": 0.8, **settings}
    dedup(
        DedupConfig(
            input=(str(tmp_path / "old.jsonl"),),
            output=str(tmp_path / "old"),
            save_signatures=True,
            **settings,
        )
    )
    recorded = {}
    original = lsh.find_duplicates

    def find_duplicates(tasks, shards):
        recorded["counts"] = original(tasks, shards)
        recorded["decisions"] = [np.load(p) for p in sorted((tasks.folder / "decide").glob("*.npy"))]
        return recorded["counts"]

    monkeypatch.setattr(dedup_module.lsh, "find_duplicates", find_duplicates)
    manifest = dedup(
        DedupConfig(
            input=(str(tmp_path / "new.jsonl"),),
            output=str(tmp_path / "out"),
            against=(str(tmp_path / "old"),),
            **settings,
        )
    )
    return recorded["decisions"], recorded["counts"], manifest


def test_decisions_and_counts_are_those_worked_out_by_hand(tmp_path, monkeypatch):
    (decided,), counts, manifest = run(tmp_path, monkeypatch)
    # documents 0 to 2 are old: a, its copy, b; 3 to 9 are new: c, copy of a, near a, d, near d, copy of d, e
    six_sevenths = pytest.approx(6 / 7)
    assert [tuple(row) for row in decided.tolist()] == [
        (1, False, 0, 1.0),
        (2, True, 0, six_sevenths),
        (3, True, 7, six_sevenths),  # d for near d, which is longer
        (5, True, 7, six_sevenths),
    ]
    assert counts == {"clusters": 2, "candidate_pairs": 2, "near_pairs": 2}
    assert manifest["counts"]["removed"] == {"exact": 1, "near": 3}


def test_the_first_document_of_a_cluster_survives_if_configured(tmp_path, monkeypatch):
    (decided,), _, _ = run(tmp_path, monkeypatch, survivor="first")
    assert decided[["row", "near", "survivor"]].tolist() == [
        (1, False, 0),
        (2, True, 0),
        (4, True, 6),  # near d for d
        (5, False, 6),  # and the copy of d is an exact copy of the survivor
    ]


def test_pairs_below_the_threshold_are_candidates_only(tmp_path, monkeypatch):
    (decided,), counts, _ = run(tmp_path, monkeypatch, threshold=0.9)
    assert decided[["row", "near", "survivor"]].tolist() == [(1, False, 0), (5, False, 6)]
    assert counts == {"clusters": 2, "candidate_pairs": 2, "near_pairs": 0}


def test_a_pair_exactly_at_the_threshold_is_a_near_duplicate(tmp_path, monkeypatch):
    _, counts, _ = run(tmp_path, monkeypatch, threshold=6 / 7)
    assert counts["near_pairs"] == 2
