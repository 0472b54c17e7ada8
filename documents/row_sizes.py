"""How many bytes the rows of an Arrow batch have, and how much memory as values of Python, found by lengths.

Rows of some types share bytes: entries of a dictionary, the value of a run, views of texts and of lists. A
buffer of a megabyte is then a gigabyte in one row, and again in the next one. `nbytes` counts buffers, not
what the rows say. And a list of 128 million booleans is 16 MB in Arrow, but 1 GB in Python.

Offsets must have been validated (pyarrow.Array.validate).

Format: Arrow, docs/source/format/Columnar.rst.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

POINTER = 8  # of a list of Python to a value
TEXT_BYTES, LIST_BYTES, NUMBER_BYTES, DECIMAL_BYTES = 57, 64, 32, 104  # of Python's objects
DICT_BYTES, FIELD_BYTES = 64, 30
MOST_MEMORY, LEAST_MEMORY = 4, 32_000_000  # times the limit on a record, bytes
MOST_SHARED = 8_000_000  # elements of a type that shares bytes, in the rows that are counted together

Places = np.ndarray[Any, Any]
Sums = np.ndarray[Any, Any]  # of shape (2, number of ranges): bytes, bytes in Python


class TooMany(Exception):
    """There are too many values to count."""


def of_batch(batch: Any) -> tuple[int, int]:
    """(bytes, bytes in Python at most) of all rows of a pyarrow.RecordBatch, keys of JSON counted.

    Raises TooMany if it would take too much memory to count them.
    """
    names = len(batch) * sum(map(_name_bytes, batch.schema))
    size = memory = 0
    for column in batch.columns:
        if _is_flat(column.type):
            size, memory = size + column.nbytes, memory + column.nbytes
        else:
            found = _sums(column, np.zeros(1, np.int64), np.full(1, len(column), np.int64))[:, 0]
            size, memory = size + int(found[0]), memory + int(found[1])
    return size + names, memory


def of_rows(batch: Any) -> Sums:
    """As of_batch, but of each row, of shape (2, rows), and without the keys of the rows."""
    starts = np.arange(len(batch), dtype=np.int64)
    found: Sums = np.zeros((2, len(batch)))
    for column in batch.columns:
        found += _sums(column, starts, starts + 1)
    return found


def _name_bytes(field: Any) -> int:
    return len(field.name.encode()) + POINTER


@functools.lru_cache(maxsize=1024)
def _is_flat(kind: Any) -> bool:
    """Whether the buffers of values of a type are about as large as the values."""
    from pyarrow import types

    return bool(types.is_primitive(kind)) or _is_text(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    short, long = (types.is_string, types.is_binary), (types.is_large_string, types.is_large_binary)
    return any(is_it(kind) for is_it in (*short, *long))


def _sums(array: Any, starts: Places, stops: Places) -> Sums:
    """The sums over ranges of the elements of an array."""
    import pyarrow
    from pyarrow import types

    kind = array.type
    count = (stops - starts).astype(float)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _sums(array.storage, starts, stops)
    if not len(array):
        return np.zeros((2, len(starts)))
    if types.is_run_end_encoded(kind):
        return _of_runs(array, starts, stops)
    if (of_elements := _of_elements(kind)) is not None:
        first = int(starts.min(initial=len(array), where=stops > starts))
        last = int(stops.max(initial=0, where=stops > starts))
        if last - first > MOST_SHARED:
            raise TooMany
        before: Sums = np.zeros((2, max(0, last - first) + 1))
        if last > first:
            np.cumsum(of_elements(array, first, last), axis=1, out=before[:, 1:])
        begin, end = (np.clip(places - first, 0, max(0, last - first)) for places in (starts, stops))
        found: Sums = before[:, end] - before[:, begin]
        return found
    each = np.zeros(2)  # of an element, besides what is in it
    inner: Sums = np.zeros((2, len(starts)))
    if types.is_struct(kind):
        each[:] = sum(map(_name_bytes, kind)), DICT_BYTES + FIELD_BYTES * kind.num_fields + POINTER
        for i in range(kind.num_fields):
            inner += _sums(array.field(i), starts, stops)
    elif types.is_fixed_size_list(kind):
        each[:] = 0, LIST_BYTES + POINTER
        size, offset = kind.list_size, array.offset
        inner = _sums(array.values, (offset + starts) * size, (offset + stops) * size)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets = _numbers(array, 1, np.int64 if types.is_large_list(kind) else np.int32)
        each[:] = offsets.itemsize, LIST_BYTES + POINTER
        first, last = (offsets[array.offset + at].astype(np.int64) for at in (starts, stops))
        if types.is_map(kind):  # a list of tuples
            inner = _sums(array.keys, first, last) + _sums(array.items, first, last)
            inner[1] += (last - first) * float(LIST_BYTES + POINTER)
        else:
            inner = _sums(array.values, first, last)
    elif _is_text(kind):
        large = types.is_large_string(kind) or types.is_large_binary(kind)
        offsets = _numbers(array, 1, np.int64 if large else np.int32)
        each[:] = offsets.itemsize, TEXT_BYTES + POINTER
        inner += (offsets[array.offset + stops] - offsets[array.offset + starts]).astype(float)
    else:
        width = 0 if types.is_null(kind) else kind.bit_width / 8
        small = width <= 1 and not types.is_fixed_size_binary(kind)  # Python has each of them once
        of_value = DECIMAL_BYTES if types.is_decimal(kind) else NUMBER_BYTES + width
        each[:] = width, POINTER + (0 if small else of_value)
    return inner + np.outer(each, count)


def _numbers(array: Any, buffer: int, dtype: Any) -> Places:
    return np.frombuffer(array.buffers()[buffer], np.dtype(dtype))


def _of_runs(array: Any, starts: Places, stops: Places) -> Sums:
    """`_sums` of a run-end encoded array: a place lies in a run, before which there are whole runs."""
    ends = np.asarray(array.run_ends).astype(np.int64)
    if len(ends) > MOST_SHARED:
        raise TooMany
    runs = np.arange(len(ends), dtype=np.int64)
    each = _sums(array.values, runs, runs + 1)
    begins = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    before = np.concatenate((np.zeros((2, 1)), np.cumsum(each * (ends - begins), axis=1)), axis=1)

    def until(places: Places) -> Sums:
        places = places + array.offset
        run = np.minimum(np.searchsorted(ends, places, "right"), len(ends) - 1)
        found: Sums = before[:, run] + each[:, run] * (places - begins[run])
        return found

    return until(stops) - until(starts)


def _of_elements(kind: Any) -> Callable[[Any, int, int], Sums] | None:
    """The function for the sizes of each element of an array of a type whose elements may share bytes."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _of_entries
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return _of_views
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return _of_list_views
    return _of_union if types.is_union(kind) else None


