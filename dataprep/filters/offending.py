"""The places in a text for which a rule of `mt data clean` dropped it, and the numbers that decided.

`explain` applies the items again to the text of a document that was dropped. The places lie in the text as
the rule got it: edited by the items before, and in other languages than English folded (script_stats.py).

What is marked, by the kind of rule:

    a share of lines, paragraphs or words is too high     these lines, paragraphs or words
    a share of lines or words is too low                  those that are not of the kind
    an n-gram is repeated                                 its occurrences, of 5- to 10-grams the repeated ones
    a phrase or a symbol                                  its occurrences
    a mean length of words                                the fewest words whose removal mends it
    a text is too long                                    what is beyond the limit

Where something is missing (words, stop words, sentences) there is no place: the numbers say how much.

`drop_facts` gives the same numbers for a text that has just been dropped, and `loosened` tells which
parameter of which rule would keep more texts.
"""

from __future__ import annotations

import bisect
import dataclasses
import inspect
import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...documents.reader import Document
from ..words import WORD, count_words
from .own_rules import PREFIX
from .quality import Drop, c4, line_rules
from .rules import ALL, CHARS_PER_TOKEN, EDITS, RULES, CompiledRules, Step, compile_rules, kept_languages
from .script_stats import ScriptStats, line_ends
from .text_stats import (
    ALPHA,
    BLANK,
    PRIME,
    SYMBOL,
    TextStats,
    WordStats,
    character_classes,
    duplicates,
    of_pieces,
    terminal,
)

Place = tuple[int, int]  # [start, end) in characters
TOKEN_REASONS = ("too_few_tokens", "too_many_tokens")


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number that decided, and its limit: at_least or at_most."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        rule = f"at least {_short(self.at_least)}" if self.at_least is not None else ""
        rule = f"at most {_short(self.at_most)}" if self.at_most is not None else rule
        return f"{self.name}: {_short(self.value)} ({rule})"


