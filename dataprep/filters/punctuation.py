"""Remove the spaces around detached punctuation, with NLTK's Treebank detokenizer.

Text from Wikipedia, old corpora and speech recognizers often has spaces around punctuation (`Hello , world (
again ) !`, ``` `` quoted '' ```, `do n't`); NLTK's detokenizer removes them. If a line has straight quotes,
NLTK's tokenizer first decides which of them are opening quotes. A line without detached punctuation is left
alone, since the detokenizer could only damage it (`a < b` would become `a <b`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

DETACHED = re.compile(
    r"""\s[?!;:,.%)\]}](?:\s|$)|[(\[{]\s|``|\s''|(?i:\s(?:n't|'(?:s|m|d|ll|re|ve))(?:\s|$))""", re.MULTILINE
)


def standardize(text: str) -> str:
    """The text with detached punctuation attached in every line; whitespace around lines is kept."""
    if not DETACHED.search(text):
        return text
    return "\n".join(_attach(line) for line in text.split("\n"))


def _attach(line: str) -> str:
    stripped = line.strip()
    if not DETACHED.search(stripped):
        return line
    indent = len(line) - len(line.lstrip())
    tokenize, detokenize = _nltk()
    tokens = tokenize(stripped) if '"' in stripped and "``" not in stripped else [stripped]
    return line[:indent] + detokenize(tokens) + line[indent + len(stripped) :]


@functools.cache
def _nltk() -> tuple[Callable[[str], list[str]], Callable[[list[str]], str]]:
    """NLTK's Treebank tokenizer and detokenizer."""
    from nltk.tokenize.treebank import TreebankWordDetokenizer, TreebankWordTokenizer

    return TreebankWordTokenizer().tokenize, TreebankWordDetokenizer().detokenize
