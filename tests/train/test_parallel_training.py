"""`mt train` at parallel layouts: the losses and checkpoints of one process; resuming at another layout."""

import json
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from mt.tests.train.parallel_jobs import run_mt_train
from mt.train.checkpoint.native import whats_wrong
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def losses(save) -> dict[int, float]:
    lines = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def later_losses(save) -> list[dict[str, float]]:
    """Those of multi-token prediction, of each step."""
    lines = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    return [line.get("mtp_loss", {}) for line in lines if "loss" in line]


def valid_losses(save) -> dict[int, float]:
    lines = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}


def tensors(path) -> dict[str, torch.Tensor]:
    """All tensors of a step directory, whole."""
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {name: torch.empty(meta.size, dtype=meta.properties.dtype) for name, meta in metadata.items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    return state


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> bool:
    """Biases of keys are left out: see parallel_jobs.differences."""
    return one.keys() == other.keys() and all(
        (one[n] - other[n]).abs().max() < tolerance for n in one if not n.endswith("qkv.bias")
    )


LAYOUTS = {
    "tp2": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "tp2 x dp2": (4, {"tensor_model_parallel_size": 2}),
    "cp2 x ep2": (2, {"context_parallel_size": 2, "expert_model_parallel_size": 2}),
    "pp2, interleaved, ep1": (
        2,
        {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1, "num_layers": 4},
    ),
    "tp2 x pp2, zero-bubble": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "pipeline_model_parallel_size": 2,
            "pipeline_schedule": "zero-bubble",
        },
    ),
    "pp2, later tokens": (2, {"pipeline_model_parallel_size": 2, "num_layers": 2, "mtp_num_layers": 2}),
}
MIXTURE = {"num_experts": 4, "moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"}


SLOW = ("pp2, later tokens", "tp2 x dp2", "pp2, interleaved, ep1", "tp2 x pp2, zero-bubble")


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAYOUTS]
)
def test_a_run_resumes_from_a_layout_on_one_process_and_back_with_the_losses_of_one_process(
    pool, settings, tmp_path, layout
):
    world, parallel = LAYOUTS[layout]
    changes = {
        "log_interval": 1,
        "train_iters": 6,
        "eval_interval": 3,
        "save_interval": 2,
        "keep_last": 0,
        **(MIXTURE if "ep" in layout else {}),
    }
    changes |= {name: parallel[name] for name in ("num_layers", "mtp_num_layers") if name in parallel}
    pool.run(run_mt_train, 1, settings(tmp_path / "one", **changes))
    save = tmp_path / "run"
    pool.run(run_mt_train, world, settings(save, exit_interval=2, **changes | parallel))
    assert len(list((save / "step_00000002").glob("*.distcp"))) == world
    assert close(tensors(save / "step_00000002"), tensors(tmp_path / "one" / "step_00000002"), 1e-5)
    pool.run(run_mt_train, 1, settings(save, exit_interval=2, **changes))
    pool.run(run_mt_train, world, settings(save, **changes | parallel))
    assert losses(save) == pytest.approx(losses(tmp_path / "one"), abs=5e-6)
    later = later_losses(tmp_path / "one")
    assert [len(depths) for depths in later] == [changes.get("mtp_num_layers", 0)] * 6
    for found, expected in zip(later_losses(save), later, strict=True):
        assert found == pytest.approx(expected, abs=5e-6)
    assert close(tensors(save / "step_00000006"), tensors(tmp_path / "one" / "step_00000006"), 1e-4)
    model = open_checkpoint(save).load_model()
    assert not model.training


TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
TP4 = {"tensor_model_parallel_size": 4}
PP4 = {"pipeline_model_parallel_size": 4}
FULL = {"data_parallel_sharding": "full"}


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ((2, TP2), [(2, PP2), (1, {})]),
        pytest.param((4, TP2 | PP2), [(4, TP4), (4, PP4), (2, FULL), (1, {})], marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_loads_bit_for_bit_at_another_layout(pool, settings, tmp_path, saved, loaded):
    """With moments."""
    changes = {
        "train_iters": 2,
        "eval_iters": 0,
        "split": "100,0,0",
        "log_interval": 1,
        "lr_warmup_iters": 0,
        "num_layers": 4,
    }
    pool.run(
        run_mt_train,
        saved[0],
        settings(tmp_path / "first", **changes, **saved[1]),
    )
    first = tensors(tmp_path / "first" / "step_00000002")
    assert {name.split(".")[0] for name in first} == {"model", "exp_avg", "exp_avg_sq"}
    for world, parallel in loaded:
        again = pool.run(
            run_mt_train,
            world,
            settings(tmp_path / "unused", **changes, **parallel),
            tmp_path / "first" / "step_00000002",
        )[0]
        shutil.rmtree(tmp_path / "unused", ignore_errors=True)
        assert again.keys() == first.keys()
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_all_ranks_fall_back_to_the_previous_checkpoint_when_one_finds_a_broken_file(
    pool, settings, tmp_path
):
    save, changes = (
        tmp_path / "run",
        {
            "train_iters": 4,
            "eval_iters": 0,
            "split": "100,0,0",
            "log_interval": 1,
            "save_interval": 2,
            "keep_last": 0,
        },
    )
    pool.run(run_mt_train, 2, settings(save, exit_interval=3, **changes))
    before = losses(save)
    written = sorted((save / "step_00000003").glob("__1_*"))[0]
    written.write_bytes(bytes([written.read_bytes()[0] ^ 1]) + written.read_bytes()[1:])
    pool.run(run_mt_train, 2, settings(save, **changes))
    assert "has changed since it was written" in whats_wrong(save / "step_00000003")
    assert len(losses(save)) == 4
    assert losses(save).items() >= before.items()  # the third step was repeated


def test_a_batch_rampup_may_begin_with_fewer_micro_batches_than_pipeline_stages(pool, settings, tmp_path):
    changes = {
        "rampup_batch_size": [2, 2, 12],
        "train_iters": None,
        "train_samples": 24,
        "eval_interval": 3,
        "log_interval": 1,
        "lr_warmup_iters": 0,
        "hidden_dropout": 0.1,
    }
    pool.run(run_mt_train, 1, settings(tmp_path / "one", **changes))
    pool.run(run_mt_train, 2, settings(tmp_path / "run", **changes, pipeline_model_parallel_size=2))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), abs=5e-6)
    assert valid_losses(tmp_path / "run") == pytest.approx(valid_losses(tmp_path / "one"), abs=5e-6)
