"""bzip2 from the middle: a file is cut at any byte, and each part decompresses the blocks that begin in it.

A bzip2 file is one stream or many (`pages-articles-multistream`). A stream is `BZh` and a digit, then blocks
of up to 900 kB of text that do not depend on each other, then a footer. A block begins with the 48 bits of
pi, a footer with those of its square root, both at any bit of a byte. A block is read as a stream of its own:
moved to a whole byte, a header before and a footer with its checksum behind. So one large dump keeps every
worker busy, of whatever streams it is made.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator

import numpy as np

BLOCK, FOOTER = 0x314159265359, 0x177245385090
MARK_BITS, CHECKSUM_BITS = 48, 32
MAX_BLOCK_BYTES = 2_000_000  # compressed: 900 kB of noise take some 5,000 bytes more than they are
READ_BYTES = 1 << 20


def _inner_bytes() -> dict[bytes, tuple[int, int, int]]:
    """{the whole bytes inside a mark: (bit of a byte at which it begins, whole bytes before them, the mark)}."""
    found = {}
    for mark in (BLOCK, FOOTER):
        for shift in range(8):
            spread = (mark << (8 - shift)).to_bytes(7, "big")
            found[spread[1:6] if shift else spread[:6]] = shift, 1 if shift else 0, mark
    return found


INNER = _inner_bytes()
MARKS = re.compile(b"|".join(map(re.escape, INNER)))


def text_from(path: str, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """(the text of a block, whether it begins in [start, end)) of the blocks from the byte `start` of a file
    on.

    Goes on beyond `end` for as long as it is asked to. Raises EOFError or OSError where the file is cut short
    or broken.
    """
    begun = None  # the bit at which the block at hand begins
    tried = False
    with open(path, "rb") as file:
        data = _Window(file, start)
        if start == 0 and not re.match(rb"BZh[1-9]", data.bytes(0, 4)):
            raise OSError("Invalid data stream")
        ended = None if start else 0  # the bit at which the last footer begins
        none_begins = True  # in this part
        for bit, mark in data.marks():
            if begun is not None:
                if bit - begun > 8 * MAX_BLOCK_BYTES:
                    raise OSError(f"Invalid data stream in the block at byte {begun // 8:,}")
                try:
                    text = _decompress(data, begun, bit)
                except (OSError, ValueError):
                    if tried:
                        raise OSError(f"Invalid data stream in the block at byte {begun // 8:,}") from None
                    tried = True  # by chance the block may hold the bits of a mark: once in 10^14 bits
                    continue
                yield text, begun // 8 < end
            if mark == BLOCK and none_begins:
                if bit // 8 >= end:
                    return
                none_begins = False
            begun, ended, tried = (bit, None, False) if mark == BLOCK else (None, bit, False)
            data.forget(bit)
        if begun is not None or (ended is not None and ended + MARK_BITS + CHECKSUM_BITS > 8 * data.end):
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")


class _Window:
    """The bytes of a file from a place on, read as they are needed and forgotten behind the block at hand."""

    def __init__(self, file, start: int):
        self.file, self.start, self.buffer = file, start, bytearray()
        file.seek(start)

    @property
    def end(self) -> int:
        return self.start + len(self.buffer)

    def bytes(self, start: int, end: int) -> bytes:
        while self.end < end and self._more():
            pass
        return bytes(self.buffer[start - self.start : end - self.start])

    def _more(self) -> bool:
        block = self.file.read(READ_BYTES)
        self.buffer += block
        return bool(block)

    def forget(self, bit: int) -> None:
        del self.buffer[: bit // 8 - self.start]
        self.start = bit // 8

    def marks(self) -> Iterator[tuple[int, int]]:
        """(bit, BLOCK or FOOTER) of every mark whose first byte lies in the window, in order."""
        place = self.start
        while True:
            found = MARKS.search(self.buffer, place - self.start)
            if found is None:
                place = max(place, self.end - 6)  # the beginning of a mark may be there already
                if not self._more():
                    return
                continue
            shift, before, mark = INNER[found[0]]
            inner = self.start + found.start()
            first = inner - before
            whole = (
                int.from_bytes(self.bytes(first, first + 7).ljust(7, b"\0"), "big")
                if first >= self.start
                else 0
            )
            place = inner + 1
            if whole >> (8 - shift) & (1 << MARK_BITS) - 1 == mark:
                yield 8 * first + shift, mark


def _decompress(data: _Window, begin: int, end: int) -> bytes:
    """The text of the block in the bits [begin, end)."""
    raw = np.frombuffer(
        data.bytes(begin // 8, end // 8 + 2).ljust(end // 8 + 2 - begin // 8, b"\0"), np.uint8
    )
    shift, count = begin % 8, end - begin
    moved = (
        ((raw[:-1] << shift) | (raw[1:] >> (8 - shift))).astype(np.uint8).tobytes()
        if shift
        else raw.tobytes()
    )
    whole, rest = divmod(count, 8)
    tail = moved[whole] >> (8 - rest) if rest else 0
    # that of its only block
    tail = (tail << MARK_BITS | FOOTER) << CHECKSUM_BITS | int.from_bytes(moved[6:10], "big")
    bits = rest + MARK_BITS + CHECKSUM_BITS
    return bz2.decompress(b"BZh9" + moved[:whole] + (tail << -bits % 8).to_bytes((bits + 7) // 8, "big"))
