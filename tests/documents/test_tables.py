"""Rows of .csv and .tsv files, compared with csv.DictReader on the whole text."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents import tables
from mt.documents.files import Refused
from mt.documents.reader import read as read_shard
from mt.documents.sharding import InputOptions
from mt.documents.tables import DELIMITERS, delimiter_rule, find_delimiter, rows
from mt.tests.repeated_units import excess

CELLS = st.text(st.sampled_from('ab",\t\n\r é✓\0'), max_size=12)


def read(data: bytes, kind="csv", key="text", limit=1000):
    return list(rows(io.BufferedReader(io.BytesIO(data)), "a.csv", kind, key, limit, "utf-8"))


@settings(deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["csv", "tsv"]),
    st.booleans(),
    st.booleans(),
)
def test_rows_are_those_of_python(cells, end, kind, quote_all, mark):
    text = io.StringIO()
    # The writer leaves a line end without quotation marks if it is not that of the file.
    quote_all |= any(set("\r\n") & set(cell) for row in cells for cell in row)
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    separator = {"csv": ",", "tsv": "\t"}[kind]
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("text", "b", "c"), *cells])
    data = b"\xef\xbb\xbf" * mark + text.getvalue().encode()
    found = read(data, kind)
    oracle = csv.DictReader(io.StringIO(text.getvalue(), newline=""), delimiter=separator)
    assert [row for _, _, row in found] == list(oracle)
    assert [number for number, _, _ in found] == list(range(len(cells)))


def test_lines_of_rows_are_counted_over_quoted_line_ends():
    found = read(b'text,id\n"one\ntwo",1\n\nthree,\n')
    assert found == [(0, 2, {"text": "one\ntwo", "id": "1"}), (1, 5, {"text": "three", "id": None})]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"a,b,c", "has 3 values, but the first row has 2; they are divided by ','"),
        (b"a", "has 1 values"),
        (b'"a"b,c', "breaks the rules of CSV (',' expected after '\"')"),
        (b"\xff,b", "a byte of value 1 (0xff) is not UTF-8"),
        (b"x" * 1001 + b",b", "bytes, more than --max-record-bytes 1000"),
        (b'"' + b"x\n" * 900 + b'y",b', "bytes, more than --max-record-bytes 1000"),
    ],
)
def test_a_bad_row_is_refused_and_the_next_is_read(bad, reason):
    (_, _, one), (_, line, wrong), (_, _, two) = read(b"text,b\none,1\n" + bad + b"\ntwo,2\n")
    assert (one["text"], two["text"], line) == ("one", "two", 3)
    assert isinstance(wrong, Refused)
    assert reason in wrong.reason
    assert len(wrong.beginning) <= 1000


def test_a_quotation_mark_that_does_not_close_is_told():
    ((_, line, wrong),) = read(b'text,b\n"one,1\ntwo,2\n')
    assert line == 2
    assert "unexpected end of data" in wrong.reason


@pytest.mark.parametrize("length", [998, 999, 1000, 1001])
def test_the_limit_counts_the_bytes_of_a_row_without_its_end(length):
    for end in (b"\n", b"\r\n", b""):
        ((_, _, row),) = read(b"text\n" + b"x" * length + end)
        assert isinstance(row, Refused) == (length > 1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"a,b\n",
            r"has no column 'text' \(it has 'a', 'b', divided by ','\); name .*--text-key .*--no-header",
        ),
        (b"a\n", r"has no column 'text' \(it has 'a'\); .*what divides its columns: --delimiter"),
        (b"text,text\n", "names the column 'text' twice"),
        (
            b"text,a\xff\n",
            r"a\.csv, line 1: a byte of value 2 \(0xff\) is not UTF-8; the first row must name",
        ),
        (b"text,,\n", "names the column '' twice"),
    ],
)
def test_a_first_row_that_names_no_columns_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        read(data)


def test_a_file_without_rows_has_none():
    assert read(b"") == read(b"text,b\n") == read(b"\n\n") == []


def written(table, delimiter, end="\n", quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(table)
    return text.getvalue()


def documents(folder, text, name="a.csv", key="text", encoding="utf-8", **settings):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    (shard,) = InputOptions(**settings).plan([str(path)], key=key)
    return list(read_shard(shard))


MANY_CELLS = st.text(st.sampled_from('ab";,|\t\n é1'), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@settings(deadline=None, max_examples=150)
@given(
    table=st.lists(st.tuples(MANY_CELLS, MANY_CELLS, MANY_CELLS), min_size=1, max_size=6),
    delimiter=st.sampled_from(DELIMITERS),
    kind=st.sampled_from(["a.csv", "a.tsv"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    sep=st.booleans(),
)
def test_tables_of_any_delimiter_are_read_back_by_the_name_of_the_column(
    folder, table, delimiter, kind, encoding, sep
):
    text = f"sep={delimiter}\r\n" * sep + written(
        [("a", "text", "b"), *table], delimiter, "\r\n", csv.QUOTE_ALL
    )
    found = documents(folder, text, kind, encoding=encoding)
    assert [(d.meta["a"], d.text, d.meta["b"]) for d in found] == table


@settings(deadline=None, max_examples=150)
@given(
    table=st.lists(st.tuples(MANY_CELLS, MANY_CELLS, MANY_CELLS), min_size=1, max_size=6),
    delimiter=st.sampled_from([*DELIMITERS, "tab", "^"]),
    mark=st.booleans(),
)
def test_tables_without_a_header_are_read_back_by_the_numbers_of_the_columns(folder, table, delimiter, mark):
    text = written(table, {"tab": "\t"}.get(delimiter, delimiter), quoting=csv.QUOTE_ALL)
    how = {"key": "2", "no_header": True, "delimiter": delimiter}
    found = documents(folder, text, encoding="utf-8-sig" if mark else "utf-8", **how)
    assert [(d.meta["1"], d.text, d.meta["3"]) for d in found] == table
    assert [d.id for d in found] == [f"a.csv:{n}" for n in range(len(table))]


def find(text, kind="csv", key="text", header=True):
    return find_delimiter(io.BufferedReader(io.BytesIO(text.encode())), "a.csv", kind, key, header)


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("text;n\n1,5;2,5\n", ";"),
        ("text\tn\na,b\tc\n", "\t"),
        ("text\na;b\nc;d\n", ","),  # one column
        ("text,n\na;b,c;d\n", ","),
        ('"a;b",text\n"c;d",e\n', ","),
        ("a;text\n'1;2'\n3\n", ";"),  # the name of the column decides, uneven rows or not
        ("title;body\nx;y\n", ";"),  # for the message that names the columns
        ("title;body\n" + "x;y\n" * 40_000, ";"),
        ("", ","),
        ('text;"n\n', ","),  # broken
    ],
)
def test_the_delimiter_is_found_where_the_first_rows_leave_no_doubt(text, delimiter):
    assert find(text) == delimiter


def test_without_a_header_rows_of_equal_length_decide():
    assert find("a b;c, d\ne;f\n", key="2", header=False) == ";"
    assert find("1,5;2\n3,5;4\n", key="3", header=False) == ","
    with pytest.raises(UserError, match=r"';' and '\|' divide its rows evenly; .* --delimiter"):
        find("a;b|c\n", key="2", header=False)


def test_a_delimiter_that_is_none_is_refused():
    for wrong in ("", ";;", '"', "\n", " "):
        holds, message = delimiter_rule(wrong)
        assert not holds
        assert "must be one character" in message


def test_line_numbers_count_the_line_of_excel():
    assert [
        line
        for _, line, _ in rows(
            io.BufferedReader(io.BytesIO(b"sep=;\r\ntext;b\r\nx;y")), "a.csv", "csv", "text", 99, "utf-8", ";"
        )
    ] == [3]


def test_a_small_table_of_long_names_is_refused_before_it_becomes_large(monkeypatch):
    """Every row of JSON has the names."""
    monkeypatch.setattr(tables, "GROUP_BYTES", 1 << 20)
    data = b"text," + b"n" * 10_000 + b"\n" + b"a,b\n" * 1000
    assert len(read(data, limit=20_000)) == 1000
    monkeypatch.setattr(tables, "GROUP_EXPANSION", 100)
    with pytest.raises(
        UserError, match=r"a\.csv: its columns have names of 10,004 bytes, with which [0-9]+ rows"
    ):
        read(data, limit=20_000)


@pytest.mark.parametrize("last", ["", ",text"])
def test_many_columns_take_linear_time_and_are_not_all_named(last):
    def table(chars):
        return "".join(f"c{n:x}," for n in range(chars // 5)) + f"end{last}{last}\n"

    def read_table(text):
        message = "has no column 'text'" if not last else "names the column 'text' twice"
        with pytest.raises(UserError, match=message) as refused:
            read(text.encode(), limit=1 << 20)
        assert len(str(refused.value)) < 1000

    assert excess(read_table, table, 30_000, 0.02) is None


def test_a_long_name_is_shortened_in_a_message():
    with pytest.raises(UserError, match="has no column 'text'") as refused:
        read(b"n" * 1_000_000 + b"\na\n", limit=1 << 20)
    assert len(str(refused.value)) < 1000


def test_a_table_of_blank_lines_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "MAX_BLANK", 100)
    assert len(read(b"text\na\n" + b"\n" * 1100)) == 1
    with pytest.raises(UserError, match=r"a\.csv: has 1,101 blank lines, and 1 rows; check the file"):
        read(b"text\na\n" + b"\n" * 1101)
