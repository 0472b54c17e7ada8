"""Words of a text in any script, by the rules of Unicode: the unit of n-grams and of counts.

A *word* is a run of letters, digits and underscores, with the combining marks that belong to them: vowel
signs in Hindi, vocalisation in Arabic and Hebrew, decomposed accents. These are the words of Unicode's
Standard Annex 29 (UAX 29), but that an apostrophe or a point always ends a word, as in `\\w+`. Scripts
without spaces between words (Chinese, Japanese kanji and hiragana, Thai, Lao, Khmer, Burmese ...) have no
words that can be found without a dictionary: there each character, with its marks, is a word.

Words are compared in lower case and in normalization form NFC, so that `é` is the same in one code point and
in two.
"""

from __future__ import annotations

import codecs
import functools
import re
import sys
from collections.abc import Callable, Sequence

import numpy as np
import regex

# Part of the key of runs that count words: other words make other results.
WORD_RULES = "UAX 29"
# Marks, and the joiners that stand inside words of Persian and of Indic scripts (UAX 29, rule WB4).
_EXTEND = r"\p{M}\u200c\u200d"
# Characters that are words by themselves: UAX 29 breaks around ideographs and hiragana, and leaves the
# scripts of line-breaking class SA to dictionaries. A run of katakana is a word, also beside other letters.
ALONE = r"[[\p{Ideographic}\p{Hiragana}\p{Line_Break=SA}]&&[\p{L}\p{N}]]"
_KATAKANA = r"[\p{Word_Break=Katakana}&&[\p{L}\p{N}]]"
_APART = rf"{ALONE}[{_EXTEND}]*|(?:{_KATAKANA}[{_EXTEND}]*)+"  # words that do not go on in another alphabet
WORD = regex.compile(rf"(?V1){_APART}|(?:[[\p{{L}}\p{{N}}_]--{ALONE}--{_KATAKANA}][{_EXTEND}]*)+")
_APART_WORD = regex.compile(rf"(?V1){_APART}")
_LEADING_MARKS = regex.compile(rf"(?V1)[{_EXTEND}]+")
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]")
# A table for bytes.translate: bytes of `word_bytes` that are in no word become spaces.
_WORDS_ONLY = bytes(b if b >= 0x80 or chr(b).isalnum() or b == ord("_") else 0x20 for b in range(256))
# Kinds of code points: outside words; marks, which belong to the character before; words by themselves;
# katakana; other characters of words.
OUTSIDE, MARK, SINGLE, KANA, LETTER = range(5)
# Letters and numbers are in planes 0 to 3; plane 14 has marks that select variants.
_PLANES = ((0, 0x40000), (0xE0000, 0xF0000))
FEW_RUNS = 1 + 1 / 16  # bytes of UTF-8 for each character


# (code points of texts, uint32; where each text ends, int64; the kind of every code point) -> the code points
# of their words, with spaces between two words and a newline between two texts.
Separate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def has_many_runs(text: str) -> bool:
    """Whether a text has so many runs of other alphabets that a call of a function for each takes long."""
    return not text.isascii() and len(text.encode()) > FEW_RUNS * len(text)


def texts_word_bytes(texts: Sequence[str], separate: Separate | None = None) -> list[bytes]:
    """`word_bytes` of each text, several times as fast for texts in other alphabets.

    Characters outside words are spaces in such a text, and its ASCII letters are in lower case.
    separate: `separate_words`, or a compiled function that does the same.
    """
    in_arrays = [has_many_runs(t) for t in texts]
    chosen_texts = [t for t, chosen in zip(texts, in_arrays) if chosen]
    separated = iter(_separated(chosen_texts, separate or separate_words))
    return [next(separated) if chosen else word_bytes(t) for t, chosen in zip(texts, in_arrays)]


def _separated(texts: Sequence[str], separate: Separate) -> list[bytes]:
    """UTF-8 of the lower-cased words of each text, with spaces between them."""
    if not texts:
        return []
    points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    words = separate(points, np.cumsum([len(t) for t in texts]), kinds())
    # Lower-cased last: the form of a sigma depends on where its word ends.
    return words.tobytes().decode("utf-32-le").lower().encode().split(b"\n")


