"""Reading documents: every format, shards of any size, every kind of broken input."""

import dataclasses
import gzip
import io
import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents.files import MAX_RECORD_BYTES
from mt.documents.reader import Document, batches, read, read_arriving, read_values
from mt.documents.records import STRING
from mt.documents.sharding import plan
from mt.tests.documents import bombs
from mt.tests.memory import peak_growth

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
        path.write_bytes(
            {
                "a.jsonl": jsonl,
                "a.jsonl.gz": lambda: gzip.compress(jsonl()),
                "a.jsonl.zst": lambda: zstandard.compress(jsonl()),
            }[name]()
        )
    found = [d for s in plan([str(path)]) for d in read(s)]
    assert [(d.id, d.text, d.meta) for d in found] == [(r["id"], r["text"], {"n": r["n"]}) for r in ROWS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_an_id_as_long_as_a_url_may_be_is_kept_and_a_longer_one_is_set_aside(tmp_path, name):
    rows = [{"id": "i" * size, "text": "a"} for size in (8192, 8193, 1)]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, path)
    elif name == "a.arrow":
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
    elif name == "a.csv":
        path.write_text("id,text\n" + "".join(f"{row['id']},a\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if name == "a.json" else "".join(json.dumps(r) + "\n" for r in rows))
    rejects = []
    found = [d for s in plan([str(path)], on_error="skip") for d in read(s, rejects.append)]
    assert [len(d.id) for d in found] == [8192, 1]
    assert [r.reason for r in rejects] == ["has an 'id' of 8,193 characters, more than 8,192"]


@pytest.mark.parametrize("shard_bytes", [1, 37, 100, 1000, 10**6])
def test_a_file_cut_into_shards_of_any_size_gives_every_line_once(tmp_path, shard_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl())
    assert texts(path, shard_bytes=shard_bytes) == [r["text"] for r in ROWS]


@pytest.mark.parametrize("lines", [1, 2, 10, 7000])
def test_shards_that_end_between_two_lines_give_every_line_once(tmp_path, lines):
    row = b'{"text": "%07d"}\n'
    (tmp_path / "a.jsonl").write_bytes(b"".join(row % i for i in range(14_000)))
    shards = plan([str(tmp_path / "a.jsonl")], shard_bytes=lines * len(row % 0))[:50]
    assert shards[0].end == lines * len(row % 0)
    found = [d.text for s in shards for d in read(s)]
    assert found == [f"{i:07d}" for i in range(len(shards) * lines)]


@pytest.mark.parametrize("shard_bytes", [1, 300, 10**6])
def test_parquet_divided_by_row_groups_gives_every_row_once(tmp_path, shard_bytes):
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
    (b'{"text": "a", "id": "%s"}' % (b"i" * 8193), "has an 'id' of 8,193 characters, more than 8,192"),
    (b'{"text": "a", "id": [%s]}' % (b"12," * 3000 + b"1"), "has an 'id' of 9,003 characters"),
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
    kept = [
        d.text
        for s in plan([str(path)], shard_bytes=shard_bytes, on_error="skip")
        for d in read(s, rejects.append)
    ]
    assert kept == ["one", "four"]
    assert [(r.file, r.place) for r in rejects] == [(str(path), "line 3")]
    assert reason in rejects[0].reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_broken_compression_is_named(tmp_path, name, damage):
    whole = (
        gzip.compress(jsonl() * 50)
        if name.endswith("gz")
        else zstandard.ZstdCompressor(write_checksum=True).compress(jsonl() * 50)
    )
    broken = (
        whole[: len(whole) // 2] if damage == "cut" else whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:]
    )
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(UserError):
        texts(tmp_path / name)


def test_several_zstd_frames_are_one_text(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(
        zstandard.compress(jsonl(ROWS[:20])) + zstandard.compress(jsonl(ROWS[20:]))
    )
    assert texts(tmp_path / "a.jsonl.zst") == [r["text"] for r in ROWS]


def test_parquet_without_the_column_or_truncated_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(UserError, match=r"has no column 'text' \(it has 'body'\)"):
        texts(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        texts(path)


def test_a_line_of_a_hundred_megabytes_is_one_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"a" * 100_000_000 + b'"}\n{"text": "b"}\n')
    assert [len(t) for t in texts(tmp_path / "a.jsonl")] == [100_000_000, 1]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from([b"\n" * 100, b" \r\n" * 90, b"\n", b'{"text": "a"}\n', b"bad\n"])),
    ending=st.sampled_from(["", ".gz"]),
)
def test_documents_and_places_are_those_of_one_line_after_another(tmp_path, pieces, ending):
    path = tmp_path / f"a.jsonl{ending}"
    text = b"".join(pieces)
    path.write_bytes(gzip.compress(text) if ending else text)
    (shard,) = plan([str(path)], on_error="skip") or [None]
    if shard is None:
        return
    rejects = []
    found = [d.id for d in read(shard, rejects.append)]
    lines = list(io.BytesIO(text))
    starts = dict(zip(itertools.accumulate(map(len, lines), initial=0), lines))
    assert found == [f"{path.name}:{at}" for at, line in starts.items() if line.startswith(b"{")]
    assert [r.place for r in rejects] == [f"line {n}" for n, line in enumerate(lines, 1) if line == b"bad\n"]


def test_ids_and_places_count_blank_and_bad_lines(tmp_path):
    lines = [
        b'{"text": "a", "n": 1}',
        b"",
        b'{"id": 7, "text": "b"}',
        b'{"id": "x", "text": "c"}',
        b"nonsense",
        b'{"id": null, "text": "d"}',
        b'"text"',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    rejects = []
    (shard,) = plan([str(tmp_path / "a.jsonl")], on_error="skip")
    found = list(read(shard, rejects.append))
    offsets = [3 + sum(len(line) + 2 for line in lines[:i]) for i in range(len(lines))]
    assert found == [
        Document("a.jsonl:0", "a", {"n": 1}),
        Document("7", "b"),
        Document("x", "c"),
        Document(f"a.jsonl:{offsets[5]}", "d"),
    ]
    assert [(r.place, r.reason, r.raw) for r in rejects] == [
        ("line 5", "malformed JSON at column 1 (invalid literal, expected 'null')", "nonsense"),
        ("line 7", "is a text, not a JSON object", '"text"'),
    ]


def test_a_bad_line_far_into_a_large_file_is_named_by_its_offset(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.documents.records.COUNTED_BYTES", 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n7\n{"text": "b"}\n7\n')
    rejects = []
    (shard,) = plan([str(tmp_path / "a.jsonl")], on_error="skip")
    assert len(list(read(shard, rejects.append))) == 2
    assert [r.place for r in rejects] == ["line 2", "byte 30"]


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    shards = plan([str(tmp_path / "a.jsonl")])
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS[:3]))
    with pytest.raises(UserError, match="is shorter than when this command began"):
        list(read(shards[0]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("line_bytes", [1, 100, 70_000])
def test_no_line_of_any_length_is_lost_between_blocks(tmp_path, name, line_bytes):
    rows = [{"id": str(i), "text": "x" * line_bytes} for i in range(300)] + [
        {"id": "y", "text": "é" * 200_000}
    ]
    data = jsonl(rows)
    pack = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstandard.compress}[name]
    (tmp_path / name).write_bytes(pack(data))
    for shard_bytes in (5_000, 1 << 30):
        shards = plan([str(tmp_path / name)], shard_bytes=shard_bytes)
        assert [(d.id, len(d.text)) for s in shards for d in read(s)] == [
            (r["id"], len(r["text"])) for r in rows
        ]
        assert [v for s in shards for v in read_values(s, ("id",))] == [(r["id"],) for r in rows]


def test_the_empty_output_of_a_stage_is_read_without_an_error(tmp_path):
    """A shard of which no document is kept leaves an empty file, which is not an error."""
    from mt.dataprep.filters.clean import CleanConfig, clean

    rows = [{"id": str(i), "text": "short" if i < 4000 else "long enough " * 20} for i in range(4700)]
    (tmp_path / "in.jsonl").write_bytes(jsonl(rows))
    common = {"rules": ("length min_chars=100",), "workers": 1, "shard_bytes": 1 << 16}
    clean(CleanConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "one"), **common))
    assert (tmp_path / "one/00000.jsonl").stat().st_size == 0
    summary = clean(CleanConfig(input=(str(tmp_path / "one"),), output=str(tmp_path / "two"), **common))
    assert summary["counts"]["rows_in"] == 700


def test_a_manifest_of_another_program_is_ignored(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    for content in ('{"name": "extension", "version": 3}', "[1, 2]", '{"outputs": [], "key": 1}'):
        (tmp_path / "manifest.json").write_text(content)
        assert len(texts(tmp_path)) == len(ROWS)


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 40), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[60:400] = bytes(340)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: (row group 0 cannot be read|not a whole Parquet file)"):
        texts(path)


MEGABYTE = 1 << 20
KINDS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "a.txt")


