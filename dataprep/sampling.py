"""Draws records at random from the files that a stage wrote, without reading all of them.

The manifest tells how many records a file has. Numbers of records are drawn from those of all files, and each
file that has one is read once, up to the last that is wanted. Every record has the same chance, and none is
drawn twice. The same seed draws the same records of the same files.

Where so few records are wanted ones that most files would be read many times, or where a manifest does not
tell the numbers (an earlier version of mt wrote it), all files are read once, in constant memory (Vitter's
algorithm R).
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.config import UserError
from ..core.parsing import MADE_BY_MT, parse_json
from ..documents import files

MOST_LOOKED_AT = 4096  # records that are drawn, wanted or not
RESERVOIR = 64  # times the records that are asked for, where all files are read
MOST_LINE_BYTES = 1 << 30  # eight times the longest record that is read, for the escapes of JSON
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file of records. rows: how many; None if that is not known."""

    path: Path
    rows: int | None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A record, and the file in which it stands."""

    path: Path
    record: Record


def draw(
    some: Sequence[RecordFile],
    count: int,
    seed: int,
    wanted: Callable[[Record], bool] = lambda record: True,
    share: float | None = 1.0,
) -> Iterator[tuple[int, list[Drawn]]]:
    """Yields (how many records were looked at, the wanted ones) until all, or MOST_LOOKED_AT, are looked at.

    The caller takes the first ones, and stops when it has enough. count: how many it will take, about.
    share: of the records, how many are wanted; None if that is not known.
    """
    generator = random.Random(seed)
    needed = count / share if share else float(count)
    total = sum(file.rows or 0 for file in some)
    if total > sys.maxsize:
        raise UserError(f"{some[0].path}: its manifest tells {total} records; {MADE_BY_MT}")
    unknown = any(file.rows is None for file in some)
    if unknown or (share is not None and 2 * needed > min(total, MOST_LOOKED_AT) and share < 1):
        yield _from_all(some, RESERVOIR * count, generator, wanted)
        return
    numbers = generator.sample(range(total), min(total, MOST_LOOKED_AT))
    start, size = 0, max(int(1.5 * needed), 1)
    while start < len(numbers):
        batch = numbers[start : start + size]
        yield len(batch), [drawn for drawn in _at(some, batch) if wanted(drawn.record)]
        start, size = start + size, 2 * size


def _at(some: Sequence[RecordFile], numbers: Sequence[int]) -> list[Drawn]:
    """The records of these numbers, counted through all files, in the order of the numbers."""
    ends = list(itertools.accumulate(file.rows or 0 for file in some))
    by_file: dict[int, set[int]] = collections.defaultdict(set)
    for number in numbers:
        file = bisect.bisect_right(ends, number)
        by_file[file].add(number - (ends[file - 1] if file else 0))
    found: dict[int, Drawn] = {}
    for file, rows in sorted(by_file.items()):
        first = ends[file - 1] if file else 0
        for row, record in records(some[file].path, rows):
            found[first + row] = Drawn(some[file].path, record)
    if missing := next((number for number in numbers if number not in found), None):
        path = some[bisect.bisect_right(ends, missing)].path
        raise UserError(f"{path}: has fewer records than its manifest says; {MADE_BY_MT}")
    return [found[number] for number in numbers]


def _from_all(
    some: Sequence[RecordFile], size: int, generator: random.Random, wanted: Callable[[Record], bool]
) -> tuple[int, list[Drawn]]:
    """(the number of all records, at most `size` wanted ones at random)."""
    kept: list[Drawn] = []
    looked_at = found = 0
    for file in some:
        for _, record in records(file.path):
            looked_at += 1
            if not wanted(record):
                continue
            found += 1
            place = len(kept) if len(kept) < size else generator.randrange(found)
            kept[place : place + 1] = [Drawn(file.path, record)] if place < size else []
    generator.shuffle(kept)
    return looked_at, kept


def records(
    path: Path, rows: set[int] | None = None, likely: re.Pattern[bytes] | None = None
) -> Iterator[tuple[int, Record]]:
    """(number, record) of the rows of a file, of those in `rows` or of all; nothing after the last is read.

    likely: lines of JSON in which it is not found may be left out.
    """
    if path.suffix == ".parquet":
        yield from _parquet_records(path, rows)
        return
    last = max(rows, default=-1) if rows is not None else sys.maxsize
    for number, line in enumerate(lines(path)):
        if number > last:
            return
        if (number in rows) if rows is not None else (not likely or likely.search(line)):
            record = parse_json(line, f"{path}, line {number + 1}", MADE_BY_MT)
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number + 1}: is not a JSON object; {MADE_BY_MT}")
            yield number, record


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that a manifest lists; raises UserError for one that mt would not write."""
    try:
        for _, _, some in files.packed_lines(str(path), MOST_LINE_BYTES):
            for line in some:
                if isinstance(line, files.Refused):
                    raise UserError(
                        f"{path}: has a line of more than {MOST_LINE_BYTES:,} bytes; {MADE_BY_MT}"
                    )
                yield line
    except FileNotFoundError:
        raise _gone(path) from None


def parquet_file(path: Path) -> Any:
    """files.open_parquet of a file that a manifest lists."""
    try:
        return files.open_parquet(path)
    except FileNotFoundError:
        raise _gone(path) from None


def _parquet_records(path: Path, rows: set[int] | None) -> Iterator[tuple[int, Record]]:
    file = parquet_file(path)
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        chosen = range(count) if rows is None else sorted(r - first for r in rows if 0 <= r - first < count)
        if chosen:
            table = file.read_row_group(group)
            for row in chosen:
                yield first + row, table.slice(row, 1).to_pylist()[0]
        first += count


def _gone(path: Path) -> UserError:
    return UserError(
        f"{path}: is listed in the manifest of its directory, but does not exist; run the stage's command"
        " again"
    )
