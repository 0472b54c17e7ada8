"""The rule language: each rule and edit on both sides of its thresholds, parameters, and errors."""

import inspect
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.filters import rules
from mt.dataprep.filters.rules import Drop, compile_rules
from mt.tokenizer.tokenizer import TokenizerConfig, load

SENTENCE = "The people that have seen the old house speak of it with a smile"
LONG = (
    f"{SENTENCE}, and then there were others, of whom we know nothing since nobody has ever written down what"
    " these have said"
)


def verdict(rule, text):
    """The reason why a rule drops a text, or None."""
    outcome = compile_rules([rule])(text)
    return str(outcome) if isinstance(outcome, Drop) else None


@pytest.mark.parametrize(
    ("rule", "kept", "dropped", "reason"),
    [
        ("length min_chars=5", "12345", "1234", "too_short"),
        ("length max_chars=5", "12345", "123456", "too_long"),
        ("length min_words=3", "a b c", "a b", "too_few_words"),
        ("length max_words=2", "a b", "a b c", "too_many_words"),
        ("length min_words=4", "我爱北京", "我爱京", "too_few_words"),
        ("length", "a", " \n ", "too_short"),
        ("gopher_repetition", LONG, f"{LONG} {' out west '.join('0123456789')}", "top_2gram"),
        ("gopher_repetition", f"{LONG}\n\nOther people", f"{LONG}\n\n" * 2, "repeated_paragraphs"),
        ("c4_paragraphs", f"{'x' * 200}\n" * 3, f"{'x' * 200}\n" * 2, "c4_too_few_paragraphs"),
        ("tokens", "x" * 512, "x" * 511, "too_few_tokens"),
        ("tokens min_tokens=0 max_tokens=3", "x" * 12, "x" * 13, "too_many_tokens"),
        (
            "language max_chars=60",
            "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
            "Alle Menschen sind frei und gleich an Würde",
            "language_de",
        ),
        ("javascript", "x" * 240 + " javascript here", "Please enable JavaScript", "javascript_notice"),
        ("gopher_quality", f"{SENTENCE} " * 4, f"{SENTENCE} " * 3, "gopher_too_few_words"),
        ("gopher_quality min_words=1 max_words=14", SENTENCE, f"{SENTENCE} more", "gopher_too_many_words"),
        ("gopher_quality min_words=1", "the and bees are big", "a b c d the", "gopher_mean_word_length"),
        ("gopher_quality min_words=1", SENTENCE + " #", SENTENCE + " # #", "gopher_hashes"),
        ("gopher_quality min_words=1", "And... " + SENTENCE, "And... ... " + SENTENCE, "gopher_ellipses"),
        (
            "gopher_quality min_words=1",
            "the and of\n- what there was",
            "- the words\n- and words",
            "gopher_bullet_lines",
        ),
        (
            "gopher_quality min_words=1",
            f"{SENTENCE}\n" * 3 + SENTENCE + "…",
            f"{SENTENCE}\n" + SENTENCE + "…",
            "gopher_ellipsis_lines",
        ),
        (
            "gopher_quality min_words=1",
            "the year and then 1999",
            "the 1234 and 1999",
            "gopher_not_alphabetic",
        ),
        ("gopher_quality min_words=1", "the house and barn", "the house or barn", "gopher_stop_words"),
        (
            "fineweb",
            f"{SENTENCE}.\nAnd then there were other words, of which we know",
            f"{SENTENCE}\nAnd then there were other words, of which we know",
            "fineweb_unpunctuated_lines",
        ),
        ("fineweb", f"Short.\n{SENTENCE}.", "Some short line.\nAnother short line.", "fineweb_short_lines"),
        (
            "fineweb",
            f"{SENTENCE}.\nAnd so on, with other words than those.",
            f"{SENTENCE}.\n{SENTENCE}.",
            "fineweb_repeated_lines",
        ),
        (
            "fineweb max_short_lines=1",
            "One two three four five.\nSix seven.",
            "One two.\n\n\nSix seven.",
            "fineweb_list",
        ),
        ("c4 min_sentences=2", f"{SENTENCE}. And a second one.", f"{SENTENCE}. and", "c4_too_few_sentences"),
        ("c4 min_sentences=1", "We saw it happen.", "Lorem ipsum dolor sit.", "c4_lorem_ipsum"),
        ("c4 min_sentences=1", "We saw it happen.", "int main() { return 0; } // end.", "c4_curly_bracket"),
    ],
)
def test_a_rule_drops_beyond_its_threshold_and_says_why(rule, kept, dropped, reason):
    assert verdict(rule, kept) is None
    assert verdict(rule, dropped) == reason


