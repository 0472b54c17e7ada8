"""Punctuation spaced as NLTK spaces it: its Treebank detokenizer, on lines that have their marks apart.

Text from Wikipedia, from old corpora and from speech recognisers often has its marks apart (`Hello , world (
again ) !`, ``` `` quoted '' ```, `do n't`); NLTK puts them together as print has them. Where a line has
straight quotes, NLTK's tokenizer first tells which of them open. A line without a mark apart does not go
through it, since it can only lose (`a < b` would become `a <b`).
"""

from __future__ import annotations

import functools
import re

APART = re.compile(
    r"""\s[?!;:,.%)\]}](?:\s|$)|[(\[{]\s|``|\s''|(?i:\s(?:n't|'(?:s|m|d|ll|re|ve))(?:\s|$))""", re.MULTILINE
)


def standardize(text: str) -> str:
    """The text with every line that has marks apart spaced as by NLTK; whitespace around lines stays."""
    if not APART.search(text):
        return text
    return "\n".join(_spaced(line) for line in text.split("\n"))


def _spaced(line: str) -> str:
    bare = line.strip()
    if not APART.search(bare):
        return line
    indent = len(line) - len(line.lstrip())
    tokenize, detokenize = _nltk()
    tokens = tokenize(bare) if '"' in bare and "``" not in bare else [bare]
    return line[:indent] + detokenize(tokens) + line[indent + len(bare) :]


@functools.cache
def _nltk():
    from nltk.tokenize.treebank import TreebankWordDetokenizer, TreebankWordTokenizer

    return TreebankWordTokenizer().tokenize, TreebankWordDetokenizer().detokenize
