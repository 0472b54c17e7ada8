"""Lengths of front-coded texts, against the texts that were written."""

import pyarrow
import pyarrow.parquet
import pytest

from mt.documents import column_sizes, files, text_lengths


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_lengths_are_those_of_the_texts(tmp_path, version):
    texts = ["", "a", "ab" * 70, "ab" * 71, "ü" * 900, "b", *(f"text {i * i}" for i in range(3000))]
    pyarrow.parquet.write_table(
        pyarrow.table({"x": pyarrow.array([texts, None, []])}),
        tmp_path / "a.parquet",
        use_dictionary=False,
        column_encoding={"x.list.element": "DELTA_BYTE_ARRAY"},
        data_page_version=version,
    )
    file = files.open_parquet(tmp_path / "a.parquet")
    with open(tmp_path / "a.parquet", "rb") as raw:
        pages = column_sizes._Leaf(file, raw, 0, 0, 1 << 20).front_coded
        found = [int(n) for page in pages for n in text_lengths.of_page(raw, page)]
    assert found == [len(text.encode()) for text in texts]
