"""Retrieval: chunks or blocks of token files, their embeddings, indices and neighbours."""
