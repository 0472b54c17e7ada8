"""The published filters, compared with datatrove: the same results on the same words, for every parameter."""

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt.dataprep.filters import quality, text_stats
from mt.dataprep.filters.quality import Drop
from mt.dataprep.filters.rules import compile_rules
from mt.dataprep.filters.script_stats import ScriptStats
from mt.dataprep.filters.text_stats import TextStats

# our reason -> datatrove's reason
REASONS = {
    "gopher_too_few_words": "gopher_short_doc",
    "gopher_too_many_words": "gopher_long_doc",
    "gopher_mean_word_length": ("gopher_below_avg_threshold", "gopher_above_avg_threshold"),
    "gopher_hashes": "gopher_too_many_hashes",
    "gopher_ellipses": "gopher_too_many_ellipsis",
    "gopher_bullet_lines": "gopher_too_many_bullets",
    "gopher_ellipsis_lines": "gopher_too_many_end_ellipsis",
    "gopher_not_alphabetic": "gopher_below_alpha_threshold",
    "gopher_stop_words": "gopher_enough_stop_words",
    "empty": "empty",
    "repeated_paragraphs": "dup_para_frac",
    "repeated_paragraph_chars": "dup_para_char_frac",
    "repeated_lines": "dup_line_frac",
    "repeated_line_chars": "dup_line_char_frac",
    **{f"top_{n}gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"repeated_{n}grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
    "fineweb_unpunctuated_lines": "line_punct_ratio",
    "fineweb_short_lines": "short_line_ratio",
    "fineweb_repeated_lines": "char_dup_ratio",
    "fineweb_list": "list_ratio",
    "c4_lorem_ipsum": "lorem_ipsum",
    "c4_curly_bracket": "curly_bracket",
    "c4_too_few_sentences": "too_few_sentences",
    "c4_too_few_paragraphs": "< 3 paragraphs",
}


@pytest.fixture(scope="module")
def datatrove():
    """datatrove's filters with our words and sentences, because its own need spaCy."""
    filters = pytest.importorskip(
        "datatrove.pipeline.filters", reason="datatrove is not installed: pip install 'mt-lm[dev]'"
    )
    from datatrove.pipeline.filters import (
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    def words(text, language):
        return TextStats(text).words("apart" if language == "apart" else "space").of(text)

    with pytest.MonkeyPatch.context() as patch:
        for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
            patch.setattr(module, "split_into_words", words)
        patch.setattr(c4_filters, "split_into_sentences", lambda text, language: quality.sentences(text))
        yield filters


def theirs(filters, text):
    """What datatrove's filters, one after another, leave of a text; or the reason to drop it."""
    from datatrove.data import Document

    document = Document(text=text, id="")
    for each in filters:
        outcome = each.filter(document)
        if outcome is not True:
            return None, outcome[1]
    return document.text, None


def ours(rules, text):
    outcome = rules(text)
    return (None, str(outcome)) if isinstance(outcome, Drop) else (outcome, None)


def assert_same(rules, filters, text):
    left, reason = ours(rules, text)
    their_left, their_reason = theirs(filters, text)
    assert left == their_left
    assert their_reason == reason or their_reason in REASONS[reason]


def pairs(filters):
    """Every filter with its defaults, with both word splitters, and datatrove's counterparts."""
    for words in ("space", "apart"):
        yield f"gopher_quality words={words}", [filters.GopherQualityFilter(language=words)]
        yield f"gopher_repetition words={words}", [filters.GopherRepetitionFilter(language=words)]
        yield f"fineweb words={words}", [filters.FineWebQualityFilter(language=words)]
    yield "c4", [filters.C4QualityFilter()]
    yield "c4 split=sentences", [filters.C4QualityFilter(split_paragraph=False)]
    yield "c4_paragraphs", [filters.C4ParagraphFilter()]


def varied(texts: list[str]) -> list[str]:
    """380 texts and worse ones made of them: few or many lines, repeated, truncated, with symbols."""
    worse = [t[:200] + "\n" + t[:700] + t[100:300] for t in texts[:80]]
    worse += [f"{t[:150]}\n{t[:150]}\n\n{t[:150]}" for t in texts[:50]]
    listed = ["\n".join(f"- {s}" for s in re.split(r"[.,] ", t)) for t in texts[150:250]]
    trailing = [t.replace(". ", "...\n") for t in texts[250:300]]
    marks = [t.replace(" ", " # ") for t in texts[300:310]] + [
        t.replace(" the ", " { ") for t in texts[360:380]
    ]
    numbers = [re.sub(r"\b\w{1,3}\b", "17", t) for t in texts[310:360]]
    return [*texts, *worse, *listed, *trailing, *numbers, *marks, "", " \n", "\u2028\n\n", "a\r\n\rb\x85c"]


@pytest.fixture(scope="session")
def texts(speeches):
    """Texts of 50 to 2,000 characters from the speeches, and worse ones made of them."""
    pieces = [t[i : i + 50 + 130 * (i % 16)] for t in speeches for i in range(0, len(t) - 50, 700)]
    return varied(pieces[:500]) + [t[:4000] for t in speeches]


@pytest.fixture(scope="session")
def shared_texts(shared):
    """The same of film reviews and of pages of WikiText."""
    rows = (shared / "data/corpus/reviews.jsonl").read_bytes().splitlines()[:500]
    lines = (shared / "data/wikitext/valid.txt").read_text(encoding="utf-8").split("\n")
    pages = ["\n".join(lines[i : i + 12]) for i in range(0, 1200, 12)]
    return varied([json.loads(row)["text"].replace("<br /><br />", "\n\n") for row in rows]) + pages


@pytest.mark.parametrize("corpus", ["texts", "shared_texts"])
def test_every_filter_agrees_with_datatrove_on_real_texts(datatrove, request, corpus):
    texts = request.getfixturevalue(corpus)
    reasons = set()
    for rule, filters in pairs(datatrove):
        rules = compile_rules([rule])
        for text in texts:
            if text.strip() or rule.split()[0] != "gopher_quality":  # datatrove divides by zero there
                assert_same(rules, filters, text)
                reasons.add(ours(rules, text)[1])
    assert len(reasons) > 20, "the corpora bring out too few of the reasons"


def test_the_fineweb_preset_agrees_with_datatroves_chain_of_filters(datatrove, texts):
    from mt.core.parsing import read_yaml

    listed = read_yaml(str(Path(text_stats.__file__).with_name("presets") / "fineweb.yaml"))["rules"]
    rules = compile_rules([r for r in listed if r.split()[0] not in ("language", "fix_text")])
    chain = [
        datatrove.GopherRepetitionFilter(language="apart"),
        datatrove.GopherQualityFilter(language="apart"),
        datatrove.C4QualityFilter(filter_no_terminal_punct=False),
        datatrove.FineWebQualityFilter(language="apart"),
    ]
    for text in texts:
        if text.strip():
            assert_same(rules, chain, text)


# Every parameter with another value than its default: our rule, then datatrove's.
PARAMETERS = [
    (
        "gopher_quality min_words=20 max_words=60",
        "GopherQualityFilter",
        {"min_doc_words": 20, "max_doc_words": 60},
    ),
    (
        "gopher_quality min_words=0 max_words=0 min_mean_word=4.2 max_mean_word=4.4",
        "GopherQualityFilter",
        {"min_doc_words": 0, "max_doc_words": 0, "min_avg_word_length": 4.2, "max_avg_word_length": 4.4},
    ),
    (
        "gopher_quality min_words=1 max_symbols_per_word=0.01",
        "GopherQualityFilter",
        {"min_doc_words": 1, "max_symbol_word_ratio": 0.01},
    ),
    (
        "gopher_quality min_words=1 max_bullet_lines=0.2 max_ellipsis_lines=0.1",
        "GopherQualityFilter",
        {"min_doc_words": 1, "max_bullet_lines_ratio": 0.2, "max_ellipsis_lines_ratio": 0.1},
    ),
    (
        "gopher_quality min_words=1 max_bullet_lines=0 max_ellipsis_lines=0 min_alphabetic_words=0.9",
        "GopherQualityFilter",
        {
            "min_doc_words": 1,
            "max_bullet_lines_ratio": 0,
            "max_ellipsis_lines_ratio": 0,
            "max_non_alpha_words_ratio": 0.9,
        },
    ),
    (
        "gopher_quality min_words=1 min_mean_word=0 max_mean_word=0 max_symbols_per_word=0"
        " min_alphabetic_words=0 min_stop_words=3 stop_words=film,it,not,because",
        "GopherQualityFilter",
        {
            "min_doc_words": 1,
            "min_avg_word_length": 0,
            "max_avg_word_length": 0,
            "max_symbol_word_ratio": 0,
            "max_non_alpha_words_ratio": 0,
            "min_stop_words": 3,
            "stop_words": ["film", "it", "not", "because"],
        },
    ),
    (
        "gopher_quality min_words=1 min_stop_words=0",
        "GopherQualityFilter",
        {"min_doc_words": 1, "min_stop_words": 0},
    ),
    (
        "gopher_repetition max_dup_lines=0.1 max_dup_paragraphs=0.1 max_dup_line_chars=0.05"
        " max_dup_paragraph_chars=0.05",
        "GopherRepetitionFilter",
        {"dup_line_frac": 0.1, "dup_para_frac": 0.1, "dup_line_char_frac": 0.05, "dup_para_char_frac": 0.05},
    ),
    (
        "gopher_repetition max_dup_lines=0 max_dup_paragraphs=0 max_dup_line_chars=0"
        " max_dup_paragraph_chars=0",
        "GopherRepetitionFilter",
        {"dup_line_frac": 0, "dup_para_frac": 0, "dup_line_char_frac": 0, "dup_para_char_frac": 0},
    ),
    (
        "gopher_repetition max_top_2gram=0.03 max_top_3gram=0.02 max_top_4gram=0.02",
        "GopherRepetitionFilter",
        {"top_n_grams": ((2, 0.03), (3, 0.02), (4, 0.02))},
    ),
    (
        "gopher_repetition max_dup_5gram=0.02 max_dup_6gram=0.015 max_dup_7gram=0.01 max_dup_8gram=0.005"
        " max_dup_9gram=0.004 max_dup_10gram=0.003",
        "GopherRepetitionFilter",
        {"dup_n_grams": ((5, 0.02), (6, 0.015), (7, 0.01), (8, 0.005), (9, 0.004), (10, 0.003))},
    ),
    (
        "fineweb words=space min_punctuated_lines=0.7 allow_unpunctuated=true line_ends=,.",
        "FineWebQualityFilter",
        {"line_punct_thr": 0.7, "line_punct_exclude_zero": True, "stop_chars": (",", ".")},
    ),
    (
        "fineweb words=space min_punctuated_lines=0 max_short_lines=0.2 short_line_chars=60"
        " max_dup_line_chars=0 max_newlines_per_word=0.02",
        "FineWebQualityFilter",
        {
            "line_punct_thr": 0,
            "short_line_thr": 0.2,
            "short_line_length": 60,
            "char_duplicates_ratio": 0,
            "new_line_ratio": 0.02,
        },
    ),
    (
        "c4 terminal_punctuation=false min_sentences=0 min_words_per_line=0 max_word_chars=12",
        "C4QualityFilter",
        {
            "filter_no_terminal_punct": False,
            "min_num_sentences": -1,
            "min_words_per_line": -1,
            "max_word_length": 12,
        },
    ),
    (
        "c4 min_sentences=9 min_words_per_line=12 max_word_chars=0 citations=false curly_bracket=false",
        "C4QualityFilter",
        {
            "min_num_sentences": 9,
            "min_words_per_line": 12,
            "max_word_length": -1,
            "remove_citations": False,
            "filter_curly_bracket": False,
        },
    ),
    (
        "c4 min_sentences=1 lorem_ipsum=false javascript=false policy=false",
        "C4QualityFilter",
        {
            "min_num_sentences": 1,
            "filter_lorem_ipsum": False,
            "filter_javascript": False,
            "filter_policy": False,
        },
    ),
]


@pytest.mark.parametrize(
    ("rule", "name", "settings"), PARAMETERS, ids=[rule[:60] for rule, _, _ in PARAMETERS]
)
def test_every_parameter_of_datatrove_has_a_counterpart(datatrove, texts, rule, name, settings):
    rules, filters = compile_rules([rule]), [getattr(datatrove, name)(**settings)]
    outcomes = set()
    for text in texts[::4]:
        if text.strip():
            assert_same(rules, filters, text)
            outcomes.add(ours(rules, text)[1])
    assert None in outcomes
    assert len(outcomes) > 1 or "min_sentences=0" in rule


def test_no_parameter_of_datatrove_is_missing(datatrove):
    import inspect

    for name in ("GopherQualityFilter", "GopherRepetitionFilter", "FineWebQualityFilter", "C4QualityFilter"):
        tried = {key for _, other, settings in PARAMETERS if other == name for key in settings} | {
            "split_paragraph"
        }
        assert (
            set(inspect.signature(getattr(datatrove, name).__init__).parameters)
            - {"self", "exclusion_writer", "language"}
            <= tried
        )


LINES = st.sampled_from(
    [
        "The [1] words of a line, which ends well.",
        "It uses cookies, and javascript too.",
        "Lorem ipsum dolor sit amet.",
        "Short line",
        "- A bullet, and no end",
        "• Another one...",
        "And so it trails off…",
        "{ curly }",
        "#",
        "# # #",
        "...",
        "1 2 3 4 5 6 7 8 9",
        "A B C. D.",
        "“Quoted.” she said[edit].",
        "ab ab ab ab ab ab",
        "",
        " \t",
        "\x1f",
        "Well-known; isn't it?",
        "日本語の文。",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LINES | st.text(max_size=20), max_size=12),
    st.sampled_from(["\n", "\n\n", " ", "\r\n", "\u2028"]),
)
def test_every_filter_agrees_with_datatrove_on_any_text(datatrove, lines, between):
    text = between.join(lines)
    for rule, filters in pairs(datatrove):
        if text.strip() or rule.split()[0] != "gopher_quality":
            assert_same(compile_rules([rule]), filters, text)


def test_symbols_and_terminal_punctuation_are_those_of_datatrove(datatrove):
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    assert text_stats.terminal() == TERMINAL_PUNCTUATION
    table = text_stats.character_classes("")
    assert {chr(c) for c in range(len(table)) if table[c] & text_stats.SYMBOL} == PUNCTUATION_SET


@given(st.text("ab AZ.!?\"')]\n", max_size=30))
def test_sentences_end_where_an_expression_that_reads_runs_of_marks_again_ends_them(text):
    slow = re.compile(
        r"[.!?](?:(?<=[!?])|(?<![A-Z.]\.)|(?<=[A-Z][A-Z]\.))[!?\"'”’)\]]*"
        r"(?:\s+(?=\S)|(?=(?<=[a-z]\.)[A-Z]))"
    )
    ends = [end.end() for end in slow.finditer(text)]
    wanted = [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])]
    assert quality.sentences(text) == wanted
    assert [quality.count_sentences(text, enough) for enough in (1, 3, 99)] == [
        min(len(wanted), enough) for enough in (1, 3, 99)
    ]


