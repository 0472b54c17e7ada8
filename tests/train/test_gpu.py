"""Training on a GPU, compared with the CPU, with float64 and with a second run."""

import copy

import pytest
import torch

from mt.core.config import UserError
from mt.train.checkpoint.native import newest_whole
from mt.train.compile import compile_blocks
from mt.train.loop import train
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.model.loss import cross_entropy
from mt.train.optimizer import OptimizerConfig, build_optimizer, gradient_norm
from mt.train.parallel.mesh import Mesh
from mt.train.precision import MasterWeights

pytestmark = pytest.mark.gpu

FAMILIES = {
    "gpt-2": {},
    "llama": {
        "activation": "swiglu",
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "num_query_groups": 2,
    },
    "mixture": {"num_experts": 4, "moe_aux_loss_coeff": 0.01, "position_embedding_type": "rope"},
    "hybrid": {
        "hybrid_override_pattern": "M*-",
        "mamba_state_dim": 16,
        "mamba_head_dim": 16,
        "mamba_num_groups": 2,
        "position_embedding_type": "none",
    },
}


def model_of(name):
    base = {"hidden_size": 64, "num_attention_heads": 4, "kv_channels": 16} | (
        {} if name == "hybrid" else {"num_layers": 2}
    )
    model = build_model(resolve(ModelConfig(**base, **FAMILIES[name]), vocab_size=250, seq_length=64))
    initialize(model, 1)
    return model


def arguments_on(device):
    tokens = torch.randint(0, 250, (4, 65), generator=torch.Generator().manual_seed(0)).to(device)
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": torch.ones(4, 64, device=device)}


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_those_of_the_cpu(name):
    here = model_of(name)
    there = copy.deepcopy(here).cuda()
    expected, found = here.loss(**arguments_on("cpu")), there.loss(**arguments_on("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=0)
    expected.backward()
    found.backward()
    for (name, ours), theirs in zip(there.named_parameters(), here.parameters()):
        assert (ours.grad.cpu() - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + 1e-5, name


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_a_compiled_model_learns_like_one_that_is_not_compiled(name):
    losses = []
    for compiled in (False, True):
        model = model_of(name).cuda()
        weights = MasterWeights(model, torch.bfloat16)
        if compiled:
            compile_blocks(model)
        optimizer = build_optimizer(weights.by_name, OptimizerConfig(lr=1e-3))
        for _ in range(10):
            loss = model.loss(**arguments_on("cuda")) / 256
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            weights.refresh()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_is_torchs(dtype, monkeypatch):
    from mt.train.model import loss as loss_module

    monkeypatch.setattr(loss_module, "chunk_bytes", lambda device: 1)  # chunks of 128 rows
    hidden, weight = (torch.randn(n, 64, device="cuda").to(dtype).requires_grad_() for n in (300, 1024))
    labels, mask = torch.randint(0, 1000, (300,), device="cuda"), torch.rand(300, device="cuda")
    found = torch.autograd.grad(cross_entropy(hidden, weight, labels, mask, 1000), (hidden, weight))
    logits = hidden.double() @ weight.double()[:1000].T
    expected = torch.autograd.grad(
        (torch.nn.functional.cross_entropy(logits, labels, reduction="none") * mask).sum(), (hidden, weight)
    )
    for ours, theirs in zip(found, expected):
        assert (ours.double() - theirs.double()).norm() < (
            1e-5 if dtype == torch.float32 else 2e-2
        ) * theirs.double().norm()


def test_the_gradient_norm_is_that_of_float64():
    weight = torch.nn.Parameter(torch.zeros(3000, 1000, device="cuda"))
    weight.grad = torch.randn(3000, 1000, device="cuda")
    assert gradient_norm([weight], Mesh(0, 1, torch.device("cuda"))).item() == pytest.approx(
        weight.grad.double().norm().item(), rel=1e-6
    )


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"fp16": True, "initial_loss_scale": 2.0**20},
        {"recompute_granularity": "selective"},
        {"compile": "always"},
    ],
)
def test_a_whole_run_of_mt_train_learns(settings, tmp_path, how):
    done = train(
        settings(tmp_path / "run", **({"bf16": True} | how if "fp16" not in how else how), async_save=True)
    )
    assert done["train_loss"] < done["curve"][0][1]
    assert newest_whole(tmp_path / "run") is not None


def test_in_deterministic_mode_repeated_and_resumed_runs_write_the_same_bytes(settings, tmp_path):
    digests = []
    for name, changes in (("one", ({},)), ("two", ({},)), ("halves", ({"exit_interval": 3}, {}))):
        try:
            for change in changes:
                train(settings(tmp_path / name, bf16=True, deterministic_mode=True, **change))
        finally:
            torch.use_deterministic_algorithms(False)
        parts = sorted(newest_whole(tmp_path / name).path.glob("*.distcp"))
        digests.append([part.read_bytes() for part in parts])
    assert digests[0] == digests[1] == digests[2]


def test_out_of_memory_names_the_settings_that_save_most(settings, tmp_path):
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(UserError, match="micro-batch-size"):
            train(settings(tmp_path / "run", hidden_size=1024, micro_batch_size=8))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
