"""rules of `clean`: a rule is a function that returns the reason to drop, or None; an edit returns the mended text.

The list in the setting `rules` is applied from top to bottom. An item is a name, followed by parameters where the
defaults do not fit: `gopher_quality min_words=20 max_words=1_000_000`. The functions below and their keyword
arguments are that language; the thresholds are those of the papers named in their docstrings. A *word* is what
whitespace separates, as in the Gopher paper.
"""

from __future__ import annotations

import collections
import functools
import inspect
import re
from collections.abc import Callable, Sequence

import numpy as np
import yaml

from ..config import UserError, nearest
from .boilerplate import POLICY_PHRASES, without_boilerplate
from .boilerplate import unique_lines as drop_repeated_lines
from .language import language as detect_language
from .language import languages
from .redact import redact as redact_text
from .repair import repair

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
END_PUNCTUATION = (".", "!", "?", '"', "'")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")


class Drop(str):
    """The reason why a document goes."""

    __slots__ = ()


class Text:
    """A text with the views of it that several rules share, each made once."""

    def __init__(self, text: str):
        self.text = text

    @functools.cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """The lines that hold more than whitespace."""
        return [line for line in self.text.split("\n") if line.strip()]


def compile_rules(items: Sequence[str]) -> Callable[[str], str]:
    """A function from a text to the mended text, or to the `Drop` that says why it goes.

    Its attribute `edited` counts the texts that each edit changed. Raises UserError for an unknown name or parameter.
    """
    steps = [_step(item) for item in items]
    edited = {name: 0 for name, _, is_edit in steps if is_edit}

    def apply(text: str) -> str:
        view = Text(text)
        for name, function, is_edit in steps:
            outcome = function(view)
            if isinstance(outcome, Drop):
                return outcome
            if not is_edit:
                if outcome is not None:
                    return Drop(outcome)
            elif outcome != view.text:
                edited[name] += 1
                view = Text(outcome)
        return view.text

    apply.edited = edited
    return apply


def _step(item: str) -> tuple[str, Callable, bool]:
    """(name, function of a Text, whether it edits) of one item of the list."""
    name, *pairs = item.split() or [""]
    function = {**RULES, **EDITS}.get(name)
    if function is None:
        raise UserError(f"rules: {item!r}: no such rule{nearest(name, [*RULES, *EDITS])}; the rules are {', '.join(sorted([*RULES, *EDITS]))}")
    known = {k: p.default for k, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    parameters = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"rules: {item!r}: {name} has no parameter {key!r}{nearest(key, known)}; {takes}")
        parameters[key] = _value(item, key, value if equals else None, known[key])
    for code in parameters["keep"].split(",") if "keep" in parameters else ():
        if code not in languages():
            raise UserError(f"rules: {item!r}: {code!r} is not a language that is known{nearest(code, languages())}; write ISO codes, as in keep=en,de")
    return name, functools.partial(function, **parameters), name in EDITS


def _value(item: str, key: str, text: str | None, default):
    """A parameter's value, of the type of its default."""
    if isinstance(default, str) and text:
        return text
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = None
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[type(default)]
    fits = isinstance(value, bool) if isinstance(default, bool) else isinstance(value, int if isinstance(default, int) else int | float) and not isinstance(value, bool)
    if isinstance(default, str) or not fits:
        raise UserError(f"rules: {item!r}: {key} must be {wanted}, as in {key}={str(default).lower()}")
    return type(default)(value)


def length(view: Text, *, min_chars: int = 0, max_chars: int = 0, min_words: int = 0, max_words: int = 0) -> str | None:
    """Too short or too long, in characters or words; 0 is no limit.

    Megatron-LM's openwebtext tools: 512 characters, or 128 GPT-2 tokens (about 512 characters of English).
    """
    chars = len(view.text)
    if chars < min_chars or not view.text.strip():
        return "too_short"
    if max_chars and chars > max_chars:
        return "too_long"
    if min_words and len(view.words) < min_words:
        return "too_few_words"
    if max_words and len(view.words) > max_words:
        return "too_many_words"
    return None


