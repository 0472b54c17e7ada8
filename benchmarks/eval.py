"""Compares `mt eval`, `mt generate` and `mt serve` with their public peers, on models of the same weights.

    python benchmarks/eval.py                              # all parts
    python benchmarks/eval.py --only generate --repeat 5

Contestants run in turn in one process; medians are printed as Markdown tables. CPU is its user and system
time, which other work on the machine disturbs less than wall. The model is GPT-2 small (124 M parameters)
with random weights.

- score: whole commands on the same Hugging Face directory and files. `mt eval` against lm-eval's hf backend;
  4 layers of width 256, GPT-2's vocabulary.
- generate: greedy, 8 prompts of 16 to 128 tokens, 64 new tokens each; transformers pads the prompts on the
  left. `same` counts tokens that agree with transformers in float32; in bfloat16 an untrained model often has
  near ties.
- serve: one request after the other, then 64 clients at once, over HTTP; clients run in their own process.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as `mt` sets it, for all the same

from indexed import table

LENGTHS, NEW_TOKENS = range(16, 129, 16), 64
CLIENTS, CLIENT_TOKENS = 64, 32
PASSAGES, SCORED_CHARACTERS = 5153, 200_000  # 5,153 passages are LAMBADA's test set
DATA = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
TASKS = {
    "lambloc": "task: lambloc\noutput_type: loglikelihood\n"
    + DATA
    + """\
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""",
    "wikiloc": "task: wikiloc\noutput_type: loglikelihood_rolling\n"
    + DATA
    + """\
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list:
  - metric: word_perplexity
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        help="folder of gpt2/vocab.json, gpt2/merges.txt and wikitext/valid.txt",
    )
    parser.add_argument("--clients", nargs=3, metavar=("URL", "REQUESTS", "AT_ONCE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        clients(*arguments.clients)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    for part in arguments.only:
        print(f"\n### {part}, {arguments.threads} threads\n")
        PARTS[part](arguments)


def seconds(work: Callable[[], object]) -> tuple[float, float, object]:
    """(wall, CPU of this process, what the work returned)"""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    wall, cpu = time.monotonic(), used()
    result = work()
    return time.monotonic() - wall, used() - cpu, result


def in_turns(
    contestants: dict[str, Callable[[], object]], repeat: int
) -> dict[str, tuple[float, float, object]]:
    """Medians of wall and CPU, and the last result, of each; a first round only warms up."""
    rounds = [{name: seconds(work) for name, work in contestants.items()} for _ in range(repeat + 1)][1:]
    median = lambda name, column: statistics.median(one[name][column] for one in rounds)
    return {name: (median(name, 0), median(name, 1), rounds[-1][name][2]) for name in contestants}


def gpt2():
    """transformers' GPT-2 small, and a function that makes mt's with the same weights."""
    import torch
    import transformers

    from mt.train.checkpoint.architectures import weights_from_hf
    from mt.train.checkpoint.hf_settings import config_from_hf
    from mt.train.model.family import build_model

    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(initializer_range=0.05, bos_token_id=None, eos_token_id=None)
    ).eval()
    weights = theirs.state_dict()

    def ours():
        config = config_from_hf(theirs.config.to_dict(), "gpt2")
        model = build_model(config)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        model.load_state_dict(
            dict(weights_from_hf("gpt2", shapes, config, weights, weights.__getitem__, "gpt2"))
        )
        return model.eval().requires_grad_(False)

    return theirs, ours


class NoTokenizer:
    """A tokenizer with arbitrary texts: only ids matter here."""

    eod, vocab_size = None, 50257

    def encode(self, text):
        return [1 + ord(letter) % 256 for letter in text]

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


def generate(arguments) -> None:
    import copy

    import torch

    from mt.eval.generation.sampling import Sampling
    from mt.eval.lm import LanguageModel
    from mt.train.prepacked_weights import prepare_for_inference

    theirs, ours = gpt2()
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 50257, (length,), generator=random).tolist() for length in LENGTHS]
    longest = max(LENGTHS)
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])

    def transformers_with(model):
        @torch.no_grad()
        def work():
            return model.generate(
                padded, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
            )[:, longest:].tolist()

        return work

    def mt_with(bf16, prepacked=True):
        model = ours()
        if prepacked:
            prepare_for_inference(model, bf16=bf16)
        language_model = LanguageModel(model, NoTokenizer(), 1024, batch_size=len(prompts))
        return lambda: [
            c.ids for c in language_model.generate(prompts, Sampling(max_new_tokens=NEW_TOKENS, greedy=True))
        ]

    contestants = {
        "transformers, float32": transformers_with(theirs),
        "transformers, bfloat16": transformers_with(copy.deepcopy(theirs).bfloat16()),
        "mt, float32": mt_with(False),
        "mt, float32, weights not prepacked": mt_with(False, prepacked=False),
        "mt, bfloat16": mt_with(True),
    }
    measured = in_turns(contestants, arguments.repeat)
    base = measured["transformers, float32"]
    total = len(prompts) * NEW_TOKENS
    rows = []
    for name, (wall, cpu, tokens) in measured.items():
        same = sum(a == b for mine, true in zip(tokens, base[2]) for a, b in zip(mine, true))
        rows.append(
            (
                name,
                f"{wall:.2f}",
                f"{cpu:.2f}",
                f"{total / cpu:.0f}",
                f"{base[1] / cpu:.2f}",
                f"{same} of {total}",
            )
        )
    table(
        ("contestant", "wall s", "CPU s", "tokens/CPU-s", "times transformers float32, by CPU", "same"), rows
    )


