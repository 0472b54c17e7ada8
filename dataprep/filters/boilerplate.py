"""Remove lines from a text: repeated lines, boilerplate of web pages, and lines of symbols."""

from __future__ import annotations

from .text_stats import SYMBOL, character_classes

# Phrases of lines about cookies and terms of use in C4 (Raffel et al. 2020, JMLR 21/140, section 2.2, and its
# released code).
POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
COOKIE = "cookie"  # in most of them: a text without it is searched for the others alone
WITHOUT_COOKIE = tuple(phrase for phrase in POLICY_PHRASES if COOKIE not in phrase)
BOILERPLATE = ("javascript", "lorem ipsum", *POLICY_PHRASES)


def policy_phrases(lower: str) -> list[str]:
    """The POLICY_PHRASES in a lower-case text."""
    phrases = POLICY_PHRASES if COOKIE in lower else WITHOUT_COOKIE
    return [phrase for phrase in phrases if phrase in lower]


def unique_lines(text: str, min_chars: int) -> str:
    """The text without lines of at least min_chars that repeat an earlier one (stripped)."""
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        stripped = line.strip()
        if len(stripped) >= min_chars:
            if stripped in seen:
                continue
            seen.add(stripped)
        kept.append(line)
    return "\n".join(kept)


def without_boilerplate(text: str, max_chars: int) -> str:
    """The text without lines of at most max_chars that contain a phrase of BOILERPLATE."""
    if not _is_boilerplate(text.lower()):
        return text
    return "\n".join(
        line for line in text.split("\n") if len(line) > max_chars or not _is_boilerplate(line.lower())
    )


def _is_boilerplate(lower: str) -> bool:
    return any(phrase in lower for phrase in BOILERPLATE)


def without_symbol_lines(text: str) -> str:
    """The text without lines of only symbols, control characters and spaces; whitespace lines are kept."""
    return "\n".join(line for line in text.split("\n") if not _is_symbols(line))


def _is_symbols(line: str) -> bool:
    stripped = line.strip()
    if not stripped or stripped[0].isalnum() or stripped[-1].isalnum():  # almost all lines, without the table
        return False
    table = character_classes("")
    return all(character == " " or table[ord(character)] & SYMBOL for character in line)
