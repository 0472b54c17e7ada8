"""Finds the nearest chunks of texts in a retrieval database (`mt retro query`)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import UserError, check, configuration, option
from ..indexed.neighbors import Chunks, open_chunks, read_database
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .chunks import chunk_texts, own_ranges, texts_of
from .embed import open_same
from .index import SearchConfig, nearest, open_index


@configuration()
class QueryConfig(SearchConfig):
    """The settings of `mt retro query`."""

    POSITIONAL = "text"

    db: str = option(help="a database that `mt retro build-db` made", role="input")
    text: tuple[str, ...] = option((), "texts to search for")
    tokens: tuple[str, ...] = option(
        (), 'texts as token ids of the database\'s tokenizer, separated by spaces: "464 2068 7586"'
    )
    chunk: tuple[int, ...] = option((), "numbers of chunks to search for; their own documents are excluded")
    num_neighbors: int = option(5, "number of neighbours to show")
    data_path: tuple[str, ...] = option(
        (), "present prefixes of the database's data, if they have moved", role="input"
    )
    bert_model: str | None = option(
        None, "present directory of the database's BERT, if it has moved", role="input"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (
                bool(self.text or self.tokens or self.chunk),
                "there is nothing to search for; give --text, --tokens or --chunk",
            ),
            (self.num_neighbors >= 1, f"num_neighbors = {self.num_neighbors} must be at least 1"),
        )


def query(config: QueryConfig) -> dict[str, Any]:
    """The nearest chunks of texts and of chunks.

    Returns `queries`, each with its text and its neighbours, and a table of them as `text`.
    """
    root = Path(config.db)
    database = read_database(root)
    chunks = open_chunks(root, database, config.data_path)
    table = chunks.table
    check_chunks(config.chunk, chunks, root)
    embedder = open_same(database, config.bert_model, root)
    tokenizer = load_directory(root / "tokenizer")
    given = [*config.text, *(_decode(ids, tokenizer) for ids in config.tokens)]
    texts = [*given, *chunk_texts(chunks, tokenizer, np.array(config.chunk, np.int64))]
    own = [(len(given) + i, *own_ranges(table, n, n + 1)[0, 1:]) for i, n in enumerate(config.chunk)]
    index = open_index(root / "index.faiss", *config.search_width(database), len(chunks), embedder.dimension)
    distances, ids = nearest(
        index, embedder(texts), config.num_neighbors, np.array(own, np.int64).reshape(-1, 3)
    )
    found = chunk_texts(chunks, tokenizer, ids.ravel())
    queries = [
        {
            **({"chunk": config.chunk[i - len(given)]} if i >= len(given) else {}),
            "text": text,
            "neighbors": [
                {
                    "chunk": int(ids[i, j]),
                    "distance": round(float(distances[i, j]), 6),
                    "data": chunks.data[row["dataset"]].prefix,
                    "document": int(row["document"]),
                    "start": int(row["start"]),
                    "end": int(row["end"]),
                    "text": found[i * ids.shape[1] + j],
                }
                for j in range(ids.shape[1])
                if ids[i, j] >= 0
                for row in [table[ids[i, j]]]
            ],
        }
        for i, text in enumerate(texts)
    ]
    return {"text": "\n\n".join(map(_table, queries)), "queries": queries}


def check_chunks(numbers: Sequence[int], chunks: Chunks, root: Path) -> None:
    """Raises UserError for a number that is not one of the database's chunks."""
    wrong = [n for n in numbers if not 0 <= n < len(chunks)]
    if wrong:
        raise UserError(f"chunk {wrong[0]}: {root} has the chunks 0 to {len(chunks) - 1:,}")


def _decode(ids: str, tokenizer: Tokenizer) -> str:
    """The text of token ids that are separated by spaces or commas."""
    try:
        numbers = np.array([int(word) for word in ids.replace(",", " ").split()], np.int64)
    except (ValueError, OverflowError):
        raise UserError(
            f"tokens = {ids!r}: must be token ids, whole numbers separated by spaces; give a text with --text"
        ) from None
    if numbers.min(initial=0) < 0:
        raise UserError(f"tokens = {ids!r}: a token id must not be negative")
    return texts_of(numbers[None], np.ones((1, len(numbers)), bool), tokenizer, "--tokens")[0]


def _table(found: dict[str, Any]) -> str:
    """A query and its neighbours as lines of the terminal's width."""
    columns = shutil.get_terminal_size((120, 24)).columns
    name = f"chunk {found['chunk']}: " if "chunk" in found else ""
    lines = [
        f"{name}{one_line(found['text'])}"[:columns],
        f"{'distance':>9} {'chunk':>9} {'document':>9}  text",
    ]
    for n in found["neighbors"]:
        lines.append(
            f"{n['distance']:>9.4f} {n['chunk']:>9} {n['document']:>9}  {one_line(n['text'])}"[:columns]
        )
    return "\n".join(lines)


def one_line(text: str) -> str:
    return " ".join(text.split())
