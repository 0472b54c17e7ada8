"""Measures training steps of `mt train` on one GPU: tokens/s, model FLOP utilization (MFU), memory.

    python benchmarks/train_gpu.py                                  # all of MODELS, each in its own process
    python benchmarks/train_gpu.py --models llama-8b-width llama-8b-width-fp8 --profile
    python benchmarks/train_gpu.py --smoke                          # two small layers of each, on any machine

A step is one of loop.Trainer as `mt train` makes it: reading from .bin/.idx, compiled blocks, gradient
clipping and AdamW included. The first ten steps (with compilation) are not counted. MFU is relative to the
GPU's dense 16-bit peak (train/model/flops.py: 989 TFLOP/s for H100 and H200), for float8 too. "full" counts
attention without a mask (PaLM, torchtitan, nanotron, nanochat, Megatron-LM's README), "causal" half of it.
Published figures, of several GPUs, counted in full: Megatron-LM 41 to 49 %, nanotron 44 to 47 %, nanochat
50 %, torchtitan 39 %.

The 8B-width model has 16 of Llama's 32 layers, because float32 weights and moments of all 32 would fill the
memory. The mixture has Mixtral's shape (8 experts, 2 a token, F = 3.5 D) at half its width, for the same
reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GPT = {"activation": "gelu_tanh", "vocab_size": 50304}
LLAMA = {
    "activation": "swiglu",
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "num_query_groups": 8,
}
WIDTH_8B = {
    **LLAMA,
    "num_layers": 16,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "ffn_hidden_size": 14336,
    "rotary_base": 500000.0,
    "vocab_size": 128256,
}
MIXTURE = {
    **LLAMA,
    "num_layers": 12,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "ffn_hidden_size": 7168,
    "num_experts": 8,
    "moe_router_topk": 2,
    "moe_aux_loss_coeff": 0.01,
    "vocab_size": 32000,
}
# name: (model, tokens of a sample, samples of a micro-batch, micro-batches of a step, float8 format,
# target MFU)
MODELS = {
    "gpt-350m": (
        {**GPT, "num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16},
        2048,
        16,
        4,
        None,
        0.50,
    ),
    "gpt-1.3b": (
        {**GPT, "num_layers": 24, "hidden_size": 2048, "num_attention_heads": 16},
        2048,
        8,
        4,
        None,
        0.57,
    ),
    "llama-8b-width": (WIDTH_8B, 4096, 2, 4, None, 0.60),
    "llama-8b-width-fp8": (WIDTH_8B, 4096, 2, 4, "hybrid", 0.75),
    "mixtral-shaped": (MIXTURE, 4096, 2, 4, None, 0.45),
}
WARM = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--micro-batch-size", type=int, help="for all models, instead of their own")
    parser.add_argument("--compile", default="always", choices=["always", "never"])
    parser.add_argument(
        "--attention-backend", default="auto", help="instead of the one that mt train chooses"
    )
    parser.add_argument(
        "--fp8-recipe", default="tensorwise", help="recipe of the models in float8; rowwise recipes use e4m3"
    )
    parser.add_argument("--profile", action="store_true", help="print a profile of one more step")
    parser.add_argument(
        "--smoke", action="store_true", help="two layers of an eighth of the width, on any machine"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments)))
        return
    import torch

    if not torch.cuda.is_available() and not arguments.smoke:
        sys.exit("no GPU here: --smoke tries the script without one")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}, compile {arguments.compile}\n")
    print(
        "| model | parameters | a micro-batch | ms/step | tokens/s | MFU, full attention | aimed at | MFU,"
        " causal | peak GiB | data wait | loss |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for model in arguments.models:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", model]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"| {model} | {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:200]} |")
            continue
        *profile, line = done.stdout.strip().splitlines()
        print(row(model, json.loads(line)), flush=True)
        if profile:
            print("\n".join(["", *profile, ""]))


def row(model: str, found: dict) -> str:
    share = lambda value: "-" if value is None else f"{value:.1%}"
    return (
        f"| {model} | {found['parameters'] / 1e6:,.0f} M | {found['micro']} x {found['length']} |"
        f" {1000 * found['seconds']:,.0f} | {found['tokens_per_second']:,.0f} | {share(found['mfu'])} |"
        f" {MODELS[model][5]:.0%} | {share(found['mfu_causal'])} | {found['memory'] / 2**30:.1f} |"
        f" {found['wait']:.2%} | {found['loss']:.3f} |"
    )


def measure(name: str, arguments: argparse.Namespace) -> dict:
    import torch

    from mt.tokenizer.tokenizer import load
    from mt.train.config import load_datasets, training_schedule
    from mt.train.loop import Trainer
    from mt.train.metrics import peak_memory
    from mt.train.model.config import resolve
    from mt.train.model.flops import peak_flops
    from mt.train.model.training_cost import training_flops
    from mt.train.parallel.mesh import launch

    warm, steps = (1, 1) if arguments.smoke else (WARM, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(name, arguments, Path(folder), warm + steps + 2)
        with launch(config.parallel) as mesh:
            wait_for_gpu = torch.cuda.synchronize if mesh.device.type == "cuda" else lambda: None
            schedule, tokenizer = training_schedule(config, mesh), load(config.tokenizer)
            data, _ = load_datasets(config, schedule, tokenizer, mesh)
            shape = resolve(
                config.model, vocab_size=config.model.vocab_size, seq_length=config.data.seq_length
            )
            run = Trainer(
                dataclasses.replace(config, model=shape), schedule, mesh, tokenizer, data, None, None
            )
            batches = iter(run.batches.over(schedule.batch_size.steps(schedule.total_samples)))
            for _ in range(warm):
                run.step(next(batches))
            wait_for_gpu()
            began, waited = time.perf_counter(), 0.0
            for _ in range(steps):
                ready = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - ready
                run.step(batch)
            wait_for_gpu()
            seconds = time.perf_counter() - began
            if arguments.profile:
                profile_step(run, next(batches), mesh.device.type)
            flops = training_flops(shape, config.data.seq_length) * (
                schedule.batch_size.full * steps / seconds
            )
            peak = peak_flops(mesh.device, config.precision.dtype)
            return {
                "parameters": sum(p.numel() for p in run.model.parameters()),
                "micro": config.train.micro_batch_size,
                "length": config.data.seq_length,
                "seconds": seconds / steps,
                "tokens_per_second": schedule.batch_size.full * config.data.seq_length * steps / seconds,
                "mfu": peak and flops.full / peak,
                "mfu_causal": peak and flops.causal / peak,
                "memory": peak_memory(),
                "wait": waited / seconds,
                "loss": run.progress.pending_losses[-1],
            }


def configuration(name: str, arguments: argparse.Namespace, folder: Path, steps: int):
    """The TrainConfig of a run on random tokens, which it writes to the folder."""
    import numpy as np

    from mt.core.config import build
    from mt.indexed.format import IndexedWriter
    from mt.train.config import TrainConfig

    model, length, micro, accumulated, float8, _ = MODELS[name]
    micro = arguments.micro_batch_size or micro
    if arguments.smoke:
        widths = {
            key: model[key] // 8
            for key in ("hidden_size", "ffn_hidden_size", "num_attention_heads")
            if key in model
        }
        groups = {"num_query_groups": 2} if "num_query_groups" in model else {}
        model, length, micro, float8 = (
            {**model, **widths, **groups, "num_layers": 2, "vocab_size": 4096},
            128,
            1,
            None,
        )
    if float8 is not None and arguments.fp8_recipe != "tensorwise":
        float8 = "e4m3"
    vocabulary = model["vocab_size"]
    writer = IndexedWriter(folder / "tokens", np.int32, folder)
    generator = np.random.default_rng(0)
    for _ in range(-(-steps * micro * accumulated * (length + 1) // 1_000_000) + 1):
        writer.add(
            generator.integers(0, vocabulary, 1_000_000).astype(np.int32),
            np.full(500, 2000, np.int32),
            np.ones(500, np.int64),
        )
    writer.finish()
    return build(
        TrainConfig,
        (
            "benchmark",
            {
                "model": {**model, "attention_backend": arguments.attention_backend},
                "data": {"data_path": [str(folder / "tokens")], "seq_length": length, "split": "100,0,0"},
                "tokenizer": {"tokenizer_type": "NullTokenizer", "tokenizer_vocab_size": vocabulary},
                "optimizer": {"lr": 1e-4, "lr_decay_style": "constant"},
                "precision": {"bf16": True, "fp8_format": float8, "fp8_recipe": arguments.fp8_recipe},
                "train": {
                    "micro_batch_size": micro,
                    "global_batch_size": micro * accumulated,
                    "train_iters": steps,
                    "eval_iters": 0,
                    "compile": "never" if arguments.smoke else arguments.compile,
                },
                "checkpoint": {"save": str(folder / "run")},
            },
        ),
    )


def profile_step(run, batch, device: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        run.step(batch)
    print(
        profiled.key_averages().table(
            sort_by=f"self_{device}_time_total", row_limit=20, max_name_column_width=60
        )
    )


if __name__ == "__main__":
    main()
