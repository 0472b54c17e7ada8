"""Detokenisers: convert the tokenised spelling of WikiText and Penn Treebank back to ordinary text.

The rules are Megatron-LM's (tasks/zeroshot_gpt/detokenizer.py; lm-eval has the same for WikiText), applied to
the whole text in order. Megatron-LM selects them by a substring of the file's path; here the user does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

# (text in the file, its replacement), in order
WIKITEXT_SPACING = (
    ("s '", "s'"),
    (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
WIKITEXT_REST = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="),
    (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip
PTB = (
    (" '", "'"), (" \n", "\n"), ("\n ", "\n"), (" n't", "n't"), (" N ", "1 "), ("$ 1", "$1"), ("# 1", "#1"),
)  # fmt: skip


def wikitext(text: str) -> str:
    # The reference also has re.sub(r"/' [0-9]/", r"/'[0-9]/", text), which is omitted: with slashes in the
    # pattern it matches no prose.
    text = _replace(text, WIKITEXT_SPACING)
    for left, right in BRACKETS:
        text = _trim_inside(text, left, right)
    return _replace(text, WIKITEXT_REST)


def ptb(text: str) -> str:
    return _replace(text, PTB)


DETOKENIZERS: dict[str, Callable[[str], str]] = {"none": str, "wikitext": wikitext, "ptb": ptb}


def _replace(text: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text


def _trim_inside(text: str, left: str, right: str) -> str:
    """`( a )` becomes `(a)`, for each left mark and the next right mark.

    The reference's pattern `\\(\\s*([^\\)]*?)\\s*\\)` gives the same text, but takes quadratic time where
    marks stay open.
    """
    pieces, done = [], 0
    while (a := text.find(left, done)) >= 0 and (b := text.find(right, a + 1)) >= 0:
        pieces += [text[done:a], left, text[a + 1 : b].strip(), right]
        done = b + 1
    return "".join(pieces) + text[done:]
