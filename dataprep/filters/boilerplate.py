"""Lines that a text is better without: those it has said before, those that only web pages say, and rows of
marks.
"""

from __future__ import annotations

from .text_stats import SYMBOL, classes

# What lines about cookies and terms say (C4: Raffel et al. 2020, JMLR 21/140, section 2.2, and its released
# code).
POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
BOILERPLATE = ("javascript", "lorem ipsum", *POLICY_PHRASES)


def unique_lines(text: str, min_chars: int) -> str:
    """The text without lines of min_chars or more that have stood further up, whatever whitespace is around
    them.
    """
    lines = text.split("\n")
    seen: set[str] = set()
    kept = []
    for line in lines:
        bare = line.strip()
        if len(bare) >= min_chars:
            if bare in seen:
                continue
            seen.add(bare)
        kept.append(line)
    return "\n".join(kept)


def without_boilerplate(text: str, max_chars: int) -> str:
    """The text without lines of at most max_chars that speak of JavaScript, cookies or terms of use, or lorem
    ipsum.
    """
    if not _is_boilerplate(text.lower()):
        return text
    return "\n".join(
        line for line in text.split("\n") if len(line) > max_chars or not _is_boilerplate(line.lower())
    )


def _is_boilerplate(lower: str) -> bool:
    return any(phrase in lower for phrase in BOILERPLATE)


def without_symbol_lines(text: str) -> str:
    """The text without lines of marks, control characters and spaces alone; lines of whitespace stay."""
    return "\n".join(line for line in text.split("\n") if not _is_symbols(line))


def _is_symbols(line: str) -> bool:
    bare = line.strip()
    if not bare or bare[0].isalnum() or bare[-1].isalnum():  # as nearly always
        return False
    table = classes("")
    return all(character == " " or table[ord(character)] & SYMBOL for character in line)
