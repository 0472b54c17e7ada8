"""Factors of rotations and scores, compared with megatron-core."""

import pytest

from mt.train.model.yarn import latent_scaling, megatron_mscales, yarn_attention_factor, yarn_mscale

LENGTH = {"original_max_position_embeddings": 4096}


@pytest.mark.parametrize("factor", [0.5, 1.0, 40.0])
@pytest.mark.parametrize("mscale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("all_dim", [0.0, 0.9, 1.0])
def test_factors_of_scores_and_rotations_are_those_of_megatron_core(factor, mscale, all_dim):
    yarn = pytest.importorskip("megatron.core.models.common.embeddings.yarn_rotary_pos_embedding")
    found = latent_scaling("yarn", factor, mscale, all_dim, 10, LENGTH)
    expected = yarn._yarn_get_concentration_factor(factor, mscale, all_dim)
    scores = yarn._yarn_get_mscale(factor, all_dim)
    assert found.keys() == {"rope_scaling"}
    if (scaling := found["rope_scaling"]) is None:
        assert (factor, expected, scores) == (1.0, 1.0, 1.0)
    else:
        assert yarn_attention_factor(scaling) == pytest.approx(expected)
        assert yarn_mscale(factor, scaling.get("mscale_all_dim", 0.0)) == pytest.approx(scores)
        back = megatron_mscales(scaling)
        assert yarn._yarn_get_concentration_factor(factor, *back) == pytest.approx(expected)
        assert yarn._yarn_get_mscale(factor, back[1]) == pytest.approx(scores)
    rotated = latent_scaling("rope", factor, mscale, all_dim, 10, LENGTH)
    assert rotated["rope_scaling"] is None
    assert rotated.get("softmax_scale", 10**-0.5) == pytest.approx(scores**2 / 10**0.5)


@pytest.mark.parametrize(
    "change", [{"beta_fast": 16}, {"truncate": False}, {"original_max_position_embeddings": 2048}]
)
def test_what_megatrons_flags_cannot_say_has_no_mscales(change):
    scaling = {"rope_type": "yarn", "factor": 8.0, **LENGTH}
    assert megatron_mscales(scaling) == (1.0, 0.0)
    assert megatron_mscales({**scaling, **change}) is None
    assert megatron_mscales({"rope_type": "linear", "factor": 8.0}) is None
