"""Extract the main text of the pages in WARC and WET files: id, url, date, text.

A crawl is thousands of `.warc.gz` files of about a gigabyte, so one file is one shard. Every `response`
record with an HTML page becomes a document: its main text without navigation, headers and footers
(documents/html.py), decoded as documents/html_encoding.py finds. A WET file (`.warc.wet.gz`) has extracted
text already, in `conversion` records, which is kept unchanged. Files may be compressed with gzip or
zstandard, or plain. Format: WARC 1.1, ISO 28500:2017.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from ...core.config import UserError
from ...documents import compression, files
from ...documents.html import MAX_TAGS, Extractor, main_text
from ...documents.html_encoding import decode_page
from ...documents.reader import Document
from ...documents.rejects import Reject
from ..stage import Removed
from .http_response import BodyTooLong, read_response
from .url_filter import UrlFilter

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

EXTENSIONS = (".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz", ".wet.zst")
# Changes wherever this module or http_response.py makes other documents of the same records, and wherever a
# file has other records. html.PAGE_RULES is that of the text of a page.
RECORD_RULES = "bodies by their magic numbers"
READ_BYTES = 1 << 18
LENGTH_NAME = re.compile(rb"^Content-Length[ \t]*:", re.IGNORECASE | re.MULTILINE)
LENGTH = re.compile(rb"^Content-Length:[ \t]*\+?([0-9]{1,18})[ \t]*\r?$", re.MULTILINE)
HTML_TYPES = ("text/html", "application/xhtml+xml")


def documents(
    path: str,
    max_bytes: int = files.MAX_RECORD_BYTES,
    extractor: Extractor = "trafilatura",
    url_filter: UrlFilter | None = None,
) -> Iterator[tuple[str, Document | Removed | Reject]]:
    """Yields (record id, document or why there is none) for the responses and conversions of a file.

    max_bytes: a longer page or text, decompressed, is one that cannot be read. url_filter: leaves pages and
    texts out before their text is extracted. Raises UserError if the file
    is cut short or damaged, or has no WARC record.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    found = False
    try:
        with _open(path) as file:
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                found = True
                length = int(record.headers.get("Content-Length") or sys.maxsize)
                raw = record.reader.read() if length <= max_bytes else b""
                size, raw = (len(raw), raw) if length <= max_bytes else _skip(record)
                if size < length:
                    raise EOFError(f"record {_identity(record) or 'without a name'} is cut short")
                # fastwarc takes no type from a header in lower case
                kind = (record.headers.get("WARC-Type") or "").strip().lower()
                if kind == "response":
                    outcome = _from_response(record, raw, path, size, max_bytes, extractor, url_filter)
                    yield _identity(record), outcome
                elif kind == "conversion":
                    yield _identity(record), _from_conversion(record, raw, path, size, max_bytes, url_filter)
    except (*compression.BROKEN, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path}: is cut short or damaged inside a record ({error}); download the file again"
        ) from None
    if not found:
        raise UserError(f"{path}: contains no WARC record; check the file")


