"""The blocks of text of an HTML page, and the elements around them, read from its tags in linear time.

No tree is built as the HTML standard says. A stack of open elements is enough: a start tag of a block ends
the block before, an end tag closes the nearest open element of its name within FARTHEST levels, and unknown
tags only separate nothing. So there is no markup that takes quadratic time. block_classifier.py decides which
blocks are main text. The loops over characters and tags are compiled (html_blocks_numba.py).
"""

from __future__ import annotations

import dataclasses
import functools
import html
import itertools
import re
from typing import TYPE_CHECKING

import numpy as np

from .html_limits import FARTHEST, RAW_TEXT, VOID

if TYPE_CHECKING:
    from .html_blocks_numba import Names

MAX_OPEN = 1000  # open elements; further ones are not known
BLOCK_END, LINE_END, EMPTY = "\x01", "\x02", "\x02 "  # in the text; no character reference stands for them
NO_DIGITS = str.maketrans("", "", "0123456789")
SEPARATORS = str.maketrans({BLOCK_END: " ", LINE_END: " "})


def _names(text: str) -> list[str]:
    return text.split()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BLOCKS = _words(
    "address article aside audio blockquote body button canvas caption center dd details dialog dir div dl dt"
    " fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hgroup hr html iframe legend li"
    " listing main math menu nav noscript object ol option p pre section select summary svg table tbody td"
    " template tfoot th thead title tr ul video"
)
WITHOUT_TEXT = _words("audio button canvas head iframe math noscript object select svg template video")
# {element: (those of these names that it closes, those that end the search for one)}
IMPLIED_ENDS = {
    "li": (_words("li"), _words("ul ol menu")),
    "dd": (_words("dd dt"), _words("dl")),
    "dt": (_words("dd dt"), _words("dl")),
    "td": (_words("td th"), _words("table tr")),
    "th": (_words("td th"), _words("table tr")),
    "tr": (_words("tr"), _words("table")),
    "option": (_words("option"), _words("select")),
    "p": (_words("p"), _words("div td section article body")),
}
IMPLIED_LEVELS = 16
# Bits of the elements that a block is in, and numbers of the element that it is the text of.
CONTEXTS = {
    name: 1 << bit
    for bit, names in enumerate(
        _names(
            "nav/menu header footer aside article main form table ul ol li blockquote figure/figcaption"
            " dl/dd/dt p section h1/h2/h3/h4/h5/h6 td/th details address"
        )
    )
    for name in names.split("/")
}
TAGS = {
    name: number
    for number, name in enumerate(
        _names(
            "other p li td th div h1 h2 h3 h4 h5 h6 blockquote pre figcaption dd dt section article main"
            " caption label"
        )
    )
}
NUM_CONTEXTS = 20
# What the class, id, role or itemprop of an element says of it: one bit for each.
CLASS_WORDS = [
    re.compile(words)
    for words in (
        r"comment|kommentar|disqus|respond|reply|replies|discussion",
        r"nav|menu|breadcrumb|pager|pagination|toc|skip|sitemap|tabs",
        r"foot|copyright|legal|imprint|impressum|disclaimer|colophon",
        r"header|masthead|topbar|logo|kopf|branding",
        r"sidebar|side-|aside|widget|rail|column-?right|right-?col|secondary|complementary|sidecol",
        r"share|social|facebook|twitter|whatsapp|follow|like|addthis",
        r"related|recommend|more-|teaser|latest|popular|trending|also|similar|next|prev|suggest|outbrain"
        r"|taboola|archive|listing|carousel|slider|gallery",
        r"\bads?\b|advert|ad-|-ad\b|promo|banner|sponsor|affiliate|shop|product|price|werbung|anzeige",
        r"cookie|consent|popup|modal|overlay|gdpr|notice|alert|hidden|invisible|hide|sr-only|screen-reader",
        r"meta|date|time|author|byline|autor|tags?\b|categor|label|info|credit|published|rating|topic",
        r"login|subscri|newsletter|signup|sign-up|register|search|donat|paywall|form",
        r"caption|image|photo|bild|thumb|picture|video|media",
        r"author-?(?:bio|box|info|desc)|about|profile|bio\b|vcard",
        r"article|post|entry|story|artikel|beitrag|blog",
        r"body|content|text|main|inhalt|copy|prose|rich",
        r"title|headline|heading|lead|intro|summary|excerpt|dek",
        r"articlebody|(?:entry|post|article)-?(?:content|body|text)|story-?body|field-body",
        r"\blist|items?\b|grid|row|card|col",
    )
]
ANY_CLASS_WORD = re.compile("|".join(words.pattern for words in CLASS_WORDS))
HIDDEN, ARIA_HIDDEN = 1 << len(CLASS_WORDS), 2 << len(CLASS_WORDS)
NUM_CLASSES = len(CLASS_WORDS) + 2
WORD_ATTRIBUTES = _names("class id role itemprop")
ATTRIBUTE = re.compile(
    r"(?<![\w-])(class|id|role|itemprop|style|hidden|aria-hidden)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"']+)))?"
    r"(?![\w-])",
    re.IGNORECASE,
)
MAX_ATTRIBUTES = 4000  # characters of a tag that are read
LONG_REFERENCE = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{8,});?")
INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


