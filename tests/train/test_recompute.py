import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import random_neighbors
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.recompute import RecomputeConfig, recompute, stacks

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [
    RecomputeConfig(recompute_granularity="selective"),
    RecomputeConfig(recompute_granularity="full"),
    RecomputeConfig(recompute_granularity="full", recompute_num_layers=2),
    RecomputeConfig(recompute_granularity="full", recompute_num_layers=3),
    RecomputeConfig(recompute_granularity="full", recompute_method="block", recompute_num_layers=2),
]
MODELS = {
    "gpt": {"activation": "swiglu", "position_embedding_type": "rope"},
    "mixture": {"num_experts": 4, "moe_aux_loss_coeff": 0.1},
    "retro": {"num_layers": 9, "retro_add_retriever": True, "retro_chunk_length": 8},
    "t5": {"family": "t5", "position_embedding_type": "relative"},
}


def network(name: str):
    config = resolve(
        ModelConfig(
            **{
                "num_layers": 4,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "hidden_dropout": 0.2,
                "attention_dropout": 0.2,
                **MODELS[name],
            }
        ),
        vocab_size=60,
        seq_length=16,
    )
    model = build_model(config)
    initialize(model, 1)
    return model.train()


def step(model, name: str):
    """(loss, gradients, bytes kept for the backward pass) of one batch."""
    tokens = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(0))
    arguments = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": torch.ones(2, 16)}
    if name == "t5":
        arguments |= {
            "encoder_tokens": tokens[:, :-1].flip(1),
            "padding_mask": torch.ones(2, 16, dtype=torch.bool),
        }
    if name == "retro":
        arguments |= random_neighbors(model.config, 2, 16, torch.Generator().manual_seed(1))
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    torch.manual_seed(5)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(**arguments)
    loss.backward()
    return (
        loss.detach(),
        [p.grad.clone() for p in model.parameters() if p.grad is not None],
        sum(kept.values()),
    )


@pytest.mark.parametrize("name", MODELS)
def test_recomputation_changes_no_bit_of_loss_and_gradients(name):
    """With dropout, whose masks must be the same in the recomputation."""
    loss, gradients, _ = step(network(name), name)
    for config in KINDS:
        model = network(name)
        recompute(model, config)
        ours, our_gradients, _ = step(model, name)
        assert torch.equal(ours, loss), config
        assert all(torch.equal(a, b) for a, b in zip(our_gradients, gradients, strict=True)), config
        again, again_gradients, _ = step(model, name)
        assert torch.equal(again, loss), config
        assert all(torch.equal(a, b) for a, b in zip(again_gradients, gradients)), config


def test_each_method_recomputes_its_number_of_blocks():
    counts = []
    for config in (None, *KINDS):
        model, calls = network("gpt"), []
        for block in model.layers:
            block.ffn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if config is not None:
            recompute(model, config)
        step(model, "gpt")
        counts.append(len(calls))
    assert counts == [4, 8, 8, 8, 8, 6]


def test_recomputation_stores_fewer_activations():
    kept = []
    for config in (None, KINDS[1], KINDS[2]):
        model = network("gpt")
        if config is not None:
            recompute(model, config)
        kept.append(step(model, "gpt")[2])
    assert kept[1] < kept[0] / 2
    assert kept[2] < kept[1]


def test_evaluation_recomputes_nothing_and_is_the_same():
    plain, wrapped = network("gpt").eval(), network("gpt").eval()
    recompute(wrapped, KINDS[2])
    tokens = torch.arange(16).reshape(1, 16)
    with torch.no_grad():
        assert torch.equal(plain(tokens), wrapped(tokens))


def test_an_encoder_and_a_decoder_are_two_stacks():
    assert [len(blocks) for blocks in stacks(network("t5"))] == [4, 4]


@pytest.mark.parametrize(
    "settings",
    [{"recompute_num_layers": 2}, {"recompute_granularity": "selective", "recompute_method": "block"}],
)
def test_a_method_without_full_granularity_is_refused(settings):
    with pytest.raises(
        UserError, match="recompute_method and recompute_num_layers need recompute_granularity = full"
    ):
        RecomputeConfig(**settings)
