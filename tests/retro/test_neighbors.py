import numpy as np
import pytest

from mt.indexed.neighbors import Chunks
from mt.retro.chunks import select_chunks, write_chunks

EOD, PAD, LENGTH = 0, 99, 4
DOCUMENTS = [
    [[[1, 2, 3, 4, 5, EOD]], [], [[6, 7, 8, 9]]],
    [[[10, 11], [12, 13, 14, 15, 16, 17, 18, EOD]], []],
]


@pytest.fixture
def chunks(write_data, tmp_path):
    """Chunks 0: 1 2 3 4, 1: 5, 2: 6 7 8 9, 3: 10..13, 4: 14..17, 5: 18."""
    data = [write_data(f"d{i}", d) for i, d in enumerate(DOCUMENTS)]
    write_chunks(tmp_path / "chunks.npy", data, select_chunks(data, LENGTH, EOD, None))
    return Chunks(np.load(tmp_path / "chunks.npy", mmap_mode="r"), data, LENGTH, PAD)


def kept(tokens, mask):
    assert (tokens[~mask] == PAD).all()
    return [row[keep].tolist() for row, keep in zip(tokens, mask)]


def test_chunks_are_the_documents_tokens_and_padding(chunks):
    tokens, mask = chunks.tokens(np.array([5, 0, 1, 4, -1]))
    assert tokens.dtype == np.int64
    assert kept(tokens, mask) == [[18], [1, 2, 3, 4], [5], [14, 15, 16, 17], []]


def test_a_continuation_is_the_next_chunk_of_the_same_document_and_never_of_another(chunks):
    tokens, mask = chunks.tokens(np.arange(-1, 6), continued=True)
    assert tokens.shape == (7, 2 * LENGTH)
    assert kept(tokens, mask) == [
        [],
        [1, 2, 3, 4, 5],
        [5],
        [6, 7, 8, 9],
        list(range(10, 18)),
        [14, 15, 16, 17, 18],
        [18],
    ]


def test_tokens_keep_the_shape_of_the_ids(chunks):
    ids = np.array([[0, -1, 3], [2, 2, 5]])
    tokens, mask = chunks.tokens(ids)
    assert tokens.shape == mask.shape == (2, 3, LENGTH)
    assert (tokens[1, 2] == chunks.tokens(np.array([5]))[0][0]).all()
    assert chunks.tokens(np.empty(0, np.int64))[0].shape == (0, LENGTH)