@pytest.mark.parametrize(
    ("name", "values", "megabytes", "limit"),
    [
        ("a.jsonl", False, 160, 40),
        ("a.jsonl", True, 160, 40),
        ("a.jsonl.gz", False, 160, 40),
        ("a.jsonl.zst", True, 400, 160),  # a piece of zstd becomes up to 128 MB at once
        # A page of Parquet and a batch of Arrow are decoded whole, and a row of them is copied.
        ("a.parquet", False, 32, 200),
        ("a.parquet", True, 32, 200),
        ("a.arrow", False, 32, 200),
    ],
)
def test_a_long_record_is_one_reject_in_little_memory_and_the_rest_comes_out(
    tmp_path, name, values, megabytes, limit
):
    small = bombs.write(tmp_path / f"small.{name}", 0)
    size = megabytes * MEGABYTE
    large = bombs.write(tmp_path / f"large.{name}", size)
    (texts, rejects), grown = peak_growth(
        "mt.tests.documents.bombs", "read", (small, large), (MEGABYTE, MEGABYTE), (values, values)
    )
    assert texts == [f"document {i}" for i in range(6)]
    ((place, reason, raw),) = rejects
    assert place == ("line 4" if "jsonl" in name else "row 4")
    assert f"has {size // 1000:,}," in reason
    assert "more than --max-record-bytes 1048576" in reason
    assert len(raw) <= 1000
    assert grown < limit * MEGABYTE


