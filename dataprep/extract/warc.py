"""WARC and WET files to the main text of their pages: id, url, date, text.

A crawl is thousands of `.warc.gz` files of about a gigabyte, so a file is a shard. Every `response` record
with an HTML page becomes a document; navigation, headers, footers and the like go by resiliparse's
main-content rules. The encoding is the HTTP header's (UTF-8 without one) where the bytes obey it, else the
page's own or guessed. A WET file (`.warc.wet.gz`) has the text already, in `conversion` records: it stays as
it is. Files may be packed with gzip, zstandard or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...core.config import UserError
from ...documents.reader import Document, Reject
from ..stage import Removed

EXTENSIONS = (".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz", ".wet.zst")
HTML_TYPES = ("text/html", "application/xhtml+xml")


def documents(path: str) -> Iterator[tuple[str, Document | Removed | Reject]]:
    """(record id, its document, or why there is none) of every response and conversion in a file, in order.

    Raises UserError where the file is cut short or broken.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    found = False
    try:
        with open(path, "rb") as file:
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                found = True
                raw = record.reader.read()
                if "Content-Length" not in record.headers or len(raw) < int(record.headers["Content-Length"]):
                    raise EOFError(f"record {_identity(record) or 'without a name'} is cut short")
                if record.record_type == WarcRecordType.response:
                    record.set_bytes_content(raw)
                    yield _identity(record), _page(record, path)
                elif record.record_type == WarcRecordType.conversion:
                    yield _identity(record), _converted(record, raw, path)
    except (EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: ends or breaks amid a record ({error}); fetch the file again") from None
    if not found:
        raise UserError(f"{path}: holds no WARC record; check the file")


def _identity(record) -> str:
    return (record.headers.get("WARC-Record-ID") or "").strip("<>").removeprefix("urn:uuid:")


def _page(record, path: str) -> Document | Removed | Reject:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    url = record.headers.get("WARC-Target-URI") or ""
    try:
        record.parse_http(auto_decode="all")
        body = record.reader.read()
    except (OSError, ValueError) as error:
        return Reject(path, f"record {_identity(record)}", f"not a whole HTTP response ({error})", url)
    status = record.http_headers.status_code if record.http_headers is not None else None
    if status != 200:
        return Removed(f"http_status_{status}", {"url": url})
    if (record.http_content_type or "text/html") not in HTML_TYPES:
        return Removed("not_html", {"url": url, "type": record.http_content_type})
    try:
        page = body.decode(record.http_charset or "utf-8")
    except (LookupError, UnicodeDecodeError):  # a charset that nobody knows, or that the bytes do not obey
        page = bytes_to_str(body, detect_encoding(body, from_html_meta=True))
    text = extract_plain_text(page, main_content=True, alt_texts=False).strip()
    if not text:
        return Removed("empty", {"url": url})
    return Document(_identity(record), text, {"url": url, "date": record.headers.get("WARC-Date") or ""})


def _converted(record, raw: bytes, path: str) -> Document | Removed | Reject:
    """The text of a WET record; `language` is what the crawler took it for."""
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
