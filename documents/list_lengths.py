"""How many values the rows of a nested column of Parquet have, counted before they are decoded.

The headers of pages tell the values of a page, not those of a row, and a row of a billion equal entries takes
a few bytes. The repetition level of each value tells whether it begins a row (level 0). The levels are the
first part of a page; they come in runs, and are counted by runs.

Format: parquet-format, Encodings.md (RLE / bit-packing hybrid) and README.md (nested encoding).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from ..core.numba_loops import compile_loop
from .page_data import DATA_PAGE_V2, NotInPieces, Page, Stream, plain_pieces

ROWS = 1024  # that follow each other, for which the values are counted too
LEVEL_BYTES = 64 << 20  # of a page


def most_values(file: IO[bytes], pages: Iterable[Page]) -> tuple[int, int]:
    """(the most values of a row of a column, a number that those of ROWS consecutive rows do not exceed).

    A null or an empty list counts as a value, as in the headers of pages. pages: the data pages of the column
    in one row group, whose levels have the encoding RLE. Raises NotInPieces if they cannot be counted, and
    ValueError if they are broken.
    """
    step: Any = compile_loop(_count)
    # Of the current row and the most of one; of the current ROWS rows, the most of two groups of them that
    # follow each other, of the group before; the rows of the current group.
    counts = np.zeros(6, np.int64)
    for page in pages:
        levels = np.frombuffer(_repetition_levels(file, page), np.uint8)
        if not step(levels, page.details[1], page.max_repetition.bit_length(), counts):
            raise ValueError("the levels of a page are broken")
    row, most_of_row, group, most_of_groups, group_before, _ = map(int, counts)
    return max(row, most_of_row), max(most_of_groups, group_before + group)


def _repetition_levels(file: IO[bytes], page: Page) -> bytes:
    stream = Stream(plain_pieces(file, page))
    size = page.details.get(6, 0) if page.kind == DATA_PAGE_V2 else int.from_bytes(stream.read(4), "little")
    if size > LEVEL_BYTES:
        raise NotInPieces("a page has too many levels")
    return stream.read(size)


def _count(levels, values, width, counts):  # type: ignore[no-untyped-def]  # compiled by numba
    """Counts the values of a page; False if the levels are broken. width: bits of a level, at most 8."""
    at, size = 0, len(levels)
    row, most_of_row, group, most_of_groups, group_before, group_rows = counts
    while values > 0:
        header: Any = np.int64(0)
        shift: Any = np.int64(0)
        byte: Any = np.int64(128)
        while byte >= 128:
            if at >= size or shift > 35:
                return False
            byte = np.int64(levels[at])
            at += 1
            header |= (byte & 127) << shift
            shift += 7
        is_packed = header & 1 == 1
        number = min(values, (header >> 1) * (8 if is_packed else 1))
        values -= number
        if at + ((number * width + 7) // 8 if is_packed else 1) > size:
            return False
        if not is_packed and levels[at] > 0:
            row, group, number = row + number, group + number, 0
        elif not is_packed and number > 3 * ROWS:
            number = 2 * ROWS + number % ROWS  # more rows with one value each change nothing
        for i in range(number):
            level = 0
            if is_packed:
                for bit in range(i * width, (i + 1) * width):
                    level |= levels[at + bit // 8] >> (bit % 8) & 1
            if level == 0:
                most_of_row, row = max(most_of_row, row), 0
                if group_rows == ROWS:
                    most_of_groups = max(most_of_groups, group_before + group)
                    group_before, group, group_rows = group, 0, 0
                group_rows += 1
            row, group = row + 1, group + 1
        at += (header >> 1) * width if is_packed else 1
    counts[:] = row, most_of_row, group, most_of_groups, group_before, group_rows
    return True
