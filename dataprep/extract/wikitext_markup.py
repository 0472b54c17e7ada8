"""Hide markup of wikitext that no parser can use: what is never closed, or is nested too deeply.

mwparserfromhell reads the rest of a page for each `[[` or `{{`, and begins again behind it if it is not
closed there. A page with thousands of them takes quadratic time. It is also limited to a depth of 100.
`split` finds such markup with one stack, in linear time, and replaces its brackets by control characters,
which XML does not contain. The parser takes them for text, as it does in the end with the markup itself, and
`SHOWN` of wikitext_tags.py turns them back. Tags and comments are resolved before (wikitext_tags.py).

Real pages have a few unclosed marks, which are left to the parser: pages with at most MAX_UNCLOSED are not
changed at all.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable

from .wikitext_tags import HIDDEN

MAX_UNCLOSED = 100
MAX_SPAN = 10_000  # characters of a piece, and of markup within one
MAX_DEPTH = 30  # some levels of markup take three of mwparserfromhell's 100
MAX_INDENT = 20
Span = tuple[int, int]
NAME = re.compile(r"[^{}|\[\]]{1,255}+(?=\||\}\})")  # of a template without markup in its name
# `|}` before one more brace is the end of a last, empty argument: `{{a|}}`.
TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}(?!\}(?!\}))|\[(?=[A-Za-z][A-Za-z+.-]*+:|//)")
# Marks of lists at the beginning of a line, each of which becomes an element inside the one before.
LIST_MARKS = re.compile(rf"^([*#:;]{{{MAX_DEPTH}}})[*#:;]++", re.MULTILINE)
CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|"}


def split(wikitext: str) -> list[str]:
    """The wikitext in pieces to parse one by one, their useless markup hidden; usually one piece.

    A wikitext with too much that is unclosed or nested too deeply is cut where no markup is open, after
    markup that spans more than MAX_SPAN characters is hidden too, since the rest can be useless as well.
    """
    wikitext = LIST_MARKS.sub(r"\1", wikitext)
    pairs, unclosed = _match(wikitext)
    too_deep = _deeper_than(MAX_DEPTH, pairs)
    if len(unclosed) <= MAX_UNCLOSED and len(too_deep) <= MAX_UNCLOSED:
        return [wikitext]
    useless = {*too_deep, *(pair for pair in pairs if pair[1] - pair[0] > MAX_SPAN)}
    characters = list(wikitext)
    for place in [*unclosed, *itertools.chain.from_iterable(useless)]:
        for i in (place, place + 1):
            characters[i] = characters[i].translate(HIDDEN)
    cuts, free = [0], 0  # free: where the markup before it ends
    for start, end in [*sorted({*pairs} - useless), (len(wikitext), len(wikitext))]:
        if start >= free:
            while start - max(free, cuts[-1]) > MAX_SPAN:
                cuts.append(max(free, cuts[-1]) + MAX_SPAN)
            if start - cuts[-1] > MAX_SPAN:
                cuts.append(start)
        free = max(free, end + 2 if end < len(wikitext) else end)
    return ["".join(characters[a:b]) for a, b in itertools.pairwise([*cuts, len(wikitext)])]


def outermost(wikitext: str, is_dropped: Callable[[str], bool]) -> list[Span]:
    """Start and end of what can be dropped before the parser runs, not inside one another, in order.

    That is each table, and each template whose name, as it is written, `is_dropped`. The parser makes an
    object of every cell and argument, so that articles without them take half the time.
    """
    found: list[Span] = []
    free = 0  # where the last one ends
    for start, end in sorted(_match(wikitext)[0]):
        if start < free:
            continue
        mark = wikitext[start : start + 2]
        if mark == "{|":
            dropped = _begins_line(wikitext, start) and _begins_line(wikitext, end)
        else:
            name = NAME.match(wikitext, start + 2) if mark == "{{" else None
            dropped = name is not None and name.end() <= end and is_dropped(name[0])
        if dropped:
            free = end + 2
            found.append((start, free))
    return found


def _begins_line(wikitext: str, place: int) -> bool:
    """Whether only white space and marks of indentation, not many, are before a place in its line."""
    before = wikitext[max(0, place - MAX_INDENT) : place]
    if "\n" not in before and place > MAX_INDENT:
        return False
    return not before.rpartition("\n")[2].strip(" \t:")


def _match(wikitext: str) -> tuple[list[Span], list[int]]:
    """(pairs of marks, unclosed opening marks): the places of both marks of a pair, of the opening one."""
    pairs: list[Span] = []
    unclosed: list[int] = []
    stack: list[tuple[str, int]] = []  # open marks and where they are
    num_open: Counter[str] = Counter()  # how often each is in the stack
    link_end = line_end = -1  # the next closing bracket and the next newline
    for token in TOKEN.finditer(wikitext):
        start, mark = token.start(), token[0]
        if mark == "[":  # a link to another site ends in its line
            if link_end <= start:
                link_end = wikitext.find("]", start) % (len(wikitext) + 1)
            if line_end <= start:
                line_end = wikitext.find("\n", start) % (len(wikitext) + 1)
            if link_end > line_end or link_end == len(wikitext):
                unclosed.append(start)
        elif mark not in CLOSES:
            stack.append((mark, start))
            num_open[mark] += 1
        else:
            opening = CLOSES[mark]
            while num_open[opening]:
                other, at = stack.pop()
                num_open[other] -= 1
                if other == opening:
                    pairs.append((at, start))
                    break
                unclosed.append(at)
    return pairs, [*unclosed, *(at for _, at in stack)]


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
