"""The `mt data extract` command: extract documents from Wikipedia dumps, WARC files or Python packages.

`--source wikipedia` and `--source warc` read `--input`; `--source python` reads this installation. The
readers (wikipedia.py, warc.py, docstrings.py) yield documents, and a reason for each page without one. One
shard is a part of a dump, a WARC file, or some Python files. The output directory is that of every document
stage (stage.py); `rejects.jsonl` has the pages that cannot be parsed.
"""

from __future__ import annotations

import collections
import functools
import glob
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from ...core import manifest
from ...core.config import UserError, check, configuration, option
from ...core.executor import Workers, map_shards
from ...documents import files
from ...documents.reader import Document, Reject
from ...documents.writer import Writer
from ..stage import STEMS, RejectLog, Removed, finish
from . import docstrings, warc, wikipedia

SHARD_FILES = 256  # Python files in a shard
Outcomes = Iterable[tuple[str, Document | Removed | Reject]]  # (record id, its document or why there is none)
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
        "bytes of XML in a shard of a dump, and bytes of text from which a new output file begins",
    )
    max_record_bytes: int = option(files.MAX_RECORD_BYTES, files.MAX_RECORD_HELP, added=True)
    packages: tuple[str, ...] = option(
        ("numpy", "torch"),
        "python: installed distributions whose docstrings to extract, in addition to the standard library",
    )
    min_chars: int = option(40, "python: skip docstrings shorter than this")
    max_chars: int = option(
        5_000, "python: split a module with more than this into several documents, at its headings"
    )
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "file format of the documents")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = (
            "reads this installation: omit input" if self.input else "reads files: name them with --input"
        )
        check(
            (self.max_chars >= 1, f"max_chars = {self.max_chars} must be at least 1"),
            (self.shard_bytes >= 1 << 10, f"shard_bytes = {self.shard_bytes} must be at least {1 << 10}"),
            files.record_limit_rule(self.max_record_bytes),
            (bool(self.input) == (self.source != "python"), f"source = {self.source} {remedy}"),
        )


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Writes the documents of a source; returns the stage's manifest."""
    python_files: list[tuple[str, str]] = []
    inputs: list[Path] = []  # none for Python packages, whose versions identify them
    if config.source == "python":
        python_files, versions = docstrings.python_files(config.packages)
    else:
        inputs, versions = input_files(config), library_versions(config.source)
    run = manifest.begin("data extract", config, inputs, facts={"versions": versions})
    if run.finished:
        return run.manifest
    shards: list[Any]
    read: Callable[[Any], Outcomes]
    sizes: list[int] | None = None
    if config.source == "python":
        shards = [python_files[i : i + SHARD_FILES] for i in range(0, len(python_files), SHARD_FILES)]
        read = functools.partial(_module_documents, config=config)
    elif config.source == "warc":
        shards = list(map(str, inputs))
        read = functools.partial(warc.documents, max_bytes=config.max_record_bytes)
        sizes = [f.stat().st_size for f in inputs]
    else:
        try:
            shards = [part for file in inputs for part in wikipedia.split_dump(str(file), config.shard_bytes)]
        except UserError:
            run.abandon()  # so that the output is free for a run with another file
            raise
        read = functools.partial(wikipedia.documents, max_bytes=config.max_record_bytes)
        sizes = [part.end - part.start for part in shards]
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


def _module_documents(files: list[tuple[str, str]], *, config: ExtractConfig) -> Outcomes:
    return (
        found
        for name, path in files
        for found in docstrings.module_documents(name, path, config.min_chars, config.max_chars)
    )


def write_shard(
    item: tuple[int, Any], *, read: Callable[[Any], Outcomes], config: ExtractConfig
) -> dict[str, Any]:
    """Writes the documents of one shard and its removed/ file; returns its counts, for stage.finish.

    item: (shard index, shard). read: returns the outcomes of a shard; which type a shard has depends on the
    source.
    """
    index, shard = item
    root = Path(config.output)
    removed: collections.Counter[str] = collections.Counter()
    rows_in = 0
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with (
        Writer(
            root / f"{index:05d}{STEMS[config.format]}", root=root, max_bytes=config.shard_bytes
        ) as writer,
        manifest.atomic_write(removed_path, "w") as log,
        RejectLog(root, index) as unreadable,
    ):
        for identity, outcome in read(shard):
            if isinstance(outcome, Reject):
                unreadable.add(outcome)
                continue
            rows_in += 1
            if isinstance(outcome, Document):
                writer.write(outcome)
            else:
                removed[outcome.reason] += 1
                entry = {"id": identity, "reason": outcome.reason, **outcome.facts}
                log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return {
        "outputs": [*writer.records, {**manifest.record(removed_path, root), "documents": False}],
        "rows_in": rows_in,
        "rows_kept": writer.documents,
        "documents": writer.documents,
        "text_bytes_in": writer.text_bytes,
        "text_bytes": writer.text_bytes,
        "removed": dict(removed),
        "tallies": {},
        "rejected": unreadable.count,
    }


def input_files(config: ExtractConfig) -> list[Path]:
    """Expands files, folders and globs, sorted within each; raises UserError for one without files."""
    known = EXTENSIONS[config.source]
    files: list[Path] = []
    for item in config.input:
        path = Path(item)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(known))
        else:
            found = [path] if path.exists() else sorted(map(Path, glob.glob(item, recursive=True)))
        if not found:
            reason = f"contains no {', '.join(known)}" if path.is_dir() else "no such file or directory"
            raise UserError(f"{item}: {reason}; check the path")
        if wrong := next((p for p in found if not p.name.endswith(known)), None):
            raise UserError(
                f"{wrong}: --source {config.source} does not read this type of file; use one of"
                f" {', '.join(known)}"
            )
        files += found
    return files


def library_versions(source: str) -> dict[str, str]:
    """{library: version} of what the text of a source depends on; raises UserError if one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in LIBRARIES[source]}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"--source {source} needs the package {error.name}; install it with: pip install 'mt[extract]'"
        ) from None
