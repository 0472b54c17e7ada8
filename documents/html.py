"""The main text of an HTML page: what is left without navigation, headers, footers and comments.

Which extractor decides what that is, is a setting (`Extractor`). `trafilatura` compares its own rules with
readability's and jusText's. It is the default because it finds most of the text and least of the rest
(benchmarks/main_text.py). `block_classifier` takes a fraction of its time (block_classifier.py). A page in
which they find nothing goes to resiliparse, as do pages whose markup
would take trafilatura quadratic time. Of a page with text some text comes out.

Parsers take quadratic time and memory for some markup, which is found before anything is parsed. There are no
limits of time, so that a page has the same text on every machine.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..core.config import UserError
from ..core.extras import needs_package
from ..core.unicode import normalize
from . import block_classifier
from .html_limits import quadratic_markup

if TYPE_CHECKING:
    from configparser import ConfigParser

    from resiliparse.parse.html import HTMLTree

Extractor = Literal[
    "trafilatura", "trafilatura_fast", "trafilatura_precision", "resiliparse", "block_classifier"
]
# Changes wherever this module, html_limits.py or html_encoding.py gives another text for the same page.
PAGE_RULES = "3"
# Settings of trafilatura, apart from those that are always the same.
TRAFILATURA: dict[Extractor, dict[str, Any]] = {
    "trafilatura": {},
    "trafilatura_fast": {"fast": True},
    "trafilatura_precision": {"favor_precision": True},
}
LIBRARIES: dict[Extractor, tuple[str, ...]] = {  # on whose versions a text depends
    **{name: ("resiliparse", "trafilatura", "lxml", "jusText") for name in TRAFILATURA},
    "resiliparse": ("resiliparse",),
    "block_classifier": ("resiliparse",),
}
MAX_TAGS = 4_000_000  # of a page: an element takes some two hundred bytes while its text is extracted
MAX_DEPTH = 512  # levels of elements below <body>, as in Chrome
DEEP, TOO_DEEP = (" > ".join(["*"] * depth) for depth in (48, MAX_DEPTH))  # match elements at these levels
# Formatting elements that are not closed, and how much longer a page may become by them.
FORMAT = re.compile(
    r"<(/?)(?:a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?=[\s/>])", re.IGNORECASE
)
FEW_TAGS, MANY_OPEN, INFLATION, INFLATED_CHARS = 200, 16, 10, 500_000
DEEP_TAGS = 1000  # a page of fewer tags is not searched for deep elements
# trafilatura takes up to 0.1 ms for a tag, and quadratic time in the number of lists and tables. Its parser
# ends a page at a depth of 256.
TRAFILATURA_TAGS, TRAFILATURA_TABLES = 50_000, 3000
TRAFILATURA_DEPTH = " > ".join(["*"] * 200)
TABLE = re.compile(r"<(?:ul|ol|dl|table)\b", re.IGNORECASE)
LARGE_PAGE = 1 << 20  # characters
SURROGATE = re.compile("[\ud800-\udfff]")
XML_DECLARATION = re.compile(r"\s*<\?xml[^>]*>")


def versions(extractor: Extractor, purpose: str, more: Sequence[str] = ()) -> dict[str, str]:
    """{library, or "page rules": version} of what a text depends on; raises UserError without a library.

    purpose: what needs the library, at the beginning of the message. more: further libraries.
    """
    try:
        found = {name: importlib.metadata.version(name) for name in (*LIBRARIES[extractor], *more)}
        if extractor == "block_classifier":
            found["block rules"] = block_classifier.BLOCK_RULES
        return {**found, "page rules": PAGE_RULES}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(needs_package(purpose, error.name, extra="extract")) from None


def main_text(page: str, extractor: Extractor = "trafilatura") -> str | None:
    """The main text of an HTML page, "" if it has no text; None if its markup would take quadratic time.

    Both libraries read the ancestors of every element: 20,000 unclosed `<div>` take resiliparse 15 s, so
    elements may be nested MAX_DEPTH deep. html_limits.py has the limits of what is parsed.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    try:
        page.encode()  # a tenth of the time of a search for surrogates
    except UnicodeEncodeError:
        page = SURROGATE.sub("\ufffd", page)
    if extractor == "block_classifier" and (text := block_classifier.main_text(page)):
        return text
    if quadratic_markup(page):
        return None
    tree = HTMLTree.parse(page)
    if _is_inflated(page, tree):
        return None
    # nearly all pages are done with the short selector
    if (
        page.count("<") > DEEP_TAGS
        and (body := tree.body) is not None
        and body.query_selector(DEEP) is not None
        and body.query_selector(TOO_DEEP) is not None
    ):
        return None
    if (
        extractor in TRAFILATURA
        and _suits_trafilatura(page, tree)
        and (text := _by_trafilatura(page, extractor))
    ):
        return text
    text = extract_plain_text(tree, main_content=True, alt_texts=False).strip()
    if text:
        return text
    # resiliparse takes some pages for navigation alone; others lie in a <noscript>
    return extract_plain_text(tree, main_content=False, alt_texts=False, noscript=True).strip()


