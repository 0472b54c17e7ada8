"""Values of Arrow columns as values of Python and JSON and back, without a change of any value.

Both directions depend on the data alone, never on what else is installed: pyarrow's own conversion returns
other values with pandas than without it, cuts nanoseconds or refuses them, and lets times of more than a day
begin again at midnight. docs/data_formats.md has the JSON form of every type. `rows_of_batch` and `column`
are the ways in and out of Arrow, `json_bytes` the way to JSON.

A value for which Python has no type (nanoseconds, years after 9999) is its text in JSON together with the
number that Arrow stores (`StoredNumber`). A value that is not valid for its type raises InvalidValue.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import functools
import itertools
import json
import math
import uuid
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orjson

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY_SECONDS = 86_400
EPOCH = datetime.datetime(1970, 1, 1)
UTC_EPOCH = EPOCH.replace(tzinfo=datetime.UTC)
EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
MOST_MICROSECONDS = 2**63 // 1000  # of a timedelta that pyarrow takes
MOST_LEVELS = 500  # of nesting in a JSON record that is written; Python's own encoder manages about 990
TIMES_BY_PLAIN = orjson.OPT_PASSTHROUGH_DATETIME
RULES = (
    "nanoseconds, nonfinite, bigints"  # enters the keys of stages, so that outputs of other rules are redone
)


class InvalidValue(ValueError):
    """A value that is not valid for its type; the message says why."""


class TooDeep(ValueError):
    """A value is nested deeper than it can be written."""


class StoredNumber(str):
    """A value of Arrow that no type of Python holds: its text in JSON, and `number`, which Arrow stores."""

    __slots__ = ("number",)
    number: int

    def __new__(cls, text: str, number: int) -> StoredNumber:
        value = super().__new__(cls, text)
        value.number = number
        return value

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]  # pickle passes them to __new__
        return str(self), self.number


class NonFinite(float):
    """NaN or an infinity, which orjson would write as null; it asks for the JSON form of other classes."""

    __slots__ = ()


def rows_of_batch(batch: Any) -> list[dict[str, Any]]:
    """The rows of a pyarrow.RecordBatch.

    Raises InvalidValue, and UnicodeDecodeError for a text that is not UTF-8.
    """
    if not batch.num_columns:
        return [{} for _ in range(len(batch))]
    # Four columns take 180 ns a row like this, 360 with dict(zip(names, row)), 195 in pyarrow itself.
    first, *names = batch.schema.names
    rows = [{first: value} for value in python_values(batch.column(0))]
    for index, name in enumerate(names, 1):
        for row, value in zip(rows, python_values(batch.column(index))):
            row[name] = value
    return rows


def python_values(array: Any) -> list[Any]:
    """The values of a pyarrow.Array, None where it is null."""
    kind = array.type
    values: list[Any]
    if _is_plain(kind):
        values = array.to_pylist()
        return values
    import pyarrow
    from pyarrow import types

    if types.is_temporal(kind) and not types.is_interval(kind):
        return _temporal(array)
    if types.is_floating(kind):
        values = array.to_pylist()
        return values if _is_finite(array) else [_number(value) for value in values]
    if types.is_dictionary(kind):
        indices = array.indices.to_pylist()
        entries = _entries(array.dictionary, set(indices) - {None})
        return [None if index is None else entries[index] for index in indices]
    if isinstance(kind, pyarrow.BaseExtensionType):
        return python_values(array.storage)
    if not _has_own_form(kind) and _is_finite(array):
        values = array.to_pylist()
        return values
    return [_nested(scalar) for scalar in array]


def _entries(dictionary: Any, used: set[int]) -> Any:
    """{index: value} of the used entries of a dictionary; many rows share one, and it may be large."""
    if len(used) >= len(dictionary):
        return python_values(dictionary)
    return {index: python_values(dictionary.slice(index, 1))[0] for index in used}


@functools.lru_cache(maxsize=1024)
def _is_plain(kind: Any) -> bool:
    """Whether pyarrow's own conversion is right for every value of a type."""
    return not _has_own_form(kind) and not has(kind, "is_floating")


@functools.lru_cache(maxsize=1024)
def _has_own_form(kind: Any) -> bool:
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        # Other packages may have registered a class with a conversion of its own for the other names.
        return kind.extension_name not in ("arrow.uuid", "arrow.bool8") or _has_own_form(kind.storage_type)
    if types.is_temporal(kind):
        return not types.is_interval(kind)
    return any(map(_has_own_form, children(kind)))


@functools.lru_cache(maxsize=1024)
def has(kind: Any, question: str) -> bool:
    """Whether a type, or that of values in it, is one of those for which a function of pyarrow.types asks."""
    from pyarrow import types

    return getattr(types, question)(kind) or any(has(child, question) for child in children(kind))


