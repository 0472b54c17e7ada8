"""The HTTP response in a WARC record: status, type, charset and body, which is decompressed up to a limit.

Headers of a stranger's server may lie. A body that is not in the encoding that its header names is taken as
it is; one that ends early, or that decompresses to more than is allowed, raises an error. Source: RFC 9112
(message, chunked), RFC 9110, section 8.4 (content codings).
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable

END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?: |\r?$)", re.MULTILINE)
CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;\"',]+)", re.IGNORECASE)
MAX_HEAD = 1 << 18  # bytes of status line and headers
FIRST_BYTES = 512  # of a member or frame that are decompressed at first
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"  # no page begins with these
MAX_CODINGS = 4  # a body compressed more often is no honest page


class BodyTooLong(ValueError):
    """The body decompresses to more than is allowed."""


@dataclasses.dataclass(frozen=True)
class Response:
    status: int
    type: str | None  # media type in lower case, without parameters
    charset: str | None
    codings: tuple[str, ...]  # of the body, the outer one first
    encoded: bytes  # the body as it was sent

    def body(self, max_bytes: int) -> bytes:
        """The body without its codings; raises BodyTooLong, or ValueError where it is not whole."""
        if len(self.codings) > MAX_CODINGS:
            raise ValueError(f"is encoded {len(self.codings)} times")
        body = self.encoded
        for coding in self.codings:
            if decode := DECODERS.get(coding):
                body = decode(body, max_bytes)
        if body.startswith(GZIP):  # the header says something else, or nothing
            return _gunzipped(body, max_bytes)
        return _from_zstd(body, max_bytes) if body.startswith(ZSTD) else body


def read_response(raw: bytes) -> Response:
    """The response in a record's content; raises ValueError where there is none."""
    end = END_OF_HEAD.search(raw, 0, MAX_HEAD)
    head, body = (raw[: end.start()], raw[end.end() :]) if end else (raw[:MAX_HEAD], b"")
    found = STATUS_LINE.match(head)
    if found is None:
        raise ValueError("has no HTTP status line")
    headers = _headers(head)
    # each header names the codings in the order in which they were applied, those of the transfer last
    codings = [*_codings(headers, "content-encoding"), *_codings(headers, "transfer-encoding")][::-1]
    kind = headers.get("content-type", "")
    charset = CHARSET.search(kind)
    return Response(
        int(found[1]),
        kind.partition(";")[0].strip().lower() or None,
        charset[1].lower() if charset else None,
        tuple(codings),
        body,
    )


def _headers(head: bytes) -> dict[str, str]:
    """The headers by their names in lower case; those of one name are joined by commas."""
    found: dict[str, list[list[str]]] = {}  # the lines of each header of a name, joined at the end
    value: list[str] | None = None
    for line in head.decode("latin-1").split("\n")[1:]:
        if line[:1] in (" ", "\t") and value is not None:  # goes on from the line before
            value.append(line.strip())
            continue
        name, colon, rest = line.partition(":")
        value = None
        if colon and name.strip():
            value = [rest.strip()]
            found.setdefault(name.strip().lower(), []).append(value)
    return {name: ", ".join(map(" ".join, values)) for name, values in found.items()}


def _codings(headers: dict[str, str], name: str) -> list[str]:
    return [coding.strip().lower() for coding in headers.get(name, "").split(",") if coding.strip()]


def _dechunked(body: bytes, max_bytes: int) -> bytes:
    """The data of the chunks; the body as it is where it does not begin with the size of a chunk."""
    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        end = body.find(b"\n", at, at + 1024)
        size = body[at : end if end >= 0 else at].partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", size):
            if not pieces:
                return body
            raise ValueError("has a chunk without a size")
        length = int(size, 16)
        if length == 0:
            return b"".join(pieces)
        if end + 1 + length > len(body):
            raise ValueError("is cut short in a chunk")
        pieces.append(body[end + 1 : end + 1 + length])
        at = end + 1 + length
        at += 2 if body[at : at + 2] == b"\r\n" else body[at : at + 1] == b"\n"
    raise ValueError("has no last chunk")


def _inflated(body: bytes, max_bytes: int, window_bits: int) -> bytes:
    """The members of a gzip or zlib stream; the body as it is where it does not begin with one."""
    pieces: list[bytes] = []
    total = at = 0
    while at < len(body):
        stream, start, size = zlib.decompressobj(window_bits), at, FIRST_BYTES
        while not stream.eof and at < len(body):
            fed = body[at : at + size]
            try:
                piece = stream.decompress(fed, max_bytes + 1 - total)
            except zlib.error as error:
                is_gzip = window_bits > zlib.MAX_WBITS and body.startswith(GZIP, start)
                if is_gzip or (window_bits == zlib.MAX_WBITS and at > 0):
                    raise ValueError(f"has a damaged body: {error}") from None
                # what follows the last member of gzip is ignored, as gzip does
                return b"".join(pieces) if start else body
            pieces.append(piece)
            total += len(piece)
            if total > max_bytes:
                raise BodyTooLong
            # The stream copies what it does not use: all members that follow, if they are fed.
            at += len(fed) - len(stream.unused_data)
            size = min(2 * size, 1 << 20)
        if not stream.eof:
            raise ValueError("is cut short in its compressed body")
        if window_bits <= zlib.MAX_WBITS:
            break
    return b"".join(pieces) if pieces else body


def _gunzipped(body: bytes, max_bytes: int) -> bytes:
    return _inflated(body, max_bytes, 16 + zlib.MAX_WBITS)


def _deflated(body: bytes, max_bytes: int) -> bytes:
    """RFC 1950's format, or the bare one of RFC 1951 that some servers send under the same name."""
    inflated = _inflated(body, max_bytes, zlib.MAX_WBITS)
    return _inflated(body, max_bytes, -zlib.MAX_WBITS) if inflated is body else inflated


def _from_brotli(body: bytes, max_bytes: int) -> bytes:
    import brotli

    stream, total = brotli.Decompressor(), 0
    pieces: list[bytes] = []
    try:
        piece = stream.process(body, output_buffer_limit=1 << 20)
        while True:
            pieces.append(piece)
            total += len(piece)
            if total > max_bytes:
                raise BodyTooLong
            if stream.is_finished():
                return b"".join(pieces)
            piece = stream.process(b"", output_buffer_limit=1 << 20)
            if not piece and not stream.is_finished():
                raise ValueError("is cut short in its compressed body")
    except brotli.error:
        if total:
            raise ValueError("has a damaged body of brotli") from None
        return body


def _from_zstd(body: bytes, max_bytes: int) -> bytes:
    import zstandard

    unpack = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    pieces: list[bytes] = []
    total = at = 0
    while at < len(body):
        frame = unpack.decompressobj()
        while not frame.eof and at < len(body):
            fed = body[at : at + FIRST_BYTES]  # becomes 16 MiB at most
            try:
                piece = frame.decompress(fed)
            except zstandard.ZstdError as error:
                if body.startswith(ZSTD):
                    raise ValueError(f"has a damaged body: {error}") from None
                return body
            pieces.append(piece)
            total += len(piece)
            if total > max_bytes:
                raise BodyTooLong
            at += len(fed) - len(frame.unused_data)
        if not frame.eof:
            raise ValueError("is cut short in its compressed body")
    return b"".join(pieces) if pieces else body


DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "chunked": _dechunked,
    "gzip": _gunzipped,
    "x-gzip": _gunzipped,
    "deflate": _deflated,
    "br": _from_brotli,
    "zstd": _from_zstd,
}