def _is_inflated(page: str, tree: HTMLTree) -> bool:
    """Whether the tree has many more elements than the page has tags.

    The parser opens formatting elements that are not closed again in each paragraph that follows.
    """
    if page.count("<") <= FEW_TAGS:
        return False
    most_open = is_open = 0
    for tag in FORMAT.finditer(page):
        is_open = max(0, is_open - 1) if tag[1] else is_open + 1
        most_open = max(most_open, is_open)
    if most_open <= MANY_OPEN:
        return False
    return tree.body is not None and len(tree.body.html) > INFLATION * len(page) + INFLATED_CHARS


def _suits_trafilatura(page: str, tree: HTMLTree) -> bool:
    """Whether trafilatura takes linear time for a page, and reads all of it."""
    tags = page.count("<")
    return (
        tags <= TRAFILATURA_TAGS
        and (tags <= TRAFILATURA_TABLES or sum(1 for _ in TABLE.finditer(page)) <= TRAFILATURA_TABLES)
        and (tags <= DEEP_TAGS or tree.body is None or tree.body.query_selector(TRAFILATURA_DEPTH) is None)
    )


def _by_trafilatura(page: str, extractor: Extractor) -> str:
    """The main text by trafilatura; "" if it finds none."""
    from trafilatura import bare_extraction
    from trafilatura.meta import reset_caches

    # lxml ends a page at U+0000, and refuses a declared encoding, which a decoded page no longer has
    declaration = XML_DECLARATION.match(page)
    page = page[declaration.end() if declaration else 0 :].replace("\0", "\ufffd")
    settings = _settings()
    try:
        # `extract` returns the same text in form NFC, but normalizes marks in quadratic time
        found = bare_extraction(page, include_comments=False, config=settings, **TRAFILATURA[extractor])
    except Exception:  # a fault of the library on one page must not end a crawl
        return ""
    finally:
        if len(page) > LARGE_PAGE:
            reset_caches()  # of thousands of strings, each perhaps as long as the page
    if found is None or isinstance(found, dict) or not found.text:  # it is a dictionary only if asked for
        return ""
    return _tidy(normalize("NFC", found.text))


@functools.cache
def _settings() -> ConfigParser:
    """trafilatura's settings, but without its limit of a page's size."""
    from trafilatura.settings import use_config

    for name in ("trafilatura", "justext", "htmldate"):  # they log pages without text
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    settings = use_config()
    settings.set("DEFAULT", "MAX_FILE_SIZE", str(sys.maxsize))
    return settings


def _tidy(text: str) -> str:
    """The text without white space at the ends of lines, and without several empty lines in succession."""
    lines = [line.rstrip() for line in text.strip().split("\n")]
    return "\n".join(line for line, before in zip(lines, ["x", *lines]) if line or before)
