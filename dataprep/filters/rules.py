"""rules of `clean`: a rule is a function that returns the reason to drop, or None; an edit returns the mended
text.

The list in the setting `rules` is applied from top to bottom. An item is a name, followed by parameters where
the defaults do not fit: `gopher_quality min_words=20 max_words=1_000_000`. The functions below and in
quality.py and their keyword arguments are that language.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import yaml

from ...core.config import UserError, nearest
from ...tokenizer.tokenizer import Tokenizer
from .boilerplate import unique_lines as drop_repeated_lines
from .boilerplate import without_boilerplate, without_symbol_lines
from .language import language as detect_language
from .language import languages
from .punctuation import standardize
from .quality import Drop, c4, c4_paragraphs, fineweb, gopher_quality, gopher_repetition
from .redact import redact as redact_text
from .repair import repair
from .text_stats import Text

CHARS_PER_TOKEN = 4  # of English in GPT-2's vocabulary, about


def compile_rules(items: Sequence[str], tokenizer: Tokenizer | None = None) -> Callable[[str], str]:
    """A function from a text to the mended text, or to the `Drop` that says why it goes.

    Its attribute `edited` counts the texts that each edit changed. tokenizer: for the rule `tokens`. Raises
    UserError for an unknown name or parameter.
    """
    steps = [_step(item, tokenizer) for item in items]
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


def _step(item: str, tokenizer: Tokenizer | None) -> tuple[str, Callable, bool]:
    """(name, function of a Text, whether it edits) of one item of the list."""
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
    kinds = typing.get_type_hints(function)
    parameters = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"rules: {item!r}: {name} has no parameter {key!r}{nearest(key, known)}; {takes}")
        parameters[key] = _value(
            item, key, value if equals else None, known[key], typing.get_args(kinds[key])
        )
    if name == "language":
        for code in parameters.get("keep", "en").split(","):
            if code not in languages():
                raise UserError(
                    f"rules: {item!r}: {code!r} is not a language that is known{nearest(code, languages())};"
                    " write ISO codes, as in keep=en,de"
                )
    if name == "tokens":
        parameters["tokenizer"] = tokenizer
    return name, functools.partial(function, **parameters), name in EDITS


def _value(item: str, key: str, text: str | None, default, choices: tuple[str, ...]):
    """A parameter's value, of the type of its default, or one of choices."""
    if choices:
        if text in choices:
            return text
        raise UserError(f"rules: {item!r}: {key} must be {' or '.join(choices)}, as in {key}={default}")
    if isinstance(default, str) and text:
        return text
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = None
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[type(default)]
    fits = (
        isinstance(value, bool)
        if isinstance(default, bool)
        else isinstance(value, int if isinstance(default, int) else int | float)
        and not isinstance(value, bool)
    )
    if isinstance(default, str) or not fits:
        raise UserError(
            f"rules: {item!r}: {key} must be {wanted}, as in {key}={str(default).lower() or '.!?'}"
        )
    return type(default)(value)


def length(
    view: Text, *, min_chars: int = 0, max_chars: int = 0, min_words: int = 0, max_words: int = 0
) -> str | None:
    """Too short or too long, in characters or in words between whitespace; 0 is no limit.

    A text of whitespace is too short.

    min_chars=512 is Megatron-LM's tools/openwebtext/cleanup_fix_dataset.py, task remove_512.
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
    view: Text,
    *,
    min_tokens: int = 128,
    max_tokens: int = 0,
    sure_chars: int = 8,
    tokenizer: Tokenizer | None,
) -> str | None:
    """Too few or too many tokens, the one that ends a document counted too; 0 is no limit.

    Megatron-LM tools/openwebtext/cleanup_dataset.py: 128 tokens of GPT-2, counted only where a text has fewer
    than sure_chars characters for each token that it needs. Where no tokenizer is named (`--vocab-file` ...),
    four characters are taken for a token.
    """
    chars = len(view.text)
    if not max_tokens and chars >= sure_chars * min_tokens:
        return None
    count = chars / CHARS_PER_TOKEN if tokenizer is None else len(tokenizer.encode(view.text)) + 1
    if count < min_tokens and chars < sure_chars * min_tokens:
        return "too_few_tokens"
    return "too_many_tokens" if max_tokens and count > max_tokens else None


def javascript(view: Text, *, max_chars: int = 256) -> str | None:
    """A short text that speaks of JavaScript: the notice of a page that did not load.

    Megatron-LM tools/openwebtext/cleanup_fix_dataset.py, task remove_256_javascript.
    """
    return "javascript_notice" if len(view.text) < max_chars and "javascript" in view.text.lower() else None


def language(view: Text, *, keep: str = "en", min_score: float = 0.65, max_chars: int = 0) -> str | None:
    """A text in another language than those of `keep` (ISO codes, commas between), or in none that can be
    told.

    FineWeb wants English with a score above 0.65 (arXiv 2406.17557, section 3.1); Megatron-LM's openwebtext
    tools want English, whatever the score (langdetect's, which changes from run to run). max_chars: judge
    only texts shorter than that, where it is not 0 (cleanup_fix_dataset.py, task remove_512_non_english:
    max_chars=512).
    """
    if max_chars and len(view.text) >= max_chars:
        return None
    code, score = detect_language(view.text)
    if code not in keep.split(","):
        return f"language_{code}"
    return "language_unsure" if score < min_score else None


def fix_text(view: Text) -> str:
    """What ftfy.fix_text makes of it: mojibake, HTML entities, ligatures, curly quotes, control characters,
    NFC.
    """
    return repair(view.text)


def punctuation(view: Text) -> str:
    """Punctuation spaced as NLTK's detokenizer spaces it: `Hello , world ( again ) !` becomes `Hello, world
    (again)!`.

    Megatron-LM's README asks for "nltk punctuation standardization" of Wikipedia and does not say more.
    """
    return standardize(view.text)


def normalize_unicode(view: Text, *, form: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC") -> str:
    """Unicode's normalization form of it; `fix_text` gives NFC by itself."""
    return unicodedata.normalize(form, view.text)


def whitespace(view: Text) -> str:
    """No whitespace at the ends of lines or of the text, tabs and newlines kept, at most one empty line in a
    row.
    """
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


def symbol_lines(view: Text) -> str:
    """No line of marks and control characters alone (datatrove's SymbolLinesFormatter); empty lines stay."""
    return without_symbol_lines(view.text)


def redact(
    view: Text, *, email: bool = True, ip: bool = True, phone: bool = True, private_ip: bool = False
) -> str:
    """Email addresses, IP addresses and telephone numbers replaced by ones that belong to nobody.

    Private and reserved IP addresses stay unless private_ip asks for them too.
    """
    return redact_text(view.text, email=email, ip=ip, phone=phone, private_ip=private_ip)


def join_lines(view: Text) -> str:
    """Line breaks after a word and runs of spaces become one space.

    Megatron-LM tools/openwebtext/cleanup_fix_dataset.py, task general_cleaning, its regular expression.
    """
    if "  " not in view.text and "\n" not in view.text:
        return view.text
    return re.sub(r"  +|\b\n+ |\b\n+", " ", view.text)


RULES = {
    f.__name__: f
    for f in (length, tokens, language, javascript, gopher_quality, gopher_repetition, fineweb, c4_paragraphs)
}
EDITS = {
    f.__name__: f
    for f in (
        fix_text,
        punctuation,
        normalize_unicode,
        whitespace,
        join_lines,
        unique_lines,
        boilerplate_lines,
        symbol_lines,
        redact,
        c4,
    )
}