def serve(arguments) -> None:
    import torch

    from mt.eval.lm import LanguageModel
    from mt.eval.server.app import ServeConfig, assemble, listen
    from mt.train.prepacked_weights import prepare_for_inference

    model = LanguageModel(prepare_for_inference(gpt2()[1]()), NoTokenizer(), 1024)
    engine, _, server = assemble(model, "gpt2", ServeConfig(load="gpt2", port=0))
    listener = listen("127.0.0.1", 0)

    def work() -> None:
        torch.set_num_threads(arguments.threads)
        engine.run()

    threads = [threading.Thread(target=server.run, args=([listener],)), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def ask(requests: int, at_once: int):
        def run() -> dict:
            done = subprocess.run(
                [sys.executable, __file__, "--clients", url, str(requests), str(at_once)],
                capture_output=True,
                text=True,
                check=True,
            )
            return json.loads(done.stdout)

        return run

    contestants = {"one after the other": ask(8, 1), f"{CLIENTS} clients at once": ask(CLIENTS, CLIENTS)}
    measured = in_turns(contestants, arguments.repeat)
    base = measured["one after the other"]
    speed = lambda one: one[2]["tokens"] / one[2]["seconds"]
    per_cpu = lambda one: one[2]["tokens"] / one[1]
    table(
        (
            "load",
            "requests",
            "errors",
            "tokens/s",
            "tokens/CPU-s",
            "median s a request",
            "times one after the other, by wall",
            "by CPU",
        ),
        [
            (
                name,
                str(one[2]["requests"]),
                str(one[2]["errors"]),
                f"{speed(one):.0f}",
                f"{per_cpu(one):.0f}",
                f"{one[2]['latency']:.2f}",
                f"{speed(one) / speed(base):.1f}",
                f"{per_cpu(one) / per_cpu(base):.1f}",
            )
            for name, one in measured.items()
        ],
    )
    server.should_exit = True
    engine.close(0)
    for thread in threads:
        thread.join()


def clients(url: str, requests: str, at_once: str) -> None:
    """Sends requests to a server, and prints counts and latencies as JSON."""
    prompts = [f"client {n} " * (2 + n % 6) for n in range(int(requests))]

    def ask(prompt: str) -> tuple[int, float]:
        body = json.dumps({"prompt": prompt, "max_tokens": CLIENT_TOKENS, "temperature": 0}).encode()
        start = time.monotonic()
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        ) as reply:
            return json.load(reply)["usage"]["completion_tokens"], time.monotonic() - start

    start, errors, answers = time.monotonic(), 0, []
    with concurrent.futures.ThreadPoolExecutor(int(at_once)) as pool:
        for future in [pool.submit(ask, prompt) for prompt in prompts]:
            try:
                answers.append(future.result())
            except OSError:
                errors += 1
    took = time.monotonic() - start
    print(
        json.dumps(
            {
                "requests": len(prompts),
                "errors": errors,
                "tokens": sum(a[0] for a in answers),
                "seconds": took,
                "latency": statistics.median(a[1] for a in answers),
            }
        )
    )


