"""Decodes HTML pages: which encoding a page is in, and its text.

The order is that of browsers: a byte order mark, the HTTP header, a `<meta>` in the first 1024 bytes, then a
guess by chardetng, the detector of Firefox. Labels mean what the Encoding Standard says: `iso-8859-1` is
windows-1252, `gb2312` is gb18030, `shift_jis` is Windows code page 932. Browsers believe a label in any case.
Here a label is not believed if the page shows that it is wrong: the bytes are UTF-8, or are not valid in its
encoding, or give no words in it while the guess does. Some invalid bytes are no reason: each becomes U+FFFD.

Labels of encodings that browsers no longer decode (hz-gb-2312, iso-2022-kr, iso-2022-cn) are a danger to
scripts, not to text: bytes that are valid in them are decoded.

Source: Encoding Standard (encoding.spec.whatwg.org), sections 4 to 14; HTML standard, section 13.2.3.2.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import itertools
import re

LIBRARIES = ("chardetng-py", "webencodings")  # on whose versions a text depends
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16be"), (b"\xff\xfe", "utf-16le"))
PRESCAN_BYTES = 1024
DETECT_BYTES = 1 << 18  # of a page, for the guess; 12 MB take a second
JUDGED_CHARS = 200_000  # of a text, for whether it consists of words
REPLACEMENT = "\ufffd"
# A label of an encoding of two bytes for a character loses to UTF-8 if the page has this many characters in
# it. Fewer may be valid in both: the bytes of GBK for one character are those of UTF-8 in one case of ten.
SURE_CHARS = 8
MAX_ODD_WORDS = 0.05  # of the words with other letters than ASCII, in a text that is decoded rightly

# Codecs of Python by the name of the standard, where the names differ.
CODECS = {
    "big5": "big5hkscs",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "gbk": "gb18030",
    "iso-2022-jp": "iso2022_jp_ext",
    "iso-8859-8-i": "iso-8859-8",
    "macintosh": "mac_roman",
    "shift_jis": "cp932",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac_cyrillic",
}
MULTI_BYTE = ("big5", "euc-jp", "euc-kr", "gbk", "gb18030", "shift_jis")
SEVEN_BIT = ("iso-2022-jp", "hz", "iso2022_kr")
# Labels of the standard's "replacement", with a codec for those that Python has one for.
REPLACED = {"hz-gb-2312": "hz", "csiso2022kr": "iso2022_kr", "iso-2022-kr": "iso2022_kr"}
# Characters of which Python's tables differ from those of the standard.
_JIS = str.maketrans("〜‖−¢£¬", "～∥－￠￡￢")
TRANSLATED: dict[str, dict[int, int] | dict[int, str]] = {
    "euc-jp": _JIS,
    "iso-2022-jp": _JIS,
    "big5": str.maketrans("•､‾∼♁☉¥¢£", "‧﹑¯～⊕⊙￥￠￡"),
    "shift_jis": dict.fromkeys(range(0xF8F0, 0xF8F4), REPLACEMENT),
    "koi8-u": str.maketrans("╝╬", "ўЎ"),
    "gb18030": str.maketrans(
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7"
        "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f"
        "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
    ),
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A page decoded in one encoding."""

    encoding: str
    text: str

    @functools.cached_property
    def errors(self) -> int:
        return self.text.count(REPLACEMENT)

    @functools.cached_property
    def foreign(self) -> int:
        """How many characters are not ASCII, without errors."""
        # a tenth of the time of a regular expression
        return len(self.text) - len(self.text.encode("ascii", "ignore")) - self.errors

    @functools.cached_property
    def odd_words(self) -> float:
        """The share of odd words, as no language writes them, among those with other letters than ASCII."""
        words = [word for word in WORD.findall(self.text[:JUDGED_CHARS]) if not word.isascii()]
        return sum(map(_is_odd, words)) / len(words) if words else 0.0

    @property
    def is_valid(self) -> bool:
        """Whether at most a tenth of what is not ASCII is invalid."""
        return self.errors * 10 <= self.foreign