@dataclasses.dataclass(frozen=True)
class Offence:
    """Why a rule dropped a text. places: in order, apart from each other, in `text`. note: other words."""

    text: str
    places: Sequence[Place] = ()
    measures: Sequence[Measure] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A text that a rule dropped. limits: the parameters of the rule, those with defaults included."""

    view: TextStats
    reason: str
    limits: dict[str, Any]

    @property
    def text(self) -> str:
        """The text of which the rule speaks: c4 reads the one that is not folded."""
        return self.view.original if self.reason.startswith("c4_") else self.view.text

    @property
    def words(self) -> WordStats:
        return self.view.words(self.limits["words"])


Found = tuple[Iterable[Place], Sequence[Measure], str]


def explain(items: Sequence[str], lang: Sequence[str], reason: str, document: Document) -> Offence | None:
    """What the items found in a document; None if they do not drop it for this reason.

    Functions of the user's own are not called: the items may be those in a stranger's manifest. They change
    no text, so that the other items find the same without them. The same holds for the rule `tokens`.
    """
    items = [item for item in items if item.split() and not item.startswith(PREFIX)]
    names = [item.split()[0] for item in items]
    if reason in TOKEN_REASONS:
        return _of_tokens(items, names, lang, document)
    rules = compile_rules([item for item, name in zip(items, names) if name != "tokens"], lang=lang)
    outcome = rules(document.text, document)
    if not isinstance(outcome, Drop) or outcome != reason or rules.dropped_by is None:
        return None
    return _offence(*rules.dropped_by, reason)


def drop_facts(rules: CompiledRules) -> dict[str, Any]:
    """What decided about the last text that the rules dropped.

    Returns {"rule", "measure", "number", "at_least" or "at_most", "parameter"}: which rule, what it measured,
    the number, the limit, and the parameter that sets the limit. There may be a `note` too. A rule of the
    user's own gives no more than its name.
    """
    assert rules.dropped_by is not None, "no text was dropped"
    step, view = rules.dropped_by
    if step.name.startswith(PREFIX):
        return {"rule": step.name}
    reason = str(rules.reason)
    facts: dict[str, Any] = {"rule": step.name}
    offence = _offence(step, view, reason)
    measure = next(iter(offence.measures), None) or Measure("places", len(offence.places), at_most=0)
    value = measure.value
    facts |= {"measure": measure.name, "number": value.item() if isinstance(value, np.generic) else value}
    limits = {"at_least": measure.at_least, "at_most": measure.at_most}
    facts |= {side: limit for side, limit in limits.items() if limit is not None}
    if reason in PARAMETERS:
        facts["parameter"] = PARAMETERS[reason][1]
        if measure.at_least is not None and reason == "gopher_mean_word_length":
            facts["parameter"] = "min_mean_word"
    return facts | ({"note": offence.note} if offence.note else {})


def loosened(items: Sequence[str], reason: str) -> str:
    """How the items would drop fewer texts for a reason, as `to keep more, lower ...`; "" if not known."""
    if reason not in PARAMETERS:
        return ""
    rule, parameter = PARAMETERS[reason]
    default = inspect.signature((RULES | EDITS)[rule]).parameters[parameter].default
    for index, item in enumerate(items):
        name, *pairs = item.split()
        given = dict(pair.partition("=")[::2] for pair in pairs)
        if name != rule:
            continue
        now = str(given.get(parameter, default)).lower()
        if (value := _looser(parameter, now, type(default))) is None:
            continue
        changed = " ".join([name, *(f"{k}={v}" for k, v in (given | {parameter: value}).items())])
        rules = " ".join(map(shlex.quote, [*items[:index], changed, *items[index + 1 :]]))
        verb = (
            "lower" if parameter.startswith("min_") else "raise" if parameter.startswith("max_") else "change"
        )
        return (
            f"to keep more, {verb} {parameter} of the rule {rule} (now {now}), for example: --rules {rules}"
        )
    return ""


def summary_of(name: str) -> str:
    """What a rule or an edit does, in its docstring's first sentence."""
    function = (RULES | EDITS).get(name)
    text = inspect.getdoc(function) or "" if function else "a rule of your own"
    return " ".join(text.split("\n\n")[0].split())


def describe(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    """(docstring, title, rows of parameters) of a rule or an edit, for a page of help."""
    function = (RULES | EDITS)[name]
    reasons: dict[str, list[str]] = {}
    for reason, (rule, parameter) in PARAMETERS.items():
        if rule == name:
            reasons.setdefault(parameter, []).append(reason)
    rows = []
    for key, known in inspect.signature(function).parameters.items():
        if known.kind is not known.KEYWORD_ONLY or key == "tokenizer":
            continue
        default = str(known.default).lower() if isinstance(known.default, bool) else known.default
        why = f"drops texts for the reason {', '.join(reasons[key])}" if key in reasons else "see above"
        rows.append((f"{key}={default}", why))
    text = "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n"))
    kind = "edit" if name in EDITS else "rule"
    return text, f"{kind} {name}: parameters and their defaults", rows


def _looser(parameter: str, now: str, kind: type) -> str | None:
    """A value of a parameter with which a rule drops fewer texts; None where the parameter drops none."""
    if kind is bool:
        return "false" if now == "true" else None
    number = float(now.replace("_", ""))
    if not number:
        return None
    looser = number / 2 if parameter.startswith("min_") else number * 2
    if kind is int:
        return f"{int(looser)}"
    return f"{float(f'{looser:.3g}'):.6f}".rstrip("0").rstrip(".")  # YAML 1.1 misreads exponents


def _offence(step: Step, view: TextStats, reason: str) -> Offence:
    """Why the function of a step dropped a text."""
    bound: Any = step.function
    defaults = inspect.signature(bound.func).parameters.values()
    limits = {p.name: p.default for p in defaults if p.kind is p.KEYWORD_ONLY} | bound.keywords
    find = FINDERS.get("language" if step.name == "language" else reason)
    if find is None:
        return Offence(view.text, note="no place is known for this reason")
    case = Case(view, reason, limits)
    places, measures, note = find(case)
    return Offence(case.text, merged(places), measures, note)


