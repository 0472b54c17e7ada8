"""Language identification: texts in known languages, and the rule that uses it."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.core.numba_loops import for_few_inputs
from mt.dataprep.filters.language import CONFIDENT_SCORE, language, languages
from mt.dataprep.filters.rules import Drop, compile_rules

# The first article of the Universal Declaration of Human Rights.
ARTICLE = {
    "en": (
        "All human beings are born free and equal in dignity and rights. They are endowed with reason and"
        " conscience and should act towards one another in a spirit of brotherhood."
    ),
    "de": (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen"
        " begabt und sollen einander im Geist der Brüderlichkeit begegnen."
    ),
    "fr": (
        "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et"
        " de conscience et doivent agir les uns envers les autres dans un esprit de fraternité."
    ),
    "es": (
        "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón"
        " y conciencia, deben comportarse fraternalmente los unos con los otros."
    ),
    "nl": (
        "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand"
        " en geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen."
    ),
    "da": (
        "Alle mennesker er født frie og lige i værdighed og rettigheder. De er udstyret med fornuft og"
        " samvittighed, og de bør handle mod hverandre i en broderskabets ånd."
    ),
    "pl": (
        "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni"
        " rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa."
    ),
    "ru": (
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и"
        " совестью и должны поступать в отношении друг друга в духе братства."
    ),
    "uk": (
        "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю"
        " і повинні діяти у відношенні один до одного в дусі братерства."
    ),
    "ar": (
        "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً وعليهم أن يعامل بعضهم"
        " بعضاً بروح الإخاء."
    ),
    "hi": (
        "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें"
        " बुद्धि और अन्तरात्मा की देन प्राप्त है।"
    ),
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}


@pytest.mark.parametrize(("code", "text"), ARTICLE.items(), ids=list(ARTICLE))
def test_the_language_of_a_sentence_and_of_its_halves_is_identified(code, text):
    half = len(text) // 2
    assert [language(text)[0], language(text[:half])[0], language(text[half:])[0]] == [code] * 3
    assert language(text)[1] > 0.8
    assert code in languages()


def test_the_middle_counts_as_much_as_the_beginning():
    menu = "Home About Contact " * 20
    assert language(menu + ARTICLE["de"] * 3)[0] == "de"


@pytest.mark.parametrize("text", ["", "\n", "123 456 --", "\ud800", "…"])
def test_a_text_without_letters_has_no_language(text):
    assert language(text) == ("und", 0.0)


def test_the_reviews_are_english(shared):
    texts = [
        json.loads(line)["text"]
        for line in (shared / "data/corpus/reviews.jsonl").read_bytes().splitlines()[:2000]
    ]
    assert sum(language(t)[0] == "en" for t in texts) == len(texts)


def test_another_process_gives_the_same_scores():
    code = (
        "from mt.dataprep.filters.language import language; print([language(t) for t in"
        f" {list(ARTICLE.values())!r}])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str([language(t) for t in ARTICLE.values()])


def test_the_rule_keeps_the_named_languages_and_reports_the_others():
    english, both = compile_rules(["language"]), compile_rules(["language keep=en,de min_score=0.9"])
    assert english(ARTICLE["en"]) == both(ARTICLE["en"]) == ARTICLE["en"]
    assert isinstance(english(ARTICLE["de"]), Drop)
    assert english(ARTICLE["de"]) == "language_de"
    assert both(ARTICLE["de"]) == ARTICLE["de"]
    assert both("hello there 1 2 3") == "language_unsure"
    assert english("1 2 3") == "language_und"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            "language keep=english",
            r"'english' is not a known language.*; write ISO codes, as in keep=en,de",
        ),
        ("language keep=en,", "keep has an empty item; write keep=en"),
        ("language keep=", "keep must be a text, as in keep=en"),
        ("language min_score=high", "min_score must be a number"),
    ],
)
def test_an_unknown_language_is_refused(item, message):
    with pytest.raises(UserError, match=message):
        compile_rules([item])


@given(st.text(max_size=300))
@settings(max_examples=50, deadline=None)
def test_the_librarys_model_gives_the_same_language_for_few_texts(text):
    code, score = language(text)
    with for_few_inputs():
        few_code, few_score = language(text)
    assert few_score == pytest.approx(score, abs=2e-5)
    # the sample is longer where the score is low, and the score may lie at that edge
    assert few_code == code or abs(score - CONFIDENT_SCORE) < 1e-4
