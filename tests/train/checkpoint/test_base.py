"""Checkpoint: which tensors it saves, and loading them into models and optimizers of torch."""

import copy
import itertools

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from mt.core.config import UserError
from mt.train.checkpoint.base import (
    MOMENT_NAMES,
    dcp_errors_unwrapped,
    moment_names,
    named_tensors,
    pad_vocabulary,
    weight_shapes,
)
from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def small(**settings):
    shape = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 60}
    model = build_model(resolve(ModelConfig(**{**shape, **settings}), vocab_size=60, seq_length=16))
    initialize(model, 1)
    return model


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_are_the_optimizer_states_with_the_shape_of_their_weight(kind):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = OPTIMIZERS[kind]([weight])
    weight.sum().backward()
    optimizer.step()
    states = {
        n: s for n, s in optimizer.state[weight].items() if torch.is_tensor(s) and s.shape == weight.shape
    }
    assert set(moment_names(optimizer)) == states.keys()
    assert states.keys() <= set(MOMENT_NAMES)


def test_the_state_of_the_model_and_the_moments_of_trainable_weights_are_saved():
    model = small(num_experts=4, moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True)
    frozen, *trained = dict(model.named_parameters())
    model.get_parameter(frozen).requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    tensors = named_tensors(model, None, optimizer)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert any("expert_bias" in name for name in state)
    moments = {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in trained}
    assert tensors.keys() == state.keys() | moments
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    assert not any(tensors[name].any() for name in moments), "zeros before the first step"
    assert tensors.keys() == named_tensors(model, dict(model.named_parameters()), optimizer).keys()
    assert named_tensors(model).keys() == state.keys()


def test_an_optimizer_resumes_with_its_moments_and_its_number_of_updates(finished):
    checkpoint = open_checkpoint(finished[0])
    model = build_model(checkpoint.config)
    optimizer = torch.optim.AdamW(model.parameters())
    progress = checkpoint.load(model, optimizer)
    assert (progress.step, progress.updates) == (8, 8)
    for state in optimizer.state.values():
        assert state["step"] == 8
        assert state["exp_avg_sq"].any()
    assert checkpoint.load(model).updates == 0, "without an optimizer there are none"
    with pytest.raises(UserError, match="has no momentum_buffer for the optimizer; give --no-load-optim"):
        checkpoint.load(model, torch.optim.SGD(model.parameters(), lr=1, momentum=0.5))
    checkpoint.load(model, torch.optim.SGD(model.parameters(), lr=1))


def test_changing_the_returned_progress_does_not_change_the_checkpoint(finished):
    checkpoint = open_checkpoint(finished[0])
    progress = checkpoint.progress()
    progress.recent.append([1.0, 2.0])
    progress.step = 99
    assert checkpoint.progress() != progress
    assert checkpoint.step == 8


def test_a_model_may_have_more_or_fewer_weights_if_allowed(finished):
    checkpoint, whole = open_checkpoint(finished[0]), open_checkpoint(finished[0]).load_model()
    fewer = small(num_layers=1)
    with pytest.raises(UserError, match=r"layers.1.mixer_norm.weight is \(32,\) there and absent here"):
        checkpoint.load(fewer)
    checkpoint.load(fewer, allow_extra=True)
    for name, weight in fewer.named_parameters():
        assert torch.equal(weight, whole.get_parameter(name)), name
    more = small(num_layers=3)
    before = copy.deepcopy(more)
    with pytest.raises(UserError, match=r"layers.2.mixer_norm.weight is absent there and \(32,\) here"):
        checkpoint.load(more)
    is_new = lambda name: name.startswith("layers.2.")
    checkpoint.check_shapes(more, allow_missing=is_new)
    checkpoint.load(more, allow_missing=is_new)
    for name, weight in more.named_parameters():
        assert torch.equal(weight, (before if is_new(name) else whole).get_parameter(name)), name


def test_weight_shapes_are_those_of_the_model():
    model = small()
    assert weight_shapes(model.config) == {name: p.shape for name, p in model.named_parameters()}


def test_rows_of_padding_are_added_to_a_vocabulary_and_removed():
    for there, rows, vocab_size in itertools.product(range(3, 8), range(3, 8), [3]):
        weight = torch.arange(1.0, 2 * there + 1).reshape(there, 2)
        found = pad_vocabulary(weight, rows, vocab_size)
        assert found.shape == (rows, 2)
        assert torch.equal(found[:vocab_size], weight[:vocab_size])
        assert rows == there or not found[vocab_size:].any()


def test_a_user_error_inside_torchs_functions_is_raised_as_itself():
    mistake, other = UserError("the file is broken"), ValueError("something else")
    with pytest.raises(UserError, match="the file is broken"), dcp_errors_unwrapped():
        raise CheckpointException("load", {0: (other, None), 1: (mistake, None)})
    with pytest.raises(CheckpointException), dcp_errors_unwrapped():
        raise CheckpointException("load", {0: (other, None)})
