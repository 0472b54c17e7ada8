"""Writing documents: fields, sizes of files, failures, and types of Parquet columns."""

import datetime
import decimal
import json

import pyarrow
import pyarrow.parquet
import pytest

from mt.core.config import UserError
from mt.core.manifest import file_digest
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.documents.reader import Document, read
from mt.documents.sharding import plan
from mt.documents.writer import Unwritable, Writer, json_line

NAMES = ["o.jsonl", "o.jsonl.zst", "o.parquet"]
ROWS = [
    Document(str(i), f"document {i} ✓\nline", {"n": i, "deep": {"a": [1, 2], "b": {"c": "é"}}})
    for i in range(50)
]


def write(path, documents, **how):
    with Writer(path, root=path.parent, **how) as writer:
        for document in documents:
            writer.write(document)
    return writer


def read_back(*paths):
    return [d for s in plan(list(map(str, paths))) for d in read(s)]


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("name", ["o.jsonl", "o.jsonl.zst"])
def test_a_field_nested_deeper_than_orjson_writes_is_written_or_refused_in_one_line(tmp_path, name):
    deep = [Document("a", "text é", {"n": nested(500)}), Document("b", "more", {})]
    write(tmp_path / name, deep)
    assert read_back(tmp_path / name) == deep
    with pytest.raises(Unwritable, match=r"^document 'c': is nested deeper than 500 levels; mend it"):
        write(tmp_path / name, [Document("c", "text", {"n": nested(100_000)})])


def test_a_line_is_that_of_the_file_or_refused_in_the_same_words(tmp_path):
    documents = [Document("a", "text é", {"n": nested(500), "b": 1}), Document("b", "more\n", {})]
    write(tmp_path / "o.jsonl", documents)
    assert b"".join(map(json_line, documents)) == (tmp_path / "o.jsonl").read_bytes()
    for meta in ({"n": nested(100_000)}, {"text": "other"}, {"b": "\ud800"}):
        with pytest.raises(Unwritable) as file:
            write(tmp_path / "o.jsonl", [Document("c", "text", meta)])
        with pytest.raises(Unwritable) as line:
            json_line(Document("c", "text", meta))
        assert str(line.value) == str(file.value)


def test_what_is_nested_deeper_than_pyarrow_reads_is_not_written_to_parquet(tmp_path):
    write(tmp_path / "o.parquet", [Document("a", "text", {"n": nested(49)})])
    assert read_back(tmp_path / "o.parquet")[0].meta == {"n": nested(49)}
    with pytest.raises(Unwritable, match=r"^document 'c': is nested deeper than the 49 levels of a Pa"):
        write(tmp_path / "o.parquet", [Document("c", "text", {"n": nested(50)})])


@pytest.mark.parametrize("name", NAMES)
def test_a_field_named_text_is_not_written_over_the_text(tmp_path, name):
    with pytest.raises(Unwritable, match=r"^document 'a': has a field 'text' beside its text"):
        write(tmp_path / name, [Document("a", "one", {"text": "other"})])
    with pytest.raises(Unwritable, match=r"^document 'a': has half a surrogate pair"):
        write(tmp_path / "o.jsonl", [Document("a", "one", {"b": "\ud800"})])


def test_a_dictionary_gets_wider_numbers_where_files_together_have_too_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.documents.writer.BATCH_DOCUMENTS", 100)
    kind = pyarrow.dictionary(pyarrow.int8(), pyarrow.string())
    documents = [Document(str(i), "t", {"n": f"entry {i}"}) for i in range(300)]
    write(tmp_path / "o.parquet", documents, fields={"n": pyarrow.field("n", kind)})
    column = pyarrow.parquet.read_table(tmp_path / "o.parquet")["n"]
    assert column.to_pylist() == [f"entry {i}" for i in range(300)]
    assert column.type == pyarrow.dictionary(pyarrow.int32(), pyarrow.string())


def test_a_column_with_other_values_than_its_input_gets_another_type(tmp_path):
    fields = {
        "n": pyarrow.field("n", pyarrow.int8()),
        "f": pyarrow.field("f", pyarrow.float32(), metadata={"unit": "m"}),
        "d": pyarrow.field("d", pyarrow.float32()),
    }
    write(tmp_path / "o.parquet", [Document("1", "t", {"n": 300, "f": 0.5, "d": 0.1})], fields=fields)
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert table.to_pylist() == [{"id": "1", "text": "t", "n": 300, "f": 0.5, "d": 0.1}]
    assert [str(table.schema.field(name).type) for name in "nfd"] == ["int64", "float", "double"]
    assert table.schema.field("f").metadata[b"unit"] == b"m"


def test_integers_that_only_unsigned_types_hold_are_written(tmp_path):
    meta = {"n": 2**64 - 1, "deep": {"list": [[1, 2**63], []], "small": 1}}
    write(tmp_path / "o.parquet", [Document("1", "t", meta), Document("2", "t", {"n": 5})])
    (one, two) = read_back(tmp_path / "o.parquet")
    assert (one.meta, two.meta) == (meta, {"n": 5, "deep": None})


