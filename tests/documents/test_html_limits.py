"""What is open in a page is never counted too low, and pages that take quadratic time are not parsed."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt.documents.html import main_text
from mt.documents.html_limits import (
    LARGE_TAGS,
    MAX_ATTRIBUTES,
    MAX_OPTIONS,
    OpenElements,
    quadratic_markup,
)
from mt.tests.repeated_units import excess

STORY = "<p>A page of prose that is long enough to be the main text of a page.</p>"
NAMES = (
    "div p span section ul li dd dt table tr td th tbody caption colgroup select option optgroup form button"
    " h1 h2 pre template svg g path title desc foreignObject math mi ruby rt object input br textarea script"
    " style noscript iframe body frameset label search a b i nobr font"
)
ODD = ["<!--", "-->", "<![CDATA[", "]]>", ' a="', '">', "'", '<a ="', "<!", "x", '</x a="', "<b id=%d>"]


def tree_depth(page):
    """Levels of the tree that lexbor makes of a page."""
    from resiliparse.parse.html import HTMLTree

    node = HTMLTree.parse(page).document
    root, depth, most = node, 0, 0
    while True:
        most = max(most, depth)
        if node.first_child is not None:
            node, depth = node.first_child, depth + 1
            continue
        while node != root and node.next is None:
            node, depth = node.parent, depth - 1
        if node == root:
            return most
        node = node.next


def opened(page):
    elements = OpenElements()
    elements.read(page)
    return elements


PIECES = st.lists(
    st.one_of(
        st.builds(
            str.format,
            st.sampled_from(["<{}>", "<{}>x", "</{}>", "<{}/>"]),
            st.sampled_from(NAMES.split(" ")),
        ),
        st.sampled_from(ODD),
    ),
    max_size=7,
)


@settings(max_examples=200)
@given(PIECES.map("".join), PIECES.map("".join))
@example("", "<a><b><i><u>")
@example("<div>", "<span></b>")
@example("", '<div><a title="</div>"></a>')
@example("", "<div><!--</div>--><script></div></script><textarea></div></textarea>")
@example("", "<script><!--<script></script></div>--></script><div>")
@example("<svg>", "<b><x/><g></b>")
@example("", "<p><div></p>")
@example("", "<h1><nobr><h1></nobr></nobr><nobr>")
@example("", "<pre></x><select><svg/></pre></select></svg>")
@example("", "<caption><div></caption>")
@example("<math>", "<script></a><x/><applet>")
@example("", "<desc><a><label></label><var></a></var>")
def test_no_tree_is_deeper_than_what_is_counted(before, unit):
    page = before + "".join(unit.replace("%d", str(n)) for n in range(60))
    # a start tag makes up to three elements: a cell makes the row and its group, too
    assert tree_depth(page) <= 3 * opened(page).deepest + 25


def test_what_is_closed_is_not_counted():
    table = "<table>" + "<tr><td><b>a</b><td><p>b" * 1500 + "</table>"
    parts = [
        "<div class='a > b'><p>a <b>bold</b><br><img src=x></div>" * 1500,
        table,
        "<ul>" + "<li><a href=x>a</a>" * 1500 + "</ul>",
        "<dl>" + "<dt>a<dd>b" * 1500 + "</dl>",
        "<p>a" * 1500,
        "<svg><title>a</title><g><path d='M 0'/></g></svg>" * 1500,
        "<script>if (a<b) x('<div>')</script><!-- <div> -->" * 1500,
        "<select><option>a<option>b</select>" * 1500,
        "<b><div>a</b></div><h1>a</h1></p>" * 1500,
    ]
    for part in [*parts, "".join(parts)]:
        assert opened(f"<html><body>{part}</body></html>").deepest < 50, part[:50]
        assert not quadratic_markup(part)


QUADRATIC = [
    "<a><b><i><u>",
    "<a><b>",
    "<nobr><b>",
    "<b><i></b>",
    "<form><div></form>",
    "<a href=x><b><i><u><s><tt>",
    "<x>",
    "<div>a",
    "<b id=%d>x",
    '<a title="</b>"></a><b id=%d>',
    f"<b id=%d>{'<div>' * 9}</b>{'</div>' * 9}",
]


@pytest.mark.parametrize("unit", QUADRATIC)
def test_units_that_would_take_quadratic_time_take_linear_time(unit):
    def page(tags):
        count = tags // unit.count("<")
        return "<body>" + "".join(unit.replace("%d", str(n)) for n in range(count)) + "<p>a" * (count // 4)

    assert quadratic_markup(page(40_000))
    assert excess(main_text, page, 16_000, 0.05) is None


def attributes(count, form):
    return f"<p {' '.join(form % n for n in range(count))}>"


@pytest.mark.parametrize("form", ["a%d", "a%d=1", 'a%d=">"', "a%d='<'", 'a%d = "="', "a%d/"])
def test_attributes_of_a_tag_are_counted_whatever_their_values_are(form, monkeypatch):
    assert not quadratic_markup(attributes(MAX_ATTRIBUTES, form))
    assert main_text(f"<html><body>{STORY}</body></html>")
    monkeypatch.setattr("resiliparse.parse.html.HTMLTree", None)  # nothing is parsed
    assert main_text(f"<html><body>{STORY}{attributes(MAX_ATTRIBUTES + 1, form)}</body></html>") is None


def test_options_are_counted(monkeypatch):
    assert not quadratic_markup("<select>" + "<option>" * MAX_OPTIONS + "</select>")
    assert quadratic_markup(STORY + "<select>" + "<option>" * (MAX_OPTIONS + 1))


def test_a_page_of_few_tags_is_always_parsed():
    assert not quadratic_markup("<div>" * LARGE_TAGS)
    assert quadratic_markup("<div>" * (LARGE_TAGS + 1))
