"""Readers and writers of documents: every format, every kind of broken input."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mt.config import UserError
from mt.documents import Document, Writer, expand, plan, read

ROWS = [{"id": str(i), "text": f"document {i} ✓\nline", "n": i} for i in range(50)]


def jsonl(rows=ROWS):
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows)


def texts(path, **how):
    return [d.text for s in plan([str(path)], **how) for d in read(s)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=7)
    else:
        path.write_bytes({"a.jsonl": jsonl, "a.jsonl.gz": lambda: gzip.compress(jsonl()), "a.jsonl.zst": lambda: zstandard.compress(jsonl())}[name]())
    found = [d for s in plan([str(path)]) for d in read(s)]
    assert [(d.id, d.text, d.meta) for d in found] == [(r["id"], r["text"], {"n": r["n"]}) for r in ROWS]


@pytest.mark.parametrize("shard_bytes", [1, 37, 100, 1000, 10**6])
def test_a_file_cut_into_shards_of_any_size_gives_every_line_once(tmp_path, shard_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl())
    assert texts(path, shard_bytes=shard_bytes) == [r["text"] for r in ROWS]


@pytest.mark.parametrize("shard_bytes", [1, 300, 10**6])
def test_parquet_cut_by_row_groups_gives_every_row_once(tmp_path, shard_bytes):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    assert texts(tmp_path / "a.parquet", shard_bytes=shard_bytes) == [r["text"] for r in ROWS]


BAD = [
    (b'{"text": "a"', "malformed JSON at column"),
    (b'{"txt": "a"}', "has no key 'text' (it has 'txt')"),
    (b'{"text": null}', "'text' is null, not a text"),
    (b'{"text": ["a"]}', "'text' is an array, not a text"),
    (b'["text"]', "is an array, not a JSON object"),
    (b'{"text": "a\xff"}', "byte 12 of the line (0xff) is not UTF-8"),
    (b'{"text": "\\ud800"}', "malformed JSON"),
    (b'{"text": NaN}', "malformed JSON"),
    (b"7", "is a number, not a JSON object"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[r for _, r in BAD])
@pytest.mark.parametrize("shard_bytes", [8, 10**6])
def test_a_bad_line_is_named_with_its_number_or_set_aside(tmp_path, line, reason, shard_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "four"}\n')
    with pytest.raises(UserError) as caught:
        texts(path, shard_bytes=shard_bytes)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert reason in str(caught.value)
    assert "--on-error skip" in str(caught.value)
    rejects = []
    kept = [d.text for s in plan([str(path)], shard_bytes=shard_bytes, on_error="skip") for d in read(s, rejects.append)]
    assert kept == ["one", "four"]
    assert [(r.file, r.place) for r in rejects] == [(str(path), "line 3")]
    assert reason in rejects[0].reason


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_an_empty_file_is_objected_to(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        texts(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_broken_compression_is_named(tmp_path, name, damage):
    whole = gzip.compress(jsonl() * 50) if name.endswith("gz") else zstandard.ZstdCompressor(write_checksum=True).compress(jsonl() * 50)
    broken = whole[: len(whole) // 2] if damage == "cut" else whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(UserError):
        texts(tmp_path / name)


def test_several_zstd_frames_are_one_text(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(ROWS[:20])) + zstandard.compress(jsonl(ROWS[20:])))
    assert texts(tmp_path / "a.jsonl.zst") == [r["text"] for r in ROWS]


def test_parquet_without_the_column_or_cut_short_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(UserError, match=r"has no column 'text' \(it has body\)"):
        texts(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        texts(path)


def test_a_line_of_a_hundred_megabytes_is_one_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"a" * 100_000_000 + b'"}\n{"text": "b"}\n')
    assert [len(t) for t in texts(tmp_path / "a.jsonl")] == [100_000_000, 1]


def test_folders_and_globs_are_read_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a.txt", "c.csv", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [p.name for p in expand([str(tmp_path)])] == ["a.txt", "b.jsonl", "d.jsonl"]
    assert [p.name for p in expand([str(tmp_path / "*.jsonl")])] == ["b.jsonl"]
    with pytest.raises(UserError, match="no such file"):
        expand([str(tmp_path / "*.zip")])
    with pytest.raises(UserError, match="not a kind of file that mt reads"):
        expand([str(tmp_path / "c.csv")])


@pytest.mark.parametrize("name", ["o.jsonl", "o.jsonl.zst", "o.parquet"])
def test_what_is_written_is_read_back_with_every_field(tmp_path, name):
    documents = [Document(r["id"], r["text"], {"n": r["n"], "deep": {"a": [1, 2]}}) for r in ROWS]
    with Writer(tmp_path / name, root=tmp_path) as writer:
        for document in documents:
            writer.write(document)
    assert [d for s in plan([str(tmp_path / name)]) for d in read(s)] == documents
    from mt.manifest import file_digest

    assert writer.record["xxh3"] == file_digest(tmp_path / name)


@pytest.mark.parametrize("name", ["o.jsonl", "o.parquet"])
def test_a_writer_that_fails_leaves_no_file(tmp_path, name):
    def fill():
        with Writer(tmp_path / name, root=tmp_path) as writer:
            writer.write(Document("1", "x"))
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill()
    assert list(tmp_path.iterdir()) == []