def decode_page(body: bytes, label: str | None = None, host: str = "") -> str:
    """The text of an HTML page, without a byte order mark.

    label: the charset of the HTTP header, or what else is known of the page's encoding. host: of the page's
    URL; its top-level domain helps the guess.
    """
    for mark, encoding in BOMS:
        if body.startswith(mark):
            return _decode(body[len(mark) :], encoding)
    labels = [name for name in (resolve(label or ""), declared_encoding(body[:PRESCAN_BYTES])) if name]
    for name in labels:
        if name.startswith("utf-16") and "<" in (text := _decode(body, name)):
            return text
    labels = [name for name in labels if not name.startswith("utf-16")]
    if wide := _wide_encoding(body):
        return _decode(body, wide)
    if body.isascii():
        return _decode_ascii(body, labels)
    labels = [name for name in labels if name not in SEVEN_BIT]
    utf8 = Reading("utf-8", _decode(body, "utf-8"))
    needed = SURE_CHARS if labels and labels[0] in MULTI_BYTE else 1
    if utf8.is_valid and utf8.foreign >= (needed if utf8.errors == 0 else SURE_CHARS):
        return utf8.text
    readings = [utf8 if name == "utf-8" else Reading(name, _decode(body, name)) for name in labels]
    readings = [reading for reading in readings if reading.is_valid]
    guess: Reading | None = None
    if len(readings) == 2 and readings[0].text != readings[1].text:
        guess = _guess(body, host)
        if guess.text == readings[1].text:  # the guess is a second witness for the meta
            return guess.text
    for reading in readings:
        if reading.odd_words > MAX_ODD_WORDS:
            guess = guess or _guess(body, host)
            if guess.is_valid and guess.odd_words * 4 <= reading.odd_words:
                continue
        return reading.text
    guess = guess or _guess(body, host)
    # perhaps a page in UTF-8 with parts of another encoding
    return utf8.text if utf8.errors <= utf8.foreign and guess.odd_words > MAX_ODD_WORDS else guess.text


def resolve(label: str) -> str | None:
    """The name of the encoding of a label, in lower case; None if the standard has no such label."""
    from webencodings import LABELS, ascii_lower

    label = ascii_lower(label.strip(" \t\n\f\r"))
    name = REPLACED.get(label) or LABELS.get(label)
    return None if name == "replacement" else name


def _decode_ascii(body: bytes, labels: list[str]) -> str:
    """A page of ASCII alone, perhaps with the escapes of an encoding of seven bits."""
    escaped = [name for name in labels if name in SEVEN_BIT and (b"\x1b" in body or b"~{" in body)]
    if not escaped and b"\x1b$" in body:
        escaped = ["iso-2022-jp"]
    for name in escaped:
        reading = Reading(name, _decode(body, name))
        if reading.is_valid and reading.foreign:
            return reading.text
    return body.decode("ascii")


