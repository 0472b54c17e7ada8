"""Order statistics of numbers in files, compared with sorting them."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from mt.dataprep.filters import quantiles
from mt.dataprep.filters.quantiles import order_statistics

numbers = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 0.5, 0.5, 1e-310, -1.0, float("inf")])


@hypothesis.given(
    st.lists(st.lists(numbers | st.just(float("nan")), max_size=30), min_size=1, max_size=4), st.data()
)
def test_each_rank_has_the_number_of_the_sorted_list(tmp_path_factory, files, data):
    folder = tmp_path_factory.mktemp("numbers")
    paths = [folder / f"{i}.npy" for i in range(len(files))]
    for path, values in zip(paths, files):
        np.save(path, np.array(values, np.float64))
    known = sorted(value for values in files for value in values if value == value)
    ranks = data.draw(st.lists(st.integers(0, len(known) - 1), max_size=5)) if known else []
    assert order_statistics(paths, ranks) == [known[rank] for rank in ranks]


def test_files_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(quantiles, "BLOCK", 7)
    values = np.random.default_rng(0).normal(size=1000)
    np.save(tmp_path / "0.npy", values)
    assert order_statistics([tmp_path / "0.npy"], [0, 500, 999]) == np.sort(values)[[0, 500, 999]].tolist()
    assert max(len(block) for block in quantiles.blocks([tmp_path / "0.npy"])) == 7
