"""ftfy's result at the speed of not calling it: a gate that lets texts through that provably need nothing.

`repair(text)` equals `ftfy.fix_text(text)` for every text; most never reach ftfy, which reads 4 MB/s. ftfy
works on segments, lines of at most a million characters. It leaves a segment alone when all of these hold,
read off ftfy 6.3's list of fixes, and `needs_repair` asks for them in the order of their cost:

    no HTML entity that it may unescape              (it may while no `<` has been seen up to the segment's
        end)
    no character that one of its character maps names (quotes, ligatures, widths, line breaks, controls,
        surrogates)
    no mojibake: ftfy.badness.is_bad is false         (which takes two neighbours beyond ASCII, or one of a
        few letters)
    the segment is NFC

What does not pass is squeezed first: the middles of long runs of printable ASCII are taken out, ftfy mends
the rest, and they are put back. Nothing that ftfy does can tell the difference: its character maps and NFC
see a character and its neighbours, its expressions at most six ASCII characters, and where it encodes and
decodes a segment as a whole, all its encodings leave ASCII as it is. What can reach further (HTML entities,
terminal escapes) is left to ftfy whole. On the film reviews ftfy then reads 1 % of the characters, and repair
is 9 times as fast as ftfy where the gate alone is twice.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

import numpy as np

SEGMENT_CHARS = 1_000_000  # TextFixerConfig.max_decode_length
CONTEXT_CHARS = 16  # that stay on either side of what is taken out
LONG_RUN = re.compile(f"[ -~]{{{2 * CONTEXT_CHARS + 8},}}")
SHORT_CHARS = 200  # below which a search is quicker than numpy
MARK = "<~>"  # stands where something was; cannot overlap with itself
ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
# those that ftfy removes or makes a newline
ASCII_CONTROLS = bytes([*range(0x09), 0x0B, *range(0x0D, 0x20), 0x7F])


def repair(text: str) -> str:
    """ftfy.fix_text(text)."""
    if text.isascii() and not needs_repair(text):
        return text
    out, place, angle = [], 0, text.find("<")
    while place < len(text):
        end = text.find("\n", place) + 1 or len(text)
        end = min(end, place + SEGMENT_CHARS)
        unescape = not 0 <= angle < end
        out.append(_segment(text[place:end], unescape))
        place = end
    return "".join(out)


def _segment(segment: str, unescape: bool) -> str:
    if not needs_repair(segment, unescape):
        return segment
    if "&" in segment or "\x1b" in segment or MARK in segment:
        return _mended(segment, unescape)
    middles: list[str] = []

    def shorten(run: re.Match) -> str:
        middles.append(run[0][CONTEXT_CHARS:-CONTEXT_CHARS])
        return run[0][:CONTEXT_CHARS] + MARK + run[0][-CONTEXT_CHARS:]

    squeezed = LONG_RUN.sub(shorten, segment)
    if not middles:
        return _mended(segment, unescape)
    pieces = _mended(squeezed, unescape).split(MARK)
    if len(pieces) != len(middles) + 1 or any("&" in piece for piece in pieces):
        return _mended(segment, unescape)  # a wide ampersand or the like became part of something
    return "".join(itertools.chain.from_iterable(zip(pieces, middles))) + pieces[-1]


def _mended(segment: str, unescape: bool) -> str:
    # Curly quotes alone are the commonest fault by far: when nothing else is wrong before or after
    # straightening them, that is all ftfy's loop would do.
    straight = _gate().quote.sub(lambda found: _gate().quotes[found[0]], segment)
    if (
        straight != segment
        and not _damaged(segment, unescape, _gate().unsafe_but_quotes)
        and not needs_repair(straight, unescape)
    ):
        return straight
    import ftfy

    return ftfy.fix_and_explain(segment, ftfy.TextFixerConfig(explain=False, unescape_html=unescape)).text


def needs_repair(segment: str, unescape: bool = True) -> bool:
    """False only where ftfy would give the segment back unchanged. unescape: whether HTML entities count."""
    if segment.isascii():
        # deleting bytes and comparing lengths is ten times quicker than any search for a class
        raw = segment.encode()
        if len(raw.translate(None, ASCII_CONTROLS)) < len(raw):
            return True
        return unescape and "&" in segment and ENTITY.search(segment) is not None
    return _damaged(segment, unescape, _gate().unsafe)


def _damaged(segment: str, unescape: bool, unsafe: re.Pattern) -> bool:
    gate = _gate()
    if unescape and "&" in segment and ENTITY.search(segment):
        return True
    beyond, pairs = _beyond_ascii(segment) if len(segment) >= SHORT_CHARS else (segment, True)
    if beyond is None or unsafe.search(beyond) or not unicodedata.is_normalized("NFC", segment):
        return True
    return gate.risky.search(segment if pairs else beyond) is not None and gate.is_bad(segment)


def _beyond_ascii(segment: str) -> tuple[str | None, bool]:
    """(its characters beyond ASCII with spaces between, whether two of them touch); (None, ...) where ASCII
    itself needs repair.

    A search for a class of characters takes 20 ns a character, and this a tenth: nearly all of them are
    ASCII.
    """
    codes = np.frombuffer(segment.encode("utf-32-le", "surrogatepass"), np.uint32)
    raw = segment.encode("utf-8", "surrogatepass")
    if len(raw.translate(None, ASCII_CONTROLS)) < len(raw):
        return None, True
    places = np.flatnonzero(codes > 0x7F)
    return " ".join(map(chr, codes[places].tolist())), bool((places[1:] - places[:-1] == 1).any())


class _Gate:
    """Character classes made from ftfy's own tables, so that they cannot drift apart from the installed ftfy."""

    def __init__(self):
        from ftfy import badness, chardata

        quotes = [
            chr(c)
            for c in range(0x80, 0x3000)
            if chardata.SINGLE_QUOTE_RE.match(chr(c)) or chardata.DOUBLE_QUOTE_RE.match(chr(c))
        ]
        self.quotes = {c: "'" if chardata.SINGLE_QUOTE_RE.match(c) else '"' for c in quotes}
        self.quote = re.compile(f"[{''.join(quotes)}]")
        mapped = {
            *map(chr, chardata.LIGATURES),
            *map(chr, chardata.WIDTH_MAP),
            *map(chr, chardata.CONTROL_CHARS),
        }
        # Line and paragraph separators, C1 controls (NEXT LINE is one), carriage return, surrogates.
        named = "".join(map(re.escape, sorted(mapped))) + "\r\u2028\u2029\x80-\x9f\ud800-\udfff"
        self.unsafe_but_quotes = re.compile(f"[{named}]")
        self.unsafe = re.compile(f"[{named}{''.join(map(re.escape, quotes))}]")
        # Characters that take part in mojibake: every one beyond ASCII that ftfy's expression names or has in
        # a class.
        classes = re.compile(f"[{''.join(badness.MOJIBAKE_CATEGORIES.values())}]")
        clues = {c for c in badness.BADNESS_RE.pattern if ord(c) >= 0x80}
        clues |= {chr(c) for c in range(0x80, 0x10000) if classes.match(chr(c))}
        clue = "".join(map(re.escape, sorted(clues)))
        # Every alternative of the expression takes two adjacent clues, or one of these letters beside ASCII.
        self.risky = re.compile(f"[{clue}][{clue}]|[ÂÃŒœ]")
        self.is_bad = badness.is_bad


@functools.cache
def _gate() -> _Gate:
    return _Gate()
