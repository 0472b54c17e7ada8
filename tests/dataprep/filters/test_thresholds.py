"""Thresholds by language: complete, for known languages, and used as datatrove uses FineWeb-2's."""

import inspect

import pytest
import regex

from mt.dataprep.filters import rules, thresholds
from mt.dataprep.filters.language import languages
from mt.dataprep.filters.quality import Drop
from mt.dataprep.filters.rules import compile_rules
from mt.dataprep.filters.script_stats import ScriptStats, line_ends
from mt.tests.dataprep.filters.test_quality import REASONS, datatrove  # noqa: F401
from mt.tests.dataprep.filters.test_script_stats import PROSE

SPACED = ["de", "fr", "ru", "hi", "ar", "el", "ta", "eo"]


def test_every_language_is_one_that_is_found_and_has_all_parameters():
    known = thresholds.known_languages()
    assert len(known) > 50
    assert known <= languages()
    for code in [*known - {"en"}, thresholds.OTHER]:
        for rule, values in thresholds.parameters(code).items():
            taken = inspect.signature(rules.RULES[rule]).parameters
            assert {name: type(value) for name, value in values.items()} == {
                name: type(taken[name].default) for name in values
            }, f"{code}, {rule}"


@pytest.mark.parametrize(
    ("code", "rule", "published"),
    [  # as in configs/LANGUAGE.yml of FineWeb-2
        ("de", "gopher_quality", {"min_mean_word": 0, "max_mean_word": 15, "min_alphabetic_words": 0.774}),
        ("ru", "fineweb", {"min_punctuated_lines": 0.231, "max_newlines_per_word": 0.139}),
        ("th", "gopher_quality", {"stop_words": "ใน,ที่,และ,ของ,เป็น,มี,การ,ได้", "min_stop_words": 2}),
        ("hi", "gopher_repetition", {"max_dup_lines": 0.206, "max_top_2gram": 0.208, "max_dup_10gram": 0.09}),
        ("no", "gopher_quality", {"min_alphabetic_words": 0.783}),
    ],
)
def test_values_are_those_published(code, rule, published):
    assert published.items() <= thresholds.parameters(code)[rule].items()


def test_english_has_the_defaults_of_the_functions():
    assert thresholds.parameters("en") == {}


def test_the_digest_is_of_the_languages_asked_for():
    assert thresholds.digest(["de"]) != thresholds.digest(["fr"])
    assert thresholds.digest(["de", "fr"]) == thresholds.digest(["fr", "de"])


@pytest.mark.parametrize("code", SPACED)
def test_rules_are_datatroves_filters_with_the_thresholds_of_the_language(datatrove, monkeypatch, code):  # noqa: F811
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    def words(text, language):
        return ScriptStats(text).words("apart").of(text)

    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        monkeypatch.setattr(module, "split_into_words", words)
    given = thresholds.parameters(code)
    quality, repeated, own = given["gopher_quality"], given["gopher_repetition"], given["fineweb"]
    theirs = {
        "gopher_quality": datatrove.GopherQualityFilter(
            min_avg_word_length=quality["min_mean_word"],
            max_avg_word_length=quality["max_mean_word"],
            max_non_alpha_words_ratio=quality["min_alphabetic_words"],
            min_stop_words=quality["min_stop_words"],
            # the elided article of French is a word of its own
            stop_words=[word.removesuffix("'") for word in quality["stop_words"].split(",")],
        ),
        "gopher_repetition": datatrove.GopherRepetitionFilter(
            dup_line_frac=repeated["max_dup_lines"],
            dup_para_frac=0,
            dup_line_char_frac=0,
            dup_para_char_frac=0,
            top_n_grams=[(n, repeated[f"max_top_{n}gram"]) for n in (2, 3, 4)],
            dup_n_grams=[(n, repeated[f"max_dup_{n}gram"]) for n in range(5, 11)],
        ),
        "fineweb": datatrove.FineWebQualityFilter(
            line_punct_thr=own["min_punctuated_lines"],
            short_line_thr=999,
            char_duplicates_ratio=0.1,
            new_line_ratio=own["max_newlines_per_word"],
            stop_chars=tuple(line_ends()),
        ),
    }
    text, reasons = PROSE[code], set()
    lines = text.split("\n")
    texts = [text[i : i + 60 * n] for i in range(0, len(text) - 60, 40) for n in range(1, 12, 2)]
    texts += [f"{lines[0][:n]}\n" * 3 + text for n in (10, 50, 100)]
    texts += [f"{text} {text[:n]}" for n in range(0, len(text), 50)]
    texts += [regex.sub(r"[.,।]? ", separator, text) for separator in ("\n", " # ", " / ", "...\n", "")]
    texts += [regex.sub(r"\b\p{L}{1,3}\b", "17", text), " ".join(PROSE["tr"].split())]
    for rule, other in theirs.items():
        apply = compile_rules([rule], lang=(code,))
        for each in texts:
            outcome, expected = apply(each), other.filter(Document(text=each, id=""))
            ours = str(outcome) if isinstance(outcome, Drop) else None
            reasons.add(ours)
            assert (ours is None) == (expected is True), (rule, ours, expected, each)
            assert ours is None or expected[1] in REASONS[ours]
    assert len(reasons) > 8
