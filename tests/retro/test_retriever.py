"""Neighbours that are found on demand, compared with a brute-force search."""

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.neighbors import Neighbors
from mt.retro.embed import Embedder
from mt.retro.retriever import Retriever
from mt.tests.retro.small_databases import LENGTH
from mt.tokenizer.tokenizer import TokenizerConfig, load

BYTES = {"tokenizer_type": "ByteLevelTokenizer"}


def test_neighbours_are_the_nearest_chunks_of_a_brute_force_search_with_their_continuations(built):
    retrieve = Retriever(built / "db", load(TokenizerConfig(**BYTES)), chunk_length=LENGTH, num_neighbors=3)
    texts = ["a river falls. th", "the violin sings", "winter"]
    ids = np.zeros((3, LENGTH), np.int64)  # 0 is the end of a document and not part of the text
    for row, text in zip(ids, texts):
        row[: len(text)] = list(text.encode()[:LENGTH])
    tokens, mask = retrieve(ids)
    assert tokens.shape == mask.shape == (3, 3, 2 * LENGTH)
    chunks = Neighbors(built / "db").chunks
    stored, present = chunks.tokens(np.arange(len(chunks)))
    embed = Embedder()
    decode = lambda row, keep: bytes(row[keep & (row > 0)].tolist()).decode()
    vectors = embed([decode(*pair) for pair in zip(stored, present)])
    wanted = embed([text[:LENGTH] for text in texts])
    distances = ((wanted[:, None].astype(np.float64) - vectors[None]) ** 2).sum(-1)
    nearest = np.argsort(distances, 1)[:, :3]
    continued, continued_mask = chunks.tokens(nearest, continued=True)
    assert np.array_equal(tokens, continued)
    assert np.array_equal(mask, continued_mask)


def test_a_database_of_other_chunks_or_another_tokenizer_is_refused(built):
    with pytest.raises(UserError, match="has chunks of 16 tokens, and the model reads chunks of 8; build a"):
        Retriever(built / "db", load(TokenizerConfig(**BYTES)), chunk_length=8, num_neighbors=2)
    other = load(TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=300))
    with pytest.raises(UserError, match="has tokens of another tokenizer than the model's; build a database"):
        Retriever(built / "db", other, chunk_length=LENGTH, num_neighbors=2)
