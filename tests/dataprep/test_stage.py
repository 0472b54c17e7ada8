"""The common part of document stages: outcomes, counts, tallies, files, and what is refused."""

import collections
import gzip
import json
import random

import pytest

from mt.core.config import Failure, UserError
from mt.dataprep import stage
from mt.dataprep.stage import DocumentStage, RejectLog, Removed
from mt.documents.reader import Document
from mt.documents.rejects import Reject


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" if isinstance(r, dict) else r for r in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(shard_index):
    """Keeps even numbers, splits 3, removes other odd numbers, counts letters."""
    tallies = collections.Counter()

    def transform(document):
        tallies[document.text[0]] += 1
        number = document.meta["n"]
        document.text += "!"
        if number == 3:
            return [Document(f"{document.id}#{i}", f"piece {i}", document.meta) for i in (1, 2)]
        return document if number % 2 == 0 else Removed("odd" if number > 1 else "one", {"n": number})

    return transform, {"letters": tallies}


ROWS = [{"id": f"d{n}", "text": "abc"[n % 3] * (n + 1), "n": n} for n in range(6)]


def run(tmp_path, rows=ROWS, make=make, name="out", **settings):
    config = DocumentStage(
        input=(write(tmp_path / "in.jsonl", rows),), output=str(tmp_path / name), workers=1, **settings
    )
    run, shards = stage.begin("data test", config)
    return stage.map_documents(run, config, shards, make, extra="fact")


def test_documents_are_kept_split_or_removed_and_everything_is_counted(tmp_path):
    manifest = run(tmp_path, rejects=True)
    assert lines(tmp_path / "out/00000.jsonl") == [
        {"id": "d0", "text": "a!", "n": 0},
        {"id": "d2", "text": "ccc!", "n": 2},
        {"id": "d3#1", "text": "piece 1", "n": 3},
        {"id": "d3#2", "text": "piece 2", "n": 3},
        {"id": "d4", "text": "bbbbb!", "n": 4},
    ]
    assert lines(tmp_path / "out/removed/00000.jsonl") == [
        {"id": "d1", "reason": "one", "n": 1},
        {"id": "d5", "reason": "odd", "n": 5},
    ]
    # removed documents are written as they were read
    assert lines(tmp_path / "out/rejects/00000.jsonl") == [
        {"id": "d1", "text": "bb", "n": 1, "removed": {"reason": "one", "n": 1}},
        {"id": "d5", "text": "cccccc", "n": 5, "removed": {"reason": "odd", "n": 5}},
    ]
    assert manifest["counts"] == {
        "rows_in": 6,
        "rows_kept": 4,
        "removed": {"odd": 1, "one": 1},
        "rejected": 0,
        "documents": 5,
        "text_bytes_in": 21,
        "text_bytes": 2 + 4 + 7 + 7 + 6,
    }
    assert manifest["letters"] == {"a": 2, "b": 2, "c": 2}
    assert manifest["extra"] == "fact"
    assert [(o["name"], o.get("documents", True)) for o in manifest["outputs"]] == [
        ("00000.jsonl", True),
        ("removed/00000.jsonl", False),
        ("rejects/00000.jsonl", False),
    ]
    assert not (tmp_path / "out/parts").exists()


def test_progress_inside_a_compressed_file_is_told_in_its_bytes(tmp_path, monkeypatch):
    letters = random.Random(0)
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        for n in range(3000):
            file.write(json.dumps({"id": str(n), "text": letters.randbytes(500).hex(), "n": 2}) + "\n")
    size, told = (tmp_path / "in.jsonl.gz").stat().st_size, []
    monkeypatch.setattr(stage, "working_on", lambda name, done: told.append(done))
    config = DocumentStage(input=(str(tmp_path / "in.jsonl.gz"),), output=str(tmp_path / "out"), workers=1)
    begun, shards = stage.begin("data clean", config)
    stage.map_documents(begun, config, shards, make)
    assert told == sorted(told)
    assert len(set(told)) > 5
    assert told[0] == 0
    assert 0.9 * size < told[-1] <= size


