import pytest

from mt.core.config import UserError
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.model.config import ModelConfig
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_samples


def built(sentences, model, num_samples=(20, 0, 0), **data):
    prefix, tokenizer, _ = sentences
    config = SampleConfig(data_path=(prefix,), seq_length=32, **{"split": "100,0,0", **data})
    return build_samples(ModelConfig(**model), config, load(TokenizerConfig(**tokenizer)), num_samples)


@pytest.mark.parametrize(
    ("model", "data", "keys"),
    [
        (
            {"family": "bert"},
            {},
            {"text", "types", "labels", "is_random", "loss_mask", "padding_mask", "truncated"},
        ),
        (
            {"family": "t5"},
            {"decoder_seq_length": 20},
            {"text_enc", "text_dec", "labels", "loss_mask", "enc_mask", "truncated"},
        ),
    ],
    ids=["bert", "t5"],
)
def test_a_family_reads_samples_of_its_own_kind(sentences, model, data, keys):
    train, valid, test = built(sentences, model, **data)
    assert valid is None
    assert test is None
    assert keys - {"truncated"} <= set(train[0])


def test_samples_have_two_segments_only_if_the_model_has_a_binary_head(sentences):
    two, one = (
        built(sentences, {"family": "bert", "bert_binary_head": head})[0].batch(range(20))
        for head in (True, False)
    )
    assert two["types"].max() == 1
    assert one["types"].max() == 0


def test_titles_are_part_of_the_blocks_of_ict(sentences):
    titled, plain = (
        built(sentences, {"family": "ict"}, titles_data_path=titles)[0][0]["context_tokens"].tolist()
        for titles in ((sentences[2],), ())
    )
    assert titled != plain


def test_settings_of_samples_are_checked_only_for_families_that_use_them(sentences):
    with pytest.raises(UserError, match=r"mask_prob"):
        built(sentences, {"family": "bert"}, mask_prob=2.0)
    built(sentences, {"family": "ict"}, mask_prob=2.0)  # ict does not mask
    with pytest.raises(UserError, match=r"query_in_block_prob = 3"):
        built(sentences, {"family": "ict"}, query_in_block_prob=3.0)


def test_causal_samples_are_consecutive_tokens(corpus):
    data = SampleConfig(data_path=(corpus,), seq_length=24, split="100,0,0")
    dataset = build_samples(ModelConfig(), data, None, (20, 0, 0))[0]
    assert dataset.batch(range(4)).shape == (4, 25)
