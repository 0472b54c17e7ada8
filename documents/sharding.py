"""Divides inputs into shards: the parts of files that workers read.

Plain JSONL, Parquet and Arrow files are cut into shards of about equal size, so that one big file keeps all
workers busy; any other file is one shard. The cut depends on the files and on `shard_bytes` alone, never on
the number of workers. folders.py finds the files, sources.py knows the inputs that are not files.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..core import manifest
from ..core.config import UserError, configuration, option
from . import charsets, compression, files, folders, html, html_encoding, json_values, sources, tables

SHARD_BYTES = 64 << 20  # of a shard, unless a command says otherwise
Kind = folders.Kind | Literal["packed", "hub"]

INPUT_HELP = (
    f"files, folders or globs ({' '.join(folders.KINDS)}, each also .gz .bz2 .xz .zst;"
    f" {' '.join(folders.TABLES)}), - for standard input, hf:NAME[:CONFIG][:SPLIT] for an HF dataset"
)
EXTRACTOR: html.Extractor = "trafilatura"  # of .html files; mt data extract --source warc has a setting


@configuration()
class InputOptions:
    """The settings of every command that reads documents from text files."""

    include: tuple[str, ...] = option(
        (),
        "patterns of file names, as '*.py': such files are read as plain text, each a document, besides the"
        " kinds that are read anyway",
        added=True,
    )
    encoding: str = option(
        charsets.UTF8,
        "encoding of text files that begin with no byte-order mark, as windows-1252 or shift_jis",
        added=True,
    )
    delimiter: str | None = option(
        None,
        "what divides the columns of .csv and .tsv files: a character, or tab (default: found in their first"
        " rows)",
        added=True,
    )
    no_header: bool = option(
        False,
        "the first row of .csv and .tsv files names no columns: their names are 1, 2, 3 ...",
        added=True,
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", "at a record that cannot be read: stop, or write it to rejects.jsonl", role="runtime"
    )
    max_record_bytes: int = option(files.MAX_RECORD_BYTES, files.MAX_RECORD_HELP, added=True)

    @property
    def input_rules(self) -> tuple[tuple[bool, str], ...]:
        """The rules of these settings, for `check` in the `__post_init__` of a command's configuration."""
        return (
            files.record_limit_rule(self.max_record_bytes),
            charsets.encoding_rule(self.encoding),
            tables.delimiter_rule(self.delimiter),
        )

    def plan(
        self,
        inputs: Sequence[str],
        *,
        key: str,
        output: str | Path | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> Plan:
        """The shards of the inputs, read as these settings say."""
        return plan(
            inputs,
            key=key,
            shard_bytes=shard_bytes,
            on_error=self.on_error,
            max_record_bytes=self.max_record_bytes,
            output=output,
            include=self.include,
            encoding=self.encoding,
            delimiter=self.delimiter,
            no_header=self.no_header,
        )


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of one input, for one worker.

    [start, end) are bytes of plain JSONL (kind "lines"), row groups of Parquet, record batches of Arrow,
    shards of a Hugging Face dataset; any other file is one shard. A JSONL line belongs to the shard in which
    its first byte lies. JSONL that is compressed or not in UTF-8 has the kind "packed".
    """

    path: str
    start: int
    end: int
    bytes: int
    key: str  # of the text in a record
    on_error: Literal["fail", "skip"]
    max_record_bytes: int
    kind: Kind
    label: str  # begins the ids of documents that have none
    encoding: str = charsets.UTF8
    delimiter: str = ""  # of a table
    header: bool = True  # whether the first row of a table names its columns

    @property
    def name(self) -> str:
        """The name of the input in messages."""
        return sources.shown(self.path)


class Plan(list[Shard]):
    """The shards of the inputs, in order. not_read: the files of folders that are not read."""

    def __init__(self, shards: Iterable[Shard] = (), not_read: folders.NotRead | None = None):
        super().__init__(shards)
        self.not_read = folders.NotRead() if not_read is None else not_read

    @property
    def paths(self) -> list[str]:
        """The inputs, each once."""
        return list(dict.fromkeys(shard.path for shard in self))

    def begin(
        self,
        verb: str,
        config: Any,
        more_inputs: Iterable[str | Path] = (),
        facts: dict[str, Any] | None = None,
    ) -> manifest.Run:
        """Claims the output of a command that reads the shards: see manifest.begin.

        more_inputs, facts: what else the result depends on. The files that are not read are told in the
        manifest.
        """
        run = manifest.begin(verb, config, [*self.paths, *more_inputs], identify=self.identity(), facts=facts)
        self.not_read.tell(run)
        return run

    def identity(self) -> Callable[[str | Path], dict[str, Any]]:
        """sources.identity, with the label in place of the name where the two differ: ids begin with it."""
        labels = {shard.path: shard.label for shard in self if shard.kind != "hub"}
        places: manifest.Places = {}
        pages = {shard.path for shard in self if shard.kind == "html"}
        purpose = f"{min(pages, default='')}: the text of a page"
        text_kinds = ("packed", "json", "csv", "tsv", "text")
        recoded = {s.path for s in self if s.kind in text_kinds and s.encoding not in charsets.UTF8_NAMES}
        libraries = html.versions(EXTRACTOR, purpose, html_encoding.LIBRARIES) if pages else {}

        def identify(path: str | Path) -> dict[str, Any]:
            known = sources.identity(path, places)
            label = labels.get(str(path))
            if str(path) in pages:
                known["libraries"] = libraries
            if str(path) in recoded:
                known["charset_rules"] = charsets.RULES
            return known if label in (None, known.get("name")) else {**known, "name": label}

        return identify


def joined(plans: Iterable[Plan]) -> Plan:
    """The shards of several plans, each with its own labels."""
    whole = Plan()
    for each in plans:
        whole += each
        whole.not_read.add_all(each.not_read)
    return whole


def plan(
    inputs: Sequence[str],
    *,
    key: str = "text",
    shard_bytes: int = SHARD_BYTES,
    on_error: Literal["fail", "skip"] = "fail",
    max_record_bytes: int = files.MAX_RECORD_BYTES,
    output: str | Path | None = None,
    include: Sequence[str] = (),
    encoding: str = charsets.UTF8,
    delimiter: str | None = None,
    no_header: bool = False,
    report: bool = True,
) -> Plan:
    """The shards of the inputs, in order. An empty text file gives a shard of no bytes, without documents.

    max_record_bytes: a longer record is one that cannot be read.
    output: the directory or prefix that the stage writes. Standard input is copied beside it, or to the
    system's folder for temporary files if there is no output.
    include, encoding, delimiter, no_header: the settings of InputOptions.
    report: print a line about the files of folders that are not read, to standard error.
    """
    found: list[str | folders.InputFile] = []
    not_read = folders.NotRead()
    for item in inputs:
        saved = _saved(item) if item.startswith(sources.HUB) else item
        if saved is None:
            found.append(item)
        elif item == "-":
            found.append(folders.InputFile(Path(sources.spool_stdin(output)), "stdin", "lines"))
        else:
            found += folders.files_of(saved, include, not_read)
    labelled = iter(folders.distinct([file for file in found if isinstance(file, folders.InputFile)]))
    limits = {"key": key, "on_error": on_error, "max_record_bytes": max_record_bytes}
    table = (delimiter, not no_header)
    shards = Plan(not_read=not_read)
    for file in found:
        if isinstance(file, str):
            shards += _hub_shards(file, limits)
        else:
            shards += _file_shards(next(labelled), limits, shard_bytes, encoding, table)
    if report:
        not_read.report()
    return shards


def refuse_empty(shards: Sequence[Shard]) -> None:
    """Raises UserError if there is not a byte in any input."""
    if shards and not any(shard.bytes or shard.kind == "hub" for shard in shards):
        more = f" and {len(shards) - 1:,} more files are" if len(shards) > 1 else " is"
        raise UserError(f"{shards[0].name}{more} empty; give files with documents")


def _saved(item: str) -> str | None:
    """The folder that `hf:FOLDER` or `hf:FOLDER:SPLIT` names if `save_to_disk` wrote it, else None."""
    place, _, split = item.removeprefix(sources.HUB).partition(":")
    folder = Path(place, split)
    saved = folders.is_saved_dataset(folder) or (folder / "dataset_dict.json").exists()
    return str(folder) if saved else None


def _hub_shards(name: str, limits: dict[str, Any]) -> Iterator[Shard]:
    count, size = sources.hub_shards(name)
    for index in range(count):
        yield Shard(name, index, index + 1, size // count, kind="hub", label=name, **limits)


def _file_shards(
    file: folders.InputFile,
    limits: dict[str, Any],
    shard_bytes: int,
    encoding: str,
    table: tuple[str | None, bool],
) -> Iterator[Shard]:
    """The shards of a file. table: (the delimiter that the user gives, whether there is a header)."""
    path = file.path
    kind: Kind = file.kind
    if kind not in ("parquet", "arrow"):
        encoding = charsets.file_encoding(path, encoding)
    if kind == "json" and not json_values.is_one_value(path, encoding):
        kind = "lines"
    if kind == "lines" and (compression.ending(path.name) or encoding not in charsets.UTF8_NAMES):
        kind = "packed"
    of_table: dict[str, Any] = {}
    if kind in ("csv", "tsv"):
        of_table = {"delimiter": _delimiter(path, kind, limits["key"], encoding, *table), "header": table[1]}
    for start, end, size in _pieces(path, kind, shard_bytes, limits["max_record_bytes"]):
        yield Shard(
            str(path), start, end, size, kind=kind, label=file.label, encoding=encoding, **limits, **of_table
        )


def _delimiter(path: Path, kind: Kind, key: str, encoding: str, given: str | None, header: bool) -> str:
    if given is not None:
        return tables.NAMES.get(given, given)
    with files.broken_data_named(str(path)), charsets.open_utf8(path, encoding) as file:
        return tables.find_delimiter(file, str(path), kind, key, header)


def _pieces(
    path: Path, kind: Kind, shard_bytes: int, max_record_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes) of the shards of a file."""
    size = path.stat().st_size
    if kind == "lines":
        pieces = max(1, -(-size // shard_bytes))
        yield from (
            (a, b, b - a) for a, b in itertools.pairwise(size * i // pieces for i in range(pieces + 1))
        )
    elif kind in ("parquet", "arrow"):
        batches = files.arrow_batches(path, max_record_bytes)
        # Rows of nulls have no bytes, but a file of them is not empty.
        batch_bytes = (len(b) if isinstance(b, files.Refused) else max(b.nbytes, len(b)) for b in batches)
        sizes = files.row_group_bytes(path) if kind == "parquet" else batch_bytes
        yield from _groups(sizes, shard_bytes)
    else:
        yield 0, size, size


def _groups(sizes: Iterable[int], shard_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes) of runs of row groups or batches, each of at least shard_bytes except the last."""
    start, size, number = 0, 0, 0
    for number, more in enumerate(sizes, 1):
        size += more
        if size >= shard_bytes:
            yield start, number, size
            start, size = number, 0
    if number > start or number == 0:
        yield start, number, size
