"""Writes documents to JSONL, JSONL.zst or Parquet files, and starts a new file where one is full.

A file appears under its name only when it is whole. Every field of a document is written. A Parquet column
has one type, which all documents of the file decide: a missing value is null, numbers take the widest type,
objects get the keys of all. Therefore a Parquet file is kept in memory until it is whole; `max_bytes` limits
its size.
"""

from __future__ import annotations

import base64
import contextlib
import decimal
import json
import sys
import types
from pathlib import Path
from typing import IO, Any

import orjson
import xxhash
import zstandard

from ..core import manifest
from ..core.config import UserError, shown
from .reader import Document

BUFFER_BYTES = 1 << 20
# Parquet: so many documents, or bytes of text, become columns at once; a row group has as many documents.
BATCH_DOCUMENTS, BATCH_BYTES = 8192, 16 << 20


class Writer:
    """Writes documents to `path`, then to `NAME_001`, `NAME_002` ... after each `max_bytes` of text.

    Use it in a `with` block. The ending of the path gives the format. `records` are the entries of the whole
    files for the manifest, made without reading them again. `documents` and `text_bytes` count all files.
    """

    def __init__(
        self, path: str | Path, *, root: str | Path, key: str = "text", max_bytes: int = sys.maxsize
    ):
        self.path, self.root = Path(path), Path(root)
        self.key, self.max_bytes = key, max_bytes
        self.documents = self.text_bytes = 0
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Writer:
        self._begin()
        return self

    def write(self, document: Document) -> None:
        text = document.text
        size = len(text) if text.isascii() else len(text.encode())
        if self.text_bytes - self._before[1] >= self.max_bytes:
            self._end()
            self._begin()
        self.documents += 1
        self.text_bytes += size
        self._format.add({"id": document.id, self.key: text, **document.meta}, size)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, trace)
            return
        try:
            self._end()
        except BaseException:
            self._open.__exit__(*sys.exc_info())
            raise

    def _begin(self) -> None:
        suffix = "".join(self.path.suffixes[-2:]) if self.path.suffix == ".zst" else self.path.suffix
        number = f"_{len(self.records):03d}" if self.records else ""
        self._to = self.path.with_name(f"{self.path.name.removesuffix(suffix)}{number}{suffix}")
        self._before = self.documents, self.text_bytes
        self._open = contextlib.ExitStack()
        file = self._open.enter_context(manifest.atomic_write(self._to))
        self._format: _Lines | _Parquet = (
            _Parquet(file, self.path, self.key)
            if suffix == ".parquet"
            else _Lines(file, suffix.endswith(".zst"))
        )

    def _end(self) -> None:
        digest = self._format.finish()
        self._open.close()
        self.records.append(
            {**manifest.record(self._to, self.root, digest), "rows": self.documents - self._before[0]}
        )


class _Lines:
    """JSON lines, compressed or not."""

    def __init__(self, file: IO[bytes], compressed: bool):
        self.file = file
        self.digest = xxhash.xxh3_128()
        self.buffer = bytearray()
        self.zstd = zstandard.ZstdCompressor(level=3).compressobj() if compressed else None

    def add(self, row: dict[str, Any], size: int) -> None:
        try:
            self.buffer += orjson.dumps(row, _plain, orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
        except TypeError:
            self.buffer += _deep_line(row)
        if len(self.buffer) >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self.buffer)
        self.buffer.clear()
        self._emit(self.zstd.compress(data) if self.zstd else data)

    def _emit(self, data: bytes) -> None:
        self.digest.update(data)
        self.file.write(data)

    def finish(self) -> str:
        """Writes the rest of the buffer; returns the xxh3-128 of the file in hex."""
        self._flush()
        if self.zstd:
            self._emit(self.zstd.flush())
        return self.digest.hexdigest()


def _deep_line(row: dict[str, Any]) -> bytes:
    """The line of a document that orjson does not write: it reads 1,024 levels of nesting and writes 254."""
    try:
        return json.dumps(row, default=_plain, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except RecursionError:
        raise UserError(
            f"document {shown(row['id'])}: its fields are nested too deep to be written; remove them, or"
            " flatten them"
        ) from None


def _plain(value: object) -> str:
    """A value of Parquet that JSON has no type for, as text: bytes in base64, decimals in digits."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    return format(value, "f") if isinstance(value, decimal.Decimal) else str(value)


class _Parquet:
    """A Parquet file, built in memory from tables of BATCH_DOCUMENTS rows."""

    def __init__(self, file: IO[bytes], path: Path, key: str):
        self.file, self.path, self.key = file, path, key
        self.rows: list[dict[str, Any]] = []  # since the last table
        self.size = 0  # of their text in bytes
        self.tables: list[Any] = []  # pyarrow.Table

    def add(self, row: dict[str, Any], size: int) -> None:
        self.rows.append(row)
        self.size += size
        if len(self.rows) >= BATCH_DOCUMENTS or self.size >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        names = dict.fromkeys(["id", self.key, *(name for row in self.rows for name in row)])
        self.tables.append(pyarrow.table({name: self._column(name) for name in names}))
        self.rows, self.size = [], 0

    def _column(self, name: str) -> Any:
        """A pyarrow.Array of one field of the rows since the last table."""
        import pyarrow

        values = [row.get(name) for row in self.rows]
        if name in ("id", self.key):
            return pyarrow.array(values, pyarrow.string())
        try:
            return pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise self._refusal(name, error) from None

    def _whole(self, name: str) -> Any:
        """A pyarrow column of one field of all rows."""
        import pyarrow

        parts = [
            t.select([name]) if name in t.column_names else pyarrow.table({name: pyarrow.nulls(len(t))})
            for t in self.tables
        ]
        try:
            column = pyarrow.concat_tables(parts, promote_options="permissive").column(name)
        except pyarrow.ArrowException as error:
            raise self._refusal(name, error) from None
        # Parquet has no type for a column of nothing but empty objects.
        return pyarrow.nulls(len(column)) if column.type == pyarrow.struct([]) else column

    def _refusal(self, name: str, error: Exception) -> UserError:
        return UserError(
            f"{self.path}: the values of {name!r} have no common type, which a Parquet column needs"
            f" ({str(error).splitlines()[0]}); pass --format jsonl.zst, or leave the field out"
        )

    def finish(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self.rows or not self.tables:
            self._flush()
        names = dict.fromkeys(name for table in self.tables for name in table.column_names)
        whole = pyarrow.table({name: self._whole(name) for name in names})
        try:
            pyarrow.parquet.write_table(whole, self.file, compression="zstd", row_group_size=BATCH_DOCUMENTS)
        except pyarrow.ArrowNotImplementedError as error:
            raise UserError(f"{self.path}: {str(error).splitlines()[0]}; pass --format jsonl.zst") from None
