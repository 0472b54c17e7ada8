"""Small datasets and databases for the tests of this folder."""

import numpy as np
import pytest

from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.retro.build import build_db
from mt.retro.sample_neighbors import neighbors
from mt.tests.retro.small_databases import database_settings, neighbor_settings, texts, write


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


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with `data`, 60 texts, and the database `db` of it."""
    folder = tmp_path_factory.mktemp("retro")
    writer = IndexedWriter(folder / "data", np.uint16, folder / "writing")
    for text in texts(60):
        tokens = [*text.encode(), 0] if text else []
        writer.add(np.array(tokens, np.uint16), [len(tokens)] if tokens else [], [1 if tokens else 0])
    writer.finish()
    build_db(database_settings(folder))
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Data `a`, `b`, their database `db`, and the neighbours `near` of a blend of them and of `c`."""
    folder = tmp_path_factory.mktemp("samples")
    for seed, name in enumerate("abc"):
        write(folder / name, texts(40, seed, 8))
    build_db(database_settings(folder, data=("a", "b"), num_neighbors=2))
    neighbors(neighbor_settings(folder))
    return folder
