"""Values of rows counted by their levels, against the lengths of the lists that were written."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mt.documents import column_sizes, compression, files, list_lengths, sharding
from mt.documents.page_data import DATA_PAGE, Page
from mt.documents.reader import read_raw
from mt.tests.memory import peak_growth

quick = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Runs of lists of the same length, of a few lengths that differ, and the nulls among them.
LENGTHS = st.lists(
    st.tuples(st.sampled_from([None, 0, 1, 2, 7, 9, 60, 3000]), st.integers(1, 40)), min_size=1, max_size=30
)


def lists(lengths):
    return [None if n is None else list(range(n)) for n, count in lengths for _ in range(count)]


@quick
@example([(1, 5000), (3, 1), (1, 4000), (None, 10_000), (2, 3000)], "zstd", "1.0", 1 << 20, False)
@given(
    LENGTHS,
    st.sampled_from(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]),
    st.sampled_from(["1.0", "2.0"]),
    st.sampled_from([100, 1 << 20]),
    st.booleans(),
)
def test_the_most_values_of_rows_are_those_of_the_longest_lists(
    tmp_path, lengths, codec, version, page_size, is_deeper
):
    rows = lists(lengths)
    kind = pyarrow.list_(pyarrow.int32())
    if is_deeper:  # lists of two lists, of which the first is empty
        rows, kind = [row and [[], row] for row in rows], pyarrow.list_(kind)
    pyarrow.parquet.write_table(
        pyarrow.table({"x": pyarrow.array(rows, kind)}),
        tmp_path / "a.parquet",
        compression=codec,
        data_page_version=version,
        data_page_size=page_size,
        write_batch_size=50,
    )
    file = files.open_parquet(tmp_path / "a.parquet")
    with open(tmp_path / "a.parquet", "rb") as raw:
        leaf = column_sizes._Leaf(file, raw, 0, 0, 1 << 20)
        most_of_row, most_of_rows = list_lengths.most_values(raw, leaf.pages)
    counts = np.array(
        [max(1, len(row[-1]) + is_deeper if is_deeper and row else len(row or [])) for row in rows]
    )
    assert most_of_row == counts.max()
    sums = np.concatenate(([0], np.cumsum(counts)))
    wide = min(len(counts), list_lengths.ROWS)
    window = (sums[wide:] - sums[:-wide]).max()
    assert window <= most_of_rows <= max(2 * window, most_of_row)


@pytest.mark.parametrize(
    "levels", [b"", b"\x80" * 9, b"\x08", b"\x09\x00", b"\x00" * 20, b"\xff\xff\xff\xff\x0f"]
)
def test_broken_levels_are_an_error(tmp_path, levels):
    (tmp_path / "a").write_bytes(len(levels).to_bytes(4, "little") + levels)
    size = len(levels) + 4
    page = Page("x", 0, size, 0, size, DATA_PAGE, 5, {1: 1000}, "UNCOMPRESSED", 1, 1)
    with (
        open(tmp_path / "a", "rb") as file,
        pytest.raises(ValueError, match="the levels of a page are broken"),
    ):
        list_lengths.most_values(file, [page])


INT = pyarrow.int32()
LIST = pyarrow.list_(INT)
TEXT = pyarrow.string()
KINDS = {
    "list": LIST,
    "large list": pyarrow.large_list(pyarrow.bool_()),
    "lists in a list": pyarrow.list_(LIST),
    "map": pyarrow.map_(TEXT, INT),
    "structs": pyarrow.list_(pyarrow.struct([("a", INT), ("b", TEXT)])),
    "list in a struct": pyarrow.struct([("a", pyarrow.list_(TEXT))]),
}


def nested(kind, count):
    """A pyarrow.Array of one value with `count` equal values in it."""
    offsets = pyarrow.array([0, count], pyarrow.int32())
    if pyarrow.types.is_struct(kind):
        return pyarrow.StructArray.from_arrays(
            [nested(field.type, count) for field in kind], fields=list(kind)
        )
    if pyarrow.types.is_map(kind):
        keys, items = repeated(kind.key_type, count), repeated(kind.item_type, count)
        return pyarrow.MapArray.from_arrays(offsets, keys, items)
    values = repeated(kind.value_type, count)
    if pyarrow.types.is_large_list(kind):
        return pyarrow.LargeListArray.from_arrays(offsets.cast(pyarrow.int64()), values)
    return pyarrow.ListArray.from_arrays(offsets, values)


def repeated(kind, count):
    if pyarrow.types.is_struct(kind):
        fields = [repeated(field.type, count) for field in kind]
        return pyarrow.StructArray.from_arrays(fields, fields=list(kind))
    if pyarrow.types.is_list(kind):  # all empty but the first
        offsets = pyarrow.array(np.r_[0, np.ones(count, np.int32)])
        return pyarrow.ListArray.from_arrays(offsets, repeated(kind.value_type, 1))
    value = {INT: 7, TEXT: "seven", pyarrow.bool_(): True}[kind]
    return pyarrow.repeat(pyarrow.scalar(value, kind), count)


def write_bomb(path, kind, count, **how):
    """Parquet with two row groups of two rows, of which the first row has `count` values."""
    small, large = (nested(kind, n) for n in (1, count))
    schema = pyarrow.schema([("text", TEXT), ("x", kind)])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", **how) as writer:
        for first in (large, small):
            values = pyarrow.concat_arrays([first, small])
            writer.write_table(pyarrow.table([pyarrow.array(["a", "b"]), values], schema=schema))
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_a_row_with_too_many_values_costs_its_row_group_before_it_is_decoded(
    tmp_path, monkeypatch, name, use_dictionary, version
):
    monkeypatch.setattr(compression, "WHOLE_BYTES", 1 << 20)
    how = {"use_dictionary": use_dictionary, "data_page_version": version, "data_page_size": 1 << 30}
    path = write_bomb(tmp_path / "a.parquet", KINDS[name], 1_100_000, **how)
    found = list(files.parquet_rows(str(path), 0, 2, "text", 1 << 18))
    assert [number for number, _ in found] == [0, 1, 2, 3]
    for _, row in found[:2]:
        assert row.reason.startswith("is in row group 0, which is not read: column 'x.")
    assert [row["text"] for _, row in found[2:]] == ["a", "b"]
    if use_dictionary:  # else the page itself may be too large
        assert "has a row of 1,100,000 values, and a row may take" in found[0][1].reason


def read_rows(path):
    """(the texts of the rows that are read, the number of rejects)"""
    rejects = []
    shards = sharding.plan([str(path)], on_error="skip")
    texts = [record["text"] for shard in shards for _, record in read_raw(shard, rejects.append)]
    return texts, len(rejects)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["list", "map", "structs"])
def test_a_row_of_a_hundred_million_values_takes_no_memory(tmp_path, name):
    small = write_bomb(tmp_path / "small.parquet", KINDS[name], 3)
    large = write_bomb(tmp_path / "large.parquet", KINDS[name], 100_000_000)
    assert large.stat().st_size < 10_000
    result, grown = peak_growth("mt.tests.documents.test_list_lengths", "read_rows", (small, large))
    assert result == (["a", "b"], 2)
    assert grown < 64 << 20


@quick
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["a", "bb", "c" * 900])), min_size=1, max_size=200
    ),
    st.booleans(),
)
def test_texts_that_lists_repeat_are_counted_each_time_and_come_out(tmp_path, rows, is_map):
    """A dictionary has each text once; a row is refused if its texts take more than the limit."""
    kind = pyarrow.map_(TEXT, TEXT) if is_map else pyarrow.list_(TEXT)
    values = [[(text, text) if is_map else text] * count for count, text in rows]
    table = pyarrow.table({"text": ["a"] * len(rows), "x": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = [row for _, row in files.parquet_rows(str(tmp_path / "a.parquet"), 0, 1, "text", 5000)]
    for i, (row, given_row) in enumerate(zip(found, table.to_pylist(), strict=True)):
        size = table.slice(i, 1).combine_chunks().to_batches()[0].nbytes
        if isinstance(row, files.Refused):
            assert size > 4900
            assert "more than --max-record-bytes 5000" in row.reason
        else:
            assert size <= 5000
            assert row == given_row
