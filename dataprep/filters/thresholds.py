"""Thresholds of the quality rules by language: those published with FineWeb-2, from lists/languages.yaml.

English is not in the file: the defaults of the rules are those of FineWeb and its predecessors for English.
In all other languages the rules follow FineWeb-2's released pipeline, which also leaves three tests out
(repeated paragraphs, characters of repeated lines, short lines) and allows a tenth of the characters in
repeated lines. A language without an entry gets the entry `other`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.parsing import read_yaml

ENGLISH = "en"
OTHER = "other"  # the entry for languages without one
# What FineWeb-2 has in common for all languages, by rule.
COMMON: dict[str, dict[str, Any]] = {
    "gopher_quality": {"words": "apart"},
    "gopher_repetition": {
        "words": "apart",
        "max_dup_paragraphs": 0.0,
        "max_dup_line_chars": 0.0,
        "max_dup_paragraph_chars": 0.0,
    },
    "fineweb": {"words": "apart", "max_short_lines": 1.0, "max_dup_line_chars": 0.1},
}
# Our words of Vietnamese are syllables, where FineWeb-2 counts words of one or more: its least mean length of
# a word, 3 characters, is that of good prose here.
LEAST_MEAN_WORD = {"vi": 2.0}


@functools.cache
def known_languages() -> frozenset[str]:
    """The ISO codes of the languages that have thresholds of their own."""
    return frozenset({ENGLISH, *_entries()} - {OTHER})


@functools.cache
def parameters(code: str) -> dict[str, dict[str, Any]]:
    """{rule: {parameter: value}} where a language's defaults differ from those of the rule's function."""
    if code == ENGLISH:
        return {}
    entries = _entries()
    entry = entries.get(code, entries[OTHER])
    least, greatest = entry["mean_word"]
    stop_words = entry["stop_words"].split()
    own: dict[str, dict[str, Any]] = {
        "gopher_quality": {
            "min_mean_word": LEAST_MEAN_WORD.get(code, float(least)),
            "max_mean_word": float(greatest),
            "min_alphabetic_words": entry["alphabetic_words"],
            "min_stop_words": 2 if stop_words else 0,
            "stop_words": ",".join(stop_words),
        },
        "gopher_repetition": {
            "max_dup_lines": entry["dup_lines"],
            **{f"max_top_{n}gram": limit for n, limit in enumerate(entry["top_ngrams"], 2)},
            **{f"max_dup_{n}gram": limit for n, limit in enumerate(entry["dup_ngrams"], 5)},
        },
        "fineweb": {
            "min_punctuated_lines": entry["punctuated_lines"],
            "max_newlines_per_word": entry["newlines_per_word"],
        },
    }
    return {rule: {**COMMON[rule], **own[rule]} for rule in own}


def digest(codes: Iterable[str]) -> str:
    """A digest of the thresholds of some languages, for the key of a run that uses them."""
    chosen = {code: parameters(code) for code in sorted(codes)}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _entries() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("lists") / "languages.yaml")
