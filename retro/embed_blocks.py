"""documents and their titles -> blocks, embedded by a biencoder, and an index of them by inner product: what
questions are answered from.

    blocks.npy       (blocks,) BLOCK: where each block lies in the data
    index.faiss      the Faiss index of the blocks' embeddings, by inner product
    tokenizer/       the tokenizer of the data and the model
    manifest.json    settings, counts and the fact `evidence` (Evidence); written last
    parts/           embeddings while it is built: a killed run redoes one block of them a worker

Blocks are those of training (indexed/ict.py), each once, in the order of the documents. Bytes depend neither
on the number of workers nor on kills in between.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.executor import Workers
from ..indexed.format import IndexedDataset
from ..indexed.ict_dataset import (
    SPECIAL_TOKENS,
    blocks_in_order,
    check_titles,
    framed,
    joined,
    title_lengths,
    title_of,
)
from ..indexed.masked_dataset import word_pieces
from ..indexed.neighbors import open_data, read_fact
from ..train.checkpoint.native import NativeCheckpoint
from ..train.checkpoint.open import open_checkpoint
from ..train.model.family import family_of
from ..train.precision import use_fast_float32_matmul
from .chunks import check_data, check_tokens
from .embed import batches_by_length, one_thread, tokens_per_batch
from .index import (
    build_index,
    check_index,
    choose_ef_search,
    choose_index,
    choose_nprobe,
    faiss_threads,
    open_index,
    training_sample,
)
from .row_blocks import block_size, map_blocks, once

# [first, end): its sentences
BLOCK = np.dtype([("dataset", "<u2"), ("document", "<u4"), ("first", "<u8"), ("end", "<u8")])


class Evidence(TypedDict):
    """The fact `evidence` of a manifest."""

    data: list[dict]  # prefix (relative to the directory) and fingerprint of every pair
    titles: list[dict]  # likewise, of their titles; empty without
    seq_length: int
    index: str
    nprobe: int
    model: str  # digest of the biencoder's weights


@configuration()
class EmbedBlocksConfig(Workers):
    """The settings of `mt retro embed-blocks`."""

    load: str = option(help="a biencoder, a run of `mt train --family ict`", role="input")
    data_path: tuple[str, ...] = option(
        help="prefixes of .bin/.idx pairs with a sequence for every sentence", role="input"
    )
    titles_data_path: tuple[str, ...] = option(
        (),
        "prefixes of the documents' titles, one for each of --data-path (default: blocks without titles)",
        role="input",
    )
    output: str = option(help="directory for the blocks and their index", role="output")
    use_one_sent_docs: bool = option(False, "blocks of one sentence too")
    index: str | None = option(
        None,
        "Faiss index_factory string (default: Flat, which is exact, below 50,000 blocks, else IVFn,Flat)",
    )
    nprobe: int | None = option(
        None,
        "cells of an IVF index that a search visits (default: 6 times their root, at most a quarter of them,"
        " at least 16)",
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.data_path), "data_path must name at least one prefix of a .bin/.idx pair"),
            (
                not self.titles_data_path or len(self.titles_data_path) == len(self.data_path),
                (
                    f"titles_data_path names {len(self.titles_data_path)} and data_path"
                    f" {len(self.data_path)}; give one for each, in the same order"
                ),
            ),
            (self.nprobe is None or self.nprobe >= 1, f"nprobe = {self.nprobe} must be at least 1"),
        )


def embed_blocks(config: EmbedBlocksConfig) -> dict:
    """Embeds every block of the data and indexes the embeddings; returns the manifest."""
    encoder = Encoder(config.load)
    data, titles = (
        [IndexedDataset(prefix) for prefix in prefixes]
        for prefixes in (config.data_path, config.titles_data_path)
    )
    for dataset in [*data, *titles]:
        check_data(dataset, encoder.tokenizer)
    blocks = find_blocks(data, titles, encoder.seq_length, config.use_one_sent_docs)
    if not len(blocks):
        raise UserError(
            f"{', '.join(config.data_path)}: holds no block; tokenize with --split-sentences, or pass"
            " --use-one-sent-docs"
        )
    index = config.index or choose_index(len(blocks), encoder.model.embedding_size)
    check_index(index, len(blocks), encoder.model.embedding_size, "inner product")
    files = [f"{dataset.prefix}.{suffix}" for dataset in [*data, *titles] for suffix in ("bin", "idx")]
    run = manifest.begin("retro embed-blocks", config, files, facts={"model": encoder.digest})
    if run.finished:
        return run.manifest
    place = lambda dataset: {
        "prefix": os.path.relpath(dataset.prefix, run.output),
        "fingerprint": dataset.fingerprint,
    }
    evidence = Evidence(
        data=list(map(place, data)),
        titles=list(map(place, titles)),
        seq_length=encoder.seq_length,
        index=index,
        nprobe=config.nprobe or choose_nprobe(index),
        model=encoder.digest,
    )
    root = run.output
    if not (root / "blocks.npy").exists():
        encoder.tokenizer.save(root / "tokenizer")
        with manifest.atomic_write(root / "blocks.npy") as file:
            np.save(file, blocks)
    if not (root / "index.faiss").exists():
        make = functools.partial(
            _embed, work=_Work(str(root), config.load, config.data_path, config.titles_data_path, run.key)
        )
        parts = map_blocks(
            make,
            len(blocks),
            block_size(len(blocks)),
            root / "parts" / "embeddings",
            label="retro embed-blocks",
            where=config.where,
        )
        build_index(
            root / "index.faiss",
            root / "parts" / "trained.faiss",
            index,
            parts,
            training_sample(index, [(len(blocks), 1)], None, seed=0),
            config.workers,
            "inner product",
        )
    shutil.rmtree(root / "parts", ignore_errors=True)
    files = [root / "blocks.npy", root / "index.faiss", *sorted((root / "tokenizer").iterdir())]
    counts = {"documents": sum(d.num_documents for d in data), "blocks": len(blocks)}
    return run.finish([manifest.record(f, root) for f in files], counts, evidence=evidence)


def find_blocks(
    data: Sequence[IndexedDataset], titles: Sequence[IndexedDataset], seq_length: int, use_one_sent_docs: bool
) -> np.ndarray:
    """(blocks,) BLOCK of all documents; titles may be none."""
    tables = []
    for number, dataset in enumerate(data):
        title = titles[number] if titles else None
        check_titles(dataset, title)
        lengths = title_lengths(title, dataset.num_documents, seq_length)
        rows = blocks_in_order(
            dataset.document_indices, dataset.lengths, lengths, seq_length - SPECIAL_TOKENS, use_one_sent_docs
        )
        table = np.empty(len(rows), BLOCK)
        table["dataset"], table["first"], table["end"], table["document"] = (
            number,
            rows[:, 0],
            rows[:, 1],
            rows[:, 2],
        )
        tables.append(table)
    return np.concatenate(tables)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a worker needs to open what is being built."""

    root: str
    load: str
    prefixes: tuple[str, ...]
    titles: tuple[str, ...]
    key: str  # of the run: where a worker outlives a build, the next one opens its own files


