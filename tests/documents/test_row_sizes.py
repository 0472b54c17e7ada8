"""Sizes of rows by lengths, against the values of Python that they become, and small files that explode."""

import itertools
import random

import pyarrow
import pyarrow.parquet
import pytest

from mt.core.config import UserError
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.documents import compression, files, row_sizes, values
from mt.tests.documents.test_values import EVERY, make

TEXT = pyarrow.string()
TEXTS = (TEXT, pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
VIEWS = (pyarrow.string_view(), pyarrow.binary_view())


def bytes_and_values(value):
    """(the bytes of all texts in a value, the number of its values)"""
    if type(value) in (str, bytes):
        return len(value.encode() if isinstance(value, str) else value), 1
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple) or hasattr(value, "nanoseconds"):
        return 0, 1
    found = [bytes_and_values(item) for item in value]
    return sum(size for size, _ in found), 1 + sum(count for _, count in found)


def arrays():
    """One array of each type of Arrow, whole and sliced, and those of two levels."""
    for kind in EVERY:
        chance = random.Random(str(kind))
        array = make(kind, 20, chance)
        yield array
        yield array.slice(5, 9)
        offsets = pyarrow.array([0, 3, 3, 11, 20], pyarrow.int32())
        yield pyarrow.ListArray.from_arrays(offsets, array).slice(1)
        starts, lengths = (pyarrow.array(n, pyarrow.int32()) for n in ([0, 0, 7, 2], [20, 20, 0, 18]))
        views = pyarrow.ListViewArray.from_arrays(starts, lengths, array)
        yield views.slice(1)
        yield pyarrow.DictionaryArray.from_arrays(pyarrow.array([3, 0, None, 0], pyarrow.int8()), views)
        yield pyarrow.StructArray.from_arrays([views, views], ["a", "b"]).slice(1, 2)


def test_the_size_of_a_row_is_that_of_its_values():
    seen = set()
    for array in arrays():
        batch = pyarrow.record_batch({"x": array})
        sizes = row_sizes.of_rows(batch)
        size, _ = row_sizes.of_batch(batch)
        assert size >= sizes[0].sum() - 8 * len(array) - 8, array.type
        try:
            rows = values.python_values(array)
        except (values.InvalidValue, UnicodeDecodeError):
            continue
        seen.add(str(array.type))
        for value, (of_row, in_python) in zip(rows, sizes.T, strict=True):
            length, count = bytes_and_values(value)
            assert length <= of_row, array.type
            assert of_row <= length + 40 * count + 400, (array.type, value)
            assert in_python <= 2 * length + 200 * count + 1000, (array.type, value)
            assert in_python >= length + 8 * (count - 1) - 64 * count, (array.type, value)
    assert len(seen) > 4 * len(EVERY)


COUNT, SIZE, LIMIT = 500, 2000, 50_000


def shared_texts(kind, count):
    """An array of `count` texts of SIZE bytes, which share their bytes if the type lets them."""
    text = "a" * SIZE
    if pyarrow.types.is_dictionary(kind):
        return pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0] * count, kind.index_type), pyarrow.array([text], kind.value_type)
        )
    if pyarrow.types.is_run_end_encoded(kind):
        return pyarrow.RunEndEncodedArray.from_arrays([count], pyarrow.array([text], kind.value_type))
    if kind in VIEWS:
        view = SIZE.to_bytes(4, "little") + text[:4].encode() + bytes(8)
        parts = [None, pyarrow.py_buffer(view * count), pyarrow.py_buffer(text.encode())]
        return pyarrow.Array.from_buffers(kind, count, parts)
    return pyarrow.array([text] * count, kind)


def in_views(array, large=False):
    """A list view of all elements, twice."""
    kind = pyarrow.int64() if large else pyarrow.int32()
    make_array = pyarrow.LargeListViewArray if large else pyarrow.ListViewArray
    starts, sizes = pyarrow.array([0, 0], kind), pyarrow.array([len(array)] * 2, kind)
    return make_array.from_arrays(starts, sizes, array)