@dataclasses.dataclass(slots=True)
class PageBlocks:
    """The N blocks of a page, and its E elements, of which number 0 is the root.

    texts: without space at their ends; LINE_END stands for `<br>`. element: the number of the element around
    a block. link_chars, bold_chars: of its text; links: the number of them.
    parent, tag, context, classes, own_classes, depth: of each element; context and classes have the bits of
    all elements around it.
    """

    texts: list[str]
    element: list[int]
    link_chars: list[int]
    bold_chars: list[int]
    links: list[int]
    parent: list[int]
    tag: list[int]
    context: list[int]
    classes: list[int]
    own_classes: list[int]
    depth: list[int]


def read_blocks(page: str) -> PageBlocks:
    """The blocks of a page in their order, without empty ones."""
    from . import html_blocks_numba as loops

    if BLOCK_END in page or LINE_END in page:
        page = page.translate(SEPARATORS)
    codes = np.frombuffer(page.encode("utf-32-le", "surrogatepass"), np.uint32)
    tags = np.empty((page.count("<") + 1, 6), np.int64)
    tags = tags[: loops.read_tags(codes, _names_of_elements(), tags)]
    text = np.empty(len(codes) + 2, np.uint32)
    blocks = np.empty((len(tags) + 1, 4), np.int64)
    elements = np.empty((len(tags) + 1, 6), np.int64)
    levels = MAX_OPEN, IMPLIED_LEVELS, FARTHEST
    length, num_blocks, num_elements = loops.read_elements(
        codes, tags, _names_of_elements(), _spaces(), levels, text, blocks, elements
    )
    texts = _texts(text[:length].tobytes().decode("utf-32-le", "surrogatepass"))
    kept = [number for number, text in enumerate(texts) if text.strip(EMPTY)]
    parent, tag, context, depth, start, end = elements[:num_elements].T.copy()
    own_classes = _own_classes(page, codes, start, end)
    classes = own_classes.copy()
    loops.add_to_inner(parent, classes)
    columns = (*blocks[:num_blocks][kept].T, parent, tag, context, classes, own_classes, depth)
    return PageBlocks([texts[number] for number in kept], *(column.tolist() for column in columns))


