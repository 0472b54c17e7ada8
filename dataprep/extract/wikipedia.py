"""Extract articles from a Wikipedia XML dump, with WikiExtractor's `--json` fields: id, url, title, text.

A dump is `.xml`, `.xml.bz2` (one stream or several) or `.xml.gz`: a `<siteinfo>`, then millions of `<page>`.
It is split into byte ranges, each of which is decompressed independently (bzip2.py); a page belongs to the
range in which its `<page>` begins. Only `.gz` cannot be split. wikitext.py makes the text of a page.
"""

from __future__ import annotations

import dataclasses
import gzip
import html
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...core.config import UserError
from ...documents import files
from ...documents.reader import Document
from ...documents.rejects import Reject
from ..stage import Removed
from . import bzip2, editions
from .wikitext import MAX_NAME, PREFIXES, ExpansionTooLong, plain_text

READ_BYTES = 1 << 20
HEADER_BYTES = 16 << 20  # the first <page> must begin within these
MAX_TAGS = 1_000_000  # of a page: it has about thirty, and a tag takes some hundred bytes in memory
# Characters of a page, of which Wikipedia allows two million. A link takes a hundred times as much memory.
MAX_WIKITEXT = 8 << 20
PAGE_EDGE = re.compile(rb"</?page>")
COMPRESSION_RATIO = 4  # bytes of XML for one byte of .bz2, slightly underestimated
EXTENSIONS = (".xml", ".xml.bz2", ".xml.gz")
# Namespaces of a dump and the kind of their pages.
NAMESPACES = {"-2": "file", "6": "file", "14": "category", "10": "template"}


@dataclasses.dataclass(frozen=True)
class Site:
    """The header of a dump. prefixes: {lower-case prefix: kind of page} in its language; language: a code."""

    base: str
    prefixes: dict[str, str]
    language: str = editions.DEFAULT


@dataclasses.dataclass(frozen=True)
class DumpPart:
    """Bytes [start, end) of a dump file, and the header of the dump."""

    path: str
    start: int
    end: int
    site: Site


