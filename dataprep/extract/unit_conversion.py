"""What `{{convert|5|km|mi}}` shows: 5 kilometres (3.1 mi).

The rules of rounding, names and ranges are those of en.wikipedia.org/wiki/Module:Convert, for the units in
wiki/units.yaml. What cannot be converted (an unknown unit, no number) is shown as it is written, so that no
number is made up.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from .editions import Edition, load

OPTIONS = ("abbr", "adj", "disp", "order", "sp", "sigfig", "round", "near", "spell")
# Words between the values of a range, {as written: (shown in the input, shown with symbols)}.
_RANGES = {
    "-": ("–", "–"), "–": ("–", "–"), "&ndash;": ("–", "–"), "to": (" to ", " to "),
    "and": (" and ", " and "),
    "or": (" or ", " or "), "by": (" by ", " by "), "x": (" by ", " × "), "×": (" by ", " × "),
    "+/-": (" ± ", " ± "), "±": (" ± ", " ± "), "to(-)": (" to ", "–"), "and(-)": (" and ", "–"),
    "or(-)": (" or ", "–"), "&": (" & ", " & "), "+": (" + ", " + "), ",": (", ", ", "),
    "to about": (" to about ", " to about "), "or about": (" or about ", " or about "),
    "and about": (" and about ", " and about "), "(-)": ("–", "–"), "*": (" × ", " × "), "xx": ("×", "×"),
}  # fmt: skip
_AMERICAN = {"metre": "meter", "litre": "liter", "tonne": "metric ton"}
_NUMBER = re.compile(r"([-+\u2212]?)((?:[0-9][0-9,]*)?(?:\.[0-9]+)?)(?:e([-+]?[0-9]{1,2}))?")
_FRACTION = re.compile(r"([-\u2212]?)(?:([0-9]{1,9})\+)?([0-9]{1,9})(?:/|//|\u2044)([0-9]{1,9})")
_PRECISION = re.compile(r"-?[0-9]{1,2}")
_EMPTY = frozenset(("", "&nbsp;"))


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of wiki/units.yaml; offset: of temperatures."""

    kind: str
    symbol: str
    name: str
    plural: str
    scale: float
    others: tuple[str, ...]
    offset: float = 0.0

    def spelled(self, value: float, is_fraction: bool, american: bool) -> str:
        one = value == 1 or (is_fraction and abs(value) <= 1)
        name = self.name if one else self.plural
        if american:
            for british, american_name in _AMERICAN.items():
                name = name.replace(british, american_name)
        return name

    def behind(self, value: float, adjective: bool) -> str:
        """The symbol as it follows a number: " km", "/km²"; " acres" and "-acre" where it is a word."""
        if self.symbol in (self.name, self.plural):
            return f"-{self.name.replace(' ', '-')}" if adjective else f" {self.spelled(value, False, False)}"
        return ("" if self.symbol.startswith("/") else " ") + self.symbol


@dataclasses.dataclass(frozen=True)
class Number:
    """A value as it is written: its text, digits behind the decimal point (negative: final zeros)."""

    shown: str
    value: float
    precision: int
    is_fraction: bool = False


@functools.cache
def _units() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    raw = load("units.yaml")
    aliases = raw.pop("aliases")
    for kind, units in raw.items():
        for code, (symbol, name, plural, scale, others, *offset) in units.items():
            offsets = [float(o) for o in offset]
            found[code] = Unit(kind, symbol, name, plural, float(scale), tuple(others.split(" ")), *offsets)
    return found | {alias: found[code] for alias, code in aliases.items()}


