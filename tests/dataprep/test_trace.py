"""Tracing a document through a run: why it was removed, and which document survived."""

import json

import pytest

from mt import cli
from mt.core.config import UserError
from mt.dataprep.decontaminate import DecontaminateConfig, decontaminate
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.extract.urls import UrlsConfig, urls
from mt.dataprep.holdout import HoldoutConfig, holdout
from mt.dataprep.trace import WhyConfig, in_reading_order, why

SENTENCE = "A sentence of some words that says little but says it at length. "
SECRET = " ".join(f"secret{i}" for i in range(13))


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def ran(tmp_path):
    """Three stages, which remove exact copies, near copies and evaluation text."""
    rows = [
        {"id": "short copy ✓", "text": "one two three four five six seven eight nine ten"},
        {"id": "copy", "text": "one two three four five six seven eight nine  ten"},
        {"id": "near", "text": "one two three four five six seven eight nine ten eleven"},
        {"id": "cut", "text": SENTENCE * 10 + SECRET + ". " + SENTENCE * 10},
        {"id": "secret", "text": SECRET},
        {"id": "other", "text": "nothing of all this"},
        {"id": 7},
    ]
    source, test = write(tmp_path / "in.jsonl", rows), write(tmp_path / "test.jsonl", [{"text": SECRET}])
    run = tmp_path / "run"
    common = {"workers": 1, "on_error": "skip"}
    dedup(DedupConfig(input=(source,), output=str(run / "c-exact"), method="exact", **common))
    dedup(DedupConfig(input=(str(run / "c-exact"),), output=str(run / "b-near"), bands=50, rows=2, **common))
    decontaminate(
        DecontaminateConfig(
            input=(str(run / "b-near"),), output=str(run / "a-clean"), evaluation=(test,), **common
        )
    )
    return run


def trace_of(run, name):
    return why(WhyConfig(id=name, run_dir=(str(run),)))


def test_a_duplicate_is_followed_to_the_survivor_of_its_survivor(ran):
    found = trace_of(ran, "short copy ✓")
    assert [(s["id"], s["stage"], s["reason"], s.get("survivor")) for s in found["steps"]] == [
        ("short copy ✓", "data dedup", "exact", "copy"),
        ("copy", "data dedup", "near", "near"),
    ]
    assert found["kept"] == [{"id": "near", "file": str(ran / "a-clean/00000.jsonl")}]
    first, second, last = found["text"].splitlines()
    assert (
        first
        == f"short copy ✓: removed by data dedup ({ran / 'c-exact'}): exact, survived by copy, similarity 1.0"
    )
    assert second.startswith("copy: removed by data dedup")
    assert last == f"near: kept in {ran / 'a-clean/00000.jsonl'}"


def test_contamination_and_unreadable_records_are_reported(ran):
    (step,) = trace_of(ran, "secret")["steps"]
    assert (step["stage"], step["reason"], step["against"]) == (
        "data decontaminate",
        "contaminated",
        ["test.jsonl"],
    )
    (step,) = trace_of(ran, "7")["steps"]
    assert (step["reason"], step["place"]) == ("could not be read", "line 7")
    assert "has no key 'text'" in step["why"]


def test_the_pieces_of_a_document_that_was_cut_are_found(ran):
    found = trace_of(ran, "cut")
    assert [k["id"] for k in found["kept"]] == ["cut#1", "cut#2"]
    (step,) = found["steps"]
    assert (step["id"], step["reason"], step["pieces"], step["against"], step["example"]) == (
        "cut",
        "cut",
        2,
        ["test.jsonl"],
        SECRET,
    )
    assert found["text"].startswith("cut: changed by data decontaminate")


def test_stages_named_one_by_one_give_the_same_in_any_order(ran):
    named = why(WhyConfig(id="copy", run_dir=tuple(str(ran / n) for n in ("a-clean", "b-near", "c-exact"))))
    assert named == trace_of(ran, "copy")


