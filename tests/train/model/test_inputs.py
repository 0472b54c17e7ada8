import dataclasses

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import model_config
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_model, build_samples, family_of
from mt.train.model.inputs import Collator, MicroBatch, PackingConfig, check_range, collate_causal
from mt.train.model.layers import initialize

CPU = torch.device("cpu")


def collator(vocab_size=70, eod=None, **packing):
    return Collator(vocab_size, CPU, PackingConfig(**packing), eod)


def shapes(micro):
    values = {f.name: getattr(micro, f.name) for f in dataclasses.fields(micro)}
    return {n: (v.shape, v.dtype) for n, v in values.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({}, (24, 0)),
        ({"family": "gpt_neox", "position_embedding_type": "rope"}, (24, 0)),
        ({"family": "bert"}, (32, 0)),
        ({"family": "t5"}, (32, 20)),
        ({"family": "ict"}, (32, 0)),
    ],
    ids=["gpt", "gpt_neox", "bert", "t5", "ict"],
)
def test_an_empty_micro_batch_has_the_shapes_and_dtypes_of_a_collated_one(
    settings, lengths, corpus, sentences
):
    model = ModelConfig(**settings)
    prefix, tokenizer, titles = sentences
    family = family_of(model)
    if family.causal:
        prefix = corpus
    data = SampleConfig(
        data_path=(prefix,),
        seq_length=lengths[0],
        decoder_seq_length=lengths[1] or 128,
        split="100,0,0",
        titles_data_path=(titles,) if "titles_data_path" in family.data else (),
    )
    dataset = build_samples(model, data, load(TokenizerConfig(**tokenizer)), (20, 0, 0))[0]
    micro = family.collate(collator(), 7, dataset.batch(range(3)))
    assert micro.index == 7
    config = resolve(model, vocab_size=70, seq_length=lengths[0])
    assert shapes(family.empty(config, 3, *lengths)) == shapes(micro)
    assert set(micro.arguments()) == set(shapes(micro))


def test_an_empty_micro_batch_of_retro_fits_its_loss():
    config = model_config("retro")
    model = build_model(config)
    initialize(model, 0)
    micro = family_of(config).empty(config, 2, 16, 0)
    assert micro.neighbors.shape == (2, 4, config.retro_num_neighbors, 8)
    assert micro.neighbor_mask.dtype == torch.bool
    zeros = {name: torch.zeros_like(value) for name, value in micro.arguments().items()}
    assert torch.isfinite(model.loss(**zeros))


def test_a_packed_sample_is_divided_into_its_documents():
    # 9 is the end-of-document token
    samples = np.array([[1, 9, 2, 3, 9, 4, 5]])
    given = collator(10, 9, reset_position_ids=True, reset_attention_mask=True, eod_mask_loss=True)
    micro = collate_causal(given, 0, samples)
    assert micro.tokens.tolist() == [[1, 9, 2, 3, 9, 4]]
    assert micro.labels.tolist() == [[9, 2, 3, 9, 4, 5]]
    assert micro.loss_mask.tolist() == [[1, 0, 1, 1, 0, 1]]
    assert micro.positions.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert micro.documents.ids.tolist() == [[0, 0, 1, 1, 1, 2]]
    assert micro.documents.cu_seqlens.tolist() == [0, 2, 5, 6]
    assert micro.documents.max_seqlen == 3


@pytest.mark.parametrize(
    ("packing", "fields"),
    [
        ({}, set()),
        ({"reset_position_ids": True}, {"positions"}),
        ({"reset_attention_mask": True}, {"documents"}),
        ({"eod_mask_loss": True}, set()),
    ],
)
def test_each_packing_setting_changes_its_own_field(packing, fields):
    samples = np.array([[1, 9, 2, 3]])
    micro = collate_causal(collator(10, 9, **packing), 0, samples)
    assert {n for n in ("positions", "documents") if getattr(micro, n) is not None} == fields
    assert (micro.loss_mask.tolist() == [[1, 0, 1]]) == ("eod_mask_loss" in packing)


def test_the_loss_mask_of_questions_covers_their_answers_only():
    samples = {"text": np.array([[1, 2, 3, 4]]), "answer_mask": np.array([[0, 0, 1, 1]])}
    micro = collate_causal(collator(10), 0, samples)
    assert micro.labels.tolist() == [[2, 3, 4]]
    assert micro.loss_mask.tolist() == [[0, 1, 1]]
    assert micro.loss_mask.dtype == torch.float32


@pytest.mark.parametrize("token", [10, -1])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(UserError, match=f"the data holds token {token}, but model.vocab_size = 10"):
        check_range(np.array([0, token, 9]), 10)
    check_range(np.array([0, 9]), 10)


@pytest.mark.parametrize("setting", ["reset_position_ids", "reset_attention_mask", "eod_mask_loss"])
def test_documents_cannot_be_separated_without_an_end_of_document_token(setting):
    with pytest.raises(UserError, match="need an end-of-document token"):
        PackingConfig(**{setting: True}).check_against(None)
    PackingConfig(**{setting: True}).check_against(0)  # 0 is a valid end-of-document token
    PackingConfig().check_against(None)


def test_arguments_are_the_fields_that_the_family_uses():
    micro = MicroBatch(3, torch.zeros(1, 2), None, torch.ones(1))
    assert set(micro.arguments()) == {"tokens", "loss_mask"}
