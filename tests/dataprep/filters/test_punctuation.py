"""Detached punctuation, compared with NLTK and a table worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import TreebankWordTokenizer
from nltk.tokenize.treebank import TreebankWordDetokenizer

from mt.dataprep.filters.punctuation import DETACHED, standardize
from mt.dataprep.filters.rules import compile_rules

tokenize, detokenize = TreebankWordTokenizer().tokenize, TreebankWordDetokenizer().detokenize
PIECES = [
    *" .,;:!?'\"()[]{}<>#$%&-`",
    "''",
    "``",
    " -- ",
    "a",
    "Bc",
    "12",
    "n't",
    "can",
    "not",
    "gon",
    "na",
    "wan",
    "more",
    "'n",
    "d",
    "'ye",
    "'t",
    "is",
    "was",
    "...",
    "\t",
    "\xa0",
    "“",
    "é",
]
LINE = st.lists(st.sampled_from(PIECES) | st.characters(exclude_characters="\n\r"), max_size=20).map("".join)


@settings(deadline=None)  # the first example loads NLTK
@given(st.lists(LINE, max_size=4))
def test_lines_with_detached_punctuation_are_those_of_nltk_and_others_are_unchanged(lines):
    bare = [line.strip() for line in lines]
    tokens = [tokenize(line) if '"' in line and "``" not in line else [line] for line in bare]
    assert standardize("\n".join(bare)) == "\n".join(
        detokenize(t) if DETACHED.search(line) else line for line, t in zip(bare, tokens)
    )


@pytest.mark.parametrize(
    ("apart", "together"),
    [
        ("Hello , world ( again ) !", "Hello, world (again)!"),
        ("`` It 's so , '' he said ; they do n't .", "\"It's so,\" he said; they don't."),
        ("  An indented , line \t\nand another one .\n", "  An indented, line \t\nand another one.\n"),
        ('It said , "well" ; and "why" ?', 'It said, "well"; and "why"?'),
        ("Where a < b and a > 0 and [ 2 ] \n a < b", "Where a <b and a> 0 and [2] \n a < b"),
        ('Nothing to do here, "really" (so).', 'Nothing to do here, "really" (so).'),
    ],
)
def test_punctuation_is_attached_to_words(apart, together):
    assert compile_rules(["punctuation"])(apart) == together


def test_text_tokenized_by_nltk_is_restored():
    text = "The people (of this town) can't see it, they're told; why? It's 3,000.50 away."
    assert standardize(" ".join(TreebankWordTokenizer().tokenize(text))) == text
