"""Retrieves the neighbours of chunks while a Retro model scores or generates text.

`mt retro neighbors` finds the neighbours of training samples in advance; here they are found on demand: the
text of a chunk is embedded, its nearest chunks are searched in the database's index, and each is read with
its continuation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.config import UserError
from ..indexed.neighbors import open_chunks, read_database
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .chunks import texts_of
from .embed import open_same
from .index import nearest, open_index


class Retriever:
    """`Retriever(...)(ids)` returns the tokens of the neighbours of chunks.

    ids: (n, chunk_length) int64. Returns the tokens of k neighbours with their continuations, (n, k, 2 *
    chunk_length) int64, and their mask, False at padding.

    directory: a database of `mt retro build-db`. tokenizer, chunk_length: those of the model. Raises
    UserError if the database has another tokenizer or other chunks.
    """

    def __init__(self, directory: str | Path, tokenizer: Tokenizer, *, chunk_length: int, num_neighbors: int):
        root = Path(directory)
        database = read_database(root)
        if database["chunk_length"] != chunk_length:
            raise UserError(
                f"{root}: has chunks of {database['chunk_length']} tokens, and the model reads chunks of"
                f" {chunk_length}; build a database with --chunk-length {chunk_length}"
            )
        if load_directory(root / "tokenizer").fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{root}: has tokens of another tokenizer than the model's; build a database from data that"
                " the model's tokenizer made"
            )
        self.root, self.tokenizer, self.num_neighbors = root, tokenizer, num_neighbors
        self.chunks = open_chunks(root, database)
        self.embedder = open_same(database, None, root)
        self.index = open_index(
            root / "index.faiss",
            database["nprobe"],
            database["ef_search"],
            len(self.chunks),
            self.embedder.dimension,
        )

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = texts_of(ids, np.ones(ids.shape, bool), self.tokenizer, "a text")
        _, found = nearest(self.index, self.embedder(texts), self.num_neighbors, np.empty((0, 3), np.int64))
        return self.chunks.tokens(found, continued=True)