def javascript(view: Text, *, max_chars: int = 256) -> str | None:
    """A short text that speaks of JavaScript: the notice of a page that did not load.

    Megatron-LM tools/openwebtext/cleanup_fix_dataset.py, task remove_256_javascript.
    """
    return "javascript_notice" if len(view.text) < max_chars and "javascript" in view.text.lower() else None


def language(view: Text, *, keep: str = "en", min_score: float = 0.65) -> str | None:
    """A text in another language than those of `keep` (ISO codes, commas between), or in none that can be told.

    FineWeb wants English with a score above 0.65 (arXiv 2406.17557, section 3.1); Megatron-LM's openwebtext tools want
    English, whatever the score (langdetect's, which changes from run to run).
    """
    code, score = detect_language(view.text)
    if code not in keep.split(","):
        return f"language_{code}"
    return "language_unsure" if score < min_score else None


def gopher_quality(
    view: Text, *, min_words: int = 50, max_words: int = 100_000, min_mean_word: float = 3.0, max_mean_word: float = 10.0,
    max_symbols_per_word: float = 0.1, max_bullet_lines: float = 0.9, max_ellipsis_lines: float = 0.3,
    min_alphabetic_words: float = 0.8, min_stop_words: int = 2,
) -> str | None:
    """The quality filter of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A1.1), all thresholds as there.

    Words without a letter or digit count for nothing but the alphabetic share, as in FineWeb's pipeline.
    """
    text, words = view.text, view.words
    plain = _NO_ASCII_LETTER.findall(text)  # a short list of the words that need a look at each character
    symbols = [word for word in plain if not any(map(str.isalnum, word))]
    count = len(words) - len(symbols)
    if count < min_words:
        return "gopher_too_few_words"
    if count > max_words:
        return "gopher_too_many_words"
    chars = sum(map(len, words)) - sum(map(len, symbols))
    if not min_mean_word <= chars / max(count, 1) <= max_mean_word:
        return "gopher_mean_word_length"
    if text.count("#") / max(len(words), 1) > max_symbols_per_word:
        return "gopher_hashes"
    if (text.count("...") + text.count("…")) / max(len(words), 1) > max_symbols_per_word:
        return "gopher_ellipses"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) > max_bullet_lines * len(lines):
        return "gopher_bullet_lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) > max_ellipsis_lines * len(lines):
        return "gopher_ellipsis_lines"
    if len(words) - sum(not any(map(str.isalpha, word)) for word in plain) < min_alphabetic_words * len(words):
        return "gopher_not_alphabetic"
    if len(STOP_WORDS.intersection(words)) < min_stop_words:
        return "gopher_stop_words"
    return None


_NO_ASCII_LETTER = re.compile(r"(?<!\S)[^a-zA-Z\s]+(?!\S)")


def gopher_repetition(
    view: Text, *, max_dup_lines: float = 0.3, max_dup_paragraphs: float = 0.3, max_dup_line_chars: float = 0.2,
    max_dup_paragraph_chars: float = 0.2, max_top_2gram: float = 0.2, max_top_3gram: float = 0.18,
    max_top_4gram: float = 0.16, max_dup_5gram: float = 0.15, max_dup_6gram: float = 0.14, max_dup_7gram: float = 0.13,
    max_dup_8gram: float = 0.12, max_dup_9gram: float = 0.11, max_dup_10gram: float = 0.10,
) -> str | None:
    """The repetition filter of Gopher (arXiv 2112.11446, table A1), all thresholds as there.

    Shares of n-grams are shares of characters: the most frequent 2-, 3- and 4-gram with the spaces inside it, and the
    words of 5- to 10-grams that have stood before, without spaces and without counting a word twice.
    """
    text = view.text
    chars = max(len(text), 1)
    paragraphs = re.split(r"\n{2,}", text.strip()) if "\n\n" in text else [text.strip()]
    count, repeated = duplicates(paragraphs)
    if count > max_dup_paragraphs * len(paragraphs) or repeated > max_dup_paragraph_chars * chars:
        return "repeated_paragraphs"
    lines = re.split(r"\n+", text) if "\n" in text else [text]
    count, repeated = duplicates(lines)
    if count > max_dup_lines * len(lines) or repeated > max_dup_line_chars * chars:
        return "repeated_lines"
    words = view.words
    grams = _Grams(words)
    tops = ((2, max_top_2gram), (3, max_top_3gram), (4, max_top_4gram))
    # No 3- or 4-gram is more frequent than the most frequent 2-gram: as nearly always, one look is enough for the three.
    near = len(words) < 4 or grams.most(2) * (grams.longest(4) + 3) > min(limit for _, limit in tops) * chars
    for n, limit in tops if near else ():
        if len(words) >= n and grams.top_exceeds(n, limit * chars):
            return f"top_{n}gram"
    limits = (max_dup_5gram, max_dup_6gram, max_dup_7gram, max_dup_8gram, max_dup_9gram, max_dup_10gram)
    for n, limit in enumerate(limits, 5):
        repeats = grams.repeats(n)
        if repeats == 0:
            break  # a longer n-gram that repeats would repeat this shorter one
        if repeats * grams.longest(n) > limit * chars and grams.repeated_chars(n) > limit * chars:
            return f"repeated_{n}grams"
    return None


