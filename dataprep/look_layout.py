"""Lays out the summary of `mt data look` (look.py) for a person: marks, line numbers, shortened texts.

With colours a mark is in reverse video, what only the removed text of a pair has is red, and what only the
survivor's has is green. Without colours they stand in `>>>` `<<<`, in `[-` `-]` and in `{+` `+}`, as
`git diff --word-diff` writes them. All texts are escaped (core/terminal.py).
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..core.terminal import Screen, escape_line
from .trace import CUT

MOST_ROWS = 24  # of a document that is not shown in full
AROUND = 60  # characters of a long line before and after a mark
LONG_MARK = 300  # characters; of a longer mark the beginning and the end are shown
MOST_FACTS = 200  # characters of a fact
GUTTER = 7  # cells of the number of a line
# SGR sequence, and what stands around a text without colours
STYLES = {
    "": ("", "", ""),
    "mark": ("\x1b[7m", ">>>", "<<<"),
    "removed": ("\x1b[31m", "[-", "-]"),
    "added": ("\x1b[32m", "{+", "+}"),
    "dim": ("\x1b[2m", "", ""),
    "bold": ("\x1b[1m", "", ""),
}


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of text in one style."""

    text: str
    style: str = ""


Row = list[Span]


def layout(summary: dict[str, Any], screen: Screen) -> str:
    """The text of a summary, escaped."""
    rows: list[Row] = []
    for stage in summary["stages"]:
        rows += _heading(stage, screen)
        for number, document in enumerate(stage["documents"], 1):
            rows += _document(document, f"{number}/{len(stage['documents'])}", screen, summary["full"])
        rows.append([])
    return "\n".join("".join(_rendered(span, screen) for span in row) for row in rows[:-1])


def _rendered(span: Span, screen: Screen) -> str:
    sequence = STYLES[span.style][0] if screen.colours else ""
    return f"{sequence}{span.text}\x1b[0m" if sequence else span.text


def _heading(stage: dict[str, Any], screen: Screen) -> Iterator[Row]:
    shown, noun = len(stage["documents"]), f"documents {stage['shows']}"
    if stage["shows"] == "pairs":
        noun = "pairs: removed text against its survivor's"
    title = f"mt {stage['stage']}" if "whole" not in stage else stage["stage"]
    yield from _wrapped([Span(title, "bold"), Span(f" ({escape_line(stage['folder'])})")], screen.columns)
    text = f"{shown:,} of {stage['of']:,} {noun}"
    if not stage.get("whole", True):
        text += "; there are more"
    if "reasons" in stage:
        text += ": " + ", ".join(f"{escape_line(r)} {n:,}" for r, n in stage["reasons"].items())
    if not shown:
        text += f" ({stage['looked_at']:,} records looked at, none fits)"
    yield from _wrapped([Span(text)], screen.columns)


def _document(document: dict[str, Any], number: str, screen: Screen, full: bool) -> Iterator[Row]:
    name = escape_line(document["id"])
    yield []
    yield from _wrapped([Span(f"{number}  ", "dim"), Span(name, "bold")], screen.columns)
    for line in _facts(document):
        yield from _wrapped([Span(line)], screen.columns)
    if "diff" in document:
        yield from _diff(document, screen, full)
    elif document["text"] is not None:
        yield from _body(document["text"], document.get("offending", []), screen, full)