def separate_words(points: np.ndarray, ends: np.ndarray, kind_of: np.ndarray) -> np.ndarray:
    """The code points of the words of texts, in numpy: a `Separate`."""
    points = np.insert(points, ends[:-1], ord("\n"))
    own_kinds = kind_of[points]
    is_mark = own_kinds == MARK
    bases = np.arange(len(points))
    bases[is_mark] = 0
    kinds = own_kinds[np.maximum.accumulate(bases)]  # a mark has the kind of its base
    in_word = kinds > MARK  # a mark at the very beginning has no base
    points = np.where(in_word, points, ord(" ")).astype("<u4", copy=False)
    points[ends[:-1] + np.arange(len(ends) - 1)] = ord("\n")
    # A word begins without a space before it where the kind changes, and at each single.
    begins = (kinds[1:] == SINGLE) & in_word[:-1] & ~is_mark[1:]
    begins |= (kinds[1:] != kinds[:-1]) & in_word[1:] & in_word[:-1]
    return np.insert(points, np.flatnonzero(begins) + 1, ord(" "))


@functools.cache
def kinds() -> np.ndarray:
    """The kind of each code point, uint8 (0x110000,)."""
    found = np.zeros(sys.maxunicode + 1, np.uint8)
    members = {LETTER: r"[\p{L}\p{N}_]", KANA: _KATAKANA, SINGLE: ALONE, MARK: f"[{_EXTEND}]"}
    for first, end in _PLANES:
        every = "".join(map(chr, range(first, end)))
        for kind, expression in members.items():
            for run in regex.finditer(f"(?V1){expression}+", every):
                found[first + run.start() : first + run.end()] = kind
    return found


def word_bytes(text: str) -> bytes:
    """UTF-8 of the lower-cased words of a text in form NFC, with other characters between them.

    ASCII characters stay as they are, upper case included. Of the others only those of words are left.
    Between two words there is a byte that is neither an ASCII letter, digit or underscore nor above 0x7f.
    """
    if text.isascii():
        return text.encode()
    if "Σ" in text:  # its lower case depends on the next character of the word
        return " ".join(WORD.findall(text)).lower().encode()
    return text.encode("ascii", "mt.word_bytes")


def count_words(text: str) -> int:
    """The number of words of a text."""
    return len(word_bytes(text).translate(_WORDS_ONLY).split())


def _lower_words(text: str, start: int, end: int) -> bytes:
    """A run of non-ASCII characters, text[start:end], in lower case, with spaces around its words."""
    run = text[start:end]
    encoded, has_marks = _lower_run(run) if end - start > CACHED_CHARS else _cached_run(run)
    if has_marks and not (start and _ASCII_WORD.match(text[start - 1])):
        return _lower_run(_LEADING_MARKS.sub("", run, 1) or " ")[0]  # marks of no word
    return encoded


def _lower_run(run: str) -> tuple[bytes, bool]:
    """(the run in lower case as it follows an ASCII letter, whether it begins with marks of that letter)."""
    words = WORD.findall(run)
    marks = _LEADING_MARKS.match(run)
    if not words:
        return (marks[0] if marks else "").encode() + (b"" if marks and marks[0] == run else b" "), bool(
            marks
        )
    # A word at either end may go on in ASCII, unless it is a character that is a word by itself.
    before = "" if run.startswith(words[0]) and not _APART_WORD.match(words[0]) else " "
    if marks:
        goes_on = run.startswith(words[0], marks.end()) and not _APART_WORD.match(words[0])
        before = marks[0] if goes_on else f"{marks[0]} "
    after = "" if run.endswith(words[-1]) and not _APART_WORD.match(words[-1]) else " "
    return f"{before}{' '.join(words)}{after}".lower().encode(), bool(marks)


CACHED_CHARS = 24  # most runs are a word, an accent or a dash, and occur again
_cached_run = functools.lru_cache(maxsize=1 << 16)(_lower_run)


# str.encode("ascii") skips ASCII characters ten times as fast as a regular expression. It calls an error
# handler with every run of other characters.
def register_encoder(name: str, encode: Callable[[str, int, int], bytes]) -> None:
    """Makes `text.encode("ascii", name)` call encode(text, start, end) for each run of other characters."""

    def handle(error: UnicodeError) -> tuple[bytes, int]:
        assert isinstance(error, UnicodeEncodeError), "only encoding calls this handler"
        return encode(error.object, error.start, error.end), error.end

    codecs.register_error(name, handle)


register_encoder("mt.word_bytes", _lower_words)
