"""Multi-latent attention, compared with the paper's equations head by head, and its two ways to read a cache.

test_deepseek.py compares it with transformers, tests/train/checkpoint/test_megatron.py with megatron-core.
"""

import math

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.model.small_models import gpt, random_tokens
from mt.train.model.attention import AttentionMask
from mt.train.model.config import ModelConfig
from mt.train.model.latent_attention import latent_attention_scale
from mt.train.model.positions import rotary_table
from mt.train.prepacked_weights import prepare_for_inference

pytestmark = pytest.mark.usefixtures("one_thread")
MLA = {
    "multi_latent_attention": True, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_head_dim": 6,
    "qk_pos_emb_head_dim": 4, "v_head_dim": 7, "qk_layernorm": True, "position_embedding_type": "rope",
    "normalization": "RMSNorm", "add_bias_linear": False,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "mscale_all_dim": 0.8}


def turned(x, position, base=10000.0):
    """Pairs of neighbouring channels (..., P), turned by angles that a position gives, as complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    angles = position * base ** (-torch.arange(len(pairs)) / len(pairs)).double()
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, 20])
def test_the_output_is_that_of_the_papers_equations(rank):
    """DeepSeek-V2, equations 37 to 47, one head and query at a time, with norms on the latents."""
    model = gpt(**{**MLA, "q_lora_rank": rank}).double()
    attention = model.layers[0].mixer
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2)).double()
    cos, sin = rotary_table(torch.arange(5)[None], 4, 10000.0)
    found = attention(
        x, mask=AttentionMask(causal=True), rotary=(cos[:, None].double(), sin[:, None].double())
    )

    def normed(latent):
        return latent / (latent.square().mean() + 1e-5).sqrt()

    weight = {name: parameter.double() for name, parameter in attention.named_parameters()}
    for t in range(5):
        outputs = []
        for head in range(4):

            def query_of(i, head=head):
                if rank is None:
                    rows = weight["query.weight"] @ x[0, i]
                else:
                    rows = weight["query_up.weight"] @ normed(weight["query_down.weight"] @ x[0, i])
                own = rows[head * 10 : (head + 1) * 10]
                return torch.cat([own[:6], turned(own[6:], i)])

            def key_and_value_of(i, head=head):
                down = weight["key_value_down.weight"] @ x[0, i]
                rows = weight["key_value_up.weight"] @ normed(down[:12])
                own = rows[head * 13 : (head + 1) * 13]
                return torch.cat([own[:6], turned(down[12:], i)]), own[6:]

            keys, values = zip(*(key_and_value_of(i) for i in range(t + 1)))
            weights = (torch.stack(keys) @ query_of(t) / math.sqrt(10)).softmax(0)
            outputs.append(weights @ torch.stack(values))
        torch.testing.assert_close(
            found[0, t], weight["out.weight"] @ torch.cat(outputs), rtol=1e-6, atol=1e-8
        )


@torch.no_grad()
@pytest.mark.parametrize(
    "more", [{}, {"q_lora_rank": None, "qk_layernorm": False}, {"rope_scaling": YARN}, {"window_size": 5},
             {"attn_logit_softcapping": 2.0}]
)  # fmt: skip
@pytest.mark.parametrize("prepacked", [False, True])
def test_queries_of_the_latents_and_of_keys_and_values_give_the_same(more, prepacked, monkeypatch):
    model, tokens = gpt(**{**MLA, **more}).eval(), random_tokens(2, 12)
    expected = model(tokens)
    if prepacked:
        prepare_for_inference(model)
    attention = type(model.layers[0].mixer)
    for absorbs in (True, False):
        monkeypatch.setattr(attention, "_absorbs", lambda self, queries, absorbs=absorbs: absorbs)
        cache = model.new_cache(2, 12)
        pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))]
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


def test_yarn_sharpens_the_scores():
    """DeepSeek-V2's own code: the scale times (0.1 mscale_all_dim ln factor + 1) squared."""
    config = gpt(**MLA, rope_scaling=YARN).config
    assert latent_attention_scale(config) == pytest.approx(10**-0.5 * (0.08 * math.log(40) + 1) ** 2)
    assert latent_attention_scale(gpt(**MLA, softmax_scale=0.3, rope_scaling=YARN).config) == 0.3
    assert latent_attention_scale(gpt(**MLA).config) == 10**-0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_lora_rank": 8}, "model.kv_lora_rank: there is no latent to set; give --multi-latent-attention"),
        ({**MLA, "kv_lora_rank": 0}, "model.kv_lora_rank = 0 must be at least 1"),
        ({**MLA, "position_embedding_type": "learned"}, "give --position-embedding-type rope too"),
        ({**MLA, "num_query_groups": 2}, "model.num_query_groups = 2: all heads of"),
        ({**MLA, "kv_channels": 8}, "model.qk_head_dim + model.qk_pos_emb_head_dim = 10; leave it out"),
        ({**MLA, "qk_pos_emb_head_dim": 5}, "needs an even number of rotated channels a head, not 5"),
        ({**MLA, "rotary_percent": 0.5}, "model.rotary_percent = 0.5: model.qk_pos_emb_head_dim says"),
        ({**MLA, "add_qkv_bias": True}, "model.add_qkv_bias: model.multi_latent_attention has no such"),
        ({**MLA, "latent_layernorm_epsilon": -1.0}, "model.latent_layernorm_epsilon = -1.0 must not be"),
        ({"family": "bert", "multi_latent_attention": True}, "model.multi_latent_attention is for"),
        ({**MLA, "retro_add_retriever": True}, "Retro's layers do not have it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError) as refused:
        ModelConfig(**{"num_layers": 6, "hidden_size": 32, "num_attention_heads": 4, **settings})
    assert message in str(refused.value)
