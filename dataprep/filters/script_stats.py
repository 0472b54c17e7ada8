"""Statistics of a text in any script, for the rules in languages other than English.

The words are those of dataprep/words.py (UAX 29), but that a number with its points, commas, colons, hyphens
and slashes is one word. Punctuation is a word too, a run of the same mark one word, unless it stands between
two letters or digits, as in `apt-get`, `l'eau` and URLs: FineWeb-2's thresholds are set on tokenizers that
leave most such words whole. In scripts without spaces between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese) each character with its marks is a piece of a word. Thresholds are set on words, so such a
piece counts as the part of a word in CHARS_PER_WORD, and n-grams are made of so many times more pieces.

Before anything is counted, a text is brought to form NFC, and characters that are not seen are left out:
marks of direction, joiners, soft hyphens. Two texts that look the same thus get the same verdict.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

import numpy as np
import regex

from ...core.numba_loops import compile_loop
from ...core.unicode import normalize
from .. import words
from ..words import ALONE, WORD
from .text_stats import (
    ALPHA,
    SPACE,
    TextStats,
    WordStats,
    character_classes,
    terminal,
    word_hashes,
)

# Part of the key of runs in languages other than English: other counts make other results.
SCRIPT_RULES = "NFC, UAX 29, parts of words"
# Characters of a word, marks not counted, in the scripts without spaces: between the averages of jieba for
# Chinese (1.9) and SudachiPy for Japanese (1.5), and those of PyThaiNLP and LaoNLP for Thai and Lao (4.1 and
# 4.2).
CHARS_PER_WORD = {"ideographic": 1.7, "complex": 4.0}
# Bits of a character's kind: a letter or digit that joins with its neighbours, one that is a piece of a word
# by itself, in Chinese and Japanese or in the scripts of South-East Asia, katakana, a mark.
LETTER, IDEOGRAPHIC, COMPLEX, KANA, MARK = 1, 2, 4, 8, 16
UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]+")
ZERO_WIDTH_SPACE = "\u200b"  # stands between words in some scripts without spaces
CLOSING_QUOTES = "\"'»”’›」』〞"
ELLIPSES = ("...", "…")
# Unicode's boundaries of sentences (UAX 29), without its rules for abbreviations: an ASCII full stop ends a
# sentence before white space and no lower-case letter, other terminal punctuation always. A match without a
# group is no boundary: it takes a long run of marks in one piece, which would be read again from each mark.
_CLOSE = r"[\p{Sentence_Break=Close}]*+"
SENTENCE_END = regex.compile(
    rf"(?V1)([\p{{Sentence_Break=STerm}}])++{_CLOSE}\s*+"
    rf"|[\p{{Sentence_Break=ATerm}}]++{_CLOSE}(?:(\s++)(?=\S)(?!\p{{Ll}}))?+"
)
_ALONE_CHARACTER = regex.compile(rf"(?V1){ALONE}")
_ATTACHED = regex.compile(rf"(?V1){ALONE}|\p{{Hangul}}")  # particles of Korean are written with their noun


def folded(text: str) -> str:
    """The text in form NFC, without characters that are not seen and without spaces at the ends of lines."""
    if text.isascii():
        return text.replace("\r\n", "\n")
    text = UNSEEN.sub("", normalize("NFC", text)).replace("\r\n", "\n")
    if ZERO_WIDTH_SPACE in text:
        text = "\n".join(line.strip(ZERO_WIDTH_SPACE) for line in text.split("\n"))
        text = text.replace(ZERO_WIDTH_SPACE, " ")
    return text


class ScriptStats(TextStats):
    """A folded text and its statistics. original: the text as it was."""

    def __init__(self, text: str):
        super().__init__(folded(text))
        self.original = text

    @functools.cached_property
    def _words_at_spaces(self) -> ScriptWords:
        return ScriptWords(self.codes, False)

    @functools.cached_property
    def _words_apart(self) -> ScriptWords:
        return ScriptWords(self.codes, True)

    def has_words(self, count: int, splitter: str) -> bool:
        return self.words(splitter).count >= count

    def line_counts(self, ends: str, short_line_chars: int) -> list[int]:
        """As in TextStats; "" stands for terminal punctuation, closing quotes and the ellipsis."""
        return super().line_counts(ends or line_ends(), short_line_chars)

    def distinct(self, listed: str, enough: int, splitter: str) -> int:
        whole, attached = _wanted(listed)
        count = self.words(splitter).distinct(whole, enough)
        return count + sum(word in self.text for word in attached if count < enough)

    @functools.cached_property
    def ends_lines(self) -> bool:
        """Whether the script ends sentences by punctuation. Thai and Lao do not, Khmer and Burmese rarely."""
        return not self._words_apart.mostly(COMPLEX)

    # of the rule c4

    def has_few_words(self, line: str, count: int) -> bool:
        """Whether a line has fewer words than count."""
        found = 0.0
        for word in WORD.finditer(line):
            found += _weight(word[0])
            if found >= count:
                return False
        return count > 0

    def has_longer_word(self, line: str, chars: int) -> bool:
        """Whether a line has a word of more than chars characters, between spaces or in such a script."""
        return max(map(len, _ALONE_CHARACTER.sub(" ", line).split()), default=0) > chars

    def ends_sentence(self, line: str) -> bool:
        """Whether a line ends as a sentence does, where the script shows it."""
        if not self.ends_lines:
            return True
        line = UNSEEN.sub("", line).rstrip()
        return line[-1:] in line_ends() and not line.endswith(ELLIPSES)

    def sentences(self, text: str) -> list[str]:
        """The sentences of a text, each with the white space after it."""
        cuts = [0, *_sentence_ends(text), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]

    def count_sentences(self, line: str, enough: int) -> int:
        """The number of sentences of a line; `enough` in a script that does not show them."""
        if not self.ends_lines:
            return enough
        inside = (1 for end in _sentence_ends(line) if end < len(line))
        return 1 + sum(itertools.islice(inside, enough - 1))


class ScriptWords(WordStats):
    """The words of a text in any script; pieces of words are counted as parts of one.

    count, symbols, plain_chars, unlettered: as in WordStats, but that count is a sum of parts.
    """

    def __init__(self, codes: np.ndarray, apart: bool):
        classes, kinds = character_classes(""), character_kinds()
        self.codes = codes
        self.starts, self.ends, self.pieces = compile_loop(_split)(codes, classes, kinds, apart)
        self._hash(codes, classes)
        ideographic, complex_ = self.pieces
        self.units = len(self.starts)
        of_ideographs = ideographic / CHARS_PER_WORD["ideographic"]
        of_complex = complex_ / CHARS_PER_WORD["complex"]
        self.count = self.units - ideographic - complex_ + of_ideographs + of_complex

    def mostly(self, kind: int) -> bool:
        """Whether more than half of the words are pieces of a kind, IDEOGRAPHIC or COMPLEX."""
        return 2 * self.pieces[0 if kind == IDEOGRAPHIC else 1] > self.units

    @property
    def stride(self) -> int:
        """As in WordStats: in scripts without spaces n-grams are of about as many words."""
        return 2 if self.mostly(IDEOGRAPHIC) else 4 if self.mostly(COMPLEX) else 1


def _sentence_ends(text: str) -> Iterator[int]:
    return (end.end() for end in SENTENCE_END.finditer(text) if end.lastindex)


@functools.cache
def line_ends() -> str:
    """The characters that end a line: Unicode's Sentence_Terminal, closing quotes, the ellipsis."""
    return "".join(sorted(terminal())) + CLOSING_QUOTES + "…"