@given(st.text("a \n", max_size=20), st.sampled_from([1, 2]))
def test_a_text_is_split_at_runs_of_newlines_as_an_expression_splits_it(text, least):
    assert quality.split_at_runs(text, least) == re.split(rf"\n{{{least},}}", text)


@given(st.text("ab. ,'\n\u3000\x1f中", max_size=30), st.integers(1, 12), st.sampled_from(["space", "apart"]))
def test_a_text_has_as_many_words_as_are_counted(text, count, splitter):
    for stats in (TextStats(text), ScriptStats(text)):
        assert stats.has_words(count, splitter) == (stats.words(splitter).count >= count)


@given(st.lists(st.text("Ab.!? ", max_size=12), max_size=7), st.integers(0, 6))
def test_c4_counts_the_sentences_of_all_lines(lines, least):
    text = "\n".join(lines)
    options = {"terminal_punctuation": False, "min_words_per_line": 1}
    kept = [line.strip() for line in lines if line.strip()]
    count = sum(quality.count_sentences(line, 99) for line in kept)
    outcome = quality.c4(TextStats(text), min_sentences=least, **options)
    assert outcome == ("c4_too_few_sentences" if count < least else "\n".join(kept))
    assert isinstance(outcome, Drop) == (count < least)


@example(["a", "b c"], 1e-300)
@example(["a", "b c"], 5e-324)
@given(st.lists(st.text("ab ,", max_size=9), max_size=12), st.floats(0, 2))
def test_fineweb_compares_all_newlines_with_all_words(lines, most):
    stats = TextStats("\n".join(lines))
    settings = {"min_punctuated_lines": 0, "max_short_lines": 1, "max_dup_line_chars": 1}
    reason = quality.fineweb(stats, max_newlines_per_word=most, **settings)
    if words := stats.words("apart").count:
        expected = "fineweb_list" if stats.text.count("\n") / words > most else None
    else:
        expected = "empty"
    assert reason == expected
