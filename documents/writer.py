"""Writes documents to JSONL, JSONL.zst or Parquet files, and starts a new file where one is full.

A file appears under its name only when it is whole. Every field of a document is written. A Parquet column
has one type, which all documents of the file decide: a missing value is null, numbers take the widest type,
objects get the keys of all. Columns that come from Parquet or Arrow keep their types. Therefore a Parquet
file is kept in memory until it is whole; `max_bytes` limits its size.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import orjson
import xxhash
import zstandard

from ..core import manifest
from ..core.config import UserError, shown
from . import values
from .reader import Document

BUFFER_BYTES = 1 << 20
# Parquet: so many documents, or bytes of text, become columns at once; a row group has as many documents.
BATCH_DOCUMENTS, BATCH_BYTES = 8192, 16 << 20
SCHEMA_LEVELS = 98  # pyarrow reads Parquet schemas of 100 levels: the root, the column, and these
MAX_INT64, MAX_UINT64 = 2**63 - 1, 2**64 - 1


class Unwritable(UserError):
    """A document that cannot be written, for a reason that lies in it alone; nothing of it is written."""

    def __init__(self, document: Document, reason: str):
        super().__init__(
            f"document {shown(document.id)}: {reason}; mend it, or pass --on-error skip to set such documents"
            " aside"
        )
        self.reason = reason


def json_line(document: Document) -> bytes:
    """A document as a line of a JSONL file; raises Unwritable as Writer.write does."""
    try:
        line: bytes = values.json_bytes(_row(document), orjson.OPT_APPEND_NEWLINE)
    except (values.TooDeep, UnicodeEncodeError) as error:
        raise _refusal(document, error) from None
    return line


def _row(document: Document) -> dict[str, Any]:
    if "text" in document.meta:
        raise Unwritable(document, "has a field 'text' beside its text, which is written under that name")
    return {"id": document.id, "text": document.text, **document.meta}


def _refusal(document: Document, error: values.TooDeep | UnicodeEncodeError) -> Unwritable:
    too_deep = isinstance(error, values.TooDeep)
    return Unwritable(
        document, str(error) if too_deep else "has half a surrogate pair, which UTF-8 cannot encode"
    )


class Writer:
    """Writes documents to `path`, then to `NAME_001`, `NAME_002` ... after each `max_bytes` of text.

    Use it in a `with` block. The ending of the path gives the format. `records` are the entries of the whole
    files for the manifest, made without reading them again. `documents` and `text_bytes` count all files.

    fields: {name: pyarrow.Field} of the columns from which documents come; a Parquet file has them as they
    are, unless documents have other values there.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        root: str | Path,
        max_bytes: int = sys.maxsize,
        fields: Mapping[str, Any] = types.MappingProxyType({}),
    ):
        self.path, self.root = Path(path), Path(root)
        self.max_bytes, self.fields = max_bytes, fields
        self.documents = self.text_bytes = 0
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Writer:
        self._begin()
        return self

    def write(self, document: Document) -> None:
        """Writes a document; raises Unwritable if it is nested too deep, or has a field named as its text."""
        row, text = _row(document), document.text
        if self.text_bytes - self._before[1] >= self.max_bytes:
            self._end()
            self._begin()
        try:
            size = len(text) if text.isascii() else len(text.encode())
            self._format.add(row, size)
        except (values.TooDeep, UnicodeEncodeError) as error:
            raise _refusal(document, error) from None
        self.documents += 1
        self.text_bytes += size

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
            _Parquet(file, self.path, self.fields)
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
        self.buffer += values.json_bytes(row, orjson.OPT_APPEND_NEWLINE)
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


