"""several .bin/.idx pairs -> one, in order, as a stream."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..core import manifest
from ..core.config import UserError, configuration, option
from ..core.progress import progress
from .format import BLOCK, IndexedDataset, IndexedWriter, prefix_of, refuse_pairs_of_others, work_folder

READ_BYTES = 1 << 18
SYNC_BYTES = 1 << 25  # written, before the disk is asked to take them while more are read


@configuration()
class MergeConfig:
    """The settings of `mt data merge`."""

    input: tuple[str, ...] = option(
        help="prefixes of .bin/.idx pairs, in the order wanted; a folder stands for its pairs, sorted",
        role="input",
    )
    output_prefix: str = option(help="the result is PREFIX.bin and PREFIX.idx", role="output")
    overwrite: bool = option(False, "replace another run at the output prefix", role="runtime")


def merge(config: MergeConfig) -> dict:
    """Several pairs of the same dtype into one, in order, as a stream; returns the manifest."""
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
    # None where mt did not write it
    facts = [(manifest.manifest_of(f"{p}.bin") or {}).get("tokenizer") for p in prefixes]
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
    shutil.rmtree(folder, ignore_errors=True)  # a killed merge is done again: it is as fast as the disk
    writer = IndexedWriter(run.output, datasets[0].dtype, folder, multimodal=multimodal)
    with progress("merge", sum(d.tokens.nbytes for d in datasets), "B") as advance:
        _copy_tokens(writer, datasets, advance)
        for dataset in datasets:
            for at in range(0, len(dataset), BLOCK):
                modes = dataset.modes[at : at + BLOCK] if multimodal else None
                writer.add((), dataset.lengths[at : at + BLOCK], (), modes)
            for at in range(0, dataset.num_documents, BLOCK):
                writer.add((), (), np.diff(dataset.document_indices[at : at + BLOCK + 1]))
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
    """Appends the tokens of all, while a thread has the disk take what is written: at the end little is left
    to wait for.
    """
    syncing: Future | None = None
    waiting = 0
    with ThreadPoolExecutor(1, "sync") as pool:
        for dataset in datasets:
            for block in _token_blocks(f"{dataset.prefix}.bin", dataset.dtype):
                writer.add(block, (), ())
                advance(block.nbytes)
                waiting += block.nbytes
                if waiting >= SYNC_BYTES and (syncing is None or syncing.done()):
                    if syncing is not None:
                        syncing.result()  # the system tells of a failed write once only
                    syncing, waiting = pool.submit(writer.sync_tokens), 0
        if syncing is not None:
            syncing.result()


def _token_blocks(path: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tokens of a file in blocks, each good until the next is asked for.

    Always in the same memory, which stays in the processor's cache: as fast as a copy inside the kernel,
    where blocks of 4 MB took twice as long and the memory map three times.
    """
    buffer = memoryview(bytearray(READ_BYTES))
    with open(path, "rb") as file:
        while count := file.readinto(buffer):
            yield np.frombuffer(buffer[:count], dtype)


def _pairs(item: str) -> list[str]:
    if not os.path.isdir(item):
        return [prefix_of(item)]
    found = sorted(str(p.with_suffix("")) for p in Path(item).glob("*.idx"))
    if not found:
        raise UserError(f"{item}: holds no .bin/.idx pair; check the path")
    return found
