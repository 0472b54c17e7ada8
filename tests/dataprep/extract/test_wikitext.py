"""The text of wikitext: labelled paragraphs in six languages, quotes, links, remains, and what is counted."""

import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract import wikitext
from mt.dataprep.extract.wikitext import OTHERS, PREFIXES, bound, plain_text, without_quotes, without_remains
from mt.dataprep.extract.wikitext_tags import REMOVED

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
PARAGRAPHS = [
    json.loads(line)
    for line in (FIXTURES / "wikipedia_paragraphs.jsonl").read_text("utf-8").split("\n")
    if line
]
LOCAL = {**PREFIXES, "datei": "file", "kategorie": "category", "archivo": "file", "categoría": "category"}


@pytest.mark.parametrize("paragraph", PARAGRAPHS, ids=range(len(PARAGRAPHS)))
def test_a_labelled_paragraph_has_the_text_that_a_reader_sees(paragraph):
    assert plain_text(paragraph["wikitext"], LOCAL, language=paragraph["language"]) == paragraph["text"]


def test_the_labelled_paragraphs_are_many_and_of_several_languages():
    languages = Counter(paragraph["language"] for paragraph in PARAGRAPHS)
    assert len(PARAGRAPHS) >= 60
    assert min(languages[code] for code in ("en", "de", "fr", "es", "ru", "ja")) >= 5


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("''a'' '''b''' '''''c'''''", "a b c"),
        ("l'''Iliade'' and more", "l'Iliade and more"),
        ("the '''Iliade'' of s'''", "the Iliade of s"),
        ("''''a'''", "'a"),
        ("''''''a'''''", "'a"),
        ("it's y' and f''", "it's y' and f"),
        ("a '''b''c", "a 'bc"),
        ("ab'''c d'''e''f '''g''", "abc de'f g"),
        ("no quotes", "no quotes"),
    ],
)
def test_quotes_are_read_as_by_mediawiki(markup, text):
    """Worked by hand with Parser::doQuotes of MediaWiki."""
    if markup.startswith("ab"):
        text = without_quotes(markup)  # two of each kind: only that all apostrophes go
        assert "''" not in text
    assert without_quotes(markup) == text


@given(st.text("ab '", max_size=40))
def test_quotes_take_nothing_but_apostrophes(line):
    shown = without_quotes(line)
    assert shown.replace("'", "") == line.replace("'", "")
    assert line.count("'") - shown.count("'") != 1


@given(st.text(" \t\n(),;:.a", max_size=30))
def test_nothing_is_tidied_where_nothing_was_removed(text):
    assert without_remains(text) == text
    assert without_remains(text + " b" + REMOVED) == text + " b"


@given(st.text(" \t\n(),;:.a" + REMOVED, max_size=30))
def test_tidying_keeps_all_words_and_leaves_no_mark(text):
    tidy = without_remains(text)
    assert REMOVED not in tidy
    assert re.findall("a+", tidy) == re.findall("a+", text.replace(REMOVED, "")) or tidy.count(
        "a"
    ) == text.count("a")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a {{x}}, b", "a, b"),
        ("a ({{x}}) b", "a b"),
        ("a ({{x}}; born 1912) b", "a (born 1912) b"),
        ("a (born 1912; {{x}}) b", "a (born 1912) b"),
        ("a (1, {{x}}, 2)", "a (1, 2)"),
        ("a [] () (,) M(2,:) , b", "a [] () (,) M(2,:) , b"),
        ("Voici : le {{x}} mot ; fin", "Voici : le mot ; fin"),
        ("{a, b} is a set.\n|z| = 1 is a circle.", "{a, b} is a set.\n|z| = 1 is a circle."),
        ("{{Infobox\n| a = b\nText.", "Text."),
        ("Text.\n{|\n! a\n| b\nMore.\n== C ==\n| d |", "Text.\nMore.\nC\n| d |"),
        ("&#91;&#91;a]] &lt;b> &amp;amp; &#2; &#x41;", "[[a]] <b> &amp; &#2; A"),
        ("{{#time: a | b}}c {{DEFAULTSORT:x}}d {{{e|f}}} {{{g}}}.", "c d f."),
        (
            "{{lc:ABC}} {{uc:abc}} {{ucfirst:abc}} {{formatnum:1,234|R}} {{Template:Nowrap|e}}",
            "abc ABC Abc 1234 e",
        ),
        (
            "{{nowrap|1=b}}, {{Nowrap|c|d=e}}, {{nowrap|{{nowrap|{{lang|de|f}}}}}}",
            "b, c, f",
        ),
        ("[[a|{{lang|de|b}}]] [[{{lang|de|c}}]] [http://d {{lang|de|e}}]", "b c e"),
        ("{{plainlist|\n* [[a]]\n* {{lang|de|b}}\n}}", "a\nb"),
        ("{{quote|{{ubl|a|b}}|c}}", "a\nb\n— c"),
        ("[[File:a.jpg|{{convert|5|km}} <ref>b</ref>]]c", "c"),
    ],
)
def test_markup_and_templates_within_each_other(markup, text):
    assert plain_text(markup) == text


