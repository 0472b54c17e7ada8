"""Encodings of text files, compared with Python's own decoders."""

import codecs
import encodings
import pkgutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mt.core.unicode import without_mark
from mt.documents import charsets, compression
from mt.documents.charsets import encoding_rule, file_encoding, open_utf8, python_name

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SOME = [
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "windows-1252",
    "shift_jis",
    "gb18030",
    "euc-kr",
    "iso-2022-jp",
    "hz",
]
NAMES = {python_name(module.name) for module in pkgutil.iter_modules(encodings.__path__)}
EVERY = sorted(NAMES - {None})  # that Python knows
# Bytes that are parts of characters in many encodings, and of UTF-8.
BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(b"\n\x1b$B~A\x81\xa9\xbf\xc3\xe2\xf0")).map(bytes),
    st.text(max_size=20).map(str.encode),
)


@quick
@given(st.text(max_size=300), st.sampled_from(SOME), st.sampled_from([1, 7, 1 << 18]))
def test_text_in_any_encoding_becomes_utf8(tmp_path, text, encoding, block):
    data = text.encode(encoding, "ignore")
    text = data.decode(encoding)
    if charsets.marked_encoding(data) not in (None, python_name(encoding)):
        return  # the first characters are a mark of another encoding
    (tmp_path / "a").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "READ_BYTES", block)
        with open_utf8(tmp_path / "a", encoding) as file:
            assert without_mark(file.read()).decode() == text.removeprefix("\ufeff")


@quick
# Each of these bytes is wrong by itself; together they are a character of UTF-8.
@example(b"\xc3\xa9", "utf-32-le", 1)
@example(b"\xc3\xa9a", "euc-kr", 1 << 18)
@example(b"\x1b$)\x0e*~*+\x0fab\n", "iso2022_kr", 1)  # Python's decoder keeps no more than 8 bytes
@given(BYTES, st.sampled_from(EVERY), st.sampled_from([1, 3, 1 << 18]))
def test_wrong_bytes_are_wrong_in_utf8_and_right_ones_are_not(tmp_path, data, encoding, block):
    if charsets.marked_encoding(data) is not None:
        return
    (tmp_path / "a").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "READ_BYTES", block)
        with open_utf8(tmp_path / "a", encoding) as file:
            found = file.read()
    try:
        wanted = data.decode(charsets.UNMARKED.get(encoding, encoding))
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            found.decode()
    else:
        assert found.decode() == wanted


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_mark_says_the_encoding_whatever_the_user_names(tmp_path, mark, encoding):
    (tmp_path / "a").write_bytes(mark + "déjà ✓".encode(encoding))
    for named in ("utf-8", "windows-1252"):
        with open_utf8(tmp_path / "a", named) as file:
            assert without_mark(file.read()).decode() == "déjà ✓"


def test_names_are_those_of_python_and_of_the_standard():
    for labels in charsets.LABELS.values():
        for label in labels.split():
            with pytest.raises(LookupError):
                codecs.lookup(label)
            assert python_name(label) is not None
    assert python_name(" Windows-1252 ") == "cp1252"
    assert python_name("x-sjis") == "cp932"
    for name in ("klingon", "base64", "rot13", "idna", "utf-7", "a\0b"):
        assert python_name(name) is None
        assert not encoding_rule(name)[0]
    assert encoding_rule("latin-1")[0]


def test_a_damaged_file_has_the_encoding_that_the_user_names(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"no gzip")
    assert file_encoding(tmp_path / "a.gz", "latin-1") == "iso8859-1"
