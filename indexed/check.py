"""Checks a .bin/.idx pair (`mt data verify`) and shows what it contains (`mt data inspect`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import NullTokenizer, Tokenizer, TokenizerConfig, load
from .format import BLOCK, IndexedDataset, prefix_of
from .remote import is_remote

BEGINNING = 32  # tokens of a document that `mt data inspect --samples` shows


@configuration()
class VerifyConfig(TokenizerConfig):
    """The settings of `mt data verify`; tokens are checked against the vocabulary of a given tokenizer."""

    POSITIONAL = "prefix"

    prefix: str = option(help="prefix of a .bin/.idx pair", role="input")


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Checks a pair completely; raises UserError for the first error.

    Always checked: header, sizes, lengths, pointers, document indices. If mt wrote the pair: every byte of
    both files, by the digests in the manifest. If the vocabulary is known, from the manifest or the
    tokenizer's settings: every token.
    """
    prefix = prefix_of(config.prefix)
    dataset = IndexedDataset(prefix, multimodal=None)
    sealed = manifest.manifest_of(f"{prefix}.bin")
    checked = ["sizes, lengths, pointers and documents"]
    if sealed is not None:
        recorded = {Path(o["name"]).name: o for o in sealed["outputs"]}
        for path in (f"{prefix}.bin", f"{prefix}.idx"):
            manifest.check_digest(path, recorded[Path(path).name], sealed)
        checked.append("digests of both files")
    tokenizer = load(config) if config.kind else None
    facts = tokenizer_facts(prefix)
    if tokenizer is not None:
        check_tokenizer(prefix, tokenizer)
    vocab_size = tokenizer.vocab_size if tokenizer else facts["vocab_size"] if facts else None
    if vocab_size is not None:
        _check_tokens(dataset, vocab_size)
        checked.append(f"every token below {vocab_size:,}")
    counts = {"documents": dataset.num_documents, "sequences": len(dataset), "tokens": len(dataset.tokens)}
    text = (
        f"{prefix}: complete: {counts['documents']:,} documents, {counts['sequences']:,} sequences,"
        f" {counts['tokens']:,} tokens ({dataset.dtype}{', multimodal' if dataset.multimodal else ''});"
        f" checked: {', '.join(checked)}"
    )
    return {
        "text": text,
        "prefix": prefix,
        "counts": counts,
        "dtype": str(dataset.dtype),
        "multimodal": dataset.multimodal,
        "checked": checked,
    }


def tokenizer_facts(prefix: str) -> manifest.TokenizerFacts | None:
    """What is known of the tokenizer that made a pair; None if mt did not write the pair, or it is remote."""
    made = None if is_remote(prefix) else manifest.manifest_of(f"{prefix}.bin")
    return made.get("tokenizer") if made else None


def check_tokenizer(prefix: str, tokenizer: Tokenizer) -> None:
    """Raises UserError if the manifest of a pair tells that another tokenizer made it."""
    if problem := other_tokenizer(prefix, tokenizer):
        raise UserError(f"{problem}; give the one that made it")


def other_tokenizer(prefix: str, tokenizer: Tokenizer) -> str | None:
    """What is wrong if the manifest of a pair tells that another tokenizer made it, else None.

    NullTokenizer stands for any tokenizer of at most as many ids.
    """
    facts = tokenizer_facts(prefix)
    if facts is None or facts["fingerprint"] == tokenizer.fingerprint:
        return None
    if isinstance(tokenizer, NullTokenizer) and tokenizer.vocab_size >= facts["vocab_size"]:
        return None
    return (
        f"{prefix}: was written with another tokenizer (vocabulary of {facts['vocab_size']:,}, this one"
        f" {tokenizer.vocab_size:,})"
    )


def _check_tokens(dataset: IndexedDataset, vocab_size: int) -> None:
    """Raises UserError for a token outside the vocabulary."""
    for start in range(0, len(dataset.tokens), BLOCK):
        block = dataset.tokens[start : start + BLOCK]
        positions = start + np.flatnonzero((block < 0) | (block >= vocab_size))
        sequences = np.searchsorted(dataset.pointers, positions * dataset.dtype.itemsize, side="right") - 1
        if dataset.modes is not None:  # bytes of an image are not tokens
            is_text = dataset.modes[sequences] == 0
            positions, sequences = positions[is_text], sequences[is_text]
        if len(positions):
            bad, sequence = int(positions[0]), int(sequences[0])
            raise UserError(
                f"{dataset.prefix}.bin: token {block[bad - start]} in sequence {sequence} is outside the"
                f" vocabulary of {vocab_size:,}; it was written with another tokenizer or is damaged"
            )


