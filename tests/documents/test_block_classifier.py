"""Main text by the classifier of blocks: its trees, its text, and pages of a common kind."""

import numpy as np
import pytest

from mt.documents import block_classifier
from mt.documents.block_features import NUM_FEATURES, features
from mt.documents.html import main_text
from mt.documents.html_blocks import read_blocks

PARAGRAPH = (
    "The miller of the old village had never seen so much water in the river, and he told everybody who came"
    " that the winter would be long. Nobody believed him, since the sun was shining, but he was right."
)
PAGE = f"""<html><head><title>A page</title><script>var a = "<p>";</script></head><body>
<header class="site-header"><a href="/">The paper</a></header>
<nav class="main-menu"><ul><li><a href="/a">News</a></li><li><a href="/b">Sport</a></li></ul></nav>
<main><article class="post-content"><h1>The miller and the river</h1>
<p>{PARAGRAPH}</p><p>It was &auml; cold <b>night</b>. {PARAGRAPH}</p><p>{PARAGRAPH}</p></article></main>
<aside class="sidebar related"><h3>Related</h3><ul><li><a href="/c">Ten mills to see</a></li></ul></aside>
<footer class="footer">Copyright 2024 | <a href="/i">Imprint</a></footer></body></html>"""


def test_the_sum_of_leaves_is_that_of_walking_each_tree():
    trees = block_classifier.trees()
    blocks = read_blocks(PAGE)
    expected = []
    for row in features(blocks):
        total = 0.0
        for root in trees.roots.tolist():
            node = root
            while node >= 0:
                left, right = trees.children[node].tolist()
                node = left if row[trees.feature[node]] <= trees.threshold[node] else right
            total += float(trees.values[-1 - node])
        expected.append(1 / (1 + np.exp(-total)))
    np.testing.assert_allclose(block_classifier.probabilities(blocks), expected, rtol=1e-9)


def test_the_trees_in_the_package_are_whole():
    trees = block_classifier.trees()
    assert 0 <= trees.feature.min() <= trees.feature.max() < NUM_FEATURES
    # every node and every leaf is the child of one node, or a root
    reached = np.concatenate([trees.roots, trees.children.ravel()])
    assert sorted(reached) == list(range(-len(trees.values), len(trees.feature)))


def test_the_text_of_an_article_is_found_without_what_is_around_it():
    text = main_text(PAGE, "block_classifier")
    assert text.count(PARAGRAPH) == 3
    assert "It was ä cold night." in text
    assert not any(word in text for word in ("Sport", "Ten mills", "Imprint", "var a"))


def test_cells_of_a_row_are_on_one_line_and_line_breaks_stay():
    blocks = read_blocks("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table><p>d<br> <br>e</p>")
    assert block_classifier.join_blocks(blocks, range(4)) == "a | b\nc\nd\ne"


@pytest.mark.parametrize("page", ["<p>short</p>", "just text", "<nav>a menu</nav>"])
def test_of_a_page_with_text_some_text_comes_out(page):
    assert main_text(page, "block_classifier")


def test_a_page_without_text_has_none():
    assert main_text("<html><body><br></body></html>", "block_classifier") == ""
