"""The lengths of the texts of a page of Parquet that is front-coded, found without the texts.

In the encoding DELTA_BYTE_ARRAY a text is the number of bytes that it shares with the text before it, and
the bytes after these. So a page of a megabyte becomes a million texts of a megabyte. The numbers come first:
those of the shared bytes, then those of the others, both in the encoding DELTA_BINARY_PACKED.

Format: parquet-format, Encodings.md.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np

from ..core.numba_loops import compile_loop
from .compression import WHOLE_BYTES
from .page_data import DATA_PAGE_V2, NotInPieces, Page, plain_pieces

MOST_TEXTS = 4_000_000  # of a page


def of_page(file: IO[bytes], page: Page) -> np.ndarray[Any, Any]:
    """The bytes of each text of a data page whose levels are run lengths.

    Raises NotInPieces if they cannot be counted, and ValueError if they are broken.
    """
    if page.details.get(1, 0) > MOST_TEXTS or page.size > WHOLE_BYTES:
        raise NotInPieces("a page has too many texts")
    data = np.frombuffer(b"".join(plain_pieces(file, page)), np.uint8)
    at = 0
    if page.kind == DATA_PAGE_V2:
        at = page.details.get(5, 0) + page.details.get(6, 0)
    else:
        for most in (page.max_repetition, page.max_definition):
            at += 4 + int.from_bytes(data[at : at + 4].tobytes(), "little") if most else 0
    step: Any = compile_loop(_unpack)
    lengths = np.zeros(page.details.get(1, 0), np.int64)
    for _ in range(2):  # of the shared bytes, of the others
        numbers = np.zeros(len(lengths), np.int64)
        count, at = step(data, at, numbers)
        if count < 0 or (numbers < 0).any():
            raise ValueError("the lengths of the texts of a page are broken")
        lengths += numbers
    return lengths[:count]


def _unpack(data, at, numbers):  # type: ignore[no-untyped-def]  # compiled by numba
    """Unpacks DELTA_BINARY_PACKED numbers: (count, or -1 if they are broken; place of their end)."""
    size = len(data)
    header = np.zeros(4, np.int64)  # values of a block, its parts, values of all, the first one
    done: Any = np.int64(0)
    value: Any = np.int64(0)
    least: Any = np.int64(0)
    field = 0
    while True:
        number: Any = np.int64(0)
        shift: Any = np.int64(0)
        byte: Any = np.int64(128)
        while byte >= 128:
            if at >= size or shift > 63:
                return -1, at
            byte = np.int64(data[at])
            at += 1
            number |= (byte & 127) << shift
            shift += 7
        if field < 3:
            header[field] = number
            field += 1
            continue
        number = (number >> 1) ^ -(number & 1)
        if field == 3:
            field = 4
            if header[0] <= 0 or header[1] <= 0 or header[2] > len(numbers) or header[0] % header[1] != 0:
                return -1, at
            value = number
            if header[2] > 0:
                numbers[0] = value
                done = 1
            if done >= header[2]:
                return header[2], at
            continue
        least = number
        widths = at
        at += header[1]
        if at > size:
            return -1, at
        of_part = header[0] // header[1]
        for part in range(header[1]):
            if done >= header[2]:
                break
            width = np.int64(data[widths + part])
            count = min(of_part, header[2] - done)
            if width > 32 or at + (count * width + 7) // 8 > size:
                return -1, at
            for i in range(count):
                delta: Any = np.int64(0)
                for bit in range(i * width, (i + 1) * width):
                    delta |= np.int64(data[at + bit // 8] >> (bit % 8) & 1) << (bit - i * width)
                value += least + delta
                numbers[done] = value
                done += 1
            at += of_part * width // 8
        if done >= header[2]:
            return header[2], at
