"""Lines, rows and batches of files, compared with Python, gzip, zstandard and pyarrow on the same bytes."""

import gzip
import io
import itertools

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents import files

TEXTS = st.lists(st.sampled_from([b"", b"a", b"bcd", b"x" * 40]), max_size=12).map(b"\n".join)
quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def lines_of(blocks):
    """The lines of all blocks; checks the offset of each block."""
    blocks = list(blocks)
    for (start, _, lines), (after, _, _) in itertools.pairwise(blocks):
        assert after == start + sum(map(len, lines))
    return [line for _, _, lines in blocks for line in lines]


@quick
@given(text=TEXTS, piece=st.sampled_from([1, 2, 3, 41, 1000]), block=st.sampled_from([1, 7, 1 << 17]))
def test_byte_ranges_of_a_file_give_every_line_once_and_in_order(tmp_path, text, piece, block):
    (tmp_path / "a").write_bytes(text)
    edges = [*range(0, len(text), piece), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LINES_BYTES", block)
        found = [
            line
            for start, end in itertools.pairwise(edges)
            for line in lines_of(files.lines_between(str(tmp_path / "a"), start, end))
        ]
    assert found == text.splitlines(keepends=True)


@quick
@given(text=TEXTS, block=st.sampled_from([1, 7, 1 << 17]))
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_compressed_file_gives_the_lines_of_its_text_with_their_offsets_and_numbers(
    tmp_path, ending, text, block
):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    (tmp_path / f"a{ending}").write_bytes(pack(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LINES_BYTES", block)
        blocks = list(files.packed_lines(str(tmp_path / f"a{ending}")))
    assert lines_of(blocks) == list(io.BytesIO(text))
    for start, number, lines in blocks:
        assert list(io.BytesIO(text))[number - 1 : number - 1 + len(lines)] == lines
        assert text[start:].startswith(b"".join(lines))


BLANKS = st.sampled_from([b"\n", b" \n", b"\r\n", b" " * 70 + b"\n", b"\t", b"  "])
FLOODS = st.lists(
    st.one_of(
        st.sampled_from([b"", b"a", b"x" * 40, b"a b\n", b"{}\n"]),
        st.tuples(BLANKS, st.integers(1, 200)).map(lambda many: many[0] * many[1]),
    ),
    max_size=8,
).map(b"".join)


@quick
@given(text=FLOODS, block=st.sampled_from([1, 7, 100, 1 << 17]), piece=st.sampled_from([50, 1 << 17]))
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_only_blank_lines_are_left_out_and_the_others_keep_their_offsets_and_numbers(
    tmp_path, ending, text, block, piece
):
    (tmp_path / f"a{ending}").write_bytes(gzip.compress(text) if ending else text)
    wanted = list(io.BytesIO(text))
    starts = [0, *itertools.accumulate(map(len, wanted))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LINES_BYTES", block)
        if ending:
            blocks = list(files.packed_lines(str(tmp_path / f"a{ending}")))
        else:
            edges = itertools.pairwise([*range(0, len(text), piece), len(text)])
            blocks = [b for some in edges for b in files.lines_between(str(tmp_path / "a"), *some)]
    found = {}
    for start, number, lines in blocks:
        index = starts.index(start)
        assert number in (None, index + 1)
        found |= dict(enumerate(lines, index))
    assert found == {i: wanted[i] for i in found}
    assert all(wanted[i].isspace() for i in set(range(len(wanted))) - found.keys())


@pytest.mark.parametrize("unit", [b"\n", b" \n", b"\r\n"])
@pytest.mark.parametrize("between", [b"", b"{}\n"])
def test_many_blank_lines_are_not_made(tmp_path, unit, between):
    (tmp_path / "a.gz").write_bytes(gzip.compress((unit * 100_000 + between) * 3))
    made = lines_count(files.packed_lines(str(tmp_path / "a.gz")))
    assert 3 * bool(between) <= made <= 3 * bool(between) + 8  # a line at the end of a block is not whole


def lines_count(blocks):
    return sum(len(lines) for _, _, lines in blocks)


LIMITS = st.sampled_from([1, 2, 3, 39, 40, 1000])


def with_stand_ins(lines, limit):
    """The lines, with the length of each that is longer than the limit in place of it."""
    return [line if len(line.removesuffix(b"\n")) <= limit else len(line) for line in lines]


def found_lines(blocks):
    return [len(line) if isinstance(line, files.Refused) else line for line in lines_of(blocks)]


@quick
@given(
    text=TEXTS,
    piece=st.sampled_from([1, 2, 3, 41, 1000]),
    block=st.sampled_from([1, 7, 1 << 17]),
    limit=LIMITS,
)
def test_a_line_that_is_too_long_is_replaced_once_whatever_the_cuts(tmp_path, text, piece, block, limit):
    (tmp_path / "a").write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LINES_BYTES", block)
        found = [
            line
            for start, end in itertools.pairwise([*range(0, len(text), piece), len(text)])
            for line in found_lines(files.lines_between(str(tmp_path / "a"), start, end, limit))
        ]
    assert found == with_stand_ins(text.splitlines(keepends=True), limit)


@quick
@given(text=TEXTS, block=st.sampled_from([1, 7, 1 << 17]), limit=LIMITS)
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_line_that_is_too_long_keeps_the_places_of_the_others(
    tmp_path, ending, text, block, limit
):
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    (tmp_path / f"a{ending}").write_bytes(pack(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LINES_BYTES", block)
        blocks = list(files.packed_lines(str(tmp_path / f"a{ending}"), limit))
    wanted = list(io.BytesIO(text))
    assert found_lines(blocks) == with_stand_ins(wanted, limit)
    for start, number, lines in blocks:
        assert text[start:].startswith(b"".join(wanted[number - 1 : number - 1 + len(lines)]))


@quick
@given(text=TEXTS, sizes=st.lists(st.integers(1, 9), min_size=1), limit=st.one_of(st.just(10**6), LIMITS))
def test_a_stream_gives_its_lines_as_soon_as_they_have_arrived(text, sizes, limit):
    stream, given, number, seen = io.BytesIO(text), itertools.cycle(sizes), 1, 0

    def read(size):
        return stream.read(next(given))

    wanted, blocks = list(io.BytesIO(text)), []
    for start, first, lines in files.arriving_lines(read, limit):
        blocks.append((start, first, lines))
        assert (start, first) == (seen, number)
        seen, number = seen + sum(map(len, lines)), number + len(lines)
        # no whole line waits
        assert seen == text.rfind(b"\n", 0, stream.tell()) + 1 or stream.tell() == len(text)
    assert found_lines(blocks) == with_stand_ins(wanted, limit)


def test_a_line_of_a_stream_that_is_too_long_is_not_kept():
    blocks = iter([b"x" * 10_000] * 500 + [b"y\nnext\n", b""])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "bytearray", type("Small", (bytearray,), {"__iadd__": small_sum}), raising=False)
        [(_, _, [long, following])] = files.arriving_lines(lambda size: next(blocks), 20_000)
    assert (len(long), len(long.beginning), following) == (5_000_002, files.BEGINNING_BYTES, b"next\n")


def small_sum(self, more):
    self.extend(more)
    assert len(self) < 50_000
    return self


def test_the_stand_in_of_a_long_line_has_its_size_and_whole_characters_of_its_beginning(tmp_path):
    (tmp_path / "a").write_bytes(b"x" + "ü".encode() * 3000 + b"\n")
    ((_, _, [line]),) = files.lines_between(str(tmp_path / "a"), 0, 6002, 5000)
    assert (len(line), line.reason) == (6002, "has 6,002 bytes, more than --max-record-bytes 5000")
    assert line.beginning.decode() == "x" + "ü" * 499


def test_shards_inside_a_long_line_do_not_read_it_again_and_again(tmp_path, monkeypatch):
    size, counts = 4 << 20, []
    (tmp_path / "a").write_bytes(b"a" * size + b"\nlast\n")

    class Counting(io.FileIO):
        def readinto(self, buffer):
            counts.append(super().readinto(buffer))
            return counts[-1]

    monkeypatch.setattr(files, "BUFFER_BYTES", 4096)
    monkeypatch.setattr(files, "LINES_BYTES", 4096)
    monkeypatch.setattr(
        files,
        "open",
        lambda path, mode, buffering: io.BufferedReader(Counting(path), buffering),
        raising=False,
    )
    edges = [*range(0, size, 1 << 14), size + 6]
    found = [
        line
        for start, end in itertools.pairwise(edges)
        for line in found_lines(files.lines_between(str(tmp_path / "a"), start, end, 1000))
    ]
    assert found == [size + 1, b"last\n"]
    assert sum(counts) < 3 * size


def test_a_line_of_utf8_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 5)
    (tmp_path / "a").write_bytes(b"1234\n123456\n")
    with pytest.raises(UserError, match=r"a, line 2: has more than 5 bytes; check the file"):
        list(files.utf8_lines(tmp_path / "a"))


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "a.zst").touch()
    assert list(files.lines_between(str(tmp_path / "a"), 0, 0)) == []
    assert list(files.packed_lines(str(tmp_path / "a.zst"))) == []


@pytest.mark.parametrize("frames", [1, 2])
def test_a_zstd_frame_truncated_at_any_byte_is_an_error(tmp_path, frames):
    frame = zstandard.ZstdCompressor().compress(b"some text that is long enough\n" * 3)
    for end in range(1, len(frame)):
        (tmp_path / "a.zst").write_bytes(frame * (frames - 1) + frame[:end])
        with pytest.raises(UserError, match=r"a\.zst: the compressed data ends or breaks after [\d,]+ bytes"):
            list(files.packed_lines(str(tmp_path / "a.zst")))


def test_lines_of_utf8_are_numbered_without_the_blank_ones_and_the_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo \xe2\x9c\x93\n three")
    assert list(files.utf8_lines(tmp_path / "a")) == [(1, "one"), (4, "two ✓"), (5, " three")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"good\nb\xffd\n", "line 2: byte 1 is not UTF-8; save the file as UTF-8"),
        (b" \n\n", "the file is empty; check the path"),
        (b"", "the file is empty; check the path"),
    ],
)
def test_a_text_file_without_text_or_not_in_utf8_is_refused(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(files.utf8_lines(tmp_path / "a"))


ROWS = [{"text": f"row {i}", "n": i} for i in range(3000)]


@pytest.fixture
def tables(tmp_path):
    """The rows as a Parquet file of row groups of 700 and as an Arrow stream of batches of 1300."""
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    stream = pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema)
    stream.write_table(table, max_chunksize=1300)
    stream.close()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "start", "end", "first", "last"),
    [
        ("parquet", 0, 5, 0, 3000),
        ("parquet", 1, 3, 700, 2100),
        ("parquet", 4, 5, 2800, 3000),
        ("arrow", 0, 3, 0, 3000),
        ("arrow", 1, 2, 1300, 2600),
        ("arrow", 2, 3, 2600, 3000),
    ],
)
def test_row_groups_and_batches_give_their_rows_with_their_numbers_in_the_file(
    tables, name, start, end, first, last
):
    read = files.parquet_rows if name == "parquet" else files.arrow_rows
    assert list(read(str(tables / f"a.{name}"), start, end, "text")) == list(enumerate(ROWS))[first:last]
    assert len(list(read(str(tables / f"a.{name}"), start, end, ""))) == last - first
    with pytest.raises(
        UserError, match=r"has no column 'body' \(it has 'text', 'n'\); name the text's with --text-key"
    ):
        list(read(str(tables / f"a.{name}"), start, end, "body"))


