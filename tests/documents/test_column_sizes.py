"""Sizes of pages and batches from their headers, against what pyarrow decodes."""

import contextlib
import io

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents import column_sizes, compression, files

ROWS = st.lists(st.sampled_from(["", "a", "bb" * 20, "c" * 300, None, "ü" * 90]), min_size=1, max_size=300)
quick = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, table, **how):
    pyarrow.parquet.write_table(table, path, **how)
    return files.open_parquet(path)


@quick
@given(
    texts=ROWS,
    how=st.fixed_dictionaries(
        {
            "use_dictionary": st.booleans(),
            "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
            "data_page_size": st.sampled_from([1, 1 << 20]),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "write_batch_size": st.sampled_from([1, 7, 1024]),
            "row_group_size": st.sampled_from([10, 1000]),
            "dictionary_pagesize_limit": st.sampled_from([50, 1 << 20]),
        }
    ),
    front_coded=st.booleans(),
    limit=st.sampled_from([1, 500, 5000, 1 << 20]),
)
def test_rows_decoded_at_once_take_no_more_than_the_limit(tmp_path, texts, how, front_coded, limit):
    table = pyarrow.table(
        {"text": pyarrow.array(texts, "string"), "n": list(range(len(texts))), "x": [0.5] * len(texts)}
    )
    if front_coded:
        how = {**how, "use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    file = write(tmp_path / "a.parquet", table, **how)
    for group in range(file.metadata.num_row_groups):
        rows, _ = column_sizes.rows_at_once(file, str(tmp_path / "a.parquet"), group, None, limit, 1024)
        assert 1 <= rows <= 1024
        batches = list(file.iter_batches(rows, [group]))
        assert rows == 1 or max(batch.nbytes for batch in batches) <= limit
        values = sum(batch.nbytes for batch in batches)
        assert limit < 20 * values + 10_000 or rows == min(1024, sum(map(len, batches)))
    found = files.parquet_batches(file, str(tmp_path / "a.parquet"), 0, file.metadata.num_row_groups, limit)
    read = [row if isinstance(row, files.Refused) else row["text"] for _, row in files.rows_of(found)]
    assert len(read) == len(texts)
    for number, (text, row) in enumerate(zip(texts, read)):
        if isinstance(row, files.Refused):
            assert table.slice(number, 1).combine_chunks().to_batches()[0].nbytes > limit
        else:
            assert row == text


@quick
@given(texts=ROWS, page=st.sampled_from([1, 1 << 20]), version=st.sampled_from(["1.0", "2.0"]))
def test_the_headers_of_all_pages_are_read(tmp_path, texts, page, version):
    file = write(
        tmp_path / "a.parquet",
        pyarrow.table({"text": pyarrow.array(texts, "string")}),
        data_page_size=page,
        write_batch_size=5,
        data_page_version=version,
    )
    chunk = file.metadata.row_group(0).column(0)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    with open(tmp_path / "a.parquet", "rb") as raw:
        found = list(column_sizes.pages(raw, first, first + chunk.total_compressed_size))
    data = [p for p in found if p[0] != column_sizes.DICTIONARY_PAGE]
    assert sum(values for _, _, _, values, _ in data) == len(texts)
    assert sum(size for _, size, _, _, _ in found) < chunk.total_uncompressed_size
    assert (len(found) > len(data)) == chunk.has_dictionary_page


@pytest.mark.parametrize(
    "noise", [b"", b"\x15", b"\xff" * 40, b"\x1c" * 3000, bytes(50), b"\x19\xfc" + b"\xff" * 9]
)
def test_what_is_no_header_is_an_error_and_not_a_loop(noise):
    with pytest.raises(ValueError, match="the header of the page at byte 0 is not valid"):
        list(column_sizes.pages(io.BytesIO(noise), 0, max(1, len(noise))))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_page_that_is_a_bomb_costs_its_long_rows_or_its_row_group_with_each_row_counted(
    tmp_path, monkeypatch, codec
):
    monkeypatch.setattr(compression, "WHOLE_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    with pyarrow.parquet.ParquetWriter(
        path, pyarrow.schema([("text", "string")]), compression=codec
    ) as writer:
        for texts in (["one", "two"], ["three", "a" * (2 << 20)], ["five"]):
            writer.write_table(pyarrow.table({"text": texts}))
    rows = list(files.parquet_rows(str(path), 0, 3, "text", 1000))
    assert [number for number, _ in rows] == [0, 1, 2, 3, 4]
    read = [row.reason if isinstance(row, files.Refused) else row["text"] for _, row in rows]
    if codec == "zstd":
        assert read == [
            "one",
            "two",
            "three",
            "has 2,097,152 bytes, more than --max-record-bytes 1000",
            "five",
        ]
    else:  # it is not decompressed in pieces
        reason = "is in row group 1, which is not read: column 'text' has a page of 2,0"
        assert [r.startswith(reason) for r in read] == [False, False, True, True, False]


def test_a_row_group_that_repeats_its_dictionary_without_end_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "GROUP_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([1] * 100_000, pyarrow.int32()), pyarrow.array(["x", "a" * 1000])
    )
    with pyarrow.parquet.ParquetWriter(
        path, pyarrow.schema([("text", "string")]), store_schema=False
    ) as writer:
        writer.write_table(pyarrow.table({"text": texts.dictionary_decode()}))
        writer.write_table(pyarrow.table({"text": ["last"]}))
    *rows, last = files.parquet_rows(str(path), 0, 2, "text")
    assert last == (100_000, {"text": "last"})
    assert [number for number, _ in rows] == list(range(100_000))
    refused = [row for _, row in rows if isinstance(row, files.Refused)]
    assert 1000 < len(rows) - len(refused) < 30_000
    assert {row.reason.split(" times its")[0] for row in refused} == {
        "is among the last rows of row group 0, which becomes more than 1000"
    }
    monkeypatch.setattr(files, "MAX_REFUSED_ROWS", 10_000)
    with pytest.raises(UserError, match=r"row [\d,]+ and [\d,]+ more cannot be read, since each is among"):
        list(files.parquet_rows(str(path), 0, 2, "text"))


