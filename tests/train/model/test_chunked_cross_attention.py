"""Chunked cross-attention, compared with a loop over tokens."""

import pytest
import torch
import torch.nn.functional as F

from mt.train.model.attention import AttentionMask, attend
from mt.train.model.chunked_cross_attention import (
    ChunkedCrossAttention,
    NeighborEncoder,
    Retrieved,
    attend_where_present,
)
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.layers import initialize

pytestmark = pytest.mark.usefixtures("one_thread")
M, K, D = 4, 2, 16
CONFIG = resolve(
    ModelConfig(
        num_layers=6,
        hidden_size=D,
        num_attention_heads=4,
        num_query_groups=2,
        retro_add_retriever=True,
        retro_chunk_length=M,
        retro_num_neighbors=K,
        init_method_std=0.3,
    ),
    vocab_size=64,
    seq_length=16,
)


def layer(kind, **how):
    module = kind(CONFIG, **how)
    initialize(module, 2)
    return module.eval()


def chunk_read_by(token, first):
    """The chunk whose neighbours a token reads, as in the paper: the last that ends at or before it."""
    return (token - (first - 1)) // M if token >= first - 1 else None


@pytest.mark.parametrize(("length", "first"), [(8, 4), (7, 3), (9, 1), (4, 4)])
@torch.no_grad()
def test_each_token_reads_the_neighbours_of_the_last_finished_chunk(length, first):
    cross, chunks = layer(ChunkedCrossAttention, encodes=False), -(-length // M)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, length, D, generator=generator)
    encoded = torch.randn(2 * chunks, K * 2 * M, D, generator=generator)
    present = torch.rand(2 * chunks, K, 2 * M, generator=generator) < 0.6
    present[1] = False  # a chunk without neighbours
    retrieved = Retrieved(None, present, None, gate=1.0, chunks=chunks, first=first)
    retrieved.encoded = encoded
    y = cross(x, retrieved=retrieved)
    for row in range(2):
        for token in range(length):
            chunk = chunk_read_by(token, first)
            own = None if chunk is None else row * chunks + chunk
            if own is None or not present[own].any():
                assert (y[row, token] == 0).all()
                continue
            here = encoded[own][present[own].flatten()][None]
            query = cross.query(x[row : row + 1, token : token + 1]).view(1, 1, 4, 4).transpose(1, 2)
            keys, values = (t.repeat_interleave(2, 1) for t in cross.keys_and_values(here))
            weights = (query @ keys.transpose(-1, -2) / 2).softmax(-1)
            expected = cross.out((weights @ values).transpose(1, 2).flatten(2))
            torch.testing.assert_close(y[row, token], expected[0, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_gate_scales_the_output():
    cross = layer(ChunkedCrossAttention, encodes=False)
    outputs = []
    for gate in (1.0, 0.25):
        retrieved = Retrieved(
            None, torch.ones(2, K, 2 * M, dtype=torch.bool), None, gate=gate, chunks=2, first=4
        )
        retrieved.encoded = torch.ones(2, K * 2 * M, D)
        outputs.append(cross(torch.ones(1, 8, D), retrieved=retrieved))
    torch.testing.assert_close(outputs[0] * 0.25, outputs[1])


@torch.no_grad()
def test_padding_of_a_neighbour_and_of_its_chunk_does_not_change_encodings():
    encoder = layer(NeighborEncoder)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(K, 2 * M, D, generator=generator)
    memory = torch.randn(1, M, D, generator=generator)
    present = torch.ones(1, K, 2 * M, dtype=torch.bool)
    present[0, 1, 5:] = False
    mask = AttentionMask(tensor=(torch.arange(M) >= 1)[None, None, None])
    first = encoder(states, present, None, memory, mask).view(K, 2 * M, D)
    states[1, 5:], memory[:, 0] = 7.0, -3.0
    second = encoder(states, present, None, memory, mask).view(K, 2 * M, D)
    torch.testing.assert_close(first[0], second[0])
    torch.testing.assert_close(first[1, :5], second[1, :5])


@torch.no_grad()
def test_the_encoding_of_a_neighbour_depends_only_on_itself_and_its_chunk():
    encoder = layer(NeighborEncoder)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2 * K, 2 * M, D, generator=generator)
    memory = torch.randn(2, M, D, generator=generator)
    present = torch.ones(2, K, 2 * M, dtype=torch.bool)
    together = encoder(states, present, None, memory, AttentionMask())
    for chunk in range(2):
        alone = encoder(
            states[chunk * K : (chunk + 1) * K],
            present[:1],
            None,
            memory[chunk : chunk + 1],
            AttentionMask(),
        )
        torch.testing.assert_close(together[chunk], alone[0], rtol=1e-4, atol=1e-5)
    other = encoder(states, present, None, memory.flip(0), AttentionMask())
    assert not torch.allclose(other, together, atol=1e-3)


@torch.no_grad()
def test_attention_without_any_key_gives_zero():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, 3, 4, generator=generator) for _ in "qk")
    present = torch.tensor([[True, False, True], [False, False, False]])
    attention = lambda q, k, v, mask: attend(q, k, v, mask, scale=None, dropout=0.0)
    y = attend_where_present(query, key, key, present, attention)
    assert (y[1] == 0).all()
    expected = F.scaled_dot_product_attention(query[:1], key[:1, :, [0, 2]], key[:1, :, [0, 2]])
    torch.testing.assert_close(y[:1], expected.transpose(1, 2).flatten(2))
