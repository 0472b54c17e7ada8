"""Dumps and packages to documents: `--source wikipedia` and `warc` read `--input`, `python` reads this installation.

Every source yields documents, and says of every page that gives none why (wikipedia.py, warc.py, docstrings.py). The
output directory is that of every document stage (stage.py), `rejects.jsonl` with the pages that cannot be parsed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import glob
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from .. import documents, manifest
from ..config import UserError, check, option
from ..documents import Document, Writer
from ..executor import default_workers, map_shards, processes, progress
from . import docstrings, warc, wikipedia
from .stage import STEMS, Removed, finish

SHARD_FILES = 256  # Python files
LIBRARIES = {"wikipedia": ("mwparserfromhell",), "warc": ("resiliparse", "fastwarc")}
EXTENSIONS = {"wikipedia": wikipedia.EXTENSIONS, "warc": warc.EXTENSIONS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """The settings of `mt data extract`."""

    output: str = option(help="directory for the documents", role="output")
    source: Literal["python", "wikipedia", "warc"] = option("python", "wikipedia: XML dumps; warc: web crawls; python: the prose in the standard library and in installed packages")
    input: tuple[str, ...] = option((), "wikipedia: .xml(.bz2 .gz); warc: .warc(.gz .zst): files, folders or globs", role="input")
    block_bytes: int = option(16_000_000, "wikipedia: XML that makes one output file, in bytes")
    packages: tuple[str, ...] = option(("numpy", "torch"), "python: installed distributions whose docstrings to take beside the standard library's")
    min_chars: int = option(40, "python: docstrings shorter than this are left out")
    max_chars: int = option(5_000, "python: a module with more than this is cut into several documents at its headings")
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "how to write documents")
    workers: int = option(default_workers(), "processes", role="runtime")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        check(
            (self.workers >= 1, f"workers = {self.workers} must be at least 1"),
            (self.max_chars >= 1, f"max_chars = {self.max_chars} must be at least 1"),
            (self.block_bytes >= 1 << 10, f"block_bytes = {self.block_bytes} must be at least {1 << 10}"),
            (bool(self.input) == (self.source != "python"), f"source = {self.source} {'reads this installation: leave input away' if self.input else 'reads files: name them with --input'}"),
        )


def extract(config: ExtractConfig) -> dict:
    """Writes the documents of a source; returns the stage's manifest."""
    return {"python": _python, "wikipedia": _wikipedia, "warc": _warc}[config.source](config)


def _python(config: ExtractConfig) -> dict:
    files, versions = docstrings.python_files(config.packages)
    run = manifest.begin("data extract", config, [], facts={"versions": versions})
    if run.finished:
        return run.manifest
    shards = [files[i : i + SHARD_FILES] for i in range(0, len(files), SHARD_FILES)]
    work = functools.partial(_write_modules, config=config)
    results = map_shards(work, list(enumerate(shards)), done=run.output / "parts", workers=config.workers, label="data extract")
    return finish(run, results, versions=versions)


def _write_modules(item: tuple[int, list[tuple[str, str]]], *, config: ExtractConfig) -> dict:
    index, files = item
    found = (("", d) for name, path in files for d in docstrings.module_documents(name, path, config.min_chars, config.max_chars))
    return write_shard(index, found, config)


def _warc(config: ExtractConfig) -> dict:
    files, versions = input_files(config), library_versions(config.source)
    run = manifest.begin("data extract", config, files, facts={"versions": versions})
    if run.finished:
        return run.manifest
    results = map_shards(
        functools.partial(_write_crawl, config=config), list(enumerate(map(str, files))), done=run.output / "parts",
        workers=config.workers, label="data extract", sizes=[f.stat().st_size for f in files],
    )
    return finish(run, results, versions=versions)


def _write_crawl(item: tuple[int, str], *, config: ExtractConfig) -> dict:
    return write_shard(item[0], warc.documents(item[1]), config)