def _embed(start: int, stop: int, *, work: _Work) -> np.ndarray:
    """Embeddings of blocks [start, stop): (n, E) float32."""
    blocks, encoder = _opened(work)
    tokens = [
        framed(encoder.words, encoder.seq_length, blocks.text(n), blocks.title(n)) for n in range(start, stop)
    ]
    check_tokens(np.array([max(row) for row in tokens]), encoder.tokenizer, ", ".join(work.prefixes))
    return encoder.blocks(tokens)


@once
def _opened(work: _Work) -> tuple[Blocks, Encoder]:
    encoder = Encoder(work.load)
    table = np.load(Path(work.root) / "blocks.npy", mmap_mode="r")
    return (
        Blocks(
            table,
            *([IndexedDataset(p) for p in prefixes] for prefixes in (work.prefixes, work.titles)),
            encoder.seq_length,
        ),
        encoder,
    )


class Blocks:
    """The tokens of blocks. table: (blocks,) BLOCK."""

    def __init__(
        self,
        table: np.ndarray,
        data: Sequence[IndexedDataset],
        titles: Sequence[IndexedDataset],
        seq_length: int,
    ):
        self.table, self.data, self.titles, self.seq_length = table, data, titles, seq_length

    def text(self, number: int) -> np.ndarray:
        """(n,) tokens of a block's sentences."""
        row = self.table[number]
        dataset = self.data[row["dataset"]]
        return joined([dataset[i] for i in range(int(row["first"]), int(row["end"]))])

    def title(self, number: int) -> np.ndarray | None:
        row = self.table[number]
        return (
            title_of(self.titles[row["dataset"]], int(row["document"]), self.seq_length)
            if self.titles
            else None
        )


