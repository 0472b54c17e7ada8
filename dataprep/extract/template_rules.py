"""The templates of Wikipedia that are more than a pattern of arguments: dates, numbers, languages, ships.

Each function returns what a reader sees in place of a template (`Call` of template_call.py), or None if it
cannot tell. `RULES` has them under the names that wiki/templates.yaml uses. What a template prints is
described on its page, as in en.wikipedia.org/wiki/Template:Val.
"""

from __future__ import annotations

import datetime
import functools
import re
import unicodedata
from collections.abc import Callable

from . import editions, expression, unit_conversion
from .template_call import Call
from .wikitext_tags import APOSTROPHE, BREAK, HIDDEN, superscript

NARROW = re.compile(r"[\s\u00a0\u202f]+")
_EXPONENT = re.compile(r"(?<=[A-Za-zΩμµ°)])([-\u2212]?[0-9]+)(?![0-9]*[A-Za-z])")
_UNIT_CODES = {
    "degC": "°C",
    "degF": "°F",
    "deg": "°",
    "ohm": "Ω",
    "angstrom": "Å",
    "arcmin": "′",
    "arcsec": "″",
}
_ISO_DATE = re.compile("([0-9]{4})-([0-9]{2})-([0-9]{2})")
_CHARGE = re.compile(r"\(([0-9]*[-+\u2212])\)")
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]+)*")
_MUSIC = {
    "flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮", "n": "♮", "doublesharp": "𝄪",
    "doubleflat": "𝄫", "##": "𝄪", "x": "𝄪", "bb": "𝄫", "quarter": "♩", "eighth": "♪", "half": "𝅗𝅥",
    "dim": "o", "aug": "+", "trebleclef": "𝄞", "bassclef": "𝄢",
}  # fmt: skip
_NOTES = {
    "quarternote": "♩",
    "eighthnote": "♪",
    "halfnote": "𝅗𝅥",
    "wholenote": "𝅝",
    "segno": "𝄋",
    "coda": "𝄌",
    "fermata": "𝄐",
    "c": "𝄴",
    "common time": "𝄴",
    "cut time": "𝄵",
    "altoclef": "𝄡",
}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_ROMAN = tuple(
    zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"),
    )
)
_ENDS_OF_MARRIAGES = {
    "d": "died",
    "d.": "died",
    "died": "died",
    "w": "died",
    "div": "div.",
    "div.": "div.",
    "divorced": "div.",
    "sep": "sep.",
    "sep.": "sep.",
    "separated": "sep.",
    "ann": "ann.",
    "ann.": "ann.",
    "annulled": "ann.",
}
_INDIAN_UNITS = {
    "c": "crore",
    "l": "lakh",
    "k": "thousand",
    "m": "million",
    "b": "billion",
    "t": "trillion",
    "lc": "lakh crore",
}
_CURRENCIES = {
    "USD": "$",
    "GBP": "£",
    "EUR": "€",
    "JPY": "¥",
    "INR": "₹",
    "AUD": "A$",
    "CAD": "C$",
    "CNY": "CN¥",
    "KRW": "₩",
    "RUB": "₽",
    "NZD": "NZ$",
    "BRL": "R$",
    "PHP": "₱",
    "ILS": "₪",
    "TRY": "₺",
}
_CHINESE = {
    "s": "simplified Chinese", "t": "traditional Chinese", "c": "Chinese", "p": "pinyin", "w": "Wade–Giles",
    "j": "Jyutping", "y": "Yale Romanization", "poj": "Pe̍h-ōe-jī", "tl": "Tâi-lô", "l": "lit.",
}  # fmt: skip
_NOT_SOUNDS = frozenset(("pron", "lang", "local", "audio", "uk", "us", "small", "ipa", "uklang", "uslang"))
_ABOVE_SEA = {
    "DE-NN": "m ü. NN", "DE-NHN": "m ü. NHN", "DE-HN": "m ü. HN", "AT": "m ü. A.", "CH": "m ü. M.",
    "IT": "m s.l.m.", "FR": "m", "CZ": "m n.m.", "PL": "m n.p.m.",
}  # fmt: skip


