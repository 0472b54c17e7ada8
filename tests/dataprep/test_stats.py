"""Counts of documents, bytes, words and tokens for each input."""

import json

import pytest
from tokenizers import ByteLevelBPETokenizer

from mt import cli
from mt.core.config import UserError
from mt.dataprep.stats import StatsConfig, stats


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def test_every_input_has_its_own_counts(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"text": "zwei Wörter"}, {"text": ""}])
    (tmp_path / "many").mkdir()
    for i in range(3):
        write(tmp_path / f"many/{i}.jsonl", [{"text": "drei kurze Worte"}] * 2)
    many = str(tmp_path / "many")
    manifest = stats(StatsConfig(input=(one, many), output=str(tmp_path / "out"), workers=1))
    assert manifest["rows"] == [
        {"name": one, "documents": 2, "text_bytes": 12, "words": 2, "tokens": None},
        {"name": many, "documents": 6, "text_bytes": 96, "words": 18, "tokens": None},
    ]
    assert json.loads((tmp_path / "out/stats.json").read_text())["rows"] == manifest["rows"]
    assert manifest["counts"]["inputs"][many]["documents"] == 6
    assert manifest["text"].splitlines()[2].split() == [many, "6", "0.00", "18", "-", "-"]
    assert stats(StatsConfig(input=(one, many), output=str(tmp_path / "out"), workers=2)) == manifest


def test_without_an_output_the_counts_are_only_printed(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.jsonl", [{"text": "zwei Wörter"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["data", "stats", "a.jsonl", "--workers", "1"])
    assert capsys.readouterr().out.splitlines()[1].split() == ["a.jsonl", "1", "0.00", "2", "-", "-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(UserError, match=r"on_error = skip writes rejects.jsonl .*; name one with --output"):
        StatsConfig(input=("a.jsonl",), on_error="skip")


def test_words_are_those_of_uax_29(tmp_path):
    texts = ["我爱北京。", "don't stop", "नमस्ते दुनिया", "\u0635 \u2013 x"]
    source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    (row,) = stats(StatsConfig(input=(source,), output=str(tmp_path / "out"), workers=1))["rows"]
    assert row["words"] == 4 + 3 + 2 + 2


def test_tokens_are_those_of_the_tokenizers_library(tmp_path, gpt2_files, speeches_file):
    files = list(gpt2_files.values())
    reference = ByteLevelBPETokenizer(*files)
    rows = [json.loads(line) for line in speeches_file.read_bytes().splitlines()[:20]]
    source = write(tmp_path / "in.jsonl", rows)
    arguments = [
        "--input",
        source,
        "--output",
        str(tmp_path / "out"),
        "--vocab-file",
        files[0],
        "--merge-file",
        files[1],
        "--workers",
        "1",
    ]
    (row,) = cli.call(("data", "stats"), arguments)["rows"]
    assert row["tokens"] == sum(len(reference.encode(r["text"]).ids) for r in rows)


def test_an_unreadable_record_is_named_or_logged_and_counted(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": null}\n')
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: 'text' is null"):
        stats(StatsConfig(input=(str(path),), output=str(tmp_path / "out"), workers=1))
    manifest = stats(
        StatsConfig(input=(str(path),), output=str(tmp_path / "skip"), on_error="skip", workers=1)
    )
    assert (manifest["counts"]["rejected"], manifest["rows"][0]["documents"]) == (1, 1)


def test_an_input_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="names the same place twice"):
        StatsConfig(input=("a", "a"), output=str(tmp_path))
