"""Hidden markup: what the parser would take for text is text, and ordinary pages are not changed."""

import mwparserfromhell
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract import wikitext_markup
from mt.dataprep.extract.wikitext import plain_text
from mt.dataprep.extract.wikitext_markup import MAX_SPAN, MAX_UNCLOSED, split
from mt.dataprep.extract.wikitext_tags import SHOWN

UNCLOSED = ["{{", "{{a|", "[[", "[[a|", "{|\n|", "[http://a "]


def hide(wikitext: str) -> str:
    """The pieces joined; the wikitext itself if there is one piece that equals it."""
    joined = "".join(split(wikitext))
    return wikitext if joined == wikitext else joined


def shown(wikitext: str) -> str:
    return str(
        mwparserfromhell.parse(hide(wikitext), skip_style_tags=True).strip_code(collapse=False)
    ).translate(SHOWN)


@pytest.mark.parametrize("mark", UNCLOSED)
def test_marks_that_stay_open_are_text_as_for_the_parser(mark):
    wikitext = "Some words. " + f"{mark} and more, " * (MAX_UNCLOSED + 1)
    assert hide(wikitext) != wikitext
    assert len(hide(wikitext)) == len(wikitext)
    assert shown(wikitext) == mwparserfromhell.parse(wikitext, skip_style_tags=True).strip_code(
        collapse=False
    )
    assert hide(wikitext).translate(SHOWN) == wikitext


@pytest.mark.parametrize("mark", UNCLOSED)
def test_a_page_with_few_of_them_is_not_changed(mark):
    wikitext = f"Some words. {mark} and [[more]], <ref>a</ref> {{{{b|c=[[d]]}}}} " * MAX_UNCLOSED
    assert hide(wikitext) is wikitext


@pytest.mark.parametrize(
    "wikitext",
    [
        "[[a|b]] {{c|{{d}}}} <i>e</i> {|\n| f\n|} [http://g h]\n" * 300,
        "{{a|}} {{b|c=}}\n{|\n| {{d|}}\n|}\n[[e]]\n" * 300,
    ],
)
def test_closed_markup_is_not_changed(wikitext):
    assert hide(wikitext) is wikitext


def test_marks_nested_deeper_than_the_parser_can_are_text():
    deep = "<div>" * 2_000 + "inside" + "</div>" * 2_000
    assert plain_text(deep) == "inside"
    assert plain_text("[[a|" * 5_000 + "]]" * 5_000).count("[[") > 4_900
    assert plain_text("{{" * 5_000 + "a" + "}}" * 5_000) is not None, "the parser raised RecursionError"


def test_marks_of_lists_leave_nothing_however_many():
    assert plain_text("*" * 100_000 + " item\n" + "#:;" * 50_000 + "next") == "item\nnext"


@given(st.text("{}[]<>|=ab/!-\n* ", max_size=60))
def test_hiding_changes_brackets_and_nothing_else(wikitext):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikitext_markup, "MAX_UNCLOSED", 0)
        patch.setattr(wikitext_markup, "MAX_DEPTH", 2)
        assert hide(wikitext).translate(SHOWN) == wikitext


def test_a_page_of_hopeless_markup_is_cut_where_nothing_is_open():
    wikitext = "{{" * 200 + "[[link|label]] {{a|{{b}}}} c\n" * 2_000
    pieces = split(wikitext)
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 2 * MAX_SPAN
    assert plain_text(wikitext).count("label c") == 2_000


def test_markup_that_spans_a_page_of_hopeless_markup_is_text():
    wikitext = "x {{a|" + "{{" * 200 + "[[b]] " * 5_000 + "}} y"
    assert plain_text(wikitext).count("b ") == 5_000
    assert max(map(len, split(wikitext))) < 2 * MAX_SPAN