# Numbers.


def number(call: Call) -> str | None:
    """`{{formatnum|1234}}`: 1,234."""
    return call.edition.number(call.get("1", "val")) or None


def quantity(call: Call) -> str | None:
    """`{{unité|12,5|km|h|-1}}`: 12,5 km h⁻¹, the number as the language writes it."""
    value, *rest = [*call.positional(), ""]
    pieces = [_any_number(call, value)]
    if power := call.get("e"):
        pieces[0] += "×10" + superscript(power)
    for part in rest:
        if re.fullmatch(r"[-\u2212]?[0-9]+", part) and len(pieces) > 1:
            pieces[-1] += superscript(part)
        elif part:
            pieces.append(part)
    return " ".join(filter(None, pieces)) or None


def _any_number(call: Call, text: str) -> str:
    """A number that may be grouped with spaces and have a decimal comma."""
    plain = NARROW.sub("", text)
    if plain.count(",") == 1 and "." not in plain:
        plain = plain.replace(",", ".")
    shown = call.edition.number(plain)
    return text if shown == plain and not plain.isdigit() else shown


def value(call: Call) -> str | None:
    """`{{val|1.23|0.05|e=5|u=m}}`: (1.23±0.05)×10⁵ m."""
    main, plus, minus = [*call.positional(), "", "", ""][:3]
    if call.get("fmt") == "commas":
        main = call.edition.number(main)
    main = re.sub(r"^-", "\u2212", main)
    power, unit, per = call.get("e"), call.get("u", "ul"), call.get("up", "upl")
    text = call.get("p") + main
    uncertain = False
    if plus.startswith("("):
        text += plus
    elif plus and minus:
        text += "+" + plus.lstrip("+") + "\u2212" + minus.lstrip("-\u2212")
        uncertain = True
    elif plus:
        text += f"±{plus}"
        uncertain = True
    if not text and not power:
        return None
    if power:
        text = (f"({text})" if uncertain else text) + ("×" if text else "") + "10" + superscript(power)
        uncertain = False
    text += call.get("s", "end")
    if unit:
        symbol = shown_unit(unit)
        close = symbol in ("%", "°", "′", "″")
        text = (f"({text})" if uncertain else text) + ("" if close else " ") + symbol
    return text + ("/" + shown_unit(per) if per else "")


def shown_unit(unit: str) -> str:
    """`m.s-1` as m·s⁻¹."""
    if unit in _UNIT_CODES:
        return _UNIT_CODES[unit]
    return _EXPONENT.sub(lambda power: superscript(power[1]), unit.replace("*", "·")).replace(".", "·")


def fraction(call: Call) -> str | None:
    """`{{frac|1|2}}`: 1⁄2; `{{frac|3|1|2}}`: 3 1⁄2; `{{frac|2}}`: 1⁄2."""
    return _fraction(call, "\u2044")


def stacked_fraction(call: Call) -> str | None:
    """`{{sfrac|1|2}}`: 1/2."""
    return _fraction(call, "/")


def _fraction(call: Call, bar: str) -> str | None:
    parts = list(filter(None, call.positional()))[:3]
    if len(parts) == 3:
        return f"{parts[0]} {parts[1]}{bar}{parts[2]}"
    if len(parts) == 2:
        return f"{parts[0]}{bar}{parts[1]}"
    return f"1{bar}{parts[0]}" if parts else None


def raised(call: Call) -> str | None:
    """`{{sup|2}}`: ² for a number, otherwise the text."""
    text = call.get("1")
    return (superscript(text) if re.fullmatch(r"[-+\u2212]?[0-9]{1,9}", text) else text) or None


def power_of_ten(call: Call) -> str | None:
    """`{{e|6}}`: ×10⁶."""
    if not (power := call.get("1")):
        return None
    sign = "" if call.name == "10^" else "×"
    return f"{sign}10{superscript(power)}"


