"""Lines, rows and batches of files, compared with Python, gzip, zstandard and pyarrow on the same bytes."""

import functools
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
    wanted = list(io.BytesIO(text)) or ([b""] if not (tmp_path / f"a{ending}").stat().st_size else [])
    assert lines_of(blocks) == wanted
    for start, number, lines in blocks:
        assert wanted[number - 1 : number - 1 + len(lines)] == lines
        assert text[start:].startswith(b"".join(lines))


def test_an_empty_file_gives_one_empty_line(tmp_path):
    (tmp_path / "a").touch()
    assert list(files.lines_between(str(tmp_path / "a"), 0, 0)) == [(0, None, [b""])]
    assert list(files.packed_lines(str(tmp_path / "a"))) == [(0, 1, [b""])]


def test_frames_of_zstd_are_read_one_after_another_in_reads_of_any_size(tmp_path):
    text = bytes(range(256)) * 5000
    frames = [
        zstandard.ZstdCompressor().compress(text[i : i + 300_000]) for i in range(0, len(text), 300_000)
    ]
    (tmp_path / "a.zst").write_bytes(b"".join(frames))
    for size in (1000, 1 << 20):
        with files.open_binary(tmp_path / "a.zst") as file:
            assert b"".join(iter(functools.partial(file.read, size), b"")) == text


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
        UserError, match=r"has no column 'body' \(it has text, n\); name the text's with --text-key"
    ):
        list(read(str(tables / f"a.{name}"), start, end, "body"))


def test_the_sizes_of_row_groups_are_those_of_the_files_own_metadata(tables):
    metadata = pyarrow.parquet.read_metadata(tables / "a.parquet")
    assert list(files.row_group_bytes(tables / "a.parquet")) == [
        metadata.row_group(i).total_byte_size for i in range(5)
    ]


@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "Parquet file"), ("a.arrow", "Arrow stream")])
def test_a_truncated_or_missing_file_is_named(tables, name, kind):
    path = tables / name
    path.write_bytes(path.read_bytes()[:50])
    read = {"a.parquet": files.row_group_bytes, "a.arrow": files.arrow_batches}[name]
    with pytest.raises(UserError, match=rf"{name}: not a whole {kind} \(.*\); fetch or write it again"):
        list(read(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(read(path))