def split_dump(path: str, part_bytes: int) -> list[DumpPart]:
    """Splits a dump into parts of about part_bytes of XML; raises UserError if it is not a Wikipedia dump."""
    size, site = Path(path).stat().st_size, _read_site(path)
    estimated_xml_bytes = {".xml": size, ".bz2": size * COMPRESSION_RATIO, ".gz": 1}[Path(path).suffix]
    count = -(-estimated_xml_bytes // part_bytes)
    return [DumpPart(path, size * i // count, size * (i + 1) // count, site) for i in range(count)]


def _read_site(path: str) -> Site:
    header = bytearray()
    for xml, _ in _read_xml(path, 0, Path(path).stat().st_size):
        searched = max(0, len(header) - len(b"<page"))  # blocks may be tiny, and millions
        header += xml
        if (begin := header.find(b"<page>", searched)) >= 0:
            return _parse_site(bytes(header[:begin]), path)
        if len(header) > HEADER_BYTES:
            break
    raise UserError(
        f"{path}: contains no <page>; give a dump of pages, as in enwiki-20251101-pages-articles.xml.bz2"
    )


def _read_xml(path: str, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """Yields (XML, whether it lies in the bytes [start, end)) from start to the end of the file."""
    try:
        if path.endswith(".bz2"):
            yield from bzip2.decompress_blocks(path, start, end)
            return
        if path.endswith(".gz"):
            with gzip.open(path, "rb") as unpacked:
                while data := unpacked.read(READ_BYTES):
                    yield data, True
            return
        with open(path, "rb") as file:
            file.seek(start)
            left = end - start
            while data := file.read(min(READ_BYTES, left) if left > 0 else READ_BYTES):
                yield data, left > 0
                left -= len(data)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path}: the compressed data is cut short or damaged ({error}); download the file again"
        ) from None


def _pages(part: DumpPart, max_bytes: int) -> Iterator[bytes | files.Refused]:
    """Yields the XML of the pages that begin in a part; raises UserError if the dump is cut short.

    A page of more than max_bytes is a Refused, and ends where another one begins if it has no end.
    """
    buffer = bytearray()
    own_bytes = 0  # bytes at the beginning of the buffer that lie in the part
    searched = 0  # bytes at the beginning of the buffer without the end of its first page
    any_own = closed = skipping = False  # skipping: the buffer continues a page that is too long
    for xml, is_own in _read_xml(part.path, part.start, part.end):
        buffer += xml
        if is_own:
            own_bytes, any_own = len(buffer), True
        if skipping:
            edge = PAGE_EDGE.search(buffer)
            passed = edge.start() if edge else max(0, len(buffer) - len(b"</page"))
            del buffer[:passed]
            own_bytes -= min(own_bytes, passed)
            skipping = edge is None
        while not skipping and 0 <= (begin := buffer.find(b"<page>")) < own_bytes:
            end = buffer.find(b"</page>", max(begin, searched)) + 7
            searched = max(begin, len(buffer) - 6)
            if (end if end >= 7 else len(buffer)) - begin > max_bytes:
                yield files.too_long(0, max_bytes, buffer[begin : begin + files.BEGINNING_BYTES + 1])
                edge = PAGE_EDGE.search(buffer, begin + 6)
                end = edge.start() if edge else len(buffer) - len(b"</page")
                skipping = edge is None
            elif end < 7:
                break
            else:
                yield bytes(buffer[begin:end])
            del buffer[:end]
            own_bytes = max(0, own_bytes - end)
            searched = 0
        else:
            if not is_own:
                return
            closed = closed or b"</mediawiki>" in buffer
            if not skipping:
                scanned = max(0, len(buffer) - len(b"</mediawiki>"))  # a tag may continue in the next read
                del buffer[:scanned]
                own_bytes -= min(own_bytes, scanned)
    if any_own and not closed and not skipping:
        raise UserError(f"{part.path}: ends before its </mediawiki>; download the file again")


def _parse_site(header: bytes, path: str) -> Site:
    text = header.decode("utf-8", "replace")
    base = re.search(r"<base>([^<\n]{,1000})</base>", text)
    if "<mediawiki" not in text:
        raise UserError(f"{path}: does not begin with <mediawiki>; give a Wikipedia dump")
    namespaces = re.findall(r'<namespace key="(-2|6|10|14)"[^<>]*>([^<]*)</namespace>', text)
    prefixes = PREFIXES | {html.unescape(name).lower(): NAMESPACES[key] for key, name in namespaces}
    address = html.unescape(base[1]).rsplit("/", 1)[0] if base else ""
    host = re.match(r"https?://([a-z-]{2,12})\.(?:m\.)?wikipedia\.", address)
    language = re.search(r"<mediawiki[^<>]*\sxml:lang=[\"']([A-Za-z-]+)", text)
    code = host[1] if host else language[1].lower() if language else editions.DEFAULT
    return Site(address, prefixes, code)


def documents(
    part: DumpPart, max_bytes: int = files.MAX_RECORD_BYTES, dropped: Counter[str] | None = None
) -> Iterator[tuple[str, Document | Removed | Reject]]:
    """Yields (page id, its document or the reason there is none) for every page of a part, in order.

    max_bytes: a longer page is one that cannot be read. dropped: gets the counts, by kind, of what the texts
    of articles leave out.
    """
    dropped = Counter() if dropped is None else dropped
    for xml in _pages(part, max_bytes):
        if isinstance(xml, files.Refused):
            yield "", Reject(part.path, "a page", xml.reason, xml.beginning.decode("utf-8", "replace"))
            continue
        try:
            if xml.count(b"<") > MAX_TAGS:
                raise ElementTree.ParseError(f"more than {MAX_TAGS:,} tags")
            page = ElementTree.fromstring(xml)
        except ElementTree.ParseError as error:
            raw = xml[:2000].decode("utf-8", "replace")
            yield "", Reject(part.path, "a page", f"not valid XML ({error})", raw)
            continue
        identity, title = page.findtext("id", ""), page.findtext("title", "")
        if page.findtext("ns", "0") != "0":
            yield identity, Removed("not_an_article", {"title": title})
        elif page.find("redirect") is not None:
            yield identity, Removed("redirect", {"title": title})
        else:
            yield identity, _article(part, identity, title, page.findtext("revision/text") or "", dropped)


def _article(
    part: DumpPart, identity: str, title: str, wikitext: str, dropped: Counter[str]
) -> Document | Removed | Reject:
    from mwparserfromhell.parser import ParserError

    place = f"page {identity[:20]} ({title[:MAX_NAME]})"
    if len(wikitext) > MAX_WIKITEXT:
        reason = f"has {len(wikitext):,} characters of wikitext, more than {MAX_WIKITEXT:,}"
        return Reject(part.path, place, reason, wikitext[: files.BEGINNING_BYTES])
    try:
        site = part.site
        text = plain_text(wikitext, site.prefixes, language=site.language, title=title, dropped=dropped)
    except (ParserError, RecursionError, ExpansionTooLong) as error:
        return Reject(part.path, place, f"the wikitext cannot be parsed ({error})", wikitext)
    if not text:
        return Removed("empty", {"title": title})
    return Document(identity, text, {"url": f"{part.site.base}?curid={identity}", "title": title})
