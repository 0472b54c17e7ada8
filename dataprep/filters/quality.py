"""The published quality filters of Gopher, C4 and FineWeb, with the results of datatrove on the same words.

Each function takes a `TextStats` and returns the reason to drop the text, or None; `c4` is an edit.
Thresholds are those of the papers named below and of datatrove 0.10, whose parameters all have a counterpart
here; where the two differ, datatrove's value is the default and the paper's is documented. Ratios are
computed by the same divisions, so that a text exactly on a threshold gets the same result. In the Gopher
filters a threshold of 0 disables its test. `words` is the word splitter (text_stats.py).

The defaults are those for English. For other languages rules.py replaces them (thresholds.py), and the
functions get a `ScriptStats`, which counts words, lines and sentences of any script.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Literal, Protocol

from .boilerplate import policy_phrases
from .script_stats import ScriptStats
from .text_stats import TextStats, duplicates

WordSplitter = Literal["space", "apart"]
SHORT_LINE_CHARS = 30
END_PUNCTUATION = (".", "!", "?", '"', "'")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
# The boundary between two sentences, but not after an initial or inside an ellipsis. The number of sentences
# is that of spaCy's sentencizer, which datatrove uses, in 9 of 10 lines; C4's own code uses NLTK.
# A match without the group is no boundary: it takes a long run such as `!!!!!!!!!` in one piece, which would
# otherwise be read again from each of its marks.
SENTENCE_END = re.compile(
    r"[.!?](?:(?<=[!?])|(?<![A-Z.]\.)|(?<=[A-Z][A-Z]\.))"
    r"(?:[!?\"'”’)\]]*+(\s++(?=\S)|(?=(?<=[a-z]\.)[A-Z]))|[!?\"'”’)\]]{8,}+)"
)


class Drop(str):
    """The reason to drop a document, as a type of its own that a text cannot be mistaken for."""

    __slots__ = ()


def gopher_quality(
    view: TextStats,
    *,
    min_words: int = 50,
    max_words: int = 100_000,
    min_mean_word: float = 3.0,
    max_mean_word: float = 10.0,
    max_symbols_per_word: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_alphabetic_words: float = 0.8,
    min_stop_words: int = 2,
    stop_words: str = "the,be,to,of,and,that,have,with",
    words: WordSplitter = "space",
) -> str | None:
    """The quality filter of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A1.1), with its thresholds.

    Words of symbols only do not count, except in the ratios per word, as in FineWeb's pipeline. stop_words:
    separated by commas; at least min_stop_words different ones must occur.
    """
    text, found = view.text, view.words(words)
    plain = found.count - found.symbols
    if not found.count or (min_words and plain < min_words):
        return "gopher_too_few_words"
    if max_words and plain > max_words:
        return "gopher_too_many_words"
    mean = found.plain_chars / plain if plain else 0.0
    if plain and ((min_mean_word and mean < min_mean_word) or (max_mean_word and mean > max_mean_word)):
        return "gopher_mean_word_length"
    if max_symbols_per_word and text.count("#") / found.count > max_symbols_per_word:
        return "gopher_hashes"
    if max_symbols_per_word and (text.count("...") + text.count("…")) / found.count > max_symbols_per_word:
        return "gopher_ellipses"
    lines, bullets, ellipses = view.line_counts("", SHORT_LINE_CHARS)[:3]  # as `fineweb` asks, so once
    if max_bullet_lines and bullets / lines > max_bullet_lines:
        return "gopher_bullet_lines"
    if max_ellipsis_lines and ellipses / lines > max_ellipsis_lines:
        return "gopher_ellipsis_lines"
    if min_alphabetic_words and (found.count - found.unlettered) / found.count < min_alphabetic_words:
        return "gopher_not_alphabetic"
    if min_stop_words and view.distinct(stop_words, min_stop_words, words) < min_stop_words:
        return "gopher_stop_words"
    return None


def gopher_repetition(
    view: TextStats,
    *,
    max_dup_lines: float = 0.3,
    max_dup_paragraphs: float = 0.3,
    max_dup_line_chars: float = 0.2,
    max_dup_paragraph_chars: float = 0.2,
    max_top_2gram: float = 0.2,
    max_top_3gram: float = 0.18,
    max_top_4gram: float = 0.16,
    max_dup_5gram: float = 0.15,
    max_dup_6gram: float = 0.14,
    max_dup_7gram: float = 0.13,
    max_dup_8gram: float = 0.12,
    max_dup_9gram: float = 0.11,
    max_dup_10gram: float = 0.10,
    words: WordSplitter = "space",
) -> str | None:
    """The repetition filter of Gopher (arXiv 2112.11446, table A1), with its thresholds.

    Ratios of n-grams are ratios of characters: those of the most frequent 2-, 3- and 4-gram with the spaces
    inside it, and those of 5- to 10-grams that have occurred before, without spaces, each word counted once.
    """
    text = view.text
    if not text:
        return "empty"
    chars = len(text)
    stripped = text.strip()
    if "\n\n" in stripped:
        paragraphs = split_at_runs(stripped, 2)
        count, repeated = duplicates(paragraphs)
        if max_dup_paragraphs and count / len(paragraphs) > max_dup_paragraphs:
            return "repeated_paragraphs"
        if max_dup_paragraph_chars and repeated / chars > max_dup_paragraph_chars:
            return "repeated_paragraph_chars"
    if "\n" in text:
        lines = split_at_runs(text, 1)
        count, repeated = duplicates(lines)
        if max_dup_lines and count / len(lines) > max_dup_lines:
            return "repeated_lines"
        if max_dup_line_chars and repeated / chars > max_dup_line_chars:
            return "repeated_line_chars"
    limits = (
        max_top_2gram,
        max_top_3gram,
        max_top_4gram,
        max_dup_5gram,
        max_dup_6gram,
        max_dup_7gram,
        max_dup_8gram,
        max_dup_9gram,
        max_dup_10gram,
    )
    for n, limit, taken in zip(range(2, 11), limits, view.words(words).repetition):
        if limit and taken / chars > limit:
            return f"top_{n}gram" if n <= 4 else f"repeated_{n}grams"
    return None


def fineweb(
    view: TextStats,
    *,
    min_punctuated_lines: float = 0.12,
    allow_unpunctuated: bool = False,
    line_ends: str = "",
    max_short_lines: float = 0.67,
    short_line_chars: int = SHORT_LINE_CHARS,
    max_dup_line_chars: float = 0.01,
    max_newlines_per_word: float = 0.3,
    words: WordSplitter = "apart",
) -> str | None:
    """FineWeb's own quality filters (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

    The thresholds are those of the released pipeline. It allows at most 0.01 of the characters in repeated
    lines (the paper's text says 0.1), and also limits newlines per word. line_ends: the characters that a
    line should end with, without separators (default: Unicode's Sentence_Terminal). allow_unpunctuated: keep
    a text if none of its lines ends with one.
    """
    _, _, _, lines, ended, short = view.line_counts(line_ends, short_line_chars)
    if not lines:
        return "empty"
    if ended / lines < min_punctuated_lines and not (ended == 0 and allow_unpunctuated):
        return "fineweb_unpunctuated_lines"
    if short / lines > max_short_lines:
        return "fineweb_short_lines"
    newlines = view.text.count("\n")
    if lines > 1 and duplicates(view.lines)[1] / (len(view.text) - newlines) > max_dup_line_chars:
        return "fineweb_repeated_lines"
    # With so many words it is kept; to count all would take ten times as long.
    needed = newlines / max_newlines_per_word if max_newlines_per_word > 0 else math.inf
    if needed < len(view.text):
        enough = int(needed) + 1
        if newlines / enough <= max_newlines_per_word and view.has_words(enough, words):
            return None
    if newlines / view.words(words).count > max_newlines_per_word:
        return "fineweb_list"
    return None


def c4(
    view: TextStats,
    *,
    split: Literal["lines", "sentences"] = "lines",
    terminal_punctuation: bool = True,
    min_sentences: int = 5,
    min_words_per_line: int = 3,
    max_word_chars: int = 1000,
    citations: bool = True,
    lorem_ipsum: bool = True,
    javascript: bool = True,
    curly_bracket: bool = True,
    policy: bool = True,
) -> str:
    """The filter of C4 (Raffel et al. 2020, JMLR 21/140, section 2.2), as an edit with its code's thresholds.

    A line is removed if it does not end in terminal punctuation (or ends in an ellipsis), has few words or an
    overlong one, or mentions JavaScript, cookies or terms of use. `[1]`, `[edit]` and `[citation needed]` are
    removed from the others. The page is dropped if it contains lorem ipsum or a curly bracket, or if too few
    sentences are left. Each test can be disabled by `false` or 0. split: filter sentences instead of lines,
    and join the remaining ones with spaces. C4's list of bad words, its language filter and its
    three-sentence deduplication are not included; the latter two are separate rules and commands.

    In other languages than English, words, sentences and their ends are those of the script. In a script
    without punctuation at the ends of sentences, as Thai, neither ends nor numbers of sentences are tested.
    """
    text, rules = view.original, line_rules(view)
    whole = text.lower()
    javascript, lorem_ipsum = javascript and "javascript" in whole, lorem_ipsum and "lorem ipsum" in whole
    policies = policy_phrases(whole) if policy else []
    citations, curly_bracket = citations and "[" in text, curly_bracket and "{" in text
    has_few_words, kept = rules.has_few_words, []
    for line in text.splitlines() if split == "lines" else rules.sentences(text):
        line = line.strip()
        if 0 < max_word_chars < len(line) and rules.has_longer_word(line, max_word_chars):
            continue
        few = min_words_per_line > 0 and has_few_words(line, min_words_per_line)
        if citations and "[" in line:
            line = CITATION.sub("", line)
        if terminal_punctuation and not rules.ends_sentence(line):
            continue
        if few:
            continue
        if lorem_ipsum and "lorem ipsum" in line.lower():
            return Drop("c4_lorem_ipsum")
        if javascript and "javascript" in line.lower():
            continue
        if curly_bracket and "{" in line:
            return Drop("c4_curly_bracket")
        if policies and any(phrase in line.lower() for phrase in policies):
            continue
        kept.append(line)
    count = len(kept)  # a line has at least one sentence, and most texts have enough lines
    if split == "lines" and count < min_sentences:
        count = 0
        for line in kept:
            count += rules.count_sentences(line, min_sentences)
            if count >= min_sentences:
                break
    if count < min_sentences:
        return Drop("c4_too_few_sentences")
    return ("\n" if split == "lines" else " ").join(kept).strip()


def c4_paragraphs(view: TextStats, *, min_paragraphs: int = 3, min_chars: int = 200) -> str | None:
    """mC4: at least min_paragraphs lines of min_chars (Xue et al. 2021, arXiv 2010.11934, section 3.1)."""
    long_lines = (None for line in view.text.split("\n") if len(line) >= min_chars)
    count = sum(1 for _ in itertools.islice(long_lines, min_paragraphs))
    return "c4_too_few_paragraphs" if count < min_paragraphs else None


class LineRules(Protocol):
    """What `c4` asks of a line. The lines have no white space around them."""

    def has_few_words(self, line: str, count: int) -> bool: ...
    def has_longer_word(self, line: str, chars: int) -> bool: ...
    def ends_sentence(self, line: str) -> bool: ...
    def sentences(self, text: str) -> list[str]: ...
    def count_sentences(self, line: str, enough: int) -> int: ...


class English:
    """The `LineRules` of English: those of C4's code."""

    @staticmethod
    def has_few_words(line: str, count: int) -> bool:
        return len(line.split(None, count - 1)) < count

    @staticmethod
    def has_longer_word(line: str, chars: int) -> bool:
        return _has_longer_word(line, chars)

    @staticmethod
    def ends_sentence(line: str) -> bool:
        return line.endswith(END_PUNCTUATION) and not line.endswith("...")

    @staticmethod
    def sentences(text: str) -> list[str]:
        return sentences(text)

    @staticmethod
    def count_sentences(line: str, enough: int) -> int:
        return count_sentences(line, enough)


def line_rules(view: TextStats) -> LineRules:
    return view if isinstance(view, ScriptStats) else English()


def split_at_runs(text: str, least: int) -> list[str]:
    """The same as re.split(r"\n{least,}", text), for one or two newlines, in a tenth of the time."""
    newlines = "\n" * least
    if newlines + "\n" not in text:
        return text.split(newlines)
    return re.split(rf"\n{{{least},}}", text)


def _has_longer_word(line: str, chars: int) -> bool:
    # A word of more than `chars` fills at least one block of half that length, and few blocks have no space.
    half = max(chars // 2, 1)
    if all(line.find(" ", i, i + half) >= 0 for i in range(0, len(line), half)):
        return False
    return max(map(len, line.split())) > chars


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the whitespace after it."""
    cuts = [0, *(end.end() for end in SENTENCE_END.finditer(text) if end.lastindex), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def count_sentences(line: str, enough: int) -> int:
    """The number of sentences in a line without surrounding whitespace; stops counting at `enough`."""
    ends = (1 for end in SENTENCE_END.finditer(line) if end.lastindex)
    return 1 + sum(itertools.islice(ends, enough - 1))
