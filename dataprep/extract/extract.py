"""Dumps and packages to documents: `--source wikipedia` and `warc` read `--input`, `python` reads this
installation.

Every source yields documents, and says of every page that gives none why (wikipedia.py, warc.py,
docstrings.py). A shard is a part of a dump, a WARC file, or some Python files. The output directory is that
of every document stage (stage.py), `rejects.jsonl` with the pages that cannot be parsed.
"""

from __future__ import annotations

import collections
import functools
import glob
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from ...core import manifest
from ...core.config import UserError, check, configuration, option
from ...core.executor import Workers, map_shards
from ...documents import reader
from ...documents.reader import Document
from ...documents.writer import Writer
from ..stage import STEMS, Removed, Unread, finish
from . import docstrings, warc, wikipedia

SHARD_FILES = 256  # Python files
LIBRARIES = {"wikipedia": ("mwparserfromhell",), "warc": ("resiliparse", "fastwarc")}
EXTENSIONS = {"wikipedia": wikipedia.EXTENSIONS, "warc": warc.EXTENSIONS}


@configuration()
class ExtractConfig(Workers):
    """The settings of `mt data extract`."""

    output: str = option(help="directory for the documents", role="output")
    source: Literal["python", "wikipedia", "warc"] = option(
        "python",
        "wikipedia: XML dumps; warc: web crawls; python: the prose in the standard library and in installed"
        " packages",
    )
    input: tuple[str, ...] = option(
        (), "wikipedia: .xml(.bz2 .gz); warc: .warc or .wet(.gz .zst): files, folders or globs", role="input"
    )
    shard_bytes: int = option(
        64_000_000,
        "size of the XML that dumps are cut into, and text from which a file of the output ends, in bytes",
    )
    packages: tuple[str, ...] = option(
        ("numpy", "torch"),
        "python: installed distributions whose docstrings to take beside the standard library's",
    )
    min_chars: int = option(40, "python: docstrings shorter than this are left out")
    max_chars: int = option(
        5_000, "python: a module with more than this is cut into several documents at its headings"
    )
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "how to write documents")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.max_chars >= 1, f"max_chars = {self.max_chars} must be at least 1"),
            (self.shard_bytes >= 1 << 10, f"shard_bytes = {self.shard_bytes} must be at least {1 << 10}"),
            (
                bool(self.input) == (self.source != "python"),
                (
                    f"source = {self.source}"
                    f" {'reads this installation: leave input away' if self.input else 'reads files: name them with --input'}"
                ),
            ),
        )


def extract(config: ExtractConfig) -> dict:
    """Writes the documents of a source; returns the stage's manifest."""
    if config.source == "python":
        files, versions = docstrings.python_files(config.packages)
        inputs = []  # the versions tell them all
    else:
        inputs, versions = input_files(config), library_versions(config.source)
    run = manifest.begin("data extract", config, inputs, facts={"versions": versions})
    if run.finished:
        return run.manifest
    sizes = None
    if config.source == "python":
        shards, read = (
            [files[i : i + SHARD_FILES] for i in range(0, len(files), SHARD_FILES)],
            functools.partial(_modules, config=config),
        )
    elif config.source == "warc":
        shards, read, sizes = list(map(str, inputs)), warc.documents, [f.stat().st_size for f in inputs]
    else:
        try:
            shards = [part for file in inputs for part in wikipedia.parts(str(file), config.shard_bytes)]
        except UserError:
            run.abandon()  # another file is the remedy
            raise
        read, sizes = wikipedia.documents, [part.end - part.start for part in shards]
    work = functools.partial(write_shard, read=read, config=config)
    results = map_shards(
        work,
        list(enumerate(shards)),
        done=run.output / "parts",
        **config.where,
        label="data extract",
        sizes=sizes,
    )
    return finish(run, results, versions=versions)


def _modules(
    files: list[tuple[str, str]], *, config: ExtractConfig
) -> Iterable[tuple[str, Document | Removed]]:
    return (
        found
        for name, path in files
        for found in docstrings.module_documents(name, path, config.min_chars, config.max_chars)
    )


def write_shard(
    item: tuple[int, object],
    *,
    read: Callable[[object], Iterable[tuple[str, Document | Removed | reader.Reject]]],
    config: ExtractConfig,
) -> dict:
    """Writes the documents of one shard and its removed/ lines; returns its counts, for stage.finish."""
    index, shard = item
    root = Path(config.output)
    removed: collections.Counter = collections.Counter()
    rows_in = 0
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with (
        Writer(
            root / f"{index:05d}{STEMS[config.format]}", root=root, max_bytes=config.shard_bytes
        ) as writer,
        manifest.atomic_write(removed_path, "w") as log,
        Unread(root, index) as unread,
    ):
        for identity, outcome in read(shard):
            if isinstance(outcome, reader.Reject):
                unread.add(outcome)
                continue
            rows_in += 1
            if isinstance(outcome, Document):
                writer.write(outcome)
            else:
                removed[outcome.reason] += 1
                log.write(
                    json.dumps(
                        {"id": identity, "reason": outcome.reason, **outcome.facts}, ensure_ascii=False
                    )
                    + "\n"
                )
    return {
        "outputs": [*writer.records, {**manifest.record(removed_path, root), "documents": False}],
        "rows_in": rows_in,
        "rows_kept": writer.documents,
        "documents": writer.documents,
        "text_bytes_in": writer.text_bytes,
        "text_bytes": writer.text_bytes,
        "removed": dict(removed),
        "tallies": {},
        "rejected": unread.count,
    }


def input_files(config: ExtractConfig) -> list[Path]:
    """The files behind files, folders and globs, sorted within each; raises UserError for one that gives
    none.
    """
    known = EXTENSIONS[config.source]
    files: list[Path] = []
    for item in config.input:
        path = Path(item)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(known))
        else:
            found = [path] if path.exists() else sorted(map(Path, glob.glob(item, recursive=True)))
        if not found:
            raise UserError(
                f"{item}: {'holds no ' + ', '.join(known) if path.is_dir() else 'no such file or directory'};"
                " check the path"
            )
        if wrong := next((p for p in found if not p.name.endswith(known)), None):
            raise UserError(
                f"{wrong}: not a kind of file that --source {config.source} reads; use one of"
                f" {', '.join(known)}"
            )
        files += found
    return files


def library_versions(source: str) -> dict[str, str]:
    """The versions of the libraries on which a source's text depends; raises UserError where one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in LIBRARIES[source]}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"--source {source} needs the package {error.name}; install it with: pip install 'mt[extract]'"
        ) from None
