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
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from ...core import manifest
from ...core.config import UserError, check, configuration, option
from ...core.executor import Workers, map_shards
from ...core.extras import needs_package
from ...core.parsing import Count
from ...documents import files, folders, html, html_encoding
from ...documents.reader import Document
from ...documents.rejects import Reject
from ...documents.writer import Writer
from ..stage import SHARD_RESULT, STEMS, RejectLog, Removed, finish, no_row_is_lost
from . import docstrings, url_filter, warc, wikipedia, wikitext

SHARD_FILES = 256  # Python files in a shard
REPORTED_KINDS = 60  # of what articles leave out, in the manifest; rarer templates are added up
Outcomes = Iterable[tuple[str, Document | Removed | Reject]]  # (record id, its document or why there is none)
LIBRARIES = {"wikipedia": ("mwparserfromhell",), "warc": ("fastwarc", *html_encoding.LIBRARIES)}
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
    extractor: html.Extractor = option(
        "trafilatura",
        "warc: what finds the main text of a page; trafilatura_fast, block_classifier and resiliparse take"
        " less time, trafilatura_precision leaves more out",
        added=True,  # library_versions has its libraries
    )
    blocked_domains: str | None = option(
        None,
        "warc: file of sites to leave out before extraction, one on a line: `name.org` with its"
        " sub-domains, or `name` under any top-level domain; `default` is the list of mt data urls",
        role="input",
    )
    blocked_urls: str | None = option(None, "warc: file of single URLs to leave out", role="input")
    blocked_words: str | None = option(
        None, "warc: file of words, or default; a URL with one of them is left out", role="input"
    )
    soft_blocked_words: str | None = option(
        None, "warc: file of words, or default; a URL with min_soft_words of them is left out", role="input"
    )
    min_soft_words: int = option(2, "how many words of soft_blocked_words block a URL", added=True)
    blocked_substrings: str | None = option(
        None,
        "warc: file of texts, or default; a URL with one of them, also within a word, is left out",
        role="input",
    )
    packages: tuple[str, ...] = option(
        ("numpy", "torch"),
        "python: installed distributions whose docstrings to extract, in addition to the standard library",
    )
    min_chars: int = option(40, "python: skip docstrings shorter than this")
    max_chars: int = option(
        5_000, "python: split a module with more than this into several documents, at its headings"
    )
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "file format of the documents")
    on_error: Literal["skip", "fail"] = option(
        "skip", "at a page that cannot be parsed: write it to rejects.jsonl, or stop", role="runtime"
    )
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
            (
                self.source == "warc" or self.extractor == "trafilatura",
                f"extractor = {self.extractor} needs source = warc; omit it with source = {self.source}",
            ),
            *(
                (
                    self.source == "warc" or value is None,
                    f"{name} = {value} needs source = warc; omit it with source = {self.source}",
                )
                for name, value in self.url_lists.items()
            ),
            (self.min_soft_words >= 1, f"min_soft_words = {self.min_soft_words} must be at least 1"),
            (
                self.min_soft_words == 2 or self.soft_blocked_words is not None,
                f"min_soft_words = {self.min_soft_words} has no effect without soft_blocked_words; name the"
                " file of words",
            ),
        )

    @property
    def url_lists(self) -> dict[str, str | None]:
        """The files of what is blocked by URL, by setting."""
        return {
            name: getattr(self, name)
            for name in (
                "blocked_domains",
                "blocked_urls",
                "blocked_words",
                "soft_blocked_words",
                "blocked_substrings",
            )
        }


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Writes the documents of a source; returns the stage's manifest."""
    not_read = folders.NotRead()
    python_files: list[tuple[str, str]] = []
    inputs: list[Path] = []  # none for Python packages, whose versions identify them
    if config.source == "python":
        python_files, versions = docstrings.python_files(config.packages)
    else:
        inputs, versions = input_files(config, not_read), library_versions(config)
    lists = url_filter.read_lists(config.url_lists)
    facts = {"versions": versions, **_rules(config.source), **url_filter.facts(lists)}
    run = manifest.begin("data extract", config, inputs, facts=facts)
    not_read.report()
    not_read.tell(run)
    if run.finished:
        return run.manifest
    shards: list[Any]
    read: Callable[..., Outcomes]
    sizes: list[int] | None = None
    if config.source == "python":
        shards = [python_files[i : i + SHARD_FILES] for i in range(0, len(python_files), SHARD_FILES)]
        read = functools.partial(_module_documents, config=config)
    elif config.source == "warc":
        shards = list(map(str, inputs))
        read = functools.partial(
            warc.documents,
            max_bytes=config.max_record_bytes,
            extractor=config.extractor,
            url_filter=url_filter.save(lists, config.min_soft_words, run.output / "work"),
        )
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
        kinds={**SHARD_RESULT, "dropped": dict[str, Count]},
        agrees=no_row_is_lost,
    )
    sealed = finish(run, results, versions=versions, **dropped_of(results))
    shutil.rmtree(run.output / "work", ignore_errors=True)
    return sealed


