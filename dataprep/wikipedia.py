"""A Wikipedia XML dump to documents, as WikiExtractor's `--json` gives them: id, url, title, text.

A dump is `.xml`, `.xml.bz2` (one stream or many) or `.xml.gz`: a `<siteinfo>` and then millions of `<page>`. The parent
process decompresses it and cuts it between pages into blocks; workers turn blocks to text, which takes some ten
times as long as decompression, so that one reader keeps about that many workers busy. Of a page's wikitext stay the words that a
reader sees: templates, tables, references, files, categories, links to other languages and markup go, and so do
sections that have nothing left. Formulae stay as their TeX.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import html
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..config import UserError
from ..documents import Document, Reject
from .stage import Removed

READ_BYTES = 1 << 20
EXTENSIONS = (".xml", ".xml.bz2", ".xml.gz")
# Tags that go with all they hold.
DROPPED_TAGS = frozenset((
    "ref", "references", "table", "gallery", "timeline", "imagemap", "source", "syntaxhighlight", "score", "graph", "hiero",
    "mapframe", "maplink", "style", "templatestyles", "includeonly", "templatedata", "section", "indicator", "hr",
))
# Link prefixes that every Wikipedia knows beside the names in its own language.
DROPPED_PREFIXES = frozenset(("file", "image", "media", "category"))
OTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*|simple")


@dataclasses.dataclass(frozen=True)
class Site:
    """What a dump's head says. prefixes: lower-case link prefixes of files and categories in its language."""

    base: str
    prefixes: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole pages of one dump: XML from one `<page>` to a `</page>`. read: compressed bytes read since the last block."""

    path: str
    site: Site
    xml: bytes
    read: int


def blocks(path: str, block_bytes: int) -> Iterator[Block]:
    """A dump cut after the first page that ends beyond block_bytes; raises UserError where it is cut short or broken."""
    buffer, site, told = bytearray(), None, 0
    with open(path, "rb") as raw, _plain(raw, path) as file:
        while data := _read(file, path, READ_BYTES):
            buffer += data
            if site is None:
                begin = buffer.find(b"<page>")
                if begin < 0:
                    if len(buffer) > 16 * READ_BYTES:
                        break
                    continue
                site = _site(bytes(buffer[:begin]), path)
                del buffer[:begin]
            while (end := buffer.find(b"</page>", block_bytes) + 7) > 6:  # the same cuts whatever a read returns
                yield Block(path, site, bytes(buffer[:end]), raw.tell() - told)
                told = raw.tell()
                del buffer[:end]
        if site is None:
            raise UserError(f"{path}: holds no <page>; give a dump of pages, as in enwiki-20251101-pages-articles.xml.bz2")
        end = buffer.rfind(b"</page>") + 7
        if b"</mediawiki>" not in buffer[max(end, 7) - 7 :]:
            raise UserError(f"{path}: ends before its </mediawiki>; fetch the file again")
        if end > 6:
            yield Block(path, site, bytes(buffer[:end]), raw.tell() - told)


def _plain(raw, path: str):
    opener = {".bz2": bz2.open, ".gz": gzip.open}.get(Path(path).suffix)
    return opener(raw, "rb") if opener else raw


def _read(file, path: str, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: the compressed data ends or breaks ({error}); fetch the file again") from None


def _site(head: bytes, path: str) -> Site:
    text = head.decode("utf-8", "replace")
    base = re.search(r"<base>(.*?)</base>", text)
    if "<mediawiki" not in text:
        raise UserError(f"{path}: does not begin with <mediawiki>; give a Wikipedia dump")
    named = re.findall(r'<namespace key="(-2|6|14)"[^>]*>([^<]*)</namespace>', text)
    prefixes = DROPPED_PREFIXES | {html.unescape(name).lower() for _, name in named}
    return Site(html.unescape(base[1]).rsplit("/", 1)[0] if base else "", prefixes)


def documents(block: Block) -> Iterator[tuple[str, Document | Removed | Reject]]:
    """(page id, its document, or why there is none) of every page of a block, in order."""
    for piece in block.xml.split(b"</page>")[:-1]:
        xml = piece[piece.find(b"<page>") :] + b"</page>"
        try:
            page = ElementTree.fromstring(xml)
        except ElementTree.ParseError as error:
            yield "", Reject(block.path, "a page", f"not valid XML ({error})", xml[:2000].decode("utf-8", "replace"))
            continue
        identity, title = page.findtext("id", ""), page.findtext("title", "")
        if page.findtext("ns", "0") != "0":
            yield identity, Removed("not_an_article", {"title": title})
        elif page.find("redirect") is not None:
            yield identity, Removed("redirect", {"title": title})
        else:
            yield identity, _article(block, identity, title, page.findtext("revision/text") or "")


def _article(block: Block, identity: str, title: str, wikitext: str) -> Document | Removed | Reject:
    from mwparserfromhell.parser import ParserError

    try:
        text = plain_text(wikitext, block.site.prefixes)
    except (ParserError, RecursionError) as error:
        return Reject(block.path, f"page {identity} ({title})", f"the wikitext cannot be parsed ({error})", wikitext)
    if not text:
        return Removed("empty", {"title": title})
    return Document(identity, text, {"url": f"{block.site.base}?curid={identity}", "title": title})


def plain_text(wikitext: str, prefixes: frozenset[str] = DROPPED_PREFIXES) -> str:
    """The words of a page that a reader sees, a line for each paragraph, heading and list item."""
    import mwparserfromhell

    parts: list[str] = []
    _flatten(mwparserfromhell.parse(wikitext, skip_style_tags=True), prefixes, parts)
    text = re.sub(r"'{2,5}", "", "".join(parts))
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
    """Lines joined, without leftovers of tables and templates, and without headings that have no text under them."""
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
