"""Records of every text format, compression, mark and line end, compared with json and csv of Python."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents import records
from mt.documents.html import main_text
from mt.documents.reader import Document, read
from mt.documents.sharding import plan

quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".ZSTD": zstandard.compress,
}
LETTERS = st.characters(codec="utf-8", exclude_characters="\ufeff\0")
TEXTS = st.text(LETTERS, max_size=20)
ROWS = st.lists(
    st.fixed_dictionaries({"text": TEXTS, "id": st.text(LETTERS, min_size=1), "n": TEXTS}), max_size=5
)


def written(rows, ending, line_end):
    """A file of the rows as other programs write it, in Unicode."""
    name = ending.lower()
    if name in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False) + line_end for row in rows)
    if name == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False).replace("\n", line_end)
    text = io.StringIO()
    how = {"delimiter": "\t" if name == ".tsv" else ",", "lineterminator": line_end, "quoting": csv.QUOTE_ALL}
    writer = csv.DictWriter(text, ["text", "id", "n"], **how)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@quick
@given(
    rows=ROWS,
    ending=st.sampled_from([".jsonl", ".JSONL", ".ndjson", ".json", ".csv", ".TSV"]),
    packed=st.sampled_from(list(PACK)),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"]),
)
def test_documents_are_the_same_in_every_format_compression_encoding_and_line_end(
    tmp_path, rows, ending, packed, line_end, encoding
):
    path = tmp_path / f"a{ending}{packed}"
    path.write_bytes(PACK[packed](written(rows, ending, line_end).encode(encoding)))
    named = "gb18030" if encoding == "gb18030" else "utf-8"
    found = [d for s in plan([str(path)], encoding=named) for d in read(s)]
    assert found == [Document(r["id"], r["text"], {"n": r["n"]}) for r in rows]
    path.unlink()


@quick
@given(
    text=st.text(LETTERS, min_size=1),
    ending=st.sampled_from([".txt", ".md", ".MD", ".py"]),
    packed=st.sampled_from(list(PACK)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]),
)
def test_a_text_file_is_a_document_as_it_is(tmp_path, text, ending, packed, encoding):
    path = tmp_path / f"a{ending}{packed}"
    path.write_bytes(PACK[packed](text.encode(encoding)))
    named = "gb18030" if encoding == "gb18030" else "utf-8"
    (shard,) = plan([str(path)], include=("*.py",), encoding=named)
    assert list(read(shard)) == [Document(path.name, text)]
    path.unlink()


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt", ".md"])
def test_an_empty_file_has_no_documents_and_stops_nothing(tmp_path, ending, packed):
    (tmp_path / f"a{ending}{packed}").touch()
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    assert [d.text for s in plan([str(tmp_path)]) for d in read(s)] == ["b"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_an_empty_table_is_broken(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name}: not a whole (Parquet file|Arrow stream)"):
        plan([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "data", "encoding", "place", "reason"),
    [
        ("a.txt", b"a\nb\xff", "utf-8", "line 2", "byte 3 of the file is not UTF-8"),
        ("a.txt", b"a\x81", "windows-1252", "line 1", "byte 1 of the file is not CP1252"),
        (
            "a.jsonl",
            b'{"text": "\x81"}',
            "windows-1252",
            "line 1",
            "byte 11 of the line (0x81) is not CP1252",
        ),
        ("a.csv", b"text\na\nb\xff\n", "utf-8", "line 3", "a byte of value 1 (0xff) is not UTF-8"),
        ("a.json", b'[\n{"text": "a"},\n{"text": 7}]', "utf-8", "line 3", "'text' is a number, not a text"),
        ("a.json", b'[\n{"text": "a"},', "utf-8", "line 2", "the array does not end: the file is cut short"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place_or_set_aside(
    tmp_path, name, data, encoding, place, reason
):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        [d for s in plan([str(tmp_path / name)], encoding=encoding) for d in read(s)]
    assert str(caught.value).startswith(f"{tmp_path / name}, {place}: {reason}; mend it, or pass --on-error")
    rejects = []
    for shard in plan([str(tmp_path / name)], encoding=encoding, on_error="skip"):
        list(read(shard, rejects.append))
    assert [(r.place, r.reason) for r in rejects] == [(place, reason)]


STORY = "".join(f"<p>Paragraph {i} of a story: {{}}, and prose that is long enough.</p>" for i in range(9))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8", "déjà ✓"),
        ("utf-8-sig", "déjà ✓"),
        ("utf-16", "déjà"),
        ("windows-1251", "наука"),
        ("shift_jis", "東京"),
    ],
)
def test_an_html_file_is_its_main_text_in_the_encoding_that_it_declares_or_marks(
    tmp_path, packed, encoding, words
):
    story = STORY.format(*[words] * 9)
    head = f'<head><meta charset="{encoding}"><title>T</title></head>'
    page = f"<html>{head}<body><nav>Home</nav><main>{story}</main></body></html>"
    path = tmp_path / f"a.html{packed}"
    path.write_bytes(PACK[packed](page.encode(encoding)))
    shards = plan([str(tmp_path)])
    ((document,),) = map(list, map(read, shards))
    assert document == Document(path.name, main_text(page))
    assert document.text.count(words) == 9
    assert "Home" not in document.text


def test_a_page_that_cannot_be_parsed_is_named_or_set_aside(tmp_path, monkeypatch):
    (tmp_path / "a.htm").write_text("<p>a" * 30)
    monkeypatch.setattr("mt.documents.html.MAX_TAGS", 20)
    rejects = []
    for shard in plan([str(tmp_path)], on_error="skip"):
        assert list(read(shard, rejects.append)) == []
    assert [(r.place, r.reason) for r in rejects] == [("line 1", "has 30 tags, more than 20")]


# Integers on both sides of the ends of 64 bits, of any size that orjson reads; fractions with as many digits
EDGES = st.sampled_from([-(2**64), -(2**63), 2**63, 2**64]).flatmap(lambda n: st.integers(n - 2, n + 2))
LONG = st.builds(lambda sign, n: sign * n, st.sampled_from([1, -1]), st.integers(10**18, 10**300))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
DIGITS = st.text("0123456789.", max_size=30)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), EDGES, LONG, FLOATS, DIGITS)
JSON = st.recursive(
    SCALARS,
    lambda values: st.one_of(
        st.lists(values, max_size=3),
        st.lists(st.one_of(st.integers(-9, 9), FLOATS, EDGES, LONG), min_size=7, max_size=12),
        st.dictionaries(st.text(max_size=3), values, max_size=3),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=500)
@given(JSON)
def test_a_value_of_json_is_what_python_reads(value):
    line = json.dumps(value).encode()
    assert repr(records.loads(line)) == repr(value)


@quick
@given(st.lists(st.dictionaries(st.sampled_from(["text", "id", "a", "b"]), JSON), min_size=1, max_size=5))
def test_the_fields_of_json_lines_are_what_python_reads(tmp_path, rows):
    rows = [{**row, "text": "t"} for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (shard,) = plan([str(tmp_path / "a.jsonl")])
    fields = [{k: v for k, v in row.items() if k not in ("text", "id")} for row in rows]
    assert repr([document.meta for document in read(shard)]) == repr(fields)


@quick
@given(st.integers(2**64, 10**300), st.integers(0, 4))
def test_an_id_that_is_a_long_integer_keeps_its_digits(tmp_path, number, others):
    rows = [{"id": "a", "text": "t", "n": 0.5}] * others + [{"id": number, "text": "t"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (shard,) = plan([str(tmp_path / "a.jsonl")])
    assert [document.id for document in read(shard)] == ["a"] * others + [str(number)]


def test_numbers_within_64_bits_are_read_once(monkeypatch):
    monkeypatch.setattr(records, "LONG_INTEGER", None)
    values = [-(2**63), 2**64 - 1, 0.1234567890123456789, 9e18, -9e18, [0.5] * 99, {"a": [[1, "2.5"]]}]
    for value in values:
        assert records.loads(json.dumps(value).encode()) == value


def test_deep_arrays_are_read():
    value = json.dumps(2**70).join(["[" * 500, "]" * 500]).encode()
    assert records.loads(value) == json.loads(value)
