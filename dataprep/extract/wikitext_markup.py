"""Hide markup of wikitext that no parser can use: what is never closed, or is nested too deeply.

mwparserfromhell reads the rest of a page for each `<div>`, `[[` or `{{`, and begins again behind it if it is
not closed there. A page with thousands of them takes quadratic time: 20,000 unclosed `<div>` take 15 s. It is
also limited to a depth of 100. `split` finds such markup with one stack, in linear time, and replaces its
brackets by control characters, which XML does not contain. The parser takes them for text, as it does in the
end with the markup itself, and `SHOWN` turns them back.

Real pages have a few unclosed tags, which are left to the parser: pages with at most MAX_UNCLOSED are not
changed at all.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter

MAX_UNCLOSED = 100
MAX_SPAN = 10_000  # characters of a piece, and of markup within one
MAX_DEPTH = 30  # some levels of markup take three of mwparserfromhell's 100
Span = tuple[int, int]
HIDDEN = str.maketrans("{}[]<", "\x03\x04\x05\x06\x07")
SHOWN = str.maketrans("\x03\x04\x05\x06\x07", "{}[]<")
TOKEN = re.compile(
    r"<!--|\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?[^\s!<>/|{}\[\]][^\s<>/|{}\[\]]*+|\[(?=[A-Za-z][A-Za-z+.-]*+:|//)"
)
# Marks of lists at the beginning of a line, each of which becomes an element inside the one before.
LIST_MARKS = re.compile(rf"^([*#:;]{{{MAX_DEPTH}}})[*#:;]++", re.MULTILINE)
CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|"}
# Tags that need no end tag, or have none.
SINGLE = frozenset(("br", "wbr", "hr", "meta", "link", "img", "li", "dt", "dd", "th", "td", "tr"))


# the end of a start tag; an angle bracket before it means that there is none
TAG_END = re.compile(r"[^<>]*+>")


def split(wikitext: str) -> list[str]:
    """The wikitext in pieces to parse one by one, their useless markup hidden; usually one piece.

    A wikitext with too much that is unclosed or nested too deeply is cut where no markup is open, after
    markup that spans more than MAX_SPAN characters is hidden too, since the rest can be useless as well.
    """
    wikitext = LIST_MARKS.sub(r"\1", wikitext)
    pairs, unclosed, unparsed = _match(wikitext)
    too_deep = _deeper_than(MAX_DEPTH, pairs)
    if len(unclosed) <= MAX_UNCLOSED and len(too_deep) <= MAX_UNCLOSED:
        return [wikitext]
    useless = {*too_deep, *(pair for pair in pairs if pair[1] - pair[0] > MAX_SPAN)}
    characters = list(wikitext)
    for place in [*unclosed, *itertools.chain.from_iterable(useless)]:
        for i in (place, place + 1):
            characters[i] = characters[i].translate(HIDDEN)
    cuts, free = [0], 0  # free: where the markup before it ends
    for start, end in [*sorted({*pairs, *unparsed} - useless), (len(wikitext), len(wikitext))]:
        if start >= free:
            while start - max(free, cuts[-1]) > MAX_SPAN:
                cuts.append(max(free, cuts[-1]) + MAX_SPAN)
            if start - cuts[-1] > MAX_SPAN:
                cuts.append(start)
        free = max(free, _end_of_mark(wikitext, end))
    return ["".join(characters[a:b]) for a, b in itertools.pairwise([*cuts, len(wikitext)])]


def _match(wikitext: str) -> tuple[list[Span], list[int], list[Span]]:
    """(pairs of marks, unclosed opening marks, comments and tags whose content is not parsed).

    A pair is the start of the opening and of the closing mark, a comment its start and end.
    """
    from mwparserfromhell import definitions

    pairs: list[Span] = []
    unclosed: list[int] = []
    unparsed: list[Span] = []
    stack: list[tuple[str, int]] = []  # open marks and where they are
    num_open: Counter[str] = Counter()  # how often each is in the stack
    exhausted: set[str] = set()  # ends of comments and of unparsed tags that do not occur any more
    link_end = line_end = -1  # the next closing bracket and the next newline
    place = 0
    for token in TOKEN.finditer(wikitext):
        start, mark = token.start(), token[0]
        if start < place:  # inside a comment or an unparsed tag
            continue
        place = token.end()
        if mark == "<!--":
            end = _end_of("-->", wikitext, place, exhausted)
            if end is None:
                unclosed.append(start)
            else:
                place = end
                unparsed.append((start, end))
            continue
        if mark == "[":  # a link to another site ends in its line
            if link_end < place:
                link_end = wikitext.find("]", place) % (len(wikitext) + 1)
            if line_end < place:
                line_end = wikitext.find("\n", place) % (len(wikitext) + 1)
            if link_end > line_end or link_end == len(wikitext):
                unclosed.append(start)
            continue
        if mark in CLOSES or mark.startswith("</"):
            opening = CLOSES.get(mark) or f"<{mark[2:].lower()}"
            while num_open[opening]:
                other, at = stack.pop()
                num_open[other] -= 1
                if other == opening:
                    pairs.append((at, start))
                    break
                unclosed.append(at)
            continue
        if mark[0] == "<":
            mark = mark.lower()
            if mark[1:] in SINGLE:
                continue
            tag_end = TAG_END.match(wikitext, place)
            if tag_end is None:
                unclosed.append(start)
                continue
            if tag_end[0].endswith("/>"):
                continue
            if not definitions.is_parsable(mark[1:]):
                end = _end_of(f"</{mark[1:]}", wikitext, tag_end.end(), exhausted)
                if end is None:
                    unclosed.append(start)
                else:
                    place = end
                    # the bracket of the end tag follows
                    unparsed.append((start, end + 1))
                continue
        stack.append((mark, start))
        num_open[mark] += 1
    return pairs, [*unclosed, *(at for _, at in stack)], unparsed


def _end_of_mark(wikitext: str, place: int) -> int:
    """Where a closing mark ends that begins at a place; the place itself if none begins there."""
    if wikitext.startswith("</", place):
        tag_end = TAG_END.match(wikitext, place + 1)
        return tag_end.end() if tag_end else place + 2
    return place + 2 if wikitext.startswith(("}}", "]]", "|}"), place) else place


def _end_of(mark: str, wikitext: str, place: int, exhausted: set[str]) -> int | None:
    """Where the next `mark` ends, in any case of letters; None if there is none. exhausted: is extended."""
    if mark in exhausted:
        return None
    found = re.compile(re.escape(mark), re.IGNORECASE).search(wikitext, place)
    if found is None:
        exhausted.add(mark)
        return None
    return found.end()


def _deeper_than(depth: int, pairs: list[Span]) -> list[Span]:
    """The pairs inside at least `depth` others."""
    found: list[Span] = []
    ends: list[int] = []  # of the pairs around a place
    for start, end in sorted(pairs):
        while ends and ends[-1] < start:
            ends.pop()
        if len(ends) >= depth:
            found.append((start, end))
        ends.append(end)
    return found