def chemical(call: Call) -> str | None:
    """`{{chem2|SO4(2-)}}`: SO4²⁻."""
    parts = [part for part in call.positional() if part]
    return _CHARGE.sub(lambda charge: superscript(charge[1]), "".join(parts)) or None


def rounded(call: Call) -> str | None:
    """`{{round|3.14159|2}}`: 3.14."""
    number, decimals = call.get("1"), call.get("2") or "0"
    try:
        return call.edition.number(expression.evaluate(f"({number}) round ({decimals})")) if number else None
    except expression.ExpressionError:
        return None


def percentage(call: Call) -> str | None:
    """`{{percentage|1|3|1}}`: 33.3%."""
    part, whole, decimals = call.get("1"), call.get("2"), call.get("3") or "0"
    try:
        number = expression.value(f"(100 * ({part}) / ({whole})) round ({decimals})")
        places = int(decimals)
    except (ValueError, expression.ExpressionError):
        return None
    return None if number is None or not 0 <= places < 15 else f"{number:.{places}f}%"


def roman(call: Call) -> str | None:
    """`{{roman|19}}`: XIX."""
    text = call.get("1")
    if not re.fullmatch("[0-9]{1,4}", text) or not 0 < int(text) < 4000:
        return text or None
    left, shown = int(text), ""
    for size, letters in _ROMAN:
        shown += letters * (left // size)
        left %= size
    return shown


def nuclide(call: Call) -> str | None:
    """`{{nuclide|carbon|14}}`: ¹⁴₆C; `{{SimpleNuclide|carbon|14}}`: ¹⁴C."""
    name, mass, state = call.get("1"), call.get("2"), call.get("3")
    elements = _elements()
    place = next((i for i, (long, _) in enumerate(elements, 1) if long == name.lower()), None)
    if place is None:
        return superscript(mass) + name if mass and name else name or None
    symbol = elements[place - 1][1]
    if not mass:
        return symbol
    below = str(place).translate(_SUBSCRIPTS) if call.name == "nuclide" else ""
    return superscript(mass + state) + below + symbol


@functools.cache
def _elements() -> list[tuple[str, str]]:
    """(name, symbol) of the chemical elements in the order of their numbers."""
    words = (editions.FOLDER / "elements.txt").read_text("utf-8").split()
    return list(zip(words[::2], words[1::2]))


def braces(call: Call) -> str | None:
    """`{{mset|1, 2}}`: {1, 2}."""
    text = ", ".join(filter(None, call.positional()))
    return "{".translate(HIDDEN) + text + "}".translate(HIDDEN) if text else None


def pounds_shillings_pence(call: Call) -> str | None:
    """`{{£sd|l=3|s=2|d=6}}`: £3 2s 6d."""
    pounds, shillings, pence = call.get("l"), call.get("s"), call.get("d")
    parts = (pounds and f"£{pounds}", shillings and f"{shillings}s", pence and f"{pence}d")
    return " ".join(filter(None, parts)) or None


def indian_amount(call: Call) -> str | None:
    """`{{INRConvert|5|c}}`: ₹5 crore; what it is in dollars depends on the day."""
    amount, unit = call.get("1"), call.get("2")
    word = _INDIAN_UNITS.get(unit.lower(), "")
    return f"₹{amount} {word}".strip() if amount else None


def currency(call: Call) -> str | None:
    """`{{currency|5|USD}}`: $5."""
    amount, code = call.get("1", "amount"), call.get("2", "type").upper()
    shown = call.edition.number(amount)
    return _CURRENCIES.get(code, f"{code} " if code else "") + shown if amount else None


def plural_word(call: Call) -> str | None:
    """`{{plural|2|page}}`: 2 pages; the third argument is another plural."""
    count, word, more = call.get("1"), call.get("2"), call.get("3")
    if not count or not word:
        return None
    if count in ("1", "-1", "\u22121"):
        return f"{count} {word}"
    if not more:
        more = word[:-1] + "ies" if re.search("[^aeiou]y$", word) else word + "s"
    return f"{count} {more}"


def slavic_plural(call: Call) -> str | None:
    """Russian `{{plural|5|день|дня|дней}}`: дней."""
    count, *forms = [*call.positional(), ""][:4]
    if not re.fullmatch("[0-9]{1,15}", count) or len(forms) < 3:
        return None
    return forms[call.edition.plural_form(int(count))] or None


def ordinal(call: Call) -> str | None:
    """`{{ordinal|21}}`: 21st."""
    text = call.get("1")
    if not text.isdecimal():
        return text or None
    ending = "th" if text[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th")
    return text + ending


def height(call: Call) -> str | None:
    """`{{height|m=1.75}}`: 1.75 m (5 ft 9 in)."""
    feet, inches = call.get("ft", "feet"), call.get("in", "inch", "inches")
    if feet:
        return unit_conversion.text(call.edition, [feet, "ft", inches or "0", "in", "m"], abbr="on")
    for unit in ("m", "cm"):
        if call.get(unit):
            return unit_conversion.text(call.edition, [call.get(unit), unit, "ftin"], abbr="on")
    return None


def convert(call: Call) -> str | None:
    """`{{convert|5|km|mi}}`: 5 kilometres (3.1 mi)."""
    options = {key: call.get(key) for key in unit_conversion.OPTIONS}
    if call.name == "cvt" and not options["abbr"]:
        options["abbr"] = "on"
    return unit_conversion.text(call.edition, call.positional(), **options)


def height_above_sea(call: Call) -> str | None:
    """German `{{Höhe|123|DE-NN}}`: 123 m ü. NN."""
    if not (value := call.get("1")):
        return None
    return f"{value} {_ABOVE_SEA.get(call.get('2').upper(), 'm')}"


# Dates.


def circa(call: Call) -> str | None:
    """`{{circa|1880|1890}}`: c. 1880 – c. 1890."""
    years = list(filter(None, call.positional()))[:2]
    return " – ".join(f"c. {year}" for year in years) or "c."


def date(call: Call) -> str | None:
    """`{{birth date|1815|12|10}}`: December 10, 1815, or 10 December 1815 with df=yes."""
    parts = call.positional()
    day_first = call.is_set("df") or call.get("1", "format") == "dmy"
    if parts and (iso := _ISO_DATE.fullmatch(parts[0])):
        day_first = call.name == "date" and call.get("2") != "mdy"
        parts = [*iso.groups()]
    return _date(call, parts, day_first=day_first)


def _date(call: Call, parts: list[str], day_first: bool) -> str | None:
    year, month, day = [*parts, "", "", ""][:3]
    if not year or (month and _month(call, month) is None) or (day and not day.isdecimal()):
        return year or None
    if not month:
        return year
    name = _month(call, month)
    if not day:
        return f"{name} {year}"
    day = day.lstrip("0")
    return f"{day} {name} {year}" if day_first else f"{name} {day}, {year}"


def _month(call: Call, month: str) -> str | None:
    """The name of a month's number; a name itself; None for anything else."""
    if not month.isdecimal():
        return month if month.replace(".", "").isalpha() else None
    months = call.edition.months
    return months[int(month) - 1] if len(month) < 4 and 1 <= int(month) <= len(months) else None


def date_of_death(call: Call) -> str | None:
    """`{{death date and age|1852|11|27|1815|12|10}}`: November 27, 1852 (aged 36)."""
    parts = call.positional()
    text = _date(call, parts, day_first=call.is_set("df"))
    numbers = [int(part) for part in parts[:6] if part.isdecimal() and len(part) < 5]
    if text is None or len(numbers) < 6:
        return text
    age = numbers[0] - numbers[3] - ((numbers[1], numbers[2]) < (numbers[4], numbers[5]))
    return f"{text} (aged {age})"


def _day(parts: list[str]) -> datetime.date | None:
    try:
        year, month, day = map(int, parts)
        return datetime.date(year, month, day)
    except ValueError:
        return None


def _days(call: Call) -> tuple[datetime.date, datetime.date] | None:
    """Two days in six arguments, or in two as 2000-01-31; None if today is one of them."""
    parts = call.positional()
    if len(parts) == 2:
        parts = [number for part in parts for number in part.split("-")]
    first, last = _day(parts[:3]), _day(parts[3:6])
    return (first, last) if first and last and first <= last else None


def _years(first: datetime.date, last: datetime.date) -> int:
    return last.year - first.year - ((last.month, last.day) < (first.month, first.day))


def age(call: Call) -> str | None:
    """`{{age|1989|7|23|2003|7|14}}`: 13. The age as of today is not known."""
    days = _days(call)
    return str(_years(*days)) if days else None


def age_in_days(call: Call) -> str | None:
    """`{{age in days|2000|1|1|2000|3|1}}`: 60."""
    days = _days(call)
    return call.edition.number(str((days[1] - days[0]).days)) if days else None


def age_in_years_and_days(call: Call) -> str | None:
    """`{{age in years and days|1989|7|23|2003|7|14}}`: 13 years, 356 days."""
    if (days := _days(call)) is None:
        return None
    first, last = days
    years = _years(first, last)
    leap_day = (first.month, first.day) == (2, 29)
    since = datetime.date(first.year + years, 3 if leap_day else first.month, 1 if leap_day else first.day)
    if leap_day and _day([str(first.year + years), "2", "29"]):
        since = since.replace(month=2, day=29)
    rest = (last - since).days
    named = (f"{years} year{'s' * (years != 1)}", f"{rest} day{'s' * (rest != 1)}")
    return ", ".join(named)


def old_style_date(call: Call) -> str | None:
    """`{{OldStyleDate|24 January|1726|13 January}}`: 24 January [O.S. 13 January] 1726."""
    new, year, old = [*call.positional(), "", "", ""][:3]
    if not new or not old:
        return f"{new} {year}".strip() or None
    mark = f"[O.S. {old}]".translate(HIDDEN)
    return f"{new} {year} {mark}" if call.name.endswith("DY") else f"{new} {mark} {year}".strip()


def marriage(call: Call) -> str | None:
    """`{{marriage|Ann Lee|1990|2000|end=div}}`: Ann Lee (m. 1990; div. 2000)."""
    name, start, end = [*call.positional(), "", "", ""][:3]
    how = _ENDS_OF_MARRIAGES.get(call.get("end", "reason").lower(), "")
    if not start:
        return name or None
    if end and not how:
        when = f"m. {start}–{end}"
    else:
        when = f"m. {start}" + (f"; {how} {end}".rstrip() if how else "")
    return f"{name} ({when})".strip()


def spanish_death(call: Call) -> str | None:
    """`{{fallecimiento|27|11|1852|10|12|1815}}`: 27 de noviembre de 1852 (36 años)."""
    parts = call.positional()
    text = spanish_date(call)
    born, died = _day(parts[5:2:-1]), _day(parts[2::-1])
    return f"{text} ({_years(born, died)} años)" if text and born and died and born <= died else text


def as_of(call: Call) -> str | None:
    """`{{as of|2012|3}}`: As of March 2012."""
    if alternative := call.get("alt"):
        return alternative
    parts = call.positional()
    shown = _date(call, parts, day_first=call.get("df").lower() not in ("us", "mdy"))
    words = "Since" if call.is_set("since") else "As of"
    return f"{words.lower() if call.is_set('lc') else words} {shown}" if shown else None


def date_words(call: Call) -> str | None:
    """French `{{date|10|décembre|1815}}`: 10 décembre 1815. The fourth argument is a topic."""
    parts = call.positional()
    if len(parts) < 3:
        return (parts[0] if parts else "") or None
    day, month, year = parts[:3]
    day = "1er" if day in ("1", "01") else day.lstrip("0")
    return " ".join(filter(None, (day, _month(call, month) or month, year))) or None


def spanish_date(call: Call) -> str | None:
    """`{{fecha|10|12|1815}}`: 10 de diciembre de 1815."""
    day, month, year = [*call.positional(), "", "", ""][:3]
    return " de ".join(filter(None, (day, (month and _month(call, month)) or month, year))) or None


def russian_date(call: Call) -> str | None:
    """`{{дата|10|12|1815}}`: 10 декабря 1815."""
    day, month, year = [*call.positional(), "", "", ""][:3]
    return " ".join(filter(None, (day, (month and _month(call, month)) or month, year))) or None


def century(call: Call) -> str | None:
    """French `{{s|XIX|e}}`: XIXe siècle; `{{-s|V}}`: Ve siècle av. J.-C.; `{{sp|XVIII|e|et|XIX|e}}`."""
    parts = [*call.positional(), "", "", "", "", ""]
    if not parts[0]:
        return None
    one = parts[0] + (parts[1] or ("er" if parts[0] == "I" else "e"))
    if call.name.startswith("sp"):
        between = parts[2] if parts[2].isalpha() else "–"
        return f"{one} {between} {parts[3]}{parts[4] or 'e'} siècles" if parts[3] else f"{one} siècle"
    return f"{one} siècle" + (" av. J.-C." if call.name.startswith("-") else "")


def spanish_century(call: Call) -> str | None:
    """`{{siglo|V|a|s}}`: siglo V a. C."""
    roman, era, word = [*call.positional(), "", "", ""][:3]
    if not roman:
        return None
    words = {"s": "siglo ", "S": "Siglo ", "ss": "siglos "}.get(word, "")
    return words + roman + {"a": " a. C.", "d": " d. C."}.get(era[:1].lower(), "")


# Languages and their sounds.


def language_label(call: Call) -> str | None:
    """`{{lang-de|Haus}}` and `{{langx|de|Haus}}`: German: Haus, in the words of the edition."""
    names, code, text = call.edition.languages, "", ""
    if call.name == "langx":
        code, text = call.get("1"), call.get("2")
    else:
        code, text = call.name.removeprefix("lang-"), call.get("1", "texte")
    if code.endswith("-short"):
        names, code = call.edition.short_languages, code.removesuffix("-short")
    if not text:
        return None
    name = names.get(code) or names.get(code.split("-")[0])
    if name is not None and call.get("label") != "none":
        text = call.edition.language_label.format(language=name, text=text)
    if not call.edition.code.startswith(("en", "simple")):
        return text
    place = 3 if call.name == "langx" else 2
    latin, meaning = call.get(str(place), "translit"), call.get(str(place + 1), "lit")
    return text + (f", romanized: {latin}" if latin else "") + (f", lit. '{meaning}'" if meaning else "")


def language_word(call: Call) -> str | None:
    """German `{{enS|house}}`: englisch house."""
    text, code = call.get("1"), call.name.removesuffix("S")
    name = call.edition.languages.get(code)
    return f"{name} {text}" if name and text else text or None


def pronunciation(call: Call) -> str | None:
    """`{{IPA|/haʊs/}}` as it is; `{{IPA|de|haʊs}}`: German: [haʊs]."""
    first, sounds = call.get("1"), call.get("2")
    if not sounds or not _LANGUAGE_CODE.fullmatch(first):
        return first or None
    return _in_language(call, first, sounds)


def pronunciation_of(call: Call) -> str | None:
    """`{{IPA-de|haʊs}}`: German: [haʊs]."""
    sounds = call.get("1")
    return _in_language(call, call.name[4:], sounds) if sounds else None


def _in_language(call: Call, code: str, sounds: str) -> str:
    if sounds[0] not in "/[\x05":
        sounds = f"[{sounds}]"
    name = call.edition.languages.get(code.split("-")[0])
    return (f"{name}: {sounds}" if name else sounds).translate(HIDDEN)


def pronunciation_pieces(call: Call) -> str | None:
    """`{{IPAc-en|h|aʊ|s}}`: /haʊs/."""
    pieces = [piece for piece in call.positional() if piece and piece.lower() not in _NOT_SOUNDS]
    if not pieces:
        return None
    sounds = "".join({"'": "ˈ", APOSTROPHE: "ˈ", ",": "ˌ", "_": " ", "-": "-"}.get(p, p) for p in pieces)
    return f"/{sounds}/"


def native_name(call: Call) -> str | None:
    """`{{native name|fr|Le Louvre}}`: Le Louvre (French); without the language with paren=omit."""
    code, text = call.get("tag", "1"), call.get("name", "text", "2")
    name = call.edition.languages.get(code.split("-")[0])
    if not text or not name or call.get("paren").lower() in ("omit", "no", "off"):
        return text or None
    return f"{text} ({name})"


def in_language(call: Call) -> str | None:
    """`{{in lang|fr|de}}`: (in French and German)."""
    names = [call.edition.languages.get(code.split("-")[0], code) for code in filter(None, call.positional())]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    return f"(in {listed})" if names else None


def unicode_character(call: Call) -> str | None:
    """`{{unichar|00A9}}`: U+00A9 © COPYRIGHT SIGN."""
    text = call.get("1").upper().removeprefix("U+")
    if not re.fullmatch("[0-9A-F]{1,6}", text) or not 0x20 < int(text, 16) < 0x110000:
        return None
    character = chr(int(text, 16))
    name = unicodedata.name(character, "")
    shown = character if name and unicodedata.category(character)[0] not in "CZM" else ""
    return " ".join(filter(None, (f"U+{text:>04}", shown.translate(HIDDEN), name)))


def chinese(call: Call) -> str | None:
    """`{{zh|s=北京|p=Běijīng}}`: simplified Chinese: 北京; pinyin: Běijīng."""
    texts = [(label, call.get(key)) for key, label in _CHINESE.items()]
    shown = [f"{label} '{t}'" if label == "lit." else f"{label}: {t}" for label, t in texts if t]
    return "; ".join(shown).translate(HIDDEN) or call.get("1") or None


def bible_verse(call: Call) -> str | None:
    """`{{bibleverse|Genesis|1:1}}` and `{{bibleverse|1|Samuel|2:3}}`: Genesis 1:1, 1 Samuel 2:3."""
    parts = [*call.positional(), "", "", "", "", ""]
    if parts[1][:1].isalpha():  # the number of the book comes first, or is empty
        parts = [f"{parts[0]} {parts[1]}".strip(), *parts[2:]]
    return parts[3] or f"{parts[0]} {parts[1]}".strip() or None


def road_junction(call: Call) -> str | None:
    """`{{jct|state=CA|I|5|US|50}}`: I-5 / US 50."""
    parts = call.positional()
    roads = [
        f"{kind}{'-' if kind == 'I' else ' '}{number}"
        for kind, number in zip(parts[::2], parts[1::2])
        if kind and number
    ]
    return " / ".join(roads) or None


def post_nominals(call: Call) -> str | None:
    """`{{post-nominals|country=GBR|OM|FRS}}`: OM FRS; with commas where the letters are of full size."""
    separator = ", " if call.get("size").rstrip("%") == "100" else " "
    return separator.join(filter(None, call.positional())) or None


# Ships, references in the text, and the rest.


def ship(call: Call) -> str | None:
    """`{{USS|Iowa|BB-61}}`: USS Iowa (BB-61); the third argument says which parts are shown."""
    name, number, form = [*call.positional(), "", "", ""][:3]
    return _ship(call.written, name, number, form)


def named_ship(call: Call) -> str | None:
    """`{{ship|HMS|Victory||2}}`: Victory."""
    prefix, name, number, form = [*call.positional(), "", "", "", ""][:4]
    return _ship(prefix, name, number, form or call.get("up"))


def _ship(prefix: str, name: str, number: str, form: str) -> str | None:
    if not name:
        return None
    whole = f"{prefix} {name}".strip()
    in_brackets = f" ({number})" if number else ""
    shown = {
        "1": number or name,
        "2": name,
        "3": name + in_brackets,
        "4": f"{prefix} {number}" if number else whole,
        "6": whole,
    }
    return shown.get(form, whole + in_brackets)


def citation_in_brackets(call: Call) -> str | None:
    """`{{harv|Smith|Jones|2000|p=12}}`: (Smith & Jones 2000, p. 12)."""
    text = citation_plain(call)
    return f"({text})" if text else None


def citation_plain(call: Call) -> str | None:
    """`{{harvnb|Smith|Jones|2000|p=12}}`: Smith & Jones 2000, p. 12."""
    authors, year = _authors(call)
    return f"{authors} {year}{_pages(call)}".strip() if authors else None


def citation_of_year(call: Call) -> str | None:
    """`{{harvtxt|Smith|2000}}`: Smith (2000)."""
    authors, year = _authors(call)
    return f"{authors} ({year}{_pages(call)})" if authors and year else authors or None


def _authors(call: Call) -> tuple[str, str]:
    names = list(filter(None, call.positional()))
    year = names.pop() if len(names) > 1 else ""
    if len(names) > 3:
        return f"{names[0]} et al.", year
    return " & ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))), year


def _pages(call: Call) -> str:
    page, pages, place = call.get("p", "page"), call.get("pp", "pages"), call.get("loc", "at")
    found = (page and f"p. {page}", pages and f"pp. {pages}", place)
    return "".join(f", {part}" for part in found if part)


def lines(call: Call) -> str | None:
    """`{{ubl|one|two}}`: one line for each."""
    items = [call.get("title"), *call.positional()]
    return BREAK + BREAK.join(filter(None, items)) + BREAK if any(items) else None


def sic(call: Call) -> str | None:
    """`{{sic|teh}}`: teh [sic]; only the word with hide=y."""
    word = call.get("1") + call.get("2") + call.get("3")
    if call.is_set("hide"):
        return word or None
    mark = "[sic]".translate(HIDDEN)
    return f"{word} {mark}" if word else mark


def code(call: Call) -> str | None:
    """`{{code|x = ''}}`: the text as it is."""
    text = call.get("code", "1")
    return text.replace("'", APOSTROPHE) or None


def template_name(call: Call) -> str | None:
    """`{{tl|nowrap}}`: {{nowrap}}."""
    parts = list(filter(None, call.positional()))
    return ("{{" + "|".join(parts) + "}}").translate(HIDDEN) if parts else None


def music(call: Call) -> str | None:
    """`{{music|flat}}`: ♭; `{{music|time|3|4}}`: 3/4; `{{music|scale|5}}`: 5 with a circumflex."""
    sign, first, second = [*call.positional(), "", "", ""][:3]
    sign = sign.lower()
    if sign == "time":
        return f"{first}/{second}" if first and second else _NOTES.get(first.lower(), first) or None
    if sign in ("scale", "scale degree"):
        return f"{first}\u0302" if first else None
    return _MUSIC.get(sign) or _NOTES.get(sign)


RULES: dict[str, Callable[[Call], str | None]] = {
    rule.__name__: rule
    for rule in (
        age, age_in_days, age_in_years_and_days, as_of, bible_verse, braces, century, chemical, chinese,
        circa, citation_in_brackets, citation_of_year, citation_plain, code, convert, currency, date,
        date_of_death, date_words, fraction, height, height_above_sea, in_language, indian_amount,
        language_label, language_word, lines, marriage, music, named_ship, native_name, nuclide, number,
        old_style_date, ordinal, percentage, plural_word, post_nominals, pounds_shillings_pence,
        power_of_ten, pronunciation, pronunciation_of, pronunciation_pieces, quantity, raised,
        road_junction, roman, rounded, russian_date, ship, sic, slavic_plural, spanish_century,
        spanish_date, spanish_death, stacked_fraction, template_name, unicode_character, value,
    )
}  # fmt: skip