def text(edition: Edition, arguments: list[str], **options: str) -> str | None:
    """What a reader sees; None if no argument is given.

    arguments: those without names. options: those of OPTIONS that are given.
    """
    options = {name: options.get(name) or "" for name in OPTIONS}
    given = [argument for argument in arguments if argument not in _EMPTY]
    if not given:
        return None
    quantities = _read(edition, given)
    if quantities is None:
        return _in_millions(edition, given) or " ".join(given[:2])
    numbers, between, unit, rest = quantities
    if isinstance(unit, list):
        return _composite(edition, numbers, unit, rest, options)
    symbols = options["abbr"] in ("on", "in", "~") or (not edition.code.startswith(("en", "simple")))
    outputs = _outputs(rest[0]) if rest else None
    rest = rest[1:] if outputs is not None else rest
    if outputs is None:
        other = rest and not _PRECISION.fullmatch(rest[0]) and options["adj"] != "mid"
        default = [] if other else list(unit.others)  # nothing if a unit is asked for that is not known
        outputs = default if _default_output(unit, numbers) is None or other else ["ftin"]
    extra = next((int(part) for part in rest if _PRECISION.fullmatch(part)), None)
    suffix = next((part for part in rest if not _PRECISION.fullmatch(part)), "")
    names = options["abbr"] in ("off", "none", "in") or (
        options["disp"] in ("or", "slash") and options["abbr"] != "out" and not symbols
    )
    if _is_flipped(options) and not names:
        symbols, names = True, not symbols
    left = _left(numbers, between, unit, options, symbols, suffix)
    right = [
        shown
        for code in outputs
        if (shown := _right(edition, numbers, between, unit, code, extra, names, options)) is not None
    ]
    return _joined(left, right, options)


def _in_millions(edition: Edition, given: list[str]) -> str | None:
    """`{{convert|1.2|e6m3}}`: 1.2 million cubic metres, which is not converted."""
    match = re.fullmatch(r"e(3|6|9|12)(.+)", given[1]) if len(given) > 1 else None
    unit = _units().get(match[2]) if match else None
    if match is None or unit is None or not edition.code.startswith(("en", "simple")):
        return None
    word = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}[match[1]]
    return f"{edition.number(given[0])} {word} {unit.plural}"


def _read(
    edition: Edition, given: list[str]
) -> tuple[list[Number], list[str], Unit | list[Unit], list[str]] | None:
    """(numbers, the words between them, their unit, further arguments); units of a composite value."""
    units = _units()
    numbers: list[Number] = []
    between: list[str] = []
    place = 0
    while place < len(given):
        parsed = _number(edition, given[place])
        if parsed is None:
            return None
        numbers.append(parsed)
        place += 1
        if place < len(given) and given[place] in _RANGES and given[place] not in units:
            between.append(given[place])
            place += 1
            continue
        break
    if place >= len(given) or len(between) != len(numbers) - 1 or given[place] not in units:
        return None
    unit = units[given[place]]
    place += 1
    chain = [unit]
    while place + 1 < len(given) and given[place + 1] in units and not between:
        following = _number(edition, given[place])
        smaller = units[given[place + 1]]
        if following is None or smaller.kind != unit.kind or smaller.scale >= chain[-1].scale:
            break
        numbers.append(following)
        chain.append(smaller)
        place += 2
    return numbers, between, (chain if len(chain) > 1 else unit), given[place:]


def _number(edition: Edition, written: str) -> Number | None:
    if match := _FRACTION.fullmatch(written):
        sign, whole, top, bottom = match.groups()
        if int(bottom) == 0:
            return None
        value = int(whole or 0) + int(top) / int(bottom)
        shown = f"{whole} {top}\u2044{bottom}" if whole else f"{top}\u2044{bottom}"
        precision = max(1, math.floor(math.log10(int(bottom))))
        return Number("\u2212" * bool(sign) + shown, -value if sign else value, precision, True)
    match = _NUMBER.fullmatch(written)
    if match is None or not match[2] or len(written) > 30:
        return None
    sign, digits, exponent = match.groups()
    plain = digits.replace(",", "")
    whole, point, decimals = plain.partition(".")
    precision = len(decimals) if point else len(whole.rstrip("0")) - len(whole)
    value = float(plain) * (-1 if sign in ("-", "\u2212") else 1) * 10.0 ** int(exponent or 0)
    shown = edition.number(("-" if value < 0 else "") + (plain if whole else "0" + plain))
    if exponent:
        shown += f"×10^{exponent}"
    return Number(shown, value, precision - int(exponent or 0))


