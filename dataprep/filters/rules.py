"""The rules of `mt data clean`: a rule returns a reason to drop a text, or None; an edit a new text.

The items of the setting `rules` are applied from top to bottom. An item is a name, followed by parameters
that differ from the defaults: `gopher_quality min_words=20 max_words=1_000_000`. Names and parameters are
those of the functions below and in quality.py and their keyword arguments. `lang=en,de` after a name applies
the item to texts in these languages only. `python:my_filters.too_many_tables` is a function of the user's own
(own_rules.py).

The defaults of the rules in BY_LANGUAGE are those of the text's language (thresholds.py): the one language
that the setting `lang` or the rule `language` names, or else the one found. Without both it is English.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ...core.config import UserError, nearest
from ...core.parsing import parse_yaml
from ...core.unicode import normalize
from ...documents.reader import Document
from ...tokenizer.tokenizer import Tokenizer
from ..words import WORD_RULES, count_words
from . import thresholds
from .boilerplate import unique_lines as drop_repeated_lines
from .boilerplate import without_boilerplate, without_symbol_lines
from .language import languages
from .own_rules import PREFIX, OwnRule
from .phone_numbers import phone_regions
from .punctuation import standardize
from .quality import Drop, c4, c4_paragraphs, fineweb, gopher_quality, gopher_repetition
from .redact import redact as redact_text
from .repair import repair
from .script_stats import SCRIPT_RULES, ScriptStats
from .text_stats import TextStats

ALL = "all"  # in place of codes: every language
# An example of each parameter with items, separated by commas, and of the other one with an empty default.
LISTS = {"keep": "en,de", "phone_regions": "DE,AT", "stop_words": "the,and"}
EXAMPLES = {**LISTS, "line_ends": ".!?"}
# The rules whose parameters and words depend on the language of a text.
BY_LANGUAGE = frozenset(("gopher_quality", "gopher_repetition", "fineweb", "c4"))
CHARS_PER_TOKEN = 4  # approximate, for English in GPT-2's vocabulary
Parameter = bool | int | float | str  # the types that parameters of rules have


def compile_rules(
    items: Sequence[str], tokenizer: Tokenizer | None = None, lang: Sequence[str] = ()
) -> CompiledRules:
    """Compiles rules and edits.

    tokenizer: for the rule `tokens`. lang: the languages of the texts, as in `CleanConfig.lang`. Raises
    UserError for an unknown name, parameter or language.
    """
    check_lang(lang)
    compiled = [_parse_item(item, lang) for item in items]
    return CompiledRules(compiled, tokenizer, kept_languages(compiled, lang))


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of the list of rules.

    parameters: those that the user gave. only: the languages of the texts that it applies to; None is all.
    """

    name: str
    function: Callable[..., str | None]
    parameters: dict[str, Parameter]
    only: frozenset[str] | None

    @property
    def is_edit(self) -> bool:
        return self.name in EDITS

    @property
    def asks_language(self) -> bool:
        """Whether the language of a text changes what the item does."""
        return self.name in BY_LANGUAGE or self.only is not None

    def bind(self, code: str, tokenizer: Tokenizer | None) -> Callable[[TextStats], str | None]:
        """The function with its parameters for texts in a language."""
        parameters = {**thresholds.parameters(code).get(self.name, {}), **self.parameters}
        bound = functools.partial(self.function, **parameters)
        return functools.partial(bound, tokenizer=tokenizer) if self.name == "tokens" else bound


class Step(NamedTuple):
    """An item for texts in one language.

    takes: what the function gets, a TextStats, a ScriptStats or a Document.
    """

    name: str
    function: Callable[[Any], str | None]
    is_edit: bool
    takes: Literal["text", "script", "document"]


