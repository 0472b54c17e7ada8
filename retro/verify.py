"""Checks every file of a database, of neighbours of samples or of embedded blocks (`mt retro verify`).

Every command that opens one compares the sizes of its files with the manifest, and values as it uses them.
Here every byte is compared, by the digests in the manifest, and every value: a file with other bytes of the
same size can name other chunks, which nothing else notices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..core import manifest
from ..core.arrays import open_array
from ..core.config import UserError, configuration, option
from ..indexed.neighbors import (
    database_of,
    open_chunks,
    open_data,
    open_sample_ids,
    open_table,
    read_database,
    read_fact,
    read_samples,
    refuse_ids,
)
from .embed_blocks import BLOCK, Blocks, BlocksInfo
from .index import open_index

ROWS_AT_ONCE = 1 << 16


@configuration()
class VerifyRetrievalConfig:
    """The settings of `mt retro verify`."""

    POSITIONAL = "directory"

    directory: str = option(
        help="the output of `mt retro build-db`, `mt retro neighbors` or `mt retro embed-blocks`",
        role="input",
    )
    data_path: tuple[str, ...] = option(
        (), "present prefixes of the database's data, if they have moved", role="input"
    )
    titles_data_path: tuple[str, ...] = option(
        (), "present prefixes of the titles of embedded blocks, if they have moved", role="input"
    )


def verify(config: VerifyRetrievalConfig) -> dict[str, Any]:
    """Checks every file and every value; raises UserError for the first error.

    Returns the files that were checked, and `text`, a line about them.
    """
    root = Path(config.directory)
    sealed = (manifest.manifest_of(root) if root.is_dir() else None) or {}
    checks = {"database": _check_database, "samples": _check_samples, "evidence": _check_blocks}
    kind = next((name for name in checks if name in sealed), None)
    if kind is None:
        raise UserError(
            f"{root}: is neither a finished retrieval database, nor the finished neighbours of samples, nor"
            " finished blocks; give the --output of `mt retro build-db`, `neighbors` or `embed-blocks`"
        )
    read_fact(root, kind, "")  # compares the sizes, which takes no time
    names = [output["name"] for output in sealed["outputs"]]
    for output in sealed["outputs"]:
        path = manifest.output_path(root / "manifest.json", output["name"])
        manifest.check_digest(path, output, sealed)
    checked = checks[kind](root, config)
    text = f"{root}: complete; checked: the digests of {len(names):,} files, {checked}"
    return {"text": text, "files": names, "checked": checked}


def _check_database(root: Path, config: VerifyRetrievalConfig) -> str:
    database = read_database(root)
    chunks = open_chunks(root, database, config.data_path)
    for start in range(0, len(chunks), ROWS_AT_ONCE):
        chunks.check_rows(chunks.table[start : start + ROWS_AT_ONCE])
    ids = open_array(root / "neighbors.npy", "<i8", (len(chunks), database["num_neighbors"]))
    _check_ids(ids, len(chunks), root / "neighbors.npy")
    open_index(root / "index.faiss", database["nprobe"], database["ef_search"], len(chunks))
    return f"{len(chunks):,} chunks and {ids.size:,} neighbours"


def _check_samples(root: Path, config: VerifyRetrievalConfig) -> str:
    info = read_samples(root)
    place, database = database_of(root, info)
    num_chunks, total = len(open_table(place)), 0
    for split in info["splits"]:
        ids = open_sample_ids(root, info, split, database["chunk_length"])
        _check_ids(ids, num_chunks, root / f"{split}.npy")
        total += ids.size
    return f"{total:,} neighbours"


def _check_blocks(root: Path, config: VerifyRetrievalConfig) -> str:
    evidence: BlocksInfo = read_fact(root, "evidence", "", BlocksInfo)
    data = open_data(root, evidence["data"], config.data_path)
    titles = open_data(root, evidence["titles"], config.titles_data_path)
    table = open_array(root / "blocks.npy", BLOCK, (None,))
    blocks = Blocks(table, data, titles, evidence["seq_length"], root / "blocks.npy")
    for start in range(0, len(table), ROWS_AT_ONCE):
        blocks.check_rows(table[start : start + ROWS_AT_ONCE])
    open_index(root / "index.faiss", evidence["nprobe"], evidence["nprobe"], len(table))
    return f"{len(table):,} blocks"


def _check_ids(ids: np.ndarray, num_chunks: int, path: Path) -> None:
    """Raises UserError for an id that is no chunk. ids: (rows, ..., k)."""
    for start in range(0, len(ids), ROWS_AT_ONCE):
        refuse_ids(ids[start : start + ROWS_AT_ONCE], num_chunks, path)
