"""Extract the main text of the pages in WARC and WET files: id, url, date, text.

A crawl is thousands of `.warc.gz` files of about a gigabyte, so one file is one shard. Every `response`
record with an HTML page becomes a document; resiliparse's main-content rules remove navigation, headers and
footers. The encoding is the one in the HTTP header (UTF-8 if there is none) if the bytes are valid in it;
otherwise it is the one that the page declares, or a guess. A WET file (`.warc.wet.gz`) has extracted text
already, in `conversion` records, which is kept unchanged. Files may be compressed with gzip or zstandard, or
plain. Format: WARC 1.1, ISO 28500:2017.
"""

from __future__ import annotations

import codecs
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...core.config import UserError
from ...documents import files
from ...documents.reader import Document, Reject
from ..stage import Removed
from .http_response import BodyTooLong, read_response

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

EXTENSIONS = (".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz", ".wet.zst")
READ_BYTES = 1 << 18
MAX_TAGS = 4_000_000  # of a page: an element takes some two hundred bytes while its text is extracted
# Codecs of Python that are no charsets of pages, but that a server may name: those of domain names take
# quadratic time, and the others make surrogates.
NO_CHARSETS = ("idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7")
MAX_DEPTH = 512  # levels of elements below <body>, as in Chrome
DEEP, TOO_DEEP = (" > ".join(["*"] * depth) for depth in (48, MAX_DEPTH))  # match elements at these levels
# A page of N tags has at most N levels, and at most (N / 2)^2 nodes, which is quick enough for a small N.
DEEP_TAGS, LARGE_TAGS = 1000, 8000
MAX_NODES = 20_000_000  # of the tree of a page: 2 GB
# The parser takes quadratic time in the attributes of a tag and in the options of a list.
MAX_ATTRIBUTES, MAX_OPTIONS = 2000, 10_000
LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{4000,}")
OPTION = re.compile(r"<option\b", re.IGNORECASE)
# Formatting elements, which the parser opens again in each paragraph, and elements that hide their end tags.
FORMATS = ("b", "big", "code", "em", "font", "i", "s", "small", "strike", "strong", "tt", "u")
_FORMAT = rf"(?:{'|'.join(FORMATS)})(?=[\s/>])"
FORMAT_TAG = re.compile(
    rf"<(?:/(?P<end>{_FORMAT})|(?P<start>{_FORMAT})[^<>]*+"
    r"|(?:applet|caption|marquee|math|object|svg|table|td|template|th)(?=[\s/>])|!--)",
    re.IGNORECASE,
)
HTML_TYPES = ("text/html", "application/xhtml+xml")


def documents(
    path: str, max_bytes: int = files.MAX_RECORD_BYTES
) -> Iterator[tuple[str, Document | Removed | Reject]]:
    """Yields (record id, document or why there is none) for the responses and conversions of a file.

    max_bytes: a longer page or text, decompressed, is one that cannot be read. Raises UserError if the file
    is cut short or damaged, or has no WARC record.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    found = False
    try:
        with open(path, "rb") as file:
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                found = True
                length = int(record.headers.get("Content-Length") or sys.maxsize)
                raw = record.reader.read() if length <= max_bytes else b""
                size, raw = (len(raw), raw) if length <= max_bytes else _skip(record)
                if size < length:
                    raise EOFError(f"record {_identity(record) or 'without a name'} is cut short")
                if record.record_type == WarcRecordType.response:
                    yield _identity(record), _from_response(record, raw, path, size, max_bytes)
                elif record.record_type == WarcRecordType.conversion:
                    yield _identity(record), _from_conversion(record, raw, path, size, max_bytes)
    except (EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path}: is cut short or damaged inside a record ({error}); download the file again"
        ) from None
    if not found:
        raise UserError(f"{path}: contains no WARC record; check the file")


def _identity(record: WarcRecord) -> str:
    return (record.headers.get("WARC-Record-ID") or "").strip("<>").removeprefix("urn:uuid:")


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


def _from_response(
    record: WarcRecord, raw: bytes, path: str, size: int, max_bytes: int
) -> Document | Removed | Reject:
    """The main text of the HTML page in an HTTP response.

    raw: the response, or its beginning if its `size` is more than max_bytes.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    url = record.headers.get("WARC-Target-URI") or ""
    place = f"record {_identity(record)}"
    try:
        response = read_response(raw)
        if response.status // 100 != 2:  # 203 comes from a proxy that changed the page
            return Removed(f"http_status_{response.status}", {"url": url})
        if (response.type or "text/html") not in HTML_TYPES:
            return Removed("not_html", {"url": url, "type": response.type})
        if size > max_bytes:
            return _too_long(record, path, size, max_bytes)
        body, charset = response.body(max_bytes), response.charset or "utf-8"
    except BodyTooLong:
        return _too_long(record, path, max_bytes + 1, max_bytes)
    except ValueError as error:
        return Reject(path, place, f"not a complete HTTP response ({error})", url)
    try:
        if codecs.lookup(charset).name in NO_CHARSETS:
            raise LookupError(charset)
        page = body.decode(charset)
    except (LookupError, ValueError):  # an unknown charset, or bytes that are not valid in it
        page = bytes_to_str(body, detect_encoding(body, from_html_meta=True) or "utf-8")
    if (tags := page.count("<")) > MAX_TAGS:
        reason = f"has {tags:,} tags, more than {MAX_TAGS:,}"
        return Reject(path, place, reason, url)
    text = main_text(page)
    if text is None:
        return Removed("nested_too_deeply", {"url": url})
    if not text:
        return Removed("empty", {"url": url})
    return Document(_identity(record), text, {"url": url, "date": record.headers.get("WARC-Date") or ""})


