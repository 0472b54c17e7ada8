"""Decompression, compared with the bytes that Python's libraries and zstandard compressed."""

import bz2
import functools
import gzip
import lzma
import random

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.documents import compression, files
from mt.tests.memory import peak_growth

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".ZSTD": zstandard.compress,
    ".XZ": lzma.compress,
}
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(
    st.sampled_from(list(PACK)),
    st.lists(st.binary(max_size=2000), min_size=1, max_size=4),
    st.integers(1, 5000),
)
def test_members_streams_and_frames_follow_each_other_in_reads_of_any_size(tmp_path, ending, parts, size):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"".join(map(PACK[ending], parts)))
    with compression.open_binary(path) as file:
        assert b"".join(iter(functools.partial(file.read, size), b"")) == b"".join(parts)


@quick
@given(st.sampled_from(list(PACK)), st.data())
def test_a_file_that_is_cut_at_any_byte_or_goes_on_as_something_else_is_an_error(tmp_path, ending, data):
    whole = PACK[ending](b"some text that is long enough\n" * 3)
    end = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path / f"a{ending}"
    for broken in (whole[:end], whole + whole[:end], whole + b"\1garbage that is long enough for any header"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"the compressed data ends or breaks after [\d,]+ bytes"):
            list(files.packed_lines(str(path)))


@pytest.mark.parametrize(("zeros", "good"), [(4, True), (8, True), (3, False)])
def test_zero_bytes_between_xz_streams_come_in_fours(tmp_path, zeros, good):
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"a") + bytes(zeros) + lzma.compress(b"b") + bytes(zeros))
    if good:
        assert compression.read_whole(tmp_path / "a.xz") == b"ab"
    else:
        with pytest.raises(lzma.LZMAError, match="multiple of four"):
            compression.read_whole(tmp_path / "a.xz")


@pytest.mark.parametrize("window_log", [27, 28, 30, 31])
def test_windows_of_zstd_up_to_two_gibibytes_are_read(tmp_path, window_log):
    settings = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    packer = zstandard.ZstdCompressor(
        compression_params=settings
    ).compressobj()  # writes no size: the window counts
    (tmp_path / "a.zst").write_bytes(packer.compress(b"text " * 1000) + packer.flush())
    assert compression.read_whole(tmp_path / "a.zst") == b"text " * 1000


def test_a_larger_window_is_named_with_what_to_do(tmp_path):
    header = bytes.fromhex("28b52ffd") + bytes([0, (31 - 10) << 3 | 1])  # a window of 2 GiB and an eighth
    (tmp_path / "a.zst").write_bytes(header + bytes(20))
    with pytest.raises(UserError, match=r"a zstd window of more than .* again with `zstd --long=31`"):
        list(files.packed_lines(str(tmp_path / "a.zst")))


def read_all(path: str) -> int:
    with compression.open_binary(path) as file:
        return sum(map(len, iter(functools.partial(file.read, 1 << 20), b"")))


@pytest.mark.parametrize("ending", [".bz2", ".xz"])
def test_what_a_small_file_becomes_does_not_take_its_memory(tmp_path, ending):
    size = 200 << 20
    for name, count in (("small", 1), ("large", size >> 20)):
        (tmp_path / f"{name}{ending}").write_bytes(PACK[ending](bytes(1 << 20)) * count)
    small, large = (str(tmp_path / f"{name}{ending}") for name in ("small", "large"))
    read, grown = peak_growth("mt.tests.documents.test_compression", "read_all", (small, large))
    assert read == size
    assert grown < 30 << 20


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_a_file_read_whole_may_not_become_much_larger_than_it_is(tmp_path, monkeypatch, ending):
    pack = {"": bytes, **PACK}[ending]
    path = tmp_path / f"a.txt{ending}"
    monkeypatch.setattr(compression, "WHOLE_BYTES", 100_000)
    for text in (b"", b"some text", bytes(100_000), random.Random(0).randbytes(200_000)):
        path.write_bytes(pack(text))
        assert compression.read_whole(path) == text
    path.write_bytes(pack(bytes(1_000_000)))
    if ending:
        with pytest.raises(UserError, match=r"becomes more than [0-9,]+ bytes; decompress it yourself"):
            compression.read_whole(path)
    else:
        assert len(compression.read_whole(path)) == 1_000_000


def test_frames_of_zstd_are_read_one_after_another_in_reads_of_any_size(tmp_path):
    text = bytes(range(256)) * 5000
    frames = [
        zstandard.ZstdCompressor().compress(text[i : i + 300_000]) for i in range(0, len(text), 300_000)
    ]
    (tmp_path / "a.zst").write_bytes(b"".join(frames))
    for size in (1000, 1 << 20):
        with compression.open_binary(tmp_path / "a.zst") as file:
            assert b"".join(iter(functools.partial(file.read, size), b"")) == text


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_the_place_in_a_compressed_file_is_known_while_it_is_read(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACK[ending](random.Random(0).randbytes(3_000_000)))
    size, seen = path.stat().st_size, []
    with compression.open_binary(path) as file:
        while file.read(500_000):
            seen.append(compression.bytes_read(path))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5 * size
    assert seen[-1] == size
    assert compression.bytes_read(path) == 0  # it is closed
