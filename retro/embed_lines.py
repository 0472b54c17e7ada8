"""`mt retro embed-lines`: the vectors of texts, for another program.

    mt data dedup --method semantic ...      # starts it

In, on standard input: lines {"text": ...}. Out, on standard output: the vectors in the same order, float16,
little-endian, each of length one: D numbers a text. A text without tokens has zeros.
"""

from __future__ import annotations

import sys

import numpy as np

from ..core.config import configuration, option
from ..core.text_lines import read_texts
from .embed import Embedder

BATCH_CHARS = 1_000_000  # of texts that are embedded at once


@configuration()
class EmbedLinesConfig:
    """The settings of `mt retro embed-lines`."""

    bert_model: str | None = option(
        None, "directory of a BERT (default: the installed all-MiniLM-L6-v2)", role="input"
    )


def embed_lines(config: EmbedLinesConfig) -> None:
    """Writes a vector for every line of standard input."""
    embedder = Embedder(config.bert_model)
    texts: list[str] = []
    size = 0
    for text in read_texts(sys.stdin.buffer):
        texts.append(text)
        size += len(texts[-1])
        if size >= BATCH_CHARS:
            _write(embedder(texts))
            texts, size = [], 0
    if texts:
        _write(embedder(texts))


def _write(vectors: np.ndarray) -> None:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    sys.stdout.buffer.write((vectors / np.maximum(lengths, 1e-12)).astype("<f2").tobytes())
    sys.stdout.buffer.flush()
