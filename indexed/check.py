"""checking a .bin/.idx pair from end to end, and looking into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..tokenizer.tokenizer import TokenizerConfig, load
from .format import BLOCK, IndexedDataset, prefix_of

BEGINNING = 32  # tokens of a document that `inspect --samples` shows


@configuration()
class VerifyConfig(TokenizerConfig):
    """The settings of `mt data verify`; with a tokenizer, tokens are checked against its vocabulary."""

    POSITIONAL = "prefix"

    prefix: str = option(help="prefix of a .bin/.idx pair", role="input")


def verify(config: VerifyConfig) -> dict:
    """Checks a pair from end to end; raises UserError that says what is wrong.

    Always: header, sizes, lengths, pointers, documents. Where mt wrote it: every byte of both files against
    the manifest. Where the vocabulary is known (by the manifest, or a tokenizer's settings): every token.
    """
    prefix = prefix_of(config.prefix)
    dataset = IndexedDataset(prefix, multimodal=None)
    sealed = manifest.manifest_of(f"{prefix}.bin")
    checked = ["sizes, lengths, pointers and documents"]
    if sealed is not None:
        recorded = {Path(o["name"]).name: o["xxh3"] for o in sealed["outputs"]}
        for path in (f"{prefix}.bin", f"{prefix}.idx"):
            if manifest.file_digest(path) != recorded[Path(path).name]:
                raise UserError(
                    f"{path}: its bytes are not those that `mt {sealed['verb']}` wrote on"
                    f" {sealed['finished']}; fetch it again, or tokenize again"
                )
        checked.append("digests of both files")
    tokenizer = load(config) if config.kind else None
    facts = (sealed or {}).get("tokenizer")
    if tokenizer is not None and facts is not None and tokenizer.fingerprint != facts["fingerprint"]:
        raise UserError(
            f"{prefix}: was written with another tokenizer (vocabulary of {facts['vocab_size']:,}, this one"
            f" {tokenizer.vocab_size:,}); give that one"
        )
    vocab_size = tokenizer.vocab_size if tokenizer else facts["vocab_size"] if facts else None
    if vocab_size is not None:
        _check_tokens(dataset, vocab_size)
        checked.append(f"every token below {vocab_size:,}")
    counts = {"documents": dataset.num_documents, "sequences": len(dataset), "tokens": len(dataset.tokens)}
    text = (
        f"{prefix}: whole: {counts['documents']:,} documents, {counts['sequences']:,} sequences,"
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


def _check_tokens(dataset: IndexedDataset, vocab_size: int) -> None:
    for at in range(0, len(dataset.tokens), BLOCK):
        block = dataset.tokens[at : at + BLOCK]
        places = at + np.flatnonzero((block < 0) | (block >= vocab_size))
        sequences = np.searchsorted(dataset.pointers, places * dataset.dtype.itemsize, side="right") - 1
        if dataset.multimodal:  # the bytes of an image are no tokens
            places, sequences = (
                places[dataset.modes[sequences] == 0],
                sequences[dataset.modes[sequences] == 0],
            )
        if len(places):
            bad, sequence = int(places[0]), int(sequences[0])
            raise UserError(
                f"{dataset.prefix}.bin: token {dataset.tokens[bad]} in sequence {sequence} is outside the"
                f" vocabulary of {vocab_size:,}; it was written with another tokenizer or is damaged"
            )


@configuration()
class InspectConfig(TokenizerConfig):
    """The settings of `mt data inspect`; with a tokenizer, documents are decoded."""

    POSITIONAL = "prefix"

    prefix: str = option(help="prefix of a .bin/.idx pair", role="input")
    document: int | None = option(None, "the document to print, counted from 0")
    samples: int = option(0, "how many documents, spread evenly, to show the beginnings of")

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.samples >= 0, f"samples = {self.samples} must not be negative"),
            (
                self.samples == 0 or self.document is None,
                "document and samples are two views; give one of them",
            ),
        )


def inspect(config: InspectConfig) -> dict:
    """What a pair holds: counts, the histogram of its lengths and the beginnings of some documents; or one
    document.
    """
    dataset = IndexedDataset(prefix_of(config.prefix), multimodal=None)
    if config.document is not None:
        return _inspect_document(dataset, config)
    lengths = dataset.lengths
    summary = {
        "prefix": dataset.prefix,
        "dtype": str(dataset.dtype),
        "documents": dataset.num_documents,
        "sequences": len(dataset),
        "tokens": len(dataset.tokens),
        "empty_documents": int((np.diff(dataset.document_indices) == 0).sum()),
    }
    if dataset.multimodal:
        numbers, counts = np.unique(dataset.modes, return_counts=True)
        summary["modes"] = {str(mode): int(n) for mode, n in zip(numbers, counts)}
    shown = {
        **summary,
        **(
            {"modes": ", ".join(f"{n:,} of mode {mode}" for mode, n in summary["modes"].items())}
            if dataset.multimodal
            else {}
        ),
    }
    lines = [
        f"{name:<16}{value:,}" if isinstance(value, int) else f"{name:<16}{value}"
        for name, value in shown.items()
    ]
    if len(lengths):
        points = dict(
            zip(
                ("shortest", "median", "longest"),
                (int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
            )
        )
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
        numbers = np.unique(np.linspace(0, dataset.num_documents - 1, config.samples).astype(int)).tolist()
        summary["samples"] = _beginnings(dataset, config, numbers)
        lines += ["", *(f"document {number}: {text}" for number, text in zip(numbers, summary["samples"]))]
    return {"text": "\n".join(lines), **summary}


def _beginnings(dataset: IndexedDataset, config: InspectConfig, numbers: list[int]) -> list[str]:
    """The first tokens of some documents, on one line each."""
    show = _shown_by(config)
    shown = []
    for number in numbers:
        first, last = dataset.document_indices[number : number + 2].tolist()
        start = dataset[first][:BEGINNING] if first < last else []
        text = " ".join(show(start).split())
        shown.append(
            f"{text} ..."
            if first + 1 < last or (first < last and dataset.lengths[first] > BEGINNING)
            else text
        )
    return shown


def _shown_by(config: InspectConfig):
    """Ids -> what a person reads: the text where a tokenizer is given, else the ids."""
    return load(config).decode if config.kind else lambda ids: " ".join(map(str, ids))


def _inspect_document(dataset: IndexedDataset, config: InspectConfig) -> dict:
    number, count = config.document, dataset.num_documents
    if not 0 <= number < count:
        raise UserError(f"{dataset.prefix}: has no document {number}; it has {count:,}, counted from 0")
    first, last = dataset.document_indices[number : number + 2].tolist()
    sequences = [dataset[i].tolist() for i in range(first, last)]
    found = {"prefix": dataset.prefix, "document": number, "first_sequence": first, "sequences": sequences}
    if dataset.multimodal:
        found["modes"] = dataset.modes[first:last].tolist()
    shown = list(map(_shown_by(config), sequences))
    if config.kind:
        found["decoded"] = shown
    if len(shown) > 1:
        shown = [
            f"sequence {i} ({len(ids):,} tokens): {text}"
            for i, (ids, text) in enumerate(zip(sequences, shown), first)
        ]
    plural = "" if len(sequences) == 1 else "s"
    head = f"document {number}: {len(sequences)} sequence{plural}, {sum(map(len, sequences)):,} tokens"
    return {"text": "\n".join([head, *shown]), **found}
