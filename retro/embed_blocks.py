"""Embeds the blocks of documents with a biencoder, and indexes them for retrieval (`mt retro embed-blocks`).

    blocks.npy       (blocks,) BLOCK: the position of every block in the data
    index.faiss      the Faiss index of the blocks' embeddings, by inner product
    tokenizer/       the tokenizer of the data and the model
    manifest.json    settings, counts and `evidence` (BlocksInfo); written last
    parts/           embeddings during the build; a resumed run computes at most one block of each worker
                     again

The blocks are those of training (indexed/ict_dataset.py), each once, in the order of the documents. The bytes
depend neither on the number of workers nor on kills in between.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch

from ..core import manifest
from ..core.arrays import open_array
from ..core.config import UserError, check, configuration, option
from ..core.executor import Workers, once
from ..indexed.format import IndexedDataset
from ..indexed.ict_dataset import (
    SPECIAL_TOKENS,
    add_special_tokens,
    blocks_in_order,
    check_titles,
    joined,
    title_lengths,
    title_of,
)
from ..indexed.neighbors import DataInfo, Length, open_data, read_fact
from ..indexed.word_pieces import word_pieces
from ..train.checkpoint.native import NativeCheckpoint
from ..train.checkpoint.open import open_checkpoint
from ..train.model.biencoder import Biencoder
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
    open_index,
    search,
    training_sample,
)
from .row_blocks import block_size, cached_in_worker, discard_parts, map_blocks

# The sentences [first, end) of a document of a dataset, both numbered from 0.
BLOCK = np.dtype([("dataset", "<u2"), ("document", "<u4"), ("first", "<u8"), ("end", "<u8")])


class BlocksInfo(TypedDict):
    """`evidence` in the manifest of embedded blocks."""

    data: list[DataInfo]
    titles: list[DataInfo]  # empty if blocks have no titles
    seq_length: Length  # tokens of a block
    index: str
    nprobe: Length
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
        "prefixes of the documents' titles, one for each of --data-path (default: blocks have no titles)",
        role="input",
    )
    output: str = option(help="directory for the blocks and their index", role="output")
    use_one_sent_docs: bool = option(False, "allow blocks of one sentence")
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (bool(self.data_path), "data_path must name at least one prefix of a .bin/.idx pair"),
            (
                not self.titles_data_path or len(self.titles_data_path) == len(self.data_path),
                f"titles_data_path names {len(self.titles_data_path)} and data_path"
                f" {len(self.data_path)}; give one for each, in the same order",
            ),
            (self.nprobe is None or self.nprobe >= 1, f"nprobe = {self.nprobe} must be at least 1"),
        )


def embed_blocks(config: EmbedBlocksConfig) -> dict[str, Any]:
    """Embeds every block of the data and indexes the embeddings; returns the manifest."""
    encoder = BiencoderEmbedder(config.load)
    data = [IndexedDataset(prefix) for prefix in config.data_path]
    titles = [IndexedDataset(prefix) for prefix in config.titles_data_path]
    for dataset in [*data, *titles]:
        check_data(dataset, encoder.tokenizer)
    blocks = find_blocks(data, titles, encoder.seq_length, config.use_one_sent_docs)
    if not len(blocks):
        raise UserError(
            f"{', '.join(config.data_path)}: has no block; tokenize with --split-sentences, or pass"
            " --use-one-sent-docs"
        )
    index = config.index or choose_index(len(blocks), encoder.model.embedding_size)
    check_index(index, len(blocks), encoder.model.embedding_size, "inner product")
    inputs = [f"{dataset.prefix}.{suffix}" for dataset in [*data, *titles] for suffix in ("bin", "idx")]
    run = manifest.begin("retro embed-blocks", config, inputs, facts={"model": encoder.digest})
    if run.finished:
        discard_parts(run.output)
        return run.manifest

    def place(dataset: IndexedDataset) -> DataInfo:
        prefix = os.path.relpath(dataset.prefix, run.output)
        return DataInfo(prefix=prefix, fingerprint=dataset.fingerprint)

    evidence = BlocksInfo(
        data=list(map(place, data)),
        titles=list(map(place, titles)),
        seq_length=encoder.seq_length,
        index=index,
        nprobe=config.nprobe or choose_nprobe(index),
        model=encoder.digest,
    )
    root = run.output

    def write_blocks() -> None:
        encoder.tokenizer.save(root / "tokenizer")
        with manifest.atomic_write(root / "blocks.npy") as file:
            np.save(file, blocks)

    def write_index() -> None:
        build_index(
            root / "index.faiss",
            root / "parts" / "trained.faiss",
            index,
            parts,
            training_sample(index, [(len(blocks), 1)], None, seed=0),
            config.workers,
            "inner product",
        )

    once(write_blocks, root / "parts", "blocks")
    task = _EmbedTask(str(root), config.load, config.data_path, config.titles_data_path, run.key)
    parts = map_blocks(
        functools.partial(_embed, task=task),
        len(blocks),
        block_size(len(blocks)),
        root / "parts" / "embeddings",
        label="retro embed-blocks",
        where=config.where,
    )
    once(write_index, root / "parts", "index")
    files = [root / "blocks.npy", root / "index.faiss", *sorted((root / "tokenizer").iterdir())]
    counts = {"documents": sum(d.num_documents for d in data), "blocks": len(blocks)}
    sealed = run.finish([manifest.record(f, root) for f in files], counts, evidence=evidence)
    discard_parts(root)
    return sealed


def find_blocks(
    data: Sequence[IndexedDataset], titles: Sequence[IndexedDataset], seq_length: int, use_one_sent_docs: bool
) -> np.ndarray:
    """The blocks of all documents, in order: (blocks,) BLOCK. titles: of every dataset, or empty."""
    tables = []
    for number, dataset in enumerate(data):
        title = titles[number] if titles else None
        check_titles(dataset, title)
        lengths = title_lengths(title, dataset.num_documents, seq_length)
        rows = blocks_in_order(
            dataset.document_indices, dataset.lengths, lengths, seq_length - SPECIAL_TOKENS, use_one_sent_docs
        )
        table = np.empty(len(rows), BLOCK)
        table["dataset"], table["document"] = number, rows[:, 2]
        table["first"], table["end"] = rows[:, 0], rows[:, 1]
        tables.append(table)
    return np.concatenate(tables)


@dataclasses.dataclass(frozen=True)
class _EmbedTask:
    """The arguments of a worker: the blocks and the model. Hashable, for `cached_in_worker`."""

    root: str
    load: str
    prefixes: tuple[str, ...]
    titles: tuple[str, ...]
    key: str  # of the run, so that a worker which outlives a build opens the files of the next one


def _embed(start: int, stop: int, *, task: _EmbedTask) -> np.ndarray:
    """The embeddings of blocks [start, stop): (n, E) float32."""
    blocks, encoder = _open(task)
    tokens = [
        add_special_tokens(encoder.words, encoder.seq_length, blocks.text(n), blocks.title(n))
        for n in range(start, stop)
    ]
    check_tokens(np.array([max(row) for row in tokens]), encoder.tokenizer, ", ".join(task.prefixes))
    return encoder.blocks(tokens)


@cached_in_worker
def _open(task: _EmbedTask) -> tuple[Blocks, BiencoderEmbedder]:
    encoder = BiencoderEmbedder(task.load)
    table = open_array(Path(task.root) / "blocks.npy", BLOCK, (None,))
    data = [IndexedDataset(prefix) for prefix in task.prefixes]
    titles = [IndexedDataset(prefix) for prefix in task.titles]
    return Blocks(table, data, titles, encoder.seq_length), encoder


class Blocks:
    """The tokens of blocks.

    table: (blocks,) BLOCK. data, titles: the datasets that the table numbers; titles may be empty. place:
    names the table in messages. A stranger may have made it: a row is compared with the data before it is
    used.
    """

    def __init__(
        self,
        table: np.ndarray,
        data: Sequence[IndexedDataset],
        titles: Sequence[IndexedDataset],
        seq_length: int,
        place: str | Path = "blocks.npy",
    ):
        self.table, self.data, self.titles, self.seq_length = table, data, titles, seq_length
        self.place = place

    def row(self, number: int) -> tuple[int, int, int, int]:
        """(dataset, document, first, end) of a block; raises UserError for one that is not in the data."""
        if not 0 <= number < len(self.table):
            raise UserError(
                f"{self.place}: has no block {number:,}, which the index names; embed the blocks again"
            )
        rows = self.table[number : number + 1]
        self.check_rows(rows)
        dataset, document, first, end = map(int, rows[0].tolist())
        return dataset, document, first, end

    def check_rows(self, rows: np.ndarray) -> None:
        """Raises UserError for a row (n,) BLOCK that is not sentences of a document of the data."""
        right = np.zeros(len(rows), bool)
        for number, dataset in enumerate(self.data):
            documents = min(d.num_documents for d in (dataset, *self.titles[number : number + 1]))
            own = np.flatnonzero((rows["dataset"] == number) & (rows["document"] < documents))
            document, first, end = (rows[name][own] for name in ("document", "first", "end"))
            begin, stop = (
                dataset.document_indices[document.astype(np.int64) + n].astype(np.uint64) for n in (0, 1)
            )
            right[own] = (begin <= first) & (first < end) & (end <= stop)
        if not right.all():
            dataset, document, first, end = rows[np.flatnonzero(~right)[0]].tolist()
            raise UserError(
                f"{self.place}: has a block of the sentences {first:,} to {end:,} of document {document:,} of"
                f" dataset {dataset:,}, which the data do not have; embed the blocks again"
            )

    def text(self, number: int) -> np.ndarray:
        """The tokens of a block's sentences: (n,)."""
        dataset, _, first, end = self.row(number)
        return joined([self.data[dataset][i] for i in range(first, end)])

    def title(self, number: int) -> np.ndarray | None:
        """The tokens of the title of a block's document: (n,); None without titles."""
        if not self.titles:
            return None
        dataset, document, _, _ = self.row(number)
        return title_of(self.titles[dataset], document, self.seq_length)


