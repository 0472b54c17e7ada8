"""Merges .bin/.idx pairs into one, in order, as a stream (`mt data merge`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..core import manifest, paths
from ..core.config import UserError, check, configuration, option
from ..core.progress import progress
from .check import tokenizer_facts
from .format import (
    BLOCK,
    IndexedDataset,
    IndexedWriter,
    output_prefix_rule,
    prefix_of,
    refuse_pairs_of_others,
    work_folder,
)

READ_BYTES = 1 << 18
SYNC_BYTES = 1 << 25  # written before a thread syncs them to the disk, while more are copied


@configuration()
class MergeConfig:
    """The settings of `mt data merge`."""

    input: tuple[str, ...] = option(
        help="prefixes of .bin/.idx pairs, in order; a folder stands for its pairs, sorted",
        role="input",
    )
    output_prefix: str = option(help="the result is PREFIX.bin and PREFIX.idx", role="output")
    overwrite: bool = option(False, "replace another run at the output prefix", role="runtime")

    def __post_init__(self) -> None:
        check(output_prefix_rule(self.output_prefix))


def merge(config: MergeConfig) -> dict[str, Any]:
    """Merges pairs of the same dtype and tokenizer; returns the manifest.

    Raises UserError if the pairs differ in dtype, tokenizer or the presence of modes, or if the output is one
    of them.
    """
    prefixes = [p for item in config.input for p in _pairs(item)]
    if Path(config.output_prefix).resolve() in {Path(p).resolve() for p in prefixes}:
        raise UserError(f"output_prefix = {config.output_prefix} is one of the inputs; choose another output")
    datasets = [IndexedDataset(p, multimodal=None) for p in prefixes]
    multimodal = next((d.multimodal for d in datasets if len(d)), False)
    for prefix, dataset in zip(prefixes, datasets):
        if dataset.dtype != datasets[0].dtype:
            raise UserError(
                f"{prefix}: its tokens are {dataset.dtype}, those of {prefixes[0]} {datasets[0].dtype};"
                " tokenize both with one tokenizer"
            )
        if len(dataset) and dataset.multimodal != multimodal:
            raise UserError(
                f"{prefix}: {'has' if dataset.multimodal else 'lacks'} the modes of multimodal data, unlike"
                " those before it; merge the two kinds apart"
            )
    # None for a pair that mt did not write
    facts = [tokenizer_facts(p) for p in prefixes]
    known = [(p, f) for p, f in zip(prefixes, facts) if f]
    other = next((p for p, f in known if f != known[0][1]), None)
    if other is not None:
        raise UserError(
            f"{other}: was written with another tokenizer than {known[0][0]}; tokenize both with one"
        )
    run = manifest.begin("data merge", config, [f"{p}.{s}" for p in prefixes for s in ("bin", "idx")])
    if run.finished:
        return run.manifest
    folder = work_folder(run.output)
    if not config.overwrite and not folder.exists():
        refuse_pairs_of_others(run, [run.output])
    # a killed merge starts again: it is as fast as the disk
    paths.remove(folder, ignore_errors=True)
    writer = IndexedWriter(run.output, datasets[0].dtype, folder, multimodal=multimodal)
    with progress("merge", sum(d.tokens.nbytes for d in datasets), "B") as advance:
        _copy_tokens(writer, datasets, advance)
        for dataset in datasets:
            for start in range(0, len(dataset), BLOCK):
                modes = None if dataset.modes is None else dataset.modes[start : start + BLOCK]
                writer.add((), dataset.lengths[start : start + BLOCK], (), modes)
            for start in range(0, dataset.num_documents, BLOCK):
                writer.add((), (), np.diff(dataset.document_indices[start : start + BLOCK + 1]))
    counts = {
        "inputs": len(datasets),
        "documents": writer.documents,
        "sequences": writer.sequences,
        "tokens": sum(len(d.tokens) for d in datasets),
    }
    same = {"tokenizer": facts[0]} if all(facts) else {}
    outputs = [{**o, "documents": False} for o in writer.finish()]
    sealed = run.finish(outputs, counts, dtype=str(datasets[0].dtype), **same)
    shutil.rmtree(folder, ignore_errors=True)
    return sealed


def _copy_tokens(
    writer: IndexedWriter, datasets: Sequence[IndexedDataset], advance: Callable[[int], None]
) -> None:
    """Appends the tokens of all datasets, while a thread syncs them to the disk."""
    syncing: Future[None] | None = None
    unsynced = 0
    with ThreadPoolExecutor(1, "sync") as pool:
        for dataset in datasets:
            for block in _token_blocks(f"{dataset.prefix}.bin", dataset.dtype):
                writer.add(block, (), ())
                advance(block.nbytes)
                unsynced += block.nbytes
                if unsynced >= SYNC_BYTES and (syncing is None or syncing.done()):
                    if syncing is not None:
                        syncing.result()  # raises: the system reports a failed write only once
                    syncing, unsynced = pool.submit(writer.sync_tokens), 0
        if syncing is not None:
            syncing.result()


def _token_blocks(path: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tokens of a file in blocks, each valid until the next one is read.

    All use the same memory, which stays in the processor's cache. This is as fast as a copy inside the
    kernel; blocks of 4 MB took twice as long, and reading the memory map three times.
    """
    buffer = memoryview(bytearray(READ_BYTES))
    with open(path, "rb") as file:
        while count := file.readinto(buffer):
            yield np.frombuffer(buffer[:count], dtype)


def _pairs(item: str) -> list[str]:
    """The prefixes that an input stands for: itself, or the pairs of a folder."""
    if not os.path.isdir(item):
        return [prefix_of(item)]
    found = sorted(str(p.with_suffix("")) for p in Path(item).glob("*.idx"))
    if not found:
        raise UserError(f"{item}: holds no .bin/.idx pair; check the path")
    return found