def _weight(word: str) -> float:
    kind = character_kinds()[ord(word[0])]
    if kind & IDEOGRAPHIC:
        return 1 / CHARS_PER_WORD["ideographic"]
    return 1 / CHARS_PER_WORD["complex"] if kind & COMPLEX else 1.0


@functools.cache
def _wanted(listed: str) -> tuple[np.ndarray, list[str]]:
    """(hashes of the listed words, those that are sought anywhere in the text)."""
    whole, attached = [], []
    for word in filter(None, folded(listed).split(",")):
        if _ATTACHED.match(word):
            attached.append(word)
        else:
            whole.append((WORD.findall(word) or [word])[0])  # the article of `l'eau` is `l` here
    return word_hashes(whole), attached


@functools.cache
def character_kinds() -> np.ndarray:
    """uint8 (0x110000,): the bits LETTER to MARK of every code point."""
    bits = np.zeros(5, np.uint8)
    bits[[words.MARK, words.SINGLE, words.KANA, words.LETTER]] = MARK, IDEOGRAPHIC, KANA, LETTER
    table: np.ndarray = bits[words.kinds()]
    singles = np.flatnonzero(table == IDEOGRAPHIC)
    characters = "".join(map(chr, singles.tolist()))
    for run in regex.finditer(r"\p{Line_Break=SA}+", characters):
        table[singles[run.start() : run.end()]] = COMPLEX
    return table


def _split(
    codes: np.ndarray, classes: np.ndarray, kinds: np.ndarray, apart: bool
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """(starts, ends) of the words, int32 each, and the numbers of pieces (IDEOGRAPHIC, COMPLEX).

    apart: whether punctuation is split from letters; else only spaces and pieces end a word.
    """
    n = len(codes)
    starts, ends = np.empty(n, np.int32), np.empty(n, np.int32)
    count = ideographic = complex_ = i = 0
    while i < n:
        code = codes[i]
        if classes[code] & SPACE:
            i += 1
            continue
        kind = kinds[code]
        number = False
        if kind & (IDEOGRAPHIC | COMPLEX):
            inside = MARK
            if kind & IDEOGRAPHIC:
                ideographic += 1
            else:
                complex_ += 1
        elif kind & KANA:
            inside = KANA | MARK
        elif kind & LETTER:
            inside = LETTER | MARK
            number = apart and not classes[code] & ALPHA
        else:
            inside = MARK
        j, skip = i + 1, 0
        if apart or kind & (IDEOGRAPHIC | COMPLEX):
            same = inside == MARK and not kind & (IDEOGRAPHIC | COMPLEX)  # a run of one symbol
            while j < n:
                if number and classes[codes[j]] & ALPHA:
                    number = False
                if kinds[codes[j]] & inside or (same and codes[j] == code):
                    j += 1
                elif (
                    number
                    and j + 1 < n
                    and 0x2C <= codes[j] <= 0x3A
                    and not kinds[codes[j]]
                    and kinds[codes[j + 1]] & LETTER
                    and not classes[codes[j + 1]] & ALPHA
                ):  # , - . / : between digits
                    j += 2
                else:
                    break
            if inside & LETTER:
                inner = j  # punctuation up to the next letter belongs to no word
                while inner < n and not (classes[codes[inner]] & SPACE or kinds[codes[inner]]):
                    inner += 1
                if inner < n and kinds[codes[inner]] & LETTER:
                    skip = inner - j
        else:
            while j < n and not (classes[codes[j]] & SPACE or kinds[codes[j]] & (IDEOGRAPHIC | COMPLEX)):
                j += 1
        starts[count], ends[count] = i, j
        count += 1
        i = j + skip
    return starts[:count], ends[:count], (ideographic, complex_)
