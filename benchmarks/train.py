"""Compares training steps of `mt train` with its public peers: same shape, batch, dtype and optimizer.

    python benchmarks/train.py                                    # float32 and bfloat16
    python benchmarks/train.py --dtypes bfloat16 --rounds 6 --litgpt-python ENV/bin/python

Each contestant is one process for the whole run. It makes warm-up steps, and then a few steps at a time in
turn with the others. Medians over the rounds are printed. CPU is the process's user and system time, which
other work on the machine disturbs less than wall; ratios are of CPU. Peak memory is that of the process. The
data are random tokens.

- mt: loop.Trainer as `mt train` runs it, with data from .bin/.idx. mt-compiled: with --compile always.
- trainer: transformers.Trainer with GPT2LMHeadModel, sdpa, its default AdamW.
- litgpt: litgpt's GPT (GPT-2's shape, its rotary positions) in a Fabric loop with fused AdamW.
- nano: a plain loop like nanoGPT's: full logits, torch's cross-entropy, AdamW.
- products: a bound, not a contestant. The matrix products of a step alone, without attention's, by the
  library that mt uses for them. A peer's ratio to it is the largest possible speed-up over that peer here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LAYERS, HIDDEN, HEADS, VOCABULARY, LENGTH, BATCH = 4, 768, 12, 50304, 512, 4
TOKENS = BATCH * LENGTH


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps of a contestant in one turn")
    parser.add_argument(
        "--contestants", nargs="*", default=["mt", "mt-compiled", "trainer", "litgpt", "nano", "products"]
    )
    parser.add_argument(
        "--litgpt-python", default=sys.executable, help="interpreter of an environment with litgpt"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker, arguments.threads)
        return
    for dtype in arguments.dtypes:
        print(
            f"\n### {dtype}: {LAYERS} layers of {HIDDEN}, vocabulary {VOCABULARY}, {BATCH} x {LENGTH} tokens"
            f" a step, {arguments.threads} threads\n"
        )
        compare(arguments, dtype)


def compare(arguments, dtype: str) -> None:
    workers: dict[str, subprocess.Popen] = {}
    for name in arguments.contestants:
        python = arguments.litgpt_python if name == "litgpt" else sys.executable
        # The same for all, as `mt` sets it: threads that spin while they wait would add CPU seconds.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(arguments.threads),
            "GOMP_SPINCOUNT": "20000",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if name.startswith(("mt", "products")):
            environment["THP_MEM_ALLOC_ENABLE"] = "1"  # as `mt` sets it
        command = [python, __file__, "--worker", name, dtype, "--threads", str(arguments.threads)]
        workers[name] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    results: dict[str, list[dict]] = {}
    for name, worker in workers.items():
        warm = ask(worker, 3)
        if warm is None:
            print(
                f"{name} is left out:"
                f" {(worker.stderr.read().strip().splitlines() or ['no reason given'])[-1]}\n"
            )
        else:
            results[name] = []
    for _ in range(arguments.rounds):
        for name, answers in results.items():
            answers.append(ask(workers[name], arguments.steps))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    if results:
        table(results, arguments.steps)


def ask(worker: subprocess.Popen, steps: int) -> dict | None:
    """The measurements of a worker's steps, or None if the worker has ended."""
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(f"{steps}\n")
        worker.stdin.flush()
    line = worker.stdout.readline()
    return json.loads(line) if line.strip() else None