def _own_classes(page: str, codes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(E,) int64: class_bits of the attributes between two places, for each element."""
    from . import html_blocks_numba as loops

    places = np.stack([start, np.minimum(end, start + MAX_ATTRIBUTES)])
    own = np.zeros(len(start), np.int64)
    most = int((places[1] - places[0]).sum()) // 2 + 1
    uses, words = np.empty((most, 2), np.int64), np.empty((most, 3), np.int64)
    num_uses, num_words = loops.read_attributes(
        codes, places, _attribute_names(), _spaces(), own, (HIDDEN, ARIA_HIDDEN), uses, words
    )
    bits = np.zeros(num_words, np.int64)
    for number, (first, last, is_style) in enumerate(words[:num_words].tolist()):
        bits[number] = style_bits(page[first:last]) if is_style else word_bits(page[first:last])
    others = np.flatnonzero(own < 0)  # characters have other rules than those of ASCII
    own[others] = [class_bits(page[places[0, at] : places[1, at]]) for at in others.tolist()]
    loops.add_words(own, uses[:num_uses], bits)
    return own


def _texts(joined: str) -> list[str]:
    """The text of each block, without markup and further space."""
    if "&#" in joined:  # int() would refuse longer numbers
        joined = LONG_REFERENCE.sub("\ufffd", joined)
    return [" ".join(text.split()) for text in html.unescape(joined).split(BLOCK_END)[:-1]]


@functools.cache
def _attribute_names() -> np.ndarray:
    """(7, L) uint32: the code points of the names, and zeros."""
    names = [*WORD_ATTRIBUTES, "style", "hidden", "aria-hidden"]
    longest = max(map(len, names))
    return np.array([[*map(ord, name), *[0] * (longest - len(name))] for name in names], np.uint32)


@functools.cache
def _spaces() -> np.ndarray:
    """(12289,) bool: whether each character is space; those above are none."""
    return np.array([chr(code).isspace() for code in range(0x3001)])


@functools.cache
def _names_of_elements() -> Names:
    from . import html_blocks_numba as loops

    names = ["", *sorted(BLOCKS | RAW_TEXT | {"a", "b", "br", "strong"})]
    keys = [loops.name_key(np.array([*map(ord, name)], np.uint32), 0)[0] for name in names]
    size = next(size for size in itertools.count(len(keys)) if len({key % size for key in keys}) == len(keys))
    table = np.zeros(size, np.int16)
    table[[key % size for key in keys]] = range(len(keys))
    actions = [
        (loops.BLOCK if name in BLOCKS else 0)
        | (loops.VOID if name in VOID else 0)
        | (loops.RAW if name in RAW_TEXT else 0)
        | (loops.SCRIPT if name == "script" else 0)
        | (loops.NO_TEXT if name in WITHOUT_TEXT else 0)
        | (loops.PARAGRAPH if name == "p" else 0)
        | (loops.BREAK if name == "br" else 0)
        | (loops.LINK if name == "a" else 0)
        | (loops.BOLD if name in ("b", "strong") else 0)
        for name in names
    ]
    implied = np.zeros((len(names), len(names)), np.uint8)
    for name, (closed, barriers) in IMPLIED_ENDS.items():
        for other in barriers:
            implied[names.index(name), names.index(other)] = loops.ENDS_SEARCH
        for other in closed:
            implied[names.index(name), names.index(other)] = loops.CLOSES
    return loops.Names(
        np.array(keys, np.int64),
        table,
        np.array(actions, np.int64),
        np.array([TAGS.get(name, 0) for name in names], np.int64),
        np.array([CONTEXTS.get(name, 0) for name in names], np.int64),
        implied,
        np.asarray(implied.any(axis=1)),
    )


def class_bits(attributes: str) -> int:
    """What the attributes of a tag say of its element: bits for CLASS_WORDS, and for hidden ones."""
    bits = 0
    for name, *values in ATTRIBUTE.findall(attributes):
        value = values[0] or values[1] or values[2]
        name = name.lower()
        if name == "style":
            bits |= style_bits(value)
        elif name == "hidden":
            bits |= HIDDEN
        elif name == "aria-hidden":
            bits |= ARIA_HIDDEN if value == "true" else 0
        else:
            for word in value.lower().split():
                bits |= word_bits(word)
    return bits


@functools.lru_cache(maxsize=20_000)
def style_bits(style: str) -> int:
    return HIDDEN if INVISIBLE.search(style) else 0


def word_bits(word: str) -> int:
    return _bits_of_word(word[:100])


@functools.lru_cache(maxsize=50_000)
def _bits_of_word(word: str) -> int:
    return _bits_of_letters(word.lower().translate(NO_DIGITS))


@functools.lru_cache(maxsize=100_000)
def _bits_of_letters(word: str) -> int:
    if ANY_CLASS_WORD.search(word) is None:
        return 0
    return sum(1 << bit for bit, words in enumerate(CLASS_WORDS) if words.search(word))
