import pytest
import torch

from mt.core.config import UserError
from mt.train.compile import compile_and_recompute, compile_obstacle, keep_freed_memory, should_compile
from mt.train.loop import train
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.recompute import RecomputeConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    compile_obstacle(CPU) is not None, reason="torch.compile finds no C++ compiler here"
)


def loss_and_gradients(recomputation: RecomputeConfig, setting: str):
    config = resolve(
        ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, hidden_dropout=0.1),
        vocab_size=60,
        seq_length=16,
    )
    model = build_model(config)
    initialize(model, 1)
    compile_and_recompute(model.train(), recomputation, setting, CPU, 0.0)
    tokens = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    loss = model.loss(tokens=tokens[:, :-1], labels=tokens[:, 1:], loss_mask=torch.ones(2, 16))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@needs_compiler
def test_compiled_blocks_change_rounding_only_and_keep_the_dropout_masks():
    for ours, theirs in zip(
        loss_and_gradients(RecomputeConfig(), "always"), loss_and_gradients(RecomputeConfig(), "never")
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "recomputation",
    [
        RecomputeConfig(recompute_granularity="selective"),
        RecomputeConfig(recompute_granularity="full", recompute_num_layers=2),
    ],
    ids=["selective", "full"],
)
def test_recomputed_blocks_compile_too(recomputation, monkeypatch):
    compile_ = torch.compile
    # the backend traces and does not generate code, which saves seconds
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, dynamic, options: compile_(function, dynamic=dynamic, backend="aot_eager"),
    )
    for ours, theirs in zip(
        loss_and_gradients(recomputation, "always"), loss_and_gradients(RecomputeConfig(), "never")
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_compile_auto_compiles_only_long_runs_on_gpus(monkeypatch):
    assert not should_compile("auto", CPU, 1e20)
    monkeypatch.setattr("mt.train.compile.compile_obstacle", lambda _: None)
    assert should_compile("auto", torch.device("cuda"), 1e18)
    assert not should_compile("auto", torch.device("cuda"), 1e15)
    assert should_compile("always", CPU, 0.0)
    assert not should_compile("never", CPU, 1e20)


def test_a_missing_compiler_is_named_before_the_output_is_made(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError,
        match=r"train.compile = always: torch.compile needs the C\+\+ compiler no-such-compiler; install it",
    ):
        train(settings(tmp_path / "run", compile="always"))
    assert not (tmp_path / "run").exists()


def test_freed_memory_is_kept_if_the_c_library_is_glibc():
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