def test_c4_keeps_lines_of_prose():
    text = "\n".join(
        [
            "Home | About | Contact",
            "The first line has words enough.[1]",
            "Please enable JavaScript to read this page.",
            "Too short.",
            "We use cookies, as our privacy policy says.",
            "A line that trails off into nothing...",
            'It ends in "quotation marks"',
            "w" * 1001 + " is a long word.",
        ]
    )
    assert (
        compile_rules(["c4 min_sentences=1"])(text)
        == 'The first line has words enough.\nIt ends in "quotation marks"'
    )
    assert compile_rules(["c4 min_sentences=1 terminal_punctuation=false"])(text).startswith(
        "Home | About | Contact\nThe first"
    )


def test_the_page_of_documentation_names_every_rule_and_parameter():
    page = (Path(rules.__file__).parents[2] / "docs/cleaning.md").read_text(encoding="utf-8")
    rows = {
        found[1]: found[0]
        for found in re.finditer(r"^\| `(\w+)` \|.*$", page.partition("## Presets")[0], re.MULTILINE)
    }
    for name, function in (rules.RULES | rules.EDITS).items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and not re.match(
                r"tokenizer|max_(top_3|dup_[6-9])gram", parameter.name
            ):
                assert f"{parameter.name}=" in rows[name], f"{name}: {parameter.name}"
    assert set(rules.RULES | rules.EDITS) <= set(rows)


def test_tokens_are_counted_by_the_named_tokenizer_and_only_if_needed():
    apply = compile_rules(
        ["tokens min_tokens=5 sure_chars=8"], load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer"))
    )
    assert apply("four") == "four"  # four bytes and the end of the document
    assert apply("3by") == "too_few_tokens"
    counted = []

    class Counting:
        def encode(self, text):
            counted.append(text)
            return [0]

    apply = compile_rules(["tokens min_tokens=5 sure_chars=8"], Counting())
    assert apply("x" * 40) == "x" * 40
    assert apply("x" * 39) == "too_few_tokens"
    assert counted == ["x" * 39]


def test_whitespace_leaves_indentation_and_single_empty_lines():
    assert compile_rules(["whitespace"])("\n\n  a \t\n    b\u00a0 \n\n\n\n\nc  ") == "  a\n    b\n\nc"


def test_join_lines_does_what_megatrons_general_cleaning_does():
    assert compile_rules(["join_lines"])("a word\n\nnext  two\nend.\nStart") == "a word next two end.\nStart"


def test_unicode_is_normalized_on_request():
    assert compile_rules(["normalize_unicode"])("e\u0301 ﬁ") == "é ﬁ"
    assert compile_rules(["normalize_unicode form=NFKC"])("e\u0301 ﬁ") == "é fi"


def test_an_item_applies_to_the_languages_that_it_names():
    german = "Alle Menschen sind frei und gleich an Würde und Rechten geboren."
    english = "All human beings are born free and equal in dignity and rights."
    apply = compile_rules(["length min_chars=70 lang=de,fr"], lang=("all",))
    assert [apply(german), apply(english)] == ["too_short", english]
    assert apply.languages == {"de": 1, "en": 1}
    assert compile_rules(["length min_chars=70 lang=de"])(german) == german, "without lang, texts are English"
    assert compile_rules(["length min_chars=70 lang=de"], lang=("de",))(english) == "too_short"


def test_the_language_of_the_thresholds_is_that_of_lang_or_else_of_the_rule_language():
    def judged(*rules, lang=()):
        return compile_rules(rules, lang=lang).language

    assert judged("fineweb") == judged("language", "fineweb") == "en"
    assert judged("language keep=de", "fineweb") == judged("fineweb", lang=("de",)) == "de"
    assert judged("language", "fineweb", lang=("de",)) == "de"
    assert judged("fineweb", lang=("en", "de")) is judged("language keep=all") is None


def test_a_parameter_of_the_user_stands_in_every_language():
    text = "Die Leute haben das alte Haus gesehen und sprechen mit einem Lächeln von ihm."
    kept = compile_rules(["gopher_quality min_words=3"], lang=("de",))
    assert kept(text) == text
    assert compile_rules(["gopher_quality"], lang=("de",))(text) == "gopher_too_few_words"
    strict = compile_rules(["gopher_quality min_words=3 stop_words=der,auch"], lang=("de",))
    assert strict(text) == "gopher_stop_words"


