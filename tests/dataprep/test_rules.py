"""Rules and edits: each against a plain reading of its paper, and at both sides of its thresholds."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.config import UserError
from mt.dataprep.rules import Drop, Text, compile_rules, gopher_repetition

SENTENCE = "The people that have seen the old house speak of it with a smile"


def verdict(rule, text):
    """The reason why a rule drops a text, or None."""
    outcome = compile_rules([rule])(text)
    return str(outcome) if isinstance(outcome, Drop) else None


def reference_repetition(text, words):
    """Gopher's table A1 word by word, with strings and loops."""
    chars = len(text)

    def repeated(items):
        seen, count, size = set(), 0, 0
        for item in items:
            if item in seen:
                count, size = count + 1, size + len(item)
            seen.add(item)
        return count, size

    for name, items in (("repeated_paragraphs", re.split(r"\n{2,}", text.strip())), ("repeated_lines", re.split(r"\n+", text))):
        count, size = repeated(items)
        if count / len(items) > 0.3 or size / chars > 0.2:
            return name
    for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        if grams:
            gram, count = Counter(grams).most_common(1)[0]
            if len(gram) * count / chars > limit:
                return f"top_{n}gram"
    for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)):
        seen, size, i = set(), 0, 0
        while i < len(words) - n + 1:
            gram = tuple(words[i : i + n])
            if gram in seen:
                size += sum(map(len, gram))
                i += n
            else:
                seen.add(gram)
                i += 1
        if size / chars > limit:
            return f"repeated_{n}grams"
    return None


@given(st.lists(st.sampled_from(["a", "bc", "def", "ghij", "one", "two", "three", "\n", "\n\n"]) | st.text("xyz", min_size=1, max_size=9), min_size=1, max_size=120))
def test_gopher_repetition_agrees_with_loops_over_strings(words):
    text = " ".join(words)
    view = Text(text)
    assert gopher_repetition(view) == reference_repetition(text, view.words)


def test_gopher_repetition_agrees_with_loops_over_strings_on_the_speeches(shared):
    texts = [json.loads(line)["text"] for line in (shared / "data/corpus/speeches.jsonl").read_bytes().splitlines()[:60]]
    for text in [*texts, *(t[:300] * 3 for t in texts[:20]), *(t[:80] + t[:2000] + t[:80] for t in texts[:20])]:
        view = Text(text)
        assert gopher_repetition(view) == reference_repetition(text, view.words)


