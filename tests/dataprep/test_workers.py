"""Every stage writes the same bytes in one process, in two, and on Ray."""

import bz2
import gzip
import json
from pathlib import Path

import pytest

from mt.dataprep.decontaminate import DecontaminateConfig, decontaminate
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.dedup.lines import DedupLinesConfig, dedup_lines
from mt.dataprep.dedup.substrings import DedupSubstringsConfig, dedup_substrings
from mt.dataprep.extract.extract import ExtractConfig, extract
from mt.dataprep.extract.urls import UrlsConfig, urls
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.dataprep.holdout import HoldoutConfig, holdout
from mt.dataprep.stats import StatsConfig, stats

SECRET = " ".join(f"secret{i}" for i in range(13))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Documents with copies and planted evaluation texts, URLs, a dump, a crawl, each in several shards."""
    folder = tmp_path_factory.mktemp("files")
    body = lambda i: (
        f"Words of document {i}. "
        + " ".join(str(i * n) for n in range(60))
        + (f" {SECRET}." if i % 50 == 0 else "")
    )
    rows = [{"id": str(i), "text": body(i // 2), "lang": "none"} for i in range(1200)]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "broken\n")
    (folder / "test.jsonl").write_text(json.dumps({"text": SECRET}))
    (folder / "urls.txt").write_text("".join(f"http://example.org/{i % 700}\n" for i in range(3000)))
    pages = "".join(
        "<page><title>T"
        f" {i}</title><ns>0</ns><id>{i}</id><revision><text>{body(i)}</text></revision></page>\n"
        for i in range(400)
    )
    dump = f"<mediawiki><siteinfo><base>http://x.org/wiki/A</base></siteinfo>{pages}</mediawiki>".encode()
    (folder / "dump.xml.bz2").write_bytes(
        b"".join(bz2.compress(dump[i : i + 20_000]) for i in range(0, len(dump), 20_000))
    )
    for name in "ab":
        record = lambda i, name=name: (
            "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID:"
            f" <urn:uuid:{name}{i}>\r\nContent-Length: {len(body(i))}\r\n\r\n{body(i)}\r\n\r\n".encode()
        )
        (folder / f"{name}.warc.wet.gz").write_bytes(
            b"".join(gzip.compress(record(i), mtime=0) for i in range(50))
        )
    return folder


STAGES = {
    "clean": (clean, CleanConfig, {"rules": ("length min_chars=250",)}),
    "dedup": (dedup, DedupConfig, {}),
    "dedup-lines": (dedup_lines, DedupLinesConfig, {}),
    "dedup-substrings": (dedup_substrings, DedupSubstringsConfig, {"min_tokens": 5}),
    "holdout": (holdout, HoldoutConfig, {"min_chars": 10, "fraction": 0.1}),
    "decontaminate": (
        decontaminate,
        DecontaminateConfig,
        {
            "evaluation": ("test.jsonl",),
            "key_threshold": 0,
            "min_piece_chars": 5,
            "remove_chars_each_side": 5,
        },
    ),
    "stats": (stats, StatsConfig, {}),
    "urls": (urls, UrlsConfig, {"input": ("urls.txt",), "shard_bytes": 16_000}),
    "wikipedia": (
        extract,
        ExtractConfig,
        {"source": "wikipedia", "input": ("dump.xml.bz2",), "shard_bytes": 50_000},
    ),
    "warc": (extract, ExtractConfig, {"source": "warc", "input": (".",)}),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_the_same_bytes_in_one_process_in_two_and_on_ray(
    files, tmp_path, monkeypatch, ray_cluster, name
):
    run, kind, more = STAGES[name]
    monkeypatch.chdir(files)  # relative paths mean the same to Ray's workers
    if issubclass(kind, ExtractConfig | UrlsConfig):
        common = more
    else:
        common = {
            "input": ("in.jsonl",),
            "on_error": "skip",
            **({} if kind is StatsConfig else {"shard_bytes": 1 << 16}),
            **more,
        }
    ways = {"one": {"workers": 1}, "two": {"workers": 2}, "ray": {"workers": 2, "executor": "ray"}}
    made = {
        way: run(kind(output=str(tmp_path / way), **common, **how))
        for way, how in ways.items()
        if way != "two" or name in ("clean", "stats")
    }
    of = lambda way: {
        str(p.relative_to(tmp_path / way)): p.read_bytes()
        for p in Path(tmp_path, way).rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    for way in made:
        assert of(way) == of("one")
        assert made[way]["key"] == made["one"]["key"]
        assert made[way]["counts"] == made["one"]["counts"]
    counts = made["ray"]["counts"]
    assert (
        counts["rows_in"]
        == counts.get("rows_kept", counts["documents"])
        + sum(counts.get("removed", {}).values())
        + counts["rejected"]
    )
    assert (
        name in ("stats", "wikipedia", "warc")
        or len([o for o in made["ray"]["outputs"] if o["name"][0].isdigit()]) > 2
    )
