"""Inputs that are not files: standard input, and Hugging Face datasets compared with the library."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mt.core import manifest
from mt.core.config import UserError
from mt.documents import sources
from mt.documents.reader import read, read_raw, read_values
from mt.documents.sharding import plan
from mt.tests import forked

ROWS = [{"id": f"d{i}", "text": f"document {i} ✓", "n": i, "deep": {"a": [i]}} for i in range(2500)]
LINES = b"".join(json.dumps(r).encode() + b"\n" for r in ROWS)


def read_all(*inputs, **how):
    return [d for s in plan(inputs, **how) for d in read(s)]


def clean(output, *more):
    return ["data", "clean", "--input", "-", "--output", output, "--workers", 1, *more]


def test_a_stream_gives_the_output_of_the_same_file_and_leaves_no_copy(tmp_path):
    ended = forked.run(*clean(tmp_path / "a/piped"), stdin=LINES)
    assert ended.returncode == 0, ended.stderr
    (tmp_path / "in.jsonl").write_bytes(LINES)
    assert (
        forked.run(
            "data", "clean", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "read", "--workers", 1
        ).returncode
        == 0
    )
    assert (tmp_path / "a/piped/00000.jsonl").read_bytes() == (tmp_path / "read/00000.jsonl").read_bytes()
    assert os.listdir(tmp_path / "a") == ["piped"]
    (entry,) = manifest.manifest_of(tmp_path / "a/piped")["inputs"]
    assert (entry["path"], entry["name"], entry["bytes"]) == ("-", "stdin", len(LINES))
    sealed = (tmp_path / "a/piped/manifest.json").read_bytes()
    assert forked.run(*clean(tmp_path / "a/piped"), stdin=LINES).returncode == 0
    assert (tmp_path / "a/piped/manifest.json").read_bytes() == sealed, "the same stream is up to date"
    other = forked.run(*clean(tmp_path / "a/piped"), stdin=LINES[:1000].rpartition(b"\n")[0])
    assert other.returncode == 2
    assert b"holds another run of `mt data clean` (of other inputs)" in other.stderr


def test_ids_and_messages_of_a_stream_name_stdin_and_not_its_copy(tmp_path):
    lines = b'{"text": "no id here"}\n{"text": 7}\n'
    failed = forked.run(*clean(tmp_path / "out"), stdin=lines)
    assert failed.returncode == 2
    assert failed.stderr.startswith(b"mt: stdin, line 2: 'text' is a number, not a text; mend it")
    assert forked.run(*clean(tmp_path / "out", "--on-error", "skip"), stdin=lines).returncode == 3
    assert json.loads((tmp_path / "out/00000.jsonl").read_text()) == {"id": "stdin:0", "text": "no id here"}
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text())["file"] == "stdin"


def test_the_next_run_removes_the_copy_of_a_killed_run(tmp_path):
    command = [sys.executable, "-m", "mt", *map(str, clean(tmp_path / "out", "--shard-bytes", 65536))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.write(LINES)
    process.stdin.flush()
    while process.poll() is None and not list(tmp_path.glob(".out.stdin-*/partial")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(tmp_path.glob(".out.stdin-*"))) == 1
    ended = forked.run(*command[3:], stdin=LINES)
    assert ended.returncode == 0, ended.stderr
    assert os.listdir(tmp_path) == ["out"]


def test_a_terminal_and_an_empty_stream_are_refused(tmp_path):
    main, terminal = os.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "mt", *map(str, clean(tmp_path / "out"))], stdin=terminal, capture_output=True
    )
    os.close(main)
    os.close(terminal)
    assert ended.returncode == 2
    assert b"standard input is a terminal; pipe JSONL into the command" in ended.stderr
    ended = forked.run(*clean(tmp_path / "out"))
    assert ended.returncode == 2
    assert b"stdin is empty; give files with documents" in ended.stderr


def pipe(monkeypatch, data=LINES):
    """Makes standard input of this process a pipe with these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("umask", [0o022, 0o000])