class CompiledRules:
    """Applies rules and edits to texts.

    kept: the languages of the texts. language: the only one of them; None if it is found for each text, when
    the first item asks for it. edited: how many texts each edit has changed. languages: how many texts got
    the thresholds of each language, where the language was found. other_languages: texts in languages without
    thresholds of their own. dropped_by: the step that dropped the last text that was dropped, and this text
    with its statistics (offending.py). reason: why it was dropped.
    """

    def __init__(self, items: Sequence[Item], tokenizer: Tokenizer | None, kept: Sequence[str]):
        self.items, self.tokenizer = list(items), tokenizer
        self.language = kept[0] if len(kept) == 1 and ALL not in kept else None
        self.edited = collections.Counter({item.name: 0 for item in self.items if item.is_edit})
        self.languages: collections.Counter[str] = collections.Counter()
        self.other_languages: collections.Counter[str] = collections.Counter()
        self.dropped_by: tuple[Step, TextStats] | None = None
        self.reason: Drop | None = None
        asking = (index for index, item in enumerate(self.items) if item.asks_language)
        self._first_asking = next(asking, len(self.items))
        self._before = self._steps(self.items[: self._first_asking], thresholds.ENGLISH)
        self._after: dict[str, list[Step]] = {}  # by language

    def __call__(self, text: str, document: Document | None = None) -> str:
        """The edited text, or the `Drop` with the reason to drop it.

        document: for rules of the user's own, its id and fields. They raise DocumentError where they fail.
        """
        view = TextStats(text)
        if self._before:
            outcome = self._apply(self._before, view, document)
            if isinstance(outcome, Drop):
                return outcome
            view = outcome
        if self._first_asking < len(self.items):
            code = self._language_of(view)
            if code not in self._after:
                self._after[code] = self._steps(self.items[self._first_asking :], code)
            outcome = self._apply(self._after[code], view, document)
            return outcome if isinstance(outcome, Drop) else outcome.text
        return view.text

    def _apply(self, steps: Sequence[Step], view: TextStats, document: Document | None) -> TextStats | Drop:
        """The view of the edited text, or the reason to drop it."""
        script: ScriptStats | None = None  # of the text as it is
        for step in steps:
            if step.takes == "text":
                outcome = step.function(view)
            elif step.takes == "script":
                script = script or ScriptStats(view.text)
                outcome = step.function(script)
            else:
                given = document or Document("", "")
                outcome = step.function(Document(given.id, view.text, given.meta))
            if isinstance(outcome, Drop) or (outcome is not None and not step.is_edit):
                self.dropped_by = step, script if step.takes == "script" and script else view
                self.reason = Drop(outcome)
                return self.reason
            if not step.is_edit:
                continue
            if outcome is not None and outcome != view.text:
                self.edited[step.name] += 1
                view, script = TextStats(outcome), None
        return view

    def _steps(self, items: Sequence[Item], code: str) -> list[Step]:
        """The items that apply to texts in a language."""
        return [
            Step(
                item.name,
                item.bind(code, self.tokenizer),
                item.is_edit,
                self._takes(item, code),
            )
            for item in items
            if item.only is None or code in item.only
        ]

    @staticmethod
    def _takes(item: Item, code: str) -> Literal["text", "script", "document"]:
        if isinstance(item.function, OwnRule):
            return "document"
        return "script" if item.name in BY_LANGUAGE and code != thresholds.ENGLISH else "text"

    def _language_of(self, view: TextStats) -> str:
        """The language by which a text is judged, which is counted."""
        code = self.language
        if code is None:
            code = view.language[0]
            self.languages[code] += 1
        if code != thresholds.ENGLISH and code not in thresholds.known_languages():
            self.other_languages[code] += 1
        return code

    @property
    def facts(self) -> dict[str, Any]:
        """What else the result depends on, for the key of a run: thresholds that are not in the rules."""
        facts: dict[str, Any] = {}
        if any(
            item.name == "length" and {"min_words", "max_words"} & set(item.parameters) for item in self.items
        ):
            facts["word_rules"] = WORD_RULES
        if any(item.asks_language for item in self.items) and self.language != thresholds.ENGLISH:
            codes = [self.language] if self.language else [*thresholds.known_languages(), thresholds.OTHER]
            facts |= {"thresholds": thresholds.digest(codes), "script_rules": SCRIPT_RULES}
        if self.own:
            facts["python"] = self.own
        return facts

    @property
    def own(self) -> dict[str, str]:
        """{name: digest of its file} of the user's own rules."""
        rules = (item.function for item in self.items)
        return {rule.name: rule.digest for rule in rules if isinstance(rule, OwnRule)}


