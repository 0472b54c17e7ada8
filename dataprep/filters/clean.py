"""The `mt data clean` command: repair and filter documents by a list of rules.

The list `rules` (rules.py) is applied from top to bottom; presets are such lists. The output directory is
that of every document stage (stage.py). The manifest's `edited` counts the texts that each edit changed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ...core.config import check, configuration, option
from ...documents.reader import Document
from ...tokenizer.tokenizer import TokenizerConfig, load
from .. import stage
from ..stage import DocumentStage, Removed, Tallies, Transform
from .quality import Drop
from .rules import compile_rules


@configuration()
class CleanConfig(DocumentStage):
    """The settings of `mt data clean`."""

    PRESETS = True

    rules: tuple[str, ...] = option(
        ("fix_text", "whitespace", "length min_chars=1"),
        "edits and rules in order, each a name and its parameters: 'length min_chars=512'",
    )
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)  # of the rule `tokens`

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (bool(self.rules), "rules is empty: nothing would be done; name at least one rule"),
            (
                self.tokenizer.kind is not None or self.tokenizer == TokenizerConfig(),
                "a vocabulary file alone does not determine the tokenizer: name --tokenizer-type, or"
                " --merge-file for GPT-2's",
            ),
            (
                self.tokenizer.kind is None or self.counts_tokens,
                "a tokenizer has no effect: no rule counts tokens; omit it, or add 'tokens min_tokens=128' to"
                " rules",
            ),
        )
        compile_rules(self.rules)

    @property
    def counts_tokens(self) -> bool:
        return any(item.split()[:1] == ["tokens"] for item in self.rules)


def clean(config: CleanConfig) -> dict[str, Any]:
    """Repairs and filters documents; returns the stage's manifest."""
    tokenizer = config.tokenizer if config.tokenizer.kind else None
    facts = {"tokenizer": load(tokenizer).fingerprint} if tokenizer else None
    run, shards = stage.begin("data clean", config, facts=facts)
    if run.finished:
        return run.manifest
    make = functools.partial(_make_cleaner, config.rules, tokenizer)
    return stage.map_documents(run, config, shards, make)


def _make_cleaner(
    rules: tuple[str, ...], tokenizer: TokenizerConfig | None, shard_index: int
) -> tuple[Transform, Tallies]:
    """The transform of documents by the rules, and its counts of edited texts."""
    apply = compile_rules(rules, load(tokenizer) if tokenizer else None)

    def change(document: Document) -> Document | Removed:
        text = apply(document.text)
        if isinstance(text, Drop):
            return Removed(str(text))
        document.text = text
        return document

    return change, {"edited": apply.edited}
