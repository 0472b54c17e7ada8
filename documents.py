"""Document(id, text, meta): read JSONL(.gz .zst), Parquet, text, HF datasets; write whole shards.

A document is one record: a text under one key (`text` unless told), an id, and whatever else the record holds, which
is kept. Inputs are files, folders and globs, in sorted order; a folder that mt wrote is read by its manifest. Large
plain JSONL files and Parquet files are cut into shards of about equal size, so that one big file keeps every worker
busy; the cut depends on the files and `shard_bytes` alone, never on the number of workers.

A record that cannot be read (malformed JSON, a missing key, `null` text, bytes that are not UTF-8) is an error that
names file and line; with `--on-error skip` it is set aside in `rejects.jsonl` with its reason instead.
"""

from __future__ import annotations

import base64
import dataclasses
import glob
import gzip
import io
import itertools
import operator
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
import xxhash
import zstandard

from . import manifest
from .config import UserError

EXTENSIONS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet", ".txt")
READ_BYTES = 1 << 20


@dataclasses.dataclass(slots=True)
class Document:
    """One document. meta: every field of the record but the id and the text."""

    id: str
    text: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A piece of one input file: bytes [start, end) of plain JSONL, row groups [start, end) of Parquet, else the whole.

    A JSONL line belongs to the shard in which its first byte lies.
    """

    path: str
    start: int
    end: int
    bytes: int
    key: str  # where the text is
    on_error: Literal["fail", "skip"]


@dataclasses.dataclass
class Reject:
    """A record that could not be read. raw: its bytes, as text where they are UTF-8."""

    file: str
    place: str
    reason: str
    raw: str

    def as_json(self) -> dict:
        return dataclasses.asdict(self)


def expand(inputs: Sequence[str]) -> list[Path]:
    """The files behind files, folders and globs, sorted within each; raises UserError for one that gives none."""
    files: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            written = manifest.manifest_of(path)
            if written is not None:
                found = [path / o["name"] for o in written["outputs"] if o.get("documents", True) and _known(o["name"])]
            elif (path / "run.json").exists():
                raise UserError(f"{path}: holds an unfinished run of mt; run the command that writes it again first")
            else:
                found = sorted(p for p in path.rglob("*") if p.is_file() and _known(p.name) and not p.name.startswith("."))
            if not found:
                raise UserError(f"{path}: holds no documents ({', '.join(EXTENSIONS)}); check the path")
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(item, recursive=True))
            if not found:
                raise UserError(f"{item}: no such file or directory; check the path")
        files += found
    for path in files:
        if not _known(path.name):
            raise UserError(f"{path}: not a kind of file that mt reads; use one of {', '.join(EXTENSIONS)}")
    return files


def _known(name: str) -> bool:
    return name.endswith(EXTENSIONS)


def plan(inputs: Sequence[str], *, key: str = "text", shard_bytes: int = 64 << 20, on_error: Literal["fail", "skip"] = "fail") -> list[Shard]:
    """Shards of the inputs, in order. An empty file gives a shard of no bytes, which `read` then objects to."""
    shards = []
    for path in expand(inputs):
        size = path.stat().st_size
        if path.name.endswith((".jsonl", ".json")):
            pieces = max(1, round(size / shard_bytes))
            cuts = [size * i // pieces for i in range(pieces + 1)]
            shards += [Shard(str(path), a, b, b - a, key, on_error) for a, b in itertools.pairwise(cuts)]
        elif path.suffix == ".parquet":
            shards += [Shard(str(path), a, b, n, key, on_error) for a, b, n in _row_groups(path, shard_bytes)]
        else:
            shards.append(Shard(str(path), 0, size, size, key, on_error))
    return shards


def read(shard: Shard, reject: Callable[[Reject], None] | None = None) -> Iterator[Document]:
    """The documents of a shard, in order.

    reject: called with each record that is set aside where shard.on_error is "skip"; with "fail" the first bad
    record raises UserError.
    """
    for place, raw, record in _records(shard):
        document = record if isinstance(record, str) else _document(record, shard, place)
        if isinstance(document, Document):
            yield document
        else:
            _set_aside(shard, place(), document, raw, reject)


def read_values(shard: Shard, keys: Sequence[str], reject: Callable[[Reject], None] | None = None) -> Iterator[tuple[str | list[str], ...]]:
    """The values of several keys of every record of a shard, in order: each a text, or a list of texts.

    reject: as for `read`.
    """
    quick = _quick_rows(shard, keys) if shard.path.endswith(".parquet") else _quick_values(shard, keys)
    if quick is not None:
        yield from quick
        return
    for place, raw, record in _records(shard):
        values = record if isinstance(record, str) else _values(record, keys)
        if isinstance(values, tuple):
            yield values
        else:
            _set_aside(shard, place(), values, raw, reject)


def _quick_values(shard: Shard, keys: Sequence[str]) -> list[tuple[str, ...]] | None:
    """What `read_values` yields for a small piece of plain JSONL where every record is in order, else None.

    Three times as fast as the way that can say what is wrong and where.
    """
    if not shard.path.endswith((".jsonl", ".json")) or not 0 < shard.bytes <= 64 * READ_BYTES:
        return None
    with open(shard.path, "rb") as file:
        if shard.start > 0:
            file.seek(shard.start - 1)
            file.readline()
        data = file.read(max(0, shard.end - file.tell()))
        if data and not data.endswith(b"\n"):
            data += file.readline()
    loads, pick = orjson.loads, operator.itemgetter(*keys)
    try:
        try:
            picked = [pick(record) for record in map(loads, io.BytesIO(data))]
        except orjson.JSONDecodeError:  # blank lines, or a mistake
            picked = [pick(loads(line)) for line in data.split(b"\n") if line.strip()]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return None
    columns = [picked] if len(keys) == 1 else list(zip(*picked))
    if any(set(map(type, column)) - {str} for column in columns):
        return None
    return list(zip(*columns))


def _quick_rows(shard: Shard, keys: Sequence[str]) -> Iterator[tuple[str, ...]] | None:
    """What `read_values` yields for Parquet where the file itself says that every value is a text, else None.

    Other columns are not read, and no row becomes a dictionary.
    """
    import pyarrow

    file = _parquet(shard.path)
    columns = {file.schema.column(i).path: i for i in range(len(file.schema))}
    texts = {name for name in file.schema_arrow.names if pyarrow.types.is_string(kind := file.schema_arrow.field(name).type) or pyarrow.types.is_large_string(kind)}
    groups = list(range(shard.start, shard.end))
    for key in keys:
        if key not in texts or key not in columns:
            return None
        for group in groups:
            facts = file.metadata.row_group(group).column(columns[key]).statistics
            if facts is None or not facts.has_null_count or facts.null_count:
                return None
    # pyarrow's threads would take twice the processor time, from workers that are at work already.
    batches = file.iter_batches(batch_size=1024, row_groups=groups, columns=list(keys), use_threads=False)
    return itertools.chain.from_iterable(zip(*(batch.column(key).to_pylist() for key in keys)) for batch in batches)


def _set_aside(shard: Shard, place: str, reason: str, raw: bytes | dict, reject) -> None:
    if shard.on_error == "fail" or reject is None:
        raise UserError(f"{shard.path}{place}: {reason}; mend it, or pass --on-error skip to set such records aside")
    reject(Reject(shard.path, place.removeprefix(", "), reason, _printable(raw)))


def _printable(raw: bytes | dict) -> str:
    if isinstance(raw, dict):
        raw = orjson.dumps(raw, default=str)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()


def _document(record, shard: Shard, place) -> Document | str:
    """The document in a record, or what is wrong with it."""
    if not isinstance(record, dict):
        return f"is {_json_type(record)}, not a JSON object"
    if shard.key not in record:
        return _absent(record, shard.key)
    text = record[shard.key]
    if not isinstance(text, str):
        return f"{shard.key!r} is {_json_type(text)}, not a text"
    meta = {k: v for k, v in record.items() if k != shard.key and k != "id"}
    name = record.get("id")
    return Document(str(name) if name is not None else _made_id(shard, place), text, meta)


def _values(record, keys: Sequence[str]) -> tuple[str | list[str], ...] | str:
    """The texts, or lists of texts, under the keys of a record, or what is wrong with it."""
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


def _absent(record: dict, key: str) -> str:
    return f"has no key {key!r} (it has {', '.join(map(repr, list(record)[:8]))})"


def _json_type(value) -> str:
    return {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object", str: "a text"}.get(type(value), f"a {type(value).__name__}")


def _made_id(shard: Shard, place) -> str:
    return f"{Path(shard.path).name}:{place.position}"


class _Line:
    """Where a line is: its byte offset at once, its number when somebody asks (counting what lies before it)."""

    __slots__ = ("path", "position", "relative")

    def __init__(self, path: str, position: int, relative: int | None = None):
        self.path, self.position, self.relative = path, position, relative

    def __call__(self) -> str:
        if self.relative is not None:
            return f", line {self.relative}"
        left, number = self.position, 1
        with open(self.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, READ_BYTES))):
                number += block.count(b"\n")
                left -= len(block)
        return f", line {number}"


class _Row:
    __slots__ = ("position",)

    def __init__(self, position: int):
        self.position = position

    def __call__(self) -> str:
        return f", row {self.position + 1}"


def _records(shard: Shard) -> Iterator[tuple[Callable[[], str], bytes | dict, Any]]:
    """(place, raw bytes or Parquet's row, record) of every record; the record is a text saying what is wrong where it cannot be parsed."""
    path = shard.path
    if os.path.getsize(path) == 0:
        yield _Line(path, 0, 1), b"", "the file is empty"
    elif path.endswith((".jsonl", ".json")):
        yield from _json_lines(_lines_between(path, shard.start, shard.end), path, numbered=False)
    elif path.endswith((".gz", ".zst")):
        yield from _json_lines(_lines_of_stream(path), path, numbered=True)
    elif path.endswith(".parquet"):
        yield from _rows(shard)
    else:
        raw = Path(path).read_bytes()
        try:
            yield _Line(path, 0, 1), raw, {shard.key: raw.decode("utf-8-sig"), "id": Path(path).name}
        except UnicodeDecodeError as error:
            yield _Line(path, 0, raw.count(b"\n", 0, error.start) + 1), raw, f"byte {error.start} of the file is not UTF-8"


def _json_lines(lines, path: str, numbered: bool):
    loads = orjson.loads
    for number, (position, line) in enumerate(lines, 1):
        if position == 0 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
        stripped = line.strip()
        if not stripped:
            continue
        place = _Line(path, position, number if numbered else None)
        try:
            record = loads(stripped)
        except orjson.JSONDecodeError as error:
            record = _json_mistake(stripped, error)
        yield place, stripped, record


def _json_mistake(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start + 1} of the line ({line[wrong.start]:#04x}) is not UTF-8"
    return f"malformed JSON at column {error.colno} ({error.msg.split(':')[0]})"


def _lines_between(path: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines whose first byte lies in [start, end)."""
    with open(path, "rb", buffering=READ_BYTES) as file:
        if start > 0:
            file.seek(start - 1)
            file.readline()  # the line under way at start belongs to the shard before
        position = file.tell()
        while position < end and (line := file.readline()):
            yield position, line
            position += len(line)


def _lines_of_stream(path: str) -> Iterator[tuple[int, bytes]]:
    """(offset in the plain text, line) of a compressed file; raises UserError where the compression is broken."""
    position = 0
    try:
        with open_binary(path) as file:
            for line in file:
                yield position, line
                position += len(line)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(f"{path}: the compressed data ends or breaks after {position:,} bytes of text ({error}); fetch the file again") from None


def open_binary(path: str | Path):
    """A file opened for reading bytes, decompressed by its extension (.gz, .zst)."""
    path = str(path)
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), READ_BYTES)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """The text of a zstd file of one or more frames; EOFError where a frame is cut short (the library ends quietly)."""

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun, self._ready = False, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                rest = b""
            data = rest or self._file.read(1 << 17)
            if not data:
                if self._begun:
                    raise EOFError("a zstd frame is cut short")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _row_groups(path: Path, shard_bytes: int):
    file = _parquet(path)
    start, size = 0, 0
    for group in range(file.metadata.num_row_groups):
        size += file.metadata.row_group(group).total_byte_size
        if size >= shard_bytes or group == file.metadata.num_row_groups - 1:
            yield start, group + 1, size
            start, size = group + 1, 0
    if file.metadata.num_row_groups == 0:
        yield 0, 0, 0


def _parquet(path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]}); fetch or write it again") from None


def _rows(shard: Shard):
    file = _parquet(shard.path)
    if shard.key not in file.schema_arrow.names:
        raise UserError(f"{shard.path}: has no column {shard.key!r} (it has {', '.join(file.schema_arrow.names)}); name the text's with --text-key")
    first = sum(file.metadata.row_group(g).num_rows for g in range(shard.start))
    for group in range(shard.start, shard.end):
        for batch in file.iter_batches(batch_size=1024, row_groups=[group], use_threads=False):
            for record in batch.to_pylist():
                yield _Row(first), record, record
                first += 1


class Writer:
    """Writes documents to one whole file: `.jsonl`, `.jsonl.zst` or `.parquet`; use it in a `with` block.

    The file appears under its name when the block ends well, and not at all otherwise. `record` is then its entry
    for the manifest, made without reading it again.
    """

    def __init__(self, path: str | Path, *, root: str | Path, key: str = "text"):
        self.path, self.root, self.key = Path(path), Path(root), key
        self.documents = self.text_bytes = 0
        self._rows: list[dict] = []

    def __enter__(self) -> Writer:
        self._context = manifest.atomic_write(self.path)
        self._file = self._context.__enter__()
        self._digest = xxhash.xxh3_128()
        self._zstd = zstandard.ZstdCompressor(level=3).compressobj() if self.path.suffix == ".zst" else None
        self._parquet = None
        self._buffer = bytearray()
        return self

    def write(self, document: Document) -> None:
        self.documents += 1
        self.text_bytes += len(document.text.encode())
        record = {"id": document.id, self.key: document.text, **document.meta}
        if self.path.suffix == ".parquet":
            self._rows.append(record)
            if len(self._rows) >= 8192:
                self._flush_rows()
            return
        self._buffer += orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
        if len(self._buffer) >= READ_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        self._emit(self._zstd.compress(data) if self._zstd else data)

    def _emit(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def _flush_rows(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._parquet is None:
            schema = None if self._rows else pyarrow.schema([("id", pyarrow.string()), (self.key, pyarrow.string())])
            table = pyarrow.Table.from_pylist(self._rows, schema=schema)
            self._parquet = pyarrow.parquet.ParquetWriter(self._file, table.schema, compression="zstd")
        else:
            table = pyarrow.Table.from_pylist(self._rows, schema=self._parquet.schema)
        self._parquet.write_table(table)
        self._rows.clear()

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._context.__exit__(*sys.exc_info())
            raise
        self._context.__exit__(kind, error, trace)
        if kind is None:
            digest = None if self.path.suffix == ".parquet" else self._digest.hexdigest()
            self.record = {**manifest.record(self.path, self.root, digest), "rows": self.documents}

    def _finish(self) -> None:
        if self.path.suffix == ".parquet":
            if self._rows or self._parquet is None:
                self._flush_rows()
            self._parquet.close()
        else:
            self._flush()
            if self._zstd:
                self._emit(self._zstd.flush())