def check_lang(lang: Sequence[str]) -> None:
    """Raises UserError for languages that are not known."""
    if ALL in lang and len(lang) > 1:
        raise UserError(f"lang = {', '.join(lang)}: {ALL} stands alone; name languages, or {ALL}")
    for code in lang:
        if code != ALL:
            _check_code(f"lang = {', '.join(lang)}", code, "--lang en de")


def kept_languages(items: Sequence[Item], lang: Sequence[str]) -> list[str]:
    """The languages of the texts: those of `lang`, or else of the rule `language`, or else English."""
    if lang:
        return list(lang)
    for item in items:
        if item.name == "language":
            return str(item.parameters.get("keep", thresholds.ENGLISH)).split(",")
    return [thresholds.ENGLISH]


def _check_code(place: str, code: str, example: str) -> None:
    if code != thresholds.ENGLISH and code not in thresholds.known_languages():
        _check_found(place, code, example)


def _check_found(place: str, code: str, example: str) -> None:
    """Raises UserError for a language that is never found in a text."""
    if code not in languages():
        raise UserError(
            f"{place}: {code!r} is not a known language{nearest(code, languages())}; write ISO codes, as in"
            f" {example}"
        )


def _parse_item(item: str, lang: Sequence[str]) -> Item:
    """One item of the list. lang: the languages that the rule `language` keeps if it does not say."""
    name, *pairs = item.split() or [""]
    if name.startswith(PREFIX):
        return _parse_own(item, name, pairs)
    function = {**RULES, **EDITS}.get(name)
    if function is None:
        raise UserError(
            f"rules: {item!r}: no such rule{nearest(name, [*RULES, *EDITS])}; the rules are"
            f" {', '.join(sorted([*RULES, *EDITS]))}"
        )
    known = {
        k: p.default
        for k, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY and k != "tokenizer"
    }
    types = typing.get_type_hints(function)
    parameters: dict[str, Parameter] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key == "lang" and equals:
            continue
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"rules: {item!r}: {name} has no parameter {key!r}{nearest(key, known)}; {takes}")
        choices = typing.get_args(types[key])
        parameters[key] = _parse_value(item, key, value if equals else "", known[key], choices)
    for key in LISTS.keys() & parameters.keys():
        if "" in (listed := str(parameters[key]).split(",")):
            without = ",".join(filter(None, listed)) or LISTS[key]
            raise UserError(f"rules: {item!r}: {key} has an empty item; write {key}={without}")
    if name == "language":
        parameters["keep"] = _kept(item, parameters, lang)
    if name == "redact":
        regions = str(parameters.get("phone_regions", "")).upper()
        for region in regions.split(",") if regions else ():
            if region not in phone_regions():
                raise UserError(
                    f"rules: {item!r}: {region!r} is not a known region{nearest(region, phone_regions())};"
                    " write ISO 3166 codes, as in phone_regions=DE,AT"
                )
    return Item(name, function, parameters, _only(item, pairs))


def _parse_own(item: str, name: str, pairs: list[str]) -> Item:
    """An item that names a function of the user's own."""
    own = [pair for pair in pairs if not pair.startswith("lang=")]
    return Item(name, OwnRule(item, name, own), {}, _only(item, pairs))


def _only(item: str, pairs: Sequence[str]) -> frozenset[str] | None:
    """The languages of `lang=de,fr` after the name of an item."""
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key == "lang" and equals:
            for code in value.split(","):
                _check_code(f"rules: {item!r}", code, "lang=en,de")
            return frozenset(value.split(","))
    return None


