"""The rules of `mt data clean`: a rule returns a reason to drop a text, or None; an edit a new text.

The items of the setting `rules` are applied from top to bottom. An item is a name, followed by parameters
that differ from the defaults: `gopher_quality min_words=20 max_words=1_000_000`. Names and parameters are
those of the functions below and in quality.py and their keyword arguments.
"""

from __future__ import annotations

import collections
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from ...core.config import UserError, nearest
from ...core.parsing import parse_yaml
from ...core.unicode import normalize
from ...tokenizer.tokenizer import Tokenizer
from .boilerplate import unique_lines as drop_repeated_lines
from .boilerplate import without_boilerplate, without_symbol_lines
from .language import language as detect_language
from .language import languages
from .phone_numbers import phone_regions
from .punctuation import standardize
from .quality import Drop, c4, c4_paragraphs, fineweb, gopher_quality, gopher_repetition
from .redact import redact as redact_text
from .repair import repair
from .text_stats import TextStats

CHARS_PER_TOKEN = 4  # approximate, for English in GPT-2's vocabulary
Parameter = bool | int | float | str  # the types that parameters of rules have


def compile_rules(items: Sequence[str], tokenizer: Tokenizer | None = None) -> CompiledRules:
    """Compiles rules and edits. tokenizer: for the rule `tokens`.

    Raises UserError for an unknown name or parameter.
    """
    return CompiledRules([_compile_item(item, tokenizer) for item in items])


class CompiledRules:
    """Applies rules and edits to texts. edited: how many texts each edit has changed."""

    def __init__(self, steps: Iterable[tuple[str, Callable[[TextStats], str | None], bool]]):
        """steps: (name, function, whether it is an edit)."""
        self.steps = list(steps)
        self.edited = collections.Counter({name: 0 for name, _, is_edit in self.steps if is_edit})

    def __call__(self, text: str) -> str:
        """The edited text, or the `Drop` with the reason to drop it."""
        view = TextStats(text)
        for name, function, is_edit in self.steps:
            outcome = function(view)
            if isinstance(outcome, Drop):
                return outcome
            if not is_edit:
                if outcome is not None:
                    return Drop(outcome)
            elif outcome is not None and outcome != view.text:
                self.edited[name] += 1
                view = TextStats(outcome)
        return view.text


def _compile_item(
    item: str, tokenizer: Tokenizer | None
) -> tuple[str, Callable[[TextStats], str | None], bool]:
    """(name, function of a TextStats, whether it is an edit) of one item of the list."""
    name, *pairs = item.split() or [""]
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
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"rules: {item!r}: {name} has no parameter {key!r}{nearest(key, known)}; {takes}")
        choices = typing.get_args(types[key])
        parameters[key] = _parse_value(item, key, value if equals else "", known[key], choices)
    if name == "language":
        for code in str(parameters.get("keep", "en")).split(","):
            if code not in languages():
                raise UserError(
                    f"rules: {item!r}: {code!r} is not a known language{nearest(code, languages())}; write"
                    " ISO codes, as in keep=en,de"
                )
    if name == "redact":
        for region in filter(None, str(parameters.get("phone_regions", "")).upper().split(",")):
            if region not in phone_regions():
                raise UserError(
                    f"rules: {item!r}: {region!r} is not a known region{nearest(region, phone_regions())};"
                    " write ISO 3166 codes, as in phone_regions=DE,AT"
                )
    bound = functools.partial(function, **parameters)
    if name == "tokens":
        bound = functools.partial(bound, tokenizer=tokenizer)
    return name, bound, name in EDITS


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
        raise UserError(f"rules: {item!r}: {key} must be {rule}, as in {key}={str(default).lower() or '.!?'}")
    converted: Parameter = type(default)(value)  # 3 for a parameter of floats is 3.0
    return converted


def length(
    view: TextStats, *, min_chars: int = 0, max_chars: int = 0, min_words: int = 0, max_words: int = 0
) -> str | None:
    """Drops texts that are too short or too long, in characters or in words between spaces; 0 is no limit.

    A text of only whitespace is too short. min_chars=512 is the task remove_512 of Megatron-LM's
    tools/openwebtext/cleanup_fix_dataset.py.
    """
    chars = len(view.text)
    if chars < min_chars or not view.text.strip():
        return "too_short"
    if max_chars and chars > max_chars:
        return "too_long"
    words = len(view.text.split()) if min_words or max_words else 0
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
    """Drops texts in a language not in `keep` (ISO codes separated by commas), or with a low score.

    FineWeb requires English with a score above 0.65 (arXiv 2406.17557, section 3.1); Megatron-LM's
    openwebtext tools require English with any score (of langdetect, whose results are not deterministic).
    max_chars: test only shorter texts, if not 0; max_chars=512 is the task remove_512_non_english of
    cleanup_fix_dataset.py.
    """
    if max_chars and len(view.text) >= max_chars:
        return None
    code, score = detect_language(view.text)
    if code not in keep.split(","):
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
