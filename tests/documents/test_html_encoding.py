"""Pages in every encoding of the Encoding Standard, with labels that are right, missing or wrong.

The tables are compared with the standard's own index files by their digests. Labels and the prescan are
compared with html5lib's rules as webencodings has them, and with cases worked by hand.
"""

import hashlib

import pytest
import webencodings
from hypothesis import given
from hypothesis import strategies as st

from mt.documents.html_encoding import CODECS, REPLACEMENT, declared_encoding, decode_page, resolve

PROSE = {
    "ru": "Быстрая коричневая лиса перепрыгнула через ленивую собаку, и вся деревня смотрела на это молча.",
    "uk": "Швидка бура лисиця перестрибнула через ледачого пса, і все село дивилося на це зі здивуванням.",
    "el": "Η γρήγορη καφέ αλεπού πήδηξε πάνω από το τεμπέλικο σκυλί και όλο το χωριό κοίταζε έκπληκτο.",
    "he": "השועל החום המהיר קפץ מעל הכלב העצלן וכל הכפר הסתכל בו בתדהמה גדולה.",
    "ar": "قفز الثعلب البني السريع فوق الكلب الكسول ونظرت القرية كلها بدهشة.",
    "th": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจและทั้งหมู่บ้านมองด้วยความประหลาดใจ",
    "ja": "素早い茶色の狐はのろまな犬を飛び越え、村の人々は驚いてそれを見ていました。",
    "zh": "敏捷的棕色狐狸跳过了懒狗，全村的人都惊讶地看着它。",
    "zh-tw": "敏捷的棕色狐狸跳過了懶狗，全村的人都驚訝地看著牠。",
    "ko": "빠른 갈색 여우가 게으른 개를 뛰어넘었고 온 마을이 놀라서 그것을 보았다.",
    "pl": "Szybki brązowy lis przeskoczył nad leniwym psem, a cała wieś patrzyła ze śmiechem. Źródło.",
    "ro": "Vulpea maronie a sărit peste câinele leneș, iar satul întreg privea uimit și tăcut în înserare.",
    "tr": "Hızlı kahverengi tilki tembel köpeğin üzerinden atladı ve bütün köy şaşkınlıkla ona baktı.",
    "eo": "La rapida bruna vulpo saltis trans la maldiligentan hundon, kaj ĉiuj ĝoje aŭdis ĥoron ĵaŭdon.",
    "lt": "Greita ruda lapė peršoko tingų šunį, o visas kaimas žiūrėjo į tai su nuostaba, ąžuolas čia.",
    "cy": "Neidiodd y llwynog brown dros y ci diog, ac edrychodd y dŵr a'r tŷ i gyd arno ŵyn.",
    "fr": "Le rapide renard brun a sauté par-dessus le chien paresseux, et l'été le village était étonné.",
    "vi": "Con cáo nâu nhanh nhe\u0323n đi qua con chó tô\u0301t.",
}
ENCODINGS = {  # every one of the standard that a page can be written in, with a language that it was made for
    "utf-8": "ru", "ibm866": "ru", "iso-8859-2": "pl", "iso-8859-3": "eo", "iso-8859-4": "lt",
    "iso-8859-5": "ru", "iso-8859-6": "ar", "iso-8859-7": "el", "iso-8859-8": "he", "iso-8859-8-i": "he",
    "iso-8859-10": "lt", "iso-8859-13": "lt", "iso-8859-14": "cy", "iso-8859-15": "fr", "iso-8859-16": "ro",
    "koi8-r": "ru", "koi8-u": "uk", "macintosh": "fr", "windows-874": "th", "windows-1250": "pl",
    "windows-1251": "ru", "windows-1252": "fr", "windows-1253": "el", "windows-1254": "tr",
    "windows-1255": "he", "windows-1256": "ar", "windows-1257": "lt", "windows-1258": "vi",
    "x-mac-cyrillic": "ru", "gbk": "zh", "gb18030": "zh", "big5": "zh-tw", "euc-jp": "ja",
    "iso-2022-jp": "ja", "shift_jis": "ja", "euc-kr": "ko", "utf-16be": "ja", "utf-16le": "ru",
}  # fmt: skip
# Without a label browsers do not tell these from their neighbours, of which chardetng has one.
NOT_GUESSED = {
    "iso-8859-3", "iso-8859-4", "iso-8859-10", "iso-8859-14", "iso-8859-16", "macintosh", "windows-1258",
    "x-mac-cyrillic",
}  # fmt: skip
# Any letters of these are words in Latin-1 or in Cyrillic too: without a meta the label is believed.
LIKE_LATIN = ("pl", "tr", "lt", "fr")
LIKE_CYRILLIC = ("ru", "uk", "he")


def encode(text, encoding):
    return text.encode(CODECS.get(encoding, encoding))


