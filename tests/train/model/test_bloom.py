"""BLOOM against transformers: config.json, caches, batches, packed documents, and what is refused."""

import itertools
import json

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import random_model
from mt.tests.train.model.small_models import assert_cached_tokens_are_those_of_one_pass, gpt
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.checkpoint.megatron_arguments import check_export
from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.attention import Documents
from mt.train.model.family import build_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
BLOOM_560M = {  # the config.json of bigscience/bloom-560m, but for its sizes
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
    "architectures": ["BloomForCausalLM"], "attention_softmax_in_fp32": True, "bias_dropout_fusion": True,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 48,
    "n_inner": None, "n_layer": 2, "num_attention_heads": 6, "offset_alibi": 100, "pad_token_id": 3,
    "pretraining_tp": 2, "seq_length": 64, "skip_bias_add": True, "skip_bias_add_qkv": False,
    "slow_but_exact": False, "transformers_version": "4.20.0", "unk_token_id": 0, "use_cache": True,
    "vocab_size": 61,
}  # fmt: skip
BLOOM = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "position_embedding_type": "alibi",
    "embed_layernorm": True,
    "activation": "gelu_tanh",
}


def test_the_published_config_of_bloom_560m_is_read():
    ours = config_from_hf(BLOOM_560M, "config.json")
    assert (ours.hidden_size, ours.num_attention_heads, ours.ffn_hidden_size) == (48, 6, 192)
    assert (ours.max_position_embeddings, ours.untie_embeddings_and_output_weights) == (64, False)
    theirs = transformers.BloomConfig.from_dict(BLOOM_560M)
    assert config_from_hf(theirs.to_dict(), "config.json") == ours, "as transformers 5 writes it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24}, "n_embed is 48 and hidden_size is 24, which are two names of the same"),
        ({"n_head": 3}, "num_attention_heads is 6 and n_head is 3, which are two names of the same"),
        ({"n_embed": None}, "has no hidden_size; give a model's config.json"),
        ({"slow_but_exact": True}, "slow_but_exact is True; only False can be loaded as bloom"),
        ({"seq_length": 0}, "seq_length = 0: must be from 1 to"),
        (
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is True; only False can be loaded as bloom",
        ),
    ],
)
def test_another_model_of_that_name_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**BLOOM_560M, **changes}, "config.json")


