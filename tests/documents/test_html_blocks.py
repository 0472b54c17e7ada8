"""The blocks of text of HTML pages: the text against a parser of the standard, and the elements around it."""

import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resiliparse.parse.html import HTMLTree

from mt.documents.html_blocks import (
    ARIA_HIDDEN,
    CONTEXTS,
    EMPTY,
    HIDDEN,
    LINE_END,
    MAX_OPEN,
    TAGS,
    class_bits,
    read_blocks,
)

TEXT = st.text("abc äж.,", min_size=1, max_size=12)
NODES = st.recursive(
    TEXT.map(html.escape),
    lambda inner: st.tuples(
        st.sampled_from(["div", "section", "blockquote", "span", "b", "i", "a", "article", "li", "main"]),
        st.lists(inner, max_size=4),
    ).map(lambda node: f"<{node[0]}>{''.join(node[1])}</{node[0]}>"),
    max_leaves=20,
)


@settings(max_examples=100)
@given(st.lists(NODES, min_size=1, max_size=5))
def test_all_text_of_a_page_is_found_in_order(nodes):
    page = f"<html><body>{''.join(nodes)}</body></html>"
    # a nested link ends the one around it in the standard, which moves no text
    expected = HTMLTree.parse(page).body.text
    assert "".join("".join(read_blocks(page).texts).split()) == "".join(expected.split())


@settings(max_examples=200)
@given(st.text("<>/!-abdipv =\"'&#;1\x00\x01\x02 ", max_size=60))
def test_any_text_is_read_without_an_error(page):
    blocks = read_blocks(page)
    count = len(blocks.texts)
    assert all(text.strip(EMPTY) for text in blocks.texts)
    assert all(len(column) == count for column in (blocks.element, blocks.link_chars, blocks.links))
    assert all(around < number for number, around in enumerate(blocks.parent) if number)


def test_a_block_is_what_stands_between_tags_of_blocks():
    page = "<h1>A <i>title</i></h1><p>One<br>two<p>three<ul><li>four<li>five</ul>six"
    blocks = read_blocks(page)
    assert blocks.texts == ["A title", f"One{LINE_END}two", "three", "four", "five", "six"]
    names = {number: name for name, number in TAGS.items()}
    tags = [names[blocks.tag[element]] for element in blocks.element]
    assert tags == ["h1", "p", "p", "li", "li", "other"]


@pytest.mark.parametrize(
    "hidden",
    [
        "<script>x < y; '<p>no</p>'</script>",
        "<style>no</style>",
        "<!-- <p>no</p> -->",
        "<svg><text>no</text></svg>",
        "<noscript><p>no</p></noscript>",
        "<select><option>no<option>no</select>",
        "<button><div>no</div></button>",
    ],
)
def test_what_is_no_text_of_a_page_is_left_out(hidden):
    assert read_blocks(f"<p>yes</p>{hidden}<p>also</p>").texts == ["yes", "also"]


def test_links_and_bold_text_are_counted_for_each_block():
    blocks = read_blocks("<p>x <a href=/>link</a> y</p><p><b>bold</b> text <a>a</a><a>b</a></p>")
    assert (blocks.link_chars, blocks.bold_chars, blocks.links) == ([4, 2], [0, 4], [1, 2])


def test_elements_pass_on_their_contexts_and_classes():
    blocks = read_blocks("<footer class=Copyright2024><div><p>x</p></div></footer><p>y</p>")
    first, second = blocks.element
    assert blocks.context[first] == CONTEXTS["footer"] | CONTEXTS["p"]
    assert blocks.context[second] == CONTEXTS["p"]
    assert blocks.classes[first] == class_bits(" class=copyright")
    assert blocks.classes[second] == blocks.own_classes[first] == 0
    assert blocks.depth[first] == 3


@pytest.mark.parametrize(
    ("attributes", "bits"),
    [
        (" hidden", HIDDEN),
        (" style='display: none'", HIDDEN),
        (" style='color: red'", 0),
        (" aria-hidden=true", ARIA_HIDDEN),
        (" data-x=sidebar data-class=sidebar", 0),
        (" href='/comment'", 0),
    ],
)
def test_attributes_that_say_nothing_count_for_nothing(attributes, bits):
    assert class_bits(attributes) == bits


def test_characters_that_separate_blocks_are_spaces_in_a_page():
    assert read_blocks("<p>a\x01b\x02c&#1;d&#x2;e</p>").texts == ["a b cde"]


def test_character_references_are_read_and_endless_ones_do_no_harm():
    assert read_blocks(f"<p>&eacute;&#233;&#{'9' * 5000};x</p>").texts == ["éé\ufffdx"]


def test_elements_that_are_never_closed_are_known_up_to_a_depth():
    blocks = read_blocks("<div>" * 5000 + "x" + "</div>" * 5000 + "<p>y")
    assert blocks.texts == ["x", "y"]
    assert max(blocks.depth) == MAX_OPEN - 1