@pytest.mark.parametrize("name", NAMES)
def test_written_documents_are_read_back_with_every_field(tmp_path, name):
    writer = write(tmp_path / name, ROWS)
    assert read_back(tmp_path / name) == ROWS
    assert writer.records[0]["xxh3"] == file_digest(tmp_path / name)
    assert (writer.documents, writer.text_bytes) == (50, sum(len(d.text.encode()) for d in ROWS))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_file_is_followed_by_one_whose_name_sorts_after_it(tmp_path, name):
    writer = write(tmp_path / name, ROWS, max_bytes=300)
    files = sorted(p for p in tmp_path.iterdir())
    stem, _, ending = name.partition(".")
    assert [p.name for p in files] == [name, *(f"{stem}_{i:03d}.{ending}" for i in range(1, len(files)))]
    assert [(r["name"], r["rows"]) for r in writer.records] == [(p.name, len(read_back(p))) for p in files]
    assert read_back(*files) == ROWS
    sizes = [sum(len(d.text.encode()) for d in read_back(p)) for p in files]
    assert all(300 <= size < 330 for size in sizes[:-1])
    assert sizes[-1] < 330


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst", "parquet"])
def test_a_stage_divides_a_compressed_input_into_files_of_the_given_size(tmp_path, form):
    import gzip

    rows = [
        {"id": str(i), "text": f"{i} " + "word " * 200, "meta": {"tags": [f"t{i % 3}"], "score": i / 2}}
        for i in range(500)
    ]
    (tmp_path / "in.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in rows))
    )
    outputs = []
    for workers in (1, 2):
        summary = clean(
            CleanConfig(
                input=(str(tmp_path / "in.jsonl.gz"),),
                output=str(tmp_path / f"{workers}"),
                rules=("length min_chars=1",),
                format=form,
                shard_bytes=1 << 16,
                workers=workers,
            )
        )
        outputs.append([(o["name"], o["xxh3"]) for o in summary["outputs"]])
    assert outputs[0] == outputs[1]
    assert len([n for n, _ in outputs[0] if n.startswith("00000")]) == 8
    found = [d for s in plan([str(tmp_path / "1")]) for d in read(s)]
    assert [{"id": d.id, "text": d.text, **d.meta} for d in found] == rows


@pytest.mark.parametrize("name", NAMES)
def test_a_writer_that_fails_leaves_no_file(tmp_path, name):
    def fill():
        with Writer(tmp_path / name, root=tmp_path) as writer:
            writer.write(Document("1", "x"))
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_output_without_documents_is_an_empty_file_with_the_right_columns(tmp_path, name):
    writer = write(tmp_path / name, [])
    assert writer.records[0]["rows"] == 0
    if name.endswith("parquet"):
        assert pyarrow.parquet.read_table(tmp_path / name).schema.names == ["id", "text"]


def test_parquet_columns_are_those_of_all_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.documents.writer.BATCH_DOCUMENTS", 2)
    metas = [
        {},
        {"a": None},
        {"a": 1, "o": {"x": 1}},
        {"late": ["q"], "o": {"y": {"z": True}}},
        {"a": 2.5},
        {"e": {}},
    ]
    write(tmp_path / "o.parquet", [Document(str(i), "t", m) for i, m in enumerate(metas)])
    rows = pyarrow.parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert [r["a"] for r in rows] == [None, None, 1.0, None, 2.5, None]
    assert [r["late"] for r in rows] == [None, None, None, ["q"], None, None]
    assert rows[2]["o"] == {"x": 1, "y": None}
    assert rows[3]["o"] == {"x": None, "y": {"z": True}}


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize(("one", "other"), [(1, "a"), ({"a": 1}, [1]), (2**63, -1), (2**70, 1), ("a", True)])
def test_values_without_a_common_type_cannot_be_parquet(tmp_path, monkeypatch, batch, one, other):
    monkeypatch.setattr("mt.documents.writer.BATCH_DOCUMENTS", batch)
    with pytest.raises(
        UserError,
        match=(
            r"o\.parquet: the values of 'n' have no common type, which a Parquet column needs \(.*\); pass"
            r" --format jsonl\.zst"
        ),
    ):
        write(tmp_path / "o.parquet", [Document("1", "t", {"n": one}), Document("2", "t", {"n": other})])
    assert list(tmp_path.iterdir()) == []


def test_values_without_a_json_type_become_text_in_jsonl(tmp_path):
    meta = {
        "raw": b"\xff\x00",
        "price": decimal.Decimal("1.50"),
        "day": datetime.date(2024, 5, 1),
        "at": datetime.datetime(2024, 5, 1, 12, 30),
        "for": datetime.timedelta(hours=1),
    }
    write(tmp_path / "o.parquet", [Document("1", "t", meta)])
    (document,) = read_back(tmp_path / "o.parquet")
    assert document.meta == meta
    write(tmp_path / "o.jsonl", [document])
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {
        "id": "1",
        "text": "t",
        "raw": "/wA=",
        "price": "1.50",
        "day": "2024-05-01",
        "at": "2024-05-01T12:30:00",
        "for": "1:00:00",
    }
