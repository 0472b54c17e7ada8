"""The `mt data clean` command: repair and filter documents by a list of rules.

The list `rules` (rules.py) is applied from top to bottom; presets are such lists. The output directory is
that of every document stage (stage.py). The manifest's `edited` counts the texts that each edit changed,
`languages` those that were judged by the thresholds of each language, where it was found, and
`other_languages` those in languages that have no thresholds of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.config import UserError, check, configuration, option
from ...core.presets import presets, read_preset
from ...documents.reader import Document
from ...tokenizer.tokenizer import TokenizerConfig, load
from .. import stage
from ..stage import DocumentStage, Removed, Tallies, Transform
from .offending import describe, drop_facts, loosened, summary_of
from .own_rules import beside
from .quality import Drop
from .rules import EDITS, RULES, compile_rules

MOST_LANGUAGES = 5  # that a message names


@configuration()
class CleanConfig(DocumentStage):
    """The settings of `mt data clean`."""

    PRESETS = True

    @staticmethod
    def from_file(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The settings of a YAML file in a folder, in which rules of the user's own may lie."""
        return {**tree, "rules": beside(tree["rules"], folder)} if "rules" in tree else tree

    rules: tuple[str, ...] = option(
        ("fix_text", "whitespace", "length min_chars=1"),
        "edits and rules in order, each a name and its parameters: 'length min_chars=512'; they replace those"
        " of a preset. `--help RULE` and `--help PRESET` describe them",
    )
    lang: tuple[str, ...] = option(
        (),
        "languages of the texts, whose thresholds the rules use: ISO codes, or `all`; default: those of the"
        " rule `language`, or English",
        added=True,
    )
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)  # of the rule `tokens`

    @staticmethod
    def help_topics(word: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
        """(text, title, rows) about a preset and about a rule of that name, for a page of help."""
        topics = []
        if word in (files := presets(CleanConfig)):
            lines = files[word].read_text(encoding="utf-8").splitlines()
            about = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
            items = [str(item) for item in read_preset(CleanConfig, word)["rules"]]
            change = f"To change one of these, give all of them: --rules {' '.join(map(shlex.quote, items))}"
            more = "`mt data clean --help RULE` has the parameters of a rule."
            rows = [(item, summary_of(item.split()[0])) for item in items]
            title = f"preset {word}: rules and edits, in order"
            topics.append(("\n\n".join((about, change, more)), title, rows))
        return [*topics, describe(word)] if word in RULES | EDITS else topics

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
        compile_rules(self.rules, lang=self.lang)

    @property
    def counts_tokens(self) -> bool:
        return any(item.split()[:1] == ["tokens"] for item in self.rules)


def clean(config: CleanConfig) -> dict[str, Any]:
    """Repairs and filters documents; returns the stage's manifest."""
    tokenizer = config.tokenizer if config.tokenizer.kind else None
    facts: dict[str, Any] = {"tokenizer": load(tokenizer).fingerprint} if tokenizer else {}
    rules = compile_rules(config.rules, lang=config.lang)
    facts |= rules.facts
    run, shards = stage.begin("data clean", config, facts=facts)
    if run.finished:
        return run.manifest
    make = functools.partial(_make_cleaner, config.rules, config.lang, tokenizer, rules.own, config.rejects)
    advice = functools.partial(_advice, config.rules, config.lang)
    manifest = stage.map_documents(run, config, shards, make, advice=advice)
    if others := manifest.get("other_languages"):
        counted = ", ".join(f"{code} {count:,}" for code, count in sorted(others.items()))
        print(
            f"mt: no thresholds are known for these languages, so general ones were used, without stop words:"
            f" {counted} documents",
            file=sys.stderr,
        )
    if told := _language_advice(config.rules, config.lang, manifest["counts"]["removed"]):
        print(f"mt: {told}", file=sys.stderr)
    return manifest


def _advice(rules: tuple[str, ...], lang: tuple[str, ...], removed: Mapping[str, int]) -> str:
    """What to do about the documents that most of the rules removed, or ""."""
    most = max(removed, key=lambda reason: removed[reason], default="")
    if most.startswith("language_") and (told := _language_advice(rules, lang, removed)):
        return told
    return loosened(rules, most)


def _language_advice(rules: tuple[str, ...], lang: tuple[str, ...], removed: Mapping[str, int]) -> str:
    """What to do about languages that the rule `language` removed because its default is English; or ""."""
    by_default = not lang and any(
        rule == "language" and not any(pair.startswith("keep=") for pair in pairs)
        for rule, *pairs in map(str.split, rules)
    )
    prefix = "language_"
    found = {r.removeprefix(prefix): n for r, n in removed.items() if r.startswith(prefix)}
    found.pop("unsure", None)
    if not by_default or not found:
        return ""
    most = sorted(found, key=lambda code: (-found[code], code))[:MOST_LANGUAGES]
    counted = ", ".join(f"{code} {found[code]:,}" for code in most) + (
        ", ..." if len(found) > len(most) else ""
    )
    return (
        f"{sum(found.values()):,} documents in other languages than English were removed ({counted}); to"
        f" judge them by the thresholds of their language, pass --lang all, or some: --lang en {most[0]}"
    )


def _make_cleaner(
    rules: tuple[str, ...],
    lang: tuple[str, ...],
    tokenizer: TokenizerConfig | None,
    own: dict[str, str],
    with_facts: bool,
    shard_index: int,
) -> tuple[Transform, Tallies]:
    """The transform of documents by the rules, and its counts of edited texts.

    own: the digests of the user's own rules when the run began. with_facts: whether a removed document gets
    the number that decided, and its limit; they take up to a millisecond a document, several times what the
    rules take.
    """
    apply = compile_rules(rules, load(tokenizer) if tokenizer else None, lang)
    if apply.own != own:
        raise UserError(f"the file of a rule in {', '.join(own)} changed during the run; run it again")

    def change(document: Document) -> Document | Removed:
        text = apply(document.text, document)
        if isinstance(text, Drop):
            return Removed(str(text), drop_facts(apply) if with_facts else {})
        document.text = text
        return document

    return change, {
        "edited": apply.edited,
        "languages": apply.languages,
        "other_languages": apply.other_languages,
    }
