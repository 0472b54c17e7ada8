"""Four times the files, or the shards, cost at most five times the steps and the syncs of each stage."""

import json
import os
import random
import sys

import pytest

from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.dedup.lines import DedupLinesConfig, dedup_lines
from mt.dataprep.dedup.substrings import DedupSubstringsConfig, dedup_substrings
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.dataprep.stats import StatsConfig, stats
from mt.indexed.build import TokenizeConfig, tokenize

WORDS = ("river", "field", "hill", "under", "rests", "old", "dog", "near", "runs", "barley", "slow", "fox")
STAGES = {
    "clean": (clean, CleanConfig, {}),
    "dedup": (dedup, DedupConfig, {"bands": 8, "rows": 3}),
    "dedup-lines": (dedup_lines, DedupLinesConfig, {"min_chars": 5}),
    "dedup-substrings": (dedup_substrings, DedupSubstringsConfig, {"min_tokens": 5}),
    "stats": (stats, StatsConfig, {}),
    "tokenize": (tokenize, TokenizeConfig, {"tokenizer_type": "ByteLevelTokenizer"}),
}


def write_files(folder, count, documents):
    """Files of that many documents. Three files that follow each other hold exact and near copies."""
    folder.mkdir()
    for number in range(count):
        lines = []
        for i in range(documents):
            words = random.Random(f"{number // 3} {i}").choices(WORDS, k=20)
            text = " ".join(words if number % 3 else [*words, "end"])
            lines.append(json.dumps({"id": f"{number}-{i}", "text": text}) + "\n")
        (folder / f"{number:04d}.jsonl").write_text("".join(lines))


def cost(stage, folder, output, **more):
    """(calls of functions, syncs of files and folders) of a stage on one process."""
    run, kind, settings = STAGES[stage]
    where = "output_prefix" if kind is TokenizeConfig else "output"
    config = kind(**{"input": (str(folder),), where: str(output), "workers": 1, **settings, **more})
    calls = syncs = 0

    def count_call(frame, event, function):
        nonlocal calls
        calls += event in ("call", "c_call")

    def count_sync(handle):
        nonlocal syncs
        syncs += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", count_sync)
        sys.setprofile(count_call)
        try:
            run(config)
        finally:
            sys.setprofile(None)
    return calls, syncs


@pytest.mark.parametrize("stage", STAGES)
def test_steps_are_linear_in_the_number_of_one_line_files(tmp_path, stage):
    write_files(tmp_path / "first", 1, 3)
    cost(stage, tmp_path / "first", tmp_path / "unmeasured/p")  # imports and compiles
    write_files(tmp_path / "few", 300, 1)
    write_files(tmp_path / "many", 1200, 1)
    few, few_syncs = cost(stage, tmp_path / "few", tmp_path / "few_out/p")
    many, many_syncs = cost(stage, tmp_path / "many", tmp_path / "many_out/p")
    assert many <= 5 * few
    assert many_syncs <= few_syncs + 10, "the files share a shard"
    assert many <= 800 * 1200


@pytest.mark.parametrize("stage", ["clean", "dedup", "dedup-lines", "dedup-substrings", "stats"])
def test_steps_and_syncs_are_linear_in_the_number_of_shards(tmp_path, stage):
    more = {"shard_bytes": 1 << 16} if stage != "stats" else {}
    write_files(tmp_path / "first", 1, 3)
    cost(stage, tmp_path / "first", tmp_path / "unmeasured/p", **more)
    write_files(tmp_path / "few", 15, 12)
    write_files(tmp_path / "many", 60, 12)
    few, few_syncs = cost(stage, tmp_path / "few", tmp_path / "few_out/p", **more)
    many, many_syncs = cost(stage, tmp_path / "many", tmp_path / "many_out/p", **more)
    assert many <= 5 * few
    assert many_syncs <= 5 * few_syncs
    if stage == "clean":  # a file of documents, one of removals, the result; each with its folder
        assert many_syncs <= 60 * 6 + 10
        assert len(list((tmp_path / "many_out/p").glob("*.jsonl"))) == 60
