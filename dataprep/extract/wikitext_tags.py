"""Resolve the comments and tags of wikitext before its templates and links are parsed.

MediaWiki's preprocessor does the same first. The content of some tags is no wikitext (`<math>`, `<nowiki>`,
`<pre>`): it is set aside, and a mark with its number stands for it until the text is finished. The content of
others is not part of the article's prose (`<ref>`, `<gallery>`) and is dropped. Tags of HTML only format;
they go, whether they are closed or not, and those of blocks (`<li>`, `<div>`) begin a new line.

Marks are control characters, which XML does not contain.
"""

from __future__ import annotations

import functools
import html.entities
import re
from collections import Counter

BREAK = "\x0b"  # a new line that is no line of the wikitext: markup of lists and headings cannot follow it
REMOVED = "\x1c"  # where something was removed
APOSTROPHE = "\x08"  # one that is no markup of italics
KEPT = re.compile("\x0e([0-9]+)\x0f")  # the number of a text that is set aside
# Characters of markup that are text, where a parser must not see them.
HIDDEN = str.maketrans("{}[]<'|>", "\x03\x04\x05\x06\x07\x08\x10\x11")
SHOWN = str.maketrans("\x03\x04\x05\x06\x07\x08\x10\x11", "{}[]<'|>")
# No input may contain our marks.
CONTROLS = str.maketrans(dict.fromkeys([*range(9), *range(11, 32)], None))

# Tags whose content is shown as it is written. In some of them character references are decoded.
VERBATIM = frozenset(("nowiki", "pre", "math", "chem", "ce", "syntaxhighlight", "source"))
UNDECODED = frozenset(("syntaxhighlight", "source"))
BLOCKS_OF_CODE = frozenset(("pre", "syntaxhighlight", "source"))
_OTHERS = """
gallery timeline imagemap score graph hiero style templatestyles templatedata section indicator includeonly
categorytree inputbox
"""
# Tags that are dropped with their content, and what they are called in the counts.
DROPPED = {
    "ref": "reference",
    "references": "reference_list",
    **dict.fromkeys(("maplink", "mapframe"), "map"),
    **{name: name for name in _OTHERS.split()},
}
_LINES = """
blockquote br caption center dd div dl dt figure figcaption h1 h2 h3 h4 h5 h6 hr li ol p poem section table
tbody td tfoot th thead tr ul
"""
BREAKING = frozenset(_LINES.split())
_INLINE = """
abbr b bdi bdo big cite code data del dfn em font i ins kbd link mark meta nobr noinclude onlyinclude q rb rbc
rp rt rtc ruby s samp small span strike strong sub sup time translate tt tvar u var wbr
"""
KNOWN = BREAKING | frozenset(_INLINE.split()) | VERBATIM | frozenset(DROPPED)
UNPAIRED = frozenset(
    ["br", "wbr", "hr", "meta", "link", "img", "li", "dt", "dd", "th", "td", "tr", "p"]
)  # need no end tag, or have none

