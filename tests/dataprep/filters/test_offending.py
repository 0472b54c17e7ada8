"""The places that offended: what is marked is inside the text, and its removal mends what it can mend."""

import ast
import inspect
import itertools
import re
import shlex
import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt.dataprep.filters import offending, quality, rules
from mt.dataprep.filters.offending import PARAMETERS, drop_facts, explain, loosened, merged, occurrences
from mt.dataprep.filters.quality import Drop
from mt.dataprep.filters.text_stats import TextStats, duplicates
from mt.documents.reader import Document

# An item for each rule with thresholds that short texts break.
ITEMS = [
    "length max_chars=40 min_chars=3",
    "length min_words=2 max_words=6",
    "javascript max_chars=90",
    "language min_score=0.9",
    "gopher_quality min_words=3 max_words=20 min_stop_words=0",
    "gopher_quality min_words=1 max_mean_word=5 min_stop_words=0 min_alphabetic_words=0",
    "gopher_quality min_words=1 max_mean_word=99 min_mean_word=0 min_stop_words=1 words=apart",
    "gopher_quality min_words=1 max_mean_word=99 min_mean_word=0 max_bullet_lines=0.5 min_stop_words=0",
    "gopher_repetition max_dup_lines=0 max_dup_line_chars=0",
    "gopher_repetition max_dup_paragraphs=0 max_dup_paragraph_chars=0",
    "gopher_repetition max_dup_paragraphs=0 max_dup_lines=0 max_dup_paragraph_chars=0 max_dup_line_chars=0"
    " max_top_2gram=0 max_top_3gram=0 max_top_4gram=0",
    "gopher_repetition max_top_2gram=0.05 words=apart",
    "fineweb short_line_chars=9",
    "fineweb min_punctuated_lines=0 short_line_chars=5 max_newlines_per_word=9",
    "fineweb min_punctuated_lines=0 max_short_lines=1 max_dup_line_chars=2",
    "c4 min_sentences=3",
    "c4 min_sentences=1 split=sentences",
    "c4 min_sentences=0 terminal_punctuation=false min_words_per_line=0",
    "c4_paragraphs min_chars=30",
]
# fmt: off
WORDS = [
    "a", "the", "cat", "sat", "house", "internationalisation", "12", "##", "#", "...", "…", "{x}", "lorem",
    "ipsum", "javascript", "-",
    "Lorem Ipsum.", "JavaScript!", "use cookies.", "İstanbul", "Straße", "end.", "done?",
    "是一个", "很好。", "•", "é",
]
# fmt: on
line = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
bullet = st.tuples(st.sampled_from(["", "- ", "• ", "  "]), line, st.sampled_from(["", "...", ".", "…"])).map(
    "".join
)
texts = st.lists(st.one_of(bullet, st.sampled_from(["same line here", "", "short"])), max_size=12).map(
    "\n".join
)
# Reasons that the removal of the marked places does away with, and what is put in their place.
MENDED = {
    **dict.fromkeys(("too_long", "javascript_notice", "gopher_too_many_words", "too_many_words"), ""),
    **dict.fromkeys(("gopher_hashes", "gopher_ellipses", "c4_lorem_ipsum", "c4_curly_bracket"), " "),
    **dict.fromkeys(("gopher_bullet_lines", "gopher_ellipsis_lines", "gopher_not_alphabetic"), " "),
    **dict.fromkeys(("fineweb_unpunctuated_lines", "fineweb_short_lines", "fineweb_repeated_lines"), ""),
}
WITHOUT_PLACE = {
    "too_short", "too_few_words", "gopher_too_few_words", "gopher_stop_words", "empty", "fineweb_list",
    "c4_too_few_paragraphs", "language_unsure",
}  # fmt: skip


def drop_reason(item, text, lang=()):
    outcome = rules.compile_rules([item], lang=lang)(text)
    return str(outcome) if isinstance(outcome, Drop) else None


