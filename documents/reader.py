"""Reads documents from the shards of files, standard input and Hugging Face datasets.

A document is one record: a text under one key (`text` by default), an id, and the other fields of the
record, which are kept (writer.py writes them). sharding.py divides the inputs into shards; records.py reads
the records of every format. Here they become documents, or values of several keys; the commonest kinds, JSON
lines and Parquet with nothing unusual in them, take faster ways.

A record that cannot be read (malformed JSON, a missing key, `null` text, bytes that are not UTF-8) raises
UserError, which names file and line; with `--on-error skip` it is written to `rejects.jsonl` with the reason
instead (rejects.py).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from ..core.config import UserError, shown, shown_names
from . import files, records, values
from .records import Line, Place, Row
from .rejects import Rejecter, set_aside
from .sharding import Shard

BATCHES_AHEAD = 3  # lists of batches of Parquet rows that are decoded before they are needed
NO_ID = "has no 'id', by which a document that is sent again is known"
# Characters of an id. Logs name the survivor of every duplicate, so that 1 MB of text and one long id would
# fill gigabytes. Most servers refuse URLs of this length, which are the longest ids in use.
MAX_ID = 8192
BATCH_BYTES = 8 << 20  # of one list, from which it is not made longer


@dataclasses.dataclass(slots=True)
class Document:
    """One document: id, text, and meta, a mapping of all other fields of the record."""

    id: str
    text: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Values that are long are shortened: a text may be a book."""
        return f"Document(id={shown(self.id)}, text={shown(self.text)}, meta={shown(self.meta)})"


def read(shard: Shard, reject: Rejecter | None = None) -> Iterator[Document]:
    """The documents of a shard, in order.

    reject: called with each record that cannot be read, if shard.on_error is "skip". With "fail" the first
    one raises UserError.
    """
    return (_read_lines if shard.kind in ("lines", "packed") else _read_records)(shard, reject)


def batches(documents: Iterable[Document], chars: int) -> Iterator[list[Document]]:
    """Documents in lists, each of which ends when it has at least so many characters."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_lines(shard: Shard, reject: Rejecter | None) -> Iterator[Document]:
    """`read` of JSONL.

    A record whose id and text are strings takes the inner loop, which is almost as fast as orjson alone
    (benchmarks/dataprep.py compares them). Any other record is parsed again below.
    """
    key, new, may_have_long = shard.key, object.__new__, records.may_have_long_integer
    for start, number, lines in records.lines(shard):
        left, offsets = iter(lines), None
        parsed = map(orjson.loads, left)
        while True:
            try:
                for record in parsed:
                    text, name = record.pop(key), record.pop("id", None)
                    if (
                        type(text) is str is type(name)
                        and len(name) <= MAX_ID
                        and not (record and may_have_long(record.values()))
                    ):
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
            if _is_blank(lines[index]):
                while index + 1 < len(lines) and _is_blank(lines[index + 1]):
                    next(left)
                    index += 1
                continue
            offsets = offsets or list(itertools.accumulate(map(len, lines), initial=start))
            place = Line(shard, offsets[index], number and number + index)
            if type(text) is str and not may_have_long((name, record)):
                name = _generated_id(shard, place) if name is None else values.id_text(name)
                if len(name) <= MAX_ID:
                    yield Document(name, text, record)
                    continue
            raw, record, problem = records.parsed(lines[index], place)
            result = problem or _document(record, shard, place)
            if isinstance(result, Document):
                yield result
            elif raw or problem:
                set_aside(shard, place(), result, raw, reject)


def _is_blank(line: bytes | files.Refused) -> bool:
    return isinstance(line, bytes) and line.isspace()


def read_arriving(
    read: Callable[[int], bytes], shard: Shard, reject: Rejecter | None = None, *, need_id: bool = False
) -> Iterator[list[Document]]:
    """The documents of a stream of JSON lines, in lists of those that have arrived.

    read: as for files.arriving_lines. shard: says how the stream is called, which key has the text, and what
    happens to a record that cannot be read; reject: as for `read`. Documents before a record that ends the
    reading are still returned. need_id: a record without an id cannot be read.
    """
    for arrived in records.arriving(read, shard):
        documents = []
        for place, raw, record, problem in arrived:
            if need_id and isinstance(record, dict) and record.get("id") is None:
                problem = problem or NO_ID
            result = problem or _document(record, shard, place)
            if isinstance(result, Document):
                documents.append(result)
                continue
            try:
                set_aside(shard, place(), result, raw, reject)
            except UserError:
                yield documents
                raise
        yield documents


def _read_records(shard: Shard, reject: Rejecter | None) -> Iterator[Document]:
    """`read` of anything but JSONL."""
    for place, raw, record, problem in records.records(shard):
        result = problem or _document(record, shard, place)
        if isinstance(result, Document):
            yield result
        else:
            set_aside(shard, place(), result, raw, reject)


def fields(shard: Shard) -> dict[str, Any]:
    """{name: pyarrow.Field} of the columns from which the documents of a shard come; {} if there are none."""
    return files.arrow_fields(shard.path, shard.kind) if shard.kind in ("parquet", "arrow") else {}


def read_raw(shard: Shard, reject: Rejecter | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of every record of a shard, in order, whatever its keys.

    reject: as for `read`. A text file is one record of `id` and text.
    """
    for place, raw, record, problem in records.records(dataclasses.replace(shard, key="")):
        if problem or not isinstance(record, dict):
            set_aside(shard, place(), problem or f"is {_json_type(record)}, not a JSON object", raw, reject)
        else:
            yield place().removeprefix(", "), record