def test_the_sizes_of_row_groups_are_those_of_the_files_own_metadata(tables):
    metadata = pyarrow.parquet.read_metadata(tables / "a.parquet")
    assert list(files.row_group_bytes(tables / "a.parquet")) == [
        metadata.row_group(i).total_byte_size for i in range(5)
    ]


@pytest.mark.parametrize(
    ("name", "kind"), [("a.parquet", "Parquet file"), ("a.arrow", "Arrow stream or file")]
)
def test_a_truncated_or_missing_file_is_named(tables, name, kind):
    path = tables / name
    path.write_bytes(path.read_bytes()[:50])
    read = {"a.parquet": files.row_group_bytes, "a.arrow": files.arrow_batches}[name]
    with pytest.raises(UserError, match=rf"{name}: not a whole {kind} \(.*\); fetch or write it again"):
        list(read(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(read(path))


def test_parquet_that_gives_fewer_rows_than_its_metadata_says_is_refused(tmp_path):
    """pyarrow ends without an error at a page that has no values, also where more pages follow."""
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {i}" for i in range(10)]})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    whole = path.read_bytes()
    header = b"\x2c\x15\x14"  # a data page begins, of 10 values (field 1, zigzag)
    assert whole.count(header) == 1
    path.write_bytes(whole.replace(header, b"\x2c\x15\x00"))
    assert pyarrow.parquet.read_table(path).num_rows < 10
    with pytest.raises(
        UserError, match=r"a\.parquet: row group 0 cannot be read \(10 of its rows are missing"
    ):
        list(files.parquet_rows(str(path), 0, 1, "text"))


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("with_dictionary", [False, True])
def test_a_file_of_arrow_has_the_rows_of_its_stream_and_no_part_of_it_is_taken_for_the_whole(
    tmp_path, compression, with_dictionary
):
    """`datasets` writes streams, polars and pandas write files."""
    table = pyarrow.Table.from_pylist(ROWS[:50])
    if with_dictionary:
        table = table.append_column("label", pyarrow.array(["a", "b"] * 25).dictionary_encode())
    for name, new in (("stream.arrow", pyarrow.ipc.new_stream), ("file.arrow", pyarrow.ipc.new_file)):
        options = pyarrow.ipc.IpcWriteOptions(compression=compression)
        with new(tmp_path / name, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=7)
    rows, expected = (
        list(files.arrow_rows(str(tmp_path / name), 0, 99, "text")) for name in ("file.arrow", "stream.arrow")
    )
    assert rows == expected
    assert [row for _, row in rows] == table.to_pylist()
    for name in ("stream.arrow", "file.arrow"):
        whole = (tmp_path / name).read_bytes()
        for size in range(0, len(whole), 8):  # every message, and so every end of a batch, has such a place
            (tmp_path / "cut.arrow").write_bytes(whole[:size])
            with pytest.raises(UserError, match=r"cut\.arrow: not a whole Arrow stream or file"):
                list(files.arrow_rows(str(tmp_path / "cut.arrow"), 0, 99, "text"))


def test_a_stream_of_early_arrow_may_end_with_its_shorter_mark(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS[:20])
    old = pyarrow.ipc.IpcWriteOptions(use_legacy_format=True)
    with pyarrow.ipc.new_stream(tmp_path / "old.arrow", table.schema, options=old) as writer:
        writer.write_table(table, max_chunksize=7)
    rows = [row for _, row in files.arrow_rows(str(tmp_path / "old.arrow"), 0, 99, "text")]
    assert rows == table.to_pylist()
