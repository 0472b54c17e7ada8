"""retrieval database, or neighbours of samples -> what is in it, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.config import UserError, check, configuration, option
from ..core.manifest import manifest_of
from ..indexed.neighbors import Neighbors, SampleNeighbors
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .chunks import chunk_texts, texts_of
from .query import check_chunks, one_line
from .sample_neighbors import drawn


@configuration()
class InspectConfig:
    """The settings of `mt retro inspect`."""

    POSITIONAL = "directory"

    directory: str = option(
        help="a database of `mt retro build-db`, or neighbours of `mt retro neighbors`", role="input"
    )
    chunk: tuple[int, ...] = option((), "numbers of chunks of the database to show, with their neighbours")
    sample: int | None = option(None, "number of a sample to show, chunk by chunk with its neighbours")
    sample_split: str = option("train", "which samples: train, valid or test")
    num_neighbors: int = option(2, "neighbours to show")
    data_path: tuple[str, ...] = option(
        (), "where the data of the database lie now, if they have moved", role="input"
    )

    def __post_init__(self):
        check((self.num_neighbors >= 1, f"num_neighbors = {self.num_neighbors} must be at least 1"))


def inspect(config: InspectConfig) -> dict:
    """Facts of a database or of samples' neighbours, and what is asked of them."""
    root = Path(config.directory)
    made = (manifest_of(root) if root.is_dir() else None) or {}
    if "samples" in made:
        if config.chunk:
            raise UserError(
                f"{root}: holds the neighbours of samples; ask it with --sample, and its database with"
                " --chunk"
            )
        return _samples(config, root, made)
    if config.sample is not None:
        raise UserError(
            f"{root}: is not the finished neighbours of samples, which `mt retro neighbors` makes; ask a"
            " database with --chunk"
        )
    return _database(config, root, made)


def _database(config: InspectConfig, root: Path, made: dict) -> dict:
    neighbors = Neighbors(root, config.data_path)
    chunks, tokenizer = neighbors.chunks, load_directory(root / "tokenizer")
    check_chunks(config.chunk, chunks, root)
    facts = {
        **{k: v for k, v in neighbors.database.items() if k != "data"},
        "data": [d.prefix for d in chunks.data],
        **made["counts"],
    }
    shown = []
    for number in config.chunk:
        row, ids = chunks.table[number], np.array(neighbors.ids[number, : config.num_neighbors])
        shown.append(
            {
                "chunk": number,
                "data": chunks.data[row["dataset"]].prefix,
                **{n: int(row[n]) for n in ("document", "start", "end")},
                "text": chunk_texts(chunks, tokenizer, np.array([number]))[0],
                "neighbors": _neighbors(chunks.tokens(ids, continued=True), ids, tokenizer),
            }
        )
    lines = [
        *_rows(facts),
        *(
            line
            for c in shown
            for line in [
                "",
                f"chunk {c['chunk']} ({c['data']}, document {c['document']}): {one_line(c['text'])}",
                *_neighbor_lines(c),
            ]
        ),
    ]
    return {"text": "\n".join(lines), "facts": facts, "chunks": shown}


def _samples(config: InspectConfig, root: Path, made: dict) -> dict:
    facts = {**{k: v for k, v in made["samples"].items() if k != "splits"}, **made["counts"]}
    if config.sample is None:
        return {"text": "\n".join(_rows(facts)), "facts": facts}
    splits = made["samples"]["splits"]
    if config.sample_split not in splits:
        raise UserError(f"sample_split = {config.sample_split}: {root} has {', '.join(splits)}")
    if not 0 <= config.sample < splits[config.sample_split]["samples"]:
        raise UserError(
            f"sample {config.sample}: {root} has the {config.sample_split} samples 0 to"
            f" {splits[config.sample_split]['samples'] - 1:,}"
        )
    dataset = drawn(made["draws"], config.sample_split)
    read = SampleNeighbors(root, dataset)
    tokenizer = load_directory(root / made["samples"]["database"] / "tokenizer")
    k = min(config.num_neighbors, made["samples"]["num_neighbors"])
    tokens = dataset[config.sample][: splits[config.sample_split]["seq_length"]].reshape(
        -1, read.chunk_length
    )
    found, mask = read.tokens(config.sample, k)
    shown = [
        {
            "text": text,
            "neighbors": _neighbors((found[i], mask[i]), read.ids[config.sample, i, :k], tokenizer),
        }
        for i, text in enumerate(
            texts_of(tokens, np.ones(tokens.shape, bool), tokenizer, config.sample_split)
        )
    ]
    lines = [
        line for i, c in enumerate(shown) for line in [f"{i}: {one_line(c['text'])}", *_neighbor_lines(c)]
    ]
    return {"text": "\n".join(lines), "facts": facts, "sample": config.sample, "chunks": shown}


def _neighbors(read: tuple[np.ndarray, np.ndarray], ids: np.ndarray, tokenizer: Tokenizer) -> list[dict]:
    """Each neighbour's number and its text with the continuation; missing ones left out."""
    return [
        {"chunk": int(i), "text": text}
        for i, text in zip(ids, texts_of(*read, tokenizer, "the database"))
        if i >= 0
    ]


def _neighbor_lines(shown: dict) -> list[str]:
    return [f"    chunk {n['chunk']}: {one_line(n['text'])}" for n in shown["neighbors"]] or [
        "    no neighbour"
    ]


def _rows(facts: dict) -> list[str]:
    width = max(map(len, facts))
    return [
        f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}"
        for name, value in facts.items()
    ]
