"""Byte ranges of bzip2 files, compared with Python's bz2 for any streams and ranges; damaged files."""

import bz2
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.dataprep.extract import bzip2
from mt.dataprep.extract.bzip2 import decompress_blocks


def text_of(size, seed=0):
    """Letters that compress to blocks which begin at any bit."""
    return bytes(random.Random(seed).choices(b"abcdefgh ", k=size))


def own_text(path, start, end):
    return b"".join(text for text, own in decompress_blocks(str(path), start, end) if own)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 250_000), st.sampled_from([1, 2, 9])), min_size=1, max_size=4),
    st.lists(st.floats(0, 1), max_size=5),
    st.integers(0, 1000),
)
def test_every_block_belongs_to_the_byte_range_in_which_it_begins(tmp_path_factory, streams, cuts, seed):
    path = tmp_path_factory.mktemp("bzip2") / "a.bz2"
    texts = [text_of(size, seed + i) for i, (size, _) in enumerate(streams)]
    path.write_bytes(b"".join(bz2.compress(text, level) for text, (_, level) in zip(texts, streams)))
    size = path.stat().st_size
    bounds = [0, *sorted(int(size * cut) for cut in cuts), size]
    parts = [own_text(path, start, end) for start, end in itertools.pairwise(bounds)]
    assert b"".join(parts) == b"".join(texts)


def test_a_stream_of_many_blocks_is_divided_between_the_ranges(tmp_path):
    text = text_of(1_000_000)  # ten blocks of 100 kB
    (tmp_path / "a.bz2").write_bytes(compressed := bz2.compress(text, 1))
    size = len(compressed)
    parts = [own_text(tmp_path / "a.bz2", size * i // 4, size * (i + 1) // 4) for i in range(4)]
    assert b"".join(parts) == text
    assert all(parts)


def test_the_blocks_of_a_range_are_followed_by_the_later_ones_until_the_end(tmp_path):
    (tmp_path / "a.bz2").write_bytes(compressed := bz2.compress(text_of(400_000), 1))
    blocks = list(decompress_blocks(str(tmp_path / "a.bz2"), 0, len(compressed) // 2))
    assert b"".join(text for text, _ in blocks) == text_of(400_000)
    assert [own for _, own in blocks] == sorted((own for _, own in blocks), reverse=True)
    assert not blocks[-1][1]


def test_a_range_in_which_no_block_begins_yields_nothing(tmp_path):
    (tmp_path / "a.bz2").write_bytes(compressed := bz2.compress(text_of(400_000), 1))
    second = next(
        place for place in range(1, len(compressed)) if not own_text(tmp_path / "a.bz2", place, place + 1)
    )
    assert list(decompress_blocks(str(tmp_path / "a.bz2"), second, second + 1)) == []


def test_small_reads_give_the_same_blocks(tmp_path, monkeypatch):
    text = text_of(150_000)
    (tmp_path / "a.bz2").write_bytes(compressed := bz2.compress(text, 1) * 2)
    monkeypatch.setattr(bzip2, "READ_BYTES", 7)  # a magic number has six bytes, or parts of seven
    assert own_text(tmp_path / "a.bz2", 0, len(compressed)) == text * 2


def test_bits_in_a_block_that_equal_a_magic_number_do_not_end_it(tmp_path, monkeypatch):
    text = text_of(500_000, 1)
    path = tmp_path / "a.bz2"
    path.write_bytes(bz2.compress(text, 1))
    original = bzip2._Window.magics

    def with_a_false_magic_number(self):
        for number, (bit, magic) in enumerate(original(self)):
            yield bit, magic
            if number == 1:
                yield bit + 1001, bzip2.BLOCK_MAGIC

    monkeypatch.setattr(bzip2._Window, "magics", with_a_false_magic_number)
    assert own_text(path, 0, 10**9) == text


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.bz2"
    compressed = bz2.compress(text_of(500_000, 1), 1)
    chance = random.Random(2)
    for place in [len(compressed) // 2, *(chance.randrange(20, len(compressed) - 20) for _ in range(5))]:
        path.write_bytes(compressed[:place] + bytes([compressed[place] ^ 4]) + compressed[place + 1 :])
        with pytest.raises((OSError, EOFError), match=r"Invalid data stream|ended before"):
            list(decompress_blocks(str(path), 0, 10**9))


@pytest.mark.parametrize("missing", [1, 4, 10, 11, 1000, 60_000])
def test_a_truncated_file_is_refused(tmp_path, missing):
    # the last ten bytes are the footer: its magic number and the checksum
    (tmp_path / "a.bz2").write_bytes(bz2.compress(text_of(200_000), 1)[:-missing])
    with pytest.raises(
        (EOFError, OSError), match=r"ended before the end-of-stream marker|Invalid data stream"
    ):
        list(decompress_blocks(str(tmp_path / "a.bz2"), 0, 10**9))


@pytest.mark.parametrize("data", [b"", b"BZh", b"BZh0abc", b"PK\x03\x04 no bzip2"])
def test_a_file_of_another_format_is_refused(tmp_path, data):
    (tmp_path / "a.bz2").write_bytes(data)
    with pytest.raises(OSError, match="Invalid data stream"):
        list(decompress_blocks(str(tmp_path / "a.bz2"), 0, 10**9))


def test_damage_is_reported_with_the_byte_at_which_its_block_begins(tmp_path, monkeypatch):
    text = text_of(450_000, 1)
    (tmp_path / "a.bz2").write_bytes(compressed := bytearray(bz2.compress(text, 1)))
    with (tmp_path / "a.bz2").open("rb") as file:
        window = bzip2._Window(file, 0)
        begins = [bit // 8 for bit, magic in window.magics()]
    assert len(begins) == 6  # five blocks and the footer
    compressed[(begins[1] + begins[2]) // 2] ^= 4
    (tmp_path / "a.bz2").write_bytes(compressed)
    with pytest.raises(OSError, match=f"in the block at byte {begins[1]:,}$"):
        list(decompress_blocks(str(tmp_path / "a.bz2"), 0, 10**9))
    monkeypatch.setattr(bzip2, "MAX_BLOCK_BYTES", begins[1] - begins[0] - 1)
    with pytest.raises(OSError, match=f"in the block at byte {begins[0]:,}$"):
        list(decompress_blocks(str(tmp_path / "a.bz2"), 0, 10**9))
