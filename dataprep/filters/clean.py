"""repair and filter: documents in, mended documents out, each removed one with its reason.

What is done is the list `rules` (rules.py), from top to bottom; presets are such lists. The output directory
is that of every document stage (stage.py); the manifest's `edited` says how many texts each edit changed.
"""

from __future__ import annotations

import dataclasses
import functools

from ...core.config import check, configuration, option
from ...documents.reader import Document
from ...tokenizer.tokenizer import TokenizerConfig, load
from .. import stage
from ..stage import DocumentStage, Removed
from .rules import Drop, compile_rules


@configuration()
class CleanConfig(DocumentStage):
    """What to do to each text."""

    PRESETS = True

    rules: tuple[str, ...] = option(
        ("fix_text", "whitespace", "length min_chars=1"),
        "edits and rules in order, each a name and its parameters: 'length min_chars=512'",
    )
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)  # of the rule `tokens`

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.rules), "rules is empty: nothing would be done; name at least one"),
            (
                self.tokenizer.kind is not None or self.tokenizer == TokenizerConfig(),
                (
                    "a vocabulary alone does not say what it is of: name --tokenizer-type, or --merge-file"
                    " for GPT-2's"
                ),
            ),
            (
                self.tokenizer.kind is None or self.counts_tokens,
                (
                    "a tokenizer has no effect: no rule counts tokens; leave it out, or add 'tokens"
                    " min_tokens=128' to rules"
                ),
            ),
        )
        compile_rules(self.rules)

    @property
    def counts_tokens(self) -> bool:
        return any(item.split()[:1] == ["tokens"] for item in self.rules)


def clean(config: CleanConfig) -> dict:
    """Mends and filters documents; returns the stage's manifest."""
    tokenizer = config.tokenizer if config.tokenizer.kind else None
    run, shards = stage.begin(
        "data clean", config, facts={"tokenizer": load(tokenizer).fingerprint} if tokenizer else None
    )
    if run.finished:
        return run.manifest
    return stage.map_documents(run, config, shards, functools.partial(_cleaner, config.rules, tokenizer))


def _cleaner(rules: tuple[str, ...], tokenizer: TokenizerConfig | None, shard_index: int):
    apply = compile_rules(rules, load(tokenizer) if tokenizer else None)

    def change(document: Document) -> Document | Removed:
        text = apply(document.text)
        if isinstance(text, Drop):
            return Removed(str(text))
        document.text = text
        return document

    change.tallies = {"edited": apply.edited}
    return change