def _kept(item: str, parameters: dict[str, Parameter], lang: Sequence[str]) -> str:
    """The parameter `keep` of the rule `language`."""
    given = parameters.get("keep")
    for code in str(given).split(",") if given is not None else ():
        if code != ALL:
            _check_found(f"rules: {item!r}", code, "keep=en,de")
    if given is not None and lang and set(str(given).split(",")) != set(lang):
        raise UserError(
            f"rules: {item!r} keeps other languages than --lang {' '.join(lang)}; omit keep= or --lang"
        )
    return str(given) if given is not None else ",".join(lang or [thresholds.ENGLISH])


def _parse_value(item: str, key: str, text: str, default: Parameter, choices: tuple[str, ...]) -> Parameter:
    """The value of a parameter, which has the type of its default or is one of choices."""
    if choices:
        if text in choices:
            return text
        raise UserError(f"rules: {item!r}: {key} must be {' or '.join(choices)}, as in {key}={default}")
    if isinstance(default, str) and text:
        return text
    value: Any
    try:
        value = parse_yaml(text) if text else None
    except ValueError:
        value = None
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, str) or not fits:
        rule = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[type(default)]
        example = EXAMPLES[key] if default == "" else str(default).lower()
        raise UserError(f"rules: {item!r}: {key} must be {rule}, as in {key}={example}")
    converted: Parameter = type(default)(value)  # 3 for a parameter of floats is 3.0
    return converted


def length(
    view: TextStats, *, min_chars: int = 0, max_chars: int = 0, min_words: int = 0, max_words: int = 0
) -> str | None:
    """Drops texts that are too short or too long, in characters or in words (words.py); 0 is no limit.

    A text of only whitespace is too short. min_chars=512 is the task remove_512 of Megatron-LM's
    tools/openwebtext/cleanup_fix_dataset.py.
    """
    chars = len(view.text)
    if chars < min_chars or not view.text.strip():
        return "too_short"
    if max_chars and chars > max_chars:
        return "too_long"
    words = count_words(view.text) if min_words or max_words else 0
    if words < min_words:
        return "too_few_words"
    if max_words and words > max_words:
        return "too_many_words"
    return None


def tokens(
    view: TextStats,
    *,
    min_tokens: int = 128,
    max_tokens: int = 0,
    sure_chars: int = 8,
    tokenizer: Tokenizer | None,
) -> str | None:
    """Drops texts with too few or too many tokens, the end-of-document token included; 0 is no limit.

    Megatron-LM's tools/openwebtext/cleanup_dataset.py requires 128 tokens of GPT-2. As there, tokens are
    counted only if a text has fewer than sure_chars characters per required token. Without a tokenizer
    (`--vocab-file` ...), a token is estimated as four characters.
    """
    chars = len(view.text)
    if not max_tokens and chars >= sure_chars * min_tokens:
        return None
    count = chars / CHARS_PER_TOKEN if tokenizer is None else len(tokenizer.encode(view.text)) + 1
    if count < min_tokens and chars < sure_chars * min_tokens:
        return "too_few_tokens"
    return "too_many_tokens" if max_tokens and count > max_tokens else None


def javascript(view: TextStats, *, max_chars: int = 256) -> str | None:
    """Drops short texts that mention JavaScript: the notice on a page that did not load.

    The task remove_256_javascript of Megatron-LM's tools/openwebtext/cleanup_fix_dataset.py.
    """
    return "javascript_notice" if len(view.text) < max_chars and "javascript" in view.text.lower() else None


