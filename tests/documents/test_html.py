"""The main text of pages: each extractor, the library alone, and pages that are no article."""

import unicodedata

import pytest

from mt.core.config import UserError
from mt.documents import html
from mt.documents.html import main_text

STORY = (
    "The old house stood at the end of the lane, and nobody in the village could say who had built it. " * 4
)
ARTICLE = (
    "<html><head><title>T</title><script>var x = 1;</script></head><body><nav><ul><li>Home</li></ul></nav>"
    f"<main><h1>A story</h1><p>{STORY}</p><p>Another paragraph. {STORY}</p></main>"
    "<div class='comments'><p>First!</p></div><footer>Copyright</footer></body></html>"
)
EXTRACTORS = sorted(html.LIBRARIES)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_main_text_is_kept_and_what_stands_around_it_is_not(extractor):
    text = main_text(ARTICLE, extractor)
    assert "A story" in text
    assert text.count(STORY.strip()) == 2
    for other in ("Home", "var x", "Copyright"):
        assert other not in text


@pytest.mark.parametrize("extractor", [e for e in EXTRACTORS if e in html.TRAFILATURA])
def test_the_text_is_that_of_trafilatura_but_for_white_space(extractor):
    import trafilatura

    cafe = (
        "<html><body><main><p>"
        + "Un cafe\u0301 noir, dit-elle, et rien d'autre. " * 9
        + "</p></main></body></html>"
    )
    for page in (
        ARTICLE,
        cafe,
        ARTICLE.replace("<p>", "<ul><li>a<li>b</ul><table><tr><td>c<td>d</table><p>"),
    ):
        expected = trafilatura.extract(page, include_comments=False, **html.TRAFILATURA[extractor])
        assert main_text(page, extractor).split() == expected.split()
        assert unicodedata.is_normalized("NFC", main_text(page, extractor))


def test_the_text_by_resiliparse_is_that_of_its_own_parser():
    from resiliparse.extract.html2text import extract_plain_text

    for page in (ARTICLE, "plain", "<p>a<table><b>b", f"<main>{STORY}</main>" * 50):
        expected = extract_plain_text(page, main_content=True, alt_texts=False).strip()
        assert main_text(page, "resiliparse") == expected


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "page",
    [
        "Words without any tag.",
        "<p>Words of one paragraph.</p>",
        "<nav><p>Words of navigation.</p></nav>",
        "<html><body><footer>Words of a footer.</footer></body></html>",
        f"<html><body><noscript><div><p>Words without scripts. {STORY}</p></div></noscript></body></html>",
        "<?xml version='1.0' encoding='utf-16'?><html><body><p>Words of XHTML.</p></body></html>",
        "<html><body><p>Words\0</p><p>and more.</p></body></html>",
        "<html><body><p>Words and \ud800 a surrogate.</p></body></html>",
        "<html><body>" + "<div>" * 400 + "Words that lie deep." + "</div>" * 400,
        "<html><body>" + "<ul><li>a</ul>" * 4000 + f"<p>Words after lists. {STORY}</p>",
        "<html><body>" + "<b>a</b>" * 30_000 + f"<p>Words after tags. {STORY}</p>",
    ],
    ids=lambda page: page[:40],
)
def test_no_page_with_words_has_an_empty_text(page, extractor):
    assert "Words" in main_text(page, extractor)


def test_a_page_without_text_has_an_empty_one():
    for page in (
        "",
        "<html><body></body></html>",
        "<html><head><script>x</script></head></html>",
        "\0",
        "<!-- a -->",
    ):
        assert main_text(page) == ""


def test_a_fault_of_the_library_costs_no_text(monkeypatch):
    def broken(*arguments, **settings):
        raise AttributeError("fault")

    monkeypatch.setattr("trafilatura.bare_extraction", broken)
    assert main_text(ARTICLE) == main_text(ARTICLE, "resiliparse")


def test_a_page_has_the_same_text_after_any_other():
    pages = [ARTICLE, ARTICLE.replace("old", "new"), f"<html><body><p>{STORY}</p></body></html>"]
    first = [main_text(page) for page in pages]
    assert [main_text(page) for page in pages[::-1] * 3][-3:] == first[::-1]


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(html.LIBRARIES, "resiliparse", ("no-such-library",))
    with pytest.raises(
        UserError, match=r"x needs the package no-such-library; install it with: pip install 'mt-lm\["
    ):
        html.versions("resiliparse", "x")
    assert set(html.versions("trafilatura", "x")) == {
        "page rules",
        "resiliparse",
        "trafilatura",
        "lxml",
        "jusText",
    }


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura", "block_classifier"])
def test_formats_that_are_opened_again_in_each_paragraph_are_refused(extractor):
    opened = "".join(f"<b id={i}>" for i in range(400))
    assert main_text(f"<html><body><p>x{opened}" + "<p>y" * 400, extractor) is None
    closed = "".join(f"<p><b id={i}>Some words of a paragraph that is read.</b>" for i in range(400))
    assert "words of a paragraph" in main_text(f"<html><body>{closed}", extractor)
