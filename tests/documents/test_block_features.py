"""The features of blocks: those of the text against Python's own counting, and those of elements."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.documents.block_features import NUM_FEATURES, features
from mt.documents.html_blocks import read_blocks

TEXT = st.text("abZ9,.! ä中。)\"'", min_size=1, max_size=40).filter(str.strip)
PAGE = (
    "<nav class=menu><ul><li><a href=/>Home</a></li></ul></nav><main><h1>Title</h1>"
    + "<p>A long paragraph, with commas, which has more than eighty characters so that it is long enough.</p>"
    * 3
    + "</main><footer>Imprint</footer>"
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_the_columns_of_the_text_are_those_of_plain_counting(texts):
    blocks = read_blocks("".join(f"<p>{text}</p>" for text in texts))
    for text, row in zip(blocks.texts, features(blocks), strict=True):
        words = text.split()
        letters = [char for char in text if char.isalpha()]
        expected = [
            math.log1p(len(text)),
            len(words),
            0,
            0,
            text.count(","),
        ]
        np.testing.assert_allclose(row[:5], expected, rtol=1e-6)
        shares = [
            sum(len(word) <= 3 for word in words) / len(words),
            sum(word[0].isupper() for word in words) / len(words),
            sum(word[0].isdigit() for word in words) / len(words),
            len(text) / len(words),
        ]
        np.testing.assert_allclose(row[8:12], shares, rtol=1e-6)
        upper = sum(char.isupper() for char in letters) / max(len(letters), 1)
        np.testing.assert_allclose(row[15], upper, rtol=1e-6)


def test_navigation_and_text_differ_in_the_columns_that_matter():
    blocks = read_blocks(PAGE)
    found = features(blocks)
    assert found.shape == (len(blocks.texts), NUM_FEATURES)
    home, title, text, footer = found[0], found[1], found[2], found[-1]
    assert (home[2], text[2]) == (1, 0)  # share of links
    assert (home[16 + 24], text[16 + 24], footer[16 + 24]) == (0, 1, 0)  # in the best element
    assert title[16 + 24 + 12] == text[16 + 24 + 12] == 1  # headings so far
    assert (text[16 + 24 + 13], home[16 + 24 + 14], text[16 + 24 + 14]) == (0, 2, 0)  # to long blocks
    assert (home[16 + 24 + 15], text[16 + 24 + 15]) == (1, 3)  # equal blocks
    assert found[:, -1].tolist()[-3:] == [-1, -1, -1]  # no third block after these


def test_a_page_without_text_has_no_rows():
    assert features(read_blocks("<br>")).shape == (0, NUM_FEATURES)