def _left(
    numbers: list[Number],
    between: list[str],
    unit: Unit,
    options: dict[str, str],
    symbols: bool,
    suffix: str,
) -> str:
    """The quantity as the author gave it. suffix: the words of `adj=mid`, as in a 10-foot-long rope."""
    adjective = options["adj"] in ("on", "mid")
    only_numbers = options["abbr"] == "values" or options["disp"] == "number"
    spaced = symbols or unit.symbol.startswith(("°", "/")) or unit.kind == "temperature"
    shown = [number.shown for number in numbers]
    words = [_RANGES[word][1 if spaced else 0] for word in between]
    if adjective and not spaced:
        words = [word if word == "–" else f"-{word.strip()}-" for word in words]
    if spaced and set(between) & {"x", "×"}:
        return " × ".join(number + unit.behind(2, False) for number in shown)
    joined = "".join(number + word for number, word in zip(shown, [*words, ""], strict=True))
    if only_numbers:
        return joined
    if spaced:
        return joined + unit.behind(numbers[-1].value, adjective)
    american = options["sp"] == "us"
    if not adjective:
        return f"{joined} {unit.spelled(numbers[-1].value, numbers[-1].is_fraction, american)}"
    joined = f"{joined}-{unit.spelled(1, False, american).replace(' ', '-')}"
    if options["adj"] == "mid" and suffix:
        joined += suffix if suffix[0] == "-" else f" {suffix}"
    return joined


def _outputs(written: str) -> list[str] | None:
    """The codes of output units, as in `km mi` and `km+mi`; None if it is something else."""
    units = _units()
    if written in units or written.replace(" ", "") == "ftin":
        return [written if written in units else "ftin"]
    codes = re.split(r"[ +]+", written)
    return codes if all(code in units or code == "ftin" for code in codes) else None


def _default_output(unit: Unit, numbers: list[Number]) -> str | None:
    return "ftin" if unit.symbol == "m" and 0 < numbers[0].value < 3 and len(numbers) == 1 else None


def _right(
    edition: Edition,
    numbers: list[Number],
    between: list[str],
    unit: Unit,
    code: str,
    extra: int | None,
    names: bool,
    options: dict[str, str],
) -> str | None:
    """The converted quantity; None if the unit is of another kind."""
    if code == "ftin":
        return _feet(edition, numbers[0], unit) if unit.kind == "length" and len(numbers) == 1 else None
    target = _units()[code]
    if target.kind.split("_")[0] != unit.kind.split("_")[0]:
        return None
    converted = [convert(number, unit, target) for number in numbers]
    shown = [
        _rounded(edition, number, value, unit, target, extra, options)
        for number, value in zip(numbers, converted, strict=True)
    ]
    if options["abbr"] == "values" or options["disp"] == "output number only":
        suffix = ""
    elif names:
        suffix = " " + target.spelled(converted[-1], False, options["sp"] == "us")
    else:
        suffix = target.behind(converted[-1], options["adj"] == "on")
    if set(between) & {"x", "×"} and not names:
        return " × ".join(number + suffix for number in shown)
    words = [_RANGES[word][0 if names else 1] for word in between]
    return "".join(number + word for number, word in zip(shown, [*words, ""], strict=True)) + suffix


def convert(number: Number, unit: Unit, target: Unit) -> float:
    """A value in another unit of its kind."""
    return (number.value - unit.offset) * unit.scale / target.scale + target.offset


def _rounded(
    edition: Edition,
    number: Number,
    value: float,
    unit: Unit,
    target: Unit,
    extra: int | None,
    options: dict[str, str],
) -> str:
    if options["round"] in ("5", "10", "25", "50", "0.5"):
        step = float(options["round"])
        return _digits(edition, math.floor(value / step + 0.5) * step, 1 if step < 1 else 0)
    if options["sigfig"].isdecimal() and 0 < int(options["sigfig"][:2]) < 15 and value:
        return _digits(edition, value, int(options["sigfig"][:2]) - 1 - math.floor(math.log10(abs(value))))
    return _digits(edition, value, default_precision(number, unit, target, value) if extra is None else extra)


def default_precision(number: Number, unit: Unit, target: Unit, value: float) -> int:
    """Digits behind the decimal point of a converted value, by Module:Convert's `default_precision`."""
    if unit.kind == "temperature":
        kelvins = abs((number.value - unit.offset) * unit.scale)
        least = 2 if kelvins < 1e-8 else 2 - math.floor(math.log10(kelvins) + 1e-14)
        adjust = 0.0
    else:
        if not number.value or value <= 0:
            return 0
        adjust = math.log10(abs(number.value / value))
        least = 1 - math.floor(math.log10(value) + 1e-14)
    return max(math.floor(number.precision + adjust + math.log10(2)), least)