def _rules(source: str) -> dict[str, str]:
    """The version of our own rules on which the documents of a source depend."""
    if source == "wikipedia":
        return {"text_rules": wikitext.text_rules()}
    return {"record_rules": warc.RECORD_RULES} if source == "warc" else {}


def dropped_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What articles of a dump leave out, by kind, the most frequent first; nothing for other sources."""
    total: collections.Counter[str] = collections.Counter()
    for result in results:
        total.update(result["dropped"])
        wikitext.bound(total)
    wikitext.bound(total, REPORTED_KINDS, REPORTED_KINDS)
    return {"dropped": dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))} if total else {}


def _module_documents(files: list[tuple[str, str]], *, config: ExtractConfig) -> Outcomes:
    return (
        found
        for name, path in files
        for found in docstrings.module_documents(name, path, config.min_chars, config.max_chars)
    )


def write_shard(
    item: tuple[int, Any], *, read: Callable[..., Outcomes], config: ExtractConfig
) -> dict[str, Any]:
    """Writes the documents of one shard and its removed/ file; returns its counts, for stage.finish.

    item: (shard index, shard). read: returns the outcomes of a shard; which type a shard has depends on the
    source. That of dumps also counts what articles leave out, in the Counter `dropped`.
    """
    index, shard = item
    root = Path(config.output)
    removed: collections.Counter[str] = collections.Counter()
    dropped: collections.Counter[str] = collections.Counter()
    counted = {"dropped": dropped} if config.source == "wikipedia" else {}
    rows_in = 0
    removed_path = root / "removed" / f"{index:05d}.jsonl"
    with (
        Writer(
            root / f"{index:05d}{STEMS[config.format]}", root=root, max_bytes=config.shard_bytes
        ) as writer,
        manifest.atomic_write(removed_path, "w") as log,
        RejectLog(root, index) as unreadable,
    ):
        for identity, outcome in read(shard, **counted):
            if isinstance(outcome, Reject):
                if config.on_error == "fail":
                    raise UserError(
                        f"{outcome.file}, {outcome.place}: {outcome.reason}; pass --on-error skip to set such"
                        " pages aside"
                    )
                unreadable.add(outcome)
                continue
            rows_in += 1
            if isinstance(outcome, Document):
                writer.write(outcome)
            else:
                removed[outcome.reason] += 1
                entry = {"id": identity, "reason": outcome.reason, **outcome.facts}
                log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    log_record = {**manifest.record(removed_path, root), "documents": False, "rows": sum(removed.values())}
    return {
        "outputs": [*writer.records, log_record],
        "rows_in": rows_in,
        "rows_kept": writer.documents,
        "documents": writer.documents,
        "text_bytes_in": writer.text_bytes,
        "text_bytes": writer.text_bytes,
        "removed": dict(removed),
        "tallies": {},
        "dropped": dict(dropped),
        "rejected": unreadable.count,
    }


def input_files(config: ExtractConfig, not_read: folders.NotRead) -> list[Path]:
    """Expands files, folders and globs, sorted within each; raises UserError for one without files.

    not_read: gets the files of folders that are of another kind.
    """
    known = EXTENSIONS[config.source]
    files: list[Path] = []
    for item in config.input:
        path = Path(item)
        if path.is_dir():
            found = folders.below(path, lambda name: name.name.endswith(known), not_read)
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


def library_versions(config: ExtractConfig) -> dict[str, str]:
    """{library: version} of what the text of a source depends on; raises UserError if one is missing."""
    purpose = f"--source {config.source}"
    found = html.versions(config.extractor, purpose) if config.source == "warc" else {}
    try:
        return {**found, **{name: importlib.metadata.version(name) for name in LIBRARIES[config.source]}}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(needs_package(purpose, error.name, extra="extract")) from None