@pytest.mark.parametrize("beside", [True, False])
def test_the_copy_of_a_stream_is_the_users_alone_and_its_name_cannot_be_known(
    tmp_path, monkeypatch, umask, beside
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    folders = []
    before = os.umask(umask)
    try:
        for number in range(2):
            pipe(monkeypatch)
            place = str(tmp_path / f"out{number}") if beside else None
            if not beside:
                monkeypatch.setattr(os, "getpid", lambda number=number: 100 + number)
            copy = Path(sources.spool_stdin(place))
            assert copy.read_bytes() == LINES
            assert copy.parent.parent == (tmp_path if beside else tmp_path / "shared")
            folders.append(copy.parent)
            modes = {
                p.name: stat.S_IMODE(p.stat().st_mode) for p in (copy.parent, copy, copy.parent / "lock")
            }
            assert modes == {copy.parent.name: 0o700, copy.name: 0o600, "lock": 0o600}
    finally:
        os.umask(before)
    first, second = (folder.name.rpartition("-")[2] for folder in folders)
    assert first != second
    assert min(len(first), len(second)) >= 8
    pipe(monkeypatch)
    with pytest.raises(UserError, match="standard input was read already; name it once"):
        sources.spool_stdin(place)


def test_what_another_user_planted_for_the_copy_of_a_stream_is_left_alone(tmp_path, monkeypatch):
    """Links and folders of others under names of copies: none is opened, entered or removed."""
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    for folder in (shared, victim, shared / ".mt.stdin-2-abcdefgh", shared / ".mt.stdin-4"):
        folder.mkdir()
    (victim / "precious").write_text("precious")
    (shared / f".mt.stdin-{os.getpid()}").symlink_to(victim)
    (shared / ".mt.stdin-1-abcdefgh").symlink_to(victim)
    (shared / ".mt.stdin-2-abcdefgh/lock").symlink_to(victim / "precious")
    (shared / ".mt.stdin-3-abcdefgh").write_text("a file")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)  # so that all of it belongs to another
    pipe(monkeypatch)
    copy = Path(sources.spool_stdin(None))
    assert copy.read_bytes() == LINES
    assert (victim / "precious").read_text() == "precious"
    assert sorted(p.name for p in victim.iterdir()) == ["precious"]
    assert len(list(shared.iterdir())) == 6


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """ROWS saved by `datasets`: `one` dataset, a `dict` of two splits, Parquet files as on the `hub`."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'mt-lm[hf]'")
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("hf")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(folder / "one", num_shards=3)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(10))}).save_to_disk(folder / "dict")
    (folder / "hub").mkdir()
    for name, rows in (
        ("train-00000-of-00002", range(1000)),
        ("train-00001-of-00002", range(1000, 2500)),
        ("test-00000-of-00001", range(5)),
    ):
        whole.select(rows).to_parquet(folder / f"hub/{name}.parquet")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "{}/one",
        "hf:{}/one",
        "{}/dict/train",
        "hf:{}/dict:train",
        "hf:{}/hub:train",
        "hf:{}/hub:default:train",
    ],
)
def test_a_dataset_gives_its_rows_in_order(saved, name):
    name = name.format(saved)
    found = read_all(name)
    assert [(d.id, d.text, d.meta) for d in found] == [
        (r["id"], r["text"], {"n": r["n"], "deep": r["deep"]}) for r in ROWS
    ]
    values = [v for s in plan([name]) for v in read_values(s, ("text", "id"))]
    assert values == [(r["text"], r["id"]) for r in ROWS]


@pytest.mark.parametrize("shard_bytes", [1, 50_000])
def test_saved_datasets_are_divided_between_record_batches(saved, shard_bytes):
    assert len(plan([str(saved / "one")], shard_bytes=shard_bytes)) == 3
    assert [d.id for d in read_all(str(saved / "one"), shard_bytes=shard_bytes)] == [r["id"] for r in ROWS]


def test_the_files_of_a_streamed_dataset_are_its_shards_and_part_of_its_identity(saved):
    name = f"hf:{saved}/hub:train"
    shards = plan([name], key="nothing")
    assert [(s.start, s.end) for s in shards] == [(0, 1), (1, 2)]
    assert sum(s.bytes for s in shards) > 1000
    assert [f[0] for f in sources.identity(name)["files"]] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    with pytest.raises(
        UserError,
        match=r"hub:train, shard 1, row 1: has no key 'nothing' \(it has 'id', 'text', 'n', 'deep'\)",
    ):
        list(read(shards[1]))
    assert next(read_raw(plan([name])[1])) == ("shard 1, row 1", ROWS[1000])


def test_documents_of_a_dataset_without_ids_get_ids(tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'mt-lm[hf]'")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    assert [d.id.rpartition("/")[2] for d in read_all(f"hf:{tmp_path}")] == [
        f"{tmp_path.name}:{i}:{j}" for i in (0, 1) for j in (0, 1)
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}/dict", "dict: holds the splits train, test of a dataset; name one, as in .*/dict/train"),
        ("hf:{}/hub", "hub: has the splits train, test; name one, as in hf:.*/hub:train"),
        ("hf:{}/hub::valid", "hub::valid: has no split valid; it has train, test"),
        ("hf:{}/hub:valid", r"hub:valid: cannot be opened \(BuilderConfig 'valid' not found"),
        (
            "hf:{}/none",
            r"none: cannot be opened \(.*none.*\); check its name, its configuration and the network",
        ),
        ("hf:", "hf:: not a dataset; write hf:NAME, hf:NAME:SPLIT"),
        ("hf:a:b:c:d", "not a dataset; write hf:NAME"),
    ],
)
def test_a_dataset_that_cannot_be_opened_is_named(saved, name, message):
    with pytest.raises(UserError, match=message):
        plan([name.format(saved)])


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    sources._dataset.cache_clear()
    with pytest.raises(
        UserError,
        match=(
            r"hf:some/set: a dataset of Hugging Face needs the package datasets; install it with: pip install"
            r" 'mt-lm\[hf\]'"
        ),
    ):
        plan(["hf:some/set"])


def test_a_saved_dataset_truncated_or_without_the_column_is_named(saved, tmp_path):
    whole = (saved / "dict/test/data-00000-of-00001.arrow").read_bytes()
    path = Path(tmp_path, "a.arrow")
    path.write_bytes(whole)
    with pytest.raises(
        UserError,
        match=r"a\.arrow: has no column 'body' \(it has 'id', 'text', 'n', 'deep'\); name the text's",
    ):
        read_all(str(path), key="body")
    for cut in (len(whole) // 2, len(whole) - 500, 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a\.arrow: not a whole Arrow stream"):
            read_all(str(path))
