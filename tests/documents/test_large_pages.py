"""Rows beside values of any length in pages that are not decoded, against the table that was written."""

import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.documents import compression, files, sharding
from mt.documents.reader import read
from mt.tests.memory import peak_growth

TYPES = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.binary(),
    pyarrow.list_(pyarrow.string()),
    pyarrow.struct([("a", pyarrow.string())]),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
]
SIZES = st.lists(st.sampled_from([0, 1, 30, 40, 500, 3000, 9000, 20_000, None]), min_size=1, max_size=40)


def shaped(text, kind):
    if text is None:
        return None
    if pyarrow.types.is_list(kind):
        return ["first", text, None]
    if pyarrow.types.is_struct(kind):
        return {"a": text}
    return text.encode() if pyarrow.types.is_binary(kind) else text


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=SIZES,
    kind=st.sampled_from(TYPES),
    how=st.fixed_dictionaries(
        {
            "use_dictionary": st.booleans(),
            "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "data_page_size": st.sampled_from([200, 1 << 20]),
            "write_batch_size": st.sampled_from([3, 1024]),
        }
    ),
    seed=st.integers(0, 3),
)
def test_long_values_are_refused_and_all_other_rows_come_out(tmp_path, sizes, kind, how, seed):
    """Texts are not compressible, so that pages without the long values are smaller."""
    chance = random.Random(seed)
    texts = [None if size is None else chance.randbytes(size // 2).hex() for size in sizes]
    table = pyarrow.table(
        {"text": pyarrow.array([shaped(text, kind) for text in texts], kind), "n": list(range(len(texts)))}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "WHOLE_BYTES", 1000)
        found = list(files.parquet_rows(str(tmp_path / "a.parquet"), 0, 1, "text", 10_000))
    assert [number for number, _ in found] == list(range(len(texts)))
    wanted = table.to_pylist()
    for (_, row), text, given_row in zip(found, texts, wanted):
        if text is not None and len(text) > 10_000:
            assert row.reason == f"has {len(text):,} bytes, more than --max-record-bytes 10000"
        else:
            assert row == given_row


def rows_of(path):
    """([the numbers of rows that are read], [the places of those set aside])"""
    rejects, kept = [], []
    for shard in sharding.plan([str(path)], on_error="skip"):
        kept += [document.meta["n"] for document in read(shard, rejects.append)]
    return kept, [reject.place for reject in rejects]


def write_large(path, size, codec, use_dictionary=True):
    """2,000 rows, the middle one of `size` letters. The column is made of its buffers, without a copy."""
    lengths = np.full(2000, len("document"), np.int64)
    lengths[1000] = size or len("document")
    offsets = np.concatenate([[0], lengths.cumsum()])
    letters = np.frombuffer(b"document" * 2000, np.uint8)
    if size:
        noise = np.random.default_rng(0).integers(97, 123, size, np.uint8)
        letters = np.concatenate([letters[: 8 * 1000], noise, letters[: 8 * 999]])
    column = pyarrow.LargeStringArray.from_buffers(
        2000, pyarrow.py_buffer(offsets.astype(np.int64)), pyarrow.py_buffer(letters)
    )
    table = pyarrow.table({"text": column, "n": pyarrow.array(range(2000))})
    pyarrow.parquet.write_table(table, path, compression=codec, use_dictionary=use_dictionary)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "use_dictionary"), [("snappy", True), ("zstd", False), ("none", True)])
def test_a_row_of_800_megabytes_is_one_reject_in_less_than_500(tmp_path, codec, use_dictionary):
    small = write_large(tmp_path / "small.parquet", 0, codec)
    large = write_large(tmp_path / "large.parquet", 3 << 28, codec, use_dictionary)
    (kept, places), grown = peak_growth("mt.tests.documents.test_large_pages", "rows_of", (small, large))
    assert kept == [i for i in range(2000) if i != 1000]
    assert places == ["row 1001"]
    assert grown < 1 << 29
