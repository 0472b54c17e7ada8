"""documents to whole files: JSONL, JSONL.zst or Parquet, and a further file where one is full.

A file appears under its name when it is whole, and not at all otherwise. Every field of a document is
written. Parquet has one type a column, which the documents of the whole file decide: what some lack is null
there, numbers become the widest kind, objects get the keys of all. For that a Parquet file is held in memory
until it is whole; `max_bytes` bounds it.
"""

from __future__ import annotations

import base64
import contextlib
import decimal
import sys
from pathlib import Path

import orjson
import xxhash
import zstandard

from ..core import manifest
from ..core.config import UserError
from .reader import Document

BUFFER_BYTES = 1 << 20
PARQUET_BATCH = 8192, 16 << 20  # documents, bytes of text


class Writer:
    """Writes documents to `path`, and once that holds `max_bytes` of text on to `NAME_001`, `NAME_002`; use
    it in a `with` block.

    The ending of the path says the format. `records` are the whole files' entries for the manifest, made
    without reading them again; `documents` and `text_bytes` count what all of them hold.
    """

    def __init__(
        self, path: str | Path, *, root: str | Path, key: str = "text", max_bytes: int = sys.maxsize
    ):
        self.path, self.root, self.key, self.max_bytes = Path(path), Path(root), key, max_bytes
        self.documents = self.text_bytes = 0
        self.records: list[dict] = []

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

    def __exit__(self, kind, error, trace) -> None:
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
        self._format = (
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

    def __init__(self, file, compressed: bool):
        self.file, self.digest, self.buffer = file, xxhash.xxh3_128(), bytearray()
        self.zstd = zstandard.ZstdCompressor(level=3).compressobj() if compressed else None

    def add(self, row: dict, size: int) -> None:
        self.buffer += orjson.dumps(row, _plain, orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
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
        """Writes what is left; returns the digest of the file."""
        self._flush()
        if self.zstd:
            self._emit(self.zstd.flush())
        return self.digest.hexdigest()


def _plain(value):
    """What JSON has no word for and Parquet may hold: bytes in base64, decimals and all else as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    return format(value, "f") if isinstance(value, decimal.Decimal) else str(value)


class _Parquet:
    def __init__(self, file, path: Path, key: str):
        self.file, self.path, self.key = file, path, key
        self.rows, self.size, self.tables = [], 0, []

    def add(self, row: dict, size: int) -> None:
        self.rows.append(row)
        self.size += size
        if len(self.rows) >= PARQUET_BATCH[0] or self.size >= PARQUET_BATCH[1]:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        names = dict.fromkeys(["id", self.key, *(name for row in self.rows for name in row)])
        self.tables.append(pyarrow.table({name: self._column(name) for name in names}))
        self.rows, self.size = [], 0

    def _column(self, name: str):
        import pyarrow

        values = [row.get(name) for row in self.rows]
        if name in ("id", self.key):
            return pyarrow.array(values, pyarrow.string())
        try:
            return pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise self._refusal(name, error) from None

    def _whole(self, name: str):
        """A column of all batches."""
        import pyarrow

        parts = [
            t.select([name]) if name in t.column_names else pyarrow.table({name: pyarrow.nulls(len(t))})
            for t in self.tables
        ]
        try:
            column = pyarrow.concat_tables(parts, promote_options="permissive").column(name)
        except pyarrow.ArrowException as error:
            raise self._refusal(name, error) from None
        # A column of empty objects alone: Parquet has no type for it.
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
            pyarrow.parquet.write_table(whole, self.file, compression="zstd", row_group_size=PARQUET_BATCH[0])
        except pyarrow.ArrowNotImplementedError as error:
            raise UserError(f"{self.path}: {str(error).splitlines()[0]}; pass --format jsonl.zst") from None
