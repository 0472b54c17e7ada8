"""The table of templates: every name, every pattern, and the patterns' parts."""

import re

import pytest

from mt.dataprep.extract import editions, template_rules
from mt.dataprep.extract.template_call import Call
from mt.dataprep.extract.templates import Pattern, expand
from mt.dataprep.extract.wikitext import plain_text

ENTRIES = editions.load("templates.yaml")
# Templates that need other arguments than texts and small numbers.
NEED_OTHERS = (
    "music",
    "zh",
    "lang-zh",
    "age",
    "age in years",
    "age in days",
    "age in years and days",
    "ayd",
    "unichar",
    "round",
    "rnd",
    "percentage",
    "pct",
)
LANGUAGES = ("en", "de", "fr", "es", "ru", "ja", "zh")


def call(name="x", *positional, edition="en", **named):
    arguments = {**{str(i): text for i, text in enumerate(positional, 1)}, **named}
    return Call(
        name, {key: lambda text=text: text for key, text in arguments.items()}, editions.edition(edition)
    )


def test_every_entry_has_one_kind_of_text_and_a_rule_that_exists():
    used = set()
    for entry in ENTRIES:
        assert len({"text", "constant", "rule", "words"} & set(entry)) == 1, entry
        assert set(entry) <= {
            *("text", "constant", "rule", "words", "names", "editions", "join", "prefix", "suffix"),
            "otherwise",
        }
        assert ("text" in entry) >= ("otherwise" in entry)
        if "rule" in entry:
            used.add(entry["rule"])
    assert used == set(template_rules.RULES)


def test_no_edition_gives_a_name_to_two_entries():
    for scope in {tuple(entry.get("editions", ())) for entry in ENTRIES}:
        entries = [e for e in ENTRIES if tuple(e.get("editions", ())) == scope]
        names = [n for e in entries for n in (*e.get("names", ()), *e.get("words", ()))]
        names = [name[:1].lower() + name[1:] for name in names]
        assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("text", [entry["text"] for entry in ENTRIES if "text" in entry])
def test_a_pattern_names_each_argument_once_so_that_levels_do_not_multiply(text):
    names = [name for part in re.findall(r"\{([^{}]*)\}", text) for name in re.split("[|;]", part)]
    assert len(names) == len(set(names))
    Pattern(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_entry_of_every_language_is_expanded_with_some_arguments(language):
    for entry in ENTRIES:
        if language not in entry.get("editions", (language,)):
            continue
        for name in (*entry.get("names", ()), *entry.get("words", ())):
            shown = expand(
                call(name, "5", "m", "7", "8", edition=language, quote="q", hangul="h", m="1", p="p", l="1")
            )
            assert shown is not None or name in NEED_OTHERS, name


@pytest.mark.parametrize(
    ("text", "arguments", "shown"),
    [
        ("{1}", ["a"], "a"),
        ("{1}", [""], None),
        ("{1}", [], None),
        ("{2|1}", ["a"], "a"),
        ("{2|1}", ["a", "b"], "b"),
        ("{1}< ({2;3})>", ["a", "b", "c"], "a (b, c)"),
        ("{1}< ({2;3})>", ["a", "", "c"], "a (c)"),
        ("{1}< ({2;3})>", ["a"], "a"),
        ("{1}< (m. {2}<; d. {3}>)>", ["a", "b"], "a (m. b)"),
        ("{1}< (m. {2}<; d. {3}>)>", ["a", "b", "c"], "a (m. b; d. c)"),
        ("<{1} >{0}", [], "x y"),
        ("{*}", ["a", "", "b"], "a+b"),
    ],
)
def test_a_pattern_shows_what_is_given(text, arguments, shown):
    assert Pattern(text, "+")(call("x_y", *arguments)) == shown


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{Nowrap|a}}{{nowrap |b}}{{no_wrap|c}}", "abc"),
        ("{{USS|Iowa}} {{lang|de|1=x|2=y}} {{lang | de | z }}", "USS Iowa y z"),
        ("{{!}}{{=}}{{(}}{{)}}{{((}}a{{))}}{{'}}{{-}}b{{snd}}c", "|={}{{a}}'\nb – c"),
        ("a{{unknown template|words}}b", "ab"),
    ],
)
def test_names_are_matched_as_by_mediawiki(wikitext, text):
    assert plain_text(wikitext) == text


def test_an_edition_has_its_own_templates():
    assert plain_text("{{s|XIX}}", language="fr") == "XIXe siècle"
    assert plain_text("{{s|XIX}}", language="en") == "XIX"
    assert plain_text("{{Zitat|a|Autor=b}}", language="de") == "„a“\n– b"
    assert plain_text("{{nowrap|a}}", language="xx") == "a"
