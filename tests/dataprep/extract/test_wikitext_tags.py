"""Tags and comments of wikitext: what is kept as written, what is dropped, what breaks a line."""

from collections import Counter

import mwparserfromhell
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract.wikitext import plain_text
from mt.dataprep.extract.wikitext_tags import HIDDEN, SHOWN, decode, resolve, superscript

CODE = "if (a < b && c[0] == '') {\n\n    return '''{{x}}''' | [[y]] <!-- z --> &amp;lt; __TOC__;\n}"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (f"<syntaxhighlight lang=c>{CODE}</syntaxhighlight>", CODE),
        (f"<source>{CODE}</source>", CODE),
        ("<pre>a  {{b}} ''c'' <nowiki>[[d]]</nowiki> &lt;e&gt; [[f]]\n  g</pre>", None),
        (
            "a<nowiki>''b'' {{c}} [[d]] <ref>e</ref> &lt;</nowiki>f<nowiki/>g",
            "a''b'' {{c}} [[d]] <ref>e</ref> <fg",
        ),
        ("<nowiki>* no list</nowiki>", "* no list"),
        (
            "a <code>x = '' + {{nowrap|b}} <nowiki>{{c}}</nowiki> &lt;d&gt;</code> ''e''",
            "a x = '' + b {{c}} <d> e",
        ),
        (
            "{{{1}}} <code>f({{{x}}}, {{{1|y}}}) {{nowrap|{{{z}}}}} '{{{a b}}}'</code> {{{2}}}",
            "f({{{x}}}, y) {{{z}}} '{{{a b}}}'",
        ),
        ("<poem>\na ''b''\n  [[c]]\n\n    {{nowrap|d}}\n</poem>\n e", "a b\n  c\n\n    d\ne"),
        ("<math>{a}</math>", "{a}"),
        ("<math>|a|</math> b <math>c}}</math>", "|a| b c}}"),
        ("<ce>H2O</ce> and <chem>CO2</chem>", "H2O and CO2"),
        ("{{nowrap|<math>a|b}}</math>}}", "a|b}}"),
        ("a<!-- <ref> -->b<nowiki><!-- c --></nowiki>", "ab<!-- c -->"),
        ('<ref>a <nowiki>x</nowiki></ref>b<ref name="c/d" />e<REF>f</REF >g', "beg"),
        ("<ul><li>one</li><li>two</li></ul><p>three<p>four", "one\ntwo\nthree\nfour"),
        ("a<br>b<br/>c<BR clear=all>d</br>e<hr>f", "a\nb\nc\nd\ne\nf"),
        (
            "<b>a</b> <span style='x'>b</span> <unknown>c</unknown> 1 < 2 <3",
            "a b <unknown>c</unknown> 1 < 2 <3",
        ),
        ("<center>a <small>b <div><span>c</div> d</center></i>", "a b\nc\nd"),
        ("a <!-- never closed {{b}}", "a"),
        ("a <nowiki> b <ref> c <math> d", "a b c d"),
        ("a<table><tr><td>b<table>c</table></td></tr></table>d<table><tr><td>e", "a\nd\ne"),
        ("<noinclude>a</noinclude><includeonly>b</includeonly><onlyinclude>c</onlyinclude>", "ac"),
        ("10<sup>3</sup> m<sup>-2</sup> 1<sup>st</sup> a<sub>1</sub>", "10³ m⁻² 1st a1"),
    ],
)
def test_tags_are_read_as_by_mediawiki(markup, text):
    if text is None:
        text = "a  {{b}} ''c'' [[d]] <e> [[f]]\n  g"
    assert plain_text(markup) == text


def test_code_keeps_its_lines_and_spaces_between_paragraphs():
    assert plain_text(f"Before <source>\n{CODE}\n</source> after.") == f"Before\n{CODE}\nafter."
    assert (
        plain_text('The <syntaxhighlight lang="c" inline>int  a;</syntaxhighlight> ends.')
        == "The int  a; ends."
    )


@given(
    st.lists(
        st.sampled_from(["<b>", "</b>", "<i>", "</i>", "<span a=b>", "</span>", "word ", "x", "[[a|b]]"])
    )
)
def test_inline_tags_leave_the_words_that_the_parser_finds_without_them(pieces):
    words = "".join(piece for piece in pieces if piece[0] != "<")
    expected = mwparserfromhell.parse(words).strip_code()
    assert plain_text("".join(pieces)) == expected.strip()


def test_unpaired_tags_and_dropped_content_are_counted():
    dropped: Counter[str] = Counter()
    resolve("<b>a</i><ref>b</ref><references/><gallery>c</gallery><math>d<!-- e --><li>", [], dropped)
    assert dropped == {"unpaired_tag": 3, "reference": 1, "reference_list": 1, "gallery": 1, "comment": 1}


@pytest.mark.parametrize(
    ("reference", "character"),
    [
        ("&lt;", "<"),
        ("&nbsp;", "\u00a0"),
        ("&#65;", "A"),
        ("&#x1F600;", "\U0001f600"),
        ("&#2;", "&#2;"),
        ("&#xD800;", "&#xD800;"),
        ("&#9999999;", "&#9999999;"),
        ("&nonsense;", "&nonsense;"),
    ],
)
def test_references_are_characters_where_there_is_one(reference, character):
    assert decode(reference) == character


@given(st.text("{}[]<'|a"))
def test_hidden_characters_are_shown_again(text):
    assert text.translate(HIDDEN).translate(SHOWN) == text
    assert superscript("-12") == "⁻¹²"