def test_the_name_of_the_page_is_known():
    assert plain_text("{{PAGENAME}} is a {{lc:{{PAGENAME}}}}.", title="House") == "House is a house."


def test_what_is_dropped_is_counted_by_kind():
    dropped = Counter()
    plain_text(
        "{{Infobox person|name={{nowrap|a}}}}Words<ref>b</ref><ref name=c /> {{infobox_person}}[[File:d]]"
        "[[Category:e]][[de:f]]<gallery>g</gallery><!-- h -->{{#time:i}}{{DEFAULTSORT:j}}__TOC__<b>k\n"
        "{|\n|{{l}}\n|}\n== m ==\n{{unclosed",
        dropped=dropped,
    )
    assert dropped == {
        "template:Infobox person": 2,
        "reference": 2,
        "file": 1,
        "category": 1,
        "interlanguage_link": 1,
        "gallery": 1,
        "comment": 1,
        "function:#time": 1,
        "function:DEFAULTSORT": 1,
        "magic_word": 1,
        "unpaired_tag": 1,
        "table": 1,
        "empty_section": 1,
        "unclosed_markup": 1,
    }


def test_names_of_templates_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(wikitext, "MAX_KINDS", 10)
    dropped = Counter({"reference": 1})
    for i in range(100):
        dropped.update({f"template:{i}": 1 + (i == 50)})
        bound(dropped, 10, 5)
        assert len(dropped) <= 11
    assert sum(dropped.values()) == 102
    assert dropped["reference"] == 1
    assert dropped["template:50"] == 2
    assert dropped[OTHERS] > 80


@given(st.text("{}[]|=<>'\n a", max_size=80))
def test_no_wikitext_raises_or_leaves_a_mark(markup):
    assert not re.search("[\x00-\x08\x0b-\x1f]", plain_text(markup))


def test_many_levels_of_templates_do_not_multiply_the_text():
    for name in ("nowrap", "lang|de", "ill", "quote", "convert", "val", "USS", "frac|1", "harv"):
        deep = f"{{{{{name}|" * 25 + "word" + "}}" * 25
        assert len(plain_text(deep)) < 40 * 25


PIECES = st.sampled_from(
    [
        "{{x|",
        "{{nowrap|",
        "{{x}}",
        "}}",
        "{|\n",
        "\n|}",
        "\n| a || b",
        "[[a|",
        "]]",
        "word ",
        "\n",
        "|",
        "(",
        ")",
        ",",
        "==",
    ]
)


@given(st.lists(PIECES, max_size=25).map("".join))
def test_templates_dropped_before_the_parser_runs_leave_the_same_words(markup):
    """Where all markup is closed; the parser has its own ways with what is not."""
    pairs = [markup.count(a) == markup.count(b) for a, b in (("{{", "}}"), ("{|", "|}"), ("[[", "]]"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikitext.wikitext_markup, "outermost", lambda *arguments: [])
        parsed = plain_text(markup)
    if all(pairs) and not wikitext.wikitext_markup._match(markup)[1]:
        assert re.findall("word", plain_text(markup)) == re.findall("word", parsed)


def test_unknown_templates_and_tables_are_dropped_before_the_parser_runs(monkeypatch):
    parsed = []
    split = wikitext.wikitext_markup.split
    monkeypatch.setattr(wikitext.wikitext_markup, "split", lambda text: parsed.append(text) or split(text))
    text = "{{x|{{nowrap|a}}}}b {{nowrap|c{{y}}}} {{PAGENAME}}\n{|\n| d\n|}\ne{{#if:f}} {{:g}} [[h|{{z}}i]]"
    assert plain_text(text, title="t") == "b c t\ne i"
    assert parsed == ["\x1cb {{nowrap|c\x1c}} {{PAGENAME}}\n\x1c\ne{{#if:f}} {{:g}} [[h|\x1ci]]"]


@pytest.mark.parametrize("name", ["{{PAGENAME}}", "{{uc:{{PAGENAME}}}}", "{{padleft:a|500|{{PAGENAME}}}}"])
def test_templates_that_become_far_more_text_are_refused(name):
    """Expanded, the pages have 10 GB or more."""
    with pytest.raises(wikitext.ExpansionTooLong, match="become more than 8,388,608 characters"):
        plain_text(f"{name} " * 10_000, title="T" * 1_000_000)


def test_a_long_filling_is_not_repeated_before_it_is_cut():
    def peak(size):
        tracemalloc.start()
        assert plain_text("{{padleft:a|500|" + "xy" * size + "}}") == "xy" * 249 + "xa"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10)
    assert peak(100_000) < 20_000_000  # 100 MB were made