class _Parquet:
    """A Parquet file, built in memory from tables of BATCH_DOCUMENTS rows."""

    def __init__(self, file: IO[bytes], path: Path, fields: Mapping[str, Any]):
        self.file, self.path, self.fields = file, path, fields
        self.rows: list[dict[str, Any]] = []  # since the last table
        self.size = 0  # of their text in bytes
        self.tables: list[Any] = []  # pyarrow.Table

    def add(self, row: dict[str, Any], size: int) -> None:
        if values.depth(row.values(), SCHEMA_LEVELS // 2) > SCHEMA_LEVELS // 2:
            raise values.TooDeep(f"is nested deeper than the {SCHEMA_LEVELS // 2} levels of a Parquet file")
        self.rows.append(row)
        self.size += size
        if len(self.rows) >= BATCH_DOCUMENTS or self.size >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        names = dict.fromkeys(["id", "text", *(name for row in self.rows for name in row)])
        columns = [self._column(name) for name in names]
        self.tables.append(pyarrow.table(columns, list(names)))
        self.rows, self.size = [], 0

    def _column(self, name: str) -> Any:
        """A pyarrow.Array of one field of the rows since the last table."""
        import pyarrow

        items = [row.get(name) for row in self.rows]
        if name in ("id", "text"):
            return pyarrow.array(items, pyarrow.string())
        wrong: tuple[type[Exception], ...] = (pyarrow.ArrowException, TypeError, ValueError, OverflowError)
        if name in self.fields:
            kind = self.fields[name].type
            if not _is_parquet(kind):
                raise UserError(
                    f"{self.path}: the column {name!r} is of the type {kind}, which is not written to"
                    " Parquet; pass --format jsonl.zst, or leave the field out"
                )
            with contextlib.suppress(*wrong):  # a stage has other values there
                return values.column(items, kind)
        try:
            return _inferred(items)
        except wrong as error:
            raise self._refusal(name, error) from None

    def _whole(self, name: str) -> Any:
        """A pyarrow column of one field of all rows."""
        import pyarrow
        from pyarrow import types

        parts = [
            t[name] if name in t.column_names else pyarrow.chunked_array([pyarrow.nulls(len(t))])
            for t in self.tables
        ]
        kinds = {part.type for part in parts}
        if len(kinds) == 1 and not types.is_dictionary(parts[0].type):
            # concat_tables does not take every type.
            chunks = [chunk for part in parts for chunk in part.chunks]
            column = pyarrow.chunked_array(chunks, parts[0].type)
        else:
            try:
                tables = [pyarrow.table({name: part}) for part in parts]
                column = pyarrow.concat_tables(tables, promote_options="permissive").column(name)
            except pyarrow.ArrowException as error:
                raise self._refusal(name, error) from None
        if types.is_dictionary(column.type):
            column = _one_dictionary(column)
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
        columns = [self._whole(name) for name in names]
        fields = [self._field(name, column.type) for name, column in zip(names, columns)]
        whole = pyarrow.table(columns, schema=pyarrow.schema(fields))
        try:
            pyarrow.parquet.write_table(whole, self.file, compression="zstd", row_group_size=BATCH_DOCUMENTS)
        except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid) as error:
            raise UserError(f"{self.path}: {str(error).splitlines()[0]}; pass --format jsonl.zst") from None

    def _field(self, name: str, kind: Any) -> Any:
        """The field of a column: that of the input, with its metadata, if the type is the same."""
        import pyarrow

        given = self.fields.get(name)
        return given.with_nullable(True) if given and given.type == kind else pyarrow.field(name, kind)


def _is_parquet(kind: Any) -> bool:
    """Whether values of a type of Arrow become the same type in Parquet, as pyarrow writes it."""
    import pyarrow
    from pyarrow import types

    if types.is_union(kind) or types.is_run_end_encoded(kind) or types.is_interval(kind):
        return False
    inner = values.children(kind)
    if not isinstance(kind, pyarrow.BaseExtensionType) and any(
        isinstance(child, pyarrow.BaseExtensionType) for child in inner
    ):
        return False  # pyarrow makes no such array of values
    return all(map(_is_parquet, inner))


def _inferred(items: list[Any]) -> Any:
    """A pyarrow.Array of values of any types that have a common one."""
    import pyarrow

    try:
        column = pyarrow.array(items)
        if values.has_boolean_number(items, column.type):
            raise TypeError("some are numbers, others true or false")
        return column
    except OverflowError:  # integers that only unsigned types hold
        return pyarrow.array(items, _unsigned(pyarrow.array(_clipped(items)).type, items))


def _clipped(item: Any) -> Any:
    """A value with all integers of it within 64 bits with a sign, if they are within 64 bits without one."""
    if isinstance(item, dict):
        return {key: _clipped(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_clipped(value) for value in item]
    return 1 if isinstance(item, int) and MAX_INT64 < item <= MAX_UINT64 else item


def _unsigned(kind: Any, items: list[Any]) -> Any:
    """A type of these values with unsigned integers where one is too large for those with a sign."""
    import pyarrow
    from pyarrow import types

    items = [item for item in items if item is not None]
    if types.is_integer(kind):
        return pyarrow.uint64() if any(item > MAX_INT64 for item in items) else kind
    if types.is_list(kind):
        return pyarrow.list_(_unsigned(kind.value_type, [value for item in items for value in item]))
    if types.is_struct(kind):
        return pyarrow.struct(
            [(f.name, _unsigned(f.type, [item.get(f.name) for item in items])) for f in kind]
        )
    return kind


def _one_dictionary(column: Any) -> Any:
    """A column with one dictionary, whose numbers are wider where the type has too few for all entries."""
    import pyarrow

    try:
        return column.unify_dictionaries()
    except pyarrow.ArrowInvalid:
        kind = column.type
        wide = pyarrow.dictionary(pyarrow.int32(), kind.value_type, kind.ordered)
        return column.cast(wide).unify_dictionaries()
