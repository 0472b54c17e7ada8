"""Reads documents: JSONL (.gz, .zst), Parquet, Arrow, text, standard input and Hugging Face datasets.

A document is one record: a text under one key (`text` by default), an id, and the other fields of the record,
which are kept (writer.py writes them). Inputs are files, folders and globs, in sorted order. The files of a
folder that mt wrote are those of its manifest; of a folder that `datasets` saved, those of its state.json.
Plain JSONL, Parquet and Arrow files are cut into shards of about equal size, so that one big file keeps all
workers busy. The cut depends on the files and on `shard_bytes` alone, never on the number of workers.

A record that cannot be read (malformed JSON, a missing key, `null` text, bytes that are not UTF-8) raises
UserError, which names file and line; with `--on-error skip` it is written to `rejects.jsonl` with the reason
instead. files.py reads the files, sources.py the inputs that are not files.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import glob
import itertools
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict

import orjson

from ..core import manifest, paths
from ..core.config import UserError
from ..core.parsing import SETTINGS_BYTES, check_value, read_json
from . import files, sources

PLAIN_LINES, PACKED_LINES = (".jsonl", ".json"), (".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
EXTENSIONS = (*PLAIN_LINES, *PACKED_LINES, ".parquet", ".arrow", ".txt")
BATCHES_AHEAD = 3  # lists of batches of Parquet rows that are decoded before they are needed
BATCH_BYTES = 8 << 20  # of one list, from which it is not made longer
MAX_REJECTS, REJECT_BYTES = 1_000_000, 256 << 20
VALUE_BYTES, MIN_VALUES = 32, 1_000_000  # a value of JSON takes 8 to 200 bytes in memory
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
COUNTED_BYTES = (
    64 << 20
)  # messages give the number of a line up to this offset in a JSONL file, then the offset


@dataclasses.dataclass(slots=True)
class Document:
    """One document. meta: all fields of the record except the id and the text."""

    id: str
    text: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of one input, for one worker.

    [start, end) are bytes of plain JSONL, row groups of Parquet, record batches of Arrow, shards of a Hugging
    Face dataset; any other file is one shard. A JSONL line belongs to the shard in which its first byte lies.
    """

    path: str
    start: int
    end: int
    bytes: int
    key: str  # of the text in a record
    on_error: Literal["fail", "skip"]
    max_record_bytes: int = files.MAX_RECORD_BYTES

    @property
    def name(self) -> str:
        """The name of the input in messages."""
        return sources.shown(self.path)


@dataclasses.dataclass
class Reject:
    """A record that could not be read.

    place: "line 3" or "row 3". raw: its bytes as text if they are UTF-8, else in base64; of a record that is
    too long, the first 1,000.
    """

    file: str
    place: str
    reason: str
    raw: str

    def as_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


class Rejects(list[Reject]):
    """Rejects that wait in memory to be written; of those after the first REJECT_BYTES only beginnings stay.

    `append` raises UserError after MAX_REJECTS.
    """

    num_bytes = 0

    def append(self, reject: Reject) -> None:
        if len(self) >= MAX_REJECTS:
            raise UserError(f"{reject.file}: {MAX_REJECTS:,} records cannot be read; check the input")
        self.num_bytes += len(reject.raw)
        if self.num_bytes > REJECT_BYTES:
            reject = dataclasses.replace(reject, raw=reject.raw[: files.BEGINNING_BYTES])
        super().append(reject)

    def clear(self) -> None:
        self.num_bytes = 0
        super().clear()


Rejecter = Callable[[Reject], None]


def expand(inputs: Sequence[str]) -> list[Path]:
    """The files that files, folders and globs name, sorted within each.

    Raises UserError for an input that names no file, and for a kind of file that mt does not read.
    """
    every: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            found = _files_in(path)
            if not found:
                raise UserError(f"{path}: holds no documents ({', '.join(EXTENSIONS)}); check the path")
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(item, recursive=True))
            if not found:
                raise UserError(f"{item}: no such file or directory; check the path")
        every += found
    for path in every:
        paths.refuse_stream(path)
        if not _known(path.name):
            raise UserError(f"{path}: not a kind of file that mt reads; use one of {', '.join(EXTENSIONS)}")
    return every


