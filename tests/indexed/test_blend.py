"""Orders of blends, compared with Megatron-LM's compiled helper and its golden numbers."""

import numpy as np
import pytest

from mt.indexed import blend
from mt.indexed.blend import blending_indices, exhaustive_blending_indices


def test_orders_equal_the_golden_ones(megatron_golden):
    for case in megatron_golden["blend"]:
        datasets, samples = blending_indices(case["weights"], case["size"])
        assert (datasets.dtype, samples.dtype) == (np.int16, np.int64)
        assert (datasets.tolist(), samples.tolist()) == (case["dataset_index"], case["dataset_sample_index"])
    for case in megatron_golden["blend_exhaustive"]:
        datasets, samples = exhaustive_blending_indices(case["sizes"])
        assert (datasets.tolist(), samples.tolist()) == (case["dataset_index"], case["dataset_sample_index"])


@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
@pytest.mark.parametrize("seed", range(5))
def test_orders_equal_those_of_megatrons_compiled_helper(monkeypatch, seed, compile_from):
    monkeypatch.setattr(blend, "COMPILE_FROM", compile_from)
    helpers = pytest.importorskip("megatron.core.datasets.helpers_cpp")
    random = np.random.RandomState(seed)
    weights = random.dirichlet(np.ones(2 + seed))
    size = 3000
    datasets, samples = np.zeros(size, np.int16), np.zeros(size, np.int64)
    helpers.build_blending_indices(datasets, samples, weights, len(weights), size, False)
    ours = blending_indices(weights.tolist(), size)
    assert np.array_equal(ours[0], datasets)
    assert np.array_equal(ours[1], samples)
    sizes = random.randint(1, 200, size=4)
    total = int(sizes.sum())
    datasets, samples = np.zeros(total, np.int16), np.zeros(total, np.int64)
    helpers.build_exhaustive_blending_indices(datasets, samples, sizes.astype(np.int64), len(sizes))
    ours = exhaustive_blending_indices(sizes.tolist())
    assert np.array_equal(ours[0], datasets)
    assert np.array_equal(ours[1], samples)


def test_every_prefix_of_a_blend_has_samples_by_the_weights():
    weights = [0.61, 0.3, 0.09]
    datasets, _ = blending_indices(weights, 5000)
    for end in (10, 100, 1000, 5000):
        shares = np.bincount(datasets[:end], minlength=3) / end
        assert np.abs(shares - weights).max() < 2 / end