def _wikipedia(config: ExtractConfig) -> dict:
    files, versions = input_files(config), library_versions(config.source)
    run = manifest.begin("data extract", config, files, facts={"versions": versions})
    if run.finished:
        return run.manifest
    blocks = enumerate(block for file in files for block in wikipedia.blocks(str(file), config.block_bytes))
    with progress("data extract", sum(f.stat().st_size for f in files), "B") as advance:
        results = _write_blocks(blocks, config, run.output / "parts", advance)
    return finish(run, results, versions=versions)


def _write_blocks(blocks: Iterator[tuple[int, wikipedia.Block]], config: ExtractConfig, done: Path, advance) -> list[dict]:
    """The results of all blocks in order. Blocks of an earlier, killed run are read again but not parsed again.

    Not executor.map_shards, which wants all shards at once: a dump can be cut only by whoever decompresses it. Two
    blocks a worker are in memory at any time.
    """
    done.mkdir(parents=True, exist_ok=True)
    results: dict[int, dict] = {}

    def keep(index: int, result: dict) -> None:
        manifest.write_json(done / f"{index:05d}.json", result)
        results[index] = result

    with processes(config.workers) as pool:
        running: dict[concurrent.futures.Future, int] = {}
        for index, block in blocks:
            advance(block.read)
            if (done / f"{index:05d}.json").exists():
                results[index] = manifest.read_json(done / f"{index:05d}.json")
                continue
            if config.workers == 1:
                keep(index, _write_block(index, block, config))
                continue
            if len(running) >= 2 * config.workers:
                for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                    keep(running.pop(future), future.result())
            running[pool.submit(_write_block, index, block, config)] = index
        for future, index in running.items():
            keep(index, future.result())
    return [results[i] for i in sorted(results)]


def _write_block(index: int, block: wikipedia.Block, config: ExtractConfig) -> dict:
    return write_shard(index, wikipedia.documents(block), config)


def write_shard(index: int, found: Iterable[tuple[str, Document | Removed | documents.Reject]], config: ExtractConfig) -> dict:
    """Writes one shard's documents and removed/ lines; returns its counts, for stage.finish."""
    root = Path(config.output)
    removed: collections.Counter = collections.Counter()
    rejects: list[dict] = []
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with Writer(root / f"{index:05d}{STEMS[config.format]}", root=root) as writer, manifest.atomic_write(removed_path, "w") as log:
        for identity, outcome in found:
            if isinstance(outcome, Document):
                writer.write(outcome)
            elif isinstance(outcome, Removed):
                removed[outcome.reason] += 1
                log.write(json.dumps({"id": identity, "reason": outcome.reason, **outcome.facts}, ensure_ascii=False) + "\n")
            else:
                rejects.append(outcome.as_json())
    return {
        "outputs": [writer.record, {**manifest.record(removed_path, root), "documents": False}],
        "rows_in": writer.documents + sum(removed.values()), "rows_kept": writer.documents, "documents": writer.documents,
        "text_bytes_in": writer.text_bytes, "text_bytes": writer.text_bytes, "removed": dict(removed), "tallies": {}, "rejects": rejects,
    }


def input_files(config: ExtractConfig) -> list[Path]:
    """The files behind files, folders and globs, sorted within each; raises UserError for one that gives none."""
    known = EXTENSIONS[config.source]
    files: list[Path] = []
    for item in config.input:
        path = Path(item)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(known))
        else:
            found = [path] if path.exists() else sorted(map(Path, glob.glob(item, recursive=True)))
        if not found:
            raise UserError(f"{item}: {'holds no ' + ', '.join(known) if path.is_dir() else 'no such file or directory'}; check the path")
        if wrong := next((p for p in found if not p.name.endswith(known)), None):
            raise UserError(f"{wrong}: not a kind of file that --source {config.source} reads; use one of {', '.join(known)}")
        files += found
    return files


def library_versions(source: str) -> dict[str, str]:
    """The versions of the libraries on which a source's text depends; raises UserError where one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in LIBRARIES[source]}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"--source {source} needs the package {error.name}; install it with: pip install 'mt[extract]'") from None