def _of_tokens(
    items: Sequence[str], names: Sequence[str], lang: Sequence[str], document: Document
) -> Offence | None:
    """The text that the first rule `tokens` got; the tokenizer of the stage is not known here."""
    if "tokens" not in names:
        return None
    first = names.index("tokens")
    rules = compile_rules(items, lang=lang)
    rules = CompiledRules(rules.items[:first], None, kept_languages(rules.items, lang))
    text = rules(document.text, document)
    if isinstance(text, Drop):
        return None
    return Offence(
        text,
        note=f"{len(text):,} characters; the rule {items[first]!r} counts tokens of the stage's tokenizer, or"
        f" one for {CHARS_PER_TOKEN} characters without a tokenizer",
    )


def merged(places: Iterable[Place]) -> list[Place]:
    """The places in order, where overlapping and adjoining ones are one; empty ones are left out."""
    found: list[Place] = []
    for start, end in sorted(places):
        if start == end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def occurrences(text: str, phrase: str) -> Iterator[Place]:
    """The places of a phrase in lower case in a text in any case, as `phrase in text.lower()` finds it."""
    lower = text.lower()
    ends: list[int] = []  # of each character of the text in its lower case, which may be longer
    if len(lower) != len(text):
        ends = list(itertools.accumulate(len(c.lower()) for c in text))
    for found in re.finditer(re.escape(phrase), lower):
        start, end = found.span()
        if ends:
            start, end = bisect.bisect_right(ends, start), bisect.bisect_left(ends, end) + 1
        yield start, end


def _short(number: float | None) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.3g}"


def _too_short(case: Case) -> Found:
    if not case.text.strip():
        written = Measure("characters that are not white space", 0, at_least=1)
        return (), [written], "a text of only white space"
    return (), [Measure("characters", len(case.text), at_least=case.limits["min_chars"])], ""


def _too_long(case: Case) -> Found:
    most = case.limits["max_chars"]
    return [(most, len(case.text))], [Measure("characters", len(case.text), at_most=most)], ""


def _too_few_words(case: Case) -> Found:
    return (), [Measure("words", count_words(case.text), at_least=case.limits["min_words"])], ""


def _too_many_words(case: Case) -> Found:
    most = case.limits["max_words"]
    first = next(itertools.islice(WORD.finditer(case.text), most, None), None)
    places = [(first.start(), len(case.text))] if first else []
    return places, [Measure("words", count_words(case.text), at_most=most)], ""


def _language(case: Case) -> Found:
    code, score = case.view.language
    least = Measure(f"score of {code}, the most likely language", score, at_least=case.limits["min_score"])
    if case.reason == "language_unsure":
        return (), [least], ""
    keep = case.limits["keep"]
    kept = "every language" if keep == ALL else keep.replace(",", ", ")
    return (), (), f"the most likely language is {code}, with a score of {score:.2f}; kept: {kept}"


def _javascript(case: Case) -> Found:
    measure = Measure("characters", len(case.text), at_least=case.limits["max_chars"])
    return occurrences(case.text, "javascript"), [measure], ""


def _lorem_ipsum(case: Case) -> Found:
    return occurrences(case.text, "lorem ipsum"), (), ""


def _curly_bracket(case: Case) -> Found:
    return occurrences(case.text, "{"), (), ""


def _plain_words(case: Case) -> float:
    return case.words.count - case.words.symbols


def _gopher_few(case: Case) -> Found:
    return (), [Measure("words", _plain_words(case), at_least=case.limits["min_words"])], ""