def _wide_encoding(body: bytes) -> str | None:
    """UTF-16 without a mark or label: of the ASCII in it, every other byte is zero."""
    start = body[:4096]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if min(even, odd) * 20 <= max(even, odd) >= max(4, len(start) // 20):
        return "utf-16le" if odd > even else "utf-16be"
    return None


def _guess(body: bytes, host: str) -> Reading:
    from chardetng_py import EncodingDetector

    domain = host.rpartition(".")[2].lower()
    detector = EncodingDetector()
    detector.feed(body[:DETECT_BYTES], last=len(body) <= DETECT_BYTES)
    tld = domain.encode() if DOMAIN.fullmatch(domain) else None
    name = resolve(detector.guess(tld=tld, allow_utf8=False)) or "windows-874"  # named cp874 there
    return Reading(name, _decode(body, name))


def _decode(body: bytes, encoding: str) -> str:
    """The text of bytes by the standard's decoder; bytes that are invalid in it become U+FFFD."""
    if encoding == "x-user-defined":
        return body.decode("latin-1").translate(USER_DEFINED)
    name = "gb18030" if encoding == "gbk" else encoding
    text = body.decode(CODECS.get(name, name), HANDLERS.get(name, "replace"))
    table = TRANSLATED.get(name)
    return text.translate(table) if table and not text.isascii() else text


def _c1_control(error: UnicodeError) -> tuple[str, int]:
    """A byte that Windows leaves undefined is a control character of ISO 8859, which Python refuses."""
    assert isinstance(error, UnicodeDecodeError)
    byte = error.object[error.start]
    if byte < 0xA0:
        return chr(byte), error.start + 1
    return "\u05ba" if byte == 0xCA else REPLACEMENT, error.start + 1  # undefined only in cp1255


def _pair(error: UnicodeError) -> tuple[str, int]:
    """A pair of bytes that Python's table lacks; else U+FFFD for one byte, or for two if neither is ASCII."""
    assert isinstance(error, UnicodeDecodeError)
    first, second = error.object[error.start], error.object[error.start + 1 : error.start + 2]
    if error.encoding == "gb18030" and first == 0x80:
        return "€", error.start + 1
    if second:
        try:
            if error.encoding == "big5hkscs":
                pointer = (first - 0x81) * 157 + second[0] - (0x40 if second[0] < 0x7F else 0x62)
                return _more_of_big5()[pointer], error.start + 2
            if (wide := _jis_pair(first | 0x80, second[0] | 0x80)) and error.encoding in JIS_CODECS:
                return wide.decode("cp932"), error.start + 2
        except (KeyError, UnicodeDecodeError):
            pass
    return REPLACEMENT, error.start + (2 if 0x80 < first < 0xFF and second > b"\x7f" else 1)


def _jis_pair(row: int, cell: int) -> bytes | None:
    """The bytes in code page 932 of a pair of EUC-JP; the code page has NEC's and IBM's characters too."""
    if not (0xA1 <= row <= 0xFE and 0xA1 <= cell <= 0xFE):
        return None
    lead, trail = divmod((row - 0xA1) * 94 + cell - 0xA1, 188)
    return bytes((lead + (0x81 if lead < 0x1F else 0xC1), trail + (0x40 if trail < 0x3F else 0x41)))


@functools.cache
def _more_of_big5() -> dict[int, str]:
    """The characters of the standard's index, by pointer, that Python's big5hkscs does not have."""
    runs = [run.split(":") for run in BIG5_MORE.split()]
    return {int(start) + n: character for start, run in runs for n, character in enumerate(run)}


codecs.register_error("mt.c1_control", _c1_control)
codecs.register_error("mt.pair", _pair)
JIS_CODECS = ("euc_jp", "iso2022_jp_ext")
HANDLERS = {
    **dict.fromkeys([*MULTI_BYTE, "iso-2022-jp"], "mt.pair"),
    **dict.fromkeys(["windows-874", *(f"windows-125{digit}" for digit in range(9))], "mt.c1_control"),
}


def declared_encoding(start: bytes) -> str | None:
    """The encoding in the `<meta>` elements of the first bytes of a page, by the standard's prescan."""
    at = 0
    while (at := start.find(b"<", at)) >= 0:
        if start.startswith(b"<!--", at):
            at = start.find(b"-->", at + 2) + 3
            if at == 2:
                break
        elif meta := META.match(start, at):
            name, at = _meta_encoding(start, meta.end())
            if name:
                return name
        elif tag := TAG.match(start, at):
            at = tag.end()
            while (attribute := ATTRIBUTE.match(start, at)) is not None:
                at = attribute.end()
        elif start[at + 1 : at + 2] in (b"!", b"/", b"?"):
            at = start.find(b">", at) + 1 or len(start)
        else:
            at += 1
    declaration = XML_ENCODING.match(start)
    return _declared(declaration[1] or declaration[2]) if declaration else None


def _meta_encoding(start: bytes, at: int) -> tuple[str | None, int]:
    """(encoding, where the element ends) of the attributes of a `<meta>`."""
    attributes: dict[bytes, bytes] = {}
    while (found := ATTRIBUTE.match(start, at)) is not None:
        value = next((found[n] for n in (2, 3, 4) if found[n] is not None), b"")
        attributes.setdefault(found[1].lower(), value)
        at = found.end()
    if b"charset" in attributes:
        return _declared(attributes[b"charset"]), at
    content = CONTENT_CHARSET.search(attributes.get(b"content", b""))
    if content and attributes.get(b"http-equiv", b"").lower() == b"content-type":
        return _declared(next(found for found in content.groups() if found is not None)), at
    return None, at


def _declared(label: bytes) -> str | None:
    """A page whose `<meta>` can be read as ASCII is not in UTF-16."""
    name = resolve(label.decode("latin-1"))
    return {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}.get(name or "", name)


def _is_odd(word: str) -> bool:
    """Whether a run of letters and signs cannot be a word, as bytes of another encoding are none."""
    word = word.strip(AROUND_WORDS)
    return (
        ODD_SIGN.search(word) is not None
        or (ALPHABET.search(word) is not None and LATIN.search(word) is not None)
        or FOREIGN_LATIN_RUN.search(word) is not None
        or any(a.islower() and b.isupper() and not (a + b).isascii() for a, b in itertools.pairwise(word))
    )


BIG5_MORE = (
    "1000:㡵𡵓𣚞𦀡㻬𥣞㫵竼龗𤅡𨤍𣇪𠪊𣉞䌊蒄"
    "龖鐯䤰蘓墖靊鈘秐稲晠権袝瑌篅枂稬剏遆㓦珄𥶹瓆鿇垳䤯呌䄱𣚎堘穲𧭥讏䚮𦺈䆁𥶙箮𢒼鿈"
    " 1055:𢓁𢓉𢓌鿉蔄𣖻䂴鿊䓡𪷿拁灮鿋 "
    "2082:箸 2088:簆 2103:糎 2114:緒 2123:縝 2148:者 2151:耨 2221:菁 2239:蒨 2244:萏 2303:覦覩 2354:起 "
    "2400:都 2413:銹 2477:靜 2498:響 2605:鼖 2673:蔃 2746:兙兛兝兞 2771:鍮 2780:瑹 2990:浧 3087:禛 "
    "3259:邗 3301:靝 3436:瀞 3451:嬨 4136:爁 4138:矗 4141:纇 4182:駖 4206:釔 4220:惞 4230:澶 4241:輶 "
    "4258:侻 4273:營 4279:鄄 4282:鷰 4294:菏 4329:尐秣 4349:婧 4419:輋 4422:筑 4494:拐 4624:恢 4694:痹 "
    "4708:汊 4742:鬮 4748:鼗 4815:僭 4828:弌 4902:蠏 4922:拎 4982:瑨 4992:煢 4997:牐 "
    "5432:␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏␐␑␒␓␔␕␖␗␘␙␚␛␜␝␞␟␡€ 10942:廴 10946:无 10948:癶 10950:隶 10957:〃仝 "
    "19028:倩 19035:偽 19088:包 19096:卄 19112:卿 19162:嘅 19240:婷 19299:幵 19305:廐 19326:彘 "
    "19355:悤 19398:撐 19439:晴 19454:杞 19553:沜渝 19557:港 19611:煮 19643:猪 19672:瑜 19697:瓩 "
    "19748:砉 "
)
USER_DEFINED = {byte: 0xF780 + byte - 0x80 for byte in range(0x80, 0x100)}
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
WORD = re.compile(r"(?:[A-Za-z]|[^\x00-\x7f\s])+")
AROUND_WORDS = "«»“”„‘’‚‹›–—…•·¡¿©®™°€£\u200e\u200f\ufeff"
# Control characters, signs and boxes within a word; runs of half-width kana; characters for private use.
ODD_SIGN = re.compile(
    r"[\x80-\x9f\ue000-\uf8ff\u2500-\u259f]|[｡-ﾟ]{3}|[A-Za-z][｡-ﾟ]"
    r"|\w[¡-©«-¶¸¹»-¿×÷†‡ˆ˜‰€™“”„‹›√∆∏∑∫≈≠≤≥◊⌠⌡]+\w"
)
ALPHABET = re.compile(r"[\u0370-\u05ff\u0600-\u06ff\u0e00-\u0e7f]")
LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]")
FOREIGN_LATIN_RUN = re.compile(r"[À-ÖØ-öø-ɏ]{3}")
DOMAIN = re.compile(r"[a-z0-9-]{1,63}")
_SPACE = rb"[ \t\n\f\r]"
META = re.compile(rb"<meta[ \t\n\f\r/]", re.IGNORECASE)
TAG = re.compile(rb"</?[a-zA-Z][^ \t\n\f\r>]*+")
ATTRIBUTE = re.compile(
    rb"[ \t\n\f\r/]*+([^ \t\n\f\r/>][^ \t\n\f\r/>=]*+)"
    rb"(?:%b*+=%b*+(?:\"([^\"]*+)\"|'([^']*+)'|([^ \t\n\f\r>\"'][^ \t\n\f\r>]*+)))?+" % (_SPACE, _SPACE)
)
CONTENT_CHARSET = re.compile(
    rb"charset%b*+=%b*+(?:\"([^\"]*+)\"|'([^']*+)'|([^ \t\n\f\r;\"'][^ \t\n\f\r;]*+))" % (_SPACE, _SPACE),
    re.IGNORECASE,
)
XML_ENCODING = re.compile(
    rb"<\?xml[^>]*?encoding[\x00-\x20]*+=[\x00-\x20]*+(?:\"([^\"\x00-\x20]+)\"|'([^'\x00-\x20]+)')"
)