def children(kind: Any) -> list[Any]:
    """The types of the values that a value of a type has."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return [kind.storage_type]
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return [kind.value_type]
    return [kind.field(i).type for i in range(kind.num_fields)] if types.is_nested(kind) else []


def _is_finite(array: Any) -> bool:
    """Whether all numbers are finite; False also where that is not searched."""
    from pyarrow import types

    kind = array.type
    if types.is_floating(kind):  # to import pyarrow.compute takes 0.3 s; a null is NaN here
        return bool(np.isfinite(array.to_numpy(zero_copy_only=False)).all())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_finite(array.flatten())
    if types.is_struct(kind):
        return all(_is_finite(array.field(i)) for i in range(kind.num_fields))
    return not has(kind, "is_floating")


def _number(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else NonFinite(value)


def _nested(scalar: Any) -> Any:
    """The value of a pyarrow.Scalar."""
    import pyarrow

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pyarrow.MapScalar):
        return list(zip(*(python_values(scalar.values.field(i)) for i in range(2))))
    if isinstance(scalar, pyarrow.ListScalar):
        return python_values(scalar.values)
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: _nested(value) for name, value in scalar.items()}
    if isinstance(scalar, pyarrow.UnionScalar | pyarrow.RunEndEncodedScalar | pyarrow.DictionaryScalar):
        return _nested(scalar.value)
    if isinstance(scalar, pyarrow.ExtensionScalar) and _has_own_form(scalar.type):
        return _nested(scalar.value)
    return python_values(pyarrow.array([scalar], scalar.type))[0]


def _temporal(array: Any) -> list[Any]:
    """The values of an array of times, dates or durations."""
    import pyarrow
    from pyarrow import types

    kind = array.type
    counts = array.view(pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()).to_pylist()
    make: Callable[[int], Any]
    if types.is_date(kind):
        make = _date if types.is_date32(kind) else _date_of_milliseconds
    elif types.is_timestamp(kind):
        make = functools.partial(_timestamp, unit=kind.unit, zone=_zone(kind.tz))
    else:
        make = functools.partial(_time if types.is_time(kind) else _duration, unit=kind.unit)
    return [None if count is None else make(count) for count in counts]


@functools.lru_cache(maxsize=64)
def _zone(name: str | None) -> datetime.tzinfo | None:
    """The time zone of an Arrow type: a name of the tz database, or an offset like +01:30."""
    if not name:
        return None
    if name[0] in "+-":
        return datetime.datetime.strptime(name, "%z").tzinfo
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        raise InvalidValue(f"this machine does not know its time zone {name!r}") from None


def _microseconds(count: int, unit: str) -> tuple[int, int]:
    """(whole microseconds, nanoseconds beyond them) of a number of units."""
    return divmod(count * (10**9 // PER_SECOND[unit]), 1000)


def _timestamp(count: int, unit: str, zone: datetime.tzinfo | None) -> datetime.datetime | StoredNumber:
    whole, nanoseconds = _microseconds(count, unit)
    try:
        if zone is None:
            value = EPOCH + datetime.timedelta(microseconds=whole)
        else:
            value = (UTC_EPOCH + datetime.timedelta(microseconds=whole)).astimezone(zone)
    except OverflowError:
        text = str(np.array(count).astype(f"datetime64[{unit}]"))
        if text == "NaT":
            raise InvalidValue("a timestamp has the number that stands for no time (NaT)") from None
        return StoredNumber(text if zone is None else f"{text}+00:00", count)
    if nanoseconds:
        text = value.isoformat(timespec="microseconds")
        return StoredNumber(f"{text[:26]}{nanoseconds:03d}{text[26:]}", count)
    return value


def _date(count: int, number: int | None = None) -> datetime.date | StoredNumber:
    try:
        return datetime.date.fromordinal(EPOCH_DAY + count)
    except (ValueError, OverflowError):
        return StoredNumber(str(np.datetime64(count, "D")), count if number is None else number)


def _date_of_milliseconds(count: int) -> datetime.date | StoredNumber:
    days, rest = divmod(count, DAY_SECONDS * 1000)
    if rest:
        raise InvalidValue(f"a date is {count} milliseconds, which are no whole days")
    return _date(days, count)


def _time(count: int, unit: str) -> datetime.time | StoredNumber:
    if not 0 <= count < DAY_SECONDS * PER_SECOND[unit]:
        raise InvalidValue(f"a time of day is {count} {unit} after midnight, which is not in a day")
    whole, nanoseconds = _microseconds(count, unit)
    value = (EPOCH + datetime.timedelta(microseconds=whole)).time()
    if not nanoseconds:
        return value
    return StoredNumber(f"{value.isoformat('microseconds')}{nanoseconds:03d}", count)


def _duration(count: int, unit: str) -> datetime.timedelta | StoredNumber:
    whole, nanoseconds = _microseconds(count, unit)
    if not nanoseconds and abs(whole) < MOST_MICROSECONDS:
        return datetime.timedelta(microseconds=whole)
    seconds, microseconds = divmod(whole, 10**6)
    days, seconds = divmod(seconds, DAY_SECONDS)
    text = str(datetime.timedelta(seconds=seconds))  # Python's form, with the days before it
    if days:
        text = f"{days} day{'s' if abs(days) != 1 else ''}, {text}"
    if microseconds or nanoseconds:
        text += f".{microseconds:06d}" + (f"{nanoseconds:03d}" if nanoseconds else "")
    return StoredNumber(text, count)


def column(values: list[Any], kind: Any) -> Any:
    """A pyarrow.Array of a type from values that `python_values` made of that type.

    Raises pyarrow.ArrowException, TypeError, ValueError or OverflowError for values that it cannot hold.
    """
    import pyarrow
    from pyarrow import types

    if has_boolean_number(values, kind):
        raise TypeError(f"true and false are no values of {kind}")
    if types.is_floating(kind):
        wide = pyarrow.array(values, pyarrow.float64())
        narrow = wide.cast(kind)
        if any(a != b and a == a for a, b in zip(wide.to_pylist(), narrow.to_pylist())):
            raise ValueError(f"a number has more digits than {kind} holds")
        return narrow
    try:
        return pyarrow.array(values, kind)
    except (pyarrow.ArrowException, TypeError):
        values = [_without_texts(value) for value in values]
    if types.is_dictionary(kind):
        return column(values, kind.value_type).dictionary_encode().cast(kind)
    if isinstance(kind, pyarrow.BaseExtensionType):
        storage = column([int(v) if isinstance(v, bool) else v for v in values], kind.storage_type)
        return pyarrow.ExtensionArray.from_storage(kind, storage)
    return pyarrow.array(values, kind)


def has_boolean_number(values: Iterable[Any], kind: Any) -> bool:
    """Whether a value is a boolean where a type has floating-point numbers: pyarrow makes it 0.0 or 1.0."""
    from pyarrow import types

    if types.is_floating(kind):
        return any(isinstance(value, bool) for value in values)
    if types.is_list(kind):
        lists = [value for value in values if isinstance(value, list | tuple)]
        return has_boolean_number(itertools.chain.from_iterable(lists), kind.value_type)
    if types.is_struct(kind):
        objects = [value for value in values if isinstance(value, dict)]
        return any(has_boolean_number([v.get(field.name) for v in objects], field.type) for field in kind)
    return False


def _without_texts(value: Any) -> Any:
    """A value with the number of every StoredNumber in it in place of its text."""
    if isinstance(value, StoredNumber):
        return value.number
    if isinstance(value, list | tuple):
        return type(value)(map(_without_texts, value)) if type(value) in (list, tuple) else value
    if isinstance(value, dict):
        return {key: _without_texts(item) for key, item in value.items()}
    return value


def json_bytes(row: dict[str, Any], option: int = 0) -> bytes:
    """A row as JSON. Integers have all their digits; what JSON has no type for is in the form of `_plain`.

    option: of orjson. Raises TooDeep, and UnicodeEncodeError for half a surrogate pair.
    """
    # orjson's own form of times loses zeros (0.029771 s is .29771), and the seconds of old time zones. For
    # keys that are no texts it takes a quarter more time.
    option |= TIMES_BY_PLAIN
    try:
        return orjson.dumps(row, _plain, option)
    except TypeError:
        pass
    try:
        return orjson.dumps(row, _plain, option | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # more than 64 bits, or 254 levels
        if depth(row.values()) > MOST_LEVELS:
            raise TooDeep(f"is nested deeper than {MOST_LEVELS} levels") from None
        text = json.dumps(_json_value(row), ensure_ascii=False, separators=(",", ":"))
        return text.encode() + (b"\n" if option & orjson.OPT_APPEND_NEWLINE else b"")


def depth(values: Iterable[Any], most: int = MOST_LEVELS) -> int:
    """The levels of nesting of values: 0 of a number, 1 of an array of numbers. It stops after `most`."""
    level, current = 0, [value for value in values if isinstance(value, list | tuple | dict)]
    while current and level <= most:
        level += 1
        inner = (item.values() if isinstance(item, dict) else item for item in current)
        current = [value for some in inner for value in some if isinstance(value, list | tuple | dict)]
    return level


def _json_value(value: Any) -> Any:
    """A value with all in it in the form of JSON."""
    if isinstance(value, dict):
        return dict(zip(value, map(_json_value, value.values())))  # a comprehension would be a second frame
    if isinstance(value, list | tuple) and not _is_interval(value):
        return list(map(_json_value, value))
    if isinstance(value, float) and not math.isfinite(value):
        return _plain(value) if isinstance(value, NonFinite) else None
    return value if value is None or isinstance(value, str | int | float) else _plain(value)


def _plain(value: Any) -> Any:
    """The JSON form of a value that JSON has no type for: bytes in base64, decimals in digits."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, NonFinite):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime.date | datetime.time):  # also a datetime
        return value.isoformat()
    if _is_interval(value):
        return {name: getattr(value, name) for name in ("months", "days", "nanoseconds")}
    return str(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "nanoseconds")  # a pyarrow.MonthDayNano


def id_text(value: Any) -> str:
    """The id of a document as a text: numbers in digits, other values in their JSON form."""
    if isinstance(value, str | int | uuid.UUID) or type(value) is float:
        return str(value)
    text = json_bytes({"id": value}).decode()[len('{"id":') : -1]
    return str(orjson.loads(text)) if text[0] == '"' else text