def test_what_is_written_is_read_again_by_us_and_builds_the_same_model_of_transformers():
    config = gpt(**BLOOM, untie_embeddings_and_output_weights=True, make_vocab_size_divisible_by=1).config
    name, written = config_to_hf(config)
    again = config_from_hf(json.loads(json.dumps(written)), "config.json")
    assert (name, again) == ("bloom", config)
    with torch.device("meta"):
        theirs = transformers.BloomForCausalLM(transformers.BloomConfig.from_dict(written))
        ours = build_model(config)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(theirs) == count(ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_layernorm": False}, "its bloom is the nearest, with embed_layernorm = True instead of Fa"),
        ({"num_query_groups": 2}, "its bloom is the nearest, with num_query_groups = 6 instead of 2"),
        ({"ffn_hidden_size": 64}, "its bloom is the nearest, with ffn_hidden_size = 192 instead of 64"),
        ({"normalization": "RMSNorm"}, "its bloom is the nearest, with normalization = LayerNorm instead"),
    ],
)
def test_a_model_that_hugging_face_has_not_is_not_written(changes, message):
    with pytest.raises(UserError, match=message):
        config_to_hf(gpt(**{**BLOOM, **changes}).config)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({}, "position_embedding_type"), ({"position_embedding_type": "rope"}, "embed_layernorm")],
)
def test_megatron_has_no_such_model(changes, field):
    with pytest.raises(UserError, match=f"no such GPT, as far as mt writes it: {field}"):
        check_export(gpt(**{**BLOOM, **changes}).config, 1, 1, local=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"position_embedding_type": "alibi", "retro_add_retriever": True, "num_layers": 6},
            "position_embedding_type = alibi: attention to neighbours has no distances",
        ),
        (
            {"embed_layernorm": True, "retro_add_retriever": True, "num_layers": 6},
            "embed_layernorm = True: Retro's layers do not have it",
        ),
        ({"family": "bert", "position_embedding_type": "alibi"}, "does not fit model.family = bert"),
        ({"family": "t5", "embed_layernorm": True}, "embed_layernorm is for model.family = gpt, not t5"),
        (
            {"position_embedding_type": "alibi", "rotary_percent": 0.5},
            "rotary_percent is for model.position_embedding_type = rope",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        gpt(**settings)


@pytest.mark.parametrize(
    "more", [{}, {"window_size": 3, "num_query_groups": 2}, {"attn_logit_softcapping": 2.0}]
)
def test_cached_tokens_are_those_of_one_pass(more):
    assert_cached_tokens_are_those_of_one_pass(gpt(**BLOOM, **more))


def test_states_do_not_depend_on_the_texts_beside_them():
    model = gpt(**BLOOM).eval()
    tokens = torch.arange(48).view(3, 16)
    lengths = [16, 5, 9]
    with torch.no_grad():
        alone = [model(row[None, :n])[0] for row, n in zip(tokens, lengths)]
        cache = model.new_cache(3, 16)
        together = model(tokens, cache=cache, lengths=torch.tensor(lengths))
        for states, row, n in zip(together, alone, lengths):
            torch.testing.assert_close(states[:n], row)
        # the next tokens of rows of different lengths, over the slots of padding
        positions = torch.tensor([[n] for n in (15, 5, 9)])
        following = model(tokens.gather(1, positions), positions=positions, cache=cache)[:, 0]
        for states, row, n in zip(following, tokens, (15, 5, 9)):
            torch.testing.assert_close(states, model(row[None, : n + 1])[0, -1])


def test_packed_documents_have_the_states_that_they_have_alone():
    model = gpt(**BLOOM).eval()
    tokens, ends = torch.arange(24)[None], [0, 7, 8, 24]
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(ends).diff())[None].int()
    with torch.no_grad():
        packed = model(tokens, documents=Documents(ids, torch.tensor(ends).int(), 16))[0]
        for start, end in itertools.pairwise(ends):
            torch.testing.assert_close(packed[start:end], model(tokens[:, start:end])[0])


@torch.no_grad()
def test_the_embedding_is_normalised_before_positions_are_added():
    model = gpt(embed_layernorm=True, embedding_multiplier=3.0)
    model.embedding_norm.weight.normal_()
    tokens, positions = torch.tensor([[5, 2]]), torch.tensor([[0, 1]])
    expected = 3 * model.embedding_norm(model.embedding.weight[tokens]) + model.positions.weight[positions]
    torch.testing.assert_close(model.embed(tokens, positions), expected)


@torch.no_grad()
def test_greedy_texts_of_a_batch_are_those_of_transformers(tmp_path):
    theirs = random_model("bloom")
    theirs.save_pretrained(tmp_path)
    ours = open_checkpoint(tmp_path).load_model()
    prompts = torch.tensor([[0, 0, 0, 7, 5], [9, 4, 30, 11, 6]])  # theirs pads on the left
    present = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    text = theirs.generate(prompts, attention_mask=present, **how)[:, 5:]
    cache = ours.new_cache(2, 17)
    lengths = torch.tensor([[2], [5]])
    hidden = ours(torch.tensor([[7, 5, 0, 0, 0], [9, 4, 30, 11, 6]]), cache=cache)
    hidden = hidden.gather(1, (lengths - 1)[..., None].expand(-1, -1, 48))
    found = []
    for step in range(12):
        found.append(ours.logits(hidden).argmax(-1))
        hidden = ours(found[-1], positions=lengths + step, cache=cache)
    assert torch.cat(found, 1).equal(text)
