"""`mt data index`: sample indices built, checked and cached ahead of training.

On a cluster the first rank of a job builds what is not cached while all others wait; this does it beforehand,
on one processor, and shows what the settings mean: tokens, samples and epochs of every source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from ..core import manifest
from ..core.config import check, configuration, option
from ..tokenizer.tokenizer import TokenizerConfig, load
from .gpt_dataset import NAMES, DataConfig, Dataset, build_datasets
from .masked_dataset import BertConfig, T5Config, build_bert_datasets, build_t5_datasets


@configuration()
class IndexConfig(DataConfig):
    """The settings of `mt data index`: those of the data as training has them, and the samples that it will
    want.
    """

    output: str = option(
        help="directory for the manifest; the indices go where training looks for them", role="output"
    )
    train_samples: int = option(help="samples for training: iterations * global batch size")
    valid_samples: int = option(0, "samples for validation; 0: none")
    test_samples: int = option(0, "samples for test; 0: none")
    objective: Literal["gpt", "bert", "t5"] = option(
        "gpt", "what the samples are for; bert and t5 want data of sentences, and the tokenizer"
    )
    mask_prob: float = option(0.15, "bert, t5: share of the tokens that are masked")
    short_seq_prob: float = option(0.1, "bert, t5: share of the samples that get a random shorter length")
    bert_binary_head: bool = option(True, "bert: samples of two segments, half of them swapped")
    decoder_seq_length: int = option(128, "t5: tokens of a decoder's sample")
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(*((getattr(self, f"{n}_samples") >= 0, f"{n}_samples must not be negative") for n in NAMES))


def index(config: IndexConfig) -> dict:
    """Builds the sample indices of all splits ahead of training, which finds them by the same data settings."""
    datasets = _build(config, (config.train_samples, config.valid_samples, config.test_samples))
    built = [(name, d) for name, d in zip(NAMES, datasets) if d is not None]
    rows = [{"split": name, **row} for name, d in built for row in d.describe()]
    fingerprints = {name: d.fingerprint for name, d in built}
    run = manifest.begin("data index", config, config.files(), facts={"fingerprints": fingerprints})
    if not run.finished:
        run.finish(
            [], {f"{name}_samples": len(d) for name, d in built}, sources=rows, fingerprints=fingerprints
        )
    return {**run.manifest, "text": format_rows(rows)}


def _build(config: IndexConfig, counts: Sequence[int]) -> tuple[Dataset | None, ...]:
    if config.objective == "gpt":
        return build_datasets(config, counts)
    kind, build = {"bert": (BertConfig, build_bert_datasets), "t5": (T5Config, build_t5_datasets)}[
        config.objective
    ]
    settings = kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(kind)})
    return build(settings, load(config.tokenizer), counts)


def format_rows(rows: Sequence[dict]) -> str:
    """A table of `describe` rows for people."""
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