def page(encoding, meta=None):
    declared = f'<meta charset="{meta}">' if meta else ""
    prose = f"<p>{PROSE[ENCODINGS[encoding]]}</p>"
    text = f"<!DOCTYPE html><html><head>{declared}<title>T</title></head><body>{prose}</body></html>"
    return text, encode(text, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_page_is_decoded_by_the_label_of_its_header_or_its_meta(encoding):
    text, body = page(encoding)
    assert decode_page(body, encoding) == text
    text, body = page(encoding, encoding)
    assert decode_page(body) == text
    assert decode_page(body, "no-such-charset") == text


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e not in NOT_GUESSED])
def test_a_page_without_a_label_is_guessed(encoding):
    text, body = page(encoding)
    assert decode_page(body) == text


@pytest.mark.parametrize(
    "wrong", ["utf-8", "iso-8859-1", "windows-1251", "shift_jis", "utf-16", "iso-2022-jp"]
)
@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e not in NOT_GUESSED])
def test_a_page_with_a_wrong_header_is_decoded_by_its_meta_or_a_guess(encoding, wrong):
    text, body = page(encoding)
    meta_text, meta_body = page(encoding, encoding)
    believed = {"iso-8859-1": LIKE_LATIN, "windows-1251": LIKE_CYRILLIC}.get(wrong, ())
    is_believed = ENCODINGS[encoding] in believed and not encoding.startswith("utf")
    if not is_believed:
        assert decode_page(body, wrong) == text
    if not is_believed or ENCODINGS[encoding] == "he":  # chardetng knows Hebrew, as the meta does
        assert decode_page(meta_body, wrong) == meta_text


@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-8", b"\xef\xbb\xbf"), ("utf-16le", b"\xff\xfe"), ("utf-16be", b"\xfe\xff")]
)
def test_a_byte_order_mark_beats_header_and_meta(encoding, mark):
    text = page("utf-8", "windows-1251")[0]
    assert decode_page(mark + encode(text, encoding), "koi8-r") == text


@pytest.mark.parametrize("encoding", ["big5", "euc-jp", "euc-kr", "gbk", "gb18030", "shift_jis"])
def test_one_bad_byte_among_pairs_is_one_replacement(encoding):
    text, body = page(encoding)
    found = decode_page(body.replace(b"<p>", b"<p>\xff"), encoding)
    assert found == text.replace("<p>", f"<p>{REPLACEMENT}")
    found = decode_page(body.replace(b"</p>", b"\x81</p>"), encoding)
    assert found == text.replace("</p>", f"{REPLACEMENT}</p>")


def test_one_bad_byte_in_utf8_is_one_replacement():
    text, body = page("utf-8")
    at = body.index(b"<p>") + 3
    for label in (None, "utf-8", "iso-8859-1"):
        assert decode_page(body[:at] + b"\xff" + body[at:], label) == text.replace("<p>", f"<p>{REPLACEMENT}")


@pytest.mark.parametrize("label", ["iso-8859-1", "latin1", "us-ascii", "ISO8859-1", " windows-1252\n"])
def test_labels_of_latin_1_and_ascii_mean_windows_1252(label):
    assert decode_page(b"<p>\x93caf\xe9\x94 5 \x80", label) == "<p>“café” 5 €"


def test_an_old_label_of_seven_bits_is_decoded_and_misleads_nobody():
    text = "<p>这是一个段落。</p>"
    for label, codec in (("hz-gb-2312", "hz"), ("iso-2022-jp", "iso2022_jp")):
        words = text if codec == "hz" else "<p>日本語</p>"
        assert decode_page(words.encode(codec), label) == words
    assert decode_page("<p>한국어</p>".encode("iso2022_kr"), "iso-2022-kr") == "<p>한국어</p>"
    for label in ("hz-gb-2312", "iso-2022-kr", "iso-2022-cn", "replacement", "iso-2022-jp"):
        assert decode_page(b"<p>~{ not closed", label) in ("<p>~{ not closed",)
        assert decode_page(text.encode(), label) == text


def test_labels_are_those_of_the_standard():
    for label, name in webencodings.LABELS.items():
        for spelled in (label, label.upper(), f"\t{label} "):
            assert resolve(spelled) in ({name} if name != "replacement" else {None, "hz", "iso2022_kr"})
    for label in ("", "utf-7", "idna", "punycode", "unicode_escape", "a\0b", "\u212aoi8-r", "utf 8"):
        assert resolve(label) is None


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"<meta charset=koi8-r>", "koi8-r"),
        (b"<META CHARSET='KOI8-R'/>", "koi8-r"),
        (b"<meta/charset=koi8-r>", "koi8-r"),
        (b"<meta name=a content='b'><meta charset = \"koi8-r\">", "koi8-r"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        (b"<meta content='text/html; charset = \"koi8-r\"' http-equiv=content-type>", "koi8-r"),
        (b'<meta content="text/html; charset=koi8-r">', None),  # no http-equiv
        (b'<meta http-equiv=refresh content="charset=koi8-r">', None),
        (b"<!-- <meta charset=koi8-r> --><meta charset=big5>", "big5"),
        (b"<!--><meta charset=koi8-r>", "koi8-r"),
        (b"<a title='<meta charset=big5>'><meta charset=koi8-r>", "koi8-r"),
        (b"<!doctype <meta charset=big5>><meta charset=koi8-r>", "koi8-r"),
        (b"<meta charset=utf-16>", "utf-8"),
        (b"<meta charset=utf-16be>", "utf-8"),
        (b"<meta charset=x-user-defined>", "windows-1252"),
        (b"<meta charset=unknown><meta charset=koi8-r>", "koi8-r"),
        (b"<metadata charset=koi8-r>", None),
        (b"<?xml version='1.0' encoding='koi8-r'?><p>", "koi8-r"),
        (b"<?xml version='1.0' encoding='koi8-r'?><meta charset=big5>", "big5"),
        (b"<!-- <meta charset=koi8-r>", None),
        (b"<meta charset", None),
        (b"", None),
    ],
)
def test_the_prescan_finds_the_encoding_that_a_page_declares(start, name):
    assert declared_encoding(start) == name