def test_unreadable_records_are_counted_and_written_in_order(tmp_path):
    rows = [ROWS[0], "{broken 1\n", ROWS[2], '{"id": "x"}\n']
    manifest = run(tmp_path, rows, on_error="skip")
    assert (manifest["counts"]["rows_in"], manifest["counts"]["rejected"]) == (4, 2)
    assert [r["place"] for r in lines(tmp_path / "out/rejects.jsonl")] == ["line 2", "line 4"]
    assert [o["name"] for o in manifest["outputs"]][-1] == "rejects.jsonl"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_cannot_be_written_is_one_reject_or_one_line(tmp_path, form):
    deep = '{"id": "d%d", "text": "%s", "n": %d, "deep": ' + "[" * 1000 + "]" * 1000 + "}\n"
    rows = [ROWS[0], deep % (2, "ccc", 2), ROWS[4], deep % (1, "bb", 1)]
    with pytest.raises(UserError, match=r"^document 'd2': is nested deeper than [^\n]* --on-error skip to"):
        run(tmp_path, rows, format=form)
    manifest = run(tmp_path, rows, format=form, on_error="skip", rejects=True)
    counts = manifest["counts"]
    assert [counts[name] for name in ("rows_in", "rows_kept", "rejected")] == [4, 2, 2]
    assert counts["removed"] == {}
    rejects = lines(tmp_path / "out/rejects.jsonl")
    assert [(reject["place"], reject["raw"]) for reject in rejects] == [
        ("document d2", "ccc"),
        ("document d1", "bb"),
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_text_of_any_key_is_written_as_text(tmp_path, ending, form):
    import pyarrow.parquet

    def stage_of(rows, name, **settings):
        path = tmp_path / f"in.{ending}"
        if ending == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            write(path, rows)
        config = DocumentStage(
            input=(str(path),), output=str(tmp_path / name), workers=1, format=form, **settings
        )
        run, shards = stage.begin("data test", config)
        keep = lambda index: (lambda document: document, {})
        try:
            return stage.run_shard((0, shards[0]), config=config, make=keep)
        finally:
            run.release()

    with pytest.raises(UserError, match=r"'text' \(it has .*content.*\); name the text's with --text-key"):
        stage_of([{"id": "a", "content": "one"}], "missing")
    stage_of([{"id": "a", "content": "one", "n": 1}], "out", text_key="content")
    output = tmp_path / f"out/00000.{form}"
    found = pyarrow.parquet.read_table(output).to_pylist() if form == "parquet" else lines(output)
    assert found == [{"id": "a", "text": "one", "n": 1}]
    with pytest.raises(UserError, match=r"document 'a': has a field 'text' beside its text"):
        stage_of([{"id": "a", "content": "one", "text": "two"}], "both", text_key="content")


def test_counts_that_do_not_add_up_are_a_failure(tmp_path):
    config = DocumentStage(input=(write(tmp_path / "in.jsonl", ROWS),), output=str(tmp_path / "out"))
    run, _ = stage.begin("data test", config)
    result = {
        "outputs": [],
        "rows_in": 5,
        "rows_kept": 3,
        "documents": 3,
        "text_bytes_in": 0,
        "text_bytes": 0,
        "removed": {"odd": 1},
        "rejected": 0,
        "tallies": {},
    }
    with pytest.raises(Failure, match="5 rows in, but 3 kept and 1 removed: please report this"):
        stage.finish(run, [result])
    run.release()


def test_a_stage_without_documents_is_refused_and_frees_its_output(tmp_path):
    remove = lambda shard_index: (lambda document: Removed("all"), {})
    with pytest.raises(UserError, match=r"no document is left \(6 in: 6 all\); loosen the settings"):
        run(tmp_path, make=remove)
    assert run(tmp_path, text_key="text", shard_bytes=1 << 20)["counts"]["documents"] == 5, "other settings"


def test_only_unreadable_records_are_named_as_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"no document is left \(2 in: 2 could not be read\)"):
        run(tmp_path, ["{broken\n"] * 2, on_error="skip")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("in", "is the directory of the input .*a.jsonl; choose another directory"),
        ("in/out", "lies inside the input .*in, which would then contain its own output"),
    ],
)
def test_an_output_that_overlaps_the_input_is_refused(tmp_path, folder, message):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.jsonl", ROWS)
    for source in [tmp_path / "in/a.jsonl", tmp_path / "in"][folder == "in/out" :]:
        with pytest.raises(UserError, match=message):
            stage.begin("data test", DocumentStage(input=(str(source),), output=str(tmp_path / folder)))


def test_shards_that_are_too_small_are_refused():
    with pytest.raises(UserError, match="shard_bytes = 65535 must be at least 65536"):
        DocumentStage(input=("x",), output="y", shard_bytes=(1 << 16) - 1)
    DocumentStage(input=("x",), output="y", shard_bytes=1 << 16)


def test_the_file_of_unreadable_records_appears_only_when_there_is_one(tmp_path):
    with RejectLog(tmp_path, 3) as log:
        pass
    assert (log.count, list(tmp_path.rglob("*.jsonl"))) == (0, [])
    with RejectLog(tmp_path, 3) as log:
        log.add(Reject("a.jsonl", "line 1", "malformed", "{"))
        log.add(Reject("a.jsonl", "line 2", "malformed", "}"))
    assert log.count == 2
    assert [r["raw"] for r in lines(tmp_path / "parts/rejects/00003.jsonl")] == ["{", "}"]


def test_a_flood_of_records_that_cannot_be_read_ends_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MAX_REJECTS", 10)
    with RejectLog(tmp_path, 0) as log:
        for number in range(10):
            log.add(Reject("a.json", f"line {number}", "is null", "null"))
        with pytest.raises(UserError, match=r"a\.json: 1,000,000 records cannot be read; check the input"):
            log.add(Reject("a.json", "line 10", "is null", "null"))