@configuration()
class InspectPairConfig(TokenizerConfig):
    """The settings of `mt data inspect`; documents are decoded if a tokenizer is given."""

    POSITIONAL = "prefix"

    prefix: str = option(help="prefix of a .bin/.idx pair", role="input")
    document: int | None = option(None, "number of a document to print, from 0 on")
    samples: int = option(0, "number of documents, spread evenly, whose first tokens are shown")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (self.samples >= 0, f"samples = {self.samples} must not be negative"),
            (
                self.samples == 0 or self.document is None,
                "document and samples are two views; give one of them",
            ),
        )


def inspect(config: InspectPairConfig) -> dict[str, Any]:
    """Counts of a pair, a histogram of lengths and the first tokens of some documents; or one document."""
    dataset = IndexedDataset(prefix_of(config.prefix), multimodal=None)
    if config.document is not None:
        return _inspect_document(dataset, config, config.document)
    lengths = dataset.lengths
    summary: dict[str, Any] = {
        "prefix": dataset.prefix,
        "dtype": str(dataset.dtype),
        "documents": dataset.num_documents,
        "sequences": len(dataset),
        "tokens": len(dataset.tokens),
        "empty_documents": int((np.diff(dataset.document_indices) == 0).sum()),
    }
    shown = dict(summary)
    if dataset.modes is not None:
        numbers, counts = np.unique(dataset.modes, return_counts=True)
        summary["modes"] = {str(mode): int(n) for mode, n in zip(numbers, counts)}
        shown["modes"] = ", ".join(f"{n:,} of mode {mode}" for mode, n in summary["modes"].items())
    lines = [
        f"{name:<16}{value:,}" if isinstance(value, int) else f"{name:<16}{value}"
        for name, value in shown.items()
    ]
    if len(lengths):
        points = {
            "shortest": int(lengths.min()),
            "median": int(np.median(lengths)),
            "longest": int(lengths.max()),
        }
        bins = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(int))
        histogram = {f"<= {1 << i:,}": int(n) for i, n in enumerate(bins) if n}
        width = max(histogram.values())
        lines += [f"{name:<16}{value:,}" for name, value in points.items()]
        lines += [
            "",
            "sequences by tokens:",
            *(f"  {name:>12}  {n:>12,}  {'#' * max(1, 40 * n // width)}" for name, n in histogram.items()),
        ]
        summary |= {**points, "histogram": histogram}
    if config.samples and dataset.num_documents:
        chosen = np.unique(np.linspace(0, dataset.num_documents - 1, config.samples).astype(int)).tolist()
        summary["samples"] = _beginnings(dataset, config, chosen)
        lines += ["", *(f"document {number}: {text}" for number, text in zip(chosen, summary["samples"]))]
    return {"text": "\n".join(lines), **summary}


def _beginnings(dataset: IndexedDataset, config: InspectPairConfig, numbers: list[int]) -> list[str]:
    """The first tokens of some documents, each on one line."""
    decode = _decoder(config)
    beginnings = []
    for number in numbers:
        first, last = dataset.document_indices[number : number + 2].tolist()
        start = dataset[first][:BEGINNING].tolist() if first < last else []
        text = " ".join(decode(start).split())
        is_cut = first + 1 < last or (first < last and dataset.lengths[first] > BEGINNING)
        beginnings.append(f"{text} ..." if is_cut else text)
    return beginnings


def _decoder(config: InspectPairConfig) -> Callable[[Sequence[int]], str]:
    """Token ids -> the text if a tokenizer is given, otherwise the ids."""
    return load(config).decode if config.kind else lambda ids: " ".join(map(str, ids))


def _inspect_document(dataset: IndexedDataset, config: InspectPairConfig, number: int) -> dict[str, Any]:
    """The tokens of one document, or its text, sequence by sequence."""
    count = dataset.num_documents
    if not 0 <= number < count:
        raise UserError(f"{dataset.prefix}: has no document {number}; it has {count:,}, counted from 0")
    first, last = dataset.document_indices[number : number + 2].tolist()
    sequences = [dataset[i].tolist() for i in range(first, last)]
    found: dict[str, Any] = {
        "prefix": dataset.prefix,
        "document": number,
        "first_sequence": first,
        "sequences": sequences,
    }
    if dataset.modes is not None:
        found["modes"] = dataset.modes[first:last].tolist()
    shown = list(map(_decoder(config), sequences))
    if config.kind:
        found["decoded"] = shown
    if len(shown) > 1:
        shown = [
            f"sequence {i} ({len(ids):,} tokens): {text}"
            for i, (ids, text) in enumerate(zip(sequences, shown), first)
        ]
    plural = "" if len(sequences) == 1 else "s"
    title = f"document {number}: {len(sequences)} sequence{plural}, {sum(map(len, sequences)):,} tokens"
    return {"text": "\n".join([title, *shown]), **found}
