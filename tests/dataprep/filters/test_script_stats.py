"""Counts in any script: the words of UAX 29, sentences, and the same verdict for texts that look the same."""

import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.parsing import read_yaml
from mt.dataprep.filters import rules
from mt.dataprep.filters.quality import Drop
from mt.dataprep.filters.rules import compile_rules
from mt.dataprep.filters.script_stats import ScriptStats, folded
from mt.dataprep.words import WORD
from mt.tests.dataprep.test_words import SCRIPTS

FIXTURE = Path(__file__).parents[2] / "fixtures/prose.jsonl"
PROSE = {row["id"]: row["text"] for row in map(json.loads, FIXTURE.read_text(encoding="utf-8").splitlines())}
OTHERS = [code for code in PROSE if code != "en"]
PRESETS = Path(rules.__file__).parent / "presets"
MIXED = st.lists(
    st.sampled_from(
        [*SCRIPTS.values(), "3.14", "12:30", "ab-cd", "l'eau", "...", "。」", " ", "\n", "\u200b"]
    )
    | st.text(max_size=5),
    max_size=8,
).map("".join)


def preset(name, code):
    return compile_rules(read_yaml(PRESETS / f"{name}.yaml")["rules"], lang=(code,))


def verdict(apply, text):
    """The reason why the rules drop a text, or None."""
    outcome = apply(text)
    return str(outcome) if isinstance(outcome, Drop) else None


def lines_of(text, words):
    """Lines of a few words, or of twice as many characters in scripts without spaces; no punctuation."""
    found = WORD.findall(text)
    spaced = len(found) < len(text) / 2.5
    count, between = (words, " ") if spaced else (2 * words, "")
    return [between.join(found[i : i + count]) for i in range(0, len(found), count)]


@given(MIXED)
def test_words_apart_are_those_of_uax_29_with_whole_numbers(text):
    text = folded(text)
    cut = ScriptStats(text).words("apart").of(text)
    assert [word for piece in cut for word in WORD.findall(piece)] == WORD.findall(text)
    several = [piece for piece in cut if len(WORD.findall(piece)) > 1]
    assert all(regex.search(r"[\p{N}_][,\-./:][\p{N}_]", piece) for piece in several), "only numbers"


@given(MIXED)
def test_words_at_spaces_are_those_of_str_split_with_pieces_cut_off(text):
    text = folded(text)
    cut = ScriptStats(text).words("space").of(text)
    assert "".join(cut) == "".join(text.split())
    assert len(cut) >= len(text.split())


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Die Zahl 3,14 (am 12.05.2024) ist gut.", "Die|Zahl|3,14|(|am|12.05.2024|)|ist|gut|."),
        ("l'eau de apt-get, http://a.org/b!", "l|eau|de|apt|get|,|http|a|org|b|!"),
        ("我爱北京。「好……」", "我|爱|北|京|。|「|好|……|」"),
        ("कॢक्ष ३.१४ है।", "कॢक्ष|३.१४|है|।"),
        ("می\u200cخواهم \u200fگفت؟", "میخواهم|گفت|؟"),
        ("co\u00adop e\u0301te\u0301", "coop|été"),
    ],
)
def test_examples_of_words(text, cut):
    stats = ScriptStats(text)
    assert "|".join(stats.words("apart").of(stats.text)) == cut


def test_pieces_of_words_count_as_parts():
    words = ScriptStats("我爱北京 and 17").words("apart")
    assert words.count == pytest.approx(4 / 1.7 + 2)
    assert ScriptStats("ภาษาไทย").words("apart").count == pytest.approx(7 / 4)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("第一句。第二句！「第三句？」第四句", 4),
        ("Erste Zeile. Zweite z. b. hier. Dritte!", 3),
        ("पहला वाक्य। दूसरा वाक्य।", 2),
        ("جملة أولى. جملة ثانية؟ ثالثة", 3),
        ("One", 1),
        ("..........", 1),
    ],
)
def test_sentences_are_counted_in_any_script(text, count):
    stats = ScriptStats(text)
    assert stats.count_sentences(text, 99) == len(stats.sentences(text)) == count
    assert stats.count_sentences(text, 2) == min(count, 2)