def table(results: dict[str, list[dict]], steps: int) -> None:
    middle = lambda answers, key: statistics.median(a[key] for a in answers)
    own = min((middle(a, "cpu") for name, a in results.items() if name.startswith("mt")), default=None)
    print(
        "| contestant | CPU s/step (min-max) | wall s/step | tokens/s | peak MiB | data wait | loss | CPU /"
        " best of mt |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, answers in results.items():
        cpu, wall = middle(answers, "cpu") / steps, middle(answers, "wall") / steps
        span = f"{min(a['cpu'] for a in answers) / steps:.2f}-{max(a['cpu'] for a in answers) / steps:.2f}"
        wait = f"{middle(answers, 'wait') / middle(answers, 'wall'):.2%}" if "wait" in answers[0] else "-"
        ratio = f"{cpu * steps / own:.2f}" if own else "-"
        print(
            f"| {name} | {cpu:.2f} ({span}) | {wall:.2f} | {TOKENS / wall:,.0f} |"
            f" {answers[-1]['rss'] / 2**20:,.0f} | {wait} | {answers[-1]['loss']:.4f} | {ratio} |"
        )


def work(name: str, dtype: str, threads: int) -> None:
    """Reads numbers of steps from standard input, makes the steps, and prints what they took."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    import torch

    torch.set_num_threads(threads)
    setup = {
        "mt": own,
        "mt-compiled": own_compiled,
        "trainer": trainer,
        "litgpt": litgpt,
        "nano": nano,
        "products": products,
    }[name]
    steps = setup(dtype)
    for line in sys.stdin:
        cpu, wall, wait = time.process_time(), time.perf_counter(), 0.0
        for _ in range(int(line)):
            loss, waited = next(steps)
            wait += waited or 0.0
        answer = {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "loss": loss,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if waited is not None:
            answer["wait"] = wait
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # some contestants leave threads that would keep the process alive


Steps = Iterator[tuple[float, float | None]]  # (loss, seconds that the step waited for data or None)


def own_compiled(dtype: str) -> Steps:
    return own(dtype, "always")


def own(dtype: str, compile: str = "never") -> Steps:
    import dataclasses

    import numpy as np

    from mt.core.config import build
    from mt.indexed.format import IndexedWriter
    from mt.tokenizer.tokenizer import load
    from mt.train.config import TrainConfig, load_datasets, training_schedule
    from mt.train.loop import Trainer
    from mt.train.model.config import resolve
    from mt.train.parallel.mesh import launch

    folder = tempfile.TemporaryDirectory()
    prefix = Path(folder.name) / "tokens"
    writer = IndexedWriter(prefix, np.uint16, folder.name)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 2_000_000).astype(np.uint16)
    writer.add(tokens, np.full(1000, 2000, np.int32), np.ones(1000, np.int64))
    writer.finish()
    config = build(
        TrainConfig,
        (
            "benchmark",
            {
                "model": {
                    "num_layers": LAYERS,
                    "hidden_size": HIDDEN,
                    "num_attention_heads": HEADS,
                    "activation": "gelu_tanh",
                },
                "data": {"data_path": [str(prefix)], "seq_length": LENGTH, "split": "100,0,0"},
                "tokenizer": {"tokenizer_type": "NullTokenizer", "tokenizer_vocab_size": VOCABULARY},
                "optimizer": {"lr": 1e-4, "lr_decay_style": "constant"},
                "precision": {"bf16": dtype == "bfloat16"},
                "train": {
                    "micro_batch_size": BATCH,
                    "train_iters": 100_000,
                    "eval_iters": 0,
                    "compile": compile,
                },
                "checkpoint": {"save": folder.name},
            },
        ),
    )
    with launch(config.parallel) as mesh:
        schedule, tokenizer = training_schedule(config, mesh), load(config.tokenizer)
        data, _ = load_datasets(config, schedule, tokenizer, mesh)
        shape = resolve(config.model, vocab_size=VOCABULARY, seq_length=LENGTH)
        run = Trainer(dataclasses.replace(config, model=shape), schedule, mesh, tokenizer, data, None, None)
        ready = time.perf_counter()
        for batch in run.batches.over(schedule.batch_size.steps(schedule.total_samples)):
            waited = time.perf_counter() - ready
            run.step(batch)
            yield run.progress.pending_losses[-1], waited
            ready = time.perf_counter()


def trainer(dtype: str) -> Steps:
    """Runs its loop in a thread that waits before every step."""
    import threading

    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(0, VOCABULARY, (4000, LENGTH))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    go, done, losses = threading.Semaphore(0), threading.Semaphore(0), []

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            go.acquire()

        def on_log(self, *_, logs=None, **__):
            if "loss" in logs:
                losses.append(logs["loss"])
                done.release()

    settings = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=10_000,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.01,
        bf16=dtype == "bfloat16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    loop = transformers.Trainer(model=model, args=settings, train_dataset=data, callbacks=[Turns()])
    threading.Thread(target=loop.train, daemon=True).start()
    while True:
        go.release()
        done.acquire()
        yield losses[-1], None


def litgpt(dtype: str) -> Steps:
    import lightning
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    fabric = lightning.Fabric(
        accelerator="cpu", devices=1, precision="bf16-mixed" if dtype == "bfloat16" else "32-true"
    )
    config = Config(
        block_size=LENGTH,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=HIDDEN,
        bias=True,
        rotary_percentage=1.0,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
        intermediate_size=4 * HIDDEN,
        parallel_residual=False,
    )
    torch.manual_seed(0)
    model = GPT(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model.lm_head.weight = model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    model, optimizer = fabric.setup(model, optimizer)

    def step(tokens) -> float:
        loss = chunked_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], chunk_size=0)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return with_random_tokens(step)


def nano(dtype: str) -> Steps:
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step(tokens) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return with_random_tokens(step)


def products(dtype: str) -> Steps:
    import torch

    from mt.train.compile import keep_freed_memory
    from mt.train.precision import use_fast_float32_matmul

    use_fast_float32_matmul()
    keep_freed_memory()
    kind = getattr(torch, dtype)
    blocks = [(3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (4 * HIDDEN, HIDDEN), (HIDDEN, 4 * HIDDEN)] * LAYERS
    rows = {
        out: torch.randn(TOKENS, out).to(kind)
        for out in {size for shape in [*blocks, (VOCABULARY, HIDDEN)] for size in shape}
    }
    weights = {shape: torch.randn(shape).to(kind) for shape in [*blocks, (VOCABULARY, HIDDEN)]}
    # The output layer in pieces in float32, which oneDNN multiplies faster; other layers whole.
    piece, part = (512, 4096) if kind == torch.float32 else (TOKENS, VOCABULARY)
    while True:
        for shape in blocks:
            x, gradient, weight = rows[shape[1]], rows[shape[0]], weights[shape]
            torch.nn.functional.linear(x, weight), gradient @ weight, gradient.T @ x
        weight, sums = weights[VOCABULARY, HIDDEN], torch.zeros(VOCABULARY, HIDDEN, dtype=kind)
        for first in range(0, TOKENS, piece):
            x, gradient = rows[HIDDEN][first : first + piece], rows[VOCABULARY][first : first + piece]
            for begin in range(0, VOCABULARY, part):
                some = slice(begin, begin + part)
                (
                    x @ weight[some].T,
                    gradient[:, some] @ weight[some],
                    sums[some].addmm_(gradient[:, some].T, x),
                )
        yield 0.0, None


def with_random_tokens(step: Callable) -> Steps:
    import torch

    generator = torch.Generator().manual_seed(1)
    while True:
        yield step(torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)), None


if __name__ == "__main__":
    main()
