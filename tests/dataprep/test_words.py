"""Words: those of UAX 29 as the package `regex` implements it, and the same in bytes as in spans."""

import sys
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep import words
from mt.dataprep.dedup import minhash_numba
from mt.dataprep.words import WORD, count_words, texts_word_bytes, word_bytes

SCRIPTS = {
    "latin": "aéßĳ_1",
    "decomposed": "ae\u0301\u0308n\u0303",
    "cyrillic": "привеѣ",
    "greek": "αβΣςΐ",
    "arabic": "مرحبا\u064e\u0650\u0651",
    "hebrew": "שלום\u05b8\u05b0",
    "devanagari": "नमस\u094dत\u0947द\u0941\u093f",
    "bengali": "বাংল\u09be\u09cd",
    "tamil": "தமிழ\u0bcd",
    "thai": "สวัสดี\u0e31\u0e35",
    "khmer": "ខ្មែរ",
    "burmese": "မြန်မာ",
    "chinese": "中文書寫々〇",
    "japanese": "日本語のカタカナー",
    "korean": "한국어",
    "jamo": "\u1112\u1161\u11ab",
    "georgian": "ქართული",
    "persian": "می\u200cخواهم",
}
TEXTS = st.sampled_from(list(SCRIPTS.values())).flatmap(lambda s: st.text(s + "ab1 。!\n—", max_size=25))
MIXED = st.lists(TEXTS, max_size=4).map("".join)


def uax29_words(text):
    """The segments between word boundaries that have a letter or a digit."""
    segments = regex.split(r"(?V1w)\b", text)
    return [s for s in segments if regex.search(r"[\p{L}\p{N}_]", s)]


@given(MIXED)
def test_words_are_those_of_uax_29(text):
    text = regex.sub(r"(?<![\p{L}\p{N}_\p{M}])[\p{M}\u200c\u200d]+", "", text)  # marks of no letter
    assert WORD.findall(text) == uax29_words(text)


@given(MIXED | st.text())
def test_bytes_have_the_words_of_the_text(text):
    text = unicodedata.normalize("NFC", text)
    lowered = " ".join(WORD.findall(text)).lower().encode()
    in_bytes = word_bytes(text)
    table = bytes(b if b >= 0x80 or chr(b).isalnum() or b == 0x5F else 0x20 for b in range(256))
    words = in_bytes.translate(table).split()
    assert [w.lower() if w.isascii() else w for w in words] == lowered.split() or any(
        c.isascii() and c.isupper() for c in text
    )
    assert len(words) == len(lowered.split())


def words_in(encoded):
    """The words in results of word_bytes, lower-cased."""
    table = bytes(b if b >= 0x80 or chr(b).isalnum() or b == 0x5F else 0x20 for b in range(256))
    return encoded.translate(table).lower().split()


@given(st.lists(MIXED | st.text(), max_size=5))
def test_arrays_of_texts_have_the_words_of_each_text(texts):
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    expected = [words_in(word_bytes(text)) for text in texts]
    assert [words_in(e) for e in texts_word_bytes(texts)] == expected
    for separate in (words.separate_words, minhash_numba.separate_words):
        assert [words_in(e) for e in words._separated(texts, separate)] == expected


def test_every_character_is_in_the_same_word_in_arrays():
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    text = "".join(f"a{c}ア{c}字{c} {c}\u0301" for c in characters)
    expected = " ".join(WORD.findall(text)).lower().encode().split()
    for separate in (words.separate_words, minhash_numba.separate_words):
        assert words_in(words._separated([text], separate)[0]) == expected


@given(MIXED | st.text())
def test_normalization_changes_no_number_of_words(text):
    counts = {len(WORD.findall(unicodedata.normalize(form, text))) for form in ("NFC", "NFD")}
    assert counts == {len(WORD.findall(text))}


@given(MIXED | st.text())
def test_words_are_counted(text):
    assert count_words(text) == len(WORD.findall(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("مَرْحَبًا", ["مَرْحَبًا"]),
        ("我爱北京。", ["我", "爱", "北", "京"]),
        ("これはペンです", ["こ", "れ", "は", "ペン", "で", "す"]),
        ("1カナabc", ["1", "カナ", "abc"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("don't 3.14 a_b", ["don", "t", "3", "14", "a_b"]),
        ("👩\u200d👩 \u0301", []),
    ],
)
def test_examples(text, words):
    assert WORD.findall(text) == words
