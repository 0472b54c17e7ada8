import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from mt.core.config import UserError
from mt.tests.train.model.small_models import LLAMA, gpt, random_tokens
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize

pytestmark = pytest.mark.usefixtures("one_thread")


def test_padding_of_the_vocabulary_has_probability_0_and_gradient_0():
    model, tokens = gpt(), random_tokens()
    logits = model.logits(model(tokens))
    assert logits.shape == (3, 24, 64)
    assert (logits[..., 61:] == float("-inf")).all()
    loss = model.loss(tokens[:, :-1], tokens[:, 1:], torch.ones(3, 23))
    reference = F.cross_entropy(logits[:, :-1, :61].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    loss.backward()
    assert (model.embedding.weight.grad[61:] == 0).all()


@pytest.mark.parametrize("shape", [{}, LLAMA, {**LLAMA, "window_size": 5}], ids=["gpt2", "llama", "window"])
def test_with_a_cache_the_hidden_states_are_those_without(shape):
    model, tokens = gpt(**shape).eval(), random_tokens()
    with torch.no_grad():
        whole = model(tokens)
        cache = model.new_cache(3, 24)
        pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 10), (10, 11), (11, 12), (12, 24))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_rows_of_different_lengths_share_a_cache_when_padded_on_the_right():
    model, tokens = gpt(**LLAMA).eval(), random_tokens(rows=2)
    lengths = torch.tensor([5, 9])
    with torch.no_grad():
        cache = model.new_cache(2, 24)
        model(tokens[:, :9].masked_fill(torch.arange(9) >= lengths[:, None], 0), cache=cache)
        for _ in range(4):  # each row continues at its own length
            step = model(tokens.gather(1, lengths[:, None]), positions=lengths[:, None], cache=cache)
            for row in range(2):
                alone = model(tokens[row : row + 1, : lengths[row] + 1])
                torch.testing.assert_close(step[row, 0], alone[0, -1], rtol=1e-5, atol=1e-5)
            lengths = lengths + 1


@pytest.mark.parametrize("percent", [1.0, 0.5])
def test_rotated_pairs_are_rotated_halves_of_permuted_channels(percent):
    """With a cache too: the keys in it have the order of the rotation."""
    settings = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2}
    settings |= {"position_embedding_type": "rope", "rotary_percent": percent}
    pairs, halves = (
        GPT(resolve(ModelConfig(**settings, rotary_interleaved=kind), vocab_size=60, seq_length=16)).eval()
        for kind in (True, False)
    )
    initialize(pairs, 1)
    halves.load_state_dict(pairs.state_dict())
    rotated = int(8 * percent)
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, 8)]
    for layer in halves.layers:  # rows: two groups of two queries, their key and value
        for weight in (layer.mixer.qkv.weight, layer.mixer.qkv.bias):
            rows = weight.data.view(2, 4, 8, -1)
            rows[:, :3] = rows[:, :3, order].clone()
    tokens = torch.randint(60, (2, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = halves(tokens)
        torch.testing.assert_close(pairs(tokens), expected)
        assert (pairs(tokens) - pairs(tokens, positions=torch.zeros_like(tokens))).abs().max() > 1e-4
        cache = pairs.new_cache(2, 10)
        parts = [pairs(tokens[:, :6], cache=cache), pairs(tokens[:, 6:], cache=cache)]
        torch.testing.assert_close(torch.cat(parts, 1), expected)
    with pytest.raises(UserError, match=r"rotary_interleaved is for model\.position_embedding_type"):
        ModelConfig(rotary_interleaved=True)
