"""Context parallelism: how sequences and masks are divided over ranks."""

import pytest
import torch

from mt.train.model.attention import Documents
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.inputs import MicroBatch
from mt.train.model.positions import Alibi
from mt.train.parallel.context_parallel import causal_mask, split_sequences, token_indices
from mt.train.parallel.mesh import Axis


def test_every_context_parallel_rank_has_an_early_and_a_late_chunk():
    assert [token_indices(rank, 2, 8).tolist() for rank in range(2)] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert sorted(torch.cat([token_indices(rank, 3, 24) for rank in range(3)]).tolist()) == list(range(24))


def micro_batch(B: int, T: int) -> MicroBatch:
    tokens = torch.arange(B * T).view(B, T)
    ids = torch.tensor([[0] * 5 + [1] * 7 + [2] * (T - 12), [0] * T], dtype=torch.int32)
    return MicroBatch(
        3,
        tokens,
        tokens + 1,
        torch.rand(B, T),
        documents=Documents(ids, torch.tensor([0, 5, 12, T, 2 * T]), T),
    )


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_together_have_every_token_once_with_its_label_loss_mask_and_position(ranks):
    whole = micro_batch(2, 16)
    parts = [split_sequences(whole, Axis(ranks, rank)) for rank in range(ranks)]
    order = torch.cat([part.positions[0] for part in parts]).argsort()
    assert torch.cat([part.positions[0] for part in parts])[order].tolist() == list(range(16))
    for name in ("tokens", "labels", "loss_mask"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts], 1)[:, order], getattr(whole, name))
    assert all(part.documents is whole.documents for part in parts)
    assert split_sequences(whole, Axis()) is whole


@pytest.mark.parametrize("window", [None, 5, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_the_mask_of_a_rank_is_its_rows_of_the_whole_mask(window, packed):
    whole = micro_batch(2, 16)
    documents = whole.documents if packed else None
    shape = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=2, window_size=window)
    config = resolve(shape, vocab_size=64, seq_length=16)
    place = torch.arange(16)
    expected = (place <= place[:, None])[None]
    if window is not None:
        expected = expected & (place > place[:, None] - window)
    if packed:
        expected = expected & (documents.ids[:, :, None] == documents.ids[:, None, :])
    for rank in range(2):
        axis = Axis(2, rank)
        part = split_sequences(whole, axis)
        found = causal_mask(config, part.tokens, torch.float32, documents, axis=axis).tensor
        assert torch.equal(found[:, 0], expected[:, token_indices(rank, 2, 16)])
        alibi, rows = Alibi(2, 0, 2), token_indices(rank, 2, 16)
        biases = causal_mask(config, part.tokens, torch.float32, documents, axis=axis, alibi=alibi).tensor
        whole_biases = alibi.bias(place, place, expected[:, None], torch.float32)
        assert torch.equal(biases, whole_biases[:, :, rows])
