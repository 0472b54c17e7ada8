"""Decompress a byte range of a bzip2 file, so that several workers can share one large dump.

A bzip2 file is one stream or several (`pages-articles-multistream`). A stream is a header (`BZh` and a
digit), blocks of up to 900 kB of text that do not depend on each other, and a footer. Each block begins with
a 48-bit magic number, the digits of pi; the footer begins with those of the square root of pi. Both may begin
at any bit of a byte. To decompress one block, its bits are shifted to a byte boundary and wrapped in a header
and a footer of their own. Every block thus belongs to the byte range in which it begins, whatever streams the
file is made of.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

BLOCK_MAGIC, FOOTER_MAGIC = 0x314159265359, 0x177245385090
MAGIC_BITS, CHECKSUM_BITS = 48, 32
MAX_BLOCK_BYTES = 2_000_000  # compressed: incompressible text grows by about 5,000 bytes for 900 kB
READ_BYTES = 1 << 20


def _aligned_patterns() -> dict[bytes, tuple[int, int, int]]:
    """{whole bytes inside a magic number: (bit of a byte at which it begins, bytes before, magic)}."""
    patterns = {}
    for magic in (BLOCK_MAGIC, FOOTER_MAGIC):
        for shift in range(8):
            spread = (magic << (8 - shift)).to_bytes(7, "big")
            patterns[spread[1:6] if shift else spread[:6]] = shift, 1 if shift else 0, magic
    return patterns


ALIGNED_PATTERNS = _aligned_patterns()
ANY_MAGIC = re.compile(b"|".join(map(re.escape, ALIGNED_PATTERNS)))


def decompress_blocks(path: str, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """Yields (text of a block, whether it begins in [start, end)) for the blocks from byte `start` on.

    The iterator goes on beyond `end`, for a page that continues there, until the caller stops. Raises
    EOFError where the file is cut short and OSError where it is damaged.
    """
    block_begin: int | None = None  # bit at which the current block begins
    retried = False  # whether the current block did not end at the first magic number behind it
    with open(path, "rb") as file:
        window = _Window(file, start)
        if start == 0 and not re.match(rb"BZh[1-9]", window.bytes(0, 4)):
            raise OSError("Invalid data stream")
        footer_begin = None if start else 0  # bit at which the last footer begins
        first_block = True  # of this byte range
        for bit, magic in window.magics():
            if block_begin is not None:
                if bit - block_begin > 8 * MAX_BLOCK_BYTES:
                    raise OSError(f"Invalid data stream in the block at byte {block_begin // 8:,}")
                try:
                    text = _decompress(window, block_begin, bit)
                except (OSError, ValueError):
                    if retried:
                        raise OSError(
                            f"Invalid data stream in the block at byte {block_begin // 8:,}"
                        ) from None
                    retried = (
                        True  # a block contains the bits of a magic number by chance: once in 10^14 bits
                    )
                    continue
                yield text, block_begin // 8 < end
            if magic == BLOCK_MAGIC and first_block:
                if bit // 8 >= end:
                    return
                first_block = False
            block_begin, footer_begin = (bit, None) if magic == BLOCK_MAGIC else (None, bit)
            retried = False
            window.forget(bit)
        footer_bits = MAGIC_BITS + CHECKSUM_BITS
        if block_begin is not None or (
            footer_begin is not None and footer_begin + footer_bits > 8 * window.end
        ):
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")


class _Window:
    """The part of a file from the current block on, read on demand."""

    def __init__(self, file: BinaryIO, start: int):
        self.file, self.start, self.buffer = file, start, bytearray()
        file.seek(start)

    @property
    def end(self) -> int:
        return self.start + len(self.buffer)

    def bytes(self, start: int, end: int) -> bytes:
        while self.end < end and self._read_more():
            pass
        return bytes(self.buffer[start - self.start : end - self.start])

    def _read_more(self) -> bool:
        data = self.file.read(READ_BYTES)
        self.buffer += data
        return bool(data)

    def forget(self, bit: int) -> None:
        """Drops the bytes before this bit."""
        del self.buffer[: bit // 8 - self.start]
        self.start = bit // 8

    def magics(self) -> Iterator[tuple[int, int]]:
        """(bit, BLOCK_MAGIC or FOOTER_MAGIC) of every magic number in the file, in order."""
        place = self.start
        while True:
            found = ANY_MAGIC.search(self.buffer, place - self.start)
            if found is None:
                place = max(place, self.end - 6)  # the buffer may end inside a magic number
                if not self._read_more():
                    return
                continue
            shift, bytes_before, magic = ALIGNED_PATTERNS[found[0]]
            pattern_begin = self.start + found.start()
            first = pattern_begin - bytes_before
            candidate = 0
            if first >= self.start:
                candidate = int.from_bytes(self.bytes(first, first + 7).ljust(7, b"\0"), "big")
            place = pattern_begin + 1
            if candidate >> (8 - shift) & (1 << MAGIC_BITS) - 1 == magic:
                yield 8 * first + shift, magic


def _decompress(window: _Window, begin: int, end: int) -> bytes:
    """The text of the block in the bits [begin, end)."""
    num_bytes = end // 8 + 2 - begin // 8
    raw = np.frombuffer(window.bytes(begin // 8, end // 8 + 2).ljust(num_bytes, b"\0"), np.uint8)
    shift, num_bits = begin % 8, end - begin
    aligned = raw.tobytes()
    if shift:
        aligned = ((raw[:-1] << shift) | (raw[1:] >> (8 - shift))).astype(np.uint8).tobytes()
    whole, rest = divmod(num_bits, 8)
    tail = aligned[whole] >> (8 - rest) if rest else 0
    # The stream's checksum is that of its only block, which follows the block's magic number.
    tail = (tail << MAGIC_BITS | FOOTER_MAGIC) << CHECKSUM_BITS | int.from_bytes(aligned[6:10], "big")
    bits = rest + MAGIC_BITS + CHECKSUM_BITS
    return bz2.decompress(b"BZh9" + aligned[:whole] + (tail << -bits % 8).to_bytes((bits + 7) // 8, "big"))