@pytest.mark.parametrize("values", [False, True])
def test_an_entry_of_a_dictionary_in_every_row_takes_its_memory_once(tmp_path, values):
    small = bombs.write(tmp_path / "small.parquet", 0)
    large = bombs.write_repeated(tmp_path / "large.parquet", 4 * MEGABYTE, 500)
    assert large.stat().st_size < 10_000
    (texts, rejects), grown = peak_growth(
        "mt.tests.documents.bombs", "read", (small, large), (MEGABYTE, MEGABYTE), (values, values)
    )
    assert texts == ["first", "last"]
    assert [place for place, _, _ in rejects] == [f"row {2 + i}" for i in range(500)]
    assert grown < 150 * MEGABYTE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("a.jsonl.zst", 4 << 30), ("a.jsonl.gz", 2 << 30)])
def test_a_record_of_gigabytes_takes_a_few_hundred_megabytes(tmp_path, name, size):
    small, large = bombs.write(tmp_path / f"small.{name}", 0), bombs.write(tmp_path / f"large.{name}", size)
    limit = MAX_RECORD_BYTES
    (texts, rejects), grown = peak_growth("mt.tests.documents.bombs", "read", (small, large), (limit, limit))
    assert (len(texts), len(rejects)) == (6, 1)
    assert grown < 350 * MEGABYTE


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shard_bytes", [1000, 1 << 30])
def test_a_limit_between_two_lengths_divides_the_records_and_changes_none(tmp_path, name, shard_bytes):
    rows = [{"id": str(i), "text": "ä" * (3000 if i % 7 == 3 else i)} for i in range(60)]
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=11)
    elif name == "a.arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=11)
    elif name == "a.txt":
        path.write_text("ä" * 3000)
    else:
        pack = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstandard.compress}[name]
        path.write_bytes(pack(jsonl(rows)))
    rejects, kept = [], []
    for shard in plan([str(path)], shard_bytes=shard_bytes, max_record_bytes=1000, on_error="skip"):
        kept += read(shard, rejects.append)
    long = [] if name == "a.txt" else [row for row in rows if len(row["text"]) == 3000]
    assert [d.text for d in kept] == [] if name == "a.txt" else [r["text"] for r in rows if r not in long]
    word = "line" if "jsonl" in name else "row"
    assert [r.place for r in rejects] == [f"{word} {int(r['id']) + 1}" for r in long] or name == "a.txt"
    assert all("more than --max-record-bytes 1000" in r.reason for r in rejects)
    assert len(rejects) == (1 if name == "a.txt" else len(long))
    with pytest.raises(UserError, match=r"a\.\S+, (line|row) \d+: has [\d,]+ bytes, more than --max-record-"):
        [d for s in plan([str(path)], shard_bytes=shard_bytes, max_record_bytes=1000) for d in read(s)]


