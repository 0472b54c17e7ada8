"""The documents that Megatron-LM makes up for --mock-data, as a .bin/.idx pair."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ..core.config import UserError
from ..tokenizer.tokenizer import TokenizerConfig
from ..tokenizer.tokenizer import load as load_tokenizer
from .format import IndexedWriter, token_dtype, work_folder

DOCUMENTS = 2000  # of some 2,000 tokens each


def write_mock_data(prefix: str, tokenizer: TokenizerConfig) -> None:
    """Writes the documents that Megatron-LM makes up: 1, 2, 3 ... and the end-of-document token.

    Their lengths are its first DOCUMENTS ones (MockGPTLowLevelDataset): its 100,000 would take 800 MB.
    """
    if Path(f"{prefix}.idx").exists():
        return
    made = load_tokenizer(tokenizer)
    if made.eod is None:
        raise UserError("--mock-data: the tokenizer has no end-of-document token; give another tokenizer")
    lengths = np.random.default_rng(0).integers(low=1, high=4096, size=100_000, dtype=np.int32)[:DOCUMENTS]
    folder = work_folder(Path(prefix))
    writer = IndexedWriter(prefix, token_dtype(made.vocab_size), folder)
    for length in lengths.tolist():
        tokens = np.append((np.arange(length - 1) + 1) % made.vocab_size, made.eod)
        writer.add(tokens, [length], [1])
    writer.finish()
    shutil.rmtree(folder)