def _facts(document: dict[str, Any]) -> Iterator[str]:
    """What is known about a document besides its text, in lines, escaped."""
    if "reason" in document and "diff" not in document:
        yield CUT if document["reason"] == CUT else f"removed: {escape_line(document['reason'])}"
    if "survivor" in document:
        similarity = document["similarity"]
        equal = f", similarity {similarity}" if similarity is not None else ""
        survivor = escape_line(str(document["survivor"]))
        yield f"removed: {escape_line(document['reason'])}, survivor {survivor}{equal}"
    if "language" in document:
        yield f"language: {document['language']['code']}, score {document['language']['score']:.2f}"
    yield from (escape_line(measured["text"]) for measured in document.get("measured", ()))
    for name, value in (document.get("facts") or document.get("fields") or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        more = "…" if len(shown) > MOST_FACTS else ""
        yield f"{escape_line(name)}: {escape_line(shown[:MOST_FACTS])}{more}"
    if document.get("note"):
        yield f"({escape_line(document['note'])})"


def _body(text: str, places: Sequence[Sequence[int]], screen: Screen, full: bool) -> Iterator[Row]:
    """The rows of a text with its lines numbered: all, or those around the marks."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    chosen: Iterable[int] = range(len(lines)) if full or not places else _around(places, starts, len(lines))
    before, rows = -1, 0
    for index in chosen:
        if not full and rows >= MOST_ROWS:
            break
        if index > before + 1:
            yield [Span(_skipped(index - before - 1), "dim")]
        start = starts[index]
        spans = _line(lines[index], _inside(places, start, starts[index + 1]), screen, full)
        wrapped = list(_wrapped(spans, screen.columns - GUTTER))
        cut = wrapped if full else wrapped[:MOST_ROWS]
        for continued, row in enumerate(cut):
            gutter = f"{index + 1 if not continued else '':>{GUTTER - 2}}  "
            yield [Span(gutter, "dim"), *row]
            rows += 1
        if len(cut) < len(wrapped):
            left = len(wrapped) - len(cut)
            yield [Span(f"{'⋮':>{GUTTER - 2}}  {left:,} more rows of this line; --full shows all", "dim")]
        before = index
    if before + 1 < len(lines):
        left = sum(1 for place in places if place[0] >= starts[before + 1])
        marked = f", {left:,} more marked places" if left else ""
        yield [Span(_skipped(len(lines) - before - 1, f"{marked}; --full shows all"), "dim")]


def _skipped(count: int, more: str = "") -> str:
    return f"{'⋮':>{GUTTER - 2}}  {count:,} {'line' if count == 1 else 'lines'}{more}"


def _around(places: Sequence[Sequence[int]], starts: list[int], count: int) -> Iterator[int]:
    """The lines with marks, and one before and after each, in order."""
    last = -1
    for start, end in places:
        first = bisect.bisect_right(starts, start) - 1
        final = bisect.bisect_left(starts, end) - 1
        for index in range(max(first - 1, last + 1, 0), min(final + 2, count)):
            yield index
            last = index


def _inside(places: Sequence[Sequence[int]], start: int, end: int) -> list[tuple[int, int]]:
    """The parts of the places that lie in [start, end), relative to the start."""
    first = bisect.bisect_right(places, start, key=lambda place: place[1])
    found = []
    for a, b in places[first:]:
        if a >= end:
            break
        found.append((max(a, start) - start, min(b, end) - start))
    return found


def _line(line: str, marks: Sequence[tuple[int, int]], screen: Screen, full: bool) -> list[Span]:
    """One line in spans. A long one is shortened to what is around its marks, or to its beginning."""
    spans: list[Span] = []
    place = 0
    for start, end in marks:
        spans.append(Span(line[place:start]))
        ended = line[start:end] + ("↵" if end > len(line) and not line[start:end].strip() else "")
        spans.append(Span(ended, "mark"))
        place = end
    spans.append(Span(line[place:]))
    if full or len(line) <= 3 * (screen.columns - GUTTER):
        return _styled(spans, screen)
    if not marks:
        return _styled(_cut([Span(line, "first")], 2 * (screen.columns - GUTTER)), screen)
    return _styled(_shortened(spans), screen)


def _shortened(spans: Sequence[Span]) -> Iterator[Span]:
    """The spans with the middle of long ones left out; of the first and last, what is far from the marks."""
    last = len(spans) - 1
    for index, span in enumerate(spans):
        if span.style:
            yield from _cut([span], LONG_MARK)
        elif index == 0:
            yield from _cut([Span(span.text, "last")], AROUND)
        elif index == last:
            yield from _cut([Span(span.text, "first")], AROUND)
        else:
            yield from _cut([span], 2 * AROUND)


def _cut(spans: Sequence[Span], chars: int) -> Iterator[Span]:
    """Spans of at most so many characters: the `first` ones, the `last` ones, or both ends."""
    for span in spans:
        text, style = span.text, "" if span.style in ("first", "last") else span.style
        if len(text) <= chars + 40:  # the note about what is left out takes as much
            yield Span(text, style)
            continue
        head = {"first": chars, "last": 0}.get(span.style, chars // 2)
        tail = chars - head
        yield Span(text[:head], style)
        left_out = f"{' …' if head else ''}({len(text) - chars:,} characters){'… ' if tail else ''}"
        yield Span(left_out, "dim")
        yield Span(text[len(text) - tail :], style)


def _diff(document: dict[str, Any], screen: Screen, full: bool) -> Iterator[Row]:
    """The rows of a pair: what both texts have, and what only one of them has."""
    removed, survivor = document["removed_text"], document["survivor_text"]
    if removed is None or survivor is None:
        return
    spans: list[Span] = []
    for tag, a, b, c, d in document["diff"]:
        if tag == "equal":
            spans.append(Span(removed[a:b]))
        else:
            spans += [Span(removed[a:b], "removed"), Span(survivor[c:d], "added")]
    if not full:
        spans = list(_shortened(spans)) if len(spans) > 1 else list(_cut(spans, 4 * AROUND))
    rows: Row = []
    shown = 0
    for span in _styled(spans, screen):
        first, *rest = span.text.split("\n")
        rows.append(Span(first, span.style))
        for line in rest:
            for row in _wrapped(rows, screen.columns - 2):
                yield [Span("  "), *row]
                shown += 1
            rows = [Span(line, span.style)]
            if not full and shown >= MOST_ROWS:
                yield [Span("  ⋮  --full shows all", "dim")]
                return
    for row in _wrapped(rows, screen.columns - 2):
        yield [Span("  "), *row]


def _styled(spans: Iterable[Span], screen: Screen) -> list[Span]:
    """The spans without empty ones and, where there are no colours, with marks around them."""
    found = []
    for span in spans:
        if span.text:
            _, before, after = STYLES[span.style] if not screen.colours else ("", "", "")
            found.append(Span(f"{before}{span.text}{after}", span.style))
    return found


def _wrapped(spans: Iterable[Span], columns: int) -> Iterator[Row]:
    """The spans in rows of at most so many cells, broken at spaces where there are some; escaped."""
    row: list[tuple[str, int, str]] = []  # (what is shown of a character, its cells, style)
    width = 0
    for span in spans:
        for character in span.text:
            shown = "    " if character == "\t" else escape_line(character)
            size = len(shown) if shown.isascii() else _cells(shown)
            if width + size > columns and size:
                space = next(
                    (i for i in range(len(row) - 1, len(row) // 2, -1) if row[i][0] == " "), len(row) - 1
                )
                yield _joined(row[: space + 1])
                row = row[space + 1 :]
                width = sum(cell[1] for cell in row)
            row.append((shown, size, span.style))
            width += size
    yield _joined(row)


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _joined(row: Iterable[tuple[str, int, str]]) -> Row:
    """The characters of a row as spans."""
    spans: Row = []
    for shown, _, style in row:
        if spans and spans[-1].style == style:
            spans[-1] = Span(spans[-1].text + shown, style)
        else:
            spans.append(Span(shown, style))
    return spans