@pytest.mark.parametrize("value", ["[],", "{},", "17,", '"",'])
def test_a_line_of_millions_of_values_is_one_reject_and_a_text_of_commas_is_not(tmp_path, monkeypatch, value):
    monkeypatch.setattr("mt.documents.records.MIN_VALUES", 10_000)
    dense = b'{"text": "a", "x": [' + value.encode() * 50_000 + b"0]}\n"
    text = b'{"text": "' + b'\\"[],' * 50_000 + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n' + dense + text + b'{"text": "last"}\n')
    rejects = []
    (shard,) = plan([str(tmp_path / "a.jsonl")], on_error="skip", max_record_bytes=300_000)
    assert [d.text[:9] for d in read(shard, rejects.append)] == ["first", '"[],"[],"', "last"]
    ((place, reason),) = [(r.place, r.reason) for r in rejects]
    assert place == "line 2"
    assert "values, more than --max-record-bytes 300000 / 32" in reason


def test_a_quotation_mark_that_is_not_closed_is_searched_once():
    for end in (b"", b"\\"):
        line = b'{"text": "' + b'\\"' * 1_000_000 + end
        assert len(STRING.sub(b"", line)) <= len(b'{"text": ') + 2


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_stream_gives_the_documents_and_rejects_of_a_file(tmp_path, on_error):
    rows = [
        b'{"id": 1, "text": "a"}',
        b"",
        b"{",
        b'{"text": "b", "n": 12345678901234567890123}',
        b'{"id": "c"}',
    ]
    (tmp_path / "stdin").write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    [shard] = plan([str(tmp_path / "stdin")], include=["stdin"], on_error=on_error)
    shard = dataclasses.replace(shard, kind="lines")
    outcomes = []
    for stream in (False, True):
        found, rejects, error = [], [], None
        with open(tmp_path / "stdin", "rb") as file:
            lists = (
                read_arriving(file.read, shard, rejects.append) if stream else [read(shard, rejects.append)]
            )
            try:
                for some in lists:
                    found += some
            except UserError as failed:
                error = str(failed)
        outcomes.append((found[:1] if error else found, rejects, error))
    assert outcomes[0] == outcomes[1]
    assert len(found) == (1 if on_error == "fail" else 2)
    if on_error == "skip":
        assert [r.place for r in rejects] == ["line 3", "line 5"]


@given(st.lists(st.integers(0, 400), max_size=30))
def test_batches_keep_all_documents_in_order_and_end_at_a_number_of_characters(sizes):
    documents = [Document(str(i), "x" * size) for i, size in enumerate(sizes)]
    found = list(batches(documents, 500))
    assert [d for batch in found for d in batch] == documents
    for batch in found[:-1]:
        *before, total = itertools.accumulate(len(d.text) for d in batch)
        assert total >= 500
        assert all(size < 500 for size in before)
    assert all(found)