def test_a_repeated_url_is_both_removed_and_kept(tmp_path):
    (tmp_path / "urls.txt").write_text(
        "http://example.org/a\nhttp://example.org/b\nhttp://example.org/a\nhttp://imgur.com/c\n"
    )
    urls(UrlsConfig(input=(str(tmp_path / "urls.txt"),), output=str(tmp_path / "out"), workers=1))
    found = trace_of(tmp_path / "out", "http://example.org/a")
    assert [s["reason"] for s in found["steps"]] == ["duplicate"]
    assert found["kept"] == [{"id": "http://example.org/a", "file": str(tmp_path / "out/00000.txt")}]
    assert trace_of(tmp_path / "out", "http://imgur.com/c")["kept"] == []


@pytest.mark.parametrize("form", ["jsonl.zst", "parquet"])
def test_every_file_format_of_documents_is_searched(ran, tmp_path, form):
    dedup(DedupConfig(input=(str(ran / "a-clean"),), output=str(tmp_path / "again"), format=form, workers=1))
    assert why(WhyConfig(id="near", run_dir=(str(tmp_path / "again"),)))["kept"] == [
        {"id": "near", "file": str(tmp_path / f"again/00000.{form}")}
    ]


def test_a_parquet_file_that_is_broken_or_gone_is_named(ran, tmp_path):
    out = tmp_path / "again"
    dedup(DedupConfig(input=(str(ran / "a-clean"),), output=str(out), format="parquet", workers=1))
    (out / "00000.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"00000\.parquet: not a whole Parquet file"):
        trace_of(out, "near")
    (out / "00000.parquet").unlink()
    with pytest.raises(UserError, match=r"00000\.parquet: is listed in the manifest .* does not exist"):
        trace_of(out, "near")


def test_an_unknown_id_and_a_folder_without_a_run_are_refused(ran, tmp_path):
    with pytest.raises(UserError, match=r"nobody: no document with this id is in .*; check the id"):
        trace_of(ran, "nobody")
    with pytest.raises(UserError, match="a: no document with this id"):
        trace_of(ran, "a")
    with pytest.raises(UserError, match="none: no such directory"):
        trace_of(tmp_path / "none", "copy")
    with pytest.raises(UserError, match="neither a finished stage that removes documents nor a run"):
        trace_of(ran.parent, "copy")


def test_the_command_takes_the_id_as_its_argument_and_prints_json(ran, capsys):
    assert cli.command(["data", "why", "copy", "--run-dir", str(ran), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["survivor"] == "near"


def test_only_documents_are_searched_not_the_other_files_of_a_stage(tmp_path):
    sentence = "The same words, and again the same words, make a paragraph of this length."
    rows = [{"id": str(i), "text": f"{sentence}\n\n{'more words ' * 30}"} for i in range(40)]
    rows.append({"id": sentence, "text": "short"})  # a line of wikitext.txt equals this id
    source = write(tmp_path / "in.jsonl", rows)
    holdout(HoldoutConfig(input=(source,), output=str(tmp_path / "out"), fraction=0.5, workers=1))
    assert f" {sentence} \n" in (tmp_path / "out/wikitext.txt").read_text()
    assert trace_of(tmp_path / "out", sentence)["kept"] == [
        {"id": sentence, "file": str(tmp_path / "out/00000.jsonl")}
    ]


class Stage:
    def __init__(self, key, *reads):
        self.manifest = {"key": key, "inputs": [{"key": name} for name in reads]}


def test_chains_and_circles_of_stages_have_an_order():
    chain = [Stage(str(i), str(i + 1)) for i in range(3000)]
    assert [stage.manifest["key"] for stage in in_reading_order(chain)] == [
        str(i) for i in range(2999, -1, -1)
    ]
    circle = [Stage("a", "b"), Stage("b", "a"), Stage("c", "a", "b")]
    assert [stage.manifest["key"] for stage in in_reading_order(circle)] == ["b", "a", "c"]
    shared = [Stage("d", "b", "c"), Stage("b", "a"), Stage("c", "a"), Stage("a")]
    assert [stage.manifest["key"] for stage in in_reading_order(shared)] == ["a", "b", "c", "d"]
