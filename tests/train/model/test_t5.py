import pytest
import torch
import transformers

from mt.train.checkpoint.architectures import weights_from_hf
from mt.train.checkpoint.hf_settings import config_from_hf
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.layers import initialize
from mt.train.model.t5 import T5

pytestmark = pytest.mark.usefixtures("one_thread")
V = 61
RELATIVE = {
    "position_embedding_type": "relative",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "activation": "relu",
}


def model(kind=T5, family="t5", **settings):
    config = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "init_method_std": 0.2,
        "make_vocab_size_divisible_by": 16,
        **settings,
    }
    built = kind(resolve(ModelConfig(family=family, **config), vocab_size=V, seq_length=24))
    initialize(built, 0)
    return built.eval()


def tokens(rows=3, length=24, seed=1):
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [{"decoder_num_layers": 3}, RELATIVE], ids=["learned", "relative"])
@torch.no_grad()
def test_with_a_cache_the_states_of_the_decoder_are_those_without(shape):
    t5, answer = model(**shape), tokens(length=14, seed=2)
    memory = t5.encode(tokens(), torch.arange(24) < torch.tensor([[24], [9], [20]]))
    whole = t5.decode(answer, memory)
    cache = t5.new_cache(3, 14)
    pieces = [t5.decode(answer[:, a:b], memory, cache=cache) for a, b in ((0, 5), (5, 6), (6, 7), (7, 14))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)
    cache = t5.new_cache(3, 14)  # rows at different positions
    t5.decode(answer[:, :6], memory, cache=cache)
    places = torch.tensor([[6], [4], [2]])
    step = t5.decode(answer.gather(1, places), memory, positions=places, cache=cache)
    torch.testing.assert_close(step[:, 0], whole[torch.arange(3), places[:, 0]], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_greedy_answers_are_those_of_transformers():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        initializer_factor=4.0,
        decoder_start_token_id=0,
        eos_token_id=None,
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    ours = T5(config_from_hf(config.to_dict(), "config.json")).eval()
    weights = dict(theirs.named_parameters())
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    ours.load_state_dict(
        dict(weights_from_hf("t5", shapes, ours.config, weights, weights.__getitem__, "here"))
    )
    expected = theirs.generate(tokens(), max_new_tokens=12, do_sample=False, num_beams=1)
    memory, cache = ours.encode(tokens()), ours.new_cache(3, 12)
    answer = torch.zeros(3, 1, dtype=torch.int64)
    for _ in range(12):
        hidden = ours.decode(answer[:, -1:], memory, cache=cache)
        answer = torch.cat([answer, ours.logits(hidden)[:, -1:].argmax(-1)], dim=1)
    assert answer.tolist() == expected.tolist()


@torch.no_grad()
def test_padding_of_the_source_does_not_change_states():
    t5, source, answer = model(**RELATIVE), tokens(), tokens(length=8, seed=2)
    present = torch.arange(24) < 15
    other = torch.where(present, source, 7)
    torch.testing.assert_close(
        t5(answer, source, present.expand(3, 24)), t5(answer, other, present.expand(3, 24))
    )
    torch.testing.assert_close(
        t5(answer, source, present.expand(3, 24)), t5(answer, source[:, :15]), rtol=1e-5, atol=1e-5
    )


def test_every_block_is_among_the_layers_and_the_stacks_share_one_embedding():
    t5 = model(decoder_num_layers=3)
    assert t5.layers == [*t5.encoder, *t5.decoder]
    assert [layer.cross is not None for layer in t5.layers] == [False, False, True, True, True]
    assert {name.split(".")[0] for name, _ in t5.named_parameters()} == {
        "embedding",
        "positions",
        "encoder",
        "encoder_norm",
        "decoder",
        "decoder_norm",
    }
