"""What a score means, in a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ...core.manifest import Json
from .table import short

# {score: sentence}, by the command where the same word means something else there. {x} is the value, {p} the
# value in percent. The first that fits counts.
SENTENCES: tuple[tuple[str, str, str], ...] = (
    (
        "eval lambada",
        "accuracy",
        "The model predicts the last word of {p} of the passages. Higher is better.",
    ),
    (
        "eval lambada",
        "perplexity",
        "At the last word the model hesitates as between {x} equally likely choices. Lower is better.",
    ),
    ("", "loss", "The mean negative log-probability of a token is {x} nats. Lower is better."),
    (
        "",
        "token_perplexity",
        "At each token the model hesitates as between {x} equally likely tokens. Lower is better.",
    ),
    (
        "",
        "word_perplexity",
        "The same for each word, so that models with different tokenizers compare. Lower is better.",
    ),
    (
        "",
        "byte_perplexity",
        "The same for each byte of text, so that models with different tokenizers compare. Lower is better.",
    ),
    (
        "",
        "bits_per_byte",
        "With the model's probabilities the text could be compressed to {x} bits a byte. Lower is better.",
    ),
    ("", "token_ratio", "The tokenizer makes {x} tokens of a word. This describes the text, not the model."),
    ("", "perplexity", "The model hesitates as between {x} equally likely choices. Lower is better."),
    (
        "",
        "accuracy_per_byte",
        "{p} of the answers are right if scores are divided by the answers' bytes. Higher is better.",
    ),
    ("", "accuracy", "{p} of the answers are right. Higher is better."),
    ("", "acc", "{p} of the answers are right. Higher is better."),
    (
        "",
        "acc_norm",
        "{p} of the answers are right if scores are divided by the answers' lengths. Higher is better.",
    ),
    ("", "exact_match", "{p} of the answers are equal to one of the expected ones. Higher is better."),
    ("", "f1_first_answer", "Words in common with the first expected answer: F1 is {p}. Higher is better."),
    ("eval qa", "f1", "Words in common with the best expected answer: F1 is {p}. Higher is better."),
    ("", "f1", "F1, the harmonic mean of precision and recall, is {p}. Higher is better."),
)
RECALL = re.compile(r"recall@(\d{1,9})\Z")


def scores(manifest: Json) -> Iterator[Json]:
    """{"name", "value", "shown", "error", "sentence"} of each score in a manifest, also of tasks."""
    for name, value in (manifest.get("scores") or {}).items():
        if isinstance(value, dict):
            for inner, number in value.items():
                yield from _score(manifest["verb"], f"{name} {inner}", inner, number, value)
        else:
            yield from _score(manifest["verb"], name, name, value, manifest["scores"])


def _score(verb: str, name: str, metric: str, value: object, others: Json) -> Iterator[Json]:
    if metric.endswith("_stderr"):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    error = others.get(f"{metric}_stderr")
    yield {
        "name": name,
        "value": value if is_number else None,
        "shown": short(value) if is_number else str(value),  # type: ignore[arg-type]
        "error": short(error) if isinstance(error, int | float) and not isinstance(error, bool) else None,
        "sentence": sentence(verb, metric, value) if is_number else "",  # type: ignore[arg-type]
    }


def sentence(verb: str, metric: str, value: float) -> str:
    """What a score says; "" for one that is not known."""
    if not math.isfinite(value):
        return "Not a finite number: see the log of the evaluation."
    metric = metric.split("/")[0]
    if found := RECALL.match(metric):
        best = f"one of the {found[1]} best blocks holds the answer"
        return f"For {value:.1%} of the questions {best}. Higher is better."
    for command, name, words in SENTENCES:
        if metric == name and command in ("", verb):
            return words.format(x=short(value), p=f"{value:.1%}")
    return ""