def _open(path: str) -> IO[bytes]:
    """The plain text of the file, with the names of headers as fastwarc needs them."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic.startswith(b"\x1f\x8b"):  # fastwarc would end at a member of gzip that is empty
        plain: IO[bytes] = io.BufferedReader(gzip.GzipFile(path), READ_BYTES)
    elif magic == b"\x28\xb5\x2f\xfd" or magic[1:] == b"\x2a\x4d\x18":
        plain = io.BufferedReader(_Zstd(path), READ_BYTES)
    else:
        plain = open(path, "rb")  # noqa: SIM115 - _UsualNames closes it
    return io.BufferedReader(_UsualNames(plain), READ_BYTES)


class _Zstd(compression.PieceReader):
    """The plain text of a zstd file, whose first frame may be the dictionary of the others."""

    def __init__(self, path: str):
        from fastwarc.stream_io import ZstdReader

        super().__init__(open(path, "rb"))  # noqa: SIM115 - closed with this object
        self._reader = ZstdReader(self._file)

    def next_piece(self) -> bytes | None:
        return self._reader.read(READ_BYTES) or None


class _UsualNames(compression.PieceReader):
    """A WARC whose headers with the length are called Content-Length: fastwarc sees no other case.

    WARC 1.1, section 4: names are case-insensitive. What is not a record stays as it is.
    """

    _left = 0  # bytes of the content of the current record
    _given = 0  # bytes of all pieces

    def next_piece(self) -> bytes | None:
        piece = self._file.read(min(self._left, READ_BYTES)) if self._left else self._next_header()
        self._left = max(0, self._left - len(piece))
        self._given += len(piece)
        return piece or None

    def tell(self) -> int:  # fastwarc asks before it reads
        return self._given - len(self._ready)

    def _next_header(self) -> bytes:
        """The header of a record with the blank line at its end, or a line outside of records."""
        lines = [line := self._file.readline(READ_BYTES)]
        size = len(line)
        if line.startswith(b"WARC/"):
            while line.strip() and size < READ_BYTES:
                lines.append(line := self._file.readline(READ_BYTES))
                size += len(line)
        header = LENGTH_NAME.sub(b"Content-Length:", b"".join(lines))
        if found := LENGTH.search(header):
            self._left = len(header) + int(found[1])  # next_piece takes the header off
        return header


def _identity(record: WarcRecord) -> str:
    return (record.headers.get("WARC-Record-ID") or "").strip("<>").removeprefix("urn:uuid:")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _skip(record: WarcRecord) -> tuple[int, bytes]:
    """(bytes of the content of a record, the first of them); reads it without keeping it."""
    beginning = piece = record.reader.read(READ_BYTES)
    size = len(piece)
    while piece := record.reader.read(READ_BYTES):
        size += len(piece)
    return size, beginning


def _too_long(record: WarcRecord, path: str, size: int, max_bytes: int) -> Reject:
    url = record.headers.get("WARC-Target-URI") or ""
    return Reject(path, f"record {_identity(record)}", files.too_long(size, max_bytes).reason, url)


def _blocked(url: str, url_filter: UrlFilter | None) -> Removed | None:
    reason = None if url_filter is None else url_filter.block_reason(url)
    return None if reason is None else Removed(reason, {"url": url})


def _from_response(
    record: WarcRecord,
    raw: bytes,
    path: str,
    size: int,
    max_bytes: int,
    extractor: Extractor,
    url_filter: UrlFilter | None,
) -> Document | Removed | Reject:
    """The main text of the HTML page in an HTTP response.

    raw: the response, or its beginning if its `size` is more than max_bytes.
    """
    url = record.headers.get("WARC-Target-URI") or ""
    place = f"record {_identity(record)}"
    try:
        response = read_response(raw)
        if response.status // 100 != 2:  # 203 comes from a proxy that changed the page
            return Removed(f"http_status_{response.status}", {"url": url})
        if (response.type or "text/html") not in HTML_TYPES:
            return Removed("not_html", {"url": url, "type": response.type})
        if blocked := _blocked(url, url_filter):
            return blocked
        if size > max_bytes:
            return _too_long(record, path, size, max_bytes)
        body = response.body(max_bytes)
    except BodyTooLong:
        return _too_long(record, path, max_bytes + 1, max_bytes)
    except ValueError as error:
        return Reject(path, place, f"not a complete HTTP response ({error})", url)
    page = decode_page(body, response.charset, _host(url))
    if (tags := page.count("<")) > MAX_TAGS:
        reason = f"has {tags:,} tags, more than {MAX_TAGS:,}"
        return Reject(path, place, reason, url)
    text = main_text(page, extractor)
    if text is None:
        return Removed("nested_too_deeply", {"url": url})
    if not text:
        return Removed("empty", {"url": url})
    return Document(_identity(record), text, {"url": url, "date": record.headers.get("WARC-Date") or ""})


def _from_conversion(
    record: WarcRecord, raw: bytes, path: str, size: int, max_bytes: int, url_filter: UrlFilter | None
) -> Document | Removed | Reject:
    """The text of a WET record; `language` is the one that the crawler identified."""
    url = record.headers.get("WARC-Target-URI") or ""
    if blocked := _blocked(url, url_filter):
        return blocked
    if size > max_bytes:
        return _too_long(record, path, size, max_bytes)
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError as error:
        return Reject(
            path, f"record {_identity(record)}", f"byte {error.start} of the text is not UTF-8", url
        )
    if not text:
        return Removed("empty", {"url": url})
    meta = {
        "url": url,
        "date": record.headers.get("WARC-Date") or "",
        "language": record.headers.get("WARC-Identified-Content-Language"),
    }
    return Document(_identity(record), text, {k: v for k, v in meta.items() if v is not None})
