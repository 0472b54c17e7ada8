"""Sample indices, built and cached before training (`mt data index`).

On a cluster the first rank of a job builds the indices that are not cached, and all other ranks wait. This
command builds them beforehand, on one processor, and prints the tokens, samples and epochs of every source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ..core import manifest
from ..core.config import check, configuration, option
from ..tokenizer.tokenizer import TokenizerConfig, load
from .bert_dataset import BertConfig, build_bert_datasets
from .gpt_dataset import DataConfig, Dataset, build_datasets
from .masked_dataset import MaskedConfig
from .splits import SPLIT_NAMES
from .t5_dataset import T5Config, build_t5_datasets


@configuration()
class IndexConfig(DataConfig):
    """The settings of `mt data index`: the data settings of the training run, and its numbers of samples."""

    output: str = option(
        help="directory for the manifest; the indices go to the cache that training reads", role="output"
    )
    train_samples: int = option(help="samples for training: iterations * global batch size")
    valid_samples: int = option(0, "samples for validation; 0: none")
    test_samples: int = option(0, "samples for test; 0: none")
    objective: Literal["gpt", "bert", "t5"] = option(
        "gpt", "kind of samples; bert and t5 need data of sentences, and the tokenizer"
    )
    mask_prob: float = option(0.15, "bert, t5: share of the tokens that are masked")
    short_seq_prob: float = option(0.1, "bert, t5: share of the samples with a random shorter length")
    bert_binary_head: bool = option(True, "bert: samples have two segments, and half of them are swapped")
    decoder_seq_length: int = option(128, "t5: tokens of the decoder's sequence")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            *((getattr(self, f"{n}_samples") >= 0, f"{n}_samples must not be negative") for n in SPLIT_NAMES)
        )


def index(config: IndexConfig) -> dict[str, Any]:
    """Builds the sample indices of all splits; training with the same data settings finds them in the cache.

    Returns the manifest, with a table of the sources as `text`.
    """
    datasets = _build(config, (config.train_samples, config.valid_samples, config.test_samples))
    built = [(name, d) for name, d in zip(SPLIT_NAMES, datasets) if d is not None]
    rows = [{"split": name, **row} for name, d in built for row in d.describe()]
    fingerprints = {name: d.fingerprint for name, d in built}
    run = manifest.begin("data index", config, config.files(), facts={"fingerprints": fingerprints})
    up_to_date = run.finished
    if not up_to_date:
        run.finish(
            [], {f"{name}_samples": len(d) for name, d in built}, sources=rows, fingerprints=fingerprints
        )
    facts = {**run.manifest, "text": format_rows(rows)}
    return manifest.Sealed(facts, run.output, up_to_date=up_to_date)


def _build(config: IndexConfig, counts: Sequence[int]) -> tuple[Dataset | None, ...]:
    if config.objective == "gpt":
        return build_datasets(config, counts)
    tokenizer = load(config.tokenizer)
    if config.objective == "bert":
        return build_bert_datasets(BertConfig(**_values_of(config, BertConfig)), tokenizer, counts)
    return build_t5_datasets(T5Config(**_values_of(config, T5Config)), tokenizer, counts)


def _values_of(config: IndexConfig, kind: type[MaskedConfig]) -> dict[str, Any]:
    """The values of the settings that `kind` has."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(kind)}


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `Dataset.describe` as a text table."""
    cells = [("split", "weight", "sequences", "tokens", "samples", "epochs", "source")]
    cells += [
        (
            r["split"],
            "" if r["weight"] is None else f"{r['weight']:.4g}",
            f"{r['sequences']:,}",
            f"{r['tokens']:,}",
            f"{r['samples']:,}",
            f"{r['epochs']:.2f}",
            r["prefix"],
        )
        for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:6], widths[1:])), row[6]])
        for row in cells
    )
