"""A Wikipedia XML dump to documents, as WikiExtractor's `--json` gives them: id, url, title, text.

A dump is `.xml`, `.xml.bz2` (one stream or many) or `.xml.gz`: a `<siteinfo>` and then millions of `<page>`.
It is cut by bytes, wherever that may be in the XML, and every part decompressed by itself (bzip2.py); a page
belongs to the part in which its `<page>` begins. Only `.gz` cannot be cut. Of a page's wikitext stay the
words that a reader sees: templates, tables, references, files, categories, links to other languages and
markup go, and so do sections that have nothing left. Formulae stay as their TeX.
"""

from __future__ import annotations

import dataclasses
import gzip
import html
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...core.config import UserError
from ...documents.reader import Document, Reject
from ..stage import Removed
from . import bzip2

READ_BYTES = 1 << 20
HEAD_BYTES = 16 << 20  # in which the first <page> must come
EXPANSION = 4  # bytes of XML for a byte of .bz2, and a little less than there are
EXTENSIONS = (".xml", ".xml.bz2", ".xml.gz")
# Tags that go with all they hold.
DROPPED_TAGS = frozenset(
    (
        "ref",
        "references",
        "table",
        "gallery",
        "timeline",
        "imagemap",
        "source",
        "syntaxhighlight",
        "score",
        "graph",
        "hiero",
        "mapframe",
        "maplink",
        "style",
        "templatestyles",
        "includeonly",
        "templatedata",
        "section",
        "indicator",
        "hr",
    )
)
# Link prefixes that every Wikipedia knows beside the names in its own language.
DROPPED_PREFIXES = frozenset(("file", "image", "media", "category"))
OTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*|simple")