@given(MIXED)
def test_sentences_leave_nothing_out(text):
    assert "".join(ScriptStats(text).sentences(text)) == text


@pytest.mark.parametrize("code", PROSE)
@pytest.mark.parametrize("name", ["fineweb", "gopher", "c4", "prose", "wikipedia"])
def test_good_prose_of_every_language_is_kept_by_every_preset(name, code):
    assert verdict(preset(name, code), PROSE[code]) is None


def test_good_prose_is_kept_by_the_thresholds_of_the_language_found():
    apply = preset("fineweb", "all")
    assert {code: why for code, text in PROSE.items() if (why := verdict(apply, text))} == {}
    assert apply.languages == dict.fromkeys(PROSE, 1)
    assert apply.other_languages == {"eo": 1}, "the only language of the fixture without thresholds"


@pytest.mark.parametrize("code", PROSE)
def test_bad_pages_of_every_language_are_dropped(code):
    text = PROSE[code]
    apply = compile_rules(
        [r for r in read_yaml(PRESETS / "fineweb.yaml")["rules"] if r.split()[0] != "language"], lang=(code,)
    )
    line = text.split("\n")[0]
    pages = {
        "menu": "\n".join(lines_of(text, 2)),
        "links": "\n".join(f"- {line}" for line in lines_of(text, 4)),
        "repeated lines": f"{line}\n" * 5,
        "repeated phrase": f"{lines_of(text, 6)[0]} " * 60,
        "short": line[:40],
        "numbers": regex.sub(r"\p{L}+", "17", text),
    }
    kept = [name for name, page in pages.items() if verdict(apply, page) is None]
    assert kept == []


def changed(draw, text):
    """The same text to the eye: other normalization, digits, or marks that are not seen."""
    kind = draw(st.sampled_from(["NFD", "digits", "unseen", "line ends"]))
    if kind == "NFD":
        return unicodedata.normalize("NFD", text)
    if kind == "digits":
        zero = ord(draw(st.sampled_from("०٠۰০௦๐"))) - ord("0")
        return "".join(chr(ord(c) + zero) if c.isascii() and c.isdigit() else c for c in text)
    if kind == "line ends":
        return text.replace("\n", "\r\n")
    marks = draw(
        st.lists(st.tuples(st.integers(0, len(text)), st.sampled_from("\u200c\u200d\u200f\u202b\u2069")))
    )
    for place, mark in marks:
        text = text[:place] + mark + text[place:]
    return text


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_text_that_looks_the_same_gets_the_same_verdict(data):
    code = data.draw(st.sampled_from(OTHERS))
    text = PROSE[code]
    start = data.draw(st.integers(0, len(text) - 1))
    text = text[start : start + data.draw(st.integers(1, len(text)))] * data.draw(st.integers(1, 3))
    other = changed(data.draw, text)
    for rule in ("gopher_repetition", "gopher_quality min_words=20", "fineweb"):
        apply = compile_rules([rule], lang=(code,))
        assert verdict(apply, other) == verdict(apply, text), rule


@pytest.mark.parametrize("code", ["zh", "ja", "th"])
def test_a_long_text_without_spaces_is_no_overlong_word(code):
    line = PROSE[code].replace("\n", "").replace(" ", "") * 4
    assert len(line) > 1000
    apply = compile_rules(["c4 min_sentences=1"], lang=(code,))
    assert apply(f"{line}\n{'x' * 1001}。") == line


def test_edits_keep_what_is_not_seen():
    text = "می\u200cخواهم که بگویم این متن خوب است.\nخط دیگر"
    assert compile_rules(["c4 min_sentences=1"], lang=("fa",))(text) == text.split("\n")[0]