class Encoder:
    """A biencoder's checkpoint: token ids -> embeddings (n, E) float32, on one thread, so that they do not
    depend on how many there are.
    """

    def __init__(self, load: str):
        checkpoint = open_checkpoint(load)
        if family_of(checkpoint.config).encoder != "dual":
            raise UserError(
                f"{load}: is a model of family {checkpoint.config.family}, which does not embed questions and"
                " blocks; give a run of `mt train --family ict`"
            )
        assert isinstance(checkpoint, NativeCheckpoint), "no other library has such a model"
        self.model, self.tokenizer = checkpoint.load_model(), checkpoint.load_tokenizer()
        self.seq_length, self.words = checkpoint.seq_length, word_pieces(self.tokenizer)
        self.digest = checkpoint.weights_digest()
        use_fast_float32_matmul()

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """Of texts; what is too long loses its end."""
        encode = lambda text: np.array(self.tokenizer.encode(text), np.int64)
        return self._embed(
            self.model.embed_queries, [framed(self.words, self.seq_length, encode(text)) for text in texts]
        )

    def blocks(self, tokens: Sequence[list[int]]) -> np.ndarray:
        """tokens: [CLS] title [SEP] sentences [SEP] of each."""
        return self._embed(self.model.embed_blocks, tokens)

    @torch.inference_mode()
    def _embed(self, embed: Callable, rows: Sequence[list[int]]) -> np.ndarray:
        vectors = np.zeros((len(rows), self.model.embedding_size), np.float32)
        lengths = np.array([len(row) for row in rows], np.int64)
        device = next(self.model.parameters()).device
        with one_thread():
            for numbers in batches_by_length(lengths, tokens_per_batch(device)):
                present = (
                    torch.arange(int(lengths[numbers].max())) < torch.from_numpy(lengths[numbers])[:, None]
                )
                tokens = torch.full(present.shape, self.words.pad)
                tokens[present] = torch.tensor([token for n in numbers for token in rows[n]])
                vectors[numbers] = embed(tokens.to(device), present.to(device)).float().cpu().numpy()
        return vectors


class Searcher:
    """Finished evidence, opened for questions.

    data_path, titles_data_path: where the data lie now, if they have moved.
    """

    def __init__(
        self, db: str, encoder: Encoder, data_path: Sequence[str] = (), titles_data_path: Sequence[str] = ()
    ):
        root = Path(db)
        evidence: Evidence = read_fact(
            root, "evidence", f"not finished evidence; make it with `mt retro embed-blocks --output {db}`"
        )
        if evidence["model"] != encoder.digest:
            raise UserError(
                f"{db}: was embedded by another model than the one in --load; give that one, or embed the"
                " blocks again"
            )
        data, titles = (
            open_data(root, {"data": evidence[name]}, paths)
            for name, paths in (("data", data_path), ("titles", titles_data_path))
        )
        self.encoder = encoder
        self.blocks = Blocks(
            np.load(root / "blocks.npy", mmap_mode="r"), data, titles, evidence["seq_length"]
        )
        self.index = open_index(
            root / "index.faiss", evidence["nprobe"], choose_ef_search(evidence["nprobe"])
        )

    def __call__(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(inner products (n, k) float32, block numbers (n, k) int64) of the best blocks, best first; -1
        where there are fewer.
        """
        vectors = self.encoder.questions(questions)
        with faiss_threads(1):
            return self.index.search(vectors, k)

    def text(self, number: int) -> str:
        """A block's text, without its title."""
        return self.encoder.tokenizer.decode(self.blocks.text(number).tolist())
