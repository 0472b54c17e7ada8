"""how a tokenised corpus is undone: the spelling of WikiText and of Penn Treebank back to ordinary text.

The rules are Megatron-LM's (tasks/zeroshot_gpt/detokenizer.py; lm-eval has the same for WikiText), applied in
their order to the whole text. Megatron-LM chose them by a substring of the file's path; here the user does.
"""

from __future__ import annotations

# (what stands in the file, what it becomes), in order
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
    # The reference also has re.sub(r"/' [0-9]/", r"/'[0-9]/", text): between its slashes it matches nothing
    # in any prose.
    text = _replace(text, WIKITEXT_SPACING)
    for left, right in BRACKETS:
        text = _trim_inside(text, left, right)
    return _replace(text, WIKITEXT_REST)


def ptb(text: str) -> str:
    return _replace(text, PTB)


DETOKENIZERS = {"none": str, "wikitext": wikitext, "ptb": ptb}


def _replace(text: str, rules) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text


def _trim_inside(text: str, left: str, right: str) -> str:
    """`( a )` becomes `(a)`, for each left mark and the right mark that follows next.

    The reference's pattern `\\(\\s*([^\\)]*?)\\s*\\)` gives the same, but takes quadratic time where marks
    stay open.
    """
    pieces, done = [], 0
    while (a := text.find(left, done)) >= 0 and (b := text.find(right, a + 1)) >= 0:
        pieces += [text[done:a], left, text[a + 1 : b].strip(), right]
        done = b + 1
    return "".join(pieces) + text[done:]