@given(
    st.lists(
        st.sampled_from(
            [b"<", b">", b"meta ", b"charset", b"=", b'"', b"'", b"<!--", b"-->", b"/", b" ", b"a"]
        )
    )
)
def test_the_prescan_ends_on_any_markup(pieces):
    declared_encoding(b"".join(pieces))


@given(st.binary(max_size=300), st.sampled_from([*webencodings.LABELS, "x", None]))
def test_any_bytes_under_any_label_are_a_text_that_utf8_can_encode(body, label):
    decode_page(body, label).encode()


# SHA-256 of the characters of the standard's indexes (of May 2026), in the order of their pointers.
INDEXES = {
    "shift_jis": "e7ea4b06943d4e4c41d7c1622a9151dba83d3d1ddb520bbd320147985a804f5b",
    "euc-jp": "a217d8755e0832bc5b4372ef085059871300a0155b7fe99b81b9cfe1883eb606",
    "big5": "7d209328839b5e7e656c2d0de69d72d03e0867c95890748fadf38732202afa17",
    "euc-kr": "f49bf642f090c1ce9815815ce783022b6deebb12346af361db70c72d9d7bb59d",
    "gb18030": "85373408efe24c652c0a2f37997df8c657b0e8a654d07d9f9d97f1ad16609bc6",
}
LEADS = {"shift_jis": [*range(0x81, 0xA0), *range(0xE0, 0xFD)], "euc-jp": range(0xA1, 0xFF)}
TRAILS = {
    "euc-jp": range(0xA1, 0xFF),
    "euc-kr": range(0x41, 0xFF),
    "big5": [*range(0x40, 0x7F), *range(0xA1, 0xFF)],
}


NOT_COMPARED = [b"\xa2\x41", b"\xa2\x42", b"\x88\x62", b"\x88\x64", b"\x88\xa3", b"\x88\xa5"]


@pytest.mark.parametrize("encoding", INDEXES)
def test_pairs_of_bytes_are_the_characters_of_the_standards_index(encoding):
    """Two slashes of Big5 that Python's codec takes for others are left out, and four pairs of characters."""
    from mt.documents.html_encoding import _decode

    found = []
    for lead in LEADS.get(encoding, range(0x81, 0xFF)):
        for trail in TRAILS.get(encoding, [*range(0x40, 0x7F), *range(0x80, 0xFF)]):
            pair = bytes([lead, trail])
            text = _decode(pair + b"<", encoding)
            user_defined = encoding == "shift_jis" and 0xF0 <= lead <= 0xF9  # the index does not list these
            if len(text) > 1 and text[-1] == "<" and REPLACEMENT not in text and not user_defined:
                found.append("" if encoding == "big5" and pair in NOT_COMPARED else text[:-1])
    assert hashlib.sha256("".join(found).encode()).hexdigest() == INDEXES[encoding]


def test_single_bytes_are_the_characters_of_the_standards_tables():
    """webencodings has Python's tables; the standard fills their gaps with C1 controls."""
    from mt.documents.html_encoding import _decode

    gaps = {}
    for name in set(webencodings.LABELS.values()):
        codec = webencodings.lookup(name)
        if codec.name in ("replacement", "x-user-defined") or codec.name.startswith("utf-16"):
            continue
        for byte in range(0x80, 0x100) if _is_single(codec) else ():
            theirs = webencodings.decode(bytes([byte]), codec, "replace")[0]
            ours = _decode(bytes([byte]), name)
            if theirs == REPLACEMENT != ours:
                assert ours == (chr(byte) if byte < 0xA0 else "\u05ba"), (name, byte)
            elif theirs != ours:
                gaps[name, byte] = ours
    assert gaps == {("koi8-u", 0xAE): "ў", ("koi8-u", 0xBE): "Ў"}


def _is_single(codec):
    return codec.name.startswith(("iso-8859", "windows", "koi8", "ibm", "mac", "x-mac"))


def test_the_domain_of_the_host_helps_the_guess():
    body = "<p>Ой, їжак</p>".encode("cp1251")
    for host in ("", "a.ua", "xn--p1ai", "A.UA", "b.Ü", "1.2.3.4", "[::1]"):
        assert decode_page(body, None, host)
    assert decode_page(body, None, "a.ua") == "<p>Ой, їжак</p>"
