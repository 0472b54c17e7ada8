"""BERT's samples, compared with Megatron-LM's golden numbers and megatron-core's dataset."""

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.bert_dataset import BertConfig, BertObjective, build_bert_datasets
from mt.indexed.format import IndexedDataset
from mt.indexed.masked_dataset import MaskedDataset
from mt.indexed.t5_dataset import T5Config, build_t5_datasets
from mt.indexed.word_pieces import word_pieces
from mt.tests.indexed.toy_vocabulary import SENTENCES, WORDS, as_lists, megatron_dataset
from mt.tokenizer.tokenizer import TokenizerConfig, load


def test_bert_samples_equal_the_golden_ones(megatron_golden):
    case = megatron_golden["bert"]
    bert = BertObjective(WORDS, case["seq"], case["mask_prob"], True, case["max_ngram"])
    for k, wanted in case["samples"].items():
        assert (
            as_lists(bert.sample(SENTENCES, case["target"], np.random.RandomState(case["seed"] + int(k))))
            == wanted
        )
    for k, wanted in megatron_golden["bert_truncated"]["samples"].items():
        random = np.random.RandomState(case["seed"] + int(k))
        assert as_lists(bert.sample(SENTENCES, megatron_golden["bert_truncated"]["target"], random)) == wanted


@pytest.mark.parametrize("head", [True, False])
def test_bert_datasets_equal_those_of_megatron_core(sentences_prefix, head):
    ours = MaskedDataset(
        IndexedDataset(sentences_prefix), (0, 150), 300, BertObjective(WORDS, 64, binary_head=head), 0.1, 5
    )
    reference = megatron_dataset(
        "bert",
        sentences_prefix,
        ours.sample_index,
        sequence_length=64,
        classification_head=head,
        masking_max_ngram=3,
        masking_use_geometric_distribution=False,
    )
    assert len(ours) >= 300
    for k in range(len(ours)):
        assert as_lists(ours[k]) == as_lists(reference[k])


def test_datasets_of_a_split_are_cached_and_blended(sentences_prefix, bert_tokenizer, tmp_path):
    settings = BertConfig(
        data_path=("1", sentences_prefix, "2", sentences_prefix), seq_length=64, split="80,20", seed=3
    )
    train, valid, test = build_bert_datasets(settings, bert_tokenizer, (90, 10, 0))
    assert test is None
    assert len(train) >= 90
    assert len(list((tmp_path / "cache").glob("*masked_index.npy"))) == 4
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.npy")}
    again = build_bert_datasets(settings, bert_tokenizer, (90, 10, 0))
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.npy")} == stamps
    assert (again[0].fingerprint, again[1].fingerprint) == (train.fingerprint, valid.fingerprint)
    batch = train.batch([5, 0, 3])
    for row, k in enumerate([5, 0, 3]):
        assert as_lists({n: a[row] for n, a in batch.items()}) == as_lists(train[k])
    t5, *_ = build_t5_datasets(
        T5Config(data_path=(sentences_prefix,), seq_length=64, split="1", seed=3), bert_tokenizer, (50, 0, 0)
    )
    assert t5.fingerprint != train.datasets[0].fingerprint
    assert t5[0]["text_enc"].shape == (64,)


def test_impossible_settings_and_vocabularies_are_refused(sentences_prefix):
    with pytest.raises(UserError, match=r"mask_prob = 1\.5 must lie between 0 and 1"):
        BertConfig(data_path=("p",), mask_prob=1.5)
    with pytest.raises(UserError, match=r"short_seq_prob = -0\.1 must lie in \[0, 1\]"):
        BertConfig(data_path=("p",), short_seq_prob=-0.1)
    with pytest.raises(UserError, match="seq_length = 7 must be at least 8"):
        BertConfig(data_path=("p",), seq_length=7)
    with pytest.raises(UserError, match="no token for cls, sep, mask, pad; give a vocabulary that has them"):
        BertObjective(word_pieces(load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer"))), 64)