@pytest.mark.parametrize(
    ("rule", "kept", "dropped", "reason"),
    [
        ("length min_chars=5", "12345", "1234", "too_short"),
        ("length max_chars=5", "12345", "123456", "too_long"),
        ("length min_words=3", "a b c", "a b", "too_few_words"),
        ("length max_words=2", "a b", "a b c", "too_many_words"),
        ("length", "a", " \n ", "too_short"),
        ("javascript", "x" * 240 + " javascript here", "Please enable JavaScript", "javascript_notice"),
        ("gopher_quality", f"{SENTENCE} " * 4, f"{SENTENCE} " * 3, "gopher_too_few_words"),
        ("gopher_quality min_words=1 max_words=14", SENTENCE, f"{SENTENCE} more", "gopher_too_many_words"),
        ("gopher_quality min_words=1", "the and bees are big", "a b c d the", "gopher_mean_word_length"),
        ("gopher_quality min_words=1", SENTENCE + " #", SENTENCE + " # #", "gopher_hashes"),
        ("gopher_quality min_words=1", "And... " + SENTENCE, "And... ... " + SENTENCE, "gopher_ellipses"),
        ("gopher_quality min_words=1", "the and of\n- what there was", "- the words\n- and words", "gopher_bullet_lines"),
        ("gopher_quality min_words=1", f"{SENTENCE}\n" * 3 + SENTENCE + "…", f"{SENTENCE}\n" + SENTENCE + "…", "gopher_ellipsis_lines"),
        ("gopher_quality min_words=1", "the year and then 1999", "the 1234 and 1999", "gopher_not_alphabetic"),
        ("gopher_quality min_words=1", "the house and barn", "the house or barn", "gopher_stop_words"),
        ("fineweb", f"{SENTENCE}.\nAnd then there were other words, of which we know", f"{SENTENCE}\nAnd then there were other words, of which we know", "fineweb_unpunctuated_lines"),
        ("fineweb", f"Short.\n{SENTENCE}.", "Some short line.\nAnother short line.", "fineweb_short_lines"),
        ("fineweb", f"{SENTENCE}.\nAnd so on, with other words than those.", f"{SENTENCE}.\n{SENTENCE}.", "fineweb_repeated_lines"),
        ("fineweb max_short_lines=1", "One two three four five.\nSix seven.", "One two.\n\n\nSix seven.", "fineweb_list"),
        ("c4 min_sentences=2", f"{SENTENCE}. And a second one.", f"{SENTENCE}. and", "c4_too_few_sentences"),
        ("c4 min_sentences=1", "We saw it happen.", "Lorem ipsum dolor sit.", "c4_lorem_ipsum"),
        ("c4 min_sentences=1", "We saw it happen.", "int main() { return 0; } // end.", "c4_curly_bracket"),
    ],
)
def test_a_rule_drops_beyond_its_threshold_and_says_why(rule, kept, dropped, reason):
    assert verdict(rule, kept) is None
    assert verdict(rule, dropped) == reason


def test_c4_keeps_the_lines_that_read_like_prose():
    text = "\n".join([
        "Home | About | Contact", "The first line has words enough.[1]", "Please enable JavaScript to read this page.", "Too short.",
        "We use cookies, as our privacy policy says.", "A line that trails off into nothing...", 'It ends in "quotation marks"', "w" * 1001 + " is a long word.",
    ])
    assert compile_rules(["c4 min_sentences=1"])(text) == 'The first line has words enough.\nIt ends in "quotation marks"'
    assert compile_rules(["c4 min_sentences=1 terminal_punctuation=false"])(text).startswith("Home | About | Contact\nThe first")


def test_whitespace_leaves_indentation_and_single_empty_lines():
    assert compile_rules(["whitespace"])("\n\n  a \t\n    b\u00a0 \n\n\n\n\nc  ") == "  a\n    b\n\nc"


def test_join_lines_does_what_megatrons_general_cleaning_does():
    assert compile_rules(["join_lines"])("a word\n\nnext  two\nend.\nStart") == "a word next two end.\nStart"


def test_edits_and_rules_run_in_order_and_edits_are_counted():
    apply = compile_rules(["length min_chars=3", "whitespace", "length min_chars=2", "fix_text"])
    assert [apply("a    "), apply("ab"), apply("abc"), apply("abÃ©")] == ["too_short", "too_short", "abc", "abé"]
    assert apply.edited == {"whitespace": 1, "fix_text": 1}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("gopher_qualty", r"rules: 'gopher_qualty': no such rule; did you mean gopher_quality\?; the rules are boilerplate_lines, c4, "),
        ("length min_char=3", r"length has no parameter 'min_char'; did you mean min_chars\?; it takes min_chars, max_chars"),
        ("whitespace all=true", r"whitespace has no parameter 'all'; it takes none"),
        ("length min_chars", r"min_chars must be a whole number, as in min_chars=0"),
        ("length min_chars=0.5", "min_chars must be a whole number"),
        ("c4 terminal_punctuation=3", "terminal_punctuation must be true or false, as in terminal_punctuation=true"),
        ("fineweb max_short_lines=many", "max_short_lines must be a number"),
        ("", "no such rule"),
    ],
)
def test_a_wrong_item_is_refused_with_the_nearest_name(item, message):
    with pytest.raises(UserError, match=message):
        compile_rules([item])
