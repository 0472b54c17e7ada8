"""Words of a text in any script, by the rules of Unicode: the unit of n-grams of dedup and decontaminate.

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
from collections.abc import Callable

import regex

# Marks, and the joiners that stand inside words of Persian and of Indic scripts (UAX 29, rule WB4).
_EXTEND = r"\p{M}\u200c\u200d"
# Characters that are words by themselves: UAX 29 breaks around ideographs and hiragana, and leaves the
# scripts of line-breaking class SA to dictionaries. A run of katakana is a word, also beside other letters.
_ALONE = r"[[\p{Ideographic}\p{Hiragana}\p{Line_Break=SA}]&&[\p{L}\p{N}]]"
_KATAKANA = r"[\p{Word_Break=Katakana}&&[\p{L}\p{N}]]"
_APART = rf"{_ALONE}[{_EXTEND}]*|(?:{_KATAKANA}[{_EXTEND}]*)+"  # words that do not go on in another alphabet
WORD = regex.compile(rf"(?V1){_APART}|(?:[[\p{{L}}\p{{N}}_]--{_ALONE}--{_KATAKANA}][{_EXTEND}]*)+")
_APART_WORD = regex.compile(rf"(?V1){_APART}")
_LEADING_MARKS = regex.compile(rf"(?V1)[{_EXTEND}]+")
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]")


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
