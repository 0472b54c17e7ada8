"""`mt.read_documents` and `mt.write_documents`: what goes out comes back, and mistakes have one line."""

import json

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mt
from mt.documents.in_memory import as_documents, read_documents, write_documents

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.lists(
    st.builds(mt.Document, TEXTS, TEXTS, st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("documents")


@given(documents=DOCUMENTS.filter(len), ending=st.sampled_from([".jsonl", ".jsonl.zst", ".parquet"]))
def test_documents_that_are_written_are_read_again(folder, documents, ending):
    path = folder / f"x{ending}"
    assert write_documents(iter(documents), path) == len(documents)
    found = list(read_documents(path))
    if ending == ".parquet":  # a column has a value in every row
        keys = {key for document in documents for key in document.meta}
        documents = [mt.Document(d.id, d.text, {key: d.meta.get(key) for key in keys}) for d in documents]
    assert found == documents


def test_other_programs_read_the_files(tmp_path):
    rows = [{"id": 7, "text": "one", "n": 1}, "two", mt.Document("c", "three", {"n": 3})]
    write_documents(rows, tmp_path / "new/x.jsonl")
    lines = (tmp_path / "new/x.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "7", "text": "one", "n": 1},
        {"id": "1", "text": "two"},
        {"id": "c", "text": "three", "n": 3},
    ]
    write_documents(rows, tmp_path / "x.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet")["text"].to_pylist() == ["one", "two", "three"]


def test_a_document_that_is_shown_is_not_longer_than_a_few_lines():
    assert repr(mt.Document("a", "text", {"n": 1})) == "Document(id='a', text='text', meta={'n': 1})"
    assert len(repr(mt.Document("a", "book " * 10**6, {"more": "text " * 10**6}))) < 600


def test_the_documents_of_the_caller_stay_as_they_are():
    mine = mt.Document("a", "text", {"n": 1})
    (copy,) = as_documents([mine])
    copy.text, copy.meta["n"] = "other", 2
    assert mine == mt.Document("a", "text", {"n": 1})


def test_files_that_are_not_read_are_a_warning_and_records_that_cannot_be_read_are_given(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot JSON\n{"text": "two"}\n')
    (tmp_path / "b.exe").write_text("")
    with pytest.warns(UserWarning, match="not read: 1 file"):
        documents = read_documents(tmp_path)
    assert next(documents).text == "one"
    with pytest.raises(
        mt.UserError, match=r"a\.jsonl, line 2: malformed JSON.*; mend it, or pass rejects=\[\] to"
    ):
        next(documents)
    rejects = []
    found = list(read_documents([tmp_path / "a.jsonl"], rejects=rejects))
    assert [d.text for d in found] == ["one", "two"]
    assert [(r.place, r.raw) for r in rejects] == [("line 2", "not JSON")]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: read_documents(folder / "none.jsonl"), r"none\.jsonl"),
        (
            lambda folder: write_documents([], folder / "x.txt"),
            r"must end in \.jsonl, \.jsonl\.zst, \.parquet",
        ),
        (lambda folder: write_documents("text", folder / "x.jsonl"), "this is one: put it into"),
        (lambda folder: write_documents([{"id": 1}], folder / "x.jsonl"), "document 0: its 'text' is None"),
        (
            lambda folder: write_documents(["a", 3], folder / "x.jsonl"),
            "document 1: is 3, which must be a text",
        ),
        (
            lambda folder: write_documents(["\ud800"], folder / "x.jsonl"),
            r"document '0': has half a surrogate pair, .*; mend it$",
        ),
    ],
)
def test_mistakes_have_one_line_and_leave_no_file(tmp_path, call, message):
    with pytest.raises(mt.UserError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