def _digits(edition: Edition, value: float, precision: int) -> str:
    """A number with so many decimals, halves rounded up; a negative precision rounds to tens."""
    precision = max(-15, min(precision, 15))
    scaled = math.floor(abs(value) * 10.0**precision + 0.5)
    if precision <= 0:
        written = str(scaled * 10**-precision)
    else:
        whole, decimals = divmod(scaled, 10**precision)
        written = f"{whole}.{decimals:0{precision}d}"
    negative = value < 0 and scaled > 0
    return edition.number(("-" if negative else "") + written)


def _feet(edition: Edition, number: Number, unit: Unit) -> str:
    inch = _units()["in"]
    inches = convert(number, unit, inch)
    precision = max(0, default_precision(number, unit, inch, inches))
    total = math.floor(abs(inches) * 10.0**precision + 0.5) / 10.0**precision
    feet, left = divmod(total, 12)
    sign = "\u2212" if number.value < 0 else ""
    return f"{sign}{edition.number(str(int(feet)))} ft {_digits(edition, left, precision)} in"


def _composite(
    edition: Edition, numbers: list[Number], units: list[Unit], rest: list[str], options: dict[str, str]
) -> str | None:
    """`{{convert|5|ft|10|in|cm}}`: 5 feet 10 inches (178 cm)."""
    symbols = options["abbr"] == "on" or not edition.code.startswith(("en", "simple"))
    adjective = options["adj"] in ("on", "mid")
    parts = []
    for number, unit in zip(numbers, units, strict=True):
        if symbols:
            parts.append(f"{number.shown} {unit.symbol}")
        elif adjective:
            parts.append(f"{number.shown}-{unit.name}")
        else:
            parts.append(f"{number.shown} {unit.spelled(number.value, number.is_fraction, False)}")
    left = ("-" if adjective and not symbols else " ").join(parts)
    smallest = units[-1]
    total = (
        sum(number.value * unit.scale for number, unit in zip(numbers, units, strict=True)) / smallest.scale
    )
    whole = Number("", total, max(0, numbers[-1].precision), numbers[-1].is_fraction)
    outputs = (_outputs(rest[0]) if rest else None) or [
        "m" if units[0].kind == "length" else units[0].others[-1]
    ]
    extra = next((int(r) for r in rest[1:2] if _PRECISION.fullmatch(r)), None)
    right = []
    for code in outputs:
        target = _units().get(code)
        if target is None or target.kind != smallest.kind:
            continue
        value = convert(whole, smallest, target)
        if extra is not None:
            precision = extra
        elif smallest.symbol == "in":  # the module's "subunit_more_precision"
            least = 1 - math.floor(math.log10(value) + 1e-14) if value > 0 else 0
            adjust = math.log10(target.scale) + 2 + math.log10(2)
            precision = max(math.floor(whole.precision + adjust), least)
        else:
            precision = default_precision(whole, smallest, target, value)
        right.append(f"{_digits(edition, value, precision)} {target.symbol}")
    return _joined(left, right, options)


def _is_flipped(options: dict[str, str]) -> bool:
    return options["order"] in ("flip", "out") or options["disp"] == "flip"


def _joined(left: str, right: list[str], options: dict[str, str]) -> str:
    """Both sides as `disp` and `order` want them."""
    if not right:
        return left
    disp = options["disp"]
    other = "; ".join(right)
    if _is_flipped(options):
        left, other = "; ".join(right), left
    if disp in ("out", "output only", "output number only"):
        return other
    if disp in ("unit", "number", "unit2", "in", "input only"):
        return left
    if disp == "or":
        return f"{left} or {other}"
    if disp in ("sqbr", "br()") or disp.startswith("["):
        return f"{left} [{other}]" if disp == "sqbr" else f"{left} ({other})"
    if disp in ("/", "slash"):
        return f"{left} / {other}"
    if disp == "comma":
        return f"{left}, {other}"
    if disp in ("br", "table", "tablecen"):
        return f"{left}\x0b{other}"
    return f"{left} ({other})"