def test_nested_columns_and_numbers_are_counted(tmp_path):
    table = pyarrow.table(
        {
            "text": ["a"] * 1000,
            "tokens": [list(range(100))] * 1000,
            "ok": [True] * 1000,
            "f": [b"12345678"] * 1000,
        }
    )
    table = table.set_column(3, "f", table["f"].cast(pyarrow.binary(8)))
    file = write(tmp_path / "a.parquet", table)
    of = lambda *names, limit: column_sizes.rows_at_once(
        file, str(tmp_path / "a.parquet"), 0, names or None, limit, 1024
    )[0]
    assert of(limit=1 << 20) == 1000
    assert of("tokens", limit=100_000) < 200
    assert of("ok", "f", limit=100_000) == 1000
    assert of("f", limit=2000) < 250


def test_a_page_that_is_read_in_pieces_does_not_make_the_batches_of_its_row_group_small(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(compression, "WHOLE_BYTES", 1 << 20)
    texts = ["a"] * 1000 + ["b" * (2 << 20)]
    file = write(tmp_path / "a.parquet", pyarrow.table({"text": texts}))
    with pytest.raises(column_sizes.LargePages) as error:
        column_sizes.rows_at_once(file, str(tmp_path / "a.parquet"), 0, None, 100_000, 1024)
    assert error.value.rows == 1001


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip", "lz4", "brotli"])
def test_a_large_dictionary_of_short_texts_does_not_make_batches_small(tmp_path, codec):
    texts = [f"text {i}" for i in range(50_000)]
    file = write(tmp_path / "a.parquet", pyarrow.table({"text": texts}), compression=codec)
    rows, _ = column_sizes.rows_at_once(file, str(tmp_path / "a.parquet"), 0, None, 100_000, 1024)
    assert rows == 1024


@pytest.mark.parametrize("codec", ["zstd", "lz4", None])
def test_a_batch_of_arrow_that_is_a_bomb_is_refused_and_the_others_come_out(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(compression, "WHOLE_BYTES", 1 << 20)
    path = str(tmp_path / "a.arrow")
    schema = pyarrow.schema([("text", "string")])
    with pyarrow.ipc.new_stream(
        path, schema, options=pyarrow.ipc.IpcWriteOptions(compression=codec)
    ) as stream:
        for texts in (["one", "two"], ["three", "a" * (2 << 20), "b"], ["five"]):
            stream.write_batch(pyarrow.record_batch({"text": texts}))
    rows = list(files.arrow_rows(path, 0, 3, "text", 1000))
    if codec is None:  # then it is as large in the file, and stays there
        assert [n for n, row in rows if isinstance(row, files.Refused)] == [3]
        assert len(rows) == 6
        return
    assert [n for n, _ in rows] == [0, 1, 2, 3, 4, 5]
    assert all(
        row.reason.startswith("is in a record batch that is not read: it has 2,0") for _, row in rows[2:5]
    )
    assert rows[5] == (5, {"text": "five"})
    assert list(files.arrow_rows(path, 2, 3, "text", 1000)) == [(5, {"text": "five"})]


@quick
@given(texts=ROWS, codec=st.sampled_from(["zstd", "lz4", None]), dictionary=st.booleans())
def test_a_stream_of_arrow_gives_what_pyarrow_reads(tmp_path, texts, codec, dictionary):
    path = str(tmp_path / "a.arrow")
    column = pyarrow.array(texts)
    table = pyarrow.table({"text": column.dictionary_encode() if dictionary else column})
    with pyarrow.ipc.new_stream(
        path, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=codec)
    ) as s:
        s.write_table(table, max_chunksize=7)
    assert [row["text"] for _, row in files.arrow_rows(path, 0, 1000, "text")] == texts


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_text_that_is_not_utf8_is_one_record_that_cannot_be_read(tmp_path, name):
    texts = pyarrow.array([b"one", b"caf\xe9", b"three"]).view(pyarrow.string())
    table = pyarrow.table({"text": texts})
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, tmp_path / name)
    else:
        with pyarrow.ipc.new_stream(tmp_path / name, table.schema) as stream:
            stream.write_table(table)
    read = files.parquet_rows if name == "a.parquet" else files.arrow_rows
    first, (number, refused), last = read(str(tmp_path / name), 0, 1, "text")
    assert (first, last) == ((0, {"text": "one"}), (2, {"text": "three"}))
    assert (number, refused.reason) == (1, "byte 3 of a text (0xe9) is not UTF-8")
    assert refused.beginning == b"caf\xe9"


def test_offsets_outside_of_the_buffers_are_refused(tmp_path):
    offsets = pyarrow.py_buffer(np.array([0, 3, 1 << 30, 6], np.int32))
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"abcdef")])
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", pyarrow.schema([("text", "string")])) as stream:
        stream.write_batch(pyarrow.record_batch({"text": texts}))
    with pytest.raises(UserError, match=r"a\.arrow: record batch 0 is damaged \(.*\); write it again"):
        list(files.arrow_rows(str(tmp_path / "a.arrow"), 0, 1, "text"))


def test_damaged_arrow_metadata_is_one_line(tmp_path):
    path = tmp_path / "a.arrow"
    schema = pyarrow.schema([("text", "string")])
    with pyarrow.ipc.new_stream(
        path, schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write_batch(pyarrow.record_batch({"text": ["some text"] * 30}))
    whole = path.read_bytes()
    chance = np.random.default_rng(0)
    for place in chance.integers(0, len(whole) - 8, 60):
        path.write_bytes(whole[:place] + bytes([int(chance.integers(256))]) + whole[place + 1 :])
        with contextlib.suppress(UserError):  # any other error fails the test
            list(files.arrow_rows(str(path), 0, 9, "text"))