@settings(max_examples=400, deadline=None)
@given(texts, st.sampled_from(ITEMS), st.sampled_from([(), ("zh",), ("fr",)]))
@example("short\n\na", "gopher_repetition max_dup_lines=0 max_dup_line_chars=0", ())
def test_a_dropped_text_has_places_inside_it_or_says_why_there_is_none(text, item, lang):
    reason = drop_reason(item, text, lang)
    if reason is None:
        return
    offence = explain([item], lang, reason, Document("x", text))
    places = offence.places
    assert all(0 <= a < b <= len(offence.text) for a, b in places)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(places))
    assert places or offence.measures or offence.note
    if reason in WITHOUT_PLACE:
        assert not places
    elif not reason.startswith("language_") and reason != "c4_too_few_sentences" and not lang:
        assert places
    if lang:
        return
    assert offence.text == text
    if reason in MENDED:
        mended = text
        for a, b in reversed(places):
            mended = mended[:a] + MENDED[reason] + mended[b:]
        assert drop_reason(item, mended) != reason, mended
    if reason.startswith("repeated_") and "gram" not in reason:
        units = [text[a:b] for a, b in places]
        split = re.split(r"\n{2,}", text.strip()) if "paragraph" in reason else re.split(r"\n+", text)
        count, chars = duplicates(split)
        assert sum(len(u) for u in units if u.strip("\n")) == chars or "\n" in "".join(units)
        assert len(units) <= count
    if re.fullmatch(r"repeated_\d+grams|top_\dgram", reason):
        n = int(re.findall(r"\d+", reason)[0])
        found = TextStats(text).words("apart" if "words=apart" in item else "space").repetition[n - 2]
        marked = "".join(text[a:b] for a, b in places)
        if n > 4:
            assert len(re.sub(r"\s", "", marked)) == found
        else:  # occurrences that overlap are counted more than once, white space between words as one space
            assert len(re.sub(r"\s+", " ", marked)) <= found or "apart" in item


@settings(max_examples=200, deadline=None)
@given(texts, st.sampled_from(ITEMS))
def test_the_parameter_that_is_named_keeps_a_text_at_last_and_is_told_with_its_number_and_limit(text, item):
    reason = drop_reason(item, text)
    if reason is None:
        return
    compiled = rules.compile_rules([item])
    compiled(text)
    facts = drop_facts(compiled)
    assert facts["rule"] == item.split()[0]
    assert isinstance(facts["number"], int | float)
    assert (
        facts.get("parameter") == PARAMETERS.get(reason, (None, facts.get("parameter")))[1]
        or "mean" in reason
    )
    if "at_least" in facts:
        assert facts["number"] < facts["at_least"] or not text.strip()
    elif facts["measure"] != "places":
        assert facts["number"] > facts["at_most"] or facts["rule"] == "javascript"
    given_item = item
    for _ in range(40):
        if not (advice := loosened([item], reason)):
            break
        (item,) = shlex.split(advice.rpartition("--rules ")[2])
        if drop_reason(item, text) != reason:
            return
    without_limit = {"gopher_mean_word_length", "empty", "javascript_notice", "fineweb_repeated_lines"}
    assert (
        not text.strip()
        or reason in without_limit
        or reason.startswith("language_")
        or (reason == "gopher_too_few_words" and not TextStats(text).words("space").count)
    ), (given_item, reason)


def test_every_parameter_that_is_named_is_one_of_its_rule():
    for rule, parameter in PARAMETERS.values():
        assert parameter in inspect.signature((rules.RULES | rules.EDITS)[rule]).parameters
    assert set(PARAMETERS) - {"language_unsure"} <= set(offending.FINDERS)


def test_a_looser_list_of_rules_differs_in_one_parameter():
    items = ("fix_text", "length min_chars=100 min_words=15")
    assert loosened(items, "too_short") == (
        "to keep more, lower min_chars of the rule length (now 100), for example: --rules fix_text"
        " 'length min_chars=50 min_words=15'"
    )
    assert loosened(("gopher_quality",), "gopher_bullet_lines").endswith(
        "'gopher_quality max_bullet_lines=1.8'"
    )
    assert loosened(("c4",), "c4_curly_bracket").endswith("'c4 curly_bracket=false'")
    assert not loosened(("length",), "too_short")
    assert not loosened(items, "held_out")


