"""Small datasets and corpora for the retrieval database's tests."""

import numpy as np
import pytest

from mt.indexed.format import IndexedDataset, IndexedWriter


@pytest.fixture
def write_data(tmp_path):
    """write_data(name, documents) -> IndexedDataset; documents: lists of sequences of token ids."""

    def write(name, documents, dtype=np.uint16):
        writer = IndexedWriter(tmp_path / name, dtype, tmp_path / f"{name}.parts")
        for sequences in documents:
            filled = [s for s in sequences if len(s)]
            writer.add(
                np.concatenate([np.array(s, dtype) for s in filled]) if filled else np.empty(0, dtype),
                [len(s) for s in filled],
                [len(filled)],
            )
        writer.finish()
        return IndexedDataset(tmp_path / name)

    return write


@pytest.fixture
def write_texts(write_data):
    """write_texts(name, texts) -> IndexedDataset of their bytes (ByteLevelTokenizer), each ended by 0."""
    return lambda name, texts: write_data(name, [[[*text.encode(), 0]] if text else [] for text in texts])