def duplicates(items: Sequence[str]) -> tuple[int, int]:
    """How many items have stood before, and their characters."""
    seen: set[str] = set()
    count = chars = 0
    for item in items:
        if item in seen:
            count += 1
            chars += len(item)
        else:
            seen.add(item)
    return count, chars


class _Grams:
    """Word n-grams of one text as 64-bit hashes (a collision in one text has odds of about 1e-14)."""

    def __init__(self, words: list[str]):
        number: collections.defaultdict[str, int] = collections.defaultdict()
        number.default_factory = number.__len__  # numbers words as they come, without a line of Python for each
        ids = np.fromiter(map(number.__getitem__, words), np.uint64, len(words))
        self.lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.ends = np.concatenate(([0], np.cumsum(self.lengths)))
        ids = (ids + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        ids ^= ids >> np.uint64(29)
        self.words = ids * np.uint64(0xBF58476D1CE4E5B9)
        self.keys, self.n = self.words, 1

    def _of(self, n: int) -> np.ndarray:
        """The hash of every n-gram; n must not decrease between calls."""
        while self.n < n:
            self.keys = self.keys[:-1] * np.uint64(0x94D049BB133111EB) + self.words[self.n :]
            self.n += 1
        return self.keys

    def most(self, n: int) -> int:
        """How often the most frequent n-gram stands there."""
        ordered = np.sort(self._of(n))
        starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(ordered)]))
        return int((starts[1:] - starts[:-1]).max())

    def top_exceeds(self, n: int, chars: float) -> bool:
        """Whether the most frequent n-gram, the first of several equally frequent ones, takes more than chars."""
        keys = self._of(n)
        ordered = np.sort(keys)
        starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(ordered)]))
        counts = starts[1:] - starts[:-1]
        most = int(counts.max())
        if most * (self.longest(n) + n - 1) <= chars:
            return False  # as nearly always: it would not do if it were the longest n-gram of all
        first = int(np.isin(keys, ordered[starts[:-1][counts == most]]).argmax())
        return most * int(self.ends[first + n] - self.ends[first] + n - 1) > chars

    def repeats(self, n: int) -> int:
        """How many n-grams have stood before."""
        ordered = np.sort(self._of(n))
        return int(np.count_nonzero(ordered[1:] == ordered[:-1]))

    def longest(self, n: int) -> int:
        return int((self.ends[n:] - self.ends[:-n]).max())

    def repeated_chars(self, n: int) -> int:
        """Characters of n-grams that have stood before, going on behind each, so that no word counts twice."""
        keys = self._of(n).tolist()
        seen: set[int] = set()
        total = place = 0
        while place < len(keys):
            if keys[place] in seen:
                total += int(self.ends[place + n] - self.ends[place])
                place += n
            else:
                seen.add(keys[place])
                place += 1
        return total


