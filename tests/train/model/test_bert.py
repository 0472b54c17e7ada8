import pytest
import torch

from mt.train.model.attention import AttentionMask
from mt.train.model.bert import Bert
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.layers import initialize
from mt.train.model.t5 import T5

pytestmark = pytest.mark.usefixtures("one_thread")


V = 61


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


@torch.no_grad()
def test_bert_has_norms_before_attention_and_feed_forward_and_after_the_last_layer_as_in_megatron():
    bert = model(Bert, "bert")
    x = bert.embedding(tokens()) + bert.positions(torch.arange(24)) + bert.token_types.weight[0]
    for layer in bert.layers:
        x = x + layer.mixer(layer.mixer_norm(x), mask=AttentionMask())
        x = x + layer.ffn(layer.ffn_norm(x))
    torch.testing.assert_close(bert(tokens()), bert.norm(x))
