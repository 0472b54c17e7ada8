"""The commands of mt: where each one is defined, its line of help, and how to import it."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Callable
from typing import Any

from ..core.config import UserError
from ..core.extras import needs_package
from ..core.progress import LINE_SECONDS, activity

Path = tuple[str, ...]  # (group, command) or (command,)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: a function that takes a configuration and returns its summary, a dict.

    The annotation of the function's parameter is the class of its configuration.
    """

    module: str  # within mt
    function: str
    help: str  # one line
    # The output is a text for other programs: it is escaped on a terminal, and nowhere else.
    prints_text: bool = False
    # (module, function) that lays out the summary for a terminal.Screen, and escapes what strangers wrote
    layout: tuple[str, str] | None = None
    # Command lines for the help
    examples: tuple[str, ...] = ()
    # The settings that most people set, which are all that `--help` shows; empty: it shows all settings
    common: tuple[str, ...] = ()


# What most people set of a training run; `mt train --help` shows these settings.
COMMON_TRAINING = (
    "family",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "data_path",
    "valid_data_path",
    "split",
    "seq_length",
    "seed",
    "tokenizer_type",
    "tokenizer_model",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "lr",
    "min_lr",
    "lr_decay_style",
    "lr_warmup_iters",
    "weight_decay",
    "clip_grad",
    "bf16",
    "micro_batch_size",
    "global_batch_size",
    "train_iters",
    "train_samples",
    "eval_interval",
    "save",
    "load",
    "finetune",
    "save_interval",
    "overwrite",
    "dry_run",
)
COMMANDS: dict[Path, Command] = {
    ("demo",): Command(
        "commands.pipeline",
        "demo",
        "run the whole pipeline on text that every Python has; it takes minutes on two cores",
        examples=(
            "mt demo",
            "mt demo --run-dir /tmp/demo",
        ),
    ),
    ("run",): Command(
        "commands.pipeline",
        "run",
        "run the stages of a YAML file, one after another; finished stages are skipped",
        examples=(
            "mt run examples/demo.yaml",
            "mt run my.yaml --until dedup",
        ),
    ),
    ("data", "extract"): Command(
        "dataprep.extract.extract",
        "extract",
        "turn dumps and packages into documents",
        examples=(
            "mt data extract --source warc --input crawl/*.warc.gz --output out/pages",
            "mt data extract --source wikipedia --input enwiki.xml.bz2 --output out/wikipedia",
        ),
    ),
    ("data", "urls"): Command(
        "dataprep.extract.urls",
        "urls",
        "remove the URLs of unwanted sites and files from a list",
        examples=("mt data urls --input urls.txt --output out/urls",),
    ),
    ("data", "clean"): Command(
        "dataprep.filters.clean",
        "clean",
        "repair and filter documents",
        examples=(
            "mt data clean --input my/*.jsonl --output out/clean --preset fineweb",
            "mt data clean --input my --output out/clean --rules fix_text 'length min_chars=512'",
        ),
    ),
    ("data", "classify"): Command(
        "dataprep.filters.classify",
        "classify",
        "score documents with a model or a program of your own, and keep them by their scores",
        examples=(
            (
                "mt data classify --input crawl --output out/best --model out/quality --keep high"
                " --keep-fraction 0.1"
            ),
        ),
    ),
    ("data", "train-classifier"): Command(
        "dataprep.filters.train_classifier",
        "train_classifier",
        "train a classifier of quality (a fastText model) from good and bad documents",
        examples=("mt data train-classifier --good wikipedia --bad crawl --output out/quality",),
    ),
    ("data", "dedup"): Command(
        "dataprep.dedup.dedup",
        "dedup",
        "remove exact and near duplicates",
        examples=(
            "mt data dedup --input out/clean --output out/dedup",
            "mt data dedup --input out/clean --output out/dedup --threshold 0.7",
        ),
    ),
    ("data", "dedup-lines"): Command(
        "dataprep.dedup.lines",
        "dedup_lines",
        "remove lines or paragraphs that occur in several documents",
        examples=("mt data dedup-lines --input out/clean --output out/lines",),
    ),
    ("data", "dedup-substrings"): Command(
        "dataprep.dedup.substrings",
        "dedup_substrings",
        "cut text of 50 tokens or more that occurs elsewhere",
        examples=("mt data dedup-substrings --input out/dedup --output out/substrings",),
    ),
    ("data", "holdout"): Command(
        "dataprep.holdout",
        "holdout",
        "set documents aside for evaluation",
        examples=("mt data holdout --input out/dedup --output out/holdout --fraction 0.02",),
    ),
    ("data", "split"): Command(
        "dataprep.split",
        "split",
        "cut long documents into pieces, at paragraphs",
        examples=("mt data split --input books --output out/pieces --max-chars 20000",),
    ),
    ("data", "decontaminate"): Command(
        "dataprep.decontaminate",
        "decontaminate",
        "remove evaluation text from training documents",
        examples=(
            (
                "mt data decontaminate --input out/holdout --output out/train --evaluation"
                " out/holdout/wikitext.txt"
            ),
        ),
    ),
    ("data", "why"): Command(
        "dataprep.trace",
        "why",
        "tell which stage removed a document, why, and which duplicate of it was kept",
        examples=("mt data why my-document-7 --run-dir runs/mine",),
    ),
    ("data", "look"): Command(
        "dataprep.look",
        "look",
        "show documents at random: kept ones, removed ones with what offended marked, near duplicates",
        layout=("dataprep.look_layout", "layout"),
        examples=(
            "mt data look runs/mine/clean",
            "mt data look runs/mine/clean --reason too_short --count 20",
        ),
    ),
    ("data", "stats"): Command(
        "dataprep.stats",
        "stats",
        "count documents, bytes and tokens",
        examples=("mt data stats --input out/train --output out/stats",),
    ),
    ("data", "train-tokenizer"): Command(
        "tokenizer.train",
        "train_tokenizer",
        "train a byte-level BPE tokenizer on documents",
        examples=("mt data train-tokenizer --input out/train --output out/tokenizer --vocab-size 8192",),
    ),
    ("data", "train-punkt"): Command(
        "indexed.sentences",
        "train_punkt",
        "train a sentence splitter (Punkt) on documents",
        examples=("mt data train-punkt --input out/train --output out/punkt",),
    ),
    ("data", "tokenize"): Command(
        "indexed.build",
        "tokenize",
        "write documents as .bin/.idx pairs, like Megatron-LM's preprocess_data.py",
        examples=(
            (
                "mt data tokenize --input out/train --output-prefix out/tokens/corpus --tokenizer-model"
                " out/tokenizer --append-eod"
            ),
        ),
    ),
    ("data", "index"): Command(
        "indexed.build_indices",
        "index",
        "build, check and cache sample indices before training",
        examples=(
            (
                "mt data index --data-path out/tokens/corpus_text_document --train-samples 100000 --output"
                " out/index"
            ),
        ),
    ),
    ("data", "merge"): Command(
        "indexed.merge",
        "merge",
        "merge several .bin/.idx pairs into one",
        examples=("mt data merge --input out/pairs --output-prefix out/merged",),
    ),
    ("data", "verify"): Command(
        "indexed.check",
        "verify",
        "check a whole .bin/.idx pair",
        examples=("mt data verify out/tokens/corpus_text_document",),
    ),
    ("data", "inspect"): Command(
        "indexed.check",
        "inspect",
        "show what a .bin/.idx pair contains",
        examples=(
            "mt data inspect out/tokens/corpus_text_document --document 0 --tokenizer-model out/tokenizer",
        ),
    ),
    ("retro", "build-db"): Command(
        "retro.build",
        "build_db",
        "build a retrieval database: chunks, embeddings, index, neighbours",
        examples=(
            (
                "mt retro build-db --data-path out/tokens/corpus_text_document --tokenizer-model"
                " out/tokenizer --output out/db"
            ),
        ),
    ),
    ("retro", "neighbors"): Command(
        "retro.sample_neighbors",
        "neighbors",
        "find the nearest chunks of all samples of a training run",
        examples=(
            (
                "mt retro neighbors --db out/db --data-path out/tokens/corpus_text_document --seq-length"
                " 1024 --train-samples 100000 --output out/neighbors"
            ),
        ),
    ),
    ("retro", "query"): Command(
        "retro.query",
        "query",
        "find the nearest chunks of a text",
        examples=("mt retro query 'the winter garden' --db out/db --num-neighbors 5",),
    ),
    ("retro", "verify"): Command(
        "retro.verify",
        "verify",
        "check every file of a retrieval database against its manifest",
        examples=("mt retro verify out/db",),
    ),
    ("retro", "inspect"): Command(
        "retro.inspect",
        "inspect",
        "show what a database contains: its facts, a chunk, a sample with its neighbours",
        examples=("mt retro inspect out/db --chunk 0",),
    ),
    ("retro", "export-hdf5"): Command(
        "retro.megatron_hdf5",
        "export_hdf5",
        "write a database and neighbours of samples in Megatron-LM's Retro format",
        examples=("mt retro export-hdf5 --db out/db --neighbors out/neighbors --output project",),
    ),
    ("retro", "embed-lines"): Command(
        "retro.embed_lines",
        "embed_lines",
        "write the vectors of lines of text, for another program",
        examples=("mt retro embed-lines < lines.txt",),
    ),
    ("retro", "embed-blocks"): Command(
        "retro.embed_blocks",
        "embed_blocks",
        "embed blocks of text with a biencoder and build an inner-product index of them",
        examples=(
            (
                "mt retro embed-blocks --load out/ict --data-path wiki_text_sentence --titles-data-path"
                " wiki_title_sentence --output out/blocks"
            ),
        ),
    ),
    ("train",): Command(
        "train.loop",
        "train",
        "train a model; `mt launch` or torchrun starts it on several processes",
        examples=(
            (
                "mt train --preset tiny --data-path out/tokens/corpus_text_document --tokenizer-model"
                " out/tokenizer --train-iters 1000 --save out/model"
            ),
            "mt train --config run.yaml --lr 1e-3 --data-path 0.7 web_text_document 0.3 wiki_text_document",
        ),
        common=COMMON_TRAINING,
    ),
    ("launch",): Command(
        "train.parallel.launcher",
        "launch",
        "start a command on several processes with torchrun's flags, and restart it when one fails",
        examples=("mt launch --nproc-per-node 8 train --config run.yaml",),
    ),
    ("plan",): Command(
        "train.plan",
        "plan",
        "estimate memory, speed and hours of a training run, and list the layouts that fit",
        examples=(
            "mt plan --preset llama3-8b --world-size 64 --global-batch-size 256",
            "mt plan --config examples/gpt3_175b.yaml --world-size 1024 --gpu A100",
        ),
        common=(
            *(name for name in COMMON_TRAINING if name not in ("save", "save_interval", "overwrite", "load")),
            "gpu",
            "gpu_memory_gib",
            "world_size",
            "show",
            "virtual_stages",
            "pipeline_stages",
        ),
    ),
    ("eval", "lambada"): Command(
        "eval.tasks.lambada",
        "lambada",
        "last-word accuracy and perplexity on LAMBADA",
        examples=("mt eval lambada --load out/model --valid-data lambada_test.jsonl",),
    ),
    ("eval", "wikitext"): Command(
        "eval.tasks.wikitext",
        "wikitext",
        "perplexity of a text per token, word and byte",
        examples=("mt eval wikitext --load out/model --valid-data out/holdout/wikitext.txt",),
    ),
    ("eval", "race"): Command(
        "eval.tasks.race",
        "race",
        "reading comprehension (RACE): finetune a BERT, or score a GPT",
        examples=(
            "mt eval race --load out/model --valid-data RACE/dev/high",
            (
                "mt eval race --pretrained-checkpoint out/bert --train-data RACE/train/high --valid-data"
                " RACE/dev/high --output out/race"
            ),
        ),
    ),
    ("eval", "mnli"): Command(
        "eval.tasks.mnli",
        "mnli",
        "natural language inference (MNLI): finetune and evaluate a BERT",
        examples=(
            (
                "mt eval mnli --pretrained-checkpoint out/bert --train-data MNLI/train.tsv --valid-data"
                " MNLI/dev_matched.tsv --output out/mnli"
            ),
        ),
    ),
    ("eval", "qqp"): Command(
        "eval.tasks.qqp",
        "qqp",
        "duplicate questions (QQP): finetune and evaluate a BERT",
        examples=(
            (
                "mt eval qqp --pretrained-checkpoint out/bert --train-data QQP/train.tsv --valid-data"
                " QQP/dev.tsv --output out/qqp"
            ),
        ),
    ),
    ("eval", "qa"): Command(
        "eval.tasks.open_qa",
        "qa",
        "open-domain question answering, with or without passages: exact match and F1 of a GPT",
        examples=("mt eval qa --load out/model --valid-data NQ/test.json --task nq --ft-neighbours 5",),
    ),
    ("eval", "retrieval"): Command(
        "eval.tasks.retrieval",
        "retrieval",
        "recall@k of a biencoder: the share of questions whose retrieved blocks hold the answer",
        examples=("mt eval retrieval --load out/ict --db out/blocks --valid-data nq-test.qa.csv",),
    ),
    ("eval", "harness"): Command(
        "eval.lm_eval_adapter",
        "harness",
        "run tasks of lm-eval, or of a folder of its YAML files",
        examples=("mt eval harness --load out/model --tasks arc_easy,hellaswag",),
    ),
    ("eval", "score"): Command(
        "eval.hf_classifier",
        "score",
        "run a Hugging Face classifier as the program of `mt data classify`",
        examples=("mt eval score --classifier models/toxicity --label toxic",),
    ),
    ("generate",): Command(
        "eval.generation.generate",
        "generate",
        "generate text that continues prompts",
        prints_text=True,
        examples=("mt generate --load out/model --prompts 'The first' 'Once upon' --tokens-to-generate 20",),
    ),
    ("serve",): Command(
        "eval.server.app",
        "serve",
        "serve a checkpoint over HTTP, with Megatron-LM's and OpenAI's APIs and a web page",
        examples=("mt serve --load out/model --port 8000",),
    ),
    ("checkpoint", "inspect"): Command(
        "train.checkpoint.commands",
        "inspect",
        "show what a checkpoint contains",
        examples=("mt checkpoint inspect out/model",),
    ),
    ("checkpoint", "convert"): Command(
        "train.checkpoint.commands",
        "convert",
        "convert checkpoints between mt, Hugging Face and Megatron-LM",
        examples=(
            "mt checkpoint convert Qwen3-0.6B out/qwen",
            "mt checkpoint convert out/model out/megatron --format torch --target-tensor-parallel-size 4",
        ),
    ),
    ("checkpoint", "export"): Command(
        "train.checkpoint.commands",
        "export",
        "write a checkpoint as a directory for Hugging Face's from_pretrained",
        examples=("mt checkpoint export out/model out/hf --dtype bf16",),
    ),
    ("megatron",): Command(
        "commands.megatron",
        "megatron",
        "do what a command line of a Megatron-LM script does, with that script's defaults",
        examples=(
            (
                "mt megatron pretrain_gpt.py --num-layers 12 --hidden-size 768 --num-attention-heads 12"
                " --seq-length 1024 --max-position-embeddings 1024 --micro-batch-size 4 --lr 1.5e-4"
                " --train-iters 1000 --data-path my_text_document --vocab-file vocab.json --merge-file"
                " merges.txt --save out/gpt"
            ),
        ),
    ),
    ("report",): Command(
        "commands.report.report",
        "report",
        "write one HTML page about a run: curves, scores, samples, documents; or compare several runs",
        examples=("mt report runs/demo", "mt report runs/a runs/b"),
    ),
    ("completion",): Command(
        "commands.completion",
        "completion",
        "print a script with which bash, zsh or fish completes commands, flags and files",
        prints_text=True,
        examples=("mt completion bash > ~/.local/share/bash-completion/completions/mt",),
    ),
    ("doctor",): Command(
        "commands.doctor",
        "doctor",
        "check this machine: does it work, which presets fit, what is missing, and how to install that",
        examples=("mt doctor",),
    ),
}
# Commands that read their arguments themselves, because these are those of another program
RAW: set[Path] = {("launch",), ("megatron",)}


def load(path: Path) -> tuple[Callable[[Any], dict[str, Any] | None], type[Any]]:
    """The function and the configuration class of a command; raises UserError if a package is missing."""
    command = COMMANDS[path]
    try:
        # torch takes seconds to import, from a cold disk half a minute
        after = 0.5 if command.module.startswith(("train.", "eval.", "retro.")) else LINE_SECONDS
        with activity(f"loading the libraries of mt {' '.join(path)}", after=after):
            function = imported(command.module, command.function)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package != __package__.split(".")[0]:
            raise UserError(needs_package(f"`mt {' '.join(path)}`", package)) from None
        raise
    hints = typing.get_type_hints(function)
    return function, next(kind for key, kind in hints.items() if key != "return")


def outline_of(path: Path) -> type[Any] | None:
    """The outline of a command's configuration class, which is there at once; None if only `load` has it."""
    from .outline import outline  # late: `mt --help` does not need it

    command = COMMANDS[path]
    found: type[Any] | None = outline(command.module, command.function)
    return found


def imported(module: str, name: str) -> Any:
    """A function of a module of mt, which is imported."""
    return getattr(importlib.import_module(f"{__package__.split('.')[0]}.{module}"), name)
