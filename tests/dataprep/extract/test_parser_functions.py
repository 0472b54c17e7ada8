"""Functions of MediaWiki: the examples of Help:Extension:ParserFunctions, and what is not in the article."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract.wikitext import plain_text

DOCUMENTED = {
    "{{#if: | yes | no}}{{#if: string | yes | no}}{{#if:      | yes | no}}": "noyesno",
    "{{#if: string | yes }}a{{#if: | yes }}b{{#if: foo | a = b }}": "yesaba = b",
    "{{#if: {{{1|}}} | given | none}} {{#if: {{nowrap|x}} | given | none}}": "none given",
    "{{#ifeq: 01 | 1 | equal | not equal}} {{#ifeq: 0 | -0 | equal | not equal}}": "equal equal",
    '{{#ifeq: "01" | "1" | equal | not equal}} {{#ifeq: foo | Foo | equal | not equal}}':
    "not equal not equal",
    "{{#ifeq: {{uc:a}} | A | equal | not equal}} {{#ifeq: 1e3 | 1000 | equal}}": "equal equal",
    "{{#ifexpr: 1 > 0 | yes}} {{#ifexpr: | yes | no}} {{#ifexpr: 0 | yes | no}}": "yes no no",
    "{{#ifexpr: 1 < 2 and {{nowrap|3}} >= 3 | yes}} {{#ifeq: a>b | a>b | equal}} {{#if: -> | x > y }}":
    "yes equal x > y",
    "{{#iferror: a | error | correct}} {{#iferror: a | error}}": "correct a",
    "{{#expr: 1 + 2 * 3}} {{#expr: 10 / 4}} {{#expr: (1 {{=}} 1) }}": "7 2.5 1",
    "{{#switch: baz | foo = Foo | baz = Baz | Bar }} {{#switch: zzz | foo = Foo | baz = Baz | Bar }}":
    "Baz Bar",
    "{{#switch: foo | foo | bar = Shared | baz = Baz }}": "Shared",
    "{{#switch: x | foo = Foo | #default = Other | baz = Baz }}": "Other",
    "{{#switch: x | foo = Foo }}a{{#switch: 01 | 1 = one }}": "aone",
    "{{#switch: b | a = {{#switch: 1 | 1 = x}} | b = {{#if: 1 | {{nowrap|y}} }} }}": "y",
    "{{padleft:7|3}} {{padleft:xyz|5|_}} {{padright:xyz|5|ab}} {{padleft:xyz|2}}": "007 __xyz xyzab xyz",
    "{{plural:1|is|are}} {{plural:2|is|are}} {{PLURAL:0|0=none|one|more}} {{plural:5|only}}":
    "is are none only",
    "{{gender:x|he|she|they}} {{gender:|he|she}}": "they he",
    "{{lc:ABC}} {{uc:abc}} {{ucfirst:abc}} {{lcfirst:ABC}} {{formatnum:1234.5}} {{formatnum:1,234|R}}":
    "abc ABC Abc aBC 1,234.5 1234",
}  # fmt: skip


@pytest.mark.parametrize("wikitext", DOCUMENTED)
def test_a_function_gives_what_its_documentation_says(wikitext):
    dropped = Counter()
    assert plain_text(wikitext, dropped=dropped) == DOCUMENTED[wikitext]
    assert not dropped


@pytest.mark.parametrize(
    "wikitext",
    [
        "{{#if: {{unknown template}} | a | b}}",
        "{{#ifeq: {{unknown template}} | a | b}}",
        "{{#switch: a | {{unknown template}} = b | a = c}}",
        "{{#expr: 1 + }}",
        "{{#expr: {{unknown template}} + 1}}",
        "{{plural:many|a|b}}",
        "{{#time: Y-m-d}}",
        "{{#ifexist: Page | a | b}}",
        "{{#invoke: module | function}}",
    ],
)
def test_what_depends_on_what_is_not_in_the_article_is_dropped_and_counted(wikitext):
    dropped = Counter()
    assert plain_text(f"c {wikitext} d", dropped=dropped) == "c d"
    assert sum(count for kind, count in dropped.items() if kind.startswith("function:")) == 1


@pytest.mark.parametrize(
    ("language", "text"), [("en", "a b b b"), ("fr", "a a b b"), ("ja", "a a a a"), ("ru", "a c b c")]
)
def test_plurals_are_those_of_the_language(language, text):
    shown = plain_text(" ".join(f"{{{{plural:{n}|a|b|c}}}}" for n in (1, 0, 2, 11)), language=language)
    assert shown == text


TEXTS = st.text("ab1 ", min_size=1, max_size=5)


@given(TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=5), TEXTS)
def test_a_switch_chooses_as_a_chain_of_comparisons(wanted, cases, default):
    switch = "".join(f"|{case}={shown}" for case, shown in cases)
    chain = default.strip()
    for case, shown in reversed(cases):
        chain = f"{{{{#ifeq:{wanted}|{case}|{shown}|{chain}}}}}"
    assert plain_text(f"({{{{#switch:{wanted}{switch}|{default}}}}})") == plain_text(f"({chain})")


@given(st.text("{}|=#:if swtch1a\n", max_size=60))
def test_no_function_raises(text):
    plain_text("{{#if:" + text + "}}{{#switch:" + text + "}}{{#expr:" + text + "}}")
