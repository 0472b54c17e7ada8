"""Repeated lines, compared with a loop over a set; the same bytes for any workers, shards and ranges."""

import json
import random
import re

import pytest

from mt.core.config import UserError
from mt.dataprep.dedup.lines import DedupLinesConfig, dedup_lines


def lines(folder):
    return [
        json.loads(line)
        for p in sorted(folder.glob("*.jsonl"))
        for line in p.read_text(encoding="utf-8").splitlines()
    ]


def run(tmp_path, texts, name="out", **settings):
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"id": str(i), "text": t, "n": i}) + "\n" for i, t in enumerate(texts))
    )
    manifest = dedup_lines(
        DedupLinesConfig(
            **{
                "input": (str(source),),
                "output": str(tmp_path / name),
                "workers": 1,
                "min_chars": 5,
                **settings,
            }
        )
    )
    return manifest, lines(tmp_path / name), lines(tmp_path / name / "removed")


def texts(seed=0, count=400, between="\n"):
    rng = random.Random(seed)
    stock = [f"a sentence numbered {i} of this corpus" for i in range(2000)] + [
        "short",
        "}",
        "",
        "  ",
        "é" * 6,
    ]
    return [
        between.join(
            rng.choice([s, s, f" {s}", s.replace(" ", "  ")])
            for s in rng.choices(stock, k=rng.randint(1, 12))
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("unit", "between"), [("line", "\n"), ("paragraph", "\n \n")])
def test_the_removed_lines_are_those_that_a_loop_finds(tmp_path, unit, between):
    corpus = texts(between=between)
    seen, expected, gone, count = set(), {}, {}, 0
    for i, text in enumerate(corpus):
        kept, cut = [], 0
        for piece in text.split("\n") if unit == "line" else re.split(r"\n\s*\n", text):
            key = "".join(piece.split())
            if len(piece.strip()) >= 5 and key in seen:
                cut += 1
                continue
            if len(piece.strip()) >= 5:
                seen.add(key)
            kept.append(piece)
        count += cut
        if not cut:
            expected[i] = text
        elif not "".join(kept).strip():
            gone[i] = cut
        else:
            expected[i] = kept
    manifest, kept, removed = run(tmp_path, corpus, unit=unit)
    assert [r["n"] for r in kept] == list(expected)
    squeeze = lambda text: "".join(text.split())
    for r in kept:
        whole = expected[r["n"]]
        if isinstance(whole, str):
            assert r["text"] == whole
        else:
            assert squeeze(r["text"]) == squeeze("".join(whole))
            assert "\n" in r["text"] or len([p for p in whole if p.strip()]) == 1
    assert removed == [{"id": str(i), "reason": "repeated", "lines": n} for i, n in gone.items()]
    assert manifest["cut"]["lines"] == count > 500
    assert removed


def test_workers_shards_and_ranges_do_not_change_the_result(tmp_path):
    corpus = texts(1, 2500)
    _, one, gone = run(tmp_path, corpus, "one")
    for name, how in {"two": {"workers": 2, "shard_bytes": 1 << 16}, "ranges": {"range_keys": 100}}.items():
        assert run(tmp_path, corpus, name, **how)[1:] == (one, gone)


def test_a_line_repeated_within_a_document_is_kept_once_and_short_ones_always(tmp_path):
    text = (
        "A refrain of some words\n}\nA verse of other words\nA refrain  of some words\n}\n\nThe end of it all"
    )
    _, kept, _ = run(tmp_path, [text, "}\n}\nNothing else"])
    assert [r["text"] for r in kept] == [
        "A refrain of some words\n}\nA verse of other words\n}\n\nThe end of it all",
        "}\n}\nNothing else",
    ]


def test_a_length_of_zero_is_refused(tmp_path):
    with pytest.raises(UserError, match="min_chars = 0 must be at least 1"):
        DedupLinesConfig(input=("x.jsonl",), output=str(tmp_path), min_chars=0)


def test_a_line_of_exactly_min_chars_is_removed_and_whitespace_around_it_does_not_count(tmp_path):
    _, kept, _ = run(tmp_path, ["12345\nkeep", "1234 \n1234\n12345\nkeep too", "1234 "])
    assert [r["text"] for r in kept] == ["12345\nkeep", "1234 \n1234\nkeep too", "1234 "]


def test_range_keys_must_be_positive(tmp_path):
    DedupLinesConfig(input=("x.jsonl",), output="y", min_chars=1, range_keys=1)
    with pytest.raises(UserError, match="range_keys = 0 must be at least 1"):
        DedupLinesConfig(input=("x.jsonl",), output="y", range_keys=0)