def _gopher_many(case: Case) -> Found:
    """The text from the word on with which there are too many: the earliest, by halving."""
    most, words = case.limits["max_words"], case.words
    kind, splitter = type(case.view), case.limits["words"]

    def too_many(first: int) -> bool:
        found = kind(case.text[: words.starts[first]]).words(splitter)
        return bool(found.count - found.symbols > most)

    first = bisect.bisect_left(range(len(words.starts)), True, key=too_many)
    start = int(words.starts[max(first - 1, 0)])
    return [(start, len(case.text))], [Measure("words", _plain_words(case), at_most=most)], ""


def _where(words: WordStats, chosen: np.ndarray) -> list[Place]:
    """The places of the words at some indices, or where a mask is true."""
    return list(zip(words.starts[chosen].tolist(), words.ends[chosen].tolist()))


def _have(case: Case, bit: int) -> np.ndarray:
    """bool (W,): which words have a character of a class."""
    found: np.ndarray = np.greater(_counted(case, character_classes("")[case.view.codes] & bit != 0), 0)
    return found


def _only(case: Case, bit: int) -> np.ndarray:
    """bool (W,): which words have characters of a class only."""
    found: np.ndarray = np.equal(_counted(case, character_classes("")[case.view.codes] & bit == 0), 0)
    return found


def _counted(case: Case, chosen: np.ndarray) -> np.ndarray:
    """int64 (W,): how many characters of each word are chosen. chosen: bool, one for each character."""
    before = np.concatenate(([0], np.cumsum(chosen)))
    counts: np.ndarray = before[case.words.ends] - before[case.words.starts]
    return counts


def _mean_word(case: Case) -> Found:
    words, least, most = case.words, case.limits["min_mean_word"], case.limits["max_mean_word"]
    mean = words.plain_chars / _plain_words(case)
    too_long = bool(most) and mean > most
    limit = {"at_most": most} if too_long else {"at_least": least}
    measures = [Measure("mean length of words", mean, **limit)]
    if words.count != len(words.starts):
        return (), measures, "in a script without spaces no single words are too long or too short"
    plain = np.flatnonzero(~_only(case, SYMBOL))
    sizes = (words.ends - words.starts)[plain].astype(np.int64)
    order = np.argsort(-sizes if too_long else sizes, kind="stable")
    left = sizes.sum() - np.cumsum(sizes[order])[:-1]
    means = left / np.arange(len(plain) - 1, 0, -1)
    enough = np.flatnonzero(means <= most if too_long else means >= least)
    count = int(enough[0]) + 1 if len(enough) else len(plain)
    return _where(words, np.sort(plain[order[:count]])), measures, ""


def _symbols(case: Case) -> Found:
    text = case.text
    marks = ("#",) if case.reason == "gopher_hashes" else ("...", "…")
    name = "hashes for each word" if case.reason == "gopher_hashes" else "ellipses for each word"
    share = sum(map(text.count, marks)) / case.words.count
    places = [place for mark in marks for place in occurrences(text, mark)]
    return places, [Measure(name, share, at_most=case.limits["max_symbols_per_word"])], ""


def _split_lines(text: str) -> Iterator[Place]:
    """The lines of str.splitlines, without white space at their ends."""
    return _stripped(text.splitlines(keepends=True))


def _stripped(pieces: Iterable[str]) -> Iterator[Place]:
    """The pieces that a text consists of, without white space at their ends."""
    start = 0
    for piece in pieces:
        first = start + len(piece) - len(piece.lstrip())
        yield first, first + len(piece.strip())
        start += len(piece)


def _bullets(case: Case) -> Found:
    lines = [(a, b) for a, b in _split_lines(case.text) if case.text.startswith(("-", "•"), a, b)]
    share = len(lines) / case.view.line_counts("", 0)[0]
    return lines, [Measure("lines with a bullet", share, at_most=case.limits["max_bullet_lines"])], ""


def _ellipses(case: Case) -> Found:
    lines = [(a, b) for a, b in _split_lines(case.text) if case.text.endswith(("...", "…"), a, b)]
    share = len(lines) / case.view.line_counts("", 0)[0]
    measure = Measure("lines that end in an ellipsis", share, at_most=case.limits["max_ellipsis_lines"])
    return lines, [measure], ""


