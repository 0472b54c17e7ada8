import pytest
import torch
import torch.nn.attention.varlen
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from mt.train.model.positions import (
    Alibi,
    distance_buckets,
    rotary_frequencies,
    rotary_table,
    rotate,
    rotate_pairs,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16,
            "beta_slow": 2,
            "truncate": False,
            "mscale": 0.7,
            "mscale_all_dim": 0.5,
        },
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 1.5,
        },
    ],
)
def test_scaled_rotary_frequencies_are_those_of_transformers(scaling):
    theirs = transformers.LlamaConfig(head_dim=128, rope_parameters={**scaling, "rope_theta": 500000.0})
    expected, expected_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu")
    found, factor = rotary_frequencies(128, 500000.0, scaling)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=0)
    assert factor == pytest.approx(expected_factor)


def test_a_rotation_is_a_product_of_complex_numbers():
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    cos, sin = rotary_table(torch.arange(5)[None], 8, 10000.0)
    angles = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        rotate(x, cos[:, None], sin[:, None]),
        torch.cat([expected.real, expected.imag], dim=-1),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("rotated", [8, 4])
def test_scores_of_rotated_pairs_are_megatrons(rotated):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    query, key = torch.randn(2, 1, 3, 6, 8, dtype=torch.float64)  # (B, heads, T, C)
    cos, sin = (t[:, None] for t in rotary_table(torch.arange(6)[None], rotated, 10000.0))
    angles = torch.arange(6)[:, None] * 10000.0 ** (-torch.arange(rotated // 2).double() * 2 / rotated)
    frequencies = angles.repeat_interleave(2, dim=1)[:, None, None]  # (T, 1, 1, C)
    theirs = [
        _apply_rotary_pos_emb_bshd(t.permute(2, 0, 1, 3), frequencies, rotary_interleaved=True).permute(
            1, 2, 0, 3
        )
        for t in (query, key)
    ]
    ours = [rotate_pairs(t, cos, sin) for t in (query, key)]
    torch.testing.assert_close(ours[0] @ ours[1].mT, theirs[0] @ theirs[1].mT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 12), (16, 1000), (32, 256)])
def test_distance_buckets_are_those_of_transformers(bidirectional, buckets, max_distance):
    positions = torch.arange(700)
    expected = T5Attention._relative_position_bucket(
        positions - positions[:, None], bidirectional, buckets, max_distance
    )
    assert torch.equal(
        distance_buckets(
            positions, positions, both_ways=bidirectional, buckets=buckets, max_distance=max_distance
        ),
        expected,
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 25, 71, 112])
def test_slopes_and_biases_of_alibi_are_those_of_transformers(heads):
    present = torch.tensor([[1] * 30])
    expected = build_alibi_tensor(present, heads, torch.float64).view(1, heads, 1, 30)
    order = torch.arange(30)
    allowed = order <= order[:, None]
    found = Alibi(heads, 0, heads).bias(order, order, allowed[None, None], torch.float64)
    assert found.shape == (1, heads, 30, 30)
    assert (found[..., ~allowed] == -torch.inf).all()
    # theirs is slope x key: another by a number for each query, which softmax does not see
    last = found - found[..., :1] - expected
    torch.testing.assert_close(last[..., allowed], torch.zeros_like(last[..., allowed]), rtol=0, atol=1e-5)
    assert (found.diagonal(dim1=-2, dim2=-1) == 0).all()


@pytest.mark.parametrize(("heads", "ranks"), [(8, 2), (6, 3), (12, 4)])
def test_the_ranks_of_tensor_parallelism_have_the_slopes_of_their_heads(heads, ranks):
    whole = Alibi(heads, 0, heads)
    parts = [whole.part(rank, ranks) for rank in range(ranks)]
    slopes = torch.cat([part.slope(torch.arange(part.heads)) for part in parts])
    assert torch.equal(slopes, whole.slope(torch.arange(heads)))


def test_biases_of_far_tokens_are_exact_and_follow_each_rows_positions():
    queries, keys = torch.tensor([[1_000_000], [3]]), torch.arange(999_990, 1_000_001)
    allowed = keys <= queries[:, None, :, None]
    bias = Alibi(2, 0, 2).bias(queries, keys, allowed, torch.float32)
    assert bias[0, 0, 0].tolist() == [(key - 1_000_000) / 16 for key in keys.tolist()]
    assert (bias[1] == -torch.inf).all()
