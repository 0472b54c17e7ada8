"""Retro, compared with a loop written from the paper: what tokens read, the cache, and the GPT within it."""

import itertools

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.train.model.attention import AttentionMask
from mt.train.model.config import ModelConfig, resolve, retro_layers
from mt.train.model.family import build_model
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize
from mt.train.model.retro import Retro, is_retrieval

pytestmark = pytest.mark.usefixtures("one_thread")
V, M, K = 50, 4, 3
R = 2 * M
LLAMA = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "add_bias_linear": False,
    "num_query_groups": 2,
}


def model(**settings) -> Retro:
    shape = {
        "num_layers": 9,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "ffn_hidden_size": 24,
        "init_method_std": 0.3,
        "make_vocab_size_divisible_by": 8,
        "retro_add_retriever": True,
        "retro_chunk_length": M,
        "retro_num_neighbors": K,
        **settings,
    }
    built = build_model(resolve(ModelConfig(**shape), vocab_size=V, seq_length=32))
    initialize(built, 0)
    with torch.no_grad():
        for name, p in built.named_parameters():
            if name.endswith("bias"):  # so that a missing bias is noticed
                p.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    return built.double().eval()


def random(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def neighbours(rows, chunks, *, holes=False):
    """Tokens (rows, chunks, K, R) and their mask.

    holes: a continuation, a neighbour and all neighbours of a chunk are missing.
    """
    mask = torch.ones(rows, chunks, K, R, dtype=torch.bool)
    if holes:
        mask[0, 0, 1, M:] = False
        mask[0, 1, 2] = False
        mask[1, 0] = False
        mask[1, -1, 0, M + 1 :] = False
    return random(rows, chunks, K, R, seed=2), mask


# The formulas of the paper, for one token, one head and one neighbour at a time.


def attend(query, keys, values):
    """Attention of one token's query heads (H, C) to keys and values (S, G, C)."""
    heads, groups = len(query), keys.shape[1]
    read = []
    for h in range(heads):
        g = h // (heads // groups)
        scores = torch.stack([query[h] @ key[g] for key in keys]) / query.shape[-1] ** 0.5
        read.append(scores.softmax(0) @ values[:, g])
    return torch.cat(read)


def cross(module, x, memory):
    """Attention of tokens x (T, D) to memory (S, D), before the output matrix."""
    keys, values = module.key_value(memory).view(len(memory), -1, 2, module.channels).unbind(2)
    return torch.stack([attend(q.view(-1, module.channels), keys, values) for q in module.query(x)])


def encoded_by_loop(encoder, gpt, tokens, chunk):
    """E_u^j: the encoding of a neighbour.

    tokens: of the neighbour, without padding. chunk: H_u, the states of its chunk, (tokens, D).
    """
    x = gpt.embedding(tokens)
    if gpt.positions is not None:
        x = x + gpt.positions.weight[: len(tokens)]
    rotary = gpt._rotary(torch.arange(len(tokens))[None])
    for layer in encoder.layers:
        x = x + layer.mixer(layer.mixer_norm(x)[None], mask=AttentionMask(), rotary=rotary)[0]
        if layer.cross is not None:
            x = x + layer.cross.out(cross(layer.cross, layer.cross_norm(x), chunk))
        x = x + layer.ffn(layer.ffn_norm(x))
    return encoder.norm(x)


def by_loop(gpt, tokens, neighbors, mask, *, first=None):
    """Algorithm 1 of the paper for one sample: tokens (T,), neighbors and mask (l, K, R).

    first: how many tokens the first chunk has.
    """
    T = len(tokens)
    first = first or (T - 1) % M + 1
    # chunk i has the tokens from the end of chunk i - 1 to ends[i]
    ends = [first + i * M for i in range(len(neighbors))]
    x = gpt.embedding(tokens)
    if gpt.positions is not None:
        x = x + gpt.positions.weight[:T]
    rotary, encoded = gpt._rotary(torch.arange(T)[None]), None
    for number, layer in enumerate(gpt.layers):
        x = x + layer.mixer(layer.mixer_norm(x)[None], mask=AttentionMask(causal=True), rotary=rotary)[0]
        if number in retro_layers(len(gpt.layers)):
            normed = layer.cross_norm(x)
            if encoded is None:
                encoded = []
                for i, end in enumerate(ends):
                    chunk = normed[max(0, end - M) if i else 0 : end]
                    there = [
                        encoded_by_loop(layer.cross.encoder, gpt, tokens_[m_], chunk)
                        for tokens_, m_ in zip(neighbors[i], mask[i])
                        if m_.any()
                    ]
                    encoded.append(torch.cat(there) if there else None)
            read = torch.zeros_like(x)
            for t in range(T):
                # the last chunk that ends at t or before
                chunk = max((i for i, end in enumerate(ends) if end - 1 <= t), default=None)
                if chunk is not None and encoded[chunk] is not None:
                    read[t] = layer.cross.out(cross(layer.cross, normed[t : t + 1], encoded[chunk]))[0]
            x = x + read
        x = x + layer.ffn(layer.ffn_norm(x))
    return gpt.norm(x)


@pytest.mark.parametrize(
    "shape", [{}, LLAMA, {"num_query_groups": 2, "retro_encoder_layers": 1}], ids=["gpt", "llama", "grouped"]
)
@pytest.mark.parametrize("length", [12, 10, 9, 3], ids=lambda n: f"{n} tokens")
@torch.no_grad()
def test_states_are_those_of_a_loop_from_the_paper(shape, length):
    retro, tokens = model(**shape), random(2, length)
    neighbors, mask = neighbours(2, -(-length // M), holes=length > M)
    states = retro(tokens, neighbors=neighbors, neighbor_mask=mask)
    for row in range(2):
        torch.testing.assert_close(
            states[row], by_loop(retro, tokens[row], neighbors[row], mask[row]), rtol=1e-10, atol=1e-10
        )
    plain = GPT.forward(retro, tokens)
    assert (states - plain)[:, -1].abs().max() > 1e-3  # the neighbours change the states


@torch.no_grad()
def test_no_token_reads_a_later_token_or_the_neighbours_of_an_unfinished_chunk():
    """Changes each token of the text and the neighbours in turn: earlier states stay the same bit for bit."""
    length, chunks = 10, 3  # chunks of 2, 4 and 4 tokens
    retro, tokens = model(), random(1, length)
    neighbors, mask = neighbours(1, chunks)
    states = retro(tokens, neighbors=neighbors, neighbor_mask=mask)
    for t in range(length):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % V
        differs = (retro(changed, neighbors=neighbors, neighbor_mask=mask) != states).any(-1)[0]
        assert differs.tolist() == [False] * t + [True] * (length - t)
    for i, k, r in np.ndindex(chunks, K, R):
        changed = neighbors.clone()
        changed[0, i, k, r] = (changed[0, i, k, r] + 1) % V
        differs = (retro(tokens, neighbors=changed, neighbor_mask=mask) != states).any(-1)[0]
        last = [1, 5, 9][i]
        assert differs.tolist() == [False] * last + [True] * (length - last)


@torch.no_grad()
def test_masked_neighbours_are_not_read():
    retro, tokens = model(), random(2, 12)
    neighbors, mask = neighbours(2, 3, holes=True)
    others = torch.where(mask, neighbors, (neighbors + 7) % V)
    assert torch.equal(
        retro(tokens, neighbors=neighbors, neighbor_mask=mask),
        retro(tokens, neighbors=others, neighbor_mask=mask),
    )


@torch.no_grad()
def test_without_neighbours_or_with_gate_0_the_logits_are_those_of_the_gpt_bit_for_bit():
    retro, tokens = model(), random(2, 12)
    neighbors, mask = neighbours(2, 3)
    gpt = GPT(
        resolve(
            ModelConfig(
                **{
                    **{
                        f: getattr(retro.config, f)
                        for f in retro.config.__dataclass_fields__
                        if not f.startswith("retro_")
                    }
                }
            ),
            vocab_size=V,
            seq_length=32,
        )
    )
    gpt.double().load_state_dict(
        {name: p for name, p in retro.state_dict().items() if not is_retrieval(name)}
    )
    plain = gpt.eval()
    plain = plain.logits(plain(tokens))
    for gate, given in ((0.0, neighbors), (1.0, None)):
        retro.gate = gate
        assert torch.equal(retro.logits(retro(tokens, neighbors=given, neighbor_mask=mask)), plain)
    nothing = torch.zeros_like(mask)
    assert torch.equal(retro.logits(retro(tokens, neighbors=neighbors, neighbor_mask=nothing)), plain)
    retro.gate = 0.5
    assert not torch.allclose(retro.logits(retro(tokens, neighbors=neighbors, neighbor_mask=mask)), plain)


def look_up(chunks):
    """Neighbours that depend only on the chunk; some of them are missing."""
    tokens = (chunks[:, None, :1] * 7 + np.arange(K)[:, None] * 11 + np.arange(R)) % V
    mask = np.ones(tokens.shape, bool)
    mask[:, 1, M:] = False
    mask[:, 2] = (chunks[:, :1] % 2) == 0
    mask[chunks[:, 1] % 5 == 0] = False
    return tokens.astype(np.int64), mask


def retrieving(**settings):
    retro = model(**settings)
    retro.retrieve = look_up
    return retro


@pytest.mark.parametrize("length", [3, 4, 11, 16])
@torch.no_grad()
def test_chunks_that_a_retro_retrieves_itself_begin_at_multiples_of_their_length(length):
    retro, tokens = retrieving(), random(2, length)
    states = retro(tokens)
    for row in range(2):
        found = look_up(tokens[row, : length // M * M].view(-1, M).numpy())
        expected = by_loop(retro, tokens[row], *map(torch.from_numpy, found), first=M)
        torch.testing.assert_close(states[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [{}, LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize(
    "cuts", [(5, 6, 7, 8, 9), (4, 8, 9), (3, 14, 15), (1, 2, 3, 4, 5, 6), (17, 18)], ids=str
)
@torch.no_grad()
def test_with_a_cache_the_states_are_those_without(shape, cuts):
    retro, tokens = retrieving(**shape), random(3, 19)
    whole, cache = retro(tokens), retro.new_cache(3, 24)
    bounds = [0, *cuts, 19]
    pieces = [retro(tokens[:, a:b], cache=cache) for a, b in itertools.pairwise(bounds)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_rows_of_a_reused_cache_continue_at_different_positions():
    """Padded prompts of 3, 8 and 6 tokens, then token by token, in a cache that other texts have used."""
    retro, tokens, lengths = retrieving(), random(3, 20), torch.tensor([3, 8, 6])
    whole, cache = retro(tokens), retro.new_cache(3, 24)
    retro(random(3, 15, seed=9), cache=cache)
    padded = torch.where(torch.arange(8) < lengths[:, None], tokens[:, :8], 0)
    states = retro(padded, positions=torch.arange(8).expand(3, 8), cache=cache, lengths=lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(states[row, :length], whole[row, :length], rtol=1e-9, atol=1e-9)
    for step in range(12):
        places = lengths[:, None] + step
        states = retro(tokens.gather(1, places), positions=places, cache=cache)
        torch.testing.assert_close(states[:, 0], whole[torch.arange(3), places[:, 0]], rtol=1e-9, atol=1e-9)


def test_every_third_layer_from_the_6th_or_9th_reads_neighbours_and_the_first_has_the_encoder():
    assert [n + 1 for n in retro_layers(12)] == [6, 9, 12]
    assert [n + 1 for n in retro_layers(24)] == [9, 12, 15, 18, 21, 24]
    assert [n + 1 for n in retro_layers(6)] == [6]
    retro = model()
    assert [n for n, layer in enumerate(retro.layers) if layer.cross is not None] == [5, 8]
    assert [layer.cross.encoder is not None for layer in retro.layers if layer.cross is not None] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 5}, r"model.num_layers = 5, but Retro's layers begin with the 6th; use 6 or more"),
        ({"retro_num_neighbors": 0}, r"model.retro_num_neighbors = 0 must be at least 1"),
        (
            {"retro_encoder_hidden_dropout": 1.0},
            r"model.retro_encoder_hidden_dropout = 1.0 must be at least 0 and below 1",
        ),
        (
            {"retro_add_retriever": False},
            (
                r"model.retro_chunk_length, model.retro_num_neighbors: there is nothing retrieved to read;"
                r" give --retro-add-retriever"
            ),
        ),
        ({"family": "bert"}, r"model.retro_add_retriever is for model.family = gpt, not bert"),
        (
            {"hybrid_override_pattern": "*-*-*-*-*", "num_layers": None},
            r"leave --hybrid-override-pattern out",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        model(**settings)


def test_gradients_reach_every_weight():
    retro = model(retro_encoder_hidden_dropout=0.2, retro_encoder_attention_dropout=0.2).train()
    neighbors, mask = neighbours(2, 3, holes=True)
    tokens = random(2, 12)
    retro.loss(tokens, tokens, torch.ones(2, 12), neighbors=neighbors, neighbor_mask=mask).backward()
    assert all(p.grad.abs().max() > 0 for p in retro.parameters())
    assert all(torch.isfinite(p.grad).all() for p in retro.parameters())