def _not_alphabetic(case: Case) -> Found:
    words = case.words
    share = (words.count - words.unlettered) / words.count
    measure = Measure("words with a letter", share, at_least=case.limits["min_alphabetic_words"])
    return _where(words, ~_have(case, ALPHA)), [measure], ""


def _stop_words(case: Case) -> Found:
    least, listed = case.limits["min_stop_words"], case.limits["stop_words"]
    count = case.view.distinct(listed, least, case.limits["words"])
    return (), [Measure(f"different words of {listed}", count, at_least=least)], ""


def _empty(case: Case) -> Found:
    return (), (), "a text without words"


def _spans(text: str, separator: str) -> list[Place]:
    """The pieces of a text between runs of newlines; a separator is a regular expression."""
    cuts = [found.span() for found in re.finditer(separator, text)]
    return list(zip([0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]))


def _later_copies(text: str, spans: Iterable[Place]) -> list[Place]:
    """The pieces of a text that equal an earlier one; for an empty one the newlines before it."""
    seen: set[str] = set()
    copies = []
    for start, end in spans:
        piece = text[start:end]
        if piece in seen:
            copies.append((len(text[:start].rstrip("\n")) if start == end else start, end))
        seen.add(piece)
    return copies


def _repeated(case: Case) -> Found:
    text, reason, limits = case.text, case.reason, case.limits
    if "paragraph" in reason:
        offset = len(text) - len(text.lstrip())
        spans = [(a + offset, b + offset) for a, b in _spans(text.strip(), r"\n{2,}")]
        name = "paragraphs"
    else:
        spans, name = _spans(text, r"\n+"), "lines"
    count, chars = duplicates([text[a:b] for a, b in spans])
    if reason.endswith("_chars"):
        limit = limits["max_dup_paragraph_chars" if name == "paragraphs" else "max_dup_line_chars"]
        measure = Measure(f"characters in {name} that repeat earlier ones", chars / len(text), at_most=limit)
    else:
        limit = limits[f"max_dup_{name}"]
        measure = Measure(f"{name} that repeat earlier ones", count / len(spans), at_most=limit)
    return _later_copies(text, spans), [measure], ""


def _ngram_keys(words: WordStats, n: int) -> np.ndarray:
    """uint64: a hash of the n-gram that begins at each word, as text_stats.repetition computes it."""
    stride = words.stride
    hashes, powers = of_pieces(words.hashes, words.powers, stride)
    count = max(len(hashes) - n * stride + 1, 0)
    keys = hashes[:count].copy()
    for k in range(1, n):
        next_ = slice(k * stride, k * stride + count)
        if n <= 4:
            keys = keys * PRIME + BLANK
        keys = keys * powers[next_] + hashes[next_]
    return keys


def _ngrams(case: Case) -> Found:
    words, n = case.words, int(re.findall(r"\d+", case.reason)[0])
    limit = case.limits[f"max_{'top' if n <= 4 else 'dup'}_{n}gram"]
    what = f"the most frequent {n}-gram" if n <= 4 else f"repeated {n}-grams"
    share = words.repetition[n - 2] / len(case.text)
    _, first, which, counts = np.unique(
        _ngram_keys(words, n), return_index=True, return_inverse=True, return_counts=True
    )
    if n <= 4:
        often = np.flatnonzero(counts == counts.max())
        begins = np.flatnonzero(which == often[np.argmin(first[often])]).tolist()
    else:
        begins = _repeats(which, n * words.stride)
    last = n * words.stride - 1
    places = [(int(words.starts[i]), int(words.ends[i + last])) for i in begins]
    return places, [Measure(f"characters in {what}", share, at_most=limit)], ""