_NAMES = "|".join(sorted(KNOWN, key=len, reverse=True))
_TAG = re.compile(rf"<!--|<(/?)({_NAMES})(?=[\s/>])([^<>]*+)>", re.I)
_TABLE = re.compile(r"<(/?)table(?=[\s/>])[^<>]*+>", re.I)
_PARAMETER = re.compile(r"(?<!\{)\{\{\{[^{}|\n]*\}\}\}")  # of a template, without a default
_SPACES_OF_POEMS = re.compile(r"(?<=\n)[ \t]*+(?=\n)|(?<=\n)[ \t]++(?!\n)(?=.)")
_POWER = re.compile(r"([-+\u2212\u2013]?[0-9]{1,9})</sup\s*>", re.I)
_SUPERSCRIPTS = str.maketrans("0123456789+-\u2212\u2013", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻")
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


def superscript(number: str) -> str:
    """Digits and signs as characters that stand high: "-2" as "⁻²"."""
    return number.translate(_SUPERSCRIPTS)


def decode(reference: str) -> str:
    """The character of `&name;`, `&#1;` or `&#x1;`; the reference itself if there is no such character."""
    if reference.startswith("&#"):
        digits = reference[2:-1]
        code = int(digits[1:], 16) if digits[0] in "xX" else int(digits)
        valid = code in (9, 10, 13) or (32 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF)
        return chr(code) if valid and not 0x7F <= code <= 0x9F else reference
    return html.entities.html5.get(reference[1:], reference)


def keep(text: str, kept: list[str]) -> str:
    """Sets a text aside; returns the mark that stands for it. kept: is extended."""
    kept.append(text)
    return f"\x0e{len(kept) - 1}\x0f"


def resolve(wikitext: str, kept: list[str], dropped: Counter[str]) -> str:
    """The wikitext without comments and tags. kept: gets texts set aside; dropped: gets counts by kind.

    No `<` is left: those of no known tag are hidden.
    """
    wikitext = wikitext.translate(CONTROLS)
    pieces: list[str] = []
    balance: Counter[str] = Counter()
    ends = _Ends(wikitext)
    place = code_end = poem_end = 0
    while token := _TAG.search(wikitext, place):
        pieces.append(_text(wikitext, place, token.start(), code_end, poem_end, kept))
        place = token.end()
        if token[0] == "<!--":
            end = wikitext.find("-->", place)
            place = len(wikitext) if end < 0 else end + 3
            dropped["comment"] += 1
            continue
        closes, name, attributes = token[1], token[2].lower(), token[3]
        if name in VERBATIM or name in DROPPED:
            inner: str
            ended: int | None
            if attributes.endswith("/") and not closes:
                inner, ended = "", place
            elif closes:
                inner, ended = "", None
            else:
                inner, ended = ends.content(name, place)
            if ended is None:
                dropped["unpaired_tag"] += 1
            elif name in DROPPED:
                dropped[DROPPED[name]] += 1
                pieces.append(REMOVED)
            else:
                pieces.append(_verbatim(name, attributes, inner, kept))
            place = place if ended is None else ended
            continue
        if name == "table" and not closes and (table_end := ends.of_table(token.start())) is not None:
            dropped["table"] += 1
            pieces.append(BREAK)
            place = table_end
            continue
        if name not in UNPAIRED and not attributes.endswith("/"):
            balance[name] += -1 if closes else 1
        if name == "code" and not closes and place >= code_end:
            code_end = ends.content(name, place)[1] or code_end
        if name == "poem" and not closes and place >= poem_end:
            poem_end = ends.content(name, place)[1] or poem_end
        if name == "sup" and not closes and (power := _POWER.match(wikitext, place)):
            balance[name] -= 1
            pieces.append(superscript(power[1]))
            place = power.end()
        elif name in BREAKING:
            pieces.append(BREAK)
    pieces.append(_text(wikitext, place, len(wikitext), code_end, poem_end, kept))
    if unpaired := sum(map(abs, balance.values())):
        dropped["unpaired_tag"] += unpaired
    return "".join(pieces)


def _text(wikitext: str, start: int, end: int, code_end: int, poem_end: int, kept: list[str]) -> str:
    """A text between tags.

    In `<code>`, which ends at code_end, two apostrophes are an empty string, and `{{{name}}}` stays, as a
    reader sees it: it is code of templates, or of a language with braces. In `<poem>`, which ends at
    poem_end, empty lines and spaces at the beginning of a line are shown.
    """
    text = wikitext[start:end].replace("<", "\x07")
    if start < poem_end:
        text = _SPACES_OF_POEMS.sub(lambda spaces: keep(spaces[0], kept), text)
    if start >= code_end:
        return text
    text = _PARAMETER.sub(lambda parameter: keep(parameter[0], kept), text)
    return text.replace("'", APOSTROPHE)


def _verbatim(name: str, attributes: str, inner: str, kept: list[str]) -> str:
    if name == "pre":
        inner = re.sub("</?nowiki ?>", "", inner)
    if name not in UNDECODED:
        inner = _REFERENCE.sub(lambda reference: decode(reference[0]), inner)
    if name not in BLOCKS_OF_CODE:
        if name != "nowiki":
            inner = inner.strip()
        is_block = re.search(r"display\s*=\s*[\"']?block", attributes) is not None
    else:
        inner = inner.strip("\n").rstrip()
        is_block = re.search(r"(?<![\w-])inline(?![\w-])", attributes) is None
    if not inner.strip():
        return inner
    mark = keep(inner.replace("\u00a0", " "), kept)
    return f"{BREAK}{mark}{BREAK}" if is_block else mark


class _Ends:
    """Where the elements of a wikitext end; all searches together read it once for each kind of tag."""

    def __init__(self, wikitext: str):
        self._wikitext = wikitext
        self._unclosed: set[str] = set()  # tags without a further end tag

    def content(self, name: str, place: int) -> tuple[str, int | None]:
        """(the content of an element that begins at a place, where it ends), or ("", None) if unclosed."""
        if name not in self._unclosed:
            if end := _end_tag(name).search(self._wikitext, place):
                return self._wikitext[place : end.start()], end.end()
            self._unclosed.add(name)
        return "", None

    def of_table(self, start: int) -> int | None:
        """Where the `<table>` at a place ends; None if it is unclosed."""
        return self._tables.get(start)

    @functools.cached_property
    def _tables(self) -> dict[int, int]:
        found: dict[int, int] = {}
        stack: list[int] = []
        for tag in _TABLE.finditer(self._wikitext):
            if not tag[1]:
                stack.append(tag.start())
            elif stack:
                found[stack.pop()] = tag.end()
        return found


@functools.cache
def _end_tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\s*+>", re.I)