def _known(name: str) -> bool:
    return name.endswith(EXTENSIONS)


def _files_in(folder: Path) -> list[Path]:
    if (written := manifest.manifest_of(folder)) is not None:
        # A stage writes one file for each shard, even if it kept no document of the shard.
        return [
            manifest.output_path(folder / "manifest.json", o["name"])
            for o in written["outputs"]
            if o.get("documents", True) and o.get("rows") != 0 and _known(o["name"])
        ]
    if (folder / "run.json").exists():
        raise UserError(
            f"{folder}: holds an unfinished run of mt; run the command that writes it again first"
        )
    if (folder / "dataset_dict.json").exists():
        listing = folder / "dataset_dict.json"
        splits = check_value(read_json(listing, SETTINGS_BYTES), SavedSplits, listing)["splits"]
        example = f"; name one, as in {folder / splits[0]}" if splits else "; check the path"
        raise UserError(f"{folder}: holds the splits {', '.join(splits)} of a dataset{example}")
    if _is_saved_dataset(folder):
        state = folder / "state.json"
        saved = check_value(read_json(state), SavedDataset, state)
        names = [file["filename"] for file in saved["_data_files"]]
        return [paths.named(folder, name, f"{state}, _data_files") for name in names]
    # Another program's manifest.json does not hold documents.
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and _known(p.name) and not p.name.startswith(".") and p.name != "manifest.json"
    )


class DataFile(TypedDict):
    """A file of a dataset that `datasets` saved."""

    filename: str


class SavedDataset(TypedDict):
    """The state.json of such a dataset."""

    _data_files: list[DataFile]


class SavedSplits(TypedDict):
    """The dataset_dict.json beside such datasets."""

    splits: list[str]


def _is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "state.json").exists() and (folder / "dataset_info.json").exists()