def test_a_rule_of_tokens_and_one_of_the_user_tell_what_they_can(tmp_path, monkeypatch):
    compiled = rules.compile_rules(["tokens min_tokens=9"])
    compiled("one two!")
    facts = drop_facts(compiled)
    assert (facts["number"], facts["at_least"], facts["parameter"]) == (2.0, 9, "min_tokens")
    (tmp_path / "mine.py").write_text("def no(document):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    compiled = rules.compile_rules(["python:mine.no"])
    compiled("x")
    assert drop_facts(compiled) == {"rule": "python:mine.no"}


def reasons_in(function):
    """The reasons that stand in the source of a rule; f-strings with `*` in place of values."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        values = [node.value] if isinstance(node, ast.Return) else []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Drop":
            values = node.args
        for value in values:
            if isinstance(value, ast.IfExp | ast.Call) or value is None:
                values += [getattr(value, name, None) for name in ("body", "orelse")] if value else []
            elif isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.add(value.value)
            elif isinstance(value, ast.JoinedStr):
                found.add(
                    "".join(
                        getattr(part, "value", "*") if isinstance(part, ast.Constant) else "*"
                        for part in value.values
                    )
                )
    return found


def test_every_reason_of_every_rule_is_known():
    reasons = set().union(*map(reasons_in, [*rules.RULES.values(), quality.c4]))
    assert {"top_*gram", "repeated_*grams", "language_*", "c4_lorem_ipsum", "too_long"} <= reasons
    known = {re.sub(r"\d+(?=gram)", "*", reason) for reason in offending.FINDERS} | {
        "language_*",
        "language_unsure",
    }
    assert reasons <= known | set(offending.TOKEN_REASONS)


@pytest.mark.parametrize(
    ("item", "text", "marked", "says"),
    [
        ("length max_words=2", "one two three four", ["three four"], "words: 4 (at most 2)"),
        ("fineweb", "A line of.\nmore\nIt ends.\nno", ["A line of.", "more", "It ends.", "no"], "0.67"),
        ("gopher_repetition", "the cat sat the cat ran the cat.", ["the cat", "the cat"], "2-gram: 0.438"),
        ("c4", "no end\nOne two three.\nWe use cookies.", ["no end", "We use cookies."], "1 (at least 5)"),
        ("c4", "It is {x} here and there.", ["{"], ""),
        (
            "gopher_quality min_words=1 max_mean_word=4 min_mean_word=0",
            "aaaaaaaaaaa bb cccccc dd",
            ["aaaaaaaaaaa"],
            "5.25 (at most 4)",
        ),
        ("gopher_repetition", "\na\n", ["\n"], "0.333 (at most 0.3)"),
    ],
)  # fmt: skip
def test_places_by_hand(item, text, marked, says):
    offence = explain([item], (), drop_reason(item, text), Document("x", text))
    assert [offence.text[a:b] for a, b in offence.places] == marked
    assert says in " ".join(map(str, offence.measures))


def test_places_lie_in_the_text_that_the_edits_before_the_rule_left():
    items = ["fix_text", "whitespace", "c4 min_sentences=1"]
    offence = explain(items, (), "c4_lorem_ipsum", Document("x", "  \n\n&lt;Lorem ipsum dolor.  "))
    assert offence.text == "<Lorem ipsum dolor."
    assert [offence.text[a:b] for a, b in offence.places] == ["Lorem ipsum"]


def test_rules_of_the_user_are_not_called_and_tokens_are_not_counted():
    items = ["python:no_such_file.rule", "tokens min_tokens=9", "length min_words=5"]
    assert explain(items, (), "too_few_words", Document("x", "one two")).measures[0].value == 2
    assert explain(items, (), "of_the_user", Document("x", "one two")) is None
    offence = explain(items, (), "too_few_tokens", Document("x", "one two"))
    assert not offence.places
    assert "'tokens min_tokens=9'" in offence.note


@given(st.text(alphabet="İiİjJsSſKk ", max_size=12), st.sampled_from(["ij", "js", "k", "i̇"]))
def test_occurrences_are_found_where_the_lower_case_has_them(text, phrase):
    found = list(occurrences(text, phrase))
    assert bool(found) == (phrase in text.lower())
    assert all(phrase in text[a:b].lower() for a, b in found)


def test_places_are_joined():
    assert merged([(5, 9), (0, 2), (2, 3), (7, 8), (4, 4)]) == [(0, 3), (5, 9)]