def score(arguments) -> None:
    """Compares `mt eval lambada` and `mt eval harness` with `lm_eval --model hf` as whole commands."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        config = transformers.GPT2Config(n_layer=4, n_embd=256, n_head=4, initializer_range=0.08)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
        files = {
            "vocab": str(arguments.data / "gpt2/vocab.json"),
            "merges": str(arguments.data / "gpt2/merges.txt"),
        }
        transformers.GPT2TokenizerFast(**files).save_pretrained(folder / "model")
        whole = (arguments.data / "wikitext/valid.txt").read_text()
        text, words = whole[:SCORED_CHARACTERS], whole.split()
        passages = [" ".join(words[start : start + 75]) for start in range(0, len(words) - 75, 42)][:PASSAGES]
        for name, key, records in (("lambloc", "text", passages), ("wikiloc", "page", [text])):
            (folder / f"{name}.jsonl").write_text(
                "".join(json.dumps({key: record}) + "\n" for record in records)
            )
            (folder / f"{name}.yaml").write_text(TASKS[name].format(data=folder / f"{name}.jsonl"))
        peer = [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={folder}/model,dtype=float32",
            "--device",
            "cpu",
            "--include_path",
            place,
        ]
        ours = [sys.executable, "-m", "mt", "eval"]
        load = ["--load", f"{folder}/model", "--json"]
        rows = []
        for task, batch, own in (
            (
                "lambloc",
                "8",
                [*ours, "lambada", *load, "--strict-lambada", "--valid-data", f"{folder}/lambloc.jsonl"],
            ),
            ("wikiloc", "1", [*ours, "harness", *load, "--tasks", "wikiloc", "--include-path", place]),
        ):
            commands = {
                f"{task}: mt eval": own,
                f"{task}: lm-eval": [
                    *peer,
                    "--tasks",
                    task,
                    "--batch_size",
                    batch,
                    "--output_path",
                    f"{folder}/out",
                ],
            }
            contestants = {
                name: lambda command=command: child(command, arguments.threads)
                for name, command in commands.items()
            }
            taken = {name: [work() for _ in range(arguments.repeat)] for name, work in contestants.items()}
            cpu = {name: statistics.median(t for t, _ in found) for name, found in taken.items()}
            mine = json.loads(taken[f"{task}: mt eval"][-1][1])["scores"]
            theirs = json.loads(max(folder.glob("out/**/results*.json")).read_text())["results"][task]
            value = mine["perplexity"] if task == "lambloc" else mine["wikiloc"]["word_perplexity"]
            expected = theirs["perplexity,none" if task == "lambloc" else "word_perplexity,none"]
            rows += [
                (name, f"{t:.1f}", f"{cpu[f'{task}: lm-eval'] / t:.1f}", f"{abs(value / expected - 1):.0e}")
                for name, t in cpu.items()
            ]
        table(("command", "CPU s", "times lm-eval", "relative difference of the perplexity"), rows)


def child(command: list[str], threads: int) -> tuple[float, str]:
    """(CPU seconds of a command and its children, what it printed)"""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return used() - before, done.stdout


PARTS = {"score": score, "generate": generate, "serve": serve}

if __name__ == "__main__":
    main()