def _of_entries(array: Any, first: int, last: int) -> Sums:
    indices = array.indices.slice(first, last - first)
    is_value = np.asarray(indices.is_valid())
    used, which = np.unique(np.asarray(indices.fill_null(0)).astype(np.int64), return_inverse=True)
    if not len(array.dictionary):
        return np.zeros((2, last - first))
    found: Sums = _sums(array.dictionary, used, used + 1)[:, which] * is_value
    found[1] += POINTER
    return found


def _of_views(array: Any, first: int, last: int) -> Sums:
    lengths = _numbers(array, 1, np.int32)[::4][array.offset + first : array.offset + last].astype(float)
    return np.stack((16 + lengths, TEXT_BYTES + POINTER + lengths))


def _of_list_views(array: Any, first: int, last: int) -> Sums:
    begins, lengths = (
        np.asarray(numbers)[first:last].astype(np.int64) for numbers in (array.offsets, array.sizes)
    )
    found = _sums(array.values, begins, begins + lengths)
    found += np.array([[POINTER], [LIST_BYTES + POINTER]])
    return found


def _of_union(array: Any, first: int, last: int) -> Sums:
    kind, found = array.type, np.zeros((2, last - first))
    codes = _numbers(array, 1, np.int8)[array.offset + first : array.offset + last]
    if kind.mode == "dense":
        places = _numbers(array, 2, np.int32)[array.offset + first : array.offset + last].astype(np.int64)
    else:  # a field of a slice is a slice
        places = np.arange(first, last, dtype=np.int64)
    for i, code in enumerate(kind.type_codes):
        (at,) = np.nonzero(codes == code)
        found[:, at] = _sums(array.field(i), places[at], places[at] + 1)
    return found
