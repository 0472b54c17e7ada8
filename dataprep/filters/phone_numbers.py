"""Find telephone numbers in a text: international forms, and national forms of all regions.

A number in international form begins with `+` or `00`. A national form means nothing without its region, so
one of these must hold:

- a word such as `Tel.`, `phone`, `fax` or `call` stands before it, in one of some twenty languages;
- it is written as a region writes its numbers, is valid there, and begins with the trunk prefix 0 or an area
  code in brackets;
- it is written as in North America, with hyphens or dots: 212-555-0123;
- it is written as one of the given regions writes its numbers, and is valid there.

So order numbers, dates, ISBNs, version numbers and columns of a table are no telephone numbers. What is
valid, and how a region groups the digits, comes from libphonenumber's metadata (the package `phonenumbers`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

import phonenumbers

# Words before a number. After a strong one, any five digits are a number: `Tel. 12345`. After a weak one the
# number must be in groups or have seven digits: in "call 12345 times" it does not.
STRONG = (
    r"tel|tels|telephone|phone|telno|fax|telefax|telefon|telefone|teléfono|telefono|téléphone|tél|telefoon|"
    r"telepon|telp|puhelin|puh|tlf|tfn|handy|mobilnummer|hotline|helpline|whatsapp|điện thoại|đt|телефон|тел|"
    r"факс|моб|τηλ|τηλέφωνο|φαξ|טלפון|טל|هاتف|تلفون|جوال|فاكس|تلفن|फ़ोन|फोन|मोबाइल|ফোন|โทร|โทรศัพท์|"
    r"电话|電話|传真|傳真|手机|手機|携帯|ファックス|전화|팩스|휴대폰"
)
WEAK = (
    r"ph|mob|mobile|mobil|móvil|cell|cellphone|cellular|cel|celular|call|calls|dial|ring|text|sms|contact|"
    r"contacto|llame|llama|appelez|appeler|anruf|anrufen|rufen|ligue|chiama|chiamare|bel|звоните|zadzwoń"
)
# What may stand between such a word and the number: "Phone no.: ", "call us at ".
_BETWEEN = r"(?:no|nr|num|number|numbers|is|at|on|us|me|him|her|them|now|nº|№|#)"
_COLON = r"[ \t]{0,2}[.:：]{0,2}[ \t]{0,3}"
_AFTER_CUE = rf"(?![^\W_]){_COLON}(?:{_BETWEEN}(?![^\W_]){_COLON}){{0,3}}"
CUE = re.compile(
    rf"(?<![^\W_])(?:{STRONG}|(?P<weak>{WEAK})){_AFTER_CUE}\Z|[☎☏✆📞📱📠]\ufe0f?[ \t:]{{0,3}}\Z",
    re.IGNORECASE,
)
CUE_CHARS = 60  # a cue and what follows it are shorter
CUED_NUMBER = re.compile(
    r"(?<![\w+])(?:\(\+?\d{1,6}(?:[ -]\d{1,4})?\)[ -]?|\+?\d)\d{0,14}(?:[ .-]{1,2}\(?\d{1,9}\)?){0,6}"
    r"(?![\w/]|[.,]\d)"
)
FIVE_DIGITS = re.compile(r"\d(?:[ ().-]{0,3}\d){4}")  # every number that is looked for has them
INTERNATIONAL = re.compile(
    # +49 (0)30 123456, +44 20 7946 0958, 0049 30 123456
    r"(?<![\w.,/#$€£+-])(?<!\d[ ])(?P<prefix>\+|00)[1-9]\d{0,2}(?:[ .-]?\(0?\d{0,4}\))?"
    # Two to six groups of up to six digits. A group ends where its digits end, or has six: a long number can
    # be cut into groups of all lengths in 6^6 ways.
    r"(?:(?:[ .-]?(?:\d{6}(?=\d)|\d{1,6}(?!\d))){2,6}|[ .-]?\d{2,6}(?!\d))"
    r"(?![\w/-]|[.,]\d)"
)
NORTH_AMERICAN = re.compile(
    r"(?<![\w.,/#$€£+-])(?:1[ .-])?"
    # (212) 555-0123, 212-555-0123, 212 555-0123, 212.555.0123
    r"(?:\(\d{3}\) ?\d{3}[.-]|\d{3}-\d{3}-|[2-9]\d\d[ ][2-9]\d\d-|[2-9]\d\d\.[2-9]\d\d\.)\d{4}"
    r"(?![\w/-]|[.,]\d)"
)
GROUPS = re.compile(
    r"(?<![\w.,:/#$€£¥=+-])(?<!\d[ ])(?:\(\d{1,5}\)[ -]?|\d{1,6}[ .-])\d{1,9}(?:[ .-]\d{1,9}){0,4}"
    r"(?![\w/-]|[.,]\d|[ ]\d|[ ]?[%€$£])"
)
# dates, and social security numbers of the United States
NO_PHONE = re.compile(r"\d{1,2}([ .-])\d{1,2}\1(?:\d\d){1,2}|\d{3}-\d\d-\d{4}")
FEWEST_DIGITS, MOST_DIGITS = 8, 15  # of an international number: ITU-T E.164


def phone_regions() -> frozenset[str]:
    """The codes (ISO 3166) of the regions whose telephone numbers are known."""
    return frozenset(phonenumbers.SUPPORTED_REGIONS)


def replace_phone_numbers(text: str, replacement: str, regions: tuple[str, ...] = ()) -> str:
    """The text with its telephone numbers replaced.

    regions: two-letter codes (ISO 3166) of regions whose national forms need no word before them.
    """
    if not FIVE_DIGITS.search(text):
        return text
    replace = lambda line: _replace_in_line(line, replacement, regions) if FIVE_DIGITS.search(line) else line
    return "\n".join(map(replace, text.split("\n")))


def _replace_in_line(line: str, replacement: str, regions: tuple[str, ...]) -> str:
    line = _sub(CUED_NUMBER, _has_cue, replacement, line)
    line = _sub(INTERNATIONAL, _is_international, replacement, line)
    line = NORTH_AMERICAN.sub(replacement, line)
    return _sub(GROUPS, functools.partial(_is_national, regions=regions), replacement, line)


def _sub(pattern: re.Pattern[str], accepts: Callable[[re.Match[str]], bool], new: str, text: str) -> str:
    return pattern.sub(lambda found: new if accepts(found) else found[0], text)


def _has_cue(found: re.Match[str]) -> bool:
    number = found[0]
    if not 5 <= len(_digits(number)) <= MOST_DIGITS or NO_PHONE.fullmatch(number):
        return False
    cue = CUE.search(found.string, max(0, found.start() - CUE_CHARS), found.start())
    return cue is not None and (cue["weak"] is None or not number.isdigit() or len(number) >= 7)


def _is_international(found: re.Match[str]) -> bool:
    number = found[0]
    if not FEWEST_DIGITS <= len(_digits(number)) <= MOST_DIGITS:
        return False
    return found["prefix"] == "+" or _is_valid("+" + number[2:], None)  # 0012345678 may be any number


def _is_national(found: re.Match[str], regions: tuple[str, ...]) -> bool:
    number = found[0]
    digits = _digits(number)
    if len(digits) > MOST_DIGITS or NO_PHONE.fullmatch(number):
        return False
    shape = _shape(number)
    candidates = _regions_of_shape().get(shape, ())
    if number[0] in "(0" and len(digits) >= 9 and len(set(number) & set(" .-")) <= 1 + (number[0] == "("):
        return any(_is_valid(number, region) for region in candidates)
    return any(region in regions and _is_valid(number, region) for region in candidates)


def _digits(number: str) -> str:
    return "".join(filter(str.isdigit, number))


def _shape(number: str) -> str:
    """A number with every digit as 9 and every separator as a space: (212) 555-0123 is `(999) 999 9999`."""
    return re.sub(r"[.-]", " ", re.sub(r"\d", "9", number))


@functools.lru_cache(maxsize=4096)
def _is_valid(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


@functools.cache
def _regions_of_shape() -> dict[str, tuple[str, ...]]:
    """The regions whose national numbers have a shape, by shape: those of libphonenumber's examples."""
    found: dict[str, dict[str, None]] = {}
    for region, shape in _national_shapes():
        found.setdefault(shape, {})[region] = None
    return {shape: tuple(regions) for shape, regions in found.items()}


def _national_shapes() -> Iterator[tuple[str, str]]:
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in phonenumbers.PhoneNumberType.values():
            example = phonenumbers.example_number_for_type(region, kind)
            if example is not None:
                national = phonenumbers.PhoneNumberFormat.NATIONAL
                yield region, _shape(phonenumbers.format_number(example, national))
