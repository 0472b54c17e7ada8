"""The plan, compared with counted bytes of models and ranks and with Megatron-LM's published tables."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mt import cli
from mt.commands.configure import configure
from mt.core.config import UserError, build
from mt.indexed.format import IndexedWriter
from mt.tests.train.parallel_jobs import LENGTH, ROWS, VOCABULARY, model_config
from mt.tests.train.plan_jobs import bytes_of_a_step
from mt.train.memory_estimate import Cut
from mt.train.parallel.mesh import SIZES
from mt.train.parallel.stages import divide
from mt.train.plan import Layout, PlanConfig, Planner, plan, resolve_shape

pytestmark = pytest.mark.usefixtures("one_thread")


# Without experts: those of float32 are counted in bfloat16, where norms keep wider copies.
DENSE_MLA = {
    "num_experts": None, "moe_layer_freq": "1", "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False, "moe_router_num_groups": None, "moe_router_group_topk": None,
    "moe_router_topk_scaling_factor": None, "moe_shared_expert_intermediate_size": None,
    "q_lora_rank": 64, "kv_lora_rank": 56, "qk_head_dim": 24, "qk_pos_emb_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        pytest.param("gpt", {}, marks=pytest.mark.slow),
        pytest.param("gpt", {"tensor_model_parallel_size": 2}, marks=pytest.mark.slow),
        ("llama", {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        ("moe", {"expert_model_parallel_size": 2}),
        pytest.param(
            "mla", {"tensor_model_parallel_size": 2, "sequence_parallel": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_ranks_use_the_estimated_memory(pool, family, layout):
    """The bytes of a step, counted on each of two ranks. Widths are powers of two, so parts are equal."""
    changes = {
        "hidden_size": 128,
        "num_layers": 4,
        **{
            "moe": {"moe_layer_freq": "1"},
            "llama": {"window_size": None},
            "mla": DENSE_MLA,
        }.get(family, {}),
    }
    counted = pool.run(bytes_of_a_step, 2, family, layout, changes)
    tree = {
        "parallel": layout,
        "data": {"seq_length": LENGTH},
        "train": {"micro_batch_size": ROWS, "global_batch_size": 8},
        "world_size": 2,
    }
    config = build(PlanConfig, ("test", tree | {"model": {"vocab_size": VOCABULARY}}))
    shape = model_config(family, **changes)
    planner = Planner(config, shape)
    estimate = planner.estimate(planner.given())
    whole = planner.parts(
        Cut(estimate.layout.tensor, 1, estimate.layout.expert, estimate.layout.sequence_parallel)
    )
    local = estimate.moments / 8  # two moments of four bytes
    # autograd also keeps the gradient of the lm_head's weight, which the plan counts as workspace
    activations = (
        estimate.activations
        - whole.workspace
        - ROWS * whole.logits
        + 4 * shape.padded_vocab_size * 128 / estimate.layout.tensor
    )
    for rank in counted:
        assert rank["weights"] == rank["gradients"] == pytest.approx(4 * local, rel=0.02)
        assert rank["moments"] == pytest.approx(estimate.moments, rel=0.02)
        assert activations == pytest.approx(rank["activations"], rel=0.1)
    assert estimate.weights == 4 * local + 4 * estimate.parameters, (
        "divided float32 weights, and whole ones to compute with"
    )
    assert estimate.gradients == 4 * local + 4 * estimate.parameters, (
        "divided sums of a step, and whole gradients until its last micro-batch"
    )


@pytest.mark.parametrize("name", SIZES)
def test_every_size_of_a_group_is_in_the_layout_and_changes_what_it_costs(name):
    """A new axis of the mesh is a field of Layout, and a part of the estimates."""
    tree = {
        "model": {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": VOCABULARY},
        "data": {"seq_length": 64},
        "train": {"micro_batch_size": 1, "global_batch_size": 16},
        "world_size": 8,
    }
    tree["model"]["num_experts"] = 4
    estimates = []
    for size in (1, 2):
        config = build(PlanConfig, ("test", {**tree, "parallel": {name: size}}))
        planner = Planner(config, resolve_shape(config))
        estimates.append(planner.estimate(planner.given()))
    one, two = estimates
    with_its_data = dataclasses.replace(
        two.layout, data=one.layout.data, num_micro_batches=one.layout.num_micro_batches
    )
    assert with_its_data != one.layout, "Layout has no such field"
    assert (one.memory, one.communication) != (two.memory, two.communication)


# Megatron-LM's README, MCore r0.8 on H100: heads, hidden size, layers, TP, PP, GPUs, global batch, MFU in %.
PUBLISHED = {
    "1.7B": (16, 2048, 24, 1, 1, 48, 192, 41.3),
    "7.1B": (32, 4096, 30, 2, 1, 96, 192, 47.1),
    "16B": (48, 6144, 32, 4, 1, 192, 192, 49.5),
    "32B": (56, 7168, 48, 8, 1, 384, 192, 46.5),
    "70B": (64, 8192, 84, 8, 2, 768, 384, 42.4),
    "119B": (80, 10240, 92, 8, 4, 1536, 768, 42.5),
    "177B": (96, 12288, 96, 8, 6, 2304, 1152, 43.8),
    "314B": (128, 16384, 96, 8, 8, 3072, 1536, 48.0),
    "462B": (144, 18432, 112, 8, 16, 6144, 3072, 46.5),
}


def estimated(
    heads,
    hidden,
    layers,
    tensor,
    stages,
    gpus,
    batch,
    *,
    seq_length=4096,
    vocab_size=131072,
    gpu="H100",
    granularity=None,
    virtual=1,
):
    tree = {
        "model": {
            "num_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "vocab_size": vocab_size,
        },
        "data": {"seq_length": seq_length},
        "train": {"global_batch_size": batch},
        "precision": {"bf16": True},
        "world_size": gpus,
        "gpu": gpu,
    }
    config = build(PlanConfig, ("test", tree))
    planner, data = Planner(config, resolve_shape(config)), gpus // (tensor * stages)
    return planner, planner.estimate(
        Layout(tensor, 1, 1, stages, data, tensor > 1, "optimizer", 1, batch // data, granularity, virtual)
    )


def test_the_estimated_mfu_is_near_megatrons_published_mfu():
    errors = []
    for *shape, measured in PUBLISHED.values():
        layers, stages = shape[2], shape[4]
        _, estimate = estimated(
            *shape, virtual=1 if stages == 1 else next(v for v in (6, 5, 4, 7) if layers // stages >= v)
        )
        errors.append(100 * estimate.mfu / measured - 1)
    assert max(map(abs, errors)) < 0.22
    assert (sum(e * e for e in errors) / len(errors)) ** 0.5 < 0.12


def test_gpt3_on_a_thousand_a100_is_near_megatrons_32_seconds():
    """1,536 samples in 32 s are 103 TFLOP/s of the model. Megatron-LM's README says 138, 44 % of the peak: it
    counts recomputation too.
    """
    planner, estimate = estimated(
        96, 12288, 96, 8, 16, 1024, 1536, seq_length=2048, vocab_size=51200, gpu="A100", granularity="full"
    )
    assert planner.total_parameters == pytest.approx(174.6e9, rel=1e-3)
    assert estimate.bubble == pytest.approx(15 / 207)
    assert estimate.seconds == pytest.approx(32, rel=0.15)
    assert estimate.mfu == pytest.approx(0.44 * 3 / 4, rel=0.17)


def test_a_mixed_precision_step_takes_megatrons_bytes_per_parameter_and_the_divided_gradients():
    """Megatron-LM's README says 6 + 12 / d. mt keeps 4 / d more: each rank's float32 sums of gradients."""
    tree = {
        "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128},
        "train": {"micro_batch_size": 1, "global_batch_size": 32},
        "precision": {"bf16": True},
    }
    for gpus in (2, 8):
        config = build(PlanConfig, ("test", tree | {"world_size": gpus}))
        planner = Planner(config, resolve_shape(config))
        estimate = planner.estimate(planner.given())
        assert estimate.memory - estimate.activations == pytest.approx(
            planner.total_parameters * (6 + 16 / gpus)
        )


@pytest.mark.parametrize(
    ("costs", "stages"),
    [([1, 1, 1, 1, 3], 2), ([5, 1, 1, 1, 1, 4], 3), ([1] * 7, 4), ([2, 9, 2, 2], 3), ([3.5], 1)],
)
def test_the_largest_cost_of_a_stage_is_the_least_of_all_divisions(costs, stages):
    ends = divide(costs, stages)
    largest_cost = lambda ends: max(sum(costs[a:b]) for a, b in zip([0, *ends], ends))
    every = [[*cut, len(costs)] for cut in itertools.combinations(range(1, len(costs)), stages - 1)]
    assert len(ends) == stages
    assert ends == sorted(set(ends))
    assert ends[-1] == len(costs)
    assert largest_cost(ends) == min(map(largest_cost, every))


@pytest.mark.parametrize(
    ("columns", "missing"), [(200, set()), (120, {"weights"}), (80, {"weights", "bubble", "EP"})]
)
def test_the_table_fits_into_the_terminal_without_some_of_its_columns(monkeypatch, columns, missing):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    config = configure(
        PlanConfig, [("flags", {"world_size": 16, "global_batch_size": 64})], preset="llama3-8b"
    )
    lines = plan(config)["text"].splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["TP"])
    table = lines[start : lines.index("", start)]
    assert all(len(line) < columns for line in table)
    heads = table[0].split()
    assert {"TP", "PP", "CP", "GiB", "fits", "MFU", "hours"} <= {*heads}
    assert {"weights", "bubble", "EP"} - {*heads} == missing
    assert table[2].strip() == "(this configuration)"


def test_layouts_that_fit_come_first_and_a_message_says_if_none_fits(capsys):
    arguments = [
        "--preset",
        "gpt-1.3b",
        "--vocab-size",
        "50257",
        "--world-size",
        "16",
        "--global-batch-size",
        "64",
    ]
    found = cli.call(("plan",), arguments)
    seconds = [layout["seconds"] for layout in found["layouts"]]
    assert seconds == sorted(seconds)
    assert all(layout["fits"] for layout in found["layouts"])
    assert found["fitting"] > 12
    assert found["given"]["layout"]["data"] == 16
    json.dumps(found)
    none = cli.call(("plan",), [*arguments, "--gpu-memory-gib", "1"])
    assert "none of" in none["text"]
    assert none["fitting"] == 0
    assert not any(layout["fits"] for layout in none["layouts"])


@pytest.mark.parametrize(
    ("length", "tokens"),
    [
        (["--train-tokens", "1e9"], 1e9),
        (["--train-iters", "5000"], 5000 * 8 * 1024),
        (["--train-samples", "80000"], 80000 * 1024),
        ([], 20 * 354.9e6),  # parameters of GPT-2 medium
    ],
)
def test_the_hours_of_a_run_are_its_tokens_by_the_rate_of_all_devices(length, tokens):
    common = ["--preset", "gpt-345m", "--vocab-size", "50257", "--bf16", "--micro-batch-size", "1"]
    for gpus in (1, 8):
        found = cli.call(("plan",), [*common, "--world-size", str(gpus), *length])
        assert found["tokens"] == pytest.approx(tokens, rel=1e-3)
        for estimate in (found["given"], *found["layouts"]):
            rate = gpus * estimate["tokens_per_second"]
            assert estimate["hours"] == pytest.approx(found["tokens"] / rate / 3600)
        assert f"({found['given']['hours']:.3g} hours)" in found["text"]
        assert "Times are estimates" in found["text"]
    assert ("20 for each parameter" in found["text"]) == (not length)


# Short runs on one core of an EPYC (AVX2): layers, hidden size, heads, sequence, micro-batch, vocabulary,
# CPU seconds of a step (docs/training.md), and TFLOP/s of a product at that time.
CPU_RUNS = {
    "128": (4, 128, 4, 128, 8, 512, 0.181, 0.0760),
    "256": (4, 256, 4, 256, 8, 512, 0.983, 0.0737),
    "512": (8, 512, 8, 512, 2, 8192, 3.854, 0.0712),
    "768": (12, 768, 12, 512, 1, 50257, 8.165, 0.0728),
}


@pytest.mark.parametrize("width", CPU_RUNS)
def test_the_time_on_processors_is_near_that_of_short_runs(width):
    layers, hidden, heads, seq_length, micro, vocab_size, seconds, peak = CPU_RUNS[width]
    llama = {"position_embedding_type": "rope", "normalization": "RMSNorm", "activation": "swiglu"}
    shape = {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    tree = {
        "model": {
            **shape,
            "vocab_size": vocab_size,
            **(llama | {"add_bias_linear": False} if hidden < 768 else {}),
        },
        "data": {"seq_length": seq_length},
        "train": {"micro_batch_size": micro},
        "gpu": "cpu",
        "peak_tflops": peak,
    }
    config = build(PlanConfig, ("test", tree))
    planner = Planner(config, resolve_shape(config))
    assert planner.estimate(planner.given()).seconds == pytest.approx(seconds, rel=0.08)


def test_a_plan_for_the_processors_measures_them():
    found = cli.call(("plan",), ["--preset", "tiny", "--vocab-size", "512", "--gpu", "cpu"])
    assert found["peak_tflops"] > 1e-4
    assert found["devices"] == 1
    assert "of this machine" in found["text"]
    assert "just now" in found["text"]


def test_a_plan_for_one_device_shows_no_layout_that_is_slower_and_needs_as_much():
    common = ["--preset", "tiny", "--vocab-size", "512", "--gpu", "CPU", "--peak-tflops", "1"]
    found = cli.call(("plan",), common)
    memory = [layout["memory"] for layout in found["layouts"]]
    seconds = [layout["seconds"] for layout in found["layouts"]]
    assert 1 < len(memory) < found["fitting"]
    assert all(later < 0.9 * earlier for earlier, later in itertools.pairwise(memory))
    assert seconds == sorted(seconds)
    assert "sharding" not in found["text"]
    assert "slower ones that need less memory" in found["text"]


def test_a_plan_says_what_each_source_of_the_data_gives(tmp_path):
    for name, documents in (("a", 3), ("b", 9)):
        writer = IndexedWriter(tmp_path / name, np.uint16, tmp_path / f"{name}.parts")
        for _ in range(documents):
            writer.add(np.zeros(1000, np.uint16), [1000], [1])
        writer.finish()
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    common = ["--preset", "tiny", "--vocab-size", "512", "--gpu", "cpu", "--peak-tflops", "1"]
    common += ["--train-tokens", "1024000", "--split", "1"]

    def told(*paths):
        return cli.call(("plan",), [*common, "--data-path", *paths])["text"]

    assert "data    3,000 tokens to train on: 341 epochs" in told(a)
    both = told(a, b)  # in proportion to their sizes
    assert "12,000 tokens to train on in 2 sources" in both
    assert f"75.0% of the run, 85.3 epochs: {b}" in both
    weighted = told("0.5", a, "0.5", b)
    assert f"50.0% of the run, 171 epochs: {a}" in weighted
    assert f"50.0% of the run, 56.9 epochs: {b}" in weighted
    assert "c.idx is not there yet, so the data is not counted" in told(a, str(tmp_path / "c"))


@pytest.mark.parametrize("name", ["h100", "H100"])
def test_the_kind_of_gpu_may_be_in_lower_case(name):
    found = cli.call(
        ("plan",), ["--preset", "gpt-345m", "--vocab-size", "9", "--world-size", "1", "--gpu", name]
    )
    assert found["device"] == "H100"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "gpt-345m", "--world-size", "8"],
            "model.vocab_size is not known; give --vocab-size, or the tokenizer",
        ),
        (
            ["--preset", "gpt-345m", "--vocab-size", "9", "--world-size", "8", "--dry-run"],
            "dry_run is for `mt train`; a plan runs nothing",
        ),
        (
            [
                "--preset",
                "gpt-345m",
                "--vocab-size",
                "9",
                "--world-size",
                "8",
                "--global-batch-size",
                "32",
                "--pipeline-stages",
                "3",
            ],
            "no layout of 8 GPUs divides pipeline_stages = .3., the model's 24 blocks and a global batch of",
        ),
        (
            ["--preset", "gpt-345m", "--vocab-size", "9"],
            "how many GPUs is the run for? give --world-size N, or --gpu cpu",
        ),
        (
            ["--preset", "gpt-345m", "--vocab-size", "9", "--gpu", "cpu", "--world-size", "2"],
            "world_size = 2: the plan of gpu = cpu is for one process with all processors; leave it out",
        ),
        (
            [
                *("--preset", "gpt-345m", "--vocab-size", "9", "--world-size", "1"),
                *("--train-tokens", "1e9", "--train-iters", "9"),
            ],
            "the run's length must be given once: --train-tokens, --train-iters or --train-samples",
        ),
        (
            ["--preset", "gpt-345m", "--vocab-size", "9", "--world-size", "1", "--train-tokens", "0"],
            "train_tokens = 0.0 must be above 0",
        ),
        (
            ["--preset", "gpt-345m", "--vocab-size", "9", "--world-size", "8", "--gpu", "H1000"],
            "gpu = H1000 is not known; did you mean H100?",
        ),
        (
            [
                "--preset",
                "gpt-345m",
                "--vocab-size",
                "9",
                "--world-size",
                "8",
                "--tensor-model-parallel-size",
                "3",
            ],
            "8 processes cannot be divided into replicas",
        ),
        (
            ["--preset", "gpt-345m", "--vocab-size", "9", "--world-size", "8", "--global-batch-size", "33"],
            (
                "train.global_batch_size = 33 is not a multiple of train.micro_batch_size = 4 x 8"
                " data-parallel processes = 32; use 64"
            ),
        ),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(UserError, match="^.*" + message.replace("?", r"\?")):
        cli.call(("plan",), arguments)


def test_the_given_layout_is_estimated_with_its_pipeline():
    tree = {
        "model": {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128},
        "train": {"micro_batch_size": 1, "global_batch_size": 32},
        "world_size": 8,
    }
    parallel = {"pipeline_model_parallel_size": 4}
    for changes, waiting in (
        ({}, 3),
        ({"num_layers_per_virtual_pipeline_stage": 1}, 1.5),
        ({"pipeline_schedule": "zero-bubble"}, 1),
    ):
        config = build(PlanConfig, ("test", tree | {"parallel": parallel | changes}))
        planner = Planner(config, resolve_shape(config))
        assert planner.estimate(planner.given()).bubble == pytest.approx(waiting / (16 + waiting))


def test_a_given_division_of_blocks_is_estimated():
    tree = {
        "model": {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128},
        "train": {"micro_batch_size": 1, "global_batch_size": 8},
        "world_size": 2,
    }
    found = {}
    for layout, virtual in (("ttt|t", 1), ("tt|tt", 1), ("t|t|t|t", 2)):
        parallel = {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": layout}
        config = build(PlanConfig, ("test", tree | {"parallel": parallel}))
        planner = Planner(config, resolve_shape(config))
        assert planner.given().virtual == virtual
        found[layout] = planner.estimate(planner.given()).parameters
    assert found["ttt|t"] > 1.2 * found["tt|tt"] == 1.2 * found["t|t|t|t"]


def test_the_gpt3_example_passes_a_dry_run_and_fits():
    example = str(Path(__file__).parents[2] / "examples/gpt3_175b.yaml")
    found = cli.call(
        ("train",), ["--config", example, "--dry-run", "--world-size", "1024", "--num-layers", "16"]
    )
    assert (found["tp"], found["pp"], found["dp"], found["micro_batches"]) == (8, 16, 8, 192)
    planned = cli.call(("plan",), ["--config", example, "--world-size", "1024", "--gpu", "A100"])
    assert planned["parameters"] == pytest.approx(174.6e9, rel=1e-3)
    assert planned["given"]["fits"]


# Scripts in place of Slurm's commands and mt. The script for mt fails before its attempt LASTS_FROM; then it
# runs until ENDS is set or SIGTERM comes.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> "$RECORD"; echo here',
    "srun": 'shift; "$@" & trap "kill -TERM $!" TERM; wait $!; wait $!',
    "mt": (
        'echo "mt $*" >> "$RECORD"; [ -n "$MISTAKE" ] && echo 2 > "$FINAL_EXIT_CODE"; [ "$(grep -c ^mt'
        ' "$RECORD")" -lt "$LASTS_FROM" ] && exit 1; trap "echo saved >> $RECORD; exit 143" TERM; echo'
        ' running >> "$RECORD"; for i in $(seq 200); do sleep 0.02; [ -n "$ENDS" ] && exit 0; done'
    ),
}


@pytest.fixture
def job(tmp_path):
    """start(NAME=VALUE ...) -> (the process of the batch script, the file that lists its commands)"""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    record = tmp_path / "record"
    script = Path(__file__).parents[2] / "examples/slurm/train.sbatch"
    base = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECORD": str(record),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "1",
        "ENDS": "",
        "MISTAKE": "",
        "LASTS_FROM": "1",
    }
    return lambda **values: (
        subprocess.Popen(
            ["bash", str(script), "run.yaml", "--lr", "1"],
            env=base | values,
            stdout=subprocess.DEVNULL,
            cwd=tmp_path,
        ),
        record,
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_slurm_job_saves_and_is_requeued_at_a_signal(job, number):
    process, record = job()
    while not record.exists() or "running" not in record.read_text():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait() == 0
    lines = record.read_text().splitlines()
    assert lines[-2:] == ["saved", "scontrol requeue 7"]
    assert lines[1].endswith("--rdzv-endpoint here:29500 train --config run.yaml --lr 1")


def test_a_slurm_job_retries_a_failure_and_ends_when_training_ends(job):
    process, record = job(LASTS_FROM="3", ENDS="yes")
    assert process.wait() == 0
    assert sum(line.startswith("mt ") for line in record.read_text().splitlines()) == 3
    assert "requeue" not in record.read_text()


def test_a_slurm_job_does_not_retry_a_users_mistake(job, tmp_path):
    process, record = job(LASTS_FROM="9", MISTAKE="yes")
    assert process.wait() == 2
    assert sum(line.startswith("mt ") for line in record.read_text().splitlines()) == 1
    assert not list(tmp_path.glob(".mt-final*"))


def test_a_slurm_job_gives_up_with_the_exit_code_of_its_last_attempt(job):
    process, record = job(LASTS_FROM="9", RETRIES="1")
    assert process.wait() == 1
    assert sum(line.startswith("mt ") for line in record.read_text().splitlines()) == 2


@pytest.mark.parametrize(("stages", "virtual"), [(2, 1), (4, 1), (4, 2), (8, 3)])
def test_micro_batches_in_flight_are_those_of_megatrons_memory_report(stages, virtual):
    planner = object.__new__(Planner)
    layout = Layout(
        1, 1, 1, stages, 1, False, "optimizer", 1, num_micro_batches=64, granularity=None, virtual=virtual
    )
    in_flight = lambda stage, **changes: planner._in_flight(dataclasses.replace(layout, **changes), stage)
    # megatron/training/theoretical_memory_usage.py: 1F1B's micro-batches times the penalty of interleaving
    penalty = 1 + (stages - 1) / (stages * virtual) if virtual > 1 else 1
    assert in_flight(0) == pytest.approx(stages * penalty)
    assert in_flight(stages - 1) == pytest.approx(stages * penalty - (stages - 1))
    assert in_flight(0, num_micro_batches=2) == 2
    assert in_flight(0, schedule="gpipe") == 64
    assert in_flight(stages - 1, schedule="zero-bubble", virtual=1) == stages
