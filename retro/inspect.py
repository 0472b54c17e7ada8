"""Shows a retrieval database, or the neighbours of training samples (`mt retro inspect`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import UserError, check, configuration, option
from ..core.manifest import manifest_of
from ..core.parsing import MADE_BY_MT, check_value
from ..indexed.gpt_dataset import Dataset
from ..indexed.neighbors import Neighbors, SampleNeighbors, SamplesInfo
from ..tokenizer.tokenizer import Tokenizer, load_directory
from .chunks import chunk_texts, texts_of
from .query import check_chunks, one_line
from .sample_neighbors import rebuild_dataset


@configuration()
class InspectRetrievalConfig:
    """The settings of `mt retro inspect`."""

    POSITIONAL = "directory"

    directory: str = option(
        help="a database of `mt retro build-db`, or neighbours of `mt retro neighbors`", role="input"
    )
    chunk: tuple[int, ...] = option((), "numbers of chunks of the database to show, with their neighbours")
    sample: int | None = option(None, "number of a sample to show, with the neighbours of every chunk")
    sample_split: str = option("train", "split of the sample: train, valid or test")
    num_neighbors: int = option(2, "number of neighbours to show")
    data_path: tuple[str, ...] = option(
        (), "present prefixes of the database's data, if they have moved", role="input"
    )

    def __post_init__(self) -> None:
        check((self.num_neighbors >= 1, f"num_neighbors = {self.num_neighbors} must be at least 1"))


def inspect(config: InspectRetrievalConfig) -> dict[str, Any]:
    """Facts of a database or of the neighbours of samples, and the chunks or the sample of the settings."""
    root = Path(config.directory)
    manifest = (manifest_of(root) if root.is_dir() else None) or {}
    if "samples" in manifest:
        if config.chunk:
            raise UserError(
                f"{root}: has the neighbours of samples; use --sample here, and --chunk with its database"
            )
        return _inspect_samples(config, root, manifest)
    if config.sample is not None:
        raise UserError(
            f"{root}: is not the finished neighbours of samples, which `mt retro neighbors` makes; use"
            " --chunk with a database"
        )
    return _inspect_database(config, root, manifest)


def _inspect_database(config: InspectRetrievalConfig, root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    neighbors = Neighbors(root, config.data_path)
    chunks, tokenizer = neighbors.chunks, load_directory(root / "tokenizer")
    check_chunks(config.chunk, chunks, root)
    facts = {
        **{k: v for k, v in neighbors.database.items() if k != "data"},
        "data": [d.prefix for d in chunks.data],
        **manifest["counts"],
    }
    shown = []
    for number in config.chunk:
        chunks.check_rows(chunks.table[number : number + 1])
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


def _inspect_samples(config: InspectRetrievalConfig, root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    info: SamplesInfo = check_value(
        manifest["samples"], SamplesInfo, f"{root / 'manifest.json'}: samples", MADE_BY_MT
    )
    facts = {**{k: v for k, v in info.items() if k != "splits"}, **manifest["counts"]}
    if config.sample is None:
        return {"text": "\n".join(_rows(facts)), "facts": facts}
    splits = info["splits"]
    if config.sample_split not in splits:
        raise UserError(f"sample_split = {config.sample_split}: {root} has {', '.join(splits)}")
    if not 0 <= config.sample < splits[config.sample_split]["samples"]:
        raise UserError(
            f"sample {config.sample}: {root} has the {config.sample_split} samples 0 to"
            f" {splits[config.sample_split]['samples'] - 1:,}"
        )
    with tempfile.TemporaryDirectory() as cache:
        dataset = rebuild_dataset(manifest["draws"], config.sample_split, cache)
        shown = _sample_chunks(config, root, info, dataset)
    lines = [
        line for i, c in enumerate(shown) for line in [f"{i}: {one_line(c['text'])}", *_neighbor_lines(c)]
    ]
    return {"text": "\n".join(lines), "facts": facts, "sample": config.sample, "chunks": shown}


def _sample_chunks(
    config: InspectRetrievalConfig, root: Path, info: SamplesInfo, dataset: Dataset
) -> list[dict[str, Any]]:
    """The texts of a sample's chunks and of their neighbours."""
    assert config.sample is not None
    neighbors = SampleNeighbors(root, dataset)
    tokenizer = load_directory(root / info["database"] / "tokenizer")
    k = min(config.num_neighbors, info["num_neighbors"])
    batch = dataset.batch([config.sample])
    assert isinstance(batch, np.ndarray), "SampleNeighbors refuses samples that are not arrays of tokens"
    tokens = batch[0, : info["splits"][config.sample_split]["seq_length"]].reshape(-1, neighbors.chunk_length)
    found, mask = neighbors.tokens(config.sample, k)
    texts = texts_of(tokens, np.ones(tokens.shape, bool), tokenizer, config.sample_split)
    return [
        {
            "text": text,
            "neighbors": _neighbors((found[i], mask[i]), neighbors.ids[config.sample, i, :k], tokenizer),
        }
        for i, text in enumerate(texts)
    ]


def _neighbors(
    tokens_and_mask: tuple[np.ndarray, np.ndarray], ids: np.ndarray, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The number of every neighbour and its text with the continuation, without missing neighbours."""
    texts = texts_of(*tokens_and_mask, tokenizer, "the database")
    return [{"chunk": int(i), "text": text} for i, text in zip(ids, texts) if i >= 0]


def _neighbor_lines(shown: dict[str, Any]) -> list[str]:
    lines = [f"    chunk {n['chunk']}: {one_line(n['text'])}" for n in shown["neighbors"]]
    return lines or ["    no neighbour"]


def _rows(facts: dict[str, Any]) -> list[str]:
    width = max(map(len, facts))
    return [
        f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}"
        for name, value in facts.items()
    ]