def main_text(page: str) -> str | None:
    """The main text of an HTML page; None if its markup would take quadratic time.

    The extraction reads the ancestors of every element: 20,000 unclosed `<div>` take 15 s, so elements may be
    nested MAX_DEPTH deep. Likewise a tag may have MAX_ATTRIBUTES, and a page MAX_OPTIONS.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tags = page.count("<")
    if any(len(tag[0].split()) > MAX_ATTRIBUTES for tag in LONG_TAG.finditer(page)):
        return None
    if tags > MAX_OPTIONS and sum(1 for _ in OPTION.finditer(page)) > MAX_OPTIONS:
        return None
    if tags > LARGE_TAGS and _may_repeat(page) * tags > MAX_NODES and _open_formats(page) * tags > MAX_NODES:
        return None
    tree = HTMLTree.parse(page)
    # nearly all pages are done with the short selector
    if (
        tags > DEEP_TAGS
        and (body := tree.body) is not None
        and body.query_selector(DEEP) is not None
        and body.query_selector(TOO_DEEP) is not None
    ):
        return None
    return extract_plain_text(tree, main_content=True, alt_texts=False).strip()


def _may_repeat(page: str) -> int:
    """How many tags begin with two letters of a formatting element, or its one letter and a space."""
    data = np.frombuffer(page.encode("utf-8", "surrogatepass") + b"  ", np.uint8)
    at = np.flatnonzero(data == ord("<"))
    at = at[at < len(data) - 2]
    return int(_format_beginnings()[data[at + 1], data[at + 2]].sum())


@functools.cache
def _format_beginnings() -> np.ndarray:
    """bool (256, 256): whether two bytes after `<` may begin a formatting element."""
    table = np.zeros((256, 256), bool)
    for name in FORMATS:
        second = name[1] if len(name) > 1 else " \t\n\f\r/"
        for first in (name[0], name[0].upper()):
            for byte in {*second, *second.upper()}:
                table[ord(first), ord(byte)] = True
    return table


def _open_formats(page: str) -> int:
    """An upper estimate of how many formatting elements such as `<b id=1>` are open at once.

    The HTML standard repeats those that are still open in each following paragraph, so that the tree can have
    quadratically many nodes. Of equal ones it repeats three. An end tag counts only if no element that could
    hide it, such as a table, has begun since.
    """
    most = total = 0
    started: dict[str, list[str]] = {name: [] for name in FORMATS}  # start tags since the last barrier
    num_open: Counter[str] = Counter()  # by start tag
    for tag in FORMAT_TAG.finditer(page):
        if tag["start"]:
            started[tag["start"].lower()].append(tag[0])
            num_open[tag[0]] += 1
            total += num_open[tag[0]] <= 3
            most = max(most, total)
        elif not tag["end"]:
            started = {name: [] for name in FORMATS}
        elif tags := started[tag["end"].lower()]:
            last = tags.pop()
            total -= num_open[last] <= 3
            num_open[last] -= 1
    return most


def _from_conversion(
    record: WarcRecord, raw: bytes, path: str, size: int, max_bytes: int
) -> Document | Removed | Reject:
    """The text of a WET record; `language` is the one that the crawler identified."""
    if size > max_bytes:
        return _too_long(record, path, size, max_bytes)
    url = record.headers.get("WARC-Target-URI") or ""
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