@pytest.mark.parametrize(
    ("items", "lang", "message"),
    [
        (
            ["fineweb"],
            ("xx",),
            r"lang = xx: 'xx' is not a known language.*; write ISO codes, as in --lang en de",
        ),
        (["fineweb"], ("all", "de"), "lang = all, de: all stands alone"),
        (
            ["language keep=de"],
            ("fr",),
            r"'language keep=de' keeps other languages than --lang fr; omit keep=",
        ),
    ],
)
def test_wrong_languages_are_refused(items, lang, message):
    with pytest.raises(UserError, match=message):
        compile_rules(items, lang=lang)


def test_edits_and_rules_run_in_order_and_edits_are_counted():
    apply = compile_rules(["length min_chars=3", "whitespace", "length min_chars=2", "fix_text"])
    assert [apply("a    "), apply("ab"), apply("abc"), apply("abÃ©")] == [
        "too_short",
        "too_short",
        "abc",
        "abé",
    ]
    assert apply.edited == {"whitespace": 1, "fix_text": 1}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            "gopher_qualty",
            r"rules: 'gopher_qualty': no such rule; did you mean gopher_quality\?; the rules are"
            r" boilerplate_lines, c4, c4_paragraphs, ",
        ),
        (
            "length min_char=3",
            r"length has no parameter 'min_char'; did you mean min_chars\?; it takes min_chars, max_chars",
        ),
        ("whitespace all=true", r"whitespace has no parameter 'all'; it takes none"),
        ("length min_chars", r"min_chars must be an integer, as in min_chars=0"),
        ("length min_chars=0.5", "min_chars must be an integer"),
        (
            "c4 terminal_punctuation=3",
            "terminal_punctuation must be true or false, as in terminal_punctuation=true",
        ),
        ("fineweb max_short_lines=many", "max_short_lines must be a number"),
        ("c4 split=pages", "split must be lines or sentences, as in split=lines"),
        ("gopher_quality words=", "words must be space or apart, as in words=space"),
        ("fineweb line_ends=", "line_ends must be a text, as in line_ends=.!?"),
        (
            "tokens tokenizer=gpt2",
            "tokens has no parameter 'tokenizer'; it takes min_tokens, max_tokens, sure_chars",
        ),
        ("", "no such rule"),
        ("length lang=xx", r"rules: 'length lang=xx': 'xx' is not a known language.*; write ISO codes"),
        ("length lang=", "'' is not a known language"),
        ("length lang", "length has no parameter 'lang'"),
        ("redact phone_regions=de,", "phone_regions has an empty item; write phone_regions=de$"),
        ("redact phone_regions=de,,at", "phone_regions has an empty item; write phone_regions=de,at$"),
        ("redact phone_regions=,", "phone_regions has an empty item; write phone_regions=DE,AT$"),
        ("redact phone_regions=", "phone_regions must be a text, as in phone_regions=DE,AT$"),
        ("redact phone_regions", "phone_regions must be a text, as in phone_regions=DE,AT$"),
        ("gopher_quality stop_words=,the", "stop_words has an empty item; write stop_words=the$"),
        ("language keep=en,", "keep has an empty item; write keep=en$"),
    ],
)
def test_a_wrong_item_is_refused_with_the_nearest_name(item, message):
    with pytest.raises(UserError, match=message):
        compile_rules([item])


@pytest.mark.parametrize("name", sorted(rules.RULES.keys() | rules.EDITS.keys()))
def test_the_example_in_the_message_for_an_empty_parameter_is_valid(name):
    parameters = inspect.signature({**rules.RULES, **rules.EDITS}[name]).parameters.values()
    for key in (p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "tokenizer"):
        for empty in (key, f"{key}="):
            with pytest.raises(UserError, match=r"(as in|write) \S+$") as caught:
                compile_rules([f"{name} {empty}"])
            compile_rules([f"{name} {str(caught.value).split()[-1]}"])


@given(st.text(" \t\r\x0b\xa0\na", max_size=30))
def test_whitespace_at_ends_of_lines_goes_as_by_an_expression_that_reads_runs_of_spaces_again(text):
    lines = re.sub(r"[^\S\n]+(?=\n|\Z)", "", text)
    wanted = re.sub(r"\n{3,}", "\n\n", lines).strip("\n").rstrip()
    assert compile_rules(["whitespace"])(text) == wanted