class BiencoderEmbedder:
    """Embeds questions and blocks with the checkpoint of a biencoder.

    It uses one thread, so that embeddings do not depend on the number of threads.
    """

    def __init__(self, load: str):
        checkpoint = open_checkpoint(load)
        if family_of(checkpoint.config).encoder != "dual":
            raise UserError(
                f"{load}: is a model of family {checkpoint.config.family}, which does not embed questions and"
                " blocks; give a run of `mt train --family ict`"
            )
        assert isinstance(checkpoint, NativeCheckpoint), "no other library has such a model"
        self.model, self.tokenizer = cast(Biencoder, checkpoint.load_model()), checkpoint.load_tokenizer()
        self.seq_length, self.words = checkpoint.seq_length, word_pieces(self.tokenizer)
        self.digest = checkpoint.weights_digest()
        use_fast_float32_matmul()

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings of questions: (n, E) float32. Texts that are too long are truncated."""
        encode = lambda text: np.array(self.tokenizer.encode(text), np.int64)
        return self._embed(
            self.model.embed_queries,
            [add_special_tokens(self.words, self.seq_length, encode(text)) for text in texts],
        )

    def blocks(self, tokens: Sequence[list[int]]) -> np.ndarray:
        """The embeddings of blocks: (n, E) float32. tokens: [CLS] title [SEP] sentences [SEP] of each."""
        return self._embed(self.model.embed_blocks, tokens)

    @torch.inference_mode()
    def _embed(
        self, embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], rows: Sequence[list[int]]
    ) -> np.ndarray:
        (pad,) = self.words.require("pad")
        vectors = np.zeros((len(rows), self.model.embedding_size), np.float32)
        lengths = np.array([len(row) for row in rows], np.int64)
        device = next(self.model.parameters()).device
        with one_thread():
            for numbers in batches_by_length(lengths, tokens_per_batch(device)):
                present = (
                    torch.arange(int(lengths[numbers].max())) < torch.from_numpy(lengths[numbers])[:, None]
                )
                tokens = torch.full(present.shape, pad)
                tokens[present] = torch.tensor([token for n in numbers for token in rows[n]])
                vectors[numbers] = embed(tokens.to(device), present.to(device)).float().cpu().numpy()
        return vectors


class BlockSearcher:
    """Searches embedded blocks for questions.

    db: the output of `mt retro embed-blocks`. data_path, titles_data_path: the present prefixes of its data,
    if they have moved. Raises UserError if it is not finished, or if another model embedded it.
    """

    def __init__(
        self,
        db: str,
        encoder: BiencoderEmbedder,
        data_path: Sequence[str] = (),
        titles_data_path: Sequence[str] = (),
    ):
        root = Path(db)
        evidence: BlocksInfo = read_fact(
            root,
            "evidence",
            f"not finished blocks; make them with `mt retro embed-blocks --output {db}`",
            BlocksInfo,
        )
        if evidence["titles"] and len(evidence["titles"]) != len(evidence["data"]):
            raise UserError(
                f"{root / 'manifest.json'}: evidence.titles: must be as many as evidence.data; embed the"
                " blocks again"
            )
        if evidence["model"] != encoder.digest:
            raise UserError(
                f"{db}: was embedded by another model than the one in --load; give that one, or embed the"
                " blocks again"
            )
        data = open_data(root, evidence["data"], data_path)
        titles = open_data(root, evidence["titles"], titles_data_path)
        self.encoder = encoder
        table = open_array(root / "blocks.npy", BLOCK, (None,))
        self.blocks = Blocks(table, data, titles, evidence["seq_length"], root / "blocks.npy")
        self.index = open_index(
            root / "index.faiss",
            evidence["nprobe"],
            choose_ef_search(evidence["nprobe"]),
            len(table),
            encoder.model.embedding_size,
        )

    def __call__(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(inner products (n, k) float32, ids (n, k) int64) of the best blocks, best first; -1: missing."""
        vectors = self.encoder.questions(questions)
        return search(self.index, vectors, k)

    def text(self, number: int) -> str:
        """The text of a block, without its title."""
        return self.encoder.tokenizer.decode(self.blocks.text(number).tolist())
