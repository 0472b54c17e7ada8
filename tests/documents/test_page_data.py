"""Pages in pieces, against the library that compressed them."""

import itertools
import random

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.documents import page_data


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 9000)), max_size=30),
    st.integers(1, 999),
)
def test_snappy_in_pieces_is_the_data_that_was_compressed(parts, piece):
    data = b"".join(part * count for part, count in parts)
    packed = pyarrow.Codec("snappy").compress(data, asbytes=True)
    pieces = iter([packed[i : i + piece * 7] for i in range(0, len(packed), piece * 7)])
    assert b"".join(page_data.snappy_pieces(pieces)) == data


def test_broken_snappy_is_an_error():
    packed = pyarrow.Codec("snappy").compress(random.Random(0).randbytes(5000) * 3, asbytes=True)
    for cut in (packed[: len(packed) // 2], packed[:2] + b"\xfe" * 40, b"\x05\x01\x09"):
        with pytest.raises(ValueError, match="its snappy data"):
            list(page_data.snappy_pieces(iter([cut])))


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 60))
def test_the_longest_text_of_a_dictionary(texts, cut):
    data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    assert page_data.longest_text(data) == max(map(len, texts), default=0)
    ends = {0, *itertools.accumulate(len(text) + 4 for text in texts)}
    if len(data) - cut > 0 and len(data) - cut not in ends:
        with pytest.raises(ValueError, match="a dictionary is broken"):
            page_data.longest_text(data[:-cut])
