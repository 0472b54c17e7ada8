"""The compiled loops against the same rules in Python, on random markup."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.documents import html_blocks
from mt.documents.html_blocks import BLOCKS, WORD_ATTRIBUTES, class_bits, read_blocks
from mt.documents.html_limits import RAW_TEXT

from . import reference_html_blocks

NAMES = sorted(BLOCKS | RAW_TEXT | {"a", "b", "br", "span", "strong", "DIV", "bloc\u212aquote", "blocquotes"})
SPACE = ["", " ", "\n", "\t\x0b\x1c\x1f", "\xa0\u3000"]
PIECES = [
    *SPACE, *"<>/!?-=&;'\"", "x", "é", "\u212a", "\0", "\x01", "\x02", "\ud800", "&#1;", "&amp;", "&nbsp;",
    "&am", "p;", "<!--", "-->", "--!>", "<!-->", "<!--->", "<![CDATA[", "]]>", "</", "<script", "</script>",
    "</script",
]  # fmt: skip
VALUES = [
    "nav", "Sidebar", "post2024-content", "ads", "true", "TRUE", "a b", "menu\x1ffoot", "display : none",
    "é nav", "n" * 99 + "nav", "\u017fhare", "li\u212ae",
]  # fmt: skip
ATTRIBUTES = st.lists(
    st.one_of(
        st.sampled_from([*SPACE, "=", "/", "'", '"', "-", "x", " \r"]),
        st.sampled_from(
            [*WORD_ATTRIBUTES, "STYLE", "style", "hidden", "aria-hidden", "aria\rhidden", "data-id"]
        ),
        st.tuples(st.sampled_from(["=", " = "]), st.sampled_from(VALUES)).map("".join),
        st.tuples(st.sampled_from(["='{}'", '="{}"', ' = "{}"', "='{}"]), st.sampled_from(VALUES)).map(
            lambda pair: pair[0].format(pair[1])
        ),
    ),
    max_size=10,
).map("".join)
TAG = st.tuples(
    st.sampled_from(["<", "<", "</"]),
    st.sampled_from(NAMES),
    st.one_of(st.just(""), ATTRIBUTES.map(lambda attributes: f" {attributes}")),
    st.sampled_from([">", ">", ">", ">", "/>", ""]),
).map("".join)
MARKS = [
    "<!--",
    "-->",
    "--!>",
    "->",
    "-",
    ">",
    "<script>",
    "<SCRIPT ",
    "</script>",
    "</title",
    "x",
    "]]>",
    " ",
]
HIDING = st.tuples(
    st.sampled_from(["<!--", "<!---", "<script>", "<title>", "<style x>", "<![CDATA[", "<!", "</ "]),
    st.lists(st.sampled_from(MARKS), max_size=5).map("".join),
    st.sampled_from(["--!>a<p>", "-->a<p>", "</script>a<p>", "</title>a<p>", "</style >a<p>", "]]>a<p>"]),
).map("".join)
PAGES = st.lists(st.one_of(TAG, st.sampled_from(PIECES), HIDING), max_size=30).map("".join)


@settings(max_examples=600)
@given(PAGES)
def test_the_compiled_loops_read_as_the_rules_in_python_do(page):
    assert read_blocks(page) == reference_html_blocks.read_blocks(page)


@settings(max_examples=300)
@given(st.text("<>/!-abdiprst =\"'&#;1\x00\x01\x02 \r", max_size=60))
def test_any_text_is_read_as_the_rules_in_python_read_it(page):
    assert read_blocks(page) == reference_html_blocks.read_blocks(page)


@settings(max_examples=600)
@given(ATTRIBUTES)
def test_the_compiled_loops_read_attributes_as_the_regular_expression_does(attributes):
    text = f" {attributes}"
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found = html_blocks._own_classes(text, codes, np.array([0]), np.array([len(text)]))
    assert found.tolist() == [class_bits(text)]


def test_many_different_words_are_told_apart():
    words = [f"{word}-{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(600) for word in
             ("nav", "foot", "share", "xx", "meta", "body", "grid", "dek", "vcard", "tabs")]  # fmt: skip
    page = "".join(
        f"<div class='{word} {words[-number]}' id={word}>x</div>" for number, word in enumerate(words)
    )
    assert read_blocks(page) == reference_html_blocks.read_blocks(page)


def test_long_attributes_and_deep_elements_are_cut_at_the_same_place():
    long = "".join(f"<p title='{'x' * size}' class=nav>y" for size in range(3970, 4000))
    deep = (
        "<div><b>" * 1200
        + "x"
        + "</section></div>" * 70
        + "</div>" * 1200
        + "<ul>"
        + "<span><em><div>" * 20
        + "<li>"
    )
    page = long + deep + "<section>" + "<div>" * 64 + "a</section>b" + "<li>" + "<div>" * 16 + "<li>c"
    assert read_blocks(page) == reference_html_blocks.read_blocks(page)
