"""Languages of Wikipedia: numbers, months and magic words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract import editions

CODES = [code for code in editions.load("editions.yaml")]


@given(st.integers(-(10**20), 10**20), st.integers(0, 999))
def test_english_numbers_are_grouped_as_by_python(number, decimals):
    text = f"{number}.{decimals}"
    assert editions.edition("en").number(text) == f"{number:,}.{decimals}".replace("-", "\u2212")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "1,234.5 1,234,567"),
        ("simple", "1,234.5 1,234,567"),
        ("de", "1234,5 1.234.567"),
        ("fr", "1 234,5 1 234 567"),
        ("es", "1234,5 1 234 567"),
        ("ru", "1 234,5 1 234 567"),
        ("ja", "1,234.5 1,234,567"),
        ("xx", "1234.5 1234567"),
    ],
)
def test_each_language_writes_numbers_in_its_way(code, text):
    edition = editions.edition(code)
    assert f"{edition.number('1234.5')} {edition.number('1234567')}" == text
    assert edition.number("about 1234") == "about 1234"


@pytest.mark.parametrize("code", CODES)
def test_an_edition_has_twelve_months_or_none(code):
    assert len(editions.edition(code).months) in (0, 12)


def test_only_magic_words_are_found():
    words = editions.magic_words()
    assert (
        words.sub("", "a__NOTOC____notoc__ __LINE__ __KEIN_INHALTSVERZEICHNIS__b __ TOC__")
        == "a __LINE__ b __ TOC__"
    )


def test_the_digest_changes_with_a_table(tmp_path, monkeypatch):
    before = editions.rules_digest()
    for path in editions.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(editions, "FOLDER", tmp_path)
    assert editions.rules_digest() == before
    with open(tmp_path / "templates.yaml", "a") as file:
        file.write("\n")
    assert editions.rules_digest() != before