def _repeats(which: np.ndarray, pieces: int) -> list[int]:
    """Where n-grams begin that occurred before; each word is counted once, as text_stats does.

    which: the number of the n-gram that begins at each word.
    """
    seen = bytearray(int(which.max(initial=-1)) + 1)
    begins, free = [], 0
    for i, gram in enumerate(which.tolist()):
        if i < free:
            continue
        if seen[gram]:
            begins.append(i)
            free = i + pieces
        seen[gram] = 1
    return begins


def _newline_lines(text: str) -> list[Place]:
    """The lines between newlines that are not blank, as in TextStats.lines."""
    return [(a, b) for a, b in _spans(text, r"\n") if a < b and not text[a:b].isspace()]


def _unpunctuated(case: Case) -> Found:
    given = case.limits["line_ends"]
    ends = set(given or (line_ends() if isinstance(case.view, ScriptStats) else terminal()))
    lines = _newline_lines(case.text)
    lacking = [(a, b) for a, b in lines if case.text[b - 1] not in ends]
    share = 1 - len(lacking) / len(lines)
    measure = Measure("lines that end in punctuation", share, at_least=case.limits["min_punctuated_lines"])
    return lacking, [measure], ""


def _short_lines(case: Case) -> Found:
    most = case.limits["short_line_chars"]
    lines = _newline_lines(case.text)
    short = [(a, b) for a, b in lines if b - a <= most]
    name = f"lines of at most {most} characters"
    return short, [Measure(name, len(short) / len(lines), at_most=case.limits["max_short_lines"])], ""


def _fineweb_repeated(case: Case) -> Found:
    text = case.text
    share = duplicates(case.view.lines)[1] / (len(text) - text.count("\n"))
    measure = Measure(
        "characters in lines that repeat earlier ones", share, at_most=case.limits["max_dup_line_chars"]
    )
    return _later_copies(text, _newline_lines(text)), [measure], ""


def _list(case: Case) -> Found:
    share = case.text.count("\n") / case.words.count
    return (), [Measure("newlines for each word", share, at_most=case.limits["max_newlines_per_word"])], ""


def _few_sentences(case: Case) -> Found:
    """The lines, or sentences, that c4 removed before it counted."""
    limits = {**case.limits, "min_sentences": 0}
    text, view = case.text, case.view
    removed, count = [], 0
    by_lines = limits["split"] == "lines"
    places = _split_lines(text) if by_lines else _stripped(line_rules(view).sentences(text))
    for first, end in places:
        inside = text[first:end]
        alone = type(view)(inside)
        if isinstance(alone, ScriptStats) and isinstance(view, ScriptStats):
            alone.ends_lines = view.ends_lines  # of the whole text
        kept = c4(alone, **limits)
        if inside and not kept:
            removed.append((first, end))
        elif inside:
            count += line_rules(alone).count_sentences(kept, len(kept) + 1) if by_lines else 1
    note = "" if removed else "no line was removed before they were counted"
    measure = Measure("sentences left", count, at_least=case.limits["min_sentences"])
    return removed, [measure], note


def _few_paragraphs(case: Case) -> Found:
    chars = case.limits["min_chars"]
    count = sum(len(line) >= chars for line in case.text.split("\n"))
    name = f"lines of at least {chars} characters"
    return (), [Measure(name, count, at_least=case.limits["min_paragraphs"])], ""


def _tokens(case: Case) -> Found:
    tokenizer, limit = case.limits["tokenizer"], {"at_least": case.limits["min_tokens"]}
    if case.reason == "too_many_tokens":
        limit = {"at_most": case.limits["max_tokens"]}
    if tokenizer is None:
        count, name = len(case.text) / CHARS_PER_TOKEN, f"tokens, if one has {CHARS_PER_TOKEN} characters"
    else:
        count, name = len(tokenizer.encode(case.text)) + 1, "tokens"
    return (), [Measure(name, count, **limit)], ""