def in_list(array):
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, len(array)], pyarrow.int32()), array)


def in_map(array):
    offsets = pyarrow.array([0, len(array)], pyarrow.int32())
    return pyarrow.MapArray.from_arrays(offsets, pyarrow.array(["k"] * len(array)), array)


def in_union(array):
    count = len(array)
    return pyarrow.UnionArray.from_dense(
        pyarrow.array([0] * count, pyarrow.int8()), pyarrow.array([0] * count, pyarrow.int32()), [array]
    )


# Of many texts, an array whose first element has all of them.
PLACES = {
    "list": in_list,
    "large list": lambda a: in_list(a).cast(pyarrow.large_list(a.type)),
    "fixed-size list": lambda a: pyarrow.FixedSizeListArray.from_arrays(a, len(a)),
    "list view": in_views,
    "large list view": lambda a: in_views(a, large=True),
    "views of views": lambda a: in_list(in_views(in_views(a))),
    "map": in_map,
    "lists in a list": lambda a: in_list(in_list(a)),
    "struct": lambda a: pyarrow.StructArray.from_arrays([in_list(a)], ["a"]),
    "structs": lambda a: in_list(pyarrow.StructArray.from_arrays([a], ["a"])),
    "union": lambda a: in_list(in_union(a)),
    "dictionary of lists": lambda a: pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0], pyarrow.int8()), in_list(a)
    ),
    "runs of lists": lambda a: pyarrow.RunEndEncodedArray.from_arrays([1], in_list(a)),
}
SHARED = (
    *VIEWS,
    *(pyarrow.dictionary(pyarrow.int8(), kind) for kind in (TEXT, pyarrow.large_binary(), VIEWS[0])),
    pyarrow.run_end_encoded(pyarrow.int32(), TEXT),
)


def in_place(place, kind):
    array = PLACES[place](shared_texts(kind, COUNT))
    return array.slice(0, 1)


POOLS = []  # a pool must not end before its arrays, which a report of pytest may hold


def read_with_one_reject(path, read):
    """The rows of a file of three, whose middle one is refused; the most memory that Arrow took meanwhile."""
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    POOLS.append(pool)
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        first, (number, refused), last = read(str(path), 0, 3, "text", LIMIT)
    finally:
        pyarrow.set_memory_pool(before)
    assert (number, first[1]["text"], last[1]["text"]) == (1, "before", "after")
    assert isinstance(refused, files.Refused)
    return refused.reason, pool.max_memory()


def write_three(path, array, **how):
    """Parquet or Arrow with three rows, each a row group or batch, of which the middle one has the array."""
    schema = pyarrow.schema([("text", TEXT), ("x", array.type)])
    if path.suffix == ".parquet":
        writer = pyarrow.parquet.ParquetWriter(path, schema, data_page_size=1 << 30, **how)
        write_one = lambda batch: writer.write_table(pyarrow.Table.from_batches([batch]))
    else:
        writer = pyarrow.ipc.new_stream(path, schema, options=pyarrow.ipc.IpcWriteOptions(**how))
        write_one = writer.write_batch
    with writer:
        for text, x in (("before", pyarrow.nulls(1, array.type)), ("x", array), ("after", None)):
            x = pyarrow.nulls(1, array.type) if x is None else x
            write_one(pyarrow.record_batch([pyarrow.array([text]), x], schema=schema))


@pytest.mark.parametrize("place", PLACES)
def test_a_row_of_arrow_that_repeats_bytes_is_refused_before_it_is_made(tmp_path, place):
    tried = 0
    for kind in (*TEXTS, *SHARED):
        for codec in (None, "zstd"):
            path = tmp_path / "a.arrow"
            try:
                write_three(path, in_place(place, kind), compression=codec)
            except (pyarrow.ArrowException, TypeError):  # Arrow cannot slice or write it
                continue
            tried += 1
            reason, memory = read_with_one_reject(path, files.arrow_rows)
            assert "bytes, more than --max-record-bytes" in reason, (kind, codec)
            assert memory < 3 * COUNT * SIZE if kind in TEXTS else memory < 300_000, (kind, codec, memory)
    assert tried >= 2 * len(SHARED)