def read_values(
    shard: Shard, keys: Sequence[str], reject: Rejecter | None = None
) -> Iterator[tuple[str | list[str], ...]]:
    """The values of several keys of every record of a shard, in order: each a text, or a list of texts.

    reject: as for `read`.
    """
    fast: Iterable[tuple[str, ...]] | None = None
    if shard.kind == "parquet":
        fast = _parquet_values(shard, keys, reject)
    elif shard.kind == "lines":
        fast = _json_values(shard, keys)
    if fast is not None:
        yield from fast
        return
    for place, raw, record, problem in records.records(shard):
        found = problem or _values(record, keys)
        if isinstance(found, tuple):
            yield found
        else:
            set_aside(shard, place(), found, raw, reject)


def _json_values(shard: Shard, keys: Sequence[str]) -> list[tuple[str, ...]] | None:
    """What `read_values` yields for a small shard of plain JSONL; None if a value of a record is not a text.

    It is three times as fast as the general way, which can tell what is wrong and where.
    """
    if not 0 < shard.bytes <= 64 << 20:
        return None
    loads, pick, picked = orjson.loads, operator.itemgetter(*keys), []
    try:
        for _, _, lines in records.lines(shard):
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
                set_aside(shard, Row(number)(), record.reason, record.beginning, reject)
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


def _document(record: Any, shard: Shard, place: Place) -> Document | str:
    """The document of a record, or the reason why there is none."""
    if not isinstance(record, dict):
        return f"is {_json_type(record)}, not a JSON object"
    if shard.key not in record:
        return f"{_absent(record, shard.key)}; {files.KEY_REMEDY}"
    text = record[shard.key]
    if not isinstance(text, str):
        return f"{shard.key!r} is {_json_type(text)}, not a text"
    name = values.id_text(record["id"]) if record.get("id") is not None else _generated_id(shard, place)
    if len(name) > MAX_ID:
        return f"has an 'id' of {len(name):,} characters, more than {MAX_ID:,}"
    del record[shard.key]
    record.pop("id", None)
    return Document(name, text, record)


def _values(record: Any, keys: Sequence[str]) -> tuple[str | list[str], ...] | str:
    """The texts, or lists of texts, under the keys of a record, or the reason why there are none."""
    if not isinstance(record, dict):
        return f"is {_json_type(record)}, not a JSON object"
    for key in keys:
        if key not in record:
            return f"{_absent(record, key)}; {files.KEY_REMEDY}"
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
    return f"has no key {key!r} (it has {shown_names(record)})"


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
    """The id of a document that has none: LABEL:POSITION (folders.py says what the label is)."""
    return f"{shard.label}:{place.position}"