# By the reason; `language` stands for all that begin so.
FINDERS: dict[str, Callable[[Case], Found]] = {
    "too_short": _too_short,
    "too_long": _too_long,
    "too_few_words": _too_few_words,
    "too_many_words": _too_many_words,
    "too_few_tokens": _tokens,
    "too_many_tokens": _tokens,
    "javascript_notice": _javascript,
    "language": _language,
    "gopher_too_few_words": _gopher_few,
    "gopher_too_many_words": _gopher_many,
    "gopher_mean_word_length": _mean_word,
    "gopher_hashes": _symbols,
    "gopher_ellipses": _symbols,
    "gopher_bullet_lines": _bullets,
    "gopher_ellipsis_lines": _ellipses,
    "gopher_not_alphabetic": _not_alphabetic,
    "gopher_stop_words": _stop_words,
    "empty": _empty,
    **dict.fromkeys(
        ("repeated_paragraphs", "repeated_paragraph_chars", "repeated_lines", "repeated_line_chars"),
        _repeated,
    ),
    **{f"top_{n}gram": _ngrams for n in range(2, 5)},
    **{f"repeated_{n}grams": _ngrams for n in range(5, 11)},
    "fineweb_unpunctuated_lines": _unpunctuated,
    "fineweb_short_lines": _short_lines,
    "fineweb_repeated_lines": _fineweb_repeated,
    "fineweb_list": _list,
    "c4_lorem_ipsum": _lorem_ipsum,
    "c4_curly_bracket": _curly_bracket,
    "c4_too_few_sentences": _few_sentences,
    "c4_too_few_paragraphs": _few_paragraphs,
}

# (rule, parameter) by the reason: a looser value of the parameter keeps texts that are dropped for it. The
# mean length of words has two limits; words that are too long are the commoner fault.
PARAMETERS: dict[str, tuple[str, str]] = {
    "too_short": ("length", "min_chars"),
    "too_long": ("length", "max_chars"),
    "too_few_words": ("length", "min_words"),
    "too_many_words": ("length", "max_words"),
    "too_few_tokens": ("tokens", "min_tokens"),
    "too_many_tokens": ("tokens", "max_tokens"),
    "language_unsure": ("language", "min_score"),
    "gopher_too_few_words": ("gopher_quality", "min_words"),
    "gopher_too_many_words": ("gopher_quality", "max_words"),
    "gopher_mean_word_length": ("gopher_quality", "max_mean_word"),
    "gopher_hashes": ("gopher_quality", "max_symbols_per_word"),
    "gopher_ellipses": ("gopher_quality", "max_symbols_per_word"),
    "gopher_bullet_lines": ("gopher_quality", "max_bullet_lines"),
    "gopher_ellipsis_lines": ("gopher_quality", "max_ellipsis_lines"),
    "gopher_not_alphabetic": ("gopher_quality", "min_alphabetic_words"),
    "gopher_stop_words": ("gopher_quality", "min_stop_words"),
    "repeated_paragraphs": ("gopher_repetition", "max_dup_paragraphs"),
    "repeated_paragraph_chars": ("gopher_repetition", "max_dup_paragraph_chars"),
    "repeated_lines": ("gopher_repetition", "max_dup_lines"),
    "repeated_line_chars": ("gopher_repetition", "max_dup_line_chars"),
    **{f"top_{n}gram": ("gopher_repetition", f"max_top_{n}gram") for n in range(2, 5)},
    **{f"repeated_{n}grams": ("gopher_repetition", f"max_dup_{n}gram") for n in range(5, 11)},
    "fineweb_unpunctuated_lines": ("fineweb", "min_punctuated_lines"),
    "fineweb_short_lines": ("fineweb", "max_short_lines"),
    "fineweb_repeated_lines": ("fineweb", "max_dup_line_chars"),
    "fineweb_list": ("fineweb", "max_newlines_per_word"),
    "c4_lorem_ipsum": ("c4", "lorem_ipsum"),
    "c4_curly_bracket": ("c4", "curly_bracket"),
    "c4_too_few_sentences": ("c4", "min_sentences"),
    "c4_too_few_paragraphs": ("c4_paragraphs", "min_paragraphs"),
}