def fineweb(
    view: Text, *, min_punctuated_lines: float = 0.12, max_short_lines: float = 0.67, short_line_chars: int = 30,
    max_dup_line_chars: float = 0.01, max_newlines_per_word: float = 0.3,
) -> str | None:
    """FineWeb's own quality filters (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

    The thresholds are those of the released pipeline, which wants at most 0.01 of the characters in repeated lines
    where the paper's text says 0.1, and also bounds newlines per word.
    """
    lines = view.lines
    if not lines:
        return "empty"
    if sum(line.endswith(END_PUNCTUATION) for line in lines) < min_punctuated_lines * len(lines):
        return "fineweb_unpunctuated_lines"
    if sum(len(line) <= short_line_chars for line in lines) > max_short_lines * len(lines):
        return "fineweb_short_lines"
    newlines = view.text.count("\n")
    if duplicates(lines)[1] > max_dup_line_chars * (len(view.text) - newlines):
        return "fineweb_repeated_lines"
    if newlines > max_newlines_per_word * len(view.words):
        return "fineweb_list"
    return None


def c4(
    view: Text, *, terminal_punctuation: bool = True, min_sentences: int = 5, min_words_per_line: int = 3,
    max_word_chars: int = 1000,
) -> str:
    """C4's lines and pages (Raffel et al. 2020, JMLR 21/140, section 2.2; numbers of its released code): an edit.

    Lines go that do not end in terminal punctuation (or end in an ellipsis), that have few words or an endless one,
    that speak of JavaScript or of cookies and terms of use; `[1]`, `[edit]`, `[citation needed]` go from the rest. The
    page goes that holds lorem ipsum or a curly bracket, or has too few sentences left. (C4's list of bad words, its
    language test and its three-sentence deduplication are other people's lists and other stages.)
    """
    kept, sentences = [], 0
    for line in view.text.splitlines():
        line = line.strip()
        words = line.split()
        if len(line) > max_word_chars and max(map(len, words)) > max_word_chars:
            continue
        line = CITATION.sub("", line)
        if terminal_punctuation and (not line.endswith(END_PUNCTUATION) or line.endswith("...")):
            continue
        if len(words) < min_words_per_line:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return Drop("c4_lorem_ipsum")
        if "javascript" in lower:
            continue
        if "{" in line:
            return Drop("c4_curly_bracket")
        if any(phrase in lower for phrase in POLICY_PHRASES):
            continue
        sentences += max(1, len(SENTENCE_END.findall(line)))
        kept.append(line)
    if sentences < min_sentences:
        return Drop("c4_too_few_sentences")
    return "\n".join(kept).strip()


def fix_text(view: Text) -> str:
    """What ftfy.fix_text makes of it: mojibake, HTML entities, ligatures, curly quotes, control characters, NFC."""
    return repair(view.text)


def whitespace(view: Text) -> str:
    """No whitespace at the ends of lines or of the text, tabs and newlines kept, at most one empty line in a row."""
    text = view.text
    if _TRAILING.search(text) is not None:
        text = re.sub(r"[^\S\n]+(?=\n|\Z)", "", text)
    if "\n\n\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n").rstrip()


_TRAILING = re.compile(r"[^\S\n](?:\n|\Z)")


def unique_lines(view: Text, *, min_chars: int = 20) -> str:
    """No line of min_chars or more that has stood further up in the text."""
    return drop_repeated_lines(view.text, min_chars)


def boilerplate_lines(view: Text, *, max_chars: int = 200) -> str:
    """No line of at most max_chars that speaks of JavaScript, cookies or terms of use, or begins lorem ipsum.

    C4's phrases, without the rest of C4: pages stay, and so do paragraphs that are about these things.
    """
    return without_boilerplate(view.text, max_chars)


def redact(view: Text, *, email: bool = True, ip: bool = True, phone: bool = True) -> str:
    """Email addresses, public IP addresses and telephone numbers replaced by ones that belong to nobody."""
    return redact_text(view.text, email=email, ip=ip, phone=phone)


def join_lines(view: Text) -> str:
    """Line breaks after a word and runs of spaces become one space.

    Megatron-LM tools/openwebtext/cleanup_fix_dataset.py, task general_cleaning, its regular expression.
    """
    return re.sub(r"  +|\b\n+ |\b\n+", " ", view.text)


RULES = {f.__name__: f for f in (length, language, javascript, gopher_quality, gopher_repetition, fineweb)}
EDITS = {f.__name__: f for f in (fix_text, whitespace, join_lines, unique_lines, boilerplate_lines, redact, c4)}
