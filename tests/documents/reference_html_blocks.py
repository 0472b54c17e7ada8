"""The rules of html_blocks.py once more, tag by tag in Python: slow, and without numba."""

import html

from mt.documents.html_blocks import (
    BLOCK_END,
    BLOCKS,
    CONTEXTS,
    EMPTY,
    IMPLIED_ENDS,
    IMPLIED_LEVELS,
    LINE_END,
    LONG_REFERENCE,
    MAX_ATTRIBUTES,
    MAX_OPEN,
    SEPARATORS,
    TAGS,
    WITHOUT_TEXT,
    PageBlocks,
    class_bits,
)
from mt.documents.html_limits import FARTHEST, RAW_ENDS, RAW_TEXT, TOKEN, VOID, end_of_script


def read_blocks(page: str) -> PageBlocks:
    reader = _Reader()
    reader.read(page.translate(SEPARATORS))
    return reader.blocks()


class _Reader:
    """Reads tags one by one; pieces has the text so far."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.counts: list[tuple[int, int, int, int]] = []  # of each block: element, link, bold chars, links
        self.stack: list[tuple[str, int]] = [("", 0)]
        self.without_text = self.links = self.link_chars = self.bold_chars = 0
        self.in_link = self.in_bold = self.any_text = False
        self.parent, self.tag, self.context = [0], [0], [0]
        self.classes, self.own_classes, self.depth = [0], [0], [0]

    def read(self, page: str) -> None:
        at, search, pieces = 0, TOKEN.search, self.pieces
        while (token := search(page, at)) is not None:
            start = token.start()
            if start > at and not self.without_text:
                piece = page[at:start]
                pieces.append(piece)
                self.any_text = True
                if self.in_link or self.in_bold:
                    self._count(piece)
            at = token.end()
            end, name, attributes = token.group(1, 2, 3)
            if name is None:
                continue
            name = name.lower()
            if end:
                self._end(name)
            elif name in RAW_TEXT:
                at = self._after_raw_text(page, at, name)
            elif name in BLOCKS:
                self._start(name, attributes)
            elif name == "br":
                pieces.append(LINE_END)
            elif name == "a":
                self.in_link = True
                self.links += 1
            elif name in ("b", "strong"):
                self.in_bold = True
        if not self.without_text:
            pieces.append(page[at:])
            self.any_text = True
        self._end_block()

    def blocks(self) -> PageBlocks:
        joined = "".join(self.pieces)
        if "&#" in joined:  # int() would refuse longer numbers
            joined = LONG_REFERENCE.sub("\ufffd", joined)
        texts = [" ".join(text.split()) for text in html.unescape(joined).split(BLOCK_END)]
        kept = [number for number, text in enumerate(texts[:-1]) if text.strip(EMPTY)]
        columns = zip(*(self.counts[number] for number in kept)) if kept else ([], [], [], [])
        element, link_chars, bold_chars, links = map(list, columns)
        return PageBlocks(
            [texts[number] for number in kept],
            element,
            link_chars,
            bold_chars,
            links,
            self.parent,
            self.tag,
            self.context,
            self.classes,
            self.own_classes,
            self.depth,
        )

    def _count(self, piece: str) -> None:
        size = len(piece.strip())
        self.link_chars += size if self.in_link else 0
        self.bold_chars += size if self.in_bold else 0

    def _end_block(self) -> None:
        if self.any_text:
            self.pieces.append(BLOCK_END)
            self.counts.append((self.stack[-1][1], self.link_chars, self.bold_chars, self.links))
            self.any_text = False
        self.link_chars = self.bold_chars = self.links = 0
        self.in_link = self.in_bold = False

    def _close(self, place: int) -> None:
        for name, _ in self.stack[place:]:
            self.without_text -= name in WITHOUT_TEXT
        del self.stack[place:]

    def _start(self, name: str, attributes: str) -> None:
        self._end_block()
        if name in VOID:
            return
        stack = self.stack
        if name in IMPLIED_ENDS:
            closed, barriers = IMPLIED_ENDS[name]
            for place in range(len(stack) - 1, max(0, len(stack) - IMPLIED_LEVELS), -1):
                if stack[place][0] in closed:
                    self._close(place)
                    break
                if stack[place][0] in barriers:
                    break
        elif stack[-1][0] == "p":
            stack.pop()
        if len(stack) >= MAX_OPEN:
            return
        around = stack[-1][1]
        own = class_bits(attributes[:MAX_ATTRIBUTES])
        stack.append((name, len(self.parent)))
        self.parent.append(around)
        self.tag.append(TAGS.get(name, 0))
        self.context.append(self.context[around] | CONTEXTS.get(name, 0))
        self.classes.append(self.classes[around] | own)
        self.own_classes.append(own)
        self.depth.append(self.depth[around] + 1)
        self.without_text += name in WITHOUT_TEXT

    def _end(self, name: str) -> None:
        if name == "a":
            self.in_link = False
        elif name in ("b", "strong"):
            self.in_bold = False
        elif name in BLOCKS:
            self._end_block()
            stack = self.stack
            for place in range(len(stack) - 1, max(0, len(stack) - FARTHEST), -1):
                if stack[place][0] == name:
                    self._close(place)
                    return

    def _after_raw_text(self, page: str, at: int, name: str) -> int:
        if name == "script":
            return end_of_script(page, at)
        end = RAW_ENDS[name].search(page, at)
        return end.start() if end else len(page)
