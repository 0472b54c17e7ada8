"""Decompresses files, as the ending of a name says: .gz, .bz2, .xz, .zst and .zstd, in any case.

A compressed file may consist of several members, streams or frames, one after another; their texts follow
each other. Memory does not grow with what a small file becomes: a reader gets no more than it asks for.

A frame of zstd may refer back over a window of up to 2 GiB (`zstd --long=31`, the most that zstd's own
decompressor reads), and memory is as large as the window or the text, whichever is smaller. An .xz file may
need XZ_BYTES.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import weakref
import zlib
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from ..core.config import UserError

READ_BYTES = 1 << 18
ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
# Of zstd at a time. Its decompressor returns all that they give, which is up to 32,768 times as much.
ZSTD_BYTES = 1 << 12
ZSTD_WINDOW = 1 << 31
XZ_BYTES = 2 << 30  # of memory; `xz -9` needs 65 MB
# A page of Parquet and a record batch of Arrow are decoded as a whole. Some writers put a thousand documents
# in a page, so a large one is refused only if it is also much larger than its compressed bytes.
WHOLE_BYTES = 256 << 20
EXPANSION = 100  # text is compressed to a third or, if it repeats itself much, to a twentieth
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)  # what a damaged file raises


def ending(name: str) -> str:
    """The ending of a name that says how the file is compressed, in lower case, or an empty text."""
    found = os.path.splitext(name)[1].lower()
    return found if found in ENDINGS else ""


def plain_name(name: str) -> str:
    """The name without such an ending."""
    return name[: len(name) - len(ending(name))]


def open_binary(path: str | Path) -> io.BufferedReader:
    """Opens a file for reading bytes, decompressed as the ending of its name says.

    While it is read, damaged data raises one of BROKEN.
    """
    path = str(path)
    kind = ending(path)
    if not kind or os.path.getsize(path) == 0:  # an empty file is no compressed one, and has no text
        return open(path, "rb")
    streams: gzip.GzipFile | _ZstdFile | _Streams
    if kind == ".gz":
        streams = gzip.GzipFile(path, "rb")
        packed = streams.fileobj
    else:
        streams = _ZstdFile(path) if kind in (".zst", ".zstd") else _Streams(path, kind)
        packed = streams._file
    _packed[path] = packed
    return io.BufferedReader(streams, READ_BYTES)


# {path: compressed file}, of those that are open
_packed: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def bytes_read(path: str | Path) -> int:
    """How much of a compressed file is read, for progress: 0 where it is not open in this process."""
    file = _packed.get(str(path))
    return 0 if file is None or file.closed else int(file.tell())


def reason(error: Exception) -> str:
    """What is wrong with compressed data, and what to do, for a message: `... (REASON); REMEDY`."""
    text = str(error) or type(error).__name__
    if "too much memory" in text:
        return f"a zstd window of more than {ZSTD_WINDOW:,} bytes); compress it again with `zstd --long=31`"
    if "Memory usage limit" in text:
        return f"xz needs more than {XZ_BYTES:,} bytes of memory); decompress the file with `xz -d`"
    return f"{text}); fetch the file again"


def read_whole(path: str | Path) -> bytes:
    """The bytes of a file, decompressed as by open_binary.

    Raises UserError for a file that is large only since its compressed data is extremely repetitive.
    """
    limit = max(WHOLE_BYTES, EXPANSION * os.path.getsize(path))
    with open_binary(path) as file:
        data = bytearray()
        while len(data) <= limit and (more := file.read(READ_BYTES)):
            data += more
    if len(data) > limit:
        raise UserError(f"{path}: becomes more than {limit:,} bytes; decompress it yourself if it is sound")
    return bytes(data)


class _Decompressor(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Streams(io.RawIOBase):
    """The plain text of an .xz or .bz2 file of one or more streams.

    The files of Python's libraries end without an error where something else than a stream follows one, so
    that a damaged header loses the rest. Here it raises OSError or lzma.LZMAError, and a stream that is cut
    short raises EOFError. Zero bytes may stand between .xz streams, a multiple of four of them.
    """

    def __init__(self, path: str, kind: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this object
        self._kind = kind
        self._packed = b""  # read, not yet decompressed
        self._stream: _Decompressor | None = None  # None between two streams

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None and not self._next_stream():
                return 0
            stream = self._stream
            assert stream is not None, "_next_stream has made one"
            if stream.needs_input and not self._packed and not self._more():
                raise EOFError(f"an {self._kind} stream is cut short")
            packed, self._packed = (self._packed, b"") if stream.needs_input else (b"", self._packed)
            piece = stream.decompress(packed, len(buffer))
            if stream.eof:
                self._packed, self._stream = stream.unused_data + self._packed, None
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)

    def _more(self) -> bool:
        self._packed = self._file.read(READ_BYTES)
        return bool(self._packed)

    def _next_stream(self) -> bool:
        """Begins the next stream; False at the end of the file."""
        padding = 0
        while self._packed or self._more():
            if self._kind == ".bz2":
                self._stream = bz2.BZ2Decompressor()
                return True
            rest = self._packed.lstrip(b"\0")
            padding += len(self._packed) - len(rest)
            if self._packed and rest:
                if padding % 4:
                    raise lzma.LZMAError("the padding of an .xz stream is not a multiple of four bytes")
                self._packed = rest
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_BYTES)
                return True
            self._packed = b""
        if padding % 4:
            raise lzma.LZMAError("the padding of an .xz stream is not a multiple of four bytes")
        return False

    def close(self) -> None:
        self._file.close()
        super().close()


class PieceReader(io.RawIOBase):
    """A file whose bytes `next_piece` makes of those of another file, some at a time."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._ready = memoryview(b"")  # of the last piece, not yet read

    def next_piece(self) -> bytes | None:
        """The next bytes, perhaps none of them; None at the end."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._ready = memoryview(b"")  # an empty part would keep all of the last piece in memory
            piece = self.next_piece()
            if piece is None:
                return 0
            self._ready = memoryview(piece)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _ZstdFile(PieceReader):
    """The plain text of a zstd file of one or more frames.

    Raises EOFError where a frame is cut short; the library itself ends there without an error.
    """

    def __init__(self, path: str):
        super().__init__(open(path, "rb"))  # noqa: SIM115 - closed with this object
        self._packed, self._next = b"", 0  # compressed bytes, and the place of those not yet decompressed
        self._frame = self._new_frame()
        self._in_frame = False

    @staticmethod
    def _new_frame() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()

    def next_piece(self) -> bytes | None:
        if self._next == len(self._packed):
            self._packed, self._next = self._file.read(1 << 17), 0
            if not self._packed:
                if self._in_frame:
                    raise EOFError("a zstd frame is cut short")
                return None
        packed = self._packed[self._next : self._next + ZSTD_BYTES]
        self._next += len(packed)
        piece = self._frame.decompress(packed)
        self._in_frame = not self._frame.eof
        if self._frame.eof:
            self._next -= len(self._frame.unused_data)
            self._frame = self._new_frame()
        return piece