def plan(
    inputs: Sequence[str],
    *,
    key: str = "text",
    shard_bytes: int = 64 << 20,
    on_error: Literal["fail", "skip"] = "fail",
    max_record_bytes: int = files.MAX_RECORD_BYTES,
    output: str | Path | None = None,
) -> list[Shard]:
    """The shards of the inputs, in order. An empty file gives a shard of no bytes; `read` refuses it.

    max_record_bytes: a longer record is one that cannot be read.
    output: the directory or prefix that the stage writes. Standard input is copied beside it, or to the
    system's folder for temporary files if there is no output.
    """
    shards = []
    for item in inputs:
        saved = _saved(item) if item.startswith(sources.HUB) else item
        if saved is None:
            count, size = sources.hub_shards(item)
            shards += [
                Shard(item, i, i + 1, size // count, key, on_error, max_record_bytes) for i in range(count)
            ]
            continue
        for path in [Path(sources.spool_stdin(output))] if item == "-" else expand([saved]):
            shards += [
                Shard(str(path), a, b, n, key, on_error, max_record_bytes)
                for a, b, n in _pieces(path, shard_bytes, max_record_bytes)
            ]
    return shards


def _saved(item: str) -> str | None:
    """The folder that `hf:FOLDER` or `hf:FOLDER:SPLIT` names if `save_to_disk` wrote it, else None."""
    place, _, split = item.removeprefix(sources.HUB).partition(":")
    folder = Path(place, split)
    return str(folder) if _is_saved_dataset(folder) or (folder / "dataset_dict.json").exists() else None


def _pieces(path: Path, shard_bytes: int, max_record_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes) of the shards of a file."""
    size = path.stat().st_size
    if path.name.endswith(PLAIN_LINES):
        pieces = max(1, -(-size // shard_bytes))
        yield from (
            (a, b, b - a) for a, b in itertools.pairwise(size * i // pieces for i in range(pieces + 1))
        )
    elif path.suffix in (".parquet", ".arrow") and size:
        batches = files.arrow_batches(path, max_record_bytes)
        batch_bytes = (0 if isinstance(batch, files.Refused) else batch.nbytes for batch in batches)
        sizes = files.row_group_bytes(path) if path.suffix == ".parquet" else batch_bytes
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


def read(shard: Shard, reject: Rejecter | None = None) -> Iterator[Document]:
    """The documents of a shard, in order.

    reject: called with each record that cannot be read, if shard.on_error is "skip". With "fail" the first
    one raises UserError.
    """
    return (_read_lines if _is_lines(shard.path) else _read_records)(shard, reject)


def _is_lines(path: str) -> bool:
    return path.endswith((*PLAIN_LINES, *PACKED_LINES)) and not path.startswith(sources.HUB)


def _lines(shard: Shard) -> Iterator[tuple[int, int | None, files.Lines]]:
    """(offset of the first, its number if that is known, some lines) of the JSON lines of a shard."""
    for start, number, lines in (
        files.lines_between(shard.path, shard.start, shard.end, shard.max_record_bytes)
        if shard.path.endswith(PLAIN_LINES)
        else files.packed_lines(shard.path, shard.max_record_bytes)
    ):
        if len(last := lines[-1]) > files.LINES_BYTES and isinstance(last, bytes):  # no other is that long
            lines[-1] = _not_dense(last, shard.max_record_bytes)
        yield start, number, lines


def _not_dense(line: bytes, max_bytes: int) -> bytes | files.Refused:
    """The line, or a Refused if it has more values than one for VALUE_BYTES of max_bytes.

    `[[],[],[],...]` takes thirty times as much memory as a text of its length.
    """
    most = max(MIN_VALUES, max_bytes // VALUE_BYTES)
    if sum(map(line.count, (b",", b"[", b"{"))) <= most:
        return line
    values = sum(map(STRING.sub(b"", line).count, (b",", b"[", b"{")))  # a text may have these characters
    if values <= most:
        return line
    reason = f"has {values:,} values, more than --max-record-bytes {max_bytes} / {VALUE_BYTES}"
    return files.Refused(len(line), files.too_long(len(line), max_bytes, line).beginning, reason)


def _read_lines(shard: Shard, reject: Rejecter | None) -> Iterator[Document]:
    """`read` of JSONL.

    A record whose id and text are strings takes the inner loop, which is almost as fast as orjson alone
    (benchmarks/dataprep.py compares them). Any other record is parsed again below.
    """
    key, loads, new = shard.key, orjson.loads, object.__new__
    for start, number, lines in _lines(shard):
        left, offsets = iter(lines), None
        records = map(loads, left)
        while True:
            try:
                for record in records:
                    text, name = record.pop(key), record.pop("id", None)
                    if type(text) is str is type(name):
                        document = new(Document)  # calling __init__ takes a fifth of the time
                        document.id, document.text, document.meta = name, text, record
                        yield document
                    else:
                        break
                else:
                    break
            except (ValueError, KeyError, TypeError, AttributeError):
                text = name = None
            index = len(lines) - operator.length_hint(left) - 1
            offsets = offsets or list(itertools.accumulate(map(len, lines), initial=start))
            place = _Line(shard, offsets[index], number and number + index)
            if type(text) is str:
                yield Document(_generated_id(shard, place) if name is None else str(name), text, record)
                continue
            raw, record, problem = _parsed(lines[index], place)
            result = problem or _document(record, shard, place)
            if isinstance(result, Document):
                yield result
            elif raw or problem:
                _set_aside(shard, place(), result, raw, reject)


def _read_records(shard: Shard, reject: Rejecter | None) -> Iterator[Document]:
    """`read` of anything but JSONL."""
    for place, raw, record, problem in _records(shard):
        result = problem or _document(record, shard, place)
        if isinstance(result, Document):
            yield result
        else:
            _set_aside(shard, place(), result, raw, reject)


def read_raw(shard: Shard, reject: Rejecter | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of every record of a shard, in order, whatever its keys.

    reject: as for `read`. A text file is one record of `id` and text.
    """
    for place, raw, record, problem in _records(dataclasses.replace(shard, key="")):
        if problem or not isinstance(record, dict):
            _set_aside(shard, place(), problem or f"is {_json_type(record)}, not a JSON object", raw, reject)
        else:
            yield place().removeprefix(", "), record


def read_values(
    shard: Shard, keys: Sequence[str], reject: Rejecter | None = None
) -> Iterator[tuple[str | list[str], ...]]:
    """The values of several keys of every record of a shard, in order: each a text, or a list of texts.

    reject: as for `read`.
    """
    fast: Iterable[tuple[str, ...]] | None = None
    if shard.path.endswith(".parquet") and not shard.path.startswith(sources.HUB):
        fast = _parquet_values(shard, keys, reject)
    elif not shard.path.startswith(sources.HUB):
        fast = _json_values(shard, keys)
    if fast is not None:
        yield from fast
        return
    for place, raw, record, problem in _records(shard):
        values = problem or _values(record, keys)
        if isinstance(values, tuple):
            yield values
        else:
            _set_aside(shard, place(), values, raw, reject)


def _json_values(shard: Shard, keys: Sequence[str]) -> list[tuple[str, ...]] | None:
    """What `read_values` yields for a small shard of plain JSONL; None if a value of a record is not a text.

    It is three times as fast as the general way, which can tell what is wrong and where.
    """
    if not shard.path.endswith(PLAIN_LINES) or not 0 < shard.bytes <= 64 << 20:
        return None
    loads, pick, picked = orjson.loads, operator.itemgetter(*keys), []
    try:
        for _, _, lines in _lines(shard):
            try:
                picked += [pick(record) for record in map(loads, lines)]
            except orjson.JSONDecodeError:  # blank lines, or a mistake
                picked += [pick(loads(line)) for line in lines if line.strip()]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return None
    columns: list[Any] = [picked] if len(keys) == 1 else list(zip(*picked))
    if any(set(map(type, column)) - {str} for column in columns):
        return None
    return list(zip(*columns))


def _parquet_values(
    shard: Shard, keys: Sequence[str], reject: Rejecter | None
) -> Iterator[tuple[str, ...]] | None:
    """What `read_values` yields for Parquet; None unless schema and statistics say that all are texts.

    It reads no other column and makes no dictionary of a row.
    """
    import pyarrow

    file = files.open_parquet(shard.path)
    columns = {file.schema.column(i).path: i for i in range(len(file.schema))}
    texts = {
        name
        for name in file.schema_arrow.names
        if pyarrow.types.is_string(kind := file.schema_arrow.field(name).type)
        or pyarrow.types.is_large_string(kind)
    }
    groups = list(range(shard.start, shard.end))
    for key in keys:
        if key not in texts or key not in columns:
            return None
        for group in groups:
            statistics = file.metadata.row_group(group).column(columns[key]).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                return None
    return _values_of_batches(shard, keys, file, reject)


def _values_of_batches(
    shard: Shard, keys: Sequence[str], file: Any, reject: Rejecter | None
) -> Iterator[tuple[str, ...]]:
    batches = files.parquet_batches(
        file, shard.path, shard.start, shard.end, shard.max_record_bytes, list(keys)
    )
    for row, batch in itertools.chain.from_iterable(_prefetch(_grouped(batches))):
        try:
            if not isinstance(batch, files.Refused):
                yield from zip(*[batch.column(key).to_pylist() for key in keys])
                continue
        except UnicodeDecodeError:
            pass
        for number, record in files.rows_of(iter([(row, batch)])):
            if isinstance(record, files.Refused):
                _set_aside(shard, _Row(number)(), record.reason, record.beginning, reject)
            else:
                yield tuple(record[key] for key in keys)


def _grouped(batches: Iterator[files.Rows]) -> Iterator[list[files.Rows]]:
    """The batches in lists of about BATCH_ROWS rows, or fewer where they are long.

    With 256 rows the thread of `_prefetch` waits for Python's lock four times as often.
    """
    group: list[files.Rows] = []
    rows = size = 0
    for row, batch in batches:
        group.append((row, batch))
        rows += len(batch)
        size += 0 if isinstance(batch, files.Refused) else batch.nbytes
        if rows >= files.BATCH_ROWS or size >= BATCH_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def _prefetch(items: Iterator[Any]) -> Iterator[Any]:
    """The items, of which a thread makes BATCHES_AHEAD in advance: pyarrow decodes without Python's lock."""
    with ThreadPoolExecutor(1, "prefetch") as pool:
        queue = collections.deque(pool.submit(next, items, None) for _ in range(BATCHES_AHEAD))
        while (item := queue.popleft().result()) is not None:
            queue.append(pool.submit(next, items, None))
            yield item


def _set_aside(
    shard: Shard, place: str, reason: str, raw: bytes | dict[str, Any], reject: Rejecter | None
) -> None:
    """Passes a record that cannot be read to `reject`, or raises UserError."""
    if shard.on_error == "fail" or reject is None:
        raise UserError(
            f"{shard.name}{place}: {reason}; mend it, or pass --on-error skip to set such records aside"
        )
    reject(Reject(shard.name, place.removeprefix(", "), reason, _printable(raw)))


def _printable(raw: bytes | dict[str, Any]) -> str:
    if isinstance(raw, dict):
        raw = orjson.dumps(raw, default=str)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()


def _document(record: Any, shard: Shard, place: Place) -> Document | str:
    """The document of a record, or the reason why there is none."""
    if not isinstance(record, dict):
        return f"is {_json_type(record)}, not a JSON object"
    if shard.key not in record:
        return _absent(record, shard.key)
    text = record[shard.key]
    if not isinstance(text, str):
        return f"{shard.key!r} is {_json_type(text)}, not a text"
    del record[shard.key]
    name = record.pop("id", None)
    return Document(str(name) if name is not None else _generated_id(shard, place), text, record)


def _values(record: Any, keys: Sequence[str]) -> tuple[str | list[str], ...] | str:
    """The texts, or lists of texts, under the keys of a record, or the reason why there are none."""
    if not isinstance(record, dict):
        return f"is {_json_type(record)}, not a JSON object"
    for key in keys:
        if key not in record:
            return _absent(record, key)
        value = record[key]
        if isinstance(value, str):
            continue
        if not isinstance(value, list):
            return f"{key!r} is {_json_type(value)}, not a text"
        wrong = next((v for v in value if not isinstance(v, str)), None)
        if wrong is not None or None in value:
            return f"{key!r} holds {_json_type(wrong)} among its texts"
    return tuple(record[key] for key in keys)


def _absent(record: dict[str, Any], key: str) -> str:
    return f"has no key {key!r} (it has {', '.join(map(repr, list(record)[:8]))})"


def _json_type(value: object) -> str:
    return {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
        str: "a text",
        bytes: "bytes",
    }.get(type(value), f"a {type(value).__name__}")


def _generated_id(shard: Shard, place: Place) -> str:
    """The id of a document that has none: FILE:POSITION."""
    return f"{shard.name if shard.path.startswith(sources.HUB) else Path(shard.name).name}:{place.position}"


class _Line:
    """The place of a line: its byte offset, and its number, which is counted only for a message."""

    __slots__ = ("number", "path", "position")

    def __init__(self, shard: Shard, position: int, number: int | None = None):
        self.path, self.position, self.number = shard.path, position, number

    def __call__(self) -> str:
        if self.number is not None:
            return f", line {self.number}"
        if self.position > COUNTED_BYTES:  # counting would read a large file again for every bad line
            return f", byte {self.position}"
        left, number = self.position, 1
        with open(self.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                number += block.count(b"\n")
                left -= len(block)
        return f", line {number}"


class _Row:
    """The place of a row: its number in a file, or SHARD:NUMBER in a Hugging Face dataset."""

    __slots__ = ("position", "row", "shard")

    def __init__(self, row: int, shard: int | None = None):
        self.row, self.shard = row, shard
        self.position: int | str = row if shard is None else f"{shard}:{row}"

    def __call__(self) -> str:
        return f", row {self.row + 1}" if self.shard is None else f", shard {self.shard}, row {self.row + 1}"


Place = _Line | _Row  # called, it gives the place as a message writes it: ", line 3"


def _records(shard: Shard) -> Iterator[tuple[Place, Any, Any, str]]:
    """(place, bytes or row, record, "" or the reason why it cannot be parsed) of every record of a shard."""
    path = shard.path
    if path.startswith(sources.HUB):
        for index in range(shard.start, shard.end):
            for row, record in enumerate(sources.hub_records(path, index)):
                text = record.get(shard.key)
                if isinstance(text, str) and len(text) > shard.max_record_bytes:
                    long = files.too_long(len(text), shard.max_record_bytes, text[:1000].encode())
                    yield _Row(row, index), long.beginning, None, long.reason
                else:
                    yield _Row(row, index), record, record, ""
    elif _is_lines(path):
        for start, number, lines in _lines(shard):
            offsets = itertools.accumulate(map(len, lines), initial=start)
            for index, (offset, line) in enumerate(zip(offsets, lines)):
                raw, record, problem = _parsed(line, place := _Line(shard, offset, number and number + index))
                if raw or problem:
                    yield place, raw, record, problem
    elif os.path.getsize(path) == 0:
        yield _Line(shard, 0, 1), b"", None, "the file is empty"
    elif path.endswith((".parquet", ".arrow")):
        rows = files.parquet_rows if path.endswith(".parquet") else files.arrow_rows
        for row, record in rows(path, shard.start, shard.end, shard.key, shard.max_record_bytes):
            if isinstance(record, files.Refused):
                yield _Row(row), record.beginning, None, record.reason
            else:
                yield _Row(row), record, record, ""
    else:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            raw = file.read(min(size, shard.max_record_bytes) + 1)
        if len(raw) > shard.max_record_bytes:
            long = files.too_long(size, shard.max_record_bytes, raw)
            yield _Line(shard, 0, 1), long.beginning, None, long.reason
            return
        try:
            yield _Line(shard, 0, 1), raw, {shard.key: raw.decode("utf-8-sig"), "id": Path(path).name}, ""
        except UnicodeDecodeError as error:
            yield (
                _Line(shard, 0, raw.count(b"\n", 0, error.start) + 1),
                raw,
                None,
                f"byte {error.start} of the file is not UTF-8",
            )


def _parsed(line: bytes | files.Refused, place: _Line) -> tuple[bytes, Any, str]:
    """(the line without white space around it, its record, "" or what is wrong); a blank line gives b""."""
    if isinstance(line, files.Refused):
        return line.beginning, None, line.reason
    if place.position == 0 and line.startswith(b"\xef\xbb\xbf"):
        line = line[3:]
    line = line.strip()
    if not line:
        return b"", None, "" if os.path.getsize(place.path) else "the file is empty"
    try:
        return line, orjson.loads(line), ""
    except orjson.JSONDecodeError as error:
        return line, None, _json_mistake(line, error)


def _json_mistake(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start + 1} of the line ({line[wrong.start]:#04x}) is not UTF-8"
    return f"malformed JSON at column {error.colno} ({error.msg.split(':')[0]})"