@dataclasses.dataclass(frozen=True)
class Site:
    """What a dump's head says. prefixes: lower-case link prefixes of files and categories in its language."""

    base: str
    prefixes: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes [start, end) of a dump, and what its head says."""

    path: str
    start: int
    end: int
    site: Site


def parts(path: str, part_bytes: int) -> list[Part]:
    """A dump in parts of at most part_bytes of XML, more or less; raises UserError where its head is none."""
    size, site = Path(path).stat().st_size, _read_site(path)
    count = {".xml": -(-size // part_bytes), ".bz2": -(-size * EXPANSION // part_bytes), ".gz": 1}[
        Path(path).suffix
    ]
    return [Part(path, size * i // count, size * (i + 1) // count, site) for i in range(count)]


def _read_site(path: str) -> Site:
    head = bytearray()
    for text, _ in _text(path, 0, Path(path).stat().st_size):
        head += text
        if (begin := head.find(b"<page>")) >= 0:
            return _site(bytes(head[:begin]), path)
        if len(head) > HEAD_BYTES:
            break
    raise UserError(
        f"{path}: holds no <page>; give a dump of pages, as in enwiki-20251101-pages-articles.xml.bz2"
    )


def _text(path: str, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """(XML, whether it belongs to the part of the bytes [start, end)) from start on, and beyond end to the
    end of the file.
    """
    try:
        if path.endswith(".bz2"):
            yield from bzip2.text_from(path, start, end)
            return
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            file.seek(start)
            left = end - start if path.endswith(".xml") else float("inf")
            while data := file.read(min(READ_BYTES, left) if left > 0 else READ_BYTES):
                yield data, left > 0
                left -= len(data)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path}: the compressed data ends or breaks ({error}); fetch the file again"
        ) from None


def _pages(part: Part) -> Iterator[bytes]:
    """The XML of the pages that begin in a part; UserError where the dump ends amid them."""
    buffer, mine = bytearray(), 0  # the bytes of the buffer that belong to the part
    seen = closed = False
    for text, own in _text(part.path, part.start, part.end):
        buffer += text
        if own:
            mine, seen = len(buffer), True
        while 0 <= (begin := buffer.find(b"<page>")) < mine:
            end = buffer.find(b"</page>", begin) + 7
            if end < 7:
                break
            yield bytes(buffer[begin:end])
            del buffer[:end]
            mine = max(0, mine - end)
        else:
            if not own:
                return
            closed = closed or b"</mediawiki>" in buffer
            spent = max(0, len(buffer) - len(b"</mediawiki>"))  # a tag may go on in what is read next
            del buffer[:spent]
            mine -= min(mine, spent)
    if seen and not closed:
        raise UserError(f"{part.path}: ends before its </mediawiki>; fetch the file again")


def _site(head: bytes, path: str) -> Site:
    text = head.decode("utf-8", "replace")
    base = re.search(r"<base>(.*?)</base>", text)
    if "<mediawiki" not in text:
        raise UserError(f"{path}: does not begin with <mediawiki>; give a Wikipedia dump")
    named = re.findall(r'<namespace key="(-2|6|14)"[^>]*>([^<]*)</namespace>', text)
    prefixes = DROPPED_PREFIXES | {html.unescape(name).lower() for _, name in named}
    return Site(html.unescape(base[1]).rsplit("/", 1)[0] if base else "", prefixes)


def documents(part: Part) -> Iterator[tuple[str, Document | Removed | Reject]]:
    """(page id, its document, or why there is none) of every page of a part, in order."""
    for xml in _pages(part):
        try:
            page = ElementTree.fromstring(xml)
        except ElementTree.ParseError as error:
            yield (
                "",
                Reject(
                    part.path, "a page", f"not valid XML ({error})", xml[:2000].decode("utf-8", "replace")
                ),
            )
            continue
        identity, title = page.findtext("id", ""), page.findtext("title", "")
        if page.findtext("ns", "0") != "0":
            yield identity, Removed("not_an_article", {"title": title})
        elif page.find("redirect") is not None:
            yield identity, Removed("redirect", {"title": title})
        else:
            yield identity, _article(part, identity, title, page.findtext("revision/text") or "")


def _article(part: Part, identity: str, title: str, wikitext: str) -> Document | Removed | Reject:
    from mwparserfromhell.parser import ParserError

    try:
        text = plain_text(wikitext, part.site.prefixes)
    except (ParserError, RecursionError) as error:
        return Reject(
            part.path, f"page {identity} ({title})", f"the wikitext cannot be parsed ({error})", wikitext
        )
    if not text:
        return Removed("empty", {"title": title})
    return Document(identity, text, {"url": f"{part.site.base}?curid={identity}", "title": title})


def plain_text(wikitext: str, prefixes: frozenset[str] = DROPPED_PREFIXES) -> str:
    """The words of a page that a reader sees, a line for each paragraph, heading and list item."""
    import mwparserfromhell

    parts: list[str] = []
    _flatten(mwparserfromhell.parse(wikitext, skip_style_tags=True), prefixes, parts)
    text = "".join(parts).encode("utf-8", "replace").decode()  # `&#xD800;` is no character
    text = re.sub(r"'{2,5}", "", text)
    text = re.sub(r"__[A-Z]+__", "", text).replace("\u00a0", " ")
    # What templates and references leave behind: "( ; born 1912)", "word ( )", "word , word".
    text = re.sub(r"\(\s*[,;:]\s*", "(", text)
    text = re.sub(r"[ \t]*\([\s,;:]*\)", "", text)
    text = re.sub(r"[ \t]+([,.;:)])(?=\s|$)", r"\1", text, flags=re.M)
    return _with_filled_sections([re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")])


HEADING = "\x02"  # stands before a heading, as often as its level; XML cannot hold it


def _flatten(code, prefixes: frozenset[str], parts: list[str]) -> None:
    """Appends the visible text of parsed wikitext."""
    from mwparserfromhell import nodes

    for node in code.nodes:
        kind = type(node)
        if kind is nodes.Text:
            parts.append(node.value)
        elif kind is nodes.Wikilink:
            _flatten_link(node, prefixes, parts)
        elif kind is nodes.ExternalLink:
            if not node.brackets:
                parts.append(str(node.url))
            elif node.title is not None:
                _flatten(node.title, prefixes, parts)
        elif kind is nodes.HTMLEntity:
            parts.append(node.normalize())
        elif kind is nodes.Heading:
            parts.append(HEADING * node.level)
            _flatten(node.title, prefixes, parts)
        elif kind is nodes.Tag:
            name = str(node.tag).strip().lower()
            if name == "br":
                parts.append("\n")
            elif name not in DROPPED_TAGS and node.contents is not None:
                _flatten(node.contents, prefixes, parts)


def _flatten_link(node, prefixes: frozenset[str], parts: list[str]) -> None:
    """`[[page|words]]` is its words; files, categories and the same page in another language are nothing."""
    target = str(node.title).strip()
    prefix, colon, _ = target.partition(":")
    if colon and prefix and (prefix.strip().lower() in prefixes or OTHER_LANGUAGE.fullmatch(prefix)):
        return
    if node.text is not None:
        _flatten(node.text, prefixes, parts)
    else:
        _flatten(node.title, prefixes, parts)
        if target.startswith(":"):
            parts[-1] = parts[-1].lstrip().removeprefix(":")


def _with_filled_sections(lines: list[str]) -> str:
    """Lines joined, without leftovers of tables and templates, and without headings that have no text under
    them.
    """
    kept: list[str] = []
    waiting: list[str] = []  # headings, outermost first, under which nothing has come yet
    for line in lines:
        if line.startswith(HEADING):
            level = len(line) - len(line.lstrip(HEADING))
            waiting = [h for h in waiting if len(h) - len(h.lstrip(HEADING)) < level] + [line]
        elif line and not line.startswith(("{", "|", "}")) and not line.endswith("}}"):
            kept += [h.lstrip(HEADING).strip() for h in waiting] + [line]
            waiting = []
    return "\n".join(kept)