CODECS = itertools.cycle(["zstd", "gzip", "snappy", "brotli", "lz4", "none"])
PARQUET_KINDS = (TEXT, pyarrow.large_binary(), VIEWS[0], pyarrow.dictionary(pyarrow.int32(), TEXT))
ENCODINGS = (None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")


@pytest.mark.parametrize("place", PLACES)
def test_a_row_of_parquet_that_repeats_bytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch, place):
    monkeypatch.setattr(compression, "WHOLE_BYTES", 2 * LIMIT)
    tried = 0
    for kind, encoding in itertools.product(PARQUET_KINDS, ENCODINGS):
        path, version = tmp_path / "a.parquet", "1.0" if tried % 2 else "2.0"
        try:
            array = in_place(place, kind)
            names = leaves(tmp_path / "leaves.parquet", array)
            how = {"use_dictionary": True} if encoding is None else {"use_dictionary": False}
            if encoding:
                how["column_encoding"] = dict.fromkeys(names, encoding)
            codec = next(CODECS)
            write_three(
                path, array, compression=codec, store_schema=tried % 3 > 0, data_page_version=version, **how
            )
        except (pyarrow.ArrowException, TypeError):  # Parquet cannot have it
            continue
        tried += 1
        case = (kind, encoding, codec, path.stat().st_size)
        try:
            reason, memory = read_with_one_reject(path, files.parquet_rows)
        except UserError as error:
            if "Not yet implemented" not in str(error):  # pyarrow cannot read what it wrote
                raise
            continue
        assert "--max-record-bytes" in reason or "is in row group 1, which is not read" in reason, case
        # What is not compressed to a hundredth may be decoded.
        is_bomb = compression.EXPANSION * path.stat().st_size < COUNT * SIZE
        assert memory < (300_000 if is_bomb else 8 * COUNT * SIZE), (*case, memory)
    # Parquet has no unions, no runs, and no dictionaries of lists.
    assert (tried >= 8) == (place not in ("union", "runs of lists", "dictionary of lists")), tried


def leaves(path, array):
    """The paths of the columns of Parquet in which the texts of a column x are."""
    pyarrow.parquet.write_table(pyarrow.table({"x": array}), path)
    schema = pyarrow.parquet.ParquetFile(path).schema
    columns = (schema.column(i) for i in range(len(schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


@pytest.mark.parametrize("kind", ["nulls", "a run", "a dictionary", "Parquet"])
def test_a_small_file_of_millions_of_rows_is_refused_before_they_are_read(tmp_path, kind):
    """Each row becomes a line with an id of its own, whatever the bytes that rows share."""
    count, path = 2_000_000, tmp_path / ("a.parquet" if kind == "Parquet" else "a.arrow")
    if kind == "nulls":
        column = pyarrow.nulls(count)
    elif kind == "a run":
        ends = pyarrow.array([count], pyarrow.int32())
        column = pyarrow.RunEndEncodedArray.from_arrays(ends, pyarrow.array(["hello"]))
    else:
        column = pyarrow.repeat(pyarrow.scalar("hello"), count).dictionary_encode()
    table = pyarrow.table({"text": column})
    if kind == "Parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with (
            pyarrow.OSFile(str(path), "wb") as f,
            pyarrow.ipc.new_stream(f, table.schema, options=options) as s,
        ):
            s.write_table(table)
    with pytest.raises(
        UserError, match=rf"{path.name}: has 2,000,000 rows in [0-9,]+ bytes, and .* 1000 times"
    ):
        clean(CleanConfig(input=(str(path),), output=str(tmp_path / "out"), rules=("whitespace",), workers=1))