def language(view: TextStats, *, keep: str = "en", min_score: float = 0.65, max_chars: int = 0) -> str | None:
    """Drops texts in a language not in `keep` (ISO codes separated by commas, or `all`), or with a low score.

    FineWeb requires English with a score above 0.65 (arXiv 2406.17557, section 3.1); Megatron-LM's
    openwebtext tools require English with any score (of langdetect, whose results are not deterministic).
    max_chars: test only shorter texts, if not 0; max_chars=512 is the task remove_512_non_english of
    cleanup_fix_dataset.py.
    """
    if max_chars and len(view.text) >= max_chars:
        return None
    code, score = view.language
    if keep != ALL and code not in keep.split(","):
        return f"language_{code}"
    return "language_unsure" if score < min_score else None


def fix_text(view: TextStats) -> str:
    """Applies ftfy.fix_text: mojibake, HTML entities, ligatures, curly quotes, control characters, NFC."""
    return repair(view.text)


def punctuation(view: TextStats) -> str:
    """Removes spaces around detached punctuation: `Hello , you ( again ) !` becomes `Hello, you (again)!`.

    Megatron-LM's README names "nltk punctuation standardization" of Wikipedia without further details.
    """
    return standardize(view.text)


def normalize_unicode(view: TextStats, *, form: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC") -> str:
    """Applies a Unicode normalization form; `fix_text` includes NFC."""
    return normalize(form, view.text)


def whitespace(view: TextStats) -> str:
    """Removes whitespace at the ends of lines and of the text, and all but one of consecutive empty lines."""
    text = view.text
    if _TRAILING.search(text) is not None:
        # an expression for the runs before newlines would read each run inside a line from each of its spaces
        text = "\n".join([line.rstrip() for line in text.split("\n")])
    if "\n\n\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n").rstrip()


_TRAILING = re.compile(r"[^\S\n](?:\n|\Z)")


def unique_lines(view: TextStats, *, min_chars: int = 20) -> str:
    """Removes lines of at least min_chars that repeat an earlier line of the text."""
    return drop_repeated_lines(view.text, min_chars)


def boilerplate_lines(view: TextStats, *, max_chars: int = 200) -> str:
    """Removes lines of at most max_chars that mention JavaScript, cookies, terms of use or lorem ipsum.

    These are C4's phrases without the rest of C4: pages are kept, and so are long paragraphs on these
    subjects.
    """
    return without_boilerplate(view.text, max_chars)


def symbol_lines(view: TextStats) -> str:
    """Removes lines of only symbols and control characters, as datatrove's SymbolLinesFormatter does."""
    return without_symbol_lines(view.text)


def redact(
    view: TextStats,
    *,
    email: bool = True,
    ip: bool = True,
    phone: bool = True,
    private_ip: bool = False,
    phone_regions: str = "",
) -> str:
    """Replaces email addresses, IP addresses and telephone numbers by ones reserved for examples.

    private_ip: also replace private and reserved IP addresses. phone_regions: regions (ISO 3166, as in
    `DE,AT`) whose national telephone numbers need no word such as `Tel.` before them.
    """
    regions = tuple(phone_regions.upper().split(",")) if phone_regions else ()
    return redact_text(
        view.text, email=email, ip=ip, phone=phone, private_ip=private_ip, phone_regions=regions
    )


def join_lines(view: TextStats) -> str:
    """Replaces line breaks after a word, and several spaces, by one space.

    The task general_cleaning of Megatron-LM's tools/openwebtext/cleanup_fix_dataset.py.
    """
    if "  " not in view.text and "\n" not in view.text:
        return view.text
    return re.sub(r"  +|\b\n+ |\b\n+", " ", view.text)


# fmt: off
_RULES: tuple[Callable[..., str | None], ...] = (
    length, tokens, language, javascript, gopher_quality, gopher_repetition, fineweb, c4_paragraphs,
)
_EDITS: tuple[Callable[..., str], ...] = (
    fix_text, punctuation, normalize_unicode, whitespace, join_lines, unique_lines, boilerplate_lines,
    symbol_lines, redact, c4,
)
# fmt: on
RULES = {f.__name__: f for f in _RULES}
EDITS = {f.__name__: f for f in _EDITS}
