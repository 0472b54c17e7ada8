"""T5's samples, compared with Megatron-LM's golden numbers and megatron-core's dataset."""

import dataclasses

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.format import IndexedDataset
from mt.indexed.masked_dataset import MaskedDataset
from mt.indexed.t5_dataset import T5Config, T5Objective
from mt.tests.indexed.toy_vocabulary import SENTENCES, WORDS, as_lists, megatron_dataset


def test_t5_samples_equal_the_golden_ones(megatron_golden):
    case = megatron_golden["t5"]
    t5 = T5Objective(WORDS, case["seq_enc"], case["seq_dec"], 0.15, case["max_ngram"])
    for k, wanted in case["samples"].items():
        found = t5.sample(SENTENCES, case["target"], np.random.RandomState(case["seed"] + int(k)))
        assert as_lists(found) == wanted
        assert all(v.dtype == np.int64 for v in found.values() if isinstance(v, np.ndarray))


def test_t5_datasets_equal_those_of_megatron_core(sentences_prefix):
    words = dataclasses.replace(WORDS, sentinels=tuple(range(90, 100)))
    ours = MaskedDataset(IndexedDataset(sentences_prefix), (0, 150), 200, T5Objective(words, 64, 40), 0.1, 5)
    reference = megatron_dataset(
        "t5",
        sentences_prefix,
        ours.sample_index,
        sequence_length=64,
        sequence_length_encoder=64,
        sequence_length_decoder=40,
        masking_max_ngram=10,
        masking_use_geometric_distribution=True,
    )
    for k in range(len(ours)):
        assert as_lists(ours[k]) == as_lists(reference[k])


def test_a_decoder_too_short_for_any_sample_is_refused():
    with pytest.raises(UserError, match="decoder_seq_length = 1 must be at least 4"):
        T5Config(data_path=("p",), decoder_seq_length=1)
    with pytest.raises(UserError, match="no token for sentinels; add sentinels with --vocab-extra-ids 100"):
        T5Objective(dataclasses.replace(WORDS, sentinels=()), 64, 64)


def test_a_sample_that_does_not_fit_the_decoder_or_the_sentinels_is_refused(sentences_prefix):
    indexed = IndexedDataset(sentences_prefix)
    short = MaskedDataset(indexed, (0, 150), 50, T5Objective(WORDS, 64, 4), 0.1, 5)
    with pytest.raises(
        UserError, match=r"decoder_seq_length = 4 is too short for a sample whose masked spans take \d+"
    ):
        [short[k] for k in range(50)]
    one_sentinel = T5Objective(dataclasses.replace(WORDS, sentinels=(90,)), 64, 60)
    few = MaskedDataset(indexed, (0, 150), 50, one_sentinel, 0.1, 5)
    with pytest.raises(
        UserError, match="masked spans, but the tokenizer only 1 sentinels; raise --vocab-extra-ids"
    ):
        [few[k] for k in range(50)]
